//! What replication takes from a store: rings and scans on a leader, applying on a follower.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::ring::{RingReader, Sleeper, ring};
use crate::slot::{Record, Records, Seq, ShardIndex, SlotError, SlotIndex};

use super::{ApplyError, Exclusive, Locked, Progress, Scan, Store, SyncError, Term, WriteError};

// Records applied under one lock, and prefetched ahead of that.
const APPLY_BATCH: usize = 16;

/// Why a store cannot lead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromoteError {
    /// A shard was cut off inside a scan: its state is none that its leader ever had.
    #[error(
        "shard {shard} is inside a scan: it holds seq {seq}, and its state is its leader's {}",
        consistent_from(*.consistent_at)
    )]
    Inconsistent {
        /// The shard.
        shard: ShardIndex,
        /// Its watermark.
        seq: Seq,
        /// Where its state would be its leader's again.
        consistent_at: Seq,
    },
    /// A shard has never been in sync: the store followed only some shards, or not for long enough.
    #[error("shard {shard} was never in sync with a leader")]
    Missing {
        /// The shard.
        shard: ShardIndex,
    },
    /// The new term is not on the disk, so no write may be made in it.
    #[error("shard {shard}: the new epoch cannot be made durable: {error}")]
    Sync {
        /// The shard.
        shard: ShardIndex,
        /// What the system said.
        error: String,
    },
    /// Role or history was not made durable: see [`super::HistoryError`].
    #[error("{0}")]
    History(String),
}

/// Where a scan ends is not known before its leader says so.
fn consistent_from(consistent_at: Seq) -> String {
    match consistent_at {
        Seq::MAX => "not before its scan is through".to_owned(),
        seq => format!("from seq {seq} on"),
    }
}

fn release_rings(locked: &mut Locked) {
    let gone = locked.rings.get_mut().extract_if(.., |ring| ring.is_abandoned());
    let overflows = gone.map(|ring| ring.overflows()).sum::<u64>();
    locked.ring_overflows += overflows;
}

/// What became of a run of records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// Records written to their slots.
    pub applied: u64,
    /// Records that their slots held already, or something newer.
    pub skipped: u64,
}

impl Store {
    // ---- leader

    /// Attaches a ring that gets every change of the shard from now on; with it, the seq at this moment.
    /// `sleeper` wakes whoever drains it. The ring goes away when its reader is dropped.
    pub fn attach(&self, shard: ShardIndex, ring_bytes: usize, sleeper: Arc<Sleeper>) -> (RingReader, Seq) {
        let (writer, reader) = ring(ring_bytes, sleeper);
        let mut locked = self.exclusive(shard);
        release_rings(&mut locked);
        locked.rings.get_mut().push(writer);
        (reader, locked.shard.seq())
    }

    /// Frees the rings whose readers are gone. Call it when a link has ended: until then, or the next
    /// attach, its ring takes memory.
    pub fn release(&self, shard: ShardIndex) {
        release_rings(&mut self.exclusive(shard));
    }

    /// Clears a drained ring's latch under the shard lock; returns the seq at this moment: what changed
    /// up to here is for a scan, what changes from here on is in the ring.
    pub fn rearm(&self, shard: ShardIndex, reader: &RingReader) -> Seq {
        assert!(reader.is_empty(), "a ring is drained before its latch is cleared");
        let mut locked = self.exclusive(shard);
        for ring in locked.rings.get_mut().iter_mut().filter(|ring| ring.belongs_to(reader)) {
            ring.unlatch();
        }
        locked.shard.seq()
    }

    /// Last seq of the shard.
    #[must_use]
    pub fn head(&self, shard: ShardIndex) -> Seq {
        self.shared(shard).shard.seq()
    }

    /// Begins a scan of the shard's slots above `since`.
    #[must_use]
    pub fn scan(&self, shard: ShardIndex, since: Seq) -> Scan {
        self.shared(shard).shard.scan(since)
    }

    /// Appends records to `out` up to `bytes_max` or a bounded number of slots; false: the scan is
    /// through. A damaged slot is an error: it is never sent.
    pub fn scan_next(
        &self,
        shard: ShardIndex,
        scan: &mut Scan,
        out: &mut Vec<u8>,
        bytes_max: usize,
    ) -> Result<bool, (SlotIndex, SlotError)> {
        self.shared(shard).shard.scan_next(scan, out, bytes_max)
    }

    /// Slots that have a status, and records; what a follower makes room for.
    #[must_use]
    pub fn extent(&self, shard: ShardIndex) -> (u32, u64) {
        let locked = self.shared(shard);
        (locked.shard.slots_formatted(), locked.shard.counts().occupied)
    }

    /// Terms of leadership, oldest first; the last one is the current one.
    #[must_use]
    pub fn lineage(&self, shard: ShardIndex) -> Vec<Term> {
        self.shared(shard).shard.lineage().to_vec()
    }

    /// The newest epoch that the shard has lived through or followed.
    #[must_use]
    pub fn epoch_seen(&self, shard: ShardIndex) -> u64 {
        let locked = self.shared(shard);
        locked.shard.epoch().max(locked.shard.progress().epoch)
    }

    // ---- follower

    /// How far the shard has followed its leader.
    #[must_use]
    pub fn progress(&self, shard: ShardIndex) -> Progress {
        self.shared(shard).shard.progress()
    }

    /// Whether the shard's state is one that its leader had: it is inside no scan, and was in sync once.
    #[must_use]
    pub fn was_in_sync(&self, shard: ShardIndex) -> bool {
        let progress = self.progress(shard);
        progress.is_consistent() && progress.was_in_sync()
    }

    /// Keeps how far the shard has followed its leader; a process crash does not lose it.
    pub fn set_progress(&self, shard: ShardIndex, progress: Progress) {
        self.exclusive(shard).shard.set_progress(progress);
    }

    /// Takes over the leader's lineage; a process crash does not lose it. Links use [`Store::follow_lineage`].
    pub fn set_lineage(&self, shard: ShardIndex, lineage: &[Term]) {
        self.exclusive(shard).shard.set_lineage(lineage);
    }

    /// Makes room for so many records in a shard's index ahead of a first scan.
    pub fn reserve(&self, shard: ShardIndex, records: u64) -> Result<(), ApplyError> {
        // A peer's word is not a reason for more than this; an index that is too small grows.
        const RECORDS_MAX: u64 = 16 << 20;
        let records = usize::try_from(records.min(RECORDS_MAX)).unwrap_or(0);
        let full = |error| ApplyError::Full { slot: SlotIndex(0), error };
        self.exclusive(shard).shard.reserve(records).map_err(full)
    }

    /// Notes how many slots the leader's shard has: as many may come, in whatever steps.
    pub fn expect_slots(&self, shard: ShardIndex, leader_slots: u64) {
        let leader_slots = u32::try_from(leader_slots).unwrap_or(u32::MAX);
        self.exclusive(shard).shard.expect_slots(leader_slots);
    }

    /// Whether the store holds what it got from a leader.
    #[must_use]
    pub fn is_follower(&self) -> bool {
        self.shards().any(|shard| self.follows(shard))
    }

    fn follows(&self, shard: ShardIndex) -> bool {
        !self.shared(shard).shard.leads()
    }

    /// Whether [`Store::promote`] would be done, as of now.
    pub fn check_promote(&self) -> Result<(), PromoteError> {
        for shard in self.shards() {
            if self.progress(shard) == Progress::default() {
                return Err(PromoteError::Missing { shard });
            }
        }
        self.check_consistent()
    }

    fn check_consistent(&self) -> Result<(), PromoteError> {
        for shard in self.shards() {
            let Progress { seq, consistent_at, .. } = self.progress(shard);
            if self.follows(shard) && self.progress(shard) == Progress::default() {
                return Err(PromoteError::Missing { shard });
            }
            if seq < consistent_at {
                return Err(PromoteError::Inconsistent { shard, seq, consistent_at });
            }
        }
        Ok(())
    }

    /// Makes a store that followed a leader one that leads: all shards take the same new epoch.
    pub fn promote(&self) -> Result<(), PromoteError> {
        self.check_promote()?;
        self.promote_rest()
    }

    /// Lets a store that leads go on in an epoch newer than `epoch`: so it leads those again who have met
    /// a successor of it that is no more.
    pub fn lead_past(&self, epoch: u64) -> Result<(), PromoteError> {
        self.end_regain().map_err(|error| PromoteError::History(error.to_string()))?;
        let epoch = self.shards().map(|shard| self.epoch_seen(shard)).fold(epoch, u64::max) + 1;
        self.begin_epoch(self.shards(), epoch)?;
        // Who wrote before remembers another term.
        self.demotions.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn begin_epoch(
        &self,
        mut shards: impl Iterator<Item = ShardIndex>,
        epoch: u64,
    ) -> Result<(), PromoteError> {
        self.check_synced().map_err(|error| PromoteError::History(error.to_string()))?;
        let term_id = self.chance.next();
        shards.try_for_each(|shard| {
            let sync = |error: io::Error| PromoteError::Sync { shard, error: error.to_string() };
            let promoted = self.exclusive(shard).shard.promote(epoch, term_id);
            promoted.inspect_err(|_| self.note_failed_sync()).map_err(sync)
        })?;
        // The log's word on a shard counts after a power cut.
        let sync = |error: SyncError| PromoteError::Sync { shard: ShardIndex(0), error: error.to_string() };
        self.sync_log().map_err(sync)
    }

    /// Goes on with a promotion that a kill cut short between two shards: those that still follow take
    /// their new epoch. Only where [`Store::check_promote`] is known to have been passed; what a power cut
    /// may have taken back since is looked at again.
    pub fn promote_rest(&self) -> Result<(), PromoteError> {
        self.check_consistent()?;
        let next = |shard| self.epoch_seen(shard) + u64::from(self.follows(shard));
        let epoch = self.shards().map(next).max().unwrap_or_default();
        self.begin_epoch(self.shards().filter(|shard| self.follows(*shard)), epoch)
    }

    /// Applies a run of whole records: each image is checked, and written if its seq is newer than its
    /// slot's. On an error the records before the refused one are applied.
    pub fn apply(&self, shard: ShardIndex, records: &[u8]) -> Result<Applied, ApplyError> {
        let mut records = Records::new(&self.geometry, records);
        let mut applied = Applied::default();
        loop {
            let mut batch = [Record { slot: SlotIndex(0), image: &[] }; APPLY_BATCH];
            let mut len = 0;
            let mut failed = None;
            for (place, record) in batch.iter_mut().zip(&mut records) {
                match record {
                    Ok(record) => *place = record,
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
                len += 1;
            }
            if len > 0 {
                self.apply_batch(shard, &batch[..len], &mut applied)?;
            }
            if let Some(error) = failed {
                return Err(error.into());
            }
            if len < APPLY_BATCH {
                if self.log_first {
                    // What it acknowledges as durable comes as soon as it can.
                    self.ask_for_a_round();
                }
                return Ok(applied);
            }
        }
    }

    /// A shard's lock for a leader's changes, with room in the log for some.
    pub(super) fn applicable(&self, shard: ShardIndex, slot: SlotIndex) -> Result<Exclusive<'_>, ApplyError> {
        loop {
            let locked = self.exclusive(shard);
            if !locked.log.is_full() && self.has_good_log() {
                return Ok(locked);
            }
            drop(locked);
            let full = |error: WriteError| ApplyError::Full { slot, error: io::Error::other(error) };
            self.make_room(shard).map_err(full)?;
        }
    }

    fn apply_batch(
        &self,
        shard: ShardIndex,
        batch: &[Record<'_>],
        applied: &mut Applied,
    ) -> Result<(), ApplyError> {
        let mut locked = self.applicable(shard, batch[0].slot)?;
        let mut hashes = [0; APPLY_BATCH];
        for (hash, record) in hashes.iter_mut().zip(batch) {
            *hash = locked.shard.prefetch_apply(record);
        }
        for (hash, record) in hashes.into_iter().zip(batch) {
            if locked.shard.apply(*record, hash)? {
                applied.applied += 1;
                // A follower may have followers of its own.
                let super::Locked { shard, rings, log, .. } = &mut *locked;
                log.push(shard.last_record());
                rings.get_mut().iter_mut().for_each(|ring| ring.push(shard.last_record()));
            } else {
                applied.skipped += 1;
            }
        }
        Ok(())
    }
}
