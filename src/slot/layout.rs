//! Sizes, indexes and the layout of a slot. Little-endian throughout.
//!
//! | offset | size | field      | meaning                                                          |
//! |-------:|-----:|------------|------------------------------------------------------------------|
//! |      0 |    4 | crc        | CRC-32C of bytes 4 to the end of the value, XOR a mark of the place |
//! |      4 |    2 | key_len    | bytes of key                                                     |
//! |      6 |    2 | value_len  | bytes of value                                                   |
//! |      8 |    8 | seq+status | seq in the low 62 bits, [`Status`] in the high 2                 |
//! |     16 |    8 | expire_at  | Unix time in milliseconds; 0 = never                             |
//! |     24 |    k | key        |                                                                  |
//! |   24+k |    v | value      | right behind the key, so that an image is one contiguous run     |
//!
//! The CRC is first, so that what it covers is one run of bytes and one call. The mark, slot index +
//! shard index * 0x9E3779B1 (wrapping), makes a slot that was copied to another place damage.

use std::fmt;

/// Bytes of a slot's header.
pub const HEADER_SIZE: usize = 24;
pub(crate) const OFFSET_CRC: usize = 0;
pub(crate) const OFFSET_KEY_LEN: usize = OFFSET_CRC + 4;
pub(crate) const OFFSET_VALUE_LEN: usize = OFFSET_KEY_LEN + 2;
pub(crate) const OFFSET_SEQ: usize = OFFSET_VALUE_LEN + 2;
pub(crate) const OFFSET_EXPIRE_AT: usize = OFFSET_SEQ + 8;
const _: () = assert!(OFFSET_EXPIRE_AT + 8 == HEADER_SIZE);
const _: () = assert!(OFFSET_SEQ.is_multiple_of(8));

/// Largest key capacity a store may have, in bytes.
pub const KEY_SIZE_MAX: u16 = 1024;
/// Largest value capacity a store may have, in bytes.
pub const VALUE_SIZE_MAX: u16 = u16::MAX;
/// Most shards a store may have.
pub const SHARD_COUNT_MAX: u16 = 1024;

/// Position of a shard in its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct ShardIndex(pub u16);

/// Position of a slot in its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize)]
pub struct SlotIndex(pub u32);

impl fmt::Display for ShardIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SlotIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Per-shard commit number: 62 bits, strictly rising, first one is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize)]
pub struct Seq(pub u64);

impl Seq {
    /// Before the first commit.
    pub const ZERO: Self = Self(0);
    /// Largest seq; at a million commits a second it lasts 146,000 years.
    pub const MAX: Self = Self((1 << 62) - 1);

    /// The seq after this one.
    #[must_use]
    pub fn next(self) -> Self {
        assert!(self < Self::MAX, "seq exhausted");
        Self(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a slot holds. Zero is no status, so that a zeroed slot is damage and not "no key".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Formatted, never used.
    Free = 1,
    /// Holds a key and a value.
    Occupied = 2,
    /// Tombstone: held the key it still names; reusable.
    Deleted = 3,
}

impl Status {
    /// The status that two bits mean.
    #[inline]
    #[must_use]
    pub(crate) fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            1 => Some(Self::Free),
            2 => Some(Self::Occupied),
            3 => Some(Self::Deleted),
            _ => None,
        }
    }
}

/// A store's fixed sizes. All its shards share them, and so do its followers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Geometry {
    /// Shards, 1 to [`SHARD_COUNT_MAX`].
    pub shard_count: u16,
    /// Key capacity in bytes, 1 to [`KEY_SIZE_MAX`].
    pub key_size_max: u16,
    /// Value capacity in bytes, 0 to [`VALUE_SIZE_MAX`].
    pub value_size_max: u16,
    /// A key's shard depends on this many leading bits only; 0 = on the whole key, [`HASH_TAGS`] = on its hash tag.
    pub shard_prefix_bits: u16,
}

/// As [`Geometry::shard_prefix_bits`]: what stands between a key's first `{` and the next `}` decides its shard, as in
/// Redis Cluster; the whole key where there is no such thing or nothing in between.
pub const HASH_TAGS: u16 = u16::MAX;

/// Why sizes make no geometry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Shard count out of range.
    #[error("shard count is {found}, wanted 1 to {SHARD_COUNT_MAX}")]
    ShardCount {
        /// What was asked for.
        found: u16,
    },
    /// Key capacity out of range.
    #[error("key size is {found} bytes, wanted 1 to {KEY_SIZE_MAX}")]
    KeySize {
        /// What was asked for.
        found: u16,
    },
    /// More prefix bits than a key has.
    #[error("shard prefix is {found} bits, wanted at most the {wanted} bits of a key")]
    ShardPrefix {
        /// What was asked for.
        found: u16,
        /// Bits of the largest key.
        wanted: u16,
    },
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shard_count, key_size_max, value_size_max, shard_prefix_bits } = self;
        write!(f, "{shard_count} shards, keys of {key_size_max} bytes, values of {value_size_max} bytes")?;
        match *shard_prefix_bits {
            0 => Ok(()),
            HASH_TAGS => write!(f, ", hash tags"),
            bits => write!(f, ", {bits} shard prefix bits"),
        }
    }
}

impl Geometry {
    /// Checks the sizes.
    pub fn check(&self) -> Result<(), GeometryError> {
        if self.shard_count == 0 || self.shard_count > SHARD_COUNT_MAX {
            return Err(GeometryError::ShardCount { found: self.shard_count });
        }
        if self.key_size_max == 0 || self.key_size_max > KEY_SIZE_MAX {
            return Err(GeometryError::KeySize { found: self.key_size_max });
        }
        let key_bits = self.key_size_max * 8;
        if self.shard_prefix_bits > key_bits && !self.has_hash_tags() {
            return Err(GeometryError::ShardPrefix { found: self.shard_prefix_bits, wanted: key_bits });
        }
        Ok(())
    }

    /// Whether keys with one hash tag share a shard.
    #[inline]
    #[must_use]
    pub fn has_hash_tags(&self) -> bool {
        self.shard_prefix_bits == HASH_TAGS
    }

    /// Leading bits that decide a key's shard; 0 where more than these do.
    #[must_use]
    pub fn prefix_bits(&self) -> u16 {
        if self.has_hash_tags() { 0 } else { self.shard_prefix_bits }
    }

    /// Bytes of the largest image: header, key capacity, value capacity.
    #[must_use]
    pub fn image_size_max(&self) -> usize {
        HEADER_SIZE + usize::from(self.key_size_max) + usize::from(self.value_size_max)
    }

    /// Bytes from one slot to the next: the largest image, padded to 8.
    #[must_use]
    pub fn slot_stride(&self) -> usize {
        self.image_size_max().next_multiple_of(8)
    }
}
