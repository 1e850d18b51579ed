//! What looks at the whole store: KEYS and RANDOMKEY.

use super::super::error::CommandError;
use super::super::glob;
use super::super::reply::Reply;
use super::strings::REPLY_BYTES_MAX;
use super::{Call, Flow};
use crate::chance::{Chance, SystemChance};
use crate::slot::{ShardIndex, SlotIndex};
use crate::store::{ReadError, Store};

type Outcome = Result<Flow, CommandError>;

/// Slots looked at under one hold of a shard's lock.
const SLOTS_PER_VISIT: u32 = 256;

/// `KEYS pattern`; the reply is made as a whole, so that its size is bounded: SCAN has no such bound.
pub(in crate::resp) fn keys(call: &mut Call<'_>) -> Outcome {
    let pattern = Some(call.args.at(1)).filter(|pattern| *pattern != b"*");
    let store = call.store();
    let (mut keys, mut found) = (Reply::default(), 0);
    for shard in store.shards() {
        let mut next = Some(SlotIndex(0));
        while let Some(slot) = next {
            next = store.visit(shard, slot, SLOTS_PER_VISIT, |entry| {
                if pattern.is_none_or(|pattern| glob::matches(pattern, entry.key, false)) {
                    keys.bulk(entry.key);
                    found += 1;
                }
            })?;
            if call.reply.len() + keys.len() > REPLY_BYTES_MAX {
                let text = format!("ERR the reply is larger than {REPLY_BYTES_MAX} bytes; use SCAN");
                return Err(CommandError::Text(text.into()));
            }
        }
    }
    call.reply.array(found);
    call.reply.raw(keys.as_bytes());
    Ok(Flow::Done)
}

/// The first key at a place or behind it, up to the end of the shard.
fn first_key(store: &Store, shard: ShardIndex, from: SlotIndex) -> Result<Option<Vec<u8>>, ReadError> {
    let (mut key, mut next) = (None, Some(from));
    // Slot by slot where the next one is likely to be a record.
    let mut step = 1;
    while let Some(slot) = next.filter(|_| key.is_none()) {
        next = store.visit(shard, slot, step, |entry| {
            key.get_or_insert_with(|| entry.key.to_vec());
        })?;
        step = (step * 2).min(SLOTS_PER_VISIT);
    }
    Ok(key)
}

/// A key whose slot follows a place that is chosen at random; `None` = there is no record.
fn random_key(store: &Store, mut random: u64) -> Result<Option<Vec<u8>>, ReadError> {
    /// Places tried for a slot that holds a record: then all keys are equally likely.
    const TRIES: usize = 64;
    let sizes: Vec<_> = store.shards().map(|shard| (shard, store.stats(shard).slots_formatted)).collect();
    let total: u64 = sizes.iter().map(|(_, slots)| slots).sum();
    let mut place = (ShardIndex(0), SlotIndex(0));
    for _ in 0..TRIES {
        // Knuth's constants; the upper bits are the good ones.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut at = (random >> 16) % total.max(1);
        for (shard, slots) in &sizes {
            if at < *slots {
                place = (*shard, SlotIndex(u32::try_from(at).unwrap_or(u32::MAX)));
                break;
            }
            at -= slots;
        }
        let mut key = None;
        store.visit(place.0, place.1, 1, |entry| key = Some(entry.key.to_vec()))?;
        if key.is_some() {
            return Ok(key);
        }
    }
    // Few records in many slots: the next one, whichever comes.
    let after = (place.0.0..store.geometry().shard_count).map(ShardIndex);
    let before = (0..=place.0.0).map(ShardIndex);
    for (nth, shard) in after.chain(before).enumerate() {
        let from = if nth == 0 { place.1 } else { SlotIndex(0) };
        if let Some(key) = first_key(store, shard, from)? {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

/// `RANDOMKEY`
pub(in crate::resp) fn randomkey(call: &mut Call<'_>) -> Outcome {
    match random_key(call.store(), SystemChance.next())? {
        Some(key) => call.reply.bulk(&key),
        None => call.reply.null(),
    }
    Ok(Flow::Done)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::slot::Geometry;
    use crate::store::Options;

    #[test]
    fn every_key_is_a_random_key_and_of_many_each_about_as_often() {
        let geometry =
            Geometry { shard_count: 3, key_size_max: 16, value_size_max: 16, shard_prefix_bits: 0 };
        let store = Store::open(Path::new("unused"), Options::memory(geometry, 1 << 12)).unwrap();
        assert_eq!(random_key(&store, 1).unwrap(), None);
        // One record in thousands of slots that once held others.
        let keys: Vec<String> = (0..3000).map(|index| index.to_string()).collect();
        for key in &keys {
            store.put(key.as_bytes(), b"").unwrap();
        }
        for key in &keys[1..] {
            assert!(store.delete(key.as_bytes()).unwrap());
        }
        for random in 0..50 {
            assert_eq!(random_key(&store, random).unwrap().as_deref(), Some(&b"0"[..]));
        }
        for key in &keys[..1000] {
            store.put(key.as_bytes(), b"").unwrap();
        }
        let drawn: BTreeSet<_> =
            (0..10_000).map(|random| random_key(&store, random).unwrap().unwrap()).collect();
        // Of 1,000 keys drawn 10,000 times each is missing with a chance of 1 in 22,000.
        assert!(drawn.len() > 950, "{}", drawn.len());
    }
}
