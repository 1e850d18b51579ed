//! What replication takes from a store: rings and scans on a leader, applying on a follower.

use std::sync::Arc;

use crate::ring::{RingReader, Sleeper, ring};
use crate::slot::{Record, Records, Seq, ShardIndex, SlotError, SlotIndex};

use super::{ApplyError, Progress, Scan, Store, Term};

// Records applied under one lock, and prefetched ahead of that.
const APPLY_BATCH: usize = 16;

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
        let gone = locked
            .rings
            .get_mut()
            .extract_if(.., |ring| ring.is_abandoned())
            .map(|ring| ring.overflows())
            .sum::<u64>();
        locked.ring_overflows += gone;
        locked.rings.get_mut().push(writer);
        (reader, locked.shard.seq())
    }

    /// Detaches a ring at once; dropping the reader does the same at the next attach.
    pub fn detach(&self, shard: ShardIndex, reader: RingReader) {
        let mut locked = self.exclusive(shard);
        locked.ring_overflows += reader.overflows();
        locked.rings.get_mut().retain(|ring| !ring.belongs_to(&reader));
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

    /// Terms of leadership, oldest first; the last one is the current epoch.
    #[must_use]
    pub fn lineage(&self, shard: ShardIndex) -> Vec<Term> {
        self.shared(shard).shard.lineage().to_vec()
    }

    // ---- follower

    /// How far the shard has followed its leader.
    #[must_use]
    pub fn progress(&self, shard: ShardIndex) -> Progress {
        self.shared(shard).shard.progress()
    }

    /// Keeps how far the shard has followed its leader; a process crash does not lose it.
    pub fn set_progress(&self, shard: ShardIndex, progress: Progress) {
        self.exclusive(shard).shard.set_progress(progress);
    }

    /// Takes over the leader's lineage.
    pub fn set_lineage(&self, shard: ShardIndex, lineage: &[Term]) {
        self.exclusive(shard).shard.set_lineage(lineage);
    }

    /// Makes room for so many slots and records ahead of a first scan.
    pub fn reserve(&self, shard: ShardIndex, slots: u32, records: u64) -> Result<(), ApplyError> {
        let slot = SlotIndex(slots.saturating_sub(1));
        let mut locked = self.exclusive(shard);
        // A record needs a slot: more of them than slots is a peer's mistake, not a reason to allocate.
        let records = usize::try_from(records.min(slots.into())).unwrap_or(usize::MAX);
        locked.shard.reserve(slots, records).map_err(|error| ApplyError::Full { slot, error })?;
        Ok(())
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
                return Ok(applied);
            }
        }
    }

    fn apply_batch(
        &self,
        shard: ShardIndex,
        batch: &[Record<'_>],
        applied: &mut Applied,
    ) -> Result<(), ApplyError> {
        let mut locked = self.exclusive(shard);
        let mut hashes = [0; APPLY_BATCH];
        for (hash, record) in hashes.iter_mut().zip(batch) {
            *hash = locked.shard.prefetch_apply(record);
        }
        for (hash, record) in hashes.into_iter().zip(batch) {
            if locked.shard.apply(*record, hash)? {
                applied.applied += 1;
                // A follower may have followers of its own.
                let super::Locked { shard, rings, .. } = &mut *locked;
                rings.get_mut().iter_mut().for_each(|ring| ring.push(shard.last_record()));
            } else {
                applied.skipped += 1;
            }
        }
        Ok(())
    }
}
