//! A dump's bytes: lengths and strings, with the place of each and the checksum of all that was taken.
//!
//! | first byte   | what follows                                                          |
//! |--------------|-----------------------------------------------------------------------|
//! | `00` + 6 bits| a length                                                              |
//! | `01` + 6 bits| a length of 14 bits: one more byte                                    |
//! | 0x80, 0x81   | a length of 32 or 64 bits, its highest byte first                     |
//! | 0xC0 to 0xC2 | a string that is a number: 8, 16, 32 bits, its lowest byte first      |
//! | 0xC3         | a packed string: its size, its length, then LZF                       |
//!
//! Always true: nothing larger than the buffer is held, whatever a length says.

use std::io::Read;

use super::super::VALUE_SIZE_MAX;
use super::RdbError;
use crate::rdb::{crc64, lzf};

const BUFFER_SIZE: usize = 256 << 10;
/// What LZF makes of incompressible bytes is no larger; so a string that can be kept fits the buffer.
const PACKED_SIZE_MAX: usize = VALUE_SIZE_MAX + VALUE_SIZE_MAX / 16 + 64;
const _: () = assert!(PACKED_SIZE_MAX <= BUFFER_SIZE);
/// No byte of LZF makes more than so many: three make 264.
const LZF_RATIO_MAX: u64 = 88;

pub(super) struct Input<R> {
    source: R,
    buffer: Vec<u8>,
    /// `buffer[start..end]` is to come.
    start: usize,
    end: usize,
    /// Bytes taken.
    offset: u64,
    /// Of these.
    crc: u64,
}

/// How a string begins.
#[derive(Debug, Clone, Copy)]
enum Form {
    Length(u64),
    Integer(u8),
    Packed,
}

impl<R: Read> Input<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, buffer: vec![0; BUFFER_SIZE], start: 0, end: 0, offset: 0, crc: 0 }
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn checksum(&self) -> u64 {
        self.crc
    }

    pub(super) fn is_at_end(&mut self) -> Result<bool, RdbError> {
        if self.start == self.end {
            self.read_more()?;
        }
        Ok(self.start == self.end)
    }

    /// Reads something, unless the source has ended; there must be room.
    fn read_more(&mut self) -> Result<(), RdbError> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        loop {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(read) => {
                    self.end += read;
                    return Ok(());
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next bytes, not more than the buffer holds.
    pub(super) fn take(&mut self, len: usize) -> Result<&[u8], RdbError> {
        assert!(len <= BUFFER_SIZE, "{len} bytes at one time");
        while self.end - self.start < len {
            let before = self.end - self.start;
            self.read_more()?;
            if self.end - self.start == before {
                return Err(RdbError::Cut { offset: self.offset + before as u64 });
            }
        }
        let taken = &self.buffer[self.start..self.start + len];
        self.crc = crc64(self.crc, taken);
        self.start += len;
        self.offset += len as u64;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], RdbError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn byte(&mut self) -> Result<u8, RdbError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    pub(super) fn skip(&mut self, mut len: u64) -> Result<(), RdbError> {
        while len > 0 {
            let step = usize::try_from(len).map_or(BUFFER_SIZE, |len| len.min(BUFFER_SIZE));
            self.take(step)?;
            len -= step as u64;
        }
        Ok(())
    }

    pub(super) fn damaged(&self, what: &'static str) -> RdbError {
        RdbError::Damaged { offset: self.offset, what: what.into() }
    }

    fn form(&mut self) -> Result<Form, RdbError> {
        let first = self.byte()?;
        Ok(match (first >> 6, first) {
            (0, _) => Form::Length(first.into()),
            (1, _) => Form::Length(u64::from(first & 63) << 8 | u64::from(self.byte()?)),
            (_, 0x80) => Form::Length(u32::from_be_bytes(self.array()?).into()),
            (_, 0x81) => Form::Length(u64::from_be_bytes(self.array()?)),
            (_, 0xC0..=0xC2) => Form::Integer(first & 3),
            (_, 0xC3) => Form::Packed,
            _ => return Err(self.damaged("no length begins with this byte")),
        })
    }

    pub(super) fn length(&mut self) -> Result<u64, RdbError> {
        match self.form()? {
            Form::Length(len) => Ok(len),
            _ => Err(self.damaged("a string where a length belongs")),
        }
    }

    /// Reads a string and returns its length. All of it is in `target` if that is `kept_max` at most; else some of its
    /// first bytes are, or none.
    pub(super) fn string(&mut self, target: &mut Vec<u8>, kept_max: usize) -> Result<u64, RdbError> {
        assert!(kept_max <= VALUE_SIZE_MAX, "{kept_max} bytes do not fit the buffer");
        target.clear();
        match self.form()? {
            Form::Length(len) => {
                let kept = usize::try_from(len).map_or(kept_max, |len| len.min(kept_max));
                target.extend_from_slice(self.take(kept)?);
                self.skip(len - kept as u64)?;
                // A name is all that this is good for.
                if len > kept as u64 {
                    target.truncate(64);
                }
                Ok(len)
            }
            Form::Integer(size) => {
                let number = match size {
                    0 => i8::from_le_bytes(self.array()?).into(),
                    1 => i16::from_le_bytes(self.array()?).into(),
                    _ => i32::from_le_bytes(self.array()?),
                };
                target.extend_from_slice(number.to_string().as_bytes());
                Ok(target.len() as u64)
            }
            Form::Packed => {
                let (packed_len, len) = self.packed()?;
                let fits = usize::try_from(len).ok().filter(|len| *len <= kept_max);
                let Some(kept) = fits else {
                    self.skip(packed_len)?;
                    return Ok(len);
                };
                let size = usize::try_from(packed_len).ok().filter(|size| *size <= PACKED_SIZE_MAX);
                let size =
                    size.ok_or_else(|| self.damaged("a packed string that is larger than unpacked"))?;
                let unpacked = lzf::unpack(self.take(size)?, kept, target);
                unpacked.ok_or_else(|| self.damaged("a packed string that cannot be unpacked"))?;
                Ok(len)
            }
        }
    }

    /// Size and length of a packed string.
    fn packed(&mut self) -> Result<(u64, u64), RdbError> {
        let (size, len) = (self.length()?, self.length()?);
        if len > size.saturating_mul(LZF_RATIO_MAX) {
            return Err(self.damaged("a packed string that claims to be longer than it can be"));
        }
        Ok((size, len))
    }

    pub(super) fn skip_string(&mut self) -> Result<(), RdbError> {
        match self.form()? {
            Form::Length(len) => self.skip(len),
            Form::Integer(size) => self.skip(1 << size),
            Form::Packed => {
                let (size, _) = self.packed()?;
                self.skip(size)
            }
        }
    }
}
