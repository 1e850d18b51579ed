//! A shard's progress on a follower: what a batch, a ScanDone, a Welcome does to store and watermark.
//!
//! Always true:
//! - the watermark never goes back within an epoch, and names a seq up to which everything is held;
//! - before the first image of a batch is applied, the store notes that its state is no prefix until
//!   the batch (or the scan) is through, so that a crash or a bad record half-way leaves no false claim;
//! - records of the stream are taken only if they follow the watermark without a hole.

use crate::links::Totals;
use crate::planted::{Bug, is_planted};
use crate::slot::image::image_seq;
use crate::slot::layout::HEADER_SIZE;
use crate::slot::{Records, Seq, ShardIndex};
use crate::store::{Progress, Store, Term};
use crate::wire::message::{ScanDone, Welcome};

use super::link::LinkError;

/// Progress of one shard while a link is up; the store holds the same.
#[derive(Debug)]
pub(super) struct Applier {
    shard: ShardIndex,
    progress: Progress,
}

impl Applier {
    pub(super) fn new(store: &Store, shard: ShardIndex) -> Self {
        Self { shard, progress: store.progress(shard) }
    }

    pub(super) fn watermark(&self) -> Seq {
        self.progress.seq
    }

    pub(super) fn is_consistent(&self) -> bool {
        self.progress.is_consistent()
    }

    /// Takes over the leader's lineage and makes room for a first scan.
    pub(super) fn welcome(&mut self, store: &Store, welcome: &Welcome) -> Result<(), LinkError> {
        if welcome.since != self.progress.seq {
            return Err(LinkError::Since { found: welcome.since, wanted: self.progress.seq });
        }
        let lineage: Vec<Term> = welcome
            .lineage
            .iter()
            .map(|(epoch, first_seq)| Term { epoch: *epoch, first_seq: first_seq.0 })
            .collect();
        if store.lineage(self.shard) != lineage {
            store.set_lineage(self.shard, &lineage);
        }
        if welcome.since == Seq::ZERO {
            store.reserve(self.shard, welcome.records)?;
        }
        Ok(())
    }

    /// Applies a batch of a scan; says how many records it held.
    pub(super) fn scan_batch(
        &mut self,
        store: &Store,
        totals: &Totals,
        records: &[u8],
    ) -> Result<u64, LinkError> {
        if self.progress.consistent_at != Seq::MAX && !is_planted(Bug::ScanNotNoted) {
            self.set(store, Progress { consistent_at: Seq::MAX, ..self.progress });
        }
        let count = self.apply(store, totals, records)?;
        if is_planted(Bug::WatermarkTooEarly) {
            let last = Records::new(&store.geometry(), records).flatten().last();
            let seq = last.map_or(Seq::ZERO, |record| image_seq(record.image)).max(self.progress.seq);
            self.set(store, Progress { seq, ..self.progress });
        }
        Ok(count)
    }

    /// The scan is through: everything up to `through` is held.
    pub(super) fn scan_done(&mut self, store: &Store, epoch: u64, done: ScanDone) -> Result<(), LinkError> {
        let ScanDone { through, consistent_at } = done;
        if through < self.progress.seq || consistent_at < through {
            return Err(LinkError::ScanDone { through, consistent_at, watermark: self.progress.seq });
        }
        let consistent_at = if is_planted(Bug::ConsistentAtOnce) { through } else { consistent_at };
        self.set(store, Progress { epoch, seq: through, consistent_at });
        Ok(())
    }

    /// Applies a batch of the stream; says how many records it held. All of it is checked to follow the watermark before any of it
    /// is applied.
    pub(super) fn stream_batch(
        &mut self,
        store: &Store,
        totals: &Totals,
        records: &[u8],
    ) -> Result<u64, LinkError> {
        let mut last = self.progress.seq;
        for record in Records::new(&store.geometry(), records) {
            // A record holds at least a slot header, or it is an error; so its seq is there.
            let image = record.map_err(crate::store::ApplyError::from)?.image;
            debug_assert!(image.len() >= HEADER_SIZE);
            let found = image_seq(image);
            if found.0 != last.0 + 1 {
                return Err(LinkError::SeqGap { found, wanted: Seq(last.0 + 1) });
            }
            last = found;
        }
        if !is_planted(Bug::BatchNotNoted) {
            let consistent_at = self.progress.consistent_at.max(last);
            self.set(store, Progress { consistent_at, ..self.progress });
        }
        let count = self.apply(store, totals, records)?;
        self.set(store, Progress { seq: last, ..self.progress });
        Ok(count)
    }

    /// How many records that were.
    fn apply(&self, store: &Store, totals: &Totals, records: &[u8]) -> Result<u64, LinkError> {
        use std::sync::atomic::Ordering::Relaxed;
        let applied = store.apply(self.shard, records)?;
        totals.records_applied.fetch_add(applied.applied, Relaxed);
        totals.records_skipped.fetch_add(applied.skipped, Relaxed);
        Ok(applied.applied + applied.skipped)
    }

    fn set(&mut self, store: &Store, progress: Progress) {
        assert!(progress.seq >= self.progress.seq, "a watermark goes back");
        self.progress = progress;
        store.set_progress(self.shard, progress);
    }
}
