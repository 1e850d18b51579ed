//! Slot images: writing one, and reading one only after it was checked.
//!
//! A [`SlotView`] is proof that sizes, status and CRC were right at that place; nothing re-checks it.
//! A *record* is how images travel, in rings and on the wire: slot index, image length, image.
//!
//! | offset | size | field     |
//! |-------:|-----:|-----------|
//! |      0 |    4 | slot index |
//! |      4 |    4 | length of the image in bytes |
//! |      8 |    n | image     |

use crate::checksum::crc32c;
use crate::planted::{Bug, is_planted};

use super::layout::{
    Geometry, HEADER_SIZE, OFFSET_CRC, OFFSET_EXPIRE_AT, OFFSET_KEY_LEN, OFFSET_SEQ, OFFSET_VALUE_LEN, Seq,
    ShardIndex, SlotIndex, Status,
};

/// Bytes before the image in a record.
pub const RECORD_HEADER_SIZE: usize = 8;

const SEQ_BITS: u32 = 62;
const SEQ_MASK: u64 = (1 << SEQ_BITS) - 1;

/// Why bytes are not the slot that was expected at this place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// Shorter than its own lengths say, or than a header.
    #[error("slot image is {found} bytes, wanted {wanted}")]
    Length {
        /// Bytes there.
        found: usize,
        /// Bytes the header calls for.
        wanted: usize,
    },
    /// Key or value larger than the store's slots.
    #[error("slot holds a key of {key} and a value of {value} bytes, more than the store's geometry allows")]
    Capacity {
        /// Key bytes found.
        key: u16,
        /// Value bytes found.
        value: u16,
    },
    /// The slot is zeroed or its status is none of ours.
    #[error("slot has no status: it is zeroed or was never formatted")]
    Status,
    /// Content does not match its CRC, or the slot lies in the wrong place.
    #[error("slot checksum is {found:#010x}, wanted {wanted:#010x}: damaged or in the wrong place")]
    Checksum {
        /// CRC stored.
        found: u32,
        /// CRC of what is there.
        wanted: u32,
    },
}

#[inline]
pub(crate) fn read_u16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

#[inline]
pub(crate) fn read_u32(bytes: &[u8], offset: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(word)
}

#[inline]
pub(crate) fn read_u64(bytes: &[u8], offset: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(word)
}

/// A number for a place, so that an image is good in its own place only.
#[inline]
fn place_mark(shard: ShardIndex, slot: SlotIndex) -> u32 {
    slot.0.wrapping_add(u32::from(shard.0).wrapping_mul(0x9E37_79B1))
}

/// CRC-32C of an image, marked with its place.
#[inline]
#[must_use]
pub fn image_crc(shard: ShardIndex, slot: SlotIndex, image: &[u8]) -> u32 {
    crc32c(read_u32(image, OFFSET_KEY_LEN), &image[OFFSET_SEQ..]) ^ place_mark(shard, slot)
}

/// Whether a slot names this key, unchecked: a look at the right slot costs no more than the key.
#[inline]
#[must_use]
pub(crate) fn names_key(bytes: &[u8], key: &[u8]) -> bool {
    usize::from(read_u16(bytes, OFFSET_KEY_LEN)) == key.len()
        && bytes.get(HEADER_SIZE..HEADER_SIZE + key.len()).is_some_and(|found| is_equal(found, key))
}

/// Status and expiry that a slot states, unchecked; none if it has no status.
#[inline]
#[must_use]
pub(crate) fn header_of(bytes: &[u8]) -> Option<(Status, u64)> {
    Some((Status::from_bits(bytes[OFFSET_SEQ + 7] >> (SEQ_BITS % 8))?, read_u64(bytes, OFFSET_EXPIRE_AT)))
}

/// Compares bytes in place: for a key, a call of the library's function costs more than the comparison.
#[inline]
fn is_equal(left: &[u8], right: &[u8]) -> bool {
    let ((left, left_tail), (right, right_tail)) = (left.as_chunks::<8>(), right.as_chunks::<8>());
    let words = |[left, right]: [&[u8; 8]; 2]| u64::from_le_bytes(*left) == u64::from_le_bytes(*right);
    left.len() == right.len()
        && left.iter().zip(right).all(|(left, right)| words([left, right]))
        && left_tail.iter().eq(right_tail)
}

/// The seq an image's header states, unchecked; for bytes that this process wrote itself.
#[inline]
#[must_use]
pub fn image_seq(image: &[u8]) -> Seq {
    Seq(read_u64(image, OFFSET_SEQ) & SEQ_MASK)
}

/// A new image's fields.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    /// Commit number that this change takes.
    pub seq: Seq,
    /// What the slot becomes.
    pub status: Status,
    /// Unix ms; 0 = never.
    pub expire_at: u64,
    /// Key bytes.
    pub key: &'a [u8],
    /// Value bytes.
    pub value: &'a [u8],
}

impl Image<'_> {
    /// Bytes this image takes.
    #[inline]
    #[must_use]
    pub fn size(&self) -> usize {
        HEADER_SIZE + self.key.len() + self.value.len()
    }

    /// Writes header, key and value into `target`, which is exactly [`Image::size`] bytes.
    #[inline(always)]
    pub fn write(&self, shard: ShardIndex, slot: SlotIndex, target: &mut [u8]) {
        assert_eq!(target.len(), self.size(), "image target size");
        let (key_len, value_len) = (self.key.len(), self.value.len());
        #[expect(
            clippy::cast_possible_truncation,
            reason = "callers check both against the geometry, whose types are u16"
        )]
        let (key_len16, value_len16) = (key_len as u16, value_len as u16);
        assert!(usize::from(key_len16) == key_len && usize::from(value_len16) == value_len, "image sizes");
        target[OFFSET_KEY_LEN..OFFSET_KEY_LEN + 2].copy_from_slice(&key_len16.to_le_bytes());
        target[OFFSET_VALUE_LEN..OFFSET_VALUE_LEN + 2].copy_from_slice(&value_len16.to_le_bytes());
        let seq_status = self.seq.0 | (u64::from(self.status as u8) << SEQ_BITS);
        target[OFFSET_SEQ..OFFSET_SEQ + 8].copy_from_slice(&seq_status.to_le_bytes());
        target[OFFSET_EXPIRE_AT..OFFSET_EXPIRE_AT + 8].copy_from_slice(&self.expire_at.to_le_bytes());
        target[HEADER_SIZE..HEADER_SIZE + key_len].copy_from_slice(self.key);
        target[HEADER_SIZE + key_len..].copy_from_slice(self.value);
        let crc = image_crc(shard, slot, target);
        target[OFFSET_CRC..OFFSET_CRC + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Makes images of slots that were never used: they differ by the mark of their place only, so that
/// formatting a slot takes no checksum.
pub(crate) fn free_images(shard: ShardIndex) -> impl Fn(SlotIndex) -> [u8; HEADER_SIZE] {
    let free = Image { seq: Seq::ZERO, status: Status::Free, expire_at: 0, key: &[], value: &[] };
    let mut first = [0; HEADER_SIZE];
    free.write(shard, SlotIndex(0), &mut first);
    let unmarked = read_u32(&first, OFFSET_CRC) ^ place_mark(shard, SlotIndex(0));
    move |slot| {
        let mut image = first;
        let crc = unmarked ^ place_mark(shard, slot);
        image[OFFSET_CRC..OFFSET_CRC + 4].copy_from_slice(&crc.to_le_bytes());
        image
    }
}

/// A checked image.
#[derive(Debug, Clone, Copy)]
pub struct SlotView<'a> {
    image: &'a [u8],
    status: Status,
}

impl<'a> SlotView<'a> {
    /// Checks lengths, capacity, status and CRC. `bytes` may go on behind the image (a whole slot).
    #[inline]
    pub fn check(
        geometry: &Geometry,
        shard: ShardIndex,
        slot: SlotIndex,
        bytes: &'a [u8],
    ) -> Result<Self, SlotError> {
        let view = Self::check_shape(geometry, bytes)?;
        let (found, wanted) = (read_u32(bytes, OFFSET_CRC), image_crc(shard, slot, view.image));
        if found != wanted && !is_planted(Bug::TornSlotAccepted) {
            return Err(SlotError::Checksum { found, wanted });
        }
        Ok(view)
    }

    /// Checks everything but the CRC; for slots whose CRC was checked when the shard was opened
    /// or the image applied, and that only this process has written since.
    #[inline]
    pub(crate) fn check_shape(geometry: &Geometry, bytes: &'a [u8]) -> Result<Self, SlotError> {
        if bytes.len() < HEADER_SIZE {
            return Err(SlotError::Length { found: bytes.len(), wanted: HEADER_SIZE });
        }
        let status = Status::from_bits(bytes[OFFSET_SEQ + 7] >> (SEQ_BITS % 8)).ok_or(SlotError::Status)?;
        let (key, value) = (read_u16(bytes, OFFSET_KEY_LEN), read_u16(bytes, OFFSET_VALUE_LEN));
        if key > geometry.key_size_max || value > geometry.value_size_max {
            return Err(SlotError::Capacity { key, value });
        }
        let wanted = HEADER_SIZE + usize::from(key) + usize::from(value);
        let image = bytes.get(..wanted).ok_or(SlotError::Length { found: bytes.len(), wanted })?;
        Ok(Self { image, status })
    }

    /// The image's bytes: header, key, value.
    #[inline]
    #[must_use]
    pub fn image(&self) -> &'a [u8] {
        self.image
    }

    /// What the slot holds.
    #[inline]
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// Commit number of the slot's last change.
    #[inline]
    #[must_use]
    pub fn seq(&self) -> Seq {
        image_seq(self.image)
    }

    /// Unix ms; 0 = never.
    #[inline]
    #[must_use]
    pub fn expire_at(&self) -> u64 {
        read_u64(self.image, OFFSET_EXPIRE_AT)
    }

    /// Key bytes; of a tombstone, the key it held.
    #[inline]
    #[must_use]
    pub fn key(&self) -> &'a [u8] {
        let key_len = usize::from(read_u16(self.image, OFFSET_KEY_LEN));
        &self.image[HEADER_SIZE..HEADER_SIZE + key_len]
    }

    /// Value bytes.
    #[inline]
    #[must_use]
    pub fn value(&self) -> &'a [u8] {
        let key_len = usize::from(read_u16(self.image, OFFSET_KEY_LEN));
        &self.image[HEADER_SIZE + key_len..]
    }
}

/// One record of a ring or batch: an image that is not checked yet, and its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Where the image belongs.
    pub slot: SlotIndex,
    /// Unchecked image bytes.
    pub image: &'a [u8],
}

/// Why bytes are not a run of whole records.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The run ends inside a record.
    #[error("record states {stated} bytes of image, {left} are left")]
    Cut {
        /// Image length in the record's header (or the header's own size).
        stated: usize,
        /// Bytes there.
        left: usize,
    },
    /// The image length is smaller than a header or larger than a slot.
    #[error("record states {found} bytes of image, wanted {HEADER_SIZE} to {wanted}")]
    Size {
        /// Image length stated.
        found: usize,
        /// Largest image of this geometry.
        wanted: usize,
    },
}

/// Appends a record of an image to `target`.
pub fn push_record(target: &mut Vec<u8>, slot: SlotIndex, image: &[u8]) {
    #[expect(clippy::cast_possible_truncation, reason = "an image is at most 24 + 1024 + 65535 bytes")]
    let len = image.len() as u32;
    target.extend_from_slice(&slot.0.to_le_bytes());
    target.extend_from_slice(&len.to_le_bytes());
    target.extend_from_slice(image);
}

/// Walks the records of a run of bytes; stops after the first error.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    rest: &'a [u8],
    image_size_max: usize,
}

impl<'a> Records<'a> {
    /// Records of stores with this geometry.
    #[must_use]
    pub fn new(geometry: &Geometry, bytes: &'a [u8]) -> Self {
        Self { rest: bytes, image_size_max: geometry.image_size_max() }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, RecordError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.rest);
        if rest.len() < RECORD_HEADER_SIZE {
            return Some(Err(RecordError::Cut { stated: RECORD_HEADER_SIZE, left: rest.len() }));
        }
        let slot = SlotIndex(read_u32(rest, 0));
        let len = read_u32(rest, 4) as usize;
        if len < HEADER_SIZE || len > self.image_size_max {
            return Some(Err(RecordError::Size { found: len, wanted: self.image_size_max }));
        }
        let body = &rest[RECORD_HEADER_SIZE..];
        if len > body.len() {
            return Some(Err(RecordError::Cut { stated: len, left: body.len() }));
        }
        let (image, rest) = body.split_at(len);
        self.rest = rest;
        Some(Ok(Record { slot, image }))
    }
}
