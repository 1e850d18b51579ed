//! Writes a dump that every Redis since 5.0 loads: version 9, strings in database 0.

use std::io::{self, Write};

use super::super::{Row, Target};
use super::{OPCODE_END, OPCODE_EXPIRE_MS, OPCODE_SELECT_DB, TYPE_STRING};
use crate::rdb::{crc64, push_length};

const HEADER: &[u8] = b"REDIS0009";

pub(in super::super) struct Writer<W> {
    output: W,
    crc: u64,
    /// A row, before it is written.
    bytes: Vec<u8>,
}

impl<W: Write> Writer<W> {
    pub(in super::super) fn new(output: W) -> io::Result<Self> {
        let bytes = [HEADER, &[OPCODE_SELECT_DB, 0]].concat();
        let mut writer = Self { output, crc: 0, bytes };
        writer.write()?;
        Ok(writer)
    }

    fn write(&mut self) -> io::Result<()> {
        self.crc = crc64(self.crc, &self.bytes);
        self.output.write_all(&self.bytes)?;
        self.bytes.clear();
        Ok(())
    }

    fn push_string(&mut self, text: &[u8]) {
        push_length(&mut self.bytes, text.len());
        self.bytes.extend_from_slice(text);
    }
}

impl<W: Write> Target for Writer<W> {
    fn push(&mut self, row: Row<'_>) -> io::Result<()> {
        if row.expire_at_ms != 0 {
            self.bytes.push(OPCODE_EXPIRE_MS);
            self.bytes.extend(row.expire_at_ms.to_le_bytes());
        }
        self.bytes.push(TYPE_STRING);
        self.push_string(row.key);
        self.push_string(row.value);
        self.write()
    }

    fn finish(&mut self) -> io::Result<()> {
        self.bytes.push(OPCODE_END);
        self.write()?;
        self.output.write_all(&self.crc.to_le_bytes())?;
        self.output.flush()
    }
}
