//! The first two pages of a shard file. Little-endian.
//!
//! Identity, written once:
//!
//! | offset | size | field             | meaning                                       |
//! |-------:|-----:|-------------------|-----------------------------------------------|
//! |      0 |    8 | magic             | `SLOTSTRM`                                    |
//! |      8 |    4 | format version    | 3; 2 where keys have no hash tags             |
//! |     12 |    2 | shard index       |                                               |
//! |     14 |    2 | shard count       |                                               |
//! |     16 |   16 | store id          | UUID, same in all shards and all followers    |
//! |     32 |    2 | key capacity      | bytes                                         |
//! |     34 |    2 | value capacity    | bytes                                         |
//! |     36 |    2 | shard prefix bits | 0 = the whole key decides its shard, 65535 = its hash tag |
//! |     38 |    2 | zero              |                                               |
//! |     40 |    4 | slot stride       | bytes from slot to slot                       |
//! |     44 |    4 | slots offset      | bytes from the file's start to slot 0         |
//! |     48 |    4 | crc               | CRC-32 of bytes 0 to 48                       |
//!
//! State, two copies at 256 and 3584, written in turn; the valid one with the higher counter counts. Only a new role or
//! lineage changes more than one sector of a copy, and is durable in one before it is written to the other:
//!
//! | offset | size | field           | meaning                                            |
//! |-------:|-----:|-----------------|----------------------------------------------------|
//! |      0 |    4 | crc             | CRC-32 of bytes 4 to the end of the lineage        |
//! |      4 |    4 | slots formatted | slots below this have a status                     |
//! |      8 |    8 | counter         |                                                    |
//! |     16 |    8 | seq reserved    | no seq above this was used; 0 = no window is kept  |
//! |     24 |   16 | boot id         | of the last opener's machine                       |
//! |     40 |    8 | place id        | of where the last opener found the file            |
//! |     48 |    8 | clean seq       | last seq at an orderly close; all ones = not closed |
//! |     56 |    2 | lineage length  | terms, 1 to 128                                    |
//! |     58 |    1 | role            | 1 leads, 2 follows; 0 = leads if its progress is zero |
//! |     59 |    1 | zero            |                                                    |
//! |     60 |    4 | slots durable   | slots below this survive a power cut               |
//! |     64 |    8 | durable seq     | everything up to here survives a power cut         |
//! |     72 |    8 | session         | random name of the last opening, also in the digest |
//! |     80 | 24 n | lineage         | epoch u64, id u64, first seq u64; oldest first     |
//!
//! Progress of a follower, two copies at 7168 and 7296, written in turn:
//!
//! | offset | size | field         | meaning                                              |
//! |-------:|-----:|---------------|------------------------------------------------------|
//! |      0 |    4 | crc           | CRC-32 of bytes 4 to 56                              |
//! |      4 |    4 | step          | 0 none, 1 scan, 2 rewind; see [`Step`]               |
//! |      8 |    8 | counter       |                                                      |
//! |     16 |    8 | epoch         | newest that was followed                             |
//! |     24 |    8 | seq           | the watermark                                        |
//! |     32 |    8 | consistent at | see [`Progress`]                                     |
//! |     40 |    8 | step seq      | a scan's `through`, a rewind's `fork`                |
//! |     48 |    4 | step slot     | the first one not yet done                           |
//! |     52 |    4 | zero          |                                                      |
//!
//! The redo record lies at 8192 (see [`crate::shard`]), the slots behind it, both page-aligned.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::slot::image::{RECORD_HEADER_SIZE, read_u16, read_u32, read_u64};
use crate::slot::{Geometry, Seq, ShardIndex, SlotIndex};

pub use crate::slot::lineage::Term;

/// Bytes of the header.
pub const HEADER_PAGE_SIZE: usize = 8192;
/// Newest format that this build reads and writes. It writes the one before where that says the same.
pub const FORMAT_VERSION: u32 = 3;
/// Without hash tags, which releases that read no other know nothing of.
const FORMAT_VERSION_UNTAGGED: u32 = 2;
/// Terms that a lineage holds; older ones are dropped.
pub const LINEAGE_LEN_MAX: usize = 128;

const MAGIC: [u8; 8] = *b"SLOTSTRM";
/// Bytes of the identity.
pub const IDENTITY_SIZE: usize = 52;
const STATE_OFFSETS: [usize; 2] = [256, 3584];
const STATE_FIXED_SIZE: usize = 80;
const TERM_SIZE: usize = 24;
const PROGRESS_OFFSETS: [usize; 2] = [7168, 7296];
const PROGRESS_SIZE: usize = 56;
const NOT_CLOSED: u64 = u64::MAX;
const PAGE_SIZE: usize = 4096;

const _: () = assert!(STATE_OFFSETS[0] + STATE_FIXED_SIZE + LINEAGE_LEN_MAX * TERM_SIZE <= STATE_OFFSETS[1]);
const _: () =
    assert!(STATE_OFFSETS[1] + STATE_FIXED_SIZE + LINEAGE_LEN_MAX * TERM_SIZE <= PROGRESS_OFFSETS[0]);
const _: () = assert!(PROGRESS_OFFSETS[0] + PROGRESS_SIZE <= PROGRESS_OFFSETS[1]);
const _: () = assert!(PROGRESS_OFFSETS[1] + PROGRESS_SIZE <= HEADER_PAGE_SIZE);

/// Why a file is not the shard that was expected. Nothing was written to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not one of our files.
    #[error("{path}: not a slotstream shard file (it begins with {found:02x?})")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its first bytes.
        found: Vec<u8>,
    },
    /// Written by another release.
    #[error(
        "{path}: format version is {found}, this build reads {FORMAT_VERSION_UNTAGGED} and {FORMAT_VERSION}"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Version stated.
        found: u32,
    },
    /// Shorter than what it says it holds.
    #[error("{path}: file is {found} bytes, wanted at least {wanted}: it was truncated")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes there.
        found: u64,
        /// Bytes that its header calls for.
        wanted: u64,
    },
    /// A part of the header does not match its CRC.
    #[error("{path}: {part} of the header is damaged (checksum)")]
    Checksum {
        /// The file.
        path: PathBuf,
        /// Which part.
        part: &'static str,
    },
    /// A role that this release does not know.
    #[error("{path}: role is {found}, wanted 1 (leads) or 2 (follows)")]
    Role {
        /// The file.
        path: PathBuf,
        /// Role stated.
        found: u8,
    },
    /// Belongs to another place in the store, or to another store.
    #[error("{path}: {field} is {found}, wanted {wanted}")]
    Differs {
        /// The file.
        path: PathBuf,
        /// Which field.
        field: &'static str,
        /// What the file says.
        found: String,
        /// What was expected.
        wanted: String,
    },
}

/// What a shard file is; never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Store that the shard belongs to.
    pub store_id: Uuid,
    /// Its position there.
    pub shard: ShardIndex,
    /// The store's sizes.
    pub geometry: Geometry,
}

/// Whose history a shard holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Role {
    /// Its own.
    Leads = 1,
    /// A leader's, or nothing yet: it gives out no seqs.
    Follows = 2,
}

impl Role {
    /// The role of this number; none for zero, which stands for no word.
    pub(super) fn from_number(number: u8) -> Result<Option<Self>, u8> {
        match number {
            0 => Ok(None),
            1 => Ok(Some(Self::Leads)),
            2 => Ok(Some(Self::Follows)),
            unknown => Err(unknown),
        }
    }
}

/// What changes seldom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Slots below this have a status.
    pub slots_formatted: u32,
    /// Slots below this have one after a power cut, too. None where an older release wrote the file.
    pub slots_durable: u32,
    /// No seq above this was used; zero = no window is kept.
    pub seq_reserved: u64,
    /// The last opener's machine since its start.
    pub boot_id: [u8; 16],
    /// The file system, as it was mounted, and the folder that the last opener found the file in.
    pub place_id: u64,
    /// Last seq at an orderly close.
    pub clean_seq: Option<Seq>,
    /// Everything up to here survives a power cut.
    pub durable_seq: Seq,
    /// Random name of the last opening.
    pub session: u64,
    /// Whose history it holds; none where an older release wrote the file: see [`State::leads`].
    pub role: Option<Role>,
    /// Oldest first, never empty.
    pub lineage: Vec<Term>,
}

/// What a follower knows of its own state of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Progress {
    /// Newest epoch that was followed.
    pub epoch: u64,
    /// Watermark: everything up to here is held. Zero: nothing is, the next scan is a full one.
    pub seq: Seq,
    /// The state is an exact prefix of the leader's only from this seq on; `Seq::MAX` inside a scan.
    pub consistent_at: Seq,
    /// What a broken link has left half done; only while the state is not consistent.
    pub step: Step,
}

/// What a follower goes on with after a broken link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Nothing, or a scan of which nothing came.
    #[default]
    None,
    /// A scan was cut off.
    Scan {
        /// Slots below this one hold everything up to `through`.
        next: SlotIndex,
        /// See `next`.
        through: Seq,
    },
    /// A rewind: slots whose seq is above `fork` hold what the leader never had, or parts of what it has.
    Rewind {
        /// The last seq shared with the leader.
        fork: Seq,
        /// Slots below this one hold the leader's images.
        next: SlotIndex,
    },
}

impl Progress {
    /// Whether the state is exactly the leader's at the watermark.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        self.seq >= self.consistent_at
    }

    /// Whether the shard has ever been through a scan, or led before.
    #[must_use]
    pub fn was_in_sync(&self) -> bool {
        self.epoch != 0
    }
}

/// Offset of slot 0: behind the header page and the redo record, on a page of its own.
#[must_use]
pub fn slots_offset(geometry: &Geometry) -> usize {
    HEADER_PAGE_SIZE + (RECORD_HEADER_SIZE + geometry.image_size_max()).next_multiple_of(PAGE_SIZE)
}

fn put(target: &mut [u8], offset: usize, bytes: &[u8]) {
    target[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl Identity {
    /// Writes the identity into a header page.
    pub fn write(&self, page: &mut [u8]) {
        let geometry = &self.geometry;
        put(page, 0, &MAGIC);
        put(page, 8, &version(geometry).to_le_bytes());
        put(page, 12, &self.shard.0.to_le_bytes());
        put(page, 14, &geometry.shard_count.to_le_bytes());
        put(page, 16, self.store_id.as_bytes());
        put(page, 32, &geometry.key_size_max.to_le_bytes());
        put(page, 34, &geometry.value_size_max.to_le_bytes());
        put(page, 36, &geometry.shard_prefix_bits.to_le_bytes());
        put(page, 38, &[0; 2]);
        put(page, 40, &u32::try_from(geometry.slot_stride()).expect("at most 66,584").to_le_bytes());
        put(page, 44, &u32::try_from(slots_offset(geometry)).expect("at most 73,728").to_le_bytes());
        let crc = crc32fast::hash(&page[..48]);
        put(page, 48, &crc.to_le_bytes());
    }

    /// Reads and checks the identity of the file at `path`, whose first bytes are `page`.
    pub fn read(path: &Path, page: &[u8]) -> Result<Self, HeaderError> {
        if page.is_empty() {
            let wanted = HEADER_PAGE_SIZE as u64;
            return Err(HeaderError::Truncated { path: path.into(), found: 0, wanted });
        }
        if page.get(..8) != Some(&MAGIC) {
            return Err(HeaderError::Foreign {
                path: path.into(),
                found: page[..page.len().min(8)].to_vec(),
            });
        }
        if page.len() >= 12 && !(FORMAT_VERSION_UNTAGGED..=FORMAT_VERSION).contains(&read_u32(page, 8)) {
            return Err(HeaderError::Version { path: path.into(), found: read_u32(page, 8) });
        }
        if page.len() < HEADER_PAGE_SIZE {
            let wanted = HEADER_PAGE_SIZE as u64;
            return Err(HeaderError::Truncated { path: path.into(), found: page.len() as u64, wanted });
        }
        let damaged = || HeaderError::Checksum { path: path.into(), part: "the identity" };
        if read_u32(page, IDENTITY_SIZE - 4) != crc32fast::hash(&page[..48]) {
            return Err(damaged());
        }
        let geometry = Geometry {
            shard_count: read_u16(page, 14),
            key_size_max: read_u16(page, 32),
            value_size_max: read_u16(page, 34),
            shard_prefix_bits: read_u16(page, 36),
        };
        let strides = [read_u32(page, 40) as usize, read_u32(page, 44) as usize];
        if geometry.check().is_err()
            || version(&geometry) != read_u32(page, 8)
            || strides != [geometry.slot_stride(), slots_offset(&geometry)]
        {
            return Err(damaged());
        }
        let mut store_id = [0; 16];
        store_id.copy_from_slice(&page[16..32]);
        Ok(Self { store_id: Uuid::from_bytes(store_id), shard: ShardIndex(read_u16(page, 12)), geometry })
    }
}

fn version(geometry: &Geometry) -> u32 {
    if geometry.has_hash_tags() { FORMAT_VERSION } else { FORMAT_VERSION_UNTAGGED }
}

/// Of two copies at `offsets`, the place and counter of the one that counts.
fn current(page: &[u8], offsets: [usize; 2], check: impl Fn(&[u8]) -> bool) -> Option<(usize, u64)> {
    let valid = |place: usize| {
        let copy = &page[offsets[place]..];
        check(copy).then(|| (place, read_u64(copy, 8)))
    };
    [valid(0), valid(1)].into_iter().flatten().max_by_key(|(_, counter)| *counter)
}

/// Runs `write` on the copy that does not count; its last step is the CRC, so that a half-written
/// copy never counts.
fn write_other(
    page: &mut [u8],
    offsets: [usize; 2],
    check: impl Fn(&[u8]) -> bool,
    write: impl FnOnce(&mut [u8]) -> usize,
) {
    let (place, counter) =
        current(page, offsets, check).map_or((0, 1), |(place, counter)| (1 - place, counter + 1));
    let copy = &mut page[offsets[place]..];
    put(copy, 8, &counter.to_le_bytes());
    let size = write(copy);
    let crc = crc32fast::hash(&copy[4..size]);
    put(copy, 0, &crc.to_le_bytes());
}

fn state_is_valid(copy: &[u8]) -> bool {
    let lineage_len = usize::from(read_u16(copy, 56));
    (1..=LINEAGE_LEN_MAX).contains(&lineage_len)
        && read_u32(copy, 0) == crc32fast::hash(&copy[4..STATE_FIXED_SIZE + lineage_len * TERM_SIZE])
}

impl State {
    /// Writes the state into a header page.
    pub fn write(&self, page: &mut [u8]) {
        assert!((1..=LINEAGE_LEN_MAX).contains(&self.lineage.len()), "lineage length");
        write_other(page, STATE_OFFSETS, state_is_valid, |copy| {
            put(copy, 4, &self.slots_formatted.to_le_bytes());
            put(copy, 16, &self.seq_reserved.to_le_bytes());
            put(copy, 24, &self.boot_id);
            put(copy, 40, &self.place_id.to_le_bytes());
            put(copy, 48, &self.clean_seq.map_or(NOT_CLOSED, |seq| seq.0).to_le_bytes());
            let lineage_len = u16::try_from(self.lineage.len()).expect("asserted above");
            put(copy, 56, &lineage_len.to_le_bytes());
            put(copy, 58, &[self.role.map_or(0, |role| role as u8), 0]);
            put(copy, 60, &self.slots_durable.to_le_bytes());
            put(copy, 64, &self.durable_seq.0.to_le_bytes());
            put(copy, 72, &self.session.to_le_bytes());
            for (place, term) in self.lineage.iter().enumerate() {
                let words = [term.epoch, term.id, term.first_seq];
                for (word, offset) in words.into_iter().zip([0, 8, 16]) {
                    put(copy, STATE_FIXED_SIZE + place * TERM_SIZE + offset, &word.to_le_bytes());
                }
            }
            STATE_FIXED_SIZE + self.lineage.len() * TERM_SIZE
        });
    }

    /// Whether the shard leads. An older release says so by its progress alone, in which a follower that has got
    /// nothing yet looks like a leader.
    #[must_use]
    pub fn leads(&self, progress: &Progress) -> bool {
        self.role.map_or(*progress == Progress::default(), |role| role == Role::Leads)
    }

    /// Whether a copy that was written is not valid: a write of it was cut off, or it is damaged. It may have
    /// been the newer one.
    #[must_use]
    pub fn has_bad_copy(page: &[u8]) -> bool {
        STATE_OFFSETS
            .iter()
            .any(|offset| read_u64(&page[*offset..], 8) != 0 && !state_is_valid(&page[*offset..]))
    }

    /// Reads the state of the file at `path` from its header page.
    pub fn read(path: &Path, page: &[u8]) -> Result<Self, HeaderError> {
        let Some((place, _)) = current(page, STATE_OFFSETS, state_is_valid) else {
            return Err(HeaderError::Checksum { path: path.into(), part: "the state" });
        };
        let copy = &page[STATE_OFFSETS[place]..];
        let word = |place: usize, offset| read_u64(copy, STATE_FIXED_SIZE + place * TERM_SIZE + offset);
        let term = |place| Term { epoch: word(place, 0), id: word(place, 8), first_seq: word(place, 16) };
        let mut boot_id = [0; 16];
        boot_id.copy_from_slice(&copy[24..40]);
        let clean_seq = read_u64(copy, 48);
        let role =
            Role::from_number(copy[58]).map_err(|found| HeaderError::Role { path: path.into(), found })?;
        Ok(Self {
            slots_formatted: read_u32(copy, 4),
            slots_durable: read_u32(copy, 60),
            seq_reserved: read_u64(copy, 16),
            boot_id,
            place_id: read_u64(copy, 40),
            clean_seq: (clean_seq != NOT_CLOSED).then_some(Seq(clean_seq)),
            durable_seq: Seq(read_u64(copy, 64)),
            session: read_u64(copy, 72),
            role,
            lineage: (0..usize::from(read_u16(copy, 56))).map(term).collect(),
        })
    }
}

fn progress_is_valid(copy: &[u8]) -> bool {
    read_u64(copy, 8) != 0 && read_u32(copy, 0) == crc32fast::hash(&copy[4..PROGRESS_SIZE])
}

impl Progress {
    /// Writes the progress into a header page.
    pub fn write(&self, page: &mut [u8]) {
        write_other(page, PROGRESS_OFFSETS, progress_is_valid, |copy| {
            let (kind, seq, slot) = match self.step {
                Step::None => (0_u32, Seq::ZERO, SlotIndex(0)),
                Step::Scan { next, through } => (1, through, next),
                Step::Rewind { fork, next } => (2, fork, next),
            };
            put(copy, 4, &kind.to_le_bytes());
            put(copy, 16, &self.epoch.to_le_bytes());
            put(copy, 24, &self.seq.0.to_le_bytes());
            put(copy, 32, &self.consistent_at.0.to_le_bytes());
            put(copy, 40, &seq.0.to_le_bytes());
            put(copy, 48, &slot.0.to_le_bytes());
            put(copy, 52, &[0; 4]);
            PROGRESS_SIZE
        });
    }

    /// Reads the progress of the file at `path` from its header page. It is there from the file's making on:
    /// none, or none valid, is damage, and not a store that leads.
    pub fn read(path: &Path, page: &[u8]) -> Result<Self, HeaderError> {
        let Some((place, _)) = current(page, PROGRESS_OFFSETS, progress_is_valid) else {
            return Err(HeaderError::Checksum { path: path.into(), part: "the replication progress" });
        };
        let copy = &page[PROGRESS_OFFSETS[place]..];
        Ok(Self {
            epoch: read_u64(copy, 16),
            seq: Seq(read_u64(copy, 24)),
            consistent_at: Seq(read_u64(copy, 32)),
            step: match (read_u32(copy, 4), Seq(read_u64(copy, 40)), SlotIndex(read_u32(copy, 48))) {
                (1, through, next) => Step::Scan { next, through },
                (2, fork, next) => Step::Rewind { fork, next },
                _ => Step::None,
            },
        })
    }
}

#[cfg(test)]
mod tests;
