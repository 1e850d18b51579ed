//! A shard's way back to where its history and its leader's part.
//!
//! Order, each step safe to be cut off: the report of what will be dropped is durable; the rewind is
//! noted, durably, so that the state counts as nobody's until the leader's scan is through; the report gets its
//! name; the slots that are astray leave the index. Then the caller asks the leader for these slots, in
//! order, and applies what comes. What lies above a noted fork has been reported and is never again.
//!
//! All of it is done in pieces, so that the link that waits for it can say meanwhile that it is alive.

use std::io;

use crate::shard::header::Step;
use crate::slot::{Records, Seq, ShardIndex, SlotIndex};

use super::report::{Draft, push_line};
use super::{ApplyError, Locked, Progress, Store};

/// What a rewind begins with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rewound {
    /// Writes that are dropped, and were not before.
    pub dropped: u64,
    /// Name of the report in the data directory, if any write is dropped.
    pub report: Option<String>,
}

/// A rewind that begins or ends.
#[derive(Debug)]
pub struct Rewinding {
    shard: ShardIndex,
    fork: Seq,
    /// What lies above was reported before.
    reported_above: Seq,
    /// Slots below have the leader's images.
    first: SlotIndex,
    stem: String,
    epoch: u64,
    was_consistent: bool,
    stage: Stage,
    rewound: Rewound,
}

/// What the next step does.
#[derive(Debug)]
enum Stage {
    Report { draft: Option<Draft>, next: SlotIndex },
    Note,
    Unindex { next: SlotIndex },
    Reindex { next: SlotIndex },
    Sync { from: usize },
}

/// Bytes of a report that are written at once.
const PIECE_BYTES: usize = 256 << 10;

impl Rewinding {
    /// All slots of the shard that were astray have the leader's images; its scan goes on from the watermark.
    #[must_use]
    pub fn end(shard: ShardIndex) -> Self {
        Self {
            shard,
            fork: Seq::ZERO,
            reported_above: Seq::ZERO,
            first: SlotIndex(0),
            stem: String::new(),
            epoch: 0,
            was_consistent: true,
            stage: Stage::Sync { from: 0 },
            rewound: Rewound::default(),
        }
    }
}

impl Store {
    /// The last seq of what a follower holds of its lineage; above it lies only what is to be replaced.
    #[must_use]
    pub fn head_shared(&self, shard: ShardIndex) -> Seq {
        let locked = self.shared(shard);
        match locked.shard.progress().step {
            Step::Rewind { fork, .. } => fork.min(locked.shard.seq()),
            Step::None | Step::Scan { .. } => locked.shard.seq(),
        }
    }

    /// Whether slots of the shard must be asked for, whatever the leader's history.
    #[must_use]
    pub fn is_astray(&self, shard: ShardIndex) -> bool {
        let locked = self.shared(shard);
        !locked.shard.damaged().is_empty() || matches!(locked.shard.progress().step, Step::Rewind { .. })
    }

    /// Begins a rewind to `fork`, or goes on with one; `goes_on` = with the same leader as before. Nothing is
    /// given up before [`Store::step_rewind`] has said that all is noted.
    pub fn begin_rewind(&self, shard: ShardIndex, fork: Seq, goes_on: bool) -> io::Result<Rewinding> {
        let progress = self.progress(shard);
        let last = self.lineage(shard).last().copied();
        let stem = last.map_or_else(
            || format!("dropped-{:04}", shard.0),
            |term| format!("dropped-{:04}-epoch-{}-term-{:016x}", shard.0, term.epoch, term.id),
        );
        let (mut reported_above, mut done, mut report) = (Seq::MAX, SlotIndex(0), None);
        if let Step::Rewind { fork: noted, next } = progress.step {
            (reported_above, done) = (noted, next);
            // A kill may have come before it got its name.
            report = self.reports.publish(shard, noted, &stem)?;
        }
        let fork = fork.min(reported_above);
        let first = if goes_on && fork == reported_above { done } else { SlotIndex(0) };
        let stage = match fork < reported_above {
            true => Stage::Report { draft: None, next: SlotIndex(0) },
            false => Stage::Note,
        };
        let epoch = last.map_or(0, |term| term.epoch);
        let rewound = Rewound { dropped: 0, report };
        let was_consistent = progress.is_consistent();
        Ok(Rewinding { shard, fork, reported_above, first, stem, epoch, was_consistent, stage, rewound })
    }

    /// Goes on with what [`Store::begin_rewind`] has begun, or [`Rewinding::end`] ends: some milliseconds' worth of it,
    /// and at most so many slots reported. What came of it, once it is through.
    pub fn step_rewind(&self, rewinding: &mut Rewinding, slots_max: usize) -> io::Result<Option<Rewound>> {
        let Rewinding { shard, fork, .. } = *rewinding;
        let next = match &rewinding.stage {
            Stage::Report { .. } => self.report(rewinding, slots_max)?,
            Stage::Note => {
                self.note_rewind(rewinding)?;
                Some(Stage::Unindex { next: rewinding.first })
            }
            Stage::Unindex { next } => match self.exclusive(shard).shard.unindex(fork, *next) {
                Some(next) => Some(Stage::Unindex { next }),
                // An exact state has each key in one slot, so what is left is found already.
                None => (!rewinding.was_consistent).then_some(Stage::Reindex { next: SlotIndex(0) }),
            },
            Stage::Reindex { next } => {
                let next = self.exclusive(shard).shard.reindex(fork, rewinding.first, *next)?;
                next.map(|next| Stage::Reindex { next })
            }
            Stage::Sync { from } => {
                // A power cut must not bring back what was dropped once nothing says any more that it may.
                let synced = self.shared(shard).shard.sync_piece(*from);
                let next = synced.inspect_err(|_| self.note_failed_sync())?;
                if next.is_none() {
                    self.exclusive(shard).shard.end_rewind();
                }
                next.map(|from| Stage::Sync { from })
            }
        };
        match next {
            Some(stage) => {
                rewinding.stage = stage;
                Ok(None)
            }
            None => Ok(Some(std::mem::take(&mut rewinding.rewound))),
        }
    }

    /// From here on the state is nobody's, and the report is one.
    fn note_rewind(&self, rewinding: &mut Rewinding) -> io::Result<()> {
        let Rewinding { shard, fork, first, .. } = *rewinding;
        let progress = self.progress(shard);
        self.exclusive(shard).shard.limit_durable(fork);
        self.set_progress(
            shard,
            Progress {
                seq: progress.seq.min(fork),
                consistent_at: Seq::MAX,
                step: Step::Rewind { fork, next: first },
                ..progress
            },
        );
        self.sync_rewind(shard).map_err(io::Error::other)?;
        if let Some(report) = self.reports.publish(shard, fork, &rewinding.stem)? {
            rewinding.rewound.report = Some(report);
        }
        Ok(())
    }

    /// Writes a piece of the report of what slots hold above the fork and was not reported before.
    fn report(&self, rewinding: &mut Rewinding, slots_max: usize) -> io::Result<Option<Stage>> {
        let Rewinding { shard, fork, reported_above, epoch, .. } = *rewinding;
        let Stage::Report { draft, next } = &mut rewinding.stage else { return Ok(None) };
        let (mut slots, mut lines, now) = (Vec::new(), Vec::new(), self.clock.unix_ms());
        let mut goes_on = self.shared(shard).shard.astray(fork, *next, &mut slots, slots_max);
        for slot in slots {
            if lines.len() >= PIECE_BYTES {
                goes_on = Some(slot);
                break;
            }
            let locked = self.shared(shard);
            // A damaged slot has nothing to tell.
            if let Ok(view) = locked.shard.view(slot)
                && view.seq() <= reported_above
            {
                push_line(&mut lines, shard, slot, &view, now);
                rewinding.rewound.dropped += 1;
            }
        }
        if !lines.is_empty() {
            let draft = match draft {
                Some(draft) => draft,
                None => draft.insert(self.reports.begin(shard, fork, epoch)?),
            };
            self.reports.add(draft, &lines)?;
        }
        if let Some(slot) = goes_on {
            *next = slot;
            return Ok(Some(Stage::Report { draft: draft.take(), next: slot }));
        }
        match draft {
            Some(draft) => self.reports.end(draft)?,
            // Damaged slots only, or a report whose rewind was never noted.
            None => self.reports.discard(shard)?,
        }
        Ok(Some(Stage::Note))
    }

    /// All slots astray from `next` on, found as they are asked for, `batch` at a time.
    fn astray(
        &self,
        shard: ShardIndex,
        fork: Seq,
        next: SlotIndex,
        batch: usize,
    ) -> impl Iterator<Item = SlotIndex> + '_ {
        let mut next = Some(next);
        let mut found = Vec::new().into_iter();
        std::iter::from_fn(move || {
            loop {
                if let Some(slot) = found.next() {
                    return Some(slot);
                }
                let mut slots = Vec::new();
                next = self.shared(shard).shard.astray(fork, next?, &mut slots, batch.max(512));
                found = slots.into_iter();
            }
        })
    }

    /// The next slots to ask the leader for, in order, at most `count_max`; none = all are done.
    #[must_use]
    pub fn slots_to_ask_for(&self, shard: ShardIndex, count_max: usize) -> Vec<SlotIndex> {
        let Step::Rewind { fork, next } = self.progress(shard).step else { return Vec::new() };
        self.astray(shard, fork, next, count_max).take(count_max).collect()
    }

    /// Applies images that the leader was asked for, and notes that the slots below `next` are done.
    pub fn apply_forced(
        &self,
        shard: ShardIndex,
        records: &[u8],
        next: SlotIndex,
    ) -> Result<u64, ApplyError> {
        let mut locked = self.applicable(shard, next)?;
        let mut applied = 0;
        for record in Records::new(&self.geometry, records) {
            let Locked { shard, log, .. } = &mut *locked;
            shard.apply_forced(record?)?;
            // One by one: those before one that is refused are applied, too.
            log.push_forced(shard.last_record());
            applied += 1;
        }
        let progress = locked.shard.progress();
        if let Step::Rewind { fork, .. } = progress.step {
            locked.shard.set_progress(Progress { step: Step::Rewind { fork, next }, ..progress });
        }
        Ok(applied)
    }

    /// Finished reports of dropped writes, by name.
    pub fn reports(&self) -> io::Result<Vec<(String, Vec<u8>)>> {
        self.reports.read()
    }

    /// Appends the record of a slot as it is, a free one if there is no such slot.
    pub fn push_slot(
        &self,
        shard: ShardIndex,
        slot: SlotIndex,
        out: &mut Vec<u8>,
    ) -> Result<(), crate::slot::SlotError> {
        self.shared(shard).shard.push_slot(slot, out)
    }
}

/// Goes on to the end, in the smallest pieces.
#[cfg(test)]
pub(super) fn run(store: &Store, mut rewinding: Rewinding) -> Rewound {
    loop {
        if let Some(rewound) = store.step_rewind(&mut rewinding, 1).unwrap() {
            return rewound;
        }
    }
}

#[cfg(test)]
mod tests;
