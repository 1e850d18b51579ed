//! Checking slots in the background of a store that came back without a look at them.

use std::sync::atomic::Ordering;

use crate::shard::Doubt;
use crate::shard::audit::Fault;
use crate::slot::{ShardIndex, SlotError, SlotIndex};

use super::{Locked, Store, WriteError};

/// What a step of an audit came to.
#[derive(Debug, Default)]
pub struct Audit {
    /// Where to go on; none at the end.
    pub next: Option<SlotIndex>,
    /// What was wrong, and is set aside or put right now.
    pub faults: Vec<(SlotIndex, Fault)>,
}

impl Locked {
    fn bury(&mut self, slot: SlotIndex, key: &[u8]) {
        let record = self.shard.bury_damaged(slot, key);
        self.log.push(record);
        for ring in self.rings.get_mut() {
            ring.push(record);
        }
        self.deletes += 1;
    }
}

impl Store {
    /// Why the shard's index was made from its slots when it was opened; none if it was not, so that the
    /// slots have yet to be looked at.
    #[must_use]
    pub fn doubt(&self, shard: ShardIndex) -> Option<Doubt> {
        self.shared(shard).shard.doubt()
    }

    /// A slot that was found damaged, and not healed since.
    #[must_use]
    pub fn first_damaged(&self, shard: ShardIndex) -> Option<(SlotIndex, SlotError)> {
        self.shared(shard).shard.damaged().first().cloned()
    }

    /// Deletes a key whose slot is known to be damaged; false if none of these is its slot.
    pub(super) fn bury_damaged(&self, key: &[u8]) -> Result<bool, WriteError> {
        let place = self.geometry.place(key);
        let mut locked = self.calm(place.shard)?;
        let Some(slot) = locked.shard.damaged_holder(place.hash) else { return Ok(false) };
        locked.bury(slot, key);
        Ok(true)
    }

    /// Makes tombstones of all damaged slots of a shard, whatever they held.
    pub(super) fn bury_all_damaged(&self, shard: ShardIndex) -> Result<(), WriteError> {
        if self.first_damaged(shard).is_none() {
            return Ok(());
        }
        let mut locked = self.calm(shard)?;
        let damaged: Vec<_> = locked.shard.damaged().iter().map(|(slot, _)| *slot).collect();
        damaged.into_iter().for_each(|slot| locked.bury(slot, &[]));
        Ok(())
    }

    /// Looks at `slots_max` slots from `from` on, beside readers, and mends what is wrong.
    pub fn audit(&self, shard: ShardIndex, from: SlotIndex, slots_max: u32) -> Audit {
        let locked = self.shared(shard);
        let end = locked.shard.slots_formatted();
        let stop = from.0.saturating_add(slots_max).min(end);
        let has_fault = |slot: &SlotIndex| locked.shard.fault(*slot).is_some();
        let suspects: Vec<_> = (from.0..stop).map(SlotIndex).filter(has_fault).collect();
        locked.audited.fetch_add(u64::from(stop.saturating_sub(from.0)), Ordering::Relaxed);
        drop(locked);
        let mut audit = Audit { next: (stop < end).then_some(SlotIndex(stop)), faults: Vec::new() };
        if !suspects.is_empty() {
            let mut locked = self.exclusive(shard);
            for slot in suspects {
                // Looked at again: a writer may have been there between the two locks.
                let Some(fault) = locked.shard.fault(slot) else { continue };
                if let Err(error) = locked.shard.mend(slot, &fault) {
                    tracing::error!(%shard, %slot, %error, "no memory to index a slot");
                }
                locked.mended += u64::from(fault == Fault::Misfit);
                audit.faults.push((slot, fault));
            }
        }
        audit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::Seq;
    use crate::store::tests::{assert_equal, geometry, memory, reopened, sync};

    /// A store of ten records, the third of which is damaged; what was kept of it is there, or not.
    fn with_damage(is_known: bool) -> Store {
        let store = memory(1, 100);
        for key in 0..10_u8 {
            store.put(&[key], b"value").unwrap();
        }
        let mut files = store.shared(ShardIndex(0)).shard.copy_files();
        let slot = crate::shard::header::slots_offset(&geometry(1)) + 2 * geometry(1).slot_stride();
        files.slots.bytes_mut(slot + 24, 1)[0] ^= 1;
        let mut store = reopened(files.slots, is_known.then_some(files.digest));
        if is_known {
            assert_eq!((store.doubt(ShardIndex(0)), store.damaged().len()), (None, 0));
            assert_eq!(store.audit(ShardIndex(0), SlotIndex(0), u32::MAX).faults.len(), 1);
            store = store.reopen_in_memory().unwrap();
        }
        assert_eq!((store.damaged().len(), store.len()), (1, 9));
        assert!(
            store
                .scan_next(ShardIndex(0), &mut store.scan(ShardIndex(0), Seq::ZERO), &mut Vec::new(), 9999)
                .is_err()
        );
        store
    }

    #[test]
    fn a_key_that_a_damaged_slot_may_hold_is_never_called_absent() {
        for is_known in [true, false] {
            let store = with_damage(is_known);
            let is_error = |key: u8| store.get(&[key]).is_err();
            assert!(is_error(2) && store.contains(&[2]).is_err() && store.increment(&[2], 1).is_err());
            assert!(store.get_batch(&[[1], [2]], |_, _| {}).is_err());
            for key in [0, 1, 3, 9] {
                assert_eq!(store.get(&[key]).unwrap().as_deref(), Some(&b"value"[..]));
            }
            // Whether an absent key was in that slot can be told only if what it held is known.
            assert_eq!(is_error(77), !is_known);
            store.put(&[77], b"new").unwrap();
            assert!(store.delete(&[77]).unwrap());
            assert_eq!(is_error(77), !is_known);
            store.check().unwrap();
        }
    }

    #[test]
    fn a_write_of_its_key_heals_a_damaged_slot_and_so_does_clearing_the_store() {
        let heal: [fn(&Store) -> bool; 3] = [
            |store| store.put(&[2], b"new").is_ok(),
            |store| store.delete(&[2]) == Ok(true),
            |store| store.clear() == Ok(9),
        ];
        for (way, heal) in heal.into_iter().enumerate() {
            for is_known in [true, false] {
                let store = with_damage(is_known);
                let heals = is_known || way == 2;
                // Where it is not known that the slot held the key, a new record goes elsewhere.
                assert!(heal(&store) || !is_known);
                assert_eq!(store.damaged().is_empty(), heals, "way {way}, known {is_known}");
                store.check().unwrap();
                let store = store.reopen_in_memory().unwrap();
                assert_eq!((store.doubt(ShardIndex(0)), store.damaged().is_empty()), (None, heals));
                if heals {
                    assert_eq!(store.get(&[2]).unwrap().as_deref(), (way == 0).then_some(&b"new"[..]));
                    assert_eq!(store.get(&[99]).unwrap(), None);
                    let follower = memory(1, 100);
                    sync(&store, &follower, ShardIndex(0), Seq::ZERO);
                    assert_equal(&store, &follower);
                    follower.check().unwrap();
                }
                store.check().unwrap();
            }
        }
    }
}
