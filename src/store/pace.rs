//! How fast a checkpoint makes slots durable, and how writers are held back before the log is full.
//!
//! Written back all at once, slots keep the disk from the log's syncs, and writers run into pages that must be made
//! writable again all at the same time. So a checkpoint writes them back piece by piece at a set rate, and leaves
//! little to the sync behind it, which alone says that they are durable. The fuller the log, the faster it goes:
//! from three quarters on as fast as the disk takes it. From there on writers are held back, too, each time their
//! shard's buffer is full, and the buffer is small then: a little each time is less than a checkpoint at once.
//!
//! Without a rate nothing waits here: that is for programs that make checkpoints themselves, and for simulators.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::region::Window;

/// Bytes of a file that are looked at, and at most written back, at one time.
const PIECE: usize = 1 << 20;
/// How long a change of the rate may go unnoticed.
const NAP_MAX: Duration = Duration::from_millis(10);
/// A checkpoint begins when half of the log is in use.
const HURRY_FROM: f64 = 0.5;
const HURRY_TO: f64 = 0.75;
/// Where nothing is left but to wait.
const HOLD_TO: f64 = 1.0;
/// The longest that a writer is held back at one time, and what its shard's buffer takes between two times.
const HOLD_MAX: Duration = Duration::from_millis(10);
const HELD_BUFFER: usize = 16 << 10;

/// How much of a log is in use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fill {
    pub(super) segments: u32,
    pub(super) segments_max: u32,
}

impl Fill {
    /// 0 up to the one share of the log, 1 from the other one on.
    fn pressure(self, from: f64, to: f64) -> f64 {
        let share = f64::from(self.segments) / f64::from(self.segments_max.max(1));
        ((share - from) / (to - from)).clamp(0.0, 1.0)
    }
}

/// What a checkpoint's write-back and a full buffer's writer do for each other.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Zero: nobody waits.
    bytes_per_second: AtomicU64,
    written_bytes: AtomicU64,
    held: AtomicU64,
    /// Those who can do nothing before the checkpoint is through.
    in_need: AtomicU32,
}

/// Somebody waits for the checkpoint, until this is dropped.
pub(super) struct Need<'a>(&'a AtomicU32);

impl Drop for Need<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pace {
    pub(super) fn set(&self, bytes_per_second: u64) {
        // Relaxed: who waits looks again soon.
        self.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// No checkpoint takes its time meanwhile, neither one under way: a log without space may look nearly empty.
    pub(super) fn need(&self) -> Need<'_> {
        self.in_need.fetch_add(1, Ordering::Relaxed);
        Need(&self.in_need)
    }

    /// Bytes that were written back, and how often a writer was held.
    pub(super) fn figures(&self) -> (u64, u64) {
        (self.written_bytes.load(Ordering::Relaxed), self.held.load(Ordering::Relaxed))
    }

    /// Makes durable what was written to the slots until now.
    pub(super) fn sync(&self, slots: &Window, fill: impl Fn() -> Fill) -> io::Result<()> {
        let (mut since, mut written) = (Instant::now(), 0);
        for offset in (0..slots.len()).step_by(PIECE) {
            if self.due(0, fill()).is_none() {
                break;
            }
            let len = PIECE.min(slots.len() - offset);
            let dirty = slots.dirty_bytes(offset, len);
            if dirty > 0 {
                slots.write_back(offset, len)?;
                self.written_bytes.fetch_add(dirty, Ordering::Relaxed);
                written += dirty;
            }
            // Not for each piece: a piece of a few pages is done before a nap would begin.
            if written >= PIECE as u64 {
                self.wait(written, since, &fill);
                (since, written) = (Instant::now(), 0);
            }
        }
        slots.sync()
    }

    /// How long so many bytes take; `None`: as long as the disk says.
    fn due(&self, bytes: u64, fill: Fill) -> Option<Duration> {
        let rate = self.bytes_per_second.load(Ordering::Relaxed);
        let slack = 1.0 - fill.pressure(HURRY_FROM, HURRY_TO);
        (rate > 0 && slack > 0.0 && self.in_need.load(Ordering::Relaxed) == 0)
            .then(|| Duration::from_secs_f64(crate::units::float(bytes) / crate::units::float(rate) * slack))
    }

    fn wait(&self, bytes: u64, since: Instant, fill: impl Fn() -> Fill) {
        while let Some(due) = self.due(bytes, fill()) {
            let left = due.saturating_sub(since.elapsed());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(NAP_MAX));
        }
    }

    /// Bytes that a shard's buffer takes before its writer must write the log.
    pub(super) fn buffer(&self, fill: Fill, usual: usize) -> usize {
        if self.holds(fill).is_some() { HELD_BUFFER.min(usual) } else { usual }
    }

    fn holds(&self, fill: Fill) -> Option<Duration> {
        let hold = HOLD_MAX.mul_f64(fill.pressure(HURRY_TO, HOLD_TO));
        (!hold.is_zero() && self.bytes_per_second.load(Ordering::Relaxed) > 0).then_some(hold)
    }

    /// Holds a writer back for a moment, where the log is filling.
    pub(super) fn hold(&self, fill: Fill) {
        if let Some(hold) = self.holds(fill) {
            self.held.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(hold);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Durability, Options, Store};
    use super::*;
    use crate::slot::Geometry;

    const MIB: u64 = 1 << 20;

    fn fill(segments: u32) -> Fill {
        Fill { segments, segments_max: 64 }
    }

    #[test]
    fn a_checkpoint_goes_faster_the_fuller_the_log_and_never_waits_without_a_rate() {
        let pace = Pace::default();
        assert_eq!(pace.due(MIB, fill(1)), None);
        pace.set(MIB);
        let need = pace.need();
        assert_eq!(pace.due(MIB, fill(1)), None, "somebody waits");
        drop(need);
        assert_eq!(pace.due(MIB, fill(1)), Some(Duration::from_secs(1)));
        pace.set(MIB);
        assert_eq!(pace.due(MIB, fill(1)), Some(Duration::from_secs(1)));
        assert_eq!(pace.due(MIB, fill(32)), Some(Duration::from_secs(1)), "half full: at the rate");
        assert_eq!(pace.due(MIB, fill(40)), Some(Duration::from_millis(500)));
        assert!((48..=70).all(|segments| pace.due(MIB, fill(segments)).is_none()));
        let mut before = Duration::MAX;
        for segments in 32..48 {
            let due = pace.due(MIB, fill(segments)).expect("a wait");
            assert!(due < before, "{segments}");
            before = due;
        }
    }

    #[test]
    fn writers_are_held_only_in_the_last_quarter_and_longer_towards_its_end() {
        let pace = Pace::default();
        assert!(pace.holds(fill(64)).is_none(), "without a rate");
        pace.set(MIB);
        assert!((0..=48).all(|segments| pace.holds(fill(segments)).is_none()));
        assert_eq!(pace.buffer(fill(48), 1 << 20), 1 << 20);
        assert_eq!(pace.buffer(fill(49), 1 << 20), HELD_BUFFER);
        assert_eq!(pace.holds(fill(56)), Some(HOLD_MAX / 2));
        assert_eq!(pace.holds(fill(99)), Some(HOLD_MAX));
        pace.hold(fill(50));
        assert_eq!(pace.figures(), (0, 1));
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps a file")]
    fn dirty_pieces_are_written_back_at_the_rate_until_somebody_is_in_a_hurry() {
        let directory = tempfile::tempdir().expect("temp dir");
        let len = 8 * PIECE;
        let file = crate::region::create_file(&directory.path().join("slots"), len).expect("space");
        let mut region = crate::region::Region::map(file, len, len).expect("a map");
        region.bytes_mut(0, 2 * PIECE).fill(1);
        let window = region.window();
        let pace = Pace::default();
        // Five seconds for each piece; nobody waits that long.
        pace.set(MIB / 5);
        let took = std::thread::scope(|scope| {
            let synced = scope.spawn(|| {
                let begin = Instant::now();
                pace.sync(&window, || fill(1)).expect("a good disk");
                begin.elapsed()
            });
            let deadline = Instant::now() + Duration::from_secs(60);
            while pace.figures().0 == 0 {
                assert!(Instant::now() < deadline, "nothing is written back");
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(50));
            pace.set(0);
            synced.join().expect("no panic")
        });
        assert!(took >= Duration::from_millis(50), "it waited: {took:?}");
        let (written, _) = pace.figures();
        assert!(written >= MIB && written < 2 * len as u64, "{written}");
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps files")]
    fn writers_are_slowed_before_the_log_is_full_and_are_not_once_it_is_cut() {
        let directory = tempfile::tempdir().expect("temp dir");
        let geometry =
            Geometry { shard_count: 1, key_size_max: 8, value_size_max: 1000, shard_prefix_bits: 0 };
        let options = Options {
            durability: Durability::Interval(Duration::from_secs(1)),
            log_size_max: 8 * MIB,
            log_segment_size: 128 << 10,
            ..Options::create(geometry)
        };
        let store = Store::open(directory.path(), options).expect("a new store");
        store.pace_checkpoints(MIB);
        let stats = || store.log_stats().expect("a log");
        let write = |count: u32| {
            for number in 0..count {
                store.put(&(number % 64).to_le_bytes(), &[7; 1000]).expect("room");
            }
            // As the thread of the log does.
            store.write_log().expect("a good disk");
        };
        while stats().writes_held == 0 {
            write(100);
            assert_eq!(stats().stalls, 0, "the log was full before a writer was held");
        }
        assert!(stats().segments * 4 >= stats().segments_max * 3, "{:?}", stats());
        store.checkpoint().expect("a good disk");
        let held = stats().writes_held;
        write(100);
        write(1_000);
        assert_eq!(stats().writes_held, held, "a log with room holds nobody back");
    }
}
