//! Where a key belongs: its shard, and its hash within the shard's index.
//!
//! Shards are chosen by XXH3-64, which is specified and stable, because a key's shard is on disk and
//! on the wire. The index uses the low half of the same hash; a shard's digest keeps most of it, with a version.

use xxhash_rust::xxh3::xxh3_64;

use super::layout::{Geometry, HASH_TAGS, KEY_SIZE_MAX, ShardIndex};

/// A key's shard and index hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The shard that holds the key.
    pub shard: ShardIndex,
    /// Hash for the shard's index. Its low two bits are set: so it is never zero, which is an empty entry
    /// there, and what is kept of it on disk has two bits to spare.
    pub hash: u32,
}

impl Geometry {
    /// Where `key` belongs.
    #[inline]
    #[must_use]
    pub fn place(&self, key: &[u8]) -> Place {
        let hash = xxh3_64(key);
        let routing = match self.shard_prefix_bits {
            0 => hash,
            HASH_TAGS if !key.contains(&b'{') => hash,
            HASH_TAGS => hash_tag(key).map_or(hash, xxh3_64),
            _ => self.prefix_hash(key),
        };
        // The high half chooses the shard, the low half the bucket: they must not be the same bits.
        let shard = ((routing >> 32) * u64::from(self.shard_count)) >> 32;
        #[expect(clippy::cast_possible_truncation, reason = "below shard_count, and the low half of a hash")]
        let place = Place { shard: ShardIndex(shard as u16), hash: hash as u32 | 0b11 };
        place
    }

    #[cold]
    fn prefix_hash(&self, key: &[u8]) -> u64 {
        let bits = usize::from(self.shard_prefix_bits);
        let whole = bits / 8;
        if key.len() * 8 <= bits || key.len() > usize::from(KEY_SIZE_MAX) {
            return xxh3_64(key);
        }
        let mut prefix = [0; KEY_SIZE_MAX as usize];
        prefix[..whole].copy_from_slice(&key[..whole]);
        if bits % 8 == 0 {
            return xxh3_64(&prefix[..whole]);
        }
        prefix[whole] = key[whole] & !(0xFF >> (bits % 8));
        xxh3_64(&prefix[..=whole])
    }
}

/// What stands between a key's first brace and the one that closes it, if anything does.
#[cold]
fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|byte| *byte == b'{')?;
    let rest = &key[open + 1..];
    let close = rest.iter().position(|byte| *byte == b'}')?;
    (close > 0).then(|| &rest[..close])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(shard_count: u16, shard_prefix_bits: u16) -> Geometry {
        Geometry { shard_count, key_size_max: 32, value_size_max: 8, shard_prefix_bits }
    }

    #[test]
    fn placement_is_stable_because_it_is_on_disk() {
        let place = geometry(1024, 0).place(b"user:1");
        assert_eq!(xxh3_64(b""), 0x2D06_8005_38D3_94C2, "XXH3-64 of nothing, from its specification");
        assert_eq!(place, geometry(1024, 0).place(b"user:1"));
        assert_eq!(geometry(1, 0).place(b"anything").shard, ShardIndex(0));
    }

    #[test]
    fn keys_spread_over_all_shards() {
        let geometry = geometry(64, 0);
        let mut counts = [0; 64];
        for number in 0..64_000_u32 {
            counts[usize::from(geometry.place(&number.to_le_bytes()).shard.0)] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }

    #[test]
    fn keys_with_one_prefix_share_a_shard() {
        let geometry = geometry(1024, 20);
        let shard = geometry.place(&[1, 2, 0x30, 9]).shard;
        assert_eq!(geometry.place(&[1, 2, 0x3F, 1, 1, 1]).shard, shard, "bits behind the 20th do not count");
        assert_ne!(geometry.place(&[1, 2, 0x40, 9]).shard, shard, "the 20th bit counts");
        assert_ne!(geometry.place(&[1, 2, 0x30, 9]).hash, geometry.place(&[1, 2, 0x3F, 9]).hash);
    }

    #[test]
    fn keys_with_one_hash_tag_share_a_shard() {
        let (tags, whole) = (geometry(1024, HASH_TAGS), geometry(1024, 0));
        let shard = |key: &str| tags.place(key.as_bytes()).shard;
        // The examples of Redis Cluster's specification.
        for (key, tag) in [
            ("{user1000}.following", Some("user1000")),
            ("{user1000}.followers", Some("user1000")),
            ("foo{}{bar}", None),
            ("foo{{bar}}zap", Some("{bar")),
            ("foo{bar}{zap}", Some("bar")),
            ("{}", None),
            ("{", None),
            ("}{", None),
            ("}{a}", Some("a")),
            ("{open", None),
            ("plain", None),
            ("", None),
        ] {
            assert_eq!(hash_tag(key.as_bytes()), tag.map(str::as_bytes), "{key}");
            assert_eq!(shard(key), whole.place(tag.unwrap_or(key).as_bytes()).shard, "{key}");
            // The place in the index is the whole key's.
            assert_eq!(tags.place(key.as_bytes()).hash, whole.place(key.as_bytes()).hash, "{key}");
        }
        let long = [&[b'x'; 500][..], b"{tag}", &[b'y'; 500]].concat();
        assert_eq!(tags.place(&long).shard, shard("tag"));
    }
}
