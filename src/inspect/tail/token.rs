//! The secret between an exported feed and its readers: from a file or the environment, never from the command
//! line, which every process of the machine can read.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where it is if no file is named.
pub const VARIABLE: &str = "SLOTSTREAM_TAIL_TOKEN";
/// Longest token.
pub const TOKEN_BYTES_MAX: usize = 1024;

/// A token that can stand in a line.
#[derive(Clone)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("{path}: cannot read the token: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It cannot stand in a line.
    #[error("{place} holds no token, wanted 1 to {TOKEN_BYTES_MAX} visible ASCII characters in one line")]
    Form {
        /// The file or the variable; never what is in it.
        place: String,
    },
    /// Whoever reaches the address would read everything.
    #[error(
        "--listen {address} can be reached from other machines: wanted a token (--token-file or {VARIABLE})"
    )]
    Missing {
        /// Where it was to listen.
        address: SocketAddr,
    },
}

impl Token {
    /// Reads it from the file, or else from the environment, if it is there.
    pub fn read(file: Option<&Path>) -> Result<Option<Self>, TokenError> {
        let Some(path) = file else {
            let Some(text) = std::env::var_os(VARIABLE) else { return Ok(None) };
            let text = text.into_string().unwrap_or_default();
            return Self::new(&text, || VARIABLE.to_owned()).map(Some);
        };
        let mut text = String::new();
        let read = File::open(path)
            .and_then(|file| file.take(TOKEN_BYTES_MAX as u64 + 16).read_to_string(&mut text))
            .map_err(|error| TokenError::File { path: path.into(), error });
        read.and_then(|_| Self::new(&text, || path.display().to_string())).map(Some)
    }

    fn new(text: &str, place: impl FnOnce() -> String) -> Result<Self, TokenError> {
        let text = text.trim_ascii();
        let is_good =
            (1..=TOKEN_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        if is_good { Ok(Self(text.to_owned())) } else { Err(TokenError::Form { place: place() }) }
    }

    /// Refuses an address that others reach, without a token.
    pub fn check(token: Option<&Self>, address: SocketAddr) -> Result<(), TokenError> {
        if token.is_some() || address.ip().is_loopback() {
            Ok(())
        } else {
            Err(TokenError::Missing { address })
        }
    }

    /// The line that shows it.
    pub(super) fn line(&self) -> String {
        format!("AUTH {}\n", self.0)
    }

    /// Compares in a time that does not tell how much of it was right.
    pub(super) fn is(&self, given: &[u8]) -> bool {
        let own = self.0.as_bytes();
        let differs = own.iter().zip(given).fold(0, |differs, (a, b)| differs | (a ^ b));
        own.len() == given.len() && std::hint::black_box(differs) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_visible_word_and_only_itself() {
        let token = Token::new("s3cret\n", String::new).expect("a token");
        assert!(token.is(b"s3cret"));
        for other in ["", "s3cre", "s3cret ", "s3creT", "s3cret2"] {
            assert!(!token.is(other.as_bytes()), "{other:?}");
        }
        assert!(!format!("{token:?}").contains("s3cret"));
        for wrong in ["", " \n", "two words", "two\nlines", "umläut", &"x".repeat(TOKEN_BYTES_MAX + 1)] {
            let error = Token::new(wrong, || "F".to_owned()).expect_err(wrong).to_string();
            assert!(error.starts_with("F holds no token") && !error.contains("two"), "{error}");
        }
    }

    #[test]
    fn other_machines_need_a_token() {
        let (near, far) = (SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([0, 0, 0, 0], 1)));
        assert!(Token::check(None, near).is_ok() && Token::check(None, far).is_err());
        assert!(Token::check(Token::new("t", String::new).ok().as_ref(), far).is_ok());
    }
}
