//! Floor 4: rows as other programs have them: JSON lines, CSV, and dumps of Redis (RDB). No node, no store: a row is
//! a key, a value and an expiry, read from bytes or written as bytes.
//!
//! Always true: a reader holds one row at a time and bounded buffers, whatever the input claims; what is no row here
//! (a list of Redis, a value that no store could hold) is told by name and passed over; bytes that are no such
//! file are an error that says where.

mod csv;
mod json;
pub mod rdb;

use std::borrow::Cow;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use clap::ValueEnum;

pub use self::csv::CsvError;
pub use json::JsonError;
pub use rdb::RdbError;

/// Longest value that any store holds.
pub const VALUE_SIZE_MAX: usize = u16::MAX as usize;
/// Longest text of a row: the longest key and value, each byte as `\u00xx`.
const TEXT_SIZE_MAX: usize = 1 << 20;
const BUFFER_SIZE: usize = 256 << 10;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A JSON object per line: key, value, `expire_at_unix_ms`; bytes that are no text in `key_hex` and `value_hex`.
    Json,
    /// Comma-separated, the first line names the columns: key, value, `expire_at_unix_ms`, `key_hex`, `value_hex`.
    Csv,
    /// A dump of Redis: strings, with their expiry.
    Rdb,
}

impl Format {
    /// What a file's name says.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "json" | "jsonl" | "ndjson" => Some(Self::Json),
            "csv" => Some(Self::Csv),
            "rdb" => Some(Self::Rdb),
            _ => None,
        }
    }
}

/// A record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// Unix milliseconds; 0 = never.
    pub expire_at_ms: u64,
}

/// What comes next in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item<'a> {
    /// A row.
    Row(Row<'a>),
    /// Something that is none.
    Refused {
        /// Its key, or the first bytes of it; empty if it has none.
        key: &'a [u8],
        /// What it is.
        what: Cow<'static, str>,
    },
}

/// Why a file cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// A JSON line.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A CSV record.
    #[error(transparent)]
    Csv(#[from] CsvError),
    /// A dump.
    #[error(transparent)]
    Rdb(#[from] RdbError),
}

/// Reads rows.
pub trait Source {
    /// The next item; `None` at the end of a file that was good to its end.
    fn next(&mut self) -> Result<Option<Item<'_>>, RowError>;
}

/// A reader of `format`. Of a dump, rows of database `database` are taken.
pub fn reader<'a>(
    format: Format,
    input: impl Read + 'a,
    database: u64,
) -> Result<Box<dyn Source + 'a>, RowError> {
    Ok(match format {
        Format::Json => Box::new(json::Reader::new(BufReader::with_capacity(BUFFER_SIZE, input))),
        Format::Csv => Box::new(self::csv::Reader::new(input)?),
        Format::Rdb => Box::new(rdb::Reader::new(input, database)?),
    })
}

/// Writes rows.
pub trait Target {
    /// Appends a row.
    fn push(&mut self, row: Row<'_>) -> io::Result<()>;
    /// Writes what ends the file, and flushes it.
    fn finish(&mut self) -> io::Result<()>;
}

/// A writer of `format`.
pub fn writer<'a>(format: Format, output: impl Write + 'a) -> io::Result<Box<dyn Target + 'a>> {
    let output = io::BufWriter::with_capacity(BUFFER_SIZE, output);
    Ok(match format {
        Format::Json => Box::new(json::Writer::new(output)),
        Format::Csv => Box::new(self::csv::Writer::new(output)?),
        Format::Rdb => Box::new(rdb::Writer::new(output)?),
    })
}

/// Bytes from hexadecimal digits.
fn unhex(text: &[u8], target: &mut Vec<u8>) -> Result<(), &'static str> {
    target.clear();
    let (pairs, rest) = text.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("an odd number of hexadecimal digits");
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    for [high, low] in pairs {
        match (digit(*high), digit(*low)) {
            (Some(high), Some(low)) => target.push(high << 4 | low),
            _ => return Err("no hexadecimal digits"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
