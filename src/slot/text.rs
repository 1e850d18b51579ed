//! Keys and values in lines of JSON: as text where they are text, else as hexadecimal digits under another name,
//! so that no byte is lost.

use std::fmt::Write as _;

use serde::Serialize;

/// A key, and its value where there is one; for `#[serde(flatten)]`.
#[derive(Debug, Serialize)]
pub struct KeyValueText<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_hex: Option<String>,
}

impl<'a> KeyValueText<'a> {
    /// Of a record, or of a key that was deleted.
    #[must_use]
    pub fn new(key: &'a [u8], value: Option<&'a [u8]>) -> Self {
        let (key, key_hex) = lossless(key);
        let (value, value_hex) = value.map_or((None, None), lossless);
        Self { key, key_hex, value, value_hex }
    }
}

/// Text, or hexadecimal digits.
pub(crate) fn lossless(bytes: &[u8]) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(hex(bytes))),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes it");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_told_in_digits() {
        let line = |key, value| serde_json::to_string(&KeyValueText::new(key, value)).unwrap();
        assert_eq!(line(b"k\"", Some(b"")), r#"{"key":"k\"","value":""}"#);
        assert_eq!(line(b"k", Some(b"\x00\xfe")), r#"{"key":"k","value_hex":"00fe"}"#);
        assert_eq!(line(b"\xff", None), r#"{"key_hex":"ff"}"#);
    }
}
