//! Records by the slots that they lie in: counting and visiting them, deleting them all, sweeping those that expired.

use crate::slot::{ShardIndex, SlotIndex, SlotView, Status};

use super::{Entry, ReadError, Store, WriteError};

impl Store {
    /// Records, expired ones that are not removed yet included.
    #[must_use]
    pub fn len(&self) -> u64 {
        let of_shard = |shard| {
            let locked = self.shared(shard);
            let landed = locked.shard.counts().occupied;
            // A holder sees what it has made itself.
            let is_mine = self.log_first && self.cell(shard).is_mine();
            if is_mine { locked.len_made(self, shard) } else { landed }
        };
        self.shards().map(of_shard).sum()
    }

    /// Whether there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Visits the records, under the shard's lock (`f` must not call the store), of at most `slots_max` slots from `from` on; says where to go on, `None` at
    /// the end. A record that is there throughout a visit of all slots is visited; one that moves may
    /// be visited twice.
    pub fn visit(
        &self,
        shard: ShardIndex,
        from: SlotIndex,
        slots_max: u32,
        mut f: impl FnMut(Entry<'_>),
    ) -> Result<Option<SlotIndex>, ReadError> {
        let locked = self.shared(shard);
        let end = locked.shard.slots_formatted();
        let stop = from.0.saturating_add(slots_max).min(end);
        for slot in (from.0..stop).map(SlotIndex) {
            let damaged = |error| ReadError::Damaged { shard, slot, error };
            let view = locked.shard.view(slot).map_err(damaged)?;
            if view.status() == Status::Occupied && !self.is_expired(view.expire_at()) {
                f(view.into());
            }
        }
        Ok((stop < end).then_some(SlotIndex(stop)))
    }

    /// Deletes every record, as ordinary changes, and what damaged slots may hold; says how many records.
    pub fn clear(&self) -> Result<u64, WriteError> {
        let is_held = self.may_write_held();
        if self.is_read_only() && !is_held {
            return Err(self.refusal());
        }
        let mut deleted = 0;
        // Keys that wait are none of the records yet.
        if is_held {
            for shard in self.shards() {
                deleted += self.delete_waiting(shard)?;
            }
        } else {
            self.settle_call()?;
        }
        let delete_all = |shard| self.delete_where(shard, SlotIndex(0), u32::MAX, |_| true).0;
        deleted += self.shards().map(delete_all).sum::<u64>();
        for shard in self.shards() {
            self.bury_all_damaged(shard)?;
        }
        self.settle_if_called(deleted)
    }

    /// Deletes expired records among at most `slots_max` slots from `from` on; says how many, and where
    /// to go on. Only for a leader: a follower gets the deletions from it.
    pub fn sweep(&self, shard: ShardIndex, from: SlotIndex, slots_max: u32) -> (u64, Option<SlotIndex>) {
        if self.is_read_only() {
            return (0, None);
        }
        let now = self.clock.unix_ms();
        let is_due = |view: &SlotView<'_>| view.expire_at() != 0 && view.expire_at() <= now;
        let (deleted, next) = self.delete_where(shard, from, slots_max, is_due);
        if deleted > 0 {
            self.exclusive(shard).expired += deleted;
        }
        (deleted, next)
    }

    fn delete_where(
        &self,
        shard: ShardIndex,
        from: SlotIndex,
        slots_max: u32,
        is_due: impl Fn(&SlotView<'_>) -> bool,
    ) -> (u64, Option<SlotIndex>) {
        // Other writers get their turn between two steps.
        const STEP_SLOTS: u32 = 256;
        let (mut next, mut deleted, mut key) = (from, 0, Vec::new());
        let last = from.0.saturating_add(slots_max);
        loop {
            let Ok(mut locked) = self.writable(shard) else { return (deleted, None) };
            let end = locked.shard.slots_formatted().min(last);
            let stop = next.0.saturating_add(STEP_SLOTS).min(end);
            for slot in (next.0..stop).map(SlotIndex) {
                // A damaged slot is not known to hold what it seems to: leave it for a reader to report.
                let Ok(view) = locked.shard.view(slot) else { continue };
                if view.status() == Status::Occupied && is_due(&view) {
                    key.clear();
                    key.extend_from_slice(view.key());
                    let is_live = !self.is_expired(view.expire_at());
                    // What waits for its key is newer than what is looked at here.
                    if locked.shard.pending(&key).is_none() {
                        let hash = self.geometry.place(&key).hash;
                        locked.remove(hash, slot, &key);
                        if is_live {
                            locked.note_deletion(hash);
                        }
                        deleted += 1;
                    }
                }
            }
            next = SlotIndex(stop);
            if stop >= end {
                return (deleted, (stop < locked.shard.slots_formatted()).then_some(next));
            }
        }
    }
}
