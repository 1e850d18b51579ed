//! Lag in time, from samples of (when, head): a reader at seq `s` is as old as the moment at which the
//! leader's head was `s`.
//!
//! Samples belong to a shard, not to a link, so a follower that comes back after an hour is an hour
//! behind. They are bounded: when there are too many, the one goes that is missed least for its age, so
//! that old ones get sparser and a long lag gets coarser (a few per cent), but never unbounded in memory.
//! Between two samples the head is taken to have risen evenly.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::slot::{Seq, ShardIndex};

const SAMPLES_MAX: usize = 128;
/// Samples closer together than this tell nothing more.
const SAMPLE_INTERVAL_MS: u64 = 10;

#[derive(Debug, Clone, Copy)]
struct Sample {
    at_ms: u64,
    head: Seq,
}

/// Samples of one shard's head, in time order; heads rise.
#[derive(Debug, Default)]
pub struct LagSamples {
    samples: Vec<Sample>,
}

impl LagSamples {
    /// Notes that the head was `head` at this time, as its owner says. One that went back is another
    /// history: what was above it never was in this one.
    pub fn heard(&mut self, at_ms: u64, head: Seq) {
        while self.samples.last().is_some_and(|newest| newest.head > head || newest.at_ms > at_ms) {
            self.samples.pop();
        }
        self.push(at_ms, head);
    }

    /// Notes that the head was at least `head` at this time, as one of several who look at it now and then.
    pub fn seen(&mut self, at_ms: u64, head: Seq) {
        let newest = self.samples.last().copied();
        if newest.is_none_or(|newest| newest.head <= head) {
            self.push(newest.map_or(at_ms, |newest| newest.at_ms.max(at_ms)), head);
        }
    }

    fn push(&mut self, at_ms: u64, head: Seq) {
        match self.samples.as_mut_slice() {
            // The first and the last moment of a head that rests tell all about it.
            [.., before, newest] if newest.head == head && before.head == head => newest.at_ms = at_ms,
            [.., newest] if newest.head != head && at_ms < newest.at_ms + SAMPLE_INTERVAL_MS => {}
            _ => self.samples.push(Sample { at_ms, head }),
        }
        if self.samples.len() > SAMPLES_MAX {
            self.thin(at_ms);
        }
    }

    /// Removes the sample whose neighbours are closest together for their age.
    fn thin(&mut self, now_ms: u64) {
        let gap = |index: usize| {
            let width = self.samples[index + 1].at_ms - self.samples[index - 1].at_ms;
            let age = now_ms.saturating_sub(self.samples[index].at_ms) + SAMPLE_INTERVAL_MS;
            // In 1/1024ths; widths and ages of centuries fit.
            width.saturating_mul(1024) / age
        };
        if let Some(index) = (1..self.samples.len() - 1).min_by_key(|index| gap(*index)) {
            self.samples.remove(index);
        }
    }

    /// When the head was last at `reached`; the oldest time known if that was before it, `None` if nothing is
    /// known.
    #[must_use]
    pub fn time_at(&self, reached: Seq) -> Option<u64> {
        let after = self.samples.partition_point(|sample| sample.head <= reached);
        let Some(next) = self.samples.get(after) else {
            return self.samples.last().map(|newest| newest.at_ms);
        };
        let Some(last) = after.checked_sub(1).map(|index| self.samples[index]) else {
            return Some(next.at_ms);
        };
        let (risen, of) = (reached.0 - last.head.0, next.head.0 - last.head.0);
        let width = u128::from(next.at_ms - last.at_ms) * u128::from(risen) / u128::from(of);
        Some(last.at_ms + u64::try_from(width).unwrap_or(0))
    }
}

/// The samples of all shards. Times are a leader's own monotonic milliseconds; on a follower, its
/// leader's clock as heartbeats told it.
#[derive(Debug, Default)]
pub struct Heads {
    shards: Mutex<BTreeMap<u16, LagSamples>>,
}

impl Heads {
    /// As [`LagSamples::heard`].
    pub fn heard(&self, shard: ShardIndex, at_ms: u64, head: Seq) {
        self.shards.lock().entry(shard.0).or_default().heard(at_ms, head);
    }

    /// As [`LagSamples::seen`].
    pub fn seen(&self, shard: ShardIndex, at_ms: u64, head: Seq) {
        self.shards.lock().entry(shard.0).or_default().seen(at_ms, head);
    }

    /// As [`LagSamples::time_at`].
    #[must_use]
    pub fn time_at(&self, shard: ShardIndex, reached: Seq) -> Option<u64> {
        self.shards.lock().get(&shard.0)?.time_at(reached)
    }

    /// Forgets everything: the clock that times are of is another from now on.
    pub fn clear(&self) {
        self.shards.lock().clear();
    }
}

/// What to add to our monotonic milliseconds to get the leader's clock, from heartbeats.
///
/// A heartbeat that was long on its way makes the difference look smaller than it is, so the largest one
/// of the last [`WINDOW_BEATS`] to twice as many counts; a leader's clock that was set back is believed
/// after those.
#[derive(Debug, Default)]
pub struct ClockOffset {
    before: Option<i64>,
    now: Option<i64>,
    beats: u32,
}

const WINDOW_BEATS: u32 = 16;

impl ClockOffset {
    /// Takes a heartbeat that says `leader_unix_ms` and came at `monotonic_ms`; the offset from now on.
    pub fn heard(&mut self, leader_unix_ms: u64, monotonic_ms: u64) -> i64 {
        let found = leader_unix_ms.cast_signed().wrapping_sub(monotonic_ms.cast_signed());
        if self.beats == WINDOW_BEATS {
            self.before = self.now.take();
            self.beats = 0;
        }
        self.beats += 1;
        self.now = self.now.max(Some(found));
        self.before.max(self.now).unwrap_or(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_is_as_old_as_the_head_that_it_reached() {
        let mut samples = LagSamples::default();
        assert_eq!(samples.time_at(Seq(5)), None);
        for (at_ms, head) in [(1_000, 5), (1_050, 5), (1_100, 5), (1_200, 9), (1_300, 12)] {
            samples.seen(at_ms, Seq(head));
        }
        assert_eq!(samples.time_at(Seq(12)), Some(1_300));
        assert_eq!(samples.time_at(Seq(13)), Some(1_300));
        assert_eq!(samples.time_at(Seq(5)), Some(1_100), "5 was still the head at 1,100");
        assert_eq!(samples.time_at(Seq(7)), Some(1_150));
        assert_eq!(samples.time_at(Seq(9)), Some(1_200));
        assert_eq!(samples.time_at(Seq(1)), Some(1_000), "the oldest time known");
        samples.seen(1_350, Seq(11));
        assert_eq!(samples.time_at(Seq(12)), Some(1_300), "another look had more already");
        samples.heard(1_400, Seq(7));
        assert_eq!(samples.time_at(Seq(12)), Some(1_400), "a head that went back is another history");
        assert_eq!(samples.time_at(Seq(5)), Some(1_100));
    }

    /// Halving all samples alike once left none between the oldest and the last seconds.
    #[test]
    fn samples_stay_bounded_and_any_age_is_known_within_a_few_per_cent() {
        let mut samples = LagSamples::default();
        let now_ms = 3_000_000_000;
        let mut at_ms = 0;
        // A month, by the minute at first and then ever finer.
        while at_ms < now_ms {
            samples.seen(at_ms, Seq(at_ms + 1));
            at_ms += ((now_ms - at_ms) / 1_000).clamp(10, 60_000);
        }
        samples.seen(now_ms, Seq(now_ms + 1));
        assert!(samples.samples.len() <= SAMPLES_MAX);
        for (newer, older) in samples.samples.iter().skip(1).zip(&samples.samples) {
            let (gap, age) = (newer.at_ms - older.at_ms, now_ms - older.at_ms);
            assert!(gap <= age / 2 + 40, "a gap of {gap} ms at an age of {age} ms");
        }
        for age_ms in [50, 1_000, 60_000, 3_600_000, 86_400_000, 2_000_000_000] {
            let found = now_ms - samples.time_at(Seq(now_ms - age_ms + 1)).unwrap();
            assert!(found.abs_diff(age_ms) <= age_ms / 50 + 10, "{found} for {age_ms}");
        }
    }

    #[test]
    fn a_burst_after_a_long_rest_does_not_look_like_an_old_lag() {
        let mut samples = LagSamples::default();
        for second in 0..3_600 {
            samples.seen(second * 1_000, Seq(100));
        }
        samples.seen(3_600_000, Seq(1_000));
        assert_eq!(samples.time_at(Seq(100)), Some(3_599_000));
        let halfway = samples.time_at(Seq(550)).unwrap();
        assert!((3_599_000..3_600_000).contains(&halfway), "{halfway}");
    }

    #[test]
    fn a_late_heartbeat_does_not_move_the_clock_and_a_clock_set_back_does_in_the_end() {
        let mut offset = ClockOffset::default();
        assert_eq!(offset.heard(10_000, 1_000), 9_000);
        assert_eq!(offset.heard(11_000, 5_000), 9_000, "three seconds on its way");
        assert_eq!(offset.heard(12_002, 3_000), 9_002);
        let after_set_back =
            (0..2 * u64::from(WINDOW_BEATS)).map(|beat| offset.heard(beat, 3_000 + beat)).last();
        assert_eq!(after_set_back, Some(-3_000));
    }
}
