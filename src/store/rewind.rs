//! A shard's way back to where its history and its leader's part.
//!
//! Order, each step safe to be cut off: the report of what will be dropped is durable; the rewind is
//! noted, durably, so that the state counts as nobody's until the leader's scan is through; the report gets its
//! name; the slots that are astray leave the index. Then the caller asks the leader for these slots, in
//! order, and applies what comes. What lies above a noted fork has been reported and is never again.

use std::io::{self, Write};

use crate::shard::header::Step;
use crate::slot::{Records, Seq, ShardIndex, SlotIndex};

use super::report::push_line;
use super::{ApplyError, Progress, Store};

/// What a rewind begins with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rewound {
    /// Writes that are dropped, and were not before.
    pub dropped: u64,
    /// Name of the report in the data directory, if any write is dropped.
    pub report: Option<String>,
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

    /// Begins a rewind to `fork`, or goes on with one; `goes_on` = with the same leader as before.
    pub fn begin_rewind(&self, shard: ShardIndex, fork: Seq, goes_on: bool) -> io::Result<Rewound> {
        let progress = self.progress(shard);
        let (reported_above, done) = match progress.step {
            Step::Rewind { fork: noted, next } => (noted, next),
            Step::None | Step::Scan { .. } => (Seq::MAX, SlotIndex(0)),
        };
        let fork = fork.min(reported_above);
        let last = self.lineage(shard).last().copied();
        let stem = last.map_or_else(
            || format!("dropped-{:04}", shard.0),
            |term| format!("dropped-{:04}-epoch-{}-term-{:016x}", shard.0, term.epoch, term.id),
        );
        let mut dropped = 0;
        if fork < reported_above {
            dropped = self.report(shard, fork, reported_above)?;
            if dropped == 0 {
                // Damaged slots only, or a report whose rewind was never noted.
                self.reports.discard(shard)?;
            }
        }
        let next = if goes_on && fork == reported_above { done } else { SlotIndex(0) };
        self.exclusive(shard).shard.limit_durable(fork);
        self.set_progress(
            shard,
            Progress {
                seq: progress.seq.min(fork),
                consistent_at: Seq::MAX,
                step: Step::Rewind { fork, next },
                ..progress
            },
        );
        self.sync_rewind(shard).map_err(io::Error::other)?;
        let report = self.reports.publish(shard, &stem)?;
        self.unindex(shard, fork, next, progress.is_consistent())?;
        Ok(Rewound { dropped, report })
    }

    /// Writes the unfinished report of what slots hold above `fork`, up to `last`; says how many do.
    fn report(&self, shard: ShardIndex, fork: Seq, last: Seq) -> io::Result<u64> {
        let now = self.clock.unix_ms();
        let mut dropped = 0;
        let mut slots = self.astray(shard, fork, SlotIndex(0), 1).peekable();
        if slots.peek().is_none() {
            return Ok(0);
        }
        self.reports.write(shard, |out: &mut dyn Write| {
            let mut line = Vec::new();
            for slot in slots {
                line.clear();
                let locked = self.shared(shard);
                // A damaged slot has nothing to tell.
                if let Ok(view) = locked.shard.view(slot)
                    && view.seq() <= last
                {
                    push_line(&mut line, shard, slot, &view, now);
                    dropped += 1;
                }
                drop(locked);
                out.write_all(&line)?;
            }
            Ok(())
        })?;
        Ok(dropped)
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

    /// Slots below `done` have the leader's images already.
    fn unindex(&self, shard: ShardIndex, fork: Seq, done: SlotIndex, was_consistent: bool) -> io::Result<()> {
        let mut next = Some(done);
        while let Some(slot) = next {
            next = self.exclusive(shard).shard.unindex(fork, slot);
        }
        // An exact state has each key in one slot, so what is left is found already.
        next = (!was_consistent).then_some(SlotIndex(0));
        while let Some(slot) = next {
            next = self.exclusive(shard).shard.reindex(fork, done, slot)?;
        }
        Ok(())
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
            locked.shard.apply_forced(record?)?;
            applied += 1;
        }
        locked.log.push_forced(records);
        let progress = locked.shard.progress();
        if let Step::Rewind { fork, .. } = progress.step {
            locked.shard.set_progress(Progress { step: Step::Rewind { fork, next }, ..progress });
        }
        Ok(applied)
    }

    /// All slots that were astray have the leader's images; its scan goes on from the watermark.
    pub fn end_rewind(&self, shard: ShardIndex) -> io::Result<()> {
        // A power cut must not bring back what was dropped once nothing says any more that it may.
        self.shared(shard).shard.sync()?;
        self.exclusive(shard).shard.end_rewind();
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::slot::Geometry;
    use crate::store::Options;

    const SHARD: ShardIndex = ShardIndex(0);

    /// A store with five records above seq 5, one of them no text, and a deletion.
    fn ahead() -> Store {
        let geometry = Geometry { shard_count: 1, key_size_max: 8, value_size_max: 8, shard_prefix_bits: 0 };
        let store = Store::open(Path::new("memory"), Options::memory(geometry, 100)).unwrap();
        for key in 0..5_u8 {
            store.put(&[b'a' + key], b"shared").unwrap();
        }
        for key in 3..6_u8 {
            store.put(&[b'a' + key], b"lost").unwrap();
        }
        store.put(b"\xff", b"\x00\xfe").unwrap();
        store.delete(b"a").unwrap();
        store.demote().unwrap();
        store
    }

    fn reopen(store: Store) -> Store {
        let store = store.reopen_in_memory().unwrap();
        store.set_read_only(true);
        store
    }

    #[track_caller]
    fn assert_reported(store: &Store) {
        let reports = store.reports().unwrap();
        assert_eq!(reports.len(), 1, "{reports:?}");
        let (name, bytes) = &reports[0];
        assert!(name.starts_with("dropped-0000-epoch-1-term-") && name.ends_with(".jsonl"), "{name}");
        let lines: Vec<serde_json::Value> =
            bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        let seqs: Vec<_> = lines.iter().map(|line| line["seq"].as_u64().unwrap()).collect();
        // Slots in order: the deleted one, two that were overwritten, two that are new.
        assert_eq!(seqs, [10, 6, 7, 8, 9]);
        assert_eq!((&lines[0]["key"], lines[0]["deleted"].as_bool()), (&"a".into(), Some(true)));
        assert!(lines[0].get("value").is_none());
        assert_eq!((&lines[1]["key"], &lines[1]["value"]), (&"d".into(), &"lost".into()));
        assert_eq!((&lines[4]["key_hex"], &lines[4]["value_hex"]), (&"ff".into(), &"00fe".into()));
    }

    /// The next step after each of those that a kill may come between.
    #[test]
    fn a_rewind_that_is_cut_off_at_any_step_leaves_one_whole_report() {
        let fork = Seq(5);
        // Before anything.
        let store = reopen(ahead());
        assert_eq!(store.begin_rewind(SHARD, fork, false).unwrap().dropped, 5);
        assert_reported(&store);
        // The report was written, or a part of it, and the rewind was not noted.
        let store = ahead();
        store.reports.write(SHARD, |out| out.write_all(b"{\"half\":")).unwrap();
        let store = reopen(store);
        assert!(store.reports().unwrap().is_empty());
        assert_eq!(store.begin_rewind(SHARD, fork, false).unwrap().dropped, 5);
        assert_reported(&store);
        // The rewind was noted, and the report has not got its name.
        let store = ahead();
        store.report(SHARD, fork, Seq::MAX).unwrap();
        let noted = Progress {
            epoch: 1,
            seq: fork,
            consistent_at: Seq::MAX,
            step: Step::Rewind { fork, next: SlotIndex(0) },
        };
        store.set_progress(SHARD, noted);
        let store = reopen(store);
        assert!(store.is_astray(SHARD));
        let Rewound { dropped, report } = store.begin_rewind(SHARD, fork, true).unwrap();
        assert!(dropped == 0 && report.is_some());
        assert_reported(&store);
        // All of that was done; and again.
        let store = reopen(store);
        assert_eq!(store.begin_rewind(SHARD, fork, true).unwrap(), Rewound::default());
        assert_reported(&store);
        assert_eq!((store.progress(SHARD), store.head_shared(SHARD)), (noted, fork));
        // Another leader shares less: what lies between is dropped too, and nothing twice.
        let Rewound { dropped, report } = store.begin_rewind(SHARD, Seq(1), false).unwrap();
        assert_eq!((dropped, report.is_some(), store.reports().unwrap().len()), (2, true, 2));
        // The slots below: what they held before was overwritten by what is dropped already.
        assert_eq!(store.slots_to_ask_for(SHARD, 100).len(), 7);
        assert!(store.check_promote().is_err(), "a shard inside a rewind does not lead");
    }
}
