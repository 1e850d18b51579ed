//! Checking slots in the background of a store that came back without a look at them.

use std::sync::atomic::Ordering;

use crate::shard::Doubt;
use crate::shard::audit::Fault;
use crate::slot::{ShardIndex, SlotIndex};

use super::Store;

/// What a step of an audit came to.
#[derive(Debug, Default)]
pub struct Audit {
    /// Where to go on; none at the end.
    pub next: Option<SlotIndex>,
    /// What was wrong, and is set aside or put right now.
    pub faults: Vec<(SlotIndex, Fault)>,
}

impl Store {
    /// Why the shard's index was made from its slots when it was opened; none if it was not, so that the
    /// slots have yet to be looked at.
    #[must_use]
    pub fn doubt(&self, shard: ShardIndex) -> Option<Doubt> {
        self.shared(shard).shard.doubt()
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
