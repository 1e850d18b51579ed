//! The log's formats: segment header, frame, checkpoint. Little-endian.
//!
//! A *position* is a segment's number in the high 32 bits and an offset in that segment in the low ones. It
//! only rises: a file that is used again gets a new number, so that no old frame in it is at its position.
//!
//! Segment header, at offset 0; frames follow from offset 4096 on, each 8-aligned:
//!
//! | offset | size | field          | meaning                                         |
//! |-------:|-----:|----------------|-------------------------------------------------|
//! |      0 |    4 | crc            | CRC-32C of bytes 4 to 40                        |
//! |      4 |    4 | format version | 1                                               |
//! |      8 |    8 | magic          | `SLOTSWAL`                                      |
//! |     16 |   16 | store id       | UUID                                            |
//! |     32 |    4 | segment number | from 1                                          |
//! |     36 |    4 | zero           |                                                 |
//!
//! Frame:
//!
//! | offset | size | field        | meaning                                              |
//! |-------:|-----:|--------------|------------------------------------------------------|
//! |      0 |    4 | crc          | CRC-32C of bytes 4 to the end of the padding          |
//! |      4 |    4 | payload size | bytes                                                |
//! |      8 |    8 | position     | of this frame: a frame is good in its own place only |
//! |     16 |    8 | durable mark | everything before this position was synced           |
//! |     24 |    8 | epoch        | of the shard                                         |
//! |     32 |    2 | shard        |                                                      |
//! |     34 |    2 | kind         | see [`Kind`]                                         |
//! |     36 |    4 | flags        | 1: it counts only if what follows is there, too       |
//! |     40 |    n | payload      | padded with zeros to 8                               |
//!
//! The payload of a `Records` frame is a run of the shard's records as rings have them ([`crate::slot::image`]):
//! slot index, length, whole slot image with its seq.
//!
//! Checkpoint, two copies at 0 and 4096, written in turn; the valid one with the higher counter counts:
//!
//! | offset | size | field          | meaning                                        |
//! |-------:|-----:|----------------|------------------------------------------------|
//! |      0 |    4 | crc            | CRC-32C of bytes 4 to 48                       |
//! |      4 |    4 | format version | 1                                              |
//! |      8 |    8 | magic          | `SLOTSCHK`                                     |
//! |     16 |   16 | store id       | UUID                                           |
//! |     32 |    8 | counter        | from 1                                         |
//! |     40 |    8 | cut            | what lies before this position is in the slots |

use uuid::Uuid;

use crate::checksum::{crc32c, crc32c_further};
use crate::planted::{Bug, is_planted};
use crate::slot::ShardIndex;
use crate::slot::image::{read_u16, read_u32, read_u64};

/// Format that this build writes, and the only one it reads.
pub const FORMAT_VERSION: u32 = 1;
/// Where a segment's frames begin.
pub const FRAMES_OFFSET: u32 = 4096;
/// Bytes of a segment's header.
pub const SEGMENT_HEADER_SIZE: usize = 40;
/// Bytes before a frame's payload.
pub const FRAME_HEADER_SIZE: usize = 40;
/// Bytes of one copy of the checkpoint.
pub const CHECKPOINT_SIZE: usize = 48;
/// Where the two copies of the checkpoint lie.
pub const CHECKPOINT_OFFSETS: [u64; 2] = [0, 4096];
/// Size of the checkpoint's file.
pub const CHECKPOINT_FILE_SIZE: u64 = 8192;

const SEGMENT_MAGIC: [u8; 8] = *b"SLOTSWAL";
const CHECKPOINT_MAGIC: [u8; 8] = *b"SLOTSCHK";

const _: () = assert!(FRAME_HEADER_SIZE.is_multiple_of(8) && FRAMES_OFFSET.is_multiple_of(8));
const _: () = assert!(CHECKPOINT_OFFSETS[0] + CHECKPOINT_SIZE as u64 <= CHECKPOINT_OFFSETS[1]);
const _: () = assert!(CHECKPOINT_OFFSETS[1] + CHECKPOINT_SIZE as u64 <= CHECKPOINT_FILE_SIZE);

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position(pub u64);

impl Position {
    /// A place in a segment.
    #[must_use]
    pub const fn new(segment: u32, offset: u32) -> Self {
        Self((segment as u64) << 32 | offset as u64)
    }

    /// Where a segment's frames begin.
    #[must_use]
    pub const fn start(segment: u32) -> Self {
        Self::new(segment, FRAMES_OFFSET)
    }

    /// Its segment's number.
    #[must_use]
    pub fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Its offset in the segment.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
    pub fn offset(self) -> u32 {
        self.0 as u32
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.segment(), self.offset())
    }
}

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// Records, each for its slot if it is newer than what the slot has.
    Records = 1,
    /// Records, each for its slot whatever the slot has.
    Forced = 2,
    /// What a shard is beside its slots, as its owner encodes it.
    State = 3,
    /// Nothing: the segment ends here.
    End = 4,
}

impl Kind {
    fn from_bits(bits: u16) -> Option<Self> {
        [Self::Records, Self::Forced, Self::State, Self::End].into_iter().find(|kind| *kind as u16 == bits)
    }
}

/// A frame that was found good at its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Where it lies.
    pub position: Position,
    /// Everything before this position was durable when the frame was written.
    pub durable: Position,
    /// Its shard's epoch.
    pub epoch: u64,
    /// Its shard.
    pub shard: ShardIndex,
    /// What its payload is.
    pub kind: Kind,
    /// It is one change with the frames behind it, up to the first that does not go on.
    pub continues: bool,
    /// What it holds.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Bytes that a frame with so much payload takes.
    #[must_use]
    pub fn size(payload: usize) -> usize {
        FRAME_HEADER_SIZE + payload.next_multiple_of(8)
    }

    /// The frame's bytes: header, the payload's whole words, and what is left of it, padded to a word.
    #[must_use]
    pub fn pieces(&self) -> ([u8; FRAME_HEADER_SIZE], &'a [u8], Option<[u8; 8]>) {
        let payload_size = u32::try_from(self.payload.len()).expect("a payload is smaller than a segment");
        let (words, rest) = self.payload.split_at(self.payload.len() / 8 * 8);
        let last =
            (!rest.is_empty()).then(|| std::array::from_fn(|place| rest.get(place).copied().unwrap_or(0)));
        let mut header = [0; FRAME_HEADER_SIZE];
        header[4..8].copy_from_slice(&payload_size.to_le_bytes());
        header[8..16].copy_from_slice(&self.position.0.to_le_bytes());
        header[16..24].copy_from_slice(&self.durable.0.to_le_bytes());
        header[24..32].copy_from_slice(&self.epoch.to_le_bytes());
        header[32..34].copy_from_slice(&self.shard.0.to_le_bytes());
        header[34..36].copy_from_slice(&(self.kind as u16).to_le_bytes());
        header[36..40].copy_from_slice(&u32::from(self.continues).to_le_bytes());
        let crc = crc32c_further(crc32c(payload_size, &header[8..]), words);
        let crc = crc32c_further(crc, last.as_ref().map_or(&[], |last| &last[..]));
        header[..4].copy_from_slice(&crc.to_le_bytes());
        (header, words, last)
    }

    /// The frame at the beginning of `bytes`, which lie at `position`; none if there is no good one.
    #[must_use]
    pub fn read(position: Position, bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < FRAME_HEADER_SIZE || read_u64(bytes, 8) != position.0 {
            return None;
        }
        let payload_size = read_u32(bytes, 4);
        let size = Self::size(payload_size as usize);
        let frame = bytes.get(..size)?;
        if read_u32(frame, 0) != crc32c(payload_size, &frame[8..]) && !is_planted(Bug::TornFrameAccepted) {
            return None;
        }
        Some(Self {
            position,
            durable: Position(read_u64(frame, 16)),
            epoch: read_u64(frame, 24),
            shard: ShardIndex(read_u16(frame, 32)),
            kind: Kind::from_bits(read_u16(frame, 34))?,
            continues: read_u32(frame, 36) & 1 != 0,
            payload: &frame[FRAME_HEADER_SIZE..FRAME_HEADER_SIZE + payload_size as usize],
        })
    }
}

/// What a file that should be the log's says that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<T> {
    /// It is good.
    Good(T),
    /// It is good, but another release's.
    Version(u32),
    /// It is good, but another store's.
    Store(Uuid),
    /// It does not match its checksum, or is none of ours.
    Bad,
}

fn check(bytes: &[u8], magic: [u8; 8], store_id: Uuid) -> Found<()> {
    if read_u32(bytes, 0) != crc32c(read_u32(bytes, 4), &bytes[8..]) || bytes[8..16] != magic {
        return Found::Bad;
    }
    let mut found = [0; 16];
    found.copy_from_slice(&bytes[16..32]);
    match (read_u32(bytes, 4), Uuid::from_bytes(found)) {
        (FORMAT_VERSION, found) if found == store_id => Found::Good(()),
        (FORMAT_VERSION, found) => Found::Store(found),
        (version, _) => Found::Version(version),
    }
}

fn seal<const SIZE: usize>(mut bytes: [u8; SIZE], magic: [u8; 8], store_id: Uuid) -> [u8; SIZE] {
    bytes[4..8].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[8..16].copy_from_slice(&magic);
    bytes[16..32].copy_from_slice(store_id.as_bytes());
    let crc = crc32c(FORMAT_VERSION, &bytes[8..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// A segment's header.
#[must_use]
pub fn segment_header(store_id: Uuid, segment: u32) -> [u8; SEGMENT_HEADER_SIZE] {
    let mut bytes = [0; SEGMENT_HEADER_SIZE];
    bytes[32..36].copy_from_slice(&segment.to_le_bytes());
    seal(bytes, SEGMENT_MAGIC, store_id)
}

/// The segment number that a header states.
#[must_use]
pub fn read_segment_header(store_id: Uuid, bytes: &[u8; SEGMENT_HEADER_SIZE]) -> Found<u32> {
    match check(bytes, SEGMENT_MAGIC, store_id) {
        Found::Good(()) => Found::Good(read_u32(bytes, 32)),
        Found::Version(version) => Found::Version(version),
        Found::Store(found) => Found::Store(found),
        Found::Bad => Found::Bad,
    }
}

/// How far the slots hold what the log held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Rises with each.
    pub counter: u64,
    /// A replay begins here.
    pub cut: Position,
}

impl Checkpoint {
    /// Of a log that nothing was ever written to.
    pub const FIRST: Self = Self { counter: 1, cut: Position::start(1) };

    /// The bytes of one copy.
    #[must_use]
    pub fn encode(&self, store_id: Uuid) -> [u8; CHECKPOINT_SIZE] {
        let mut bytes = [0; CHECKPOINT_SIZE];
        bytes[32..40].copy_from_slice(&self.counter.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.cut.0.to_le_bytes());
        seal(bytes, CHECKPOINT_MAGIC, store_id)
    }

    /// What one copy says.
    #[must_use]
    pub fn decode(store_id: Uuid, bytes: &[u8; CHECKPOINT_SIZE]) -> Found<Self> {
        match check(bytes, CHECKPOINT_MAGIC, store_id) {
            Found::Good(()) => {
                Found::Good(Self { counter: read_u64(bytes, 32), cut: Position(read_u64(bytes, 40)) })
            }
            Found::Version(version) => Found::Version(version),
            Found::Store(found) => Found::Store(found),
            Found::Bad => Found::Bad,
        }
    }
}
