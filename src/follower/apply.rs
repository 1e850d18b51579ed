//! A shard's progress on a follower: what a batch, a ScanDone, a Welcome does to store and watermark.
//!
//! Always true:
//! - the watermark goes back only where a rewind begins, and names a seq up to which everything is held;
//! - before the first image of a batch is applied, the store notes that its state is no prefix until
//!   the batch (or the scan) is through, so that a crash or a bad record half-way leaves no false claim;
//! - records of the stream are taken only if they follow the watermark without a hole.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;

use crate::links::Totals;
use crate::planted::{Bug, is_planted};
use crate::slot::image::image_seq;
use crate::slot::layout::HEADER_SIZE;
use crate::slot::{Records, Seq, ShardIndex, SlotIndex};
use crate::store::{Progress, Rewinding, Rewound, Step, Store};
use crate::wire::message::{ScanDone, ScanPlace, ScanStart, WANT_LEN_MAX, Welcome};

use super::link::LinkError;

/// The slot behind this one; the last one there can be has none.
fn after(slot: SlotIndex) -> SlotIndex {
    SlotIndex(slot.0.saturating_add(1))
}

/// Progress of one shard while a link is up; the store holds the same.
#[derive(Debug)]
pub(super) struct Applier {
    shard: ShardIndex,
    progress: Progress,
    scan: Scanned,
    /// Slots asked for that have not come.
    asked: VecDeque<SlotIndex>,
    work: Option<Work>,
}

/// What is done in pieces between frames.
#[derive(Debug)]
enum Work {
    Begin { rewinding: Box<Rewinding>, welcome: Box<Welcome>, had: Seq },
    End { rewinding: Box<Rewinding> },
}

/// How far the scan under way has come.
#[derive(Debug, Clone, Copy, Default)]
struct Scanned {
    /// What it is through to once it is through.
    through: Seq,
    /// Slots below this one hold everything up to `held`.
    next: SlotIndex,
    held: Seq,
    /// It goes on where another was cut off; the slots before that come last.
    is_second: bool,
}

impl Applier {
    pub(super) fn new(store: &Store, shard: ShardIndex) -> Self {
        let progress = store.progress(shard);
        Self { shard, progress, scan: Scanned::default(), asked: VecDeque::new(), work: None }
    }

    pub(super) fn watermark(&self) -> Seq {
        self.progress.seq
    }

    pub(super) fn is_consistent(&self) -> bool {
        self.progress.is_consistent()
    }

    /// Takes over the leader's lineage, makes room for a first scan, and begins a rewind if the leader
    /// shares less than is held here; says whether slots are to be asked for.
    pub(super) fn welcome(&mut self, store: &Store, welcome: &Welcome) -> Result<bool, LinkError> {
        let (fork, head) = (welcome.fork, store.head_shared(self.shard));
        if fork > head && !is_planted(Bug::ForkTooHigh) {
            return Err(LinkError::Fork { found: fork, head });
        }
        let wanted = self.progress.seq.min(fork);
        if welcome.since != wanted {
            return Err(LinkError::Since { found: welcome.since, wanted });
        }
        let is_asking = head > fork || store.is_astray(self.shard);
        if !is_asking {
            self.adopt(store, welcome)?;
            return Ok(false);
        }
        let goes_on = store.lineage(self.shard) == welcome.lineage;
        let had = store.head(self.shard);
        let rewinding = store.begin_rewind(self.shard, fork, goes_on).map_err(LinkError::Rewind)?;
        self.work =
            Some(Work::Begin { rewinding: Box::new(rewinding), welcome: Box::new(welcome.clone()), had });
        Ok(true)
    }

    /// Whether the beginning or the end of a rewind has to go on before the leader is told anything.
    pub(super) fn is_at_work(&self) -> bool {
        self.work.is_some()
    }

    /// Goes on with that: some milliseconds' worth of it, and at most so many slots reported.
    pub(super) fn work(&mut self, store: &Store, totals: &Totals, slots_max: usize) -> Result<(), LinkError> {
        let Some(work) = &mut self.work else { return Ok(()) };
        let (Work::Begin { rewinding, .. } | Work::End { rewinding }) = work;
        let rewound = store.step_rewind(rewinding, slots_max).map_err(LinkError::Rewind)?;
        self.progress = store.progress(self.shard);
        let Some(rewound) = rewound else { return Ok(()) };
        if let Some(Work::Begin { welcome, had, .. }) = self.work.take() {
            self.say_rewound(totals, &rewound, welcome.fork, had);
            self.adopt(store, &welcome)?;
        }
        Ok(())
    }

    fn adopt(&mut self, store: &Store, welcome: &Welcome) -> Result<(), LinkError> {
        if welcome.since < self.progress.seq {
            // Less is held than the watermark says: its page was written back, and slots were not.
            self.progress = Progress { seq: welcome.since, consistent_at: Seq::MAX, ..self.progress };
            store.set_progress(self.shard, self.progress);
        }
        store.follow_lineage(self.shard, &welcome.lineage)?;
        store.expect_slots(self.shard, welcome.slots_formatted);
        if welcome.since == Seq::ZERO {
            store.reserve(self.shard, welcome.records)?;
        }
        self.scan = match welcome.scan_place {
            Some(ScanPlace { next, through }) => {
                Scanned { through: welcome.head, next, held: through, is_second: true }
            }
            None => Scanned { through: welcome.head, held: welcome.head, ..Scanned::default() },
        };
        Ok(())
    }

    fn say_rewound(&self, totals: &Totals, rewound: &Rewound, fork: Seq, had: Seq) {
        let Rewound { dropped, report } = rewound;
        let (shard, fork, had) = (self.shard.0, fork.0, had.0);
        if *dropped > 0 {
            totals.rewinds.fetch_add(1, Relaxed);
            totals.writes_dropped.fetch_add(*dropped, Relaxed);
            let report = report.as_deref().unwrap_or_default();
            tracing::warn!(
                shard,
                fork,
                had,
                dropped,
                report,
                "rewind: this shard holds writes that its leader never had; they are dropped, and are in the \
                 report in the data directory"
            );
        } else {
            tracing::info!(shard, fork, had, "slots are asked for again");
        }
    }

    /// The next slots to ask for; none = all are there, and the scan comes. `None`: the rewind has to end first.
    pub(super) fn ask(&mut self, store: &Store) -> Option<Vec<SlotIndex>> {
        assert!(self.asked.is_empty(), "one Want at a time");
        let slots = store.slots_to_ask_for(self.shard, WANT_LEN_MAX);
        self.asked.extend(&slots);
        if slots.is_empty() && matches!(self.progress.step, Step::Rewind { .. }) {
            self.work = Some(Work::End { rewinding: Box::new(Rewinding::end(self.shard)) });
            return None;
        }
        Some(slots)
    }

    /// Applies slots that were asked for; says whether all of them have come.
    pub(super) fn asked_batch(&mut self, store: &Store, records: &[u8]) -> Result<bool, LinkError> {
        let mut last = None;
        for record in Records::new(&store.geometry(), records) {
            let found = record.map_err(crate::store::ApplyError::from)?.slot;
            let wanted = self.asked.pop_front();
            if wanted != Some(found) {
                return Err(LinkError::Unasked { found: Some(found), wanted });
            }
            last = wanted;
        }
        let Some(last) = last else {
            return Err(LinkError::Unasked { found: None, wanted: self.asked.front().copied() });
        };
        store.apply_forced(self.shard, records, after(last))?;
        self.progress = store.progress(self.shard);
        Ok(self.asked.is_empty())
    }

    /// A ring of the leader overflowed: what it could not take comes as a scan.
    pub(super) fn scan_start(&mut self, start: ScanStart) -> Result<(), LinkError> {
        let ScanStart { since, through } = start;
        if since != self.progress.seq {
            return Err(LinkError::Since { found: since, wanted: self.progress.seq });
        }
        if through < since {
            let watermark = self.progress.seq;
            return Err(LinkError::ScanDone { through, consistent_at: through, watermark });
        }
        self.scan = Scanned { through, held: through, ..Scanned::default() };
        Ok(())
    }

    /// Applies a batch of a scan; says how many records it held.
    pub(super) fn scan_batch(
        &mut self,
        store: &Store,
        totals: &Totals,
        records: &[u8],
    ) -> Result<u64, LinkError> {
        let mut slots = Records::new(&store.geometry(), records).flatten().map(|record| record.slot);
        let Some(first) = slots.next() else { return self.apply(store, totals, records) };
        let last = slots.last().unwrap_or(first);
        if self.progress.consistent_at != Seq::MAX && !is_planted(Bug::ScanNotNoted) {
            self.set(store, Progress { consistent_at: Seq::MAX, ..self.progress });
        }
        if is_planted(Bug::PositionTooEarly) {
            self.keep_place(store, first, last);
        }
        // Every image is checked while it is applied, so only from here on their slots are to be believed.
        let count = self.apply(store, totals, records)?;
        self.keep_place(store, first, last);
        if is_planted(Bug::WatermarkTooEarly) {
            let last = Records::new(&store.geometry(), records).flatten().last();
            let seq = last.map_or(Seq::ZERO, |record| image_seq(record.image)).max(self.progress.seq);
            self.set(store, Progress { seq, ..self.progress });
        }
        Ok(count)
    }

    /// Notes that the slots from `first` to `last` have come.
    fn keep_place(&mut self, store: &Store, first: SlotIndex, last: SlotIndex) {
        let mut seq = self.progress.seq;
        if self.scan.is_second && first < self.scan.next {
            // All slots behind the place where the scan went on have come before this one, so all slots
            // hold what the ones before that place held already.
            seq = seq.max(self.scan.held);
            let through = self.scan.through;
            self.scan = Scanned { through, held: through, ..Scanned::default() };
        }
        self.scan.next = self.scan.next.max(after(last));
        let step = Step::Scan { next: self.scan.next, through: self.scan.held };
        self.set(store, Progress { seq, step, ..self.progress });
    }

    /// The scan is through: everything up to `through` is held.
    pub(super) fn scan_done(&mut self, store: &Store, epoch: u64, done: ScanDone) -> Result<(), LinkError> {
        let ScanDone { through, consistent_at } = done;
        if through < self.progress.seq || consistent_at < through {
            return Err(LinkError::ScanDone { through, consistent_at, watermark: self.progress.seq });
        }
        let consistent_at = if is_planted(Bug::ConsistentAtOnce) { through } else { consistent_at };
        self.set(store, Progress { epoch, seq: through, consistent_at, step: Step::None });
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
