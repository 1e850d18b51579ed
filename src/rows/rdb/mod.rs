//! Rows as a dump of Redis (RDB), versions 1 to 12: strings are rows, any other type is passed over and named.
//!
//! | part    | bytes                                                                                  |
//! |---------|----------------------------------------------------------------------------------------|
//! | header  | `REDIS` and four digits, the version                                                   |
//! | parts   | one byte of kind, then what belongs to it: an expiry, a database's number, or a value  |
//! | value   | kind 0 = string, others = other types; key; value                                      |
//! | end     | 0xFF; from version 5 on CRC-64 of all before, little-endian, 0 = none was computed     |
//!
//! Lengths, strings and packed strings are in [`input`]. The checksum stands at the end: who must not take anything
//! of a damaged dump reads it twice.

mod input;
mod skip;
mod write;

use std::borrow::Cow;
use std::io::{self, Read};

use super::{Item, Row, RowError, Source, VALUE_SIZE_MAX};
use crate::slot::layout::KEY_SIZE_MAX;
use input::Input;

pub(super) use write::Writer;

const VERSION_MAX: u32 = 12;
/// The first version whose end is a checksum.
const VERSION_CHECKSUM: u32 = 5;

const MAGIC: &[u8; 5] = b"REDIS";
const TYPE_STRING: u8 = 0;
const OPCODE_SLOT_INFO: u8 = 244;
const OPCODE_FUNCTION: u8 = 245;
const OPCODE_MODULE_AUX: u8 = 247;
const OPCODE_IDLE: u8 = 248;
const OPCODE_FREQ: u8 = 249;
const OPCODE_AUX: u8 = 250;
const OPCODE_RESIZE_DB: u8 = 251;
const OPCODE_EXPIRE_MS: u8 = 252;
const OPCODE_EXPIRE_S: u8 = 253;
const OPCODE_SELECT_DB: u8 = 254;
const OPCODE_END: u8 = 255;

/// Bytes that are no dump, or one that is damaged.
#[derive(Debug, thiserror::Error)]
pub enum RdbError {
    /// It cannot be read.
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
    /// It begins as no dump does.
    #[error("begins with \"{}\", wanted \"REDIS\" and a version: it is no dump", .found.escape_ascii())]
    Magic {
        /// Its first bytes.
        found: Vec<u8>,
    },
    /// Another version.
    #[error("dump of version {found}, wanted 1 to {VERSION_MAX}")]
    Version {
        /// Which.
        found: u32,
    },
    /// It ends too early.
    #[error("ends at byte {offset}, before its end mark: it is cut off")]
    Cut {
        /// Its size.
        offset: u64,
    },
    /// It makes no sense.
    #[error("damaged at byte {offset}: {what}")]
    Damaged {
        /// Where.
        offset: u64,
        /// What is there.
        what: Cow<'static, str>,
    },
    /// Something whose length nobody can tell.
    #[error("byte {offset}: holds {what}, which cannot be passed over")]
    Unknown {
        /// Where.
        offset: u64,
        /// What is there.
        what: Cow<'static, str>,
    },
    /// Its bytes are not those that were written.
    #[error("its checksum is {found:016x}, wanted {wanted:016x}: it is damaged")]
    Checksum {
        /// That of its bytes.
        found: u64,
        /// The one at its end.
        wanted: u64,
    },
}

/// Reads a dump to its end; says how many items it holds.
pub fn check(input: impl Read) -> Result<u64, RowError> {
    let mut reader = Reader::new(input, 0)?;
    let mut count = 0;
    while reader.next()?.is_some() {
        count += 1;
    }
    Ok(count)
}

pub(super) struct Reader<R> {
    input: Input<R>,
    version: u32,
    /// The one whose rows are wanted.
    wanted: u64,
    /// The one that parts belong to now.
    database: u64,
    expire_at_ms: u64,
    key: Vec<u8>,
    value: Vec<u8>,
    has_ended: bool,
}

/// What a part of a dump was.
enum Part {
    /// Nothing to tell.
    Passed,
    Row,
    Refused(Cow<'static, str>),
    End,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(input: R, database: u64) -> Result<Self, RdbError> {
        let mut input = Input::new(input);
        let mut header = [0; 9];
        header.copy_from_slice(input.take(9)?);
        let digits = header.strip_prefix(MAGIC).and_then(|digits| std::str::from_utf8(digits).ok());
        let version = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let Some(version) = version.and_then(|digits| digits.parse().ok()) else {
            return Err(RdbError::Magic { found: header.to_vec() });
        };
        if !(1..=VERSION_MAX).contains(&version) {
            return Err(RdbError::Version { found: version });
        }
        Ok(Self {
            input,
            version,
            wanted: database,
            database: 0,
            expire_at_ms: 0,
            key: Vec::new(),
            value: Vec::new(),
            has_ended: false,
        })
    }

    fn part(&mut self) -> Result<Part, RdbError> {
        let offset = self.input.offset();
        match self.input.byte()? {
            OPCODE_END => {
                self.end()?;
                return Ok(Part::End);
            }
            OPCODE_SELECT_DB => self.database = self.input.length()?,
            OPCODE_RESIZE_DB => {
                self.input.length()?;
                self.input.length()?;
            }
            OPCODE_SLOT_INFO => {
                for _ in 0..3 {
                    self.input.length()?;
                }
            }
            OPCODE_AUX => {
                self.input.skip_string()?;
                self.input.skip_string()?;
            }
            OPCODE_EXPIRE_MS => self.expire_at_ms = past_or(i64::from_le_bytes(self.input.array()?)),
            OPCODE_EXPIRE_S => {
                self.expire_at_ms = past_or(i64::from(i32::from_le_bytes(self.input.array()?)) * 1000);
            }
            OPCODE_IDLE => drop(self.input.length()?),
            OPCODE_FREQ => drop(self.input.byte()?),
            OPCODE_FUNCTION => {
                self.input.skip_string()?;
                self.key.clear();
                return Ok(Part::Refused("function library".into()));
            }
            OPCODE_MODULE_AUX => {
                skip::module(&mut self.input)?;
                self.key.clear();
                return Ok(Part::Refused("data of a module".into()));
            }
            TYPE_STRING => return self.row(),
            kind => {
                let Some(name) = skip::name(kind) else {
                    let what = format!("a value of kind {kind}").into();
                    return Err(RdbError::Unknown { offset, what });
                };
                self.input.string(&mut self.key, usize::from(KEY_SIZE_MAX))?;
                skip::value(&mut self.input, kind)?;
                self.expire_at_ms = 0;
                return Ok(Part::Refused(name.into()));
            }
        }
        Ok(Part::Passed)
    }

    fn row(&mut self) -> Result<Part, RdbError> {
        let key_size = self.input.string(&mut self.key, usize::from(KEY_SIZE_MAX))?;
        let value_size = self.input.string(&mut self.value, VALUE_SIZE_MAX)?;
        let refused = if self.database != self.wanted {
            Some(format!("of database {}", self.database).into())
        } else if key_size == 0 {
            Some("empty key".into())
        } else if key_size != self.key.len() as u64 {
            Some("key larger than any store's".into())
        } else if value_size != self.value.len() as u64 {
            Some("value larger than any store's".into())
        } else {
            None
        };
        match refused {
            Some(what) => {
                self.expire_at_ms = 0;
                Ok(Part::Refused(what))
            }
            None => Ok(Part::Row),
        }
    }

    fn end(&mut self) -> Result<(), RdbError> {
        self.has_ended = true;
        if self.version >= VERSION_CHECKSUM {
            let found = self.input.checksum();
            let wanted = u64::from_le_bytes(self.input.array()?);
            if wanted != 0 && found != wanted {
                return Err(RdbError::Checksum { found, wanted });
            }
        }
        if !self.input.is_at_end()? {
            let (offset, what) = (self.input.offset(), "something follows its end mark".into());
            return Err(RdbError::Damaged { offset, what });
        }
        Ok(())
    }
}

/// A time that is long past is past, whatever it is; 0 would be never.
fn past_or(unix_ms: i64) -> u64 {
    u64::try_from(unix_ms).unwrap_or(0).max(1)
}

impl<R: Read> Source for Reader<R> {
    fn next(&mut self) -> Result<Option<Item<'_>>, RowError> {
        if self.has_ended {
            return Ok(None);
        }
        loop {
            match self.part()? {
                Part::Passed => {}
                Part::End => return Ok(None),
                Part::Refused(what) => return Ok(Some(Item::Refused { key: &self.key, what })),
                Part::Row => {
                    let expire_at_ms = std::mem::take(&mut self.expire_at_ms);
                    return Ok(Some(Item::Row(Row { key: &self.key, value: &self.value, expire_at_ms })));
                }
            }
        }
    }
}

/// The checksum that a dump of these bytes ends with.
#[cfg(test)]
pub(super) fn checksum_of(bytes: &[u8]) -> u64 {
    crate::rdb::crc64(0, bytes)
}
