//! What a shard says of itself beside its slots is durable before anything is done in its name.
//!
//! That it follows: before it takes its first record. Its leader's newer history, and the epoch in it: before a record of
//! that is taken, or acknowledged. That it is being rewound: before that, since nobody could tell the slots in
//! question after it. Otherwise a power cut leaves slots that no header explains: a follower would take
//! itself for a leader, an older epoch for the newest, or what is not its leader's for what is.
//!
//! These are events, not batches: a few syncs of two pages when a role or a leader changes.

use std::io;
use std::sync::atomic::Ordering;

use crate::planted::{Bug, is_planted};
use crate::slot::{Seq, ShardIndex};

use super::directory::shard_file;
use super::regain::RegainError;
use super::{Store, SyncError, Term};

/// What a shard is, or went through, is not durable. Where [`Store::has_failed_sync`] the process must end: who tries
/// again is told that all is well, and it is not.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The system said so.
    #[error("{}: role and history cannot be made durable: {error}", shard_file(*shard))]
    Sync {
        /// The shard.
        shard: ShardIndex,
        /// What the system said.
        error: io::Error,
    },
    /// The log's word on the shard is not durable.
    #[error("the log of role and history: {0}")]
    Log(SyncError),
    /// What came back after a crash is not durable.
    #[error(transparent)]
    Regain(#[from] RegainError),
    /// It was tried before.
    #[error("a shard's role or history could not be made durable before: it is not tried again")]
    Failed,
}

impl Store {
    /// Makes a store follow: it is read-only from now on, and what has led holds everything up to
    /// its head, in its own epoch. Whether the new leader shares all of that is the leader's to say.
    ///
    /// After an error some shards follow, and the process must end.
    pub fn demote(&self) -> Result<(), HistoryError> {
        self.stop_writes();
        if self.has_pending() {
            // The log has failed or has no space, or else what waits for it has landed.
            self.sync_history_log()?;
        }
        self.end_regain()?;
        self.check_synced()?;
        self.demotions.fetch_add(1, Ordering::Relaxed);
        let leading: Vec<_> = self.shards().filter(|shard| self.shared(*shard).shard.leads()).collect();
        if leading.is_empty() {
            return Ok(());
        }
        let has_led = leading.iter().any(|shard| self.head(*shard) > Seq::ZERO);
        for shard in leading {
            let demoted = self.exclusive(shard).shard.demote(has_led);
            demoted.map_err(|error| self.failed(shard, error))?;
        }
        self.sync_history_log()
    }

    /// Takes over the leader's lineage, durably, if it is another one.
    pub fn follow_lineage(&self, shard: ShardIndex, lineage: &[Term]) -> Result<(), HistoryError> {
        self.check_synced()?;
        let is_new = self.exclusive(shard).shard.set_lineage(lineage);
        // What a log without space did not take is not done because the shard knows it by now.
        let is_owed = self.history_owed.load(Ordering::Acquire) > 0;
        if !(is_new || is_owed) || is_planted(Bug::LineageNotSynced) {
            return Ok(());
        }
        let sync = || {
            // Readers go on meanwhile.
            self.shared(shard).shard.sync_header()?;
            self.exclusive(shard).shard.write_state();
            self.shared(shard).shard.sync_header()
        };
        sync().map_err(|error| self.failed(shard, error))?;
        self.sync_history_log()
    }

    /// Makes it durable that the shard is being rewound.
    pub(super) fn sync_rewind(&self, shard: ShardIndex) -> Result<(), HistoryError> {
        self.check_synced()?;
        if is_planted(Bug::RewindNotSynced) {
            return Ok(());
        }
        self.shared(shard).shard.sync_header().map_err(|error| self.failed(shard, error))?;
        self.sync_history_log()
    }

    /// The log's word on a shard counts after a power cut. A log without space may be asked again.
    fn sync_history_log(&self) -> Result<(), HistoryError> {
        let owed = self.history_owed.fetch_add(1, Ordering::AcqRel) + 1;
        self.sync_log().map_err(|error| {
            if !error.is_full() {
                self.note_failed_sync();
            }
            HistoryError::Log(error)
        })?;
        // Whoever owes more by now may have changed something behind this sync, and is not done with it.
        let (order, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
        if self.history_owed.compare_exchange(owed, 0, order, relaxed).is_err() {
            tracing::debug!("another shard's history is made durable at the same time");
        }
        Ok(())
    }

    /// Whether a role or history could not be made durable: the process must end.
    #[must_use]
    pub fn has_failed_sync(&self) -> bool {
        self.sync_failed.load(Ordering::Acquire)
    }

    pub(super) fn note_failed_sync(&self) {
        self.sync_failed.store(true, Ordering::Release);
    }

    pub(super) fn check_synced(&self) -> Result<(), HistoryError> {
        if self.has_failed_sync() { Err(HistoryError::Failed) } else { Ok(()) }
    }

    fn failed(&self, shard: ShardIndex, error: io::Error) -> HistoryError {
        self.note_failed_sync();
        HistoryError::Sync { shard, error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::Geometry;
    use crate::store::{Options, Progress, Step, WriteError};

    #[test]
    fn a_store_that_has_led_follows_from_its_own_head() {
        let geometry = Geometry { shard_count: 2, key_size_max: 8, value_size_max: 8, shard_prefix_bits: 0 };
        let store = Store::open("memory".as_ref(), Options::memory(geometry, 100)).unwrap();
        let shard = store.shard_of(b"key");
        let seq = store.put(b"key", b"value").unwrap();
        store.demote().unwrap();
        assert_eq!(store.put(b"key", b"later"), Err(WriteError::ReadOnly));
        assert_eq!(store.progress(shard), Progress { epoch: 1, seq, consistent_at: seq, step: Step::None });
        let empty = store.shards().find(|other| *other != shard).unwrap();
        assert_eq!(
            store.progress(empty),
            Progress { epoch: 1, ..Progress::default() },
            "all of its own, which is nothing"
        );
        store.check_promote().expect("it may lead again, whoever it was to follow");
        // What it followed meanwhile counts from then on.
        let later = Progress { epoch: 2, seq: Seq(9), consistent_at: Seq(9), step: Step::None };
        store.set_progress(shard, later);
        store.demote().unwrap();
        assert_eq!(store.progress(shard), later);
        // A promotion that was cut short between two shards.
        store.exclusive(shard).shard.promote(3, 7).unwrap();
        store.promote_rest().unwrap();
        assert!(!store.is_follower());
        assert!(store.shards().all(|shard| store.lineage(shard).last().unwrap().epoch == 3));
    }
}
