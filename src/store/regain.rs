//! What a leader's store lost in an OS crash, and gets back from followers before it takes writes.
//!
//! While the store *regains*, it is read-only, its shards have not taken their new term, and what comes from
//! followers is applied as a leader's images are: an image newer than its slot's own wins. All of them are of
//! the one history that ended in the crash, in which a seq names one change; so it does not matter in
//! what order several followers send, or where one of them stops.

use std::io;
use std::sync::atomic::Ordering;

use crate::planted::{Bug, is_planted};
use crate::slot::{Records, Seq, ShardIndex, SlotIndex};

use super::directory::shard_file;
use super::{Applied, ApplyError, Store, SyncError};

/// What became of records that a follower gave back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivenBack {
    /// What was done with them.
    pub applied: Applied,
    /// One behind the last one's slot.
    pub next: SlotIndex,
}

/// A shard's new term is not durable. The process must end: who tries again is told that all is well, and it
/// is not.
#[derive(Debug, thiserror::Error)]
pub enum RegainError {
    /// The system said so.
    #[error("{}: what came back after a crash, and the new term, could not be made durable: {error}", shard_file(*shard))]
    Sync {
        /// The shard.
        shard: ShardIndex,
        /// What the system said.
        error: io::Error,
    },
    /// The log that covers what came back is not durable.
    #[error("the log of what came back after a crash: {0}")]
    Log(SyncError),
    /// It was tried before.
    #[error(
        "a shard that waited for what a crash took could not be made durable before: it is not tried again"
    )]
    Failed,
}

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
    pub fn give_back(&self, shard: ShardIndex, records: &[u8]) -> Result<Option<GivenBack>, ApplyError> {
        let mut locked = self.applicable(shard, SlotIndex(0))?;
        if !locked.shard.takes_back() {
            return Ok(None);
        }
        let (mut applied, mut next) = (Applied::default(), SlotIndex(0));
        for record in Records::new(&self.geometry, records) {
            let record = record?;
            let hash = locked.shard.prefetch_apply(&record);
            let super::Locked { shard, log, .. } = &mut *locked;
            let was_newer = shard.apply(record, hash)?;
            if was_newer {
                log.push(shard.last_record());
            }
            *(if was_newer { &mut applied.applied } else { &mut applied.skipped }) += 1;
            next = SlotIndex(record.slot.0 + 1);
        }
        Ok(Some(GivenBack { applied, next }))
    }

    /// A follower that holds everything up to `through` has sent all that is newer than what was held. False:
    /// the shard takes nothing back any more, and some of that came too late.
    #[must_use]
    pub fn regained(&self, shard: ShardIndex, through: Seq) -> bool {
        let mut locked = self.exclusive(shard);
        let takes_back = locked.shard.takes_back();
        if takes_back {
            locked.shard.regained(through);
        }
        takes_back
    }

    /// All that was to be had has come: shards take their new term, durably. The store stays read-only.
    /// After an error it regains for good.
    pub fn end_regain(&self) -> Result<(), RegainError> {
        // One at a time: a sync that fails is told to one caller, and the other one's would say that all is well.
        let mut has_failed = self.regain_failed.lock();
        if !self.is_regaining() {
            return Ok(());
        }
        if *has_failed {
            return Err(RegainError::Failed);
        }
        let taken = self.take_terms();
        *has_failed = taken.is_err();
        taken
    }

    fn take_terms(&self) -> Result<(), RegainError> {
        let term_id = self.chance.next();
        for shard in self.shards() {
            self.exclusive(shard).shard.close_regain();
            // Readers go on meanwhile: a whole file may be dirty.
            let synced =
                if is_planted(Bug::RegainedNotSynced) { Ok(()) } else { self.cell(shard).slots.sync() };
            let taken = synced.and_then(|()| self.exclusive(shard).shard.end_regain(self.host, term_id));
            taken.map_err(|error| RegainError::Sync { shard, error })?;
        }
        // Before a seq is given out: how far they go is reserved from what is durable.
        self.sync_log().map_err(RegainError::Log)?;
        self.shards().for_each(|shard| self.exclusive(shard).shard.forget_reserved());
        self.regaining.store(false, Ordering::Release);
        Ok(())
    }

    /// Takes writes after [`Store::end_regain`], unless somebody has stopped them since the store was opened.
    pub fn begin_writes(&self) {
        let was_stopped = self.was_stopped.lock();
        if !*was_stopped {
            self.set_read_only(false);
        }
    }

    /// Takes writes again after [`Store::stop_writes`], if `may_write`. Who makes that false, and stops writes after
    /// that, is heeded: the lock lets one of both see what the other has done.
    pub fn resume_writes(&self, may_write: impl FnOnce() -> bool) {
        let _was_stopped = self.was_stopped.lock();
        if may_write() {
            self.set_read_only(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::slot::{Seq, ShardIndex};
    use crate::store::tests::memory;

    /// What comes during the sync may not be durable after it, and the new term would say that it is.
    #[test]
    fn nothing_is_taken_back_from_the_moment_before_the_sync() {
        for is_in_time in [true, false] {
            let (store, shard) = (memory(1, 16), ShardIndex(0));
            store.keep_disks();
            store.put(b"key", b"value").unwrap();
            let (mut scan, mut records) = (store.scan(shard, Seq::ZERO), Vec::new());
            while store.scan_next(shard, &mut scan, &mut records, usize::MAX).unwrap() {}
            let store = store.reopen_after_power_cut().unwrap();
            assert!(store.is_regaining());
            if !is_in_time {
                store.exclusive(shard).shard.close_regain();
            }
            assert_eq!(store.give_back(shard, &records).unwrap().is_some(), is_in_time);
            assert_eq!(store.regained(shard, Seq(1)), is_in_time);
            assert_eq!(store.tail(shard), Some(Seq(u64::from(is_in_time))));
            store.end_regain().unwrap();
            assert_eq!(store.get(b"key").unwrap().is_some(), is_in_time);
            assert_eq!(store.lineage(shard).last().unwrap().first_seq, 1 + u64::from(is_in_time));
        }
    }
}
