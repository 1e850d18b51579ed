//! Rows as CSV. The first record names the columns, in any order; `key_hex` and `value_hex` hold what is no text, and
//! are empty otherwise.

use std::io::{self, Read, Write};

use csv::ByteRecord;

use super::{BUFFER_SIZE, Item, Row, RowError, Source, TEXT_SIZE_MAX, Target, unhex};
use crate::slot::text::lossless;

const COLUMNS: [&str; 5] = ["key", "value", "expire_at_unix_ms", "key_hex", "value_hex"];

/// A file that is no CSV of rows.
#[derive(Debug, thiserror::Error)]
pub enum CsvError {
    /// It cannot be read, or a record has more or fewer fields than there are columns.
    #[error("{0}")]
    Csv(#[from] csv::Error),
    /// A column that means nothing here.
    #[error("column {found:?} in the first line; wanted {}", COLUMNS.join(", "))]
    Column {
        /// Its name.
        found: String,
    },
    /// A column that must be there is not, or is there twice.
    #[error("the first line must name a column {wanted:?} once")]
    Missing {
        /// Which.
        wanted: &'static str,
    },
    /// A record that is no row.
    #[error("line {line}: {what}")]
    Content {
        /// The line that it begins on, counted from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
}

/// Lets a record take only so many bytes: one quote that is never closed makes a record of the rest of a file.
struct Bounded<R> {
    input: R,
    left: usize,
}

impl<R> Bounded<R> {
    /// A record ends: the next one may take as much. The CSV reader reads ahead by its buffer.
    fn renew(&mut self) {
        self.left = TEXT_SIZE_MAX + BUFFER_SIZE;
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::other(format!(
                "a record of more than {TEXT_SIZE_MAX} bytes; is a quote never closed?"
            )));
        }
        let len = target.len().min(self.left);
        let read = self.input.read(&mut target[..len])?;
        self.left -= read;
        Ok(read)
    }
}

/// Positions of the columns that are there, in the order of [`COLUMNS`].
type Columns = [Option<usize>; COLUMNS.len()];

pub(super) struct Reader<R> {
    input: csv::Reader<Bounded<R>>,
    columns: Columns,
    record: ByteRecord,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(input: R) -> Result<Self, CsvError> {
        let mut bounded = Bounded { input, left: 0 };
        bounded.renew();
        let mut input = csv::ReaderBuilder::new().buffer_capacity(BUFFER_SIZE).from_reader(bounded);
        let columns = columns(input.byte_headers()?)?;
        let record = ByteRecord::new();
        Ok(Self { input, columns, record, key: Vec::new(), value: Vec::new() })
    }

    /// Fills key and value; returns the expiry.
    fn parse(&mut self) -> Result<u64, String> {
        let field = |column: usize| self.columns[column].and_then(|at| self.record.get(at)).unwrap_or(b"");
        let fill = |target: &mut Vec<u8>, name: &str, text: &[u8], hex: &[u8]| {
            if hex.is_empty() {
                target.clear();
                target.extend_from_slice(text);
                return Ok(());
            }
            if !text.is_empty() {
                return Err(format!("has {name} and {name}_hex"));
            }
            unhex(hex, target).map_err(|found| format!("{name}_hex has {found}"))
        };
        fill(&mut self.key, "key", field(0), field(3))?;
        fill(&mut self.value, "value", field(1), field(4))?;
        match field(2) {
            b"" => Ok(0),
            text => {
                let time = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
                let shown = String::from_utf8_lossy(&text[..text.len().min(64)]).into_owned();
                let wanted = || format!("expire_at_unix_ms is {shown:?}, wanted Unix milliseconds");
                time.filter(|ms| *ms > 0).ok_or_else(wanted)
            }
        }
    }
}

fn columns(names: &ByteRecord) -> Result<Columns, CsvError> {
    let mut columns = [None; COLUMNS.len()];
    for (at, name) in names.iter().enumerate() {
        // Spreadsheets begin a file with a byte order mark.
        let name = if at == 0 { name.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(name) } else { name };
        let Some(column) = COLUMNS.iter().position(|known| known.as_bytes() == name) else {
            let found = String::from_utf8_lossy(&name[..name.len().min(64)]).into_owned();
            return Err(CsvError::Column { found });
        };
        if columns[column].replace(at).is_some() {
            return Err(CsvError::Missing { wanted: COLUMNS[column] });
        }
    }
    for (wanted, either) in [(0, 3), (1, 4)] {
        if columns[wanted].or(columns[either]).is_none() {
            return Err(CsvError::Missing { wanted: COLUMNS[wanted] });
        }
    }
    Ok(columns)
}

impl<R: Read> Source for Reader<R> {
    fn next(&mut self) -> Result<Option<Item<'_>>, RowError> {
        self.input.get_mut().renew();
        if !self.input.read_byte_record(&mut self.record).map_err(CsvError::from)? {
            return Ok(None);
        }
        let line = self.record.position().map_or(0, csv::Position::line);
        let expire_at_ms = self.parse().map_err(|what| CsvError::Content { line, what })?;
        Ok(Some(Item::Row(Row { key: &self.key, value: &self.value, expire_at_ms })))
    }
}

pub(super) struct Writer<W: Write> {
    output: csv::Writer<W>,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(output: W) -> io::Result<Self> {
        let mut output = csv::Writer::from_writer(output);
        output.write_record(COLUMNS)?;
        Ok(Self { output })
    }
}

impl<W: Write> Target for Writer<W> {
    fn push(&mut self, row: Row<'_>) -> io::Result<()> {
        let ((key, key_hex), (value, value_hex)) = (lossless(row.key), lossless(row.value));
        let expire_at = if row.expire_at_ms == 0 { String::new() } else { row.expire_at_ms.to_string() };
        let (key_hex, value_hex) = (key_hex.unwrap_or_default(), value_hex.unwrap_or_default());
        let fields = [key.unwrap_or(""), value.unwrap_or(""), &expire_at, &key_hex, &value_hex];
        Ok(self.output.write_record(fields)?)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}
