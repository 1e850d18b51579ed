//! A shard's file in a backup: blocks, one behind the other, each packed with zstd on its own. Little-endian.
//!
//! | offset | size | field       | meaning                                             |
//! |-------:|-----:|-------------|-----------------------------------------------------|
//! |      0 |    4 | magic       | "SSB1"                                              |
//! |      4 |    4 | packed_size | bytes of the packed records, which follow           |
//! |      8 |    4 | raw_size    | bytes of the records, at most [`RAW_SIZE_MAX`]      |
//! |     12 |    4 | records     | how many there are                                  |
//! |     16 |    4 | crc         | CRC-32 of bytes 0 to 16 and the packed records      |
//!
//! Records are those of [`crate::slot::image`]. How many bytes and records a file holds, and the CRC-32 of all of it, stands
//! in the manifest, so that a block that is missing, or there twice, is found too. Always true: nothing is
//! unpacked before its checksum was right, and never more than a block.

use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::wire::frame::PAYLOAD_SIZE_MAX;

use super::storage::{Part, Source};
use super::{FileError, file_error};

/// Most bytes of records in a block.
pub const RAW_SIZE_MAX: usize = 1 << 20;
const _: () = assert!(RAW_SIZE_MAX >= PAYLOAD_SIZE_MAX, "a batch fits into an empty block");

const HEADER_SIZE: usize = 20;
const OFFSET_CRC: usize = 16;
const MAGIC: [u8; 4] = *b"SSB1";
/// Fast, and half of what records of text take: the disk and the leader are slower.
const LEVEL: i32 = 1;

/// What a finished file holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Records, also those of slots that a later record replaces.
    pub records: u64,
    /// Bytes of the records before they were packed.
    pub raw_bytes: u64,
    /// Size of the file.
    pub file_bytes: u64,
    /// CRC-32 of all of the file.
    pub file_crc32: u32,
}

/// Writes a file of blocks.
pub struct BlockWriter {
    path: PathBuf,
    target: Box<dyn Part>,
    packer: zstd::bulk::Compressor<'static>,
    raw: Vec<u8>,
    packed: Vec<u8>,
    block_records: u32,
    contents: Contents,
    crc: crc32fast::Hasher,
}

impl BlockWriter {
    /// Writes to `target`, which people call `path`.
    pub(super) fn new(path: PathBuf, target: Box<dyn Part>) -> Result<Self, FileError> {
        let packer = zstd::bulk::Compressor::new(LEVEL).map_err(file_error(&path, "pack records"))?;
        Ok(Self {
            path,
            target,
            packer,
            raw: Vec::with_capacity(RAW_SIZE_MAX),
            packed: Vec::with_capacity(HEADER_SIZE + zstd::zstd_safe::compress_bound(RAW_SIZE_MAX)),
            block_records: 0,
            contents: Contents::default(),
            crc: crc32fast::Hasher::new(),
        })
    }

    /// Appends a run of whole records.
    pub fn add(&mut self, batch: &[u8], records: u32) -> Result<(), FileError> {
        assert!(batch.len() <= RAW_SIZE_MAX, "a batch of {} bytes", batch.len());
        if self.raw.len() + batch.len() > RAW_SIZE_MAX {
            self.flush()?;
        }
        self.raw.extend_from_slice(batch);
        self.block_records += records;
        Ok(())
    }

    /// Waits, not longer than `timeout`, until what a peer sends at a time can be added without a wait.
    pub(super) fn wait_for_room(&mut self, timeout: Duration) -> Result<bool, FileError> {
        self.target.wait_for_room(timeout).map_err(file_error(&self.path, "write to it"))
    }

    /// Makes the file durable.
    pub fn finish(mut self) -> Result<Contents, FileError> {
        self.flush()?;
        self.target.finish().map_err(file_error(&self.path, "make it durable"))?;
        self.contents.file_crc32 = self.crc.finalize();
        Ok(self.contents)
    }

    fn flush(&mut self) -> Result<(), FileError> {
        if self.raw.is_empty() {
            return Ok(());
        }
        self.packed.clear();
        self.packed.resize(HEADER_SIZE + zstd::zstd_safe::compress_bound(self.raw.len()), 0);
        let (header, target) = self.packed.split_at_mut(HEADER_SIZE);
        let packed = self.packer.compress_to_buffer(&self.raw, target);
        let packed = packed.map_err(file_error(&self.path, "pack records"))?;
        header[..4].copy_from_slice(&MAGIC);
        header[4..8].copy_from_slice(&size(packed).to_le_bytes());
        header[8..12].copy_from_slice(&size(self.raw.len()).to_le_bytes());
        header[12..OFFSET_CRC].copy_from_slice(&self.block_records.to_le_bytes());
        self.packed.truncate(HEADER_SIZE + packed);
        let crc = block_crc(&self.packed);
        self.packed[OFFSET_CRC..HEADER_SIZE].copy_from_slice(&crc.to_le_bytes());
        self.target.write_all(&self.packed).map_err(file_error(&self.path, "write to it"))?;
        self.crc.update(&self.packed);
        self.contents.records += u64::from(self.block_records);
        self.contents.raw_bytes += self.raw.len() as u64;
        self.contents.file_bytes += self.packed.len() as u64;
        self.raw.clear();
        self.block_records = 0;
        Ok(())
    }
}

impl std::fmt::Debug for BlockWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockWriter").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Sizes here are at most that of a packed block.
fn size(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or_else(|_| unreachable!("a block of {bytes} bytes"))
}

fn block_crc(block: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&block[..OFFSET_CRC]);
    crc.update(&block[HEADER_SIZE..]);
    crc.finalize()
}

/// Why a file is not the one that the manifest names.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is cut off, or something was added.
    #[error("{path}: {found} bytes, wanted {wanted}: the file is damaged")]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// What the manifest says.
        wanted: u64,
    },
    /// A block is not what was written.
    #[error("{path}: the block at byte {offset} is damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the block begins.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// All blocks are good, and are not those that the manifest names.
    #[error("{path}: holds {found:?}, wanted {wanted:?}: it is another file, or the manifest's is damaged")]
    Contents {
        /// The file.
        path: PathBuf,
        /// What is there.
        found: Contents,
        /// What the manifest says.
        wanted: Contents,
    },
}

/// Reads a file of blocks.
pub struct BlockReader {
    path: PathBuf,
    source: Box<dyn io::Read + Send>,
    unpacker: zstd::bulk::Decompressor<'static>,
    wanted: Contents,
    found: Contents,
    crc: crc32fast::Hasher,
    block: Vec<u8>,
    raw: Vec<u8>,
}

impl BlockReader {
    /// Reads what is to hold `wanted`.
    pub(super) fn new(source: Source, wanted: Contents) -> Result<Self, BlockError> {
        let Source { path, size: found, bytes: source } = source;
        if found != wanted.file_bytes {
            return Err(BlockError::Size { path, found, wanted: wanted.file_bytes });
        }
        let unpacker = zstd::bulk::Decompressor::new().map_err(file_error(&path, "unpack records"))?;
        Ok(Self {
            path,
            source,
            unpacker,
            wanted,
            found: Contents::default(),
            crc: crc32fast::Hasher::new(),
            block: Vec::new(),
            raw: Vec::with_capacity(RAW_SIZE_MAX),
        })
    }

    /// The records of the next block; `None` behind the last one, once all of the file was right.
    #[expect(clippy::should_implement_trait, reason = "records borrow from the reader")]
    pub fn next(&mut self) -> Result<Option<&[u8]>, BlockError> {
        let left = self.wanted.file_bytes - self.found.file_bytes;
        if left == 0 {
            self.found.file_crc32 = self.crc.clone().finalize();
            if self.found != self.wanted {
                let (path, found, wanted) = (self.path.clone(), self.found, self.wanted);
                return Err(BlockError::Contents { path, found, wanted });
            }
            return Ok(None);
        }
        if left < HEADER_SIZE as u64 {
            return Err(self.damaged("it is cut off"));
        }
        self.block.resize(HEADER_SIZE, 0);
        self.read(0)?;
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&self.block[at..at + 4]);
            u32::from_le_bytes(word)
        };
        let (packed, raw, records, crc) = (word(4) as usize, word(8) as usize, word(12), word(OFFSET_CRC));
        if self.block[..4] != MAGIC {
            return Err(self.damaged("no block begins there"));
        }
        if raw > RAW_SIZE_MAX
            || packed > zstd::zstd_safe::compress_bound(RAW_SIZE_MAX)
            || (HEADER_SIZE + packed) as u64 > left
        {
            return Err(self.damaged("it states a size that it cannot have"));
        }
        self.block.resize(HEADER_SIZE + packed, 0);
        self.read(HEADER_SIZE)?;
        if block_crc(&self.block) != crc {
            return Err(self.damaged("its checksum is wrong"));
        }
        self.raw.clear();
        let unpacked = self.unpacker.decompress_to_buffer(&self.block[HEADER_SIZE..], &mut self.raw);
        if !unpacked.is_ok_and(|unpacked| unpacked == raw) {
            return Err(self.damaged("it cannot be unpacked"));
        }
        self.crc.update(&self.block);
        self.found.records += u64::from(records);
        self.found.raw_bytes += raw as u64;
        self.found.file_bytes += self.block.len() as u64;
        Ok(Some(&self.raw))
    }

    /// Fills the block from `at` on.
    fn read(&mut self, at: usize) -> Result<(), BlockError> {
        match self.source.read_exact(&mut self.block[at..]) {
            Ok(()) => Ok(()),
            // It was long enough when it was opened.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.damaged("it is cut off")),
            Err(error) => Err(file_error(&self.path, "read it")(error).into()),
        }
    }

    fn damaged(&self, what: &'static str) -> BlockError {
        BlockError::Damaged { path: self.path.clone(), offset: self.found.file_bytes, what }
    }
}

impl std::fmt::Debug for BlockReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockReader").field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::directory::Directory;
    use super::super::storage::Storage as _;
    use super::*;

    fn parts(path: &Path) -> (Directory, &str) {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        (Directory::at(path.parent().expect("a parent")), name)
    }

    fn write(path: &Path, batches: &[&[u8]]) -> Contents {
        let (directory, name) = parts(path);
        let target = directory.create(name).expect("creates");
        let mut writer = BlockWriter::new(path.to_owned(), target).expect("begins");
        batches.iter().for_each(|batch| writer.add(batch, 1).expect("adds"));
        writer.finish().expect("finishes")
    }

    fn read(path: &Path, contents: Contents) -> Result<Vec<u8>, BlockError> {
        let (directory, name) = parts(path);
        let source = directory.open(name)?.expect("it is there");
        let mut reader = BlockReader::new(source, contents)?;
        let mut all = Vec::new();
        while let Some(records) = reader.next()? {
            all.extend_from_slice(records);
        }
        Ok(all)
    }

    #[test]
    fn what_was_written_is_read_also_over_many_blocks() {
        let directory = tempfile::tempdir().expect("temp dir");
        let path = directory.path().join("f");
        let batch: Vec<u8> = (0..200_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let contents = write(&path, &[&batch, b"one", &batch, &batch, b"two"]);
        assert_eq!((contents.records, contents.raw_bytes), (5, 2_400_006));
        let wanted = [&batch, &b"one"[..], &batch, &batch, b"two"].concat();
        assert!(read(&path, contents).expect("reads") == wanted);
        let empty = directory.path().join("empty");
        let contents = write(&empty, &[]);
        assert_eq!(contents, Contents::default());
        assert_eq!(read(&empty, contents).expect("reads"), b"");
    }

    #[test]
    fn every_damaged_byte_every_cut_and_every_swapped_block_is_found() {
        let directory = tempfile::tempdir().expect("temp dir");
        let path = directory.path().join("f");
        let contents = write(&path, &[b"records that are some bytes long", b"more of them"]);
        let good = std::fs::read(&path).expect("reads");
        let check = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("writes");
            read(&path, contents).expect_err("damage is found");
        };
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                check(&bad);
            }
            check(&good[..at]);
        }
        check(&[&good[..], b"x"].concat());
        // A block twice, or another good file of the same size.
        check(&[&good[..], &good[..]].concat());
        let other = directory.path().join("other");
        let other_contents = write(&other, &[b"records that are some bytes LONG", b"more of them"]);
        assert_eq!(other_contents.file_bytes, contents.file_bytes);
        check(&std::fs::read(&other).expect("reads"));
    }
}
