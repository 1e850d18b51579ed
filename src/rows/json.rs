//! Rows as JSON lines, in the words of `slotstream tail --json`.

use std::borrow::Cow;
use std::io::{self, BufRead, Read, Write};

use serde::{Deserialize, Serialize};

use super::{Item, Row, RowError, Source, TEXT_SIZE_MAX, Target, unhex};
use crate::slot::KeyValueText;

/// A line that is no row.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// It cannot be read.
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
    /// It is too long.
    #[error("line {line}: longer than {TEXT_SIZE_MAX} bytes, which no row is")]
    Long {
        /// Which, counted from 1.
        line: u64,
    },
    /// It is something else.
    #[error("line {line}: {what}")]
    Content {
        /// Which, counted from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, default)]
    key: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    key_hex: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    value: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    value_hex: Option<Cow<'a, str>>,
    #[serde(default)]
    expire_at_unix_ms: Option<u64>,
    #[serde(borrow, default)]
    op: Option<Cow<'a, str>>,
}

pub(super) struct Reader<R> {
    input: R,
    line: u64,
    text: Vec<u8>,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl<R: BufRead> Reader<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, line: 0, text: Vec::new(), key: Vec::new(), value: Vec::new() }
    }

    /// Reads a line that is not empty; says whether there is one.
    fn read_line(&mut self) -> Result<bool, JsonError> {
        loop {
            self.text.clear();
            self.line += 1;
            let limit = TEXT_SIZE_MAX as u64 + 1;
            if (&mut self.input).take(limit).read_until(b'\n', &mut self.text)? == 0 {
                return Ok(false);
            }
            if self.text.len() > TEXT_SIZE_MAX {
                return Err(JsonError::Long { line: self.line });
            }
            if !self.text.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }

    /// Fills key and value; returns the expiry.
    fn parse(&mut self) -> Result<u64, String> {
        let line: Line<'_> = serde_json::from_slice(&self.text).map_err(|error| {
            // The error counts lines within ours, and every text has just one.
            format!("column {}: {}", error.column(), first_words(&error.to_string()))
        })?;
        if line.op.as_ref().is_some_and(|op| op != "set") {
            return Err("tells of a change that is no set: lines of `tail` are changes, not rows".to_owned());
        }
        fill(&mut self.key, "key", line.key, line.key_hex)?;
        fill(&mut self.value, "value", line.value, line.value_hex)?;
        match line.expire_at_unix_ms {
            Some(0) => Err("expire_at_unix_ms is 0; leave it out where a row never expires".to_owned()),
            expire_at_ms => Ok(expire_at_ms.unwrap_or(0)),
        }
    }
}

/// serde's message without its place in the text.
fn first_words(message: &str) -> &str {
    message.rsplit_once(" at line ").map_or(message, |(words, _)| words)
}

fn fill(
    target: &mut Vec<u8>,
    name: &str,
    text: Option<Cow<'_, str>>,
    hex: Option<Cow<'_, str>>,
) -> Result<(), String> {
    match (text, hex) {
        (Some(text), None) => {
            target.clear();
            target.extend_from_slice(text.as_bytes());
            Ok(())
        }
        (None, Some(hex)) => unhex(hex.as_bytes(), target).map_err(|found| format!("{name}_hex has {found}")),
        (None, None) => Err(format!("has no {name} and no {name}_hex")),
        (Some(_), Some(_)) => Err(format!("has {name} and {name}_hex")),
    }
}

impl<R: BufRead> Source for Reader<R> {
    fn next(&mut self) -> Result<Option<Item<'_>>, RowError> {
        if !self.read_line()? {
            return Ok(None);
        }
        let line = self.line;
        let expire_at_ms = self.parse().map_err(|what| JsonError::Content { line, what })?;
        Ok(Some(Item::Row(Row { key: &self.key, value: &self.value, expire_at_ms })))
    }
}

#[derive(Serialize)]
struct NewLine<'a> {
    #[serde(flatten)]
    texts: KeyValueText<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expire_at_unix_ms: Option<u64>,
}

pub(super) struct Writer<W> {
    output: W,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(output: W) -> Self {
        Self { output }
    }
}

impl<W: Write> Target for Writer<W> {
    fn push(&mut self, row: Row<'_>) -> io::Result<()> {
        let texts = KeyValueText::new(row.key, Some(row.value));
        let expire_at_unix_ms = (row.expire_at_ms != 0).then_some(row.expire_at_ms);
        let line = NewLine { texts, expire_at_unix_ms };
        serde_json::to_writer(&mut self.output, &line)?;
        self.output.write_all(b"\n")
    }

    fn finish(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}
