//! Why a command was not done, in Redis's words.

use std::borrow::Cow;

use crate::store::{ReadError, WriteError};

/// An error reply.
#[derive(Debug)]
pub(super) enum CommandError {
    /// The options make no sense together.
    Syntax,
    /// An argument should have been an integer.
    NotInteger,
    /// Wrong number of arguments for this command (a subcommand is `parent|child`).
    Arity(Cow<'static, str>),
    /// An expiry time that no record can carry, for this command.
    ExpireTime(&'static str),
    /// A subcommand nobody knows: what was found, and its parent.
    Subcommand(Vec<u8>, &'static str),
    /// The store refused the change.
    Write(WriteError),
    /// Any other, with its code.
    Text(Cow<'static, str>),
    /// Any other that repeats what the client sent, byte for byte.
    Bytes(Vec<u8>),
}

impl CommandError {
    /// An error with a fixed text, its code first.
    pub(super) const fn text(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }

    /// An error that repeats bytes of the client's between two texts.
    pub(super) fn repeating(before: &str, found: &[u8], after: &str) -> Self {
        Self::Bytes([before.as_bytes(), found, after.as_bytes()].concat())
    }

    /// The reply's text, its code first.
    pub(super) fn message(self) -> Cow<'static, [u8]> {
        let text: Cow<'static, str> = match self {
            Self::Syntax => "ERR syntax error".into(),
            Self::NotInteger => "ERR value is not an integer or out of range".into(),
            Self::Arity(name) => format!("ERR wrong number of arguments for '{name}' command").into(),
            Self::ExpireTime(name) => format!("ERR invalid expire time in '{name}' command").into(),
            Self::Subcommand(found, parent) => {
                let after = format!("'. Try {parent} HELP.");
                return Self::repeating("ERR unknown subcommand '", &found, &after).message();
            }
            Self::Write(error) => write_message(&error),
            Self::Text(text) => text,
            Self::Bytes(bytes) => return bytes.into(),
        };
        match text {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        }
    }
}

/// What a write to a follower is answered.
const READ_ONLY: &str = "READONLY You can't write against a read only replica.";

/// The same, of a leader that was replaced: clients know what it begins with, and people want to know why.
pub(super) fn read_only(replaced_by: Option<u64>) -> CommandError {
    CommandError::Text(match replaced_by {
        None => READ_ONLY.into(),
        Some(epoch) => {
            format!("{READ_ONLY} This leader was replaced: another one leads in epoch {epoch}.").into()
        }
    })
}

/// What a write is answered before a leader has back what a crash took.
pub(super) const REGAINING: &str =
    "LOADING this leader gets back from its followers what a crash took, and takes writes then";

fn write_message(error: &WriteError) -> Cow<'static, str> {
    match error {
        WriteError::KeySize { found: 0, .. } => {
            "ERR key is 0 bytes, this store holds keys of at least 1".into()
        }
        WriteError::KeySize { found, wanted } => {
            format!("ERR key is {found} bytes, this store holds keys of at most {wanted}").into()
        }
        WriteError::ValueSize { found, wanted } => {
            format!("ERR value is {found} bytes, this store holds values of at most {wanted}").into()
        }
        WriteError::Full { .. } | WriteError::TransactionSize { .. } => format!("OOM {error}").into(),
        WriteError::NotDurable { .. } => format!("MISCONF {error}").into(),
        WriteError::LogFull { .. } => format!("MISCONF {error}").into(),
        WriteError::LogFailed => format!("MISCONF {error}").into(),
        WriteError::Held => format!("ERR {error}").into(),
        WriteError::ReadOnly => READ_ONLY.into(),
        WriteError::Regaining => REGAINING.into(),
        WriteError::Read(error) => read_message(error),
    }
}

fn read_message(error: &ReadError) -> Cow<'static, str> {
    format!("ERR {error}").into()
}

impl From<ReadError> for CommandError {
    fn from(error: ReadError) -> Self {
        Self::Text(read_message(&error))
    }
}

impl From<WriteError> for CommandError {
    fn from(error: WriteError) -> Self {
        Self::Write(error)
    }
}
