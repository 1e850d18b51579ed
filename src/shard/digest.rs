//! What index, free set, counts and scans need to know of each slot, in a file beside the slots: so they
//! come back without a look at the slots. Little-endian.
//!
//! A slot's *word* says whether it holds a key, whether that expires, and most of the key's hash. It is a
//! function of the slot alone, and so is a block's summary of its slots: a process killed in a change
//! leaves at most that one slot's word and summary behind, and the redo record names the slot.
//!
//! | offset | size | field    | meaning                                                    |
//! |-------:|-----:|----------|------------------------------------------------------------|
//! |      0 |    8 | magic    | `SLOTDGST`                                                 |
//! |      8 |    4 | version  | 1                                                          |
//! |     12 |    4 | closed   | 1 = complete, 0 = kept up to date by the process that opened it |
//! |     16 |    8 | session  | the opening of the shard that it belongs to                |
//! |     24 |    4 | contents | CRC-32C of all chunks in use, if closed                    |
//! |     28 |    4 | zero     |                                                            |
//! |     32 |   52 | identity | of the shard's file                                        |
//! |     84 |    4 | crc      | CRC-32C of bytes 0 to 84                                   |
//!
//! From 4096 on a chunk for each 8192 slots: 1024 summaries of 8 bytes, each the highest seq of a block of 8
//! slots (all ones: a slot is damaged, no scan may skip it), then 8192 words of 4 bytes:
//!
//! | low two bits | upper thirty                          | the slot                    |
//! |-------------:|---------------------------------------|-----------------------------|
//! |            0 | 0 free, 1 deleted, 2 damaged          | holds no key that is known  |
//! |            1 | of the key's hash                     | holds a key                 |
//! |            2 | of the key's hash                     | holds a key that expires    |
//! |            3 | of the key's hash                     | held a key, and is damaged  |

use std::io;

use crate::checksum::crc32c;
use crate::planted::{Bug, is_planted};
use crate::region::Region;
use crate::slot::image::{read_u32, read_u64};
use crate::slot::{Seq, SlotIndex, SlotView, Status};

use super::BLOCK_SLOTS;
use super::header::{IDENTITY_SIZE, Identity};

const MAGIC: &[u8; 8] = b"SLOTDGST";
const VERSION: u32 = 1;
const OFFSET_IDENTITY: usize = 32;
const OFFSET_CRC: usize = OFFSET_IDENTITY + IDENTITY_SIZE;
pub(super) const HEADER_SIZE: usize = OFFSET_CRC + 4;
const CHUNKS_OFFSET: usize = 4096;
const CHUNK_SLOTS: u32 = 8192;
const SUMMARIES_SIZE: usize = (CHUNK_SLOTS / BLOCK_SLOTS) as usize * 8;
const CHUNK_SIZE: usize = SUMMARIES_SIZE + CHUNK_SLOTS as usize * 4;
const STATE_BITS: u32 = 0b11;

const _: () = assert!(HEADER_SIZE <= CHUNKS_OFFSET && CHUNK_SIZE.is_multiple_of(4096));

/// A summary that no scan skips: one of the block's slots is damaged.
pub(super) const DAMAGED_BLOCK: u64 = u64::MAX;

/// What is kept of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word(u32);

impl Word {
    pub(super) const FREE: Self = Self(0);
    pub(super) const DELETED: Self = Self(1 << 2);
    pub(super) const DAMAGED: Self = Self(2 << 2);

    /// The word of a slot with this status and expiry whose key has this index hash.
    #[inline]
    pub(super) fn new(status: Status, expire_at: u64, hash: u32) -> Self {
        match status {
            Status::Free => Self::FREE,
            Status::Deleted => Self::DELETED,
            Status::Occupied => Self((hash & !STATE_BITS) | if expire_at == 0 { 1 } else { 2 }),
        }
    }

    /// The word of a slot whose image is good.
    pub(super) fn of(view: &SlotView<'_>, hash: u32) -> Self {
        Self::new(view.status(), view.expire_at(), hash)
    }

    /// The same slot, found damaged.
    pub(super) fn damaged(self) -> Self {
        if self.0 & STATE_BITS == 0 { Self::DAMAGED } else { Self(self.0 | STATE_BITS) }
    }

    pub(super) fn is_damaged(self) -> bool {
        self == Self::DAMAGED || self.0 & STATE_BITS == 3
    }

    /// Whether a damaged slot may have held a key with this index hash; `None`: nobody knows what it held.
    pub(super) fn may_have_held(self, hash: u32) -> Option<bool> {
        (self != Self::DAMAGED).then_some(self.0 | STATE_BITS == hash | STATE_BITS)
    }

    /// Whether the slot can take a new key.
    pub(super) fn is_vacant(self) -> bool {
        self == Self::FREE || self == Self::DELETED
    }

    /// The index hash of the key that a good slot holds.
    #[inline]
    pub(super) fn key_hash(self) -> Option<u32> {
        matches!(self.0 & STATE_BITS, 1 | 2).then_some(self.0 | STATE_BITS)
    }

    pub(super) fn expires(self) -> bool {
        self.0 & STATE_BITS == 2
    }
}

/// Why what a digest says is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// There is no digest, or it is not of this shard, or of another opening of it, or damaged.
    #[error("the digest is missing, damaged, or not of the shard's last opening")]
    Header,
    /// The digest was not closed in an orderly way, and not left behind here.
    #[error("the machine or its file system went down, or the shard was elsewhere")]
    OsCrash,
    /// The digest holds fewer slots than there are.
    #[error("the digest is too short")]
    Short,
    /// The digest is not what was written when it was closed.
    #[error("the digest's contents are damaged (checksum)")]
    Contents,
    /// The digest was closed at another seq than the slots.
    #[error("the digest's last seq is {found}, the shard was closed at {wanted}")]
    Seq {
        /// The digest's.
        found: Seq,
        /// The slots'.
        wanted: Seq,
    },
    /// The header of the slots lost a copy of its state.
    #[error("a copy of the shard's state is not valid")]
    State,
}

/// Words and summaries of all slots of a shard.
#[derive(Debug)]
pub(super) struct Digest {
    region: Region,
}

/// Bytes of a digest of so many slots.
#[must_use]
pub fn digest_size(slots: u32) -> usize {
    CHUNKS_OFFSET + slots.div_ceil(CHUNK_SLOTS) as usize * CHUNK_SIZE
}

#[inline]
fn chunk_offset(slot: SlotIndex) -> usize {
    CHUNKS_OFFSET + (slot.0 / CHUNK_SLOTS) as usize * CHUNK_SIZE
}

#[inline]
pub(super) fn block_offset(slot: SlotIndex) -> usize {
    chunk_offset(slot) + (slot.0 % CHUNK_SLOTS / BLOCK_SLOTS) as usize * 8
}

#[inline]
pub(super) fn word_offset(slot: SlotIndex) -> usize {
    chunk_offset(slot) + SUMMARIES_SIZE + (slot.0 % CHUNK_SLOTS) as usize * 4
}

impl Digest {
    /// The digest in a region; nothing in it is believed yet.
    pub(super) fn new(region: Region) -> Self {
        Self { region }
    }

    pub(super) fn size(&self) -> usize {
        self.region.len()
    }

    pub(super) fn region(&self) -> &Region {
        &self.region
    }

    /// Makes room for so many slots, free ones.
    pub(super) fn grow(&mut self, slots: u32) -> io::Result<()> {
        let (held, wanted) = (self.region.len(), digest_size(slots));
        if wanted > held {
            self.region.grow(wanted)?;
            self.region.fill(held, &vec![0; wanted - held])?;
        }
        Ok(())
    }

    /// Forgets everything, and makes room for so many slots, free ones.
    pub(super) fn reset(&mut self, slots: u32) -> io::Result<()> {
        let held = self.region.len();
        self.region.bytes_mut(0, held).fill(0);
        self.grow(slots)
    }

    // ---- blocks and words

    /// The highest seq in a slot's block.
    #[inline]
    pub(super) fn block(&self, slot: SlotIndex) -> u64 {
        read_u64(self.region.bytes(block_offset(slot), 8), 0)
    }

    #[inline]
    pub(super) fn set_block(&mut self, slot: SlotIndex, seq: u64) {
        self.region.bytes_mut(block_offset(slot), 8).copy_from_slice(&seq.to_le_bytes());
    }

    /// Raises the summary of a slot's block to its new seq.
    #[inline]
    pub(super) fn note(&mut self, slot: SlotIndex, seq: Seq) {
        let target = self.region.bytes_mut(block_offset(slot), 8);
        let summary = read_u64(target, 0).max(seq.0);
        target.copy_from_slice(&summary.to_le_bytes());
    }

    /// All summaries of so many slots, in order, each with its first slot.
    pub(super) fn blocks(&self, slots: u32) -> impl Iterator<Item = (SlotIndex, u64)> + '_ {
        (0..slots).step_by(BLOCK_SLOTS as usize).map(SlotIndex).map(|slot| (slot, self.block(slot)))
    }

    #[inline]
    pub(super) fn word(&self, slot: SlotIndex) -> Word {
        Word(read_u32(self.region.bytes(word_offset(slot), 4), 0))
    }

    #[inline]
    pub(super) fn set_word(&mut self, slot: SlotIndex, word: Word) {
        self.region.bytes_mut(word_offset(slot), 4).copy_from_slice(&word.0.to_le_bytes());
    }

    /// The words of a slot and those behind it, up to so many slots in all: whole runs at a time.
    pub(super) fn run(&self, first: SlotIndex, slots: u32) -> impl ExactSizeIterator<Item = Word> + '_ {
        let len = (CHUNK_SLOTS - first.0 % CHUNK_SLOTS).min(slots - first.0);
        let bytes = self.region.bytes(word_offset(first), len as usize * 4);
        bytes.as_chunks::<4>().0.iter().map(|word| Word(u32::from_le_bytes(*word)))
    }

    // ---- header

    fn header(session: u64, identity: &Identity, contents: Option<u32>) -> [u8; HEADER_SIZE] {
        let mut header = [0; HEADER_SIZE];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&u32::from(contents.is_some()).to_le_bytes());
        header[16..24].copy_from_slice(&session.to_le_bytes());
        header[24..28].copy_from_slice(&contents.unwrap_or(0).to_le_bytes());
        identity.write(&mut header[OFFSET_IDENTITY..OFFSET_CRC]);
        let crc = crc32c(0, &header[..OFFSET_CRC]);
        header[OFFSET_CRC..].copy_from_slice(&crc.to_le_bytes());
        header
    }

    fn has_header(&self, header: &[u8; HEADER_SIZE]) -> bool {
        self.region.bytes(0, HEADER_SIZE) == header || is_planted(Bug::StaleDigestBelieved)
    }

    fn contents(&self, slots: u32) -> u32 {
        crc32c(slots, self.region.bytes(CHUNKS_OFFSET, digest_size(slots) - CHUNKS_OFFSET))
    }

    /// From here on the digest is kept up to date by this opening of the shard.
    pub(super) fn begin(&mut self, session: u64, identity: &Identity) {
        self.region.bytes_mut(0, HEADER_SIZE).copy_from_slice(&Self::header(session, identity, None));
    }

    /// Makes the digest durable as it is, under a checksum.
    pub(super) fn close(&mut self, session: u64, identity: &Identity, slots: u32) -> io::Result<()> {
        let contents = self.contents(slots);
        self.region.bytes_mut(0, HEADER_SIZE).copy_from_slice(&Self::header(
            session,
            identity,
            Some(contents),
        ));
        self.region.sync()
    }

    /// Whether a process of this opening left the digest behind, up to the instant in which it was killed.
    pub(super) fn check_live(&self, session: u64, identity: &Identity, slots: u32) -> Result<(), Doubt> {
        if self.region.len() < digest_size(slots) {
            return Err(Doubt::Short);
        }
        let is_live = self.has_header(&Self::header(session, identity, None));
        if is_live { Ok(()) } else { Err(Doubt::Header) }
    }

    /// Whether the digest is what this opening closed.
    pub(super) fn check_closed(&self, session: u64, identity: &Identity, slots: u32) -> Result<(), Doubt> {
        if self.region.len() < digest_size(slots) {
            return Err(Doubt::Short);
        }
        let stated = read_u32(self.region.bytes(24, 4), 0);
        if !self.has_header(&Self::header(session, identity, Some(stated))) {
            return Err(Doubt::Header);
        }
        let is_whole = stated == self.contents(slots) || is_planted(Bug::StaleDigestBelieved);
        if is_whole { Ok(()) } else { Err(Doubt::Contents) }
    }
}
