//! What a leader's store lost in an OS crash, and gets back from followers before it takes writes.
//!
//! While the store *regains*, it is read-only, its shards have not taken their new term, and what comes from
//! followers is applied as a leader's images are: an image newer than its slot's own wins. All of them are of
//! the one history that ended in the crash, in which a seq names one change; so it does not matter in
//! what order several followers send, or where one of them stops.

use std::io;
use std::sync::atomic::Ordering;

use crate::slot::{Records, Seq, ShardIndex, SlotIndex};

use super::{Applied, ApplyError, Store};

impl Store {
    /// Whether followers are to be asked for what an OS crash took, before this leader takes writes.
    #[must_use]
    pub fn is_regaining(&self) -> bool {
        self.regaining.load(Ordering::Acquire)
    }

    /// Everything up to here is held by a shard that regains its tail; `None`: it misses nothing.
    #[must_use]
    pub fn tail(&self, shard: ShardIndex) -> Option<Seq> {
        self.shared(shard).shard.tail()
    }

    /// Applies a run of whole records that a follower gives back; `None`: the shard waits for them no longer.
    pub fn give_back(&self, shard: ShardIndex, records: &[u8]) -> Result<Option<Applied>, ApplyError> {
        let mut locked = self.applicable(shard, SlotIndex(0))?;
        if locked.shard.tail().is_none() {
            return Ok(None);
        }
        let mut applied = Applied::default();
        for record in Records::new(&self.geometry, records) {
            let record = record?;
            let hash = locked.shard.prefetch_apply(&record);
            let super::Locked { shard, log, .. } = &mut *locked;
            let was_newer = shard.apply(record, hash)?;
            if was_newer {
                log.push(shard.last_record());
            }
            *(if was_newer { &mut applied.applied } else { &mut applied.skipped }) += 1;
        }
        Ok(Some(applied))
    }

    /// A follower that holds everything up to `through` has sent all that is newer than what was held.
    pub fn regained(&self, shard: ShardIndex, through: Seq) {
        self.exclusive(shard).shard.regained(through);
    }

    /// All that was to be had has come: shards take their new term, durably. The store stays read-only.
    pub fn end_regain(&self) -> io::Result<()> {
        if !self.is_regaining() {
            return Ok(());
        }
        let term_id = self.chance.next();
        for shard in self.shards() {
            self.exclusive(shard).shard.end_regain(self.host, term_id)?;
        }
        // Before a seq is given out: how far they go is reserved from what is durable.
        self.sync_log().map_err(io::Error::other)?;
        self.shards().for_each(|shard| self.exclusive(shard).shard.forget_reserved());
        self.regaining.store(false, Ordering::Release);
        Ok(())
    }
}
