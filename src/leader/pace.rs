//! Scans as good neighbours: how many at once, and how many bytes a second in all.
//!
//! A scan takes a [`Turn`]. Scans of links that have not streamed yet wait for one of the places in the
//! order in which they came; one that could not go on if it had the place (its follower takes nothing) is
//! passed over meanwhile. A scan that answers a ring's overflow is a part of streaming: it needs no place.
//! The rate is shared evenly by the scans under way, whichever kind they are, so none starves; what a slow
//! follower leaves of its share is left over.
//!
//! While clients write, scans take no more than a share of what the machine can do: their rate is the higher of
//! a fixed one and some more than what is written. The second makes a scan end: each round has less to send.
//!
//! No clock and no sleep here: a scan that may not go on is told when to ask again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::Options;
use super::writes::Writes;
use crate::slot::Seq;
use crate::units::float;

/// How soon a scan without a place asks again.
const PLACE_RETRY: Duration = Duration::from_millis(10);
/// A scan that has not asked for this long is passed over.
const ABSENT_AFTER: Duration = Duration::from_secs(1);
/// A share that was not used for longer than this is gone.
const SAVED_MAX: Duration = Duration::from_millis(200);
/// Shortest and longest time until a scan without bytes asks again; the longest, since its share may grow.
const BYTES_RETRY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(500));

/// Slots that scans may send for each one that clients write meanwhile.
const SLOTS_PER_WRITE: f64 = 1.2;

/// What all scans of a leader share.
#[derive(Debug, Default)]
pub(super) struct Pace {
    places: Mutex<Places>,
    /// Scans that are sending.
    sending: AtomicU64,
    writes: Writes,
}

#[derive(Debug, Default)]
struct Places {
    taken: usize,
    last_ticket: u64,
    /// In order of arrival: ticket, and when it last asked.
    queue: Vec<(u64, Duration)>,
}

/// One link's turn to scan; dropping it gives everything back.
#[derive(Debug)]
pub(super) struct Turn {
    pace: Arc<Pace>,
    place: Place,
    is_sending: bool,
    /// Bytes that may be sent now; below zero by what the last batch took too much.
    bytes_left: f64,
    counted_at: Duration,
    retry_at: Option<Duration>,
    /// The shard's head when it was looked at last.
    head: Seq,
    sent_bytes: u64,
    sent_slots: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Unneeded,
    Queued { ticket: u64 },
    Taken,
}

impl Turn {
    /// For a link that begins: its scan needs a place.
    pub(super) fn first(pace: &Arc<Pace>, head: Seq, now: Duration) -> Self {
        let mut places = pace.places.lock();
        places.last_ticket += 1;
        let ticket = places.last_ticket;
        places.queue.push((ticket, now));
        drop(places);
        Self::new(pace, Place::Queued { ticket }, head, now)
    }

    /// For a link whose ring has overflowed.
    pub(super) fn of_overflow(pace: &Arc<Pace>, head: Seq, now: Duration) -> Self {
        Self::new(pace, Place::Unneeded, head, now)
    }

    fn new(pace: &Arc<Pace>, place: Place, head: Seq, now: Duration) -> Self {
        Self {
            pace: Arc::clone(pace),
            place,
            is_sending: false,
            bytes_left: 1.0,
            counted_at: now,
            retry_at: None,
            head,
            sent_bytes: 0,
            sent_slots: 0,
        }
    }

    /// Whether the scan waits for a place.
    pub(super) fn is_queued(&self) -> bool {
        matches!(self.place, Place::Queued { .. })
    }

    /// When to ask again, if the last answer was no.
    pub(super) fn retry_at(&self) -> Option<Duration> {
        self.retry_at
    }

    /// Whether a batch may be sent now; `head` is the shard's.
    pub(super) fn ask(&mut self, options: &Options, head: Seq, now: Duration) -> bool {
        self.retry_at = None;
        let written = head.0 - std::mem::replace(&mut self.head, head).0;
        let writes_per_second = self.pace.writes.seen(written, now);
        if let Place::Queued { ticket } = self.place {
            if !self.pace.places.lock().admits(ticket, options.scans_max, now) {
                self.retry_at = Some(now + PLACE_RETRY);
                return false;
            }
            self.place = Place::Taken;
            self.counted_at = now;
        }
        if !self.is_sending {
            self.is_sending = true;
            self.pace.sending.fetch_add(1, Ordering::Relaxed);
        }
        let Some(rate) = self.rate(options, writes_per_second) else {
            (self.bytes_left, self.counted_at) = (1.0, now);
            return true;
        };
        let sending = self.pace.sending.load(Ordering::Relaxed).max(1);
        let share = rate / float(sending);
        let earned = share * now.saturating_sub(self.counted_at).as_secs_f64();
        self.counted_at = now;
        self.bytes_left = (self.bytes_left + earned).min((share * SAVED_MAX.as_secs_f64()).max(1.0));
        if self.bytes_left > 0.0 {
            return true;
        }
        let wait = Duration::try_from_secs_f64(-self.bytes_left / share).unwrap_or(BYTES_RETRY.1);
        self.retry_at = Some(now + wait.clamp(BYTES_RETRY.0, BYTES_RETRY.1));
        false
    }

    /// Bytes a second that all scans may send together; none = no limit.
    fn rate(&self, options: &Options, writes_per_second: f64) -> Option<f64> {
        let limit = |rate: u64| (rate > 0).then(|| float(rate));
        let slot = float(self.sent_bytes) / float(self.sent_slots.max(1));
        let busy = limit(options.scan_bytes_per_second_busy)
            .filter(|_| writes_per_second > 0.0)
            .map(|busy| busy.max(SLOTS_PER_WRITE * writes_per_second * slot));
        let most = limit(options.scan_bytes_per_second_max);
        busy.into_iter().chain(most).min_by(f64::total_cmp)
    }

    /// A batch of so many bytes and slots was made.
    pub(super) fn spent(&mut self, bytes: usize, slots: u64) {
        self.bytes_left -= float(bytes as u64);
        self.sent_bytes += bytes as u64;
        self.sent_slots += slots;
    }

    /// The scan is through; the place is kept, since another may follow before the link streams.
    pub(super) fn pause(&mut self) {
        if std::mem::take(&mut self.is_sending) {
            self.pace.sending.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.pause();
        let mut places = self.pace.places.lock();
        match self.place {
            Place::Unneeded => {}
            Place::Queued { ticket } => places.queue.retain(|(queued, _)| *queued != ticket),
            Place::Taken => places.taken -= 1,
        }
    }
}

impl Places {
    /// Gives a queued scan its place, if there is one and nobody who asks was there before it.
    fn admits(&mut self, ticket: u64, scans_max: usize, now: Duration) -> bool {
        let Some(at) = self.queue.iter().position(|(queued, _)| *queued == ticket) else { return false };
        self.queue[at].1 = now;
        let is_present = |(_, asked_at): &(u64, Duration)| now.saturating_sub(*asked_at) < ABSENT_AFTER;
        let is_free = scans_max == 0 || self.taken < scans_max;
        if !is_free || (scans_max > 0 && self.queue[..at].iter().any(is_present)) {
            return false;
        }
        self.queue.remove(at);
        self.taken += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(scans_max: usize, rate: u64) -> Options {
        Options { scans_max, scan_bytes_per_second_max: rate, ..Options::default() }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn without_limits_every_scan_goes_at_once() {
        let pace = Arc::new(Pace::default());
        let mut turns: Vec<_> = (0..9).map(|_| Turn::first(&pace, Seq::ZERO, ms(0))).collect();
        for turn in turns.iter_mut().rev() {
            assert!(turn.ask(&options(0, 0), Seq::ZERO, ms(0)));
            turn.spent(1 << 30, 1);
            assert!(turn.ask(&options(0, 0), Seq::ZERO, ms(0)) && turn.retry_at().is_none());
        }
    }

    #[test]
    fn scans_have_their_places_in_order_and_give_them_back() {
        let (pace, options) = (Arc::new(Pace::default()), options(2, 0));
        let mut turns: Vec<_> = (0..5).map(|_| Some(Turn::first(&pace, Seq::ZERO, ms(0)))).collect();
        let ask = |turns: &mut Vec<Option<Turn>>, index: usize, at: u64| {
            turns[index].as_mut().unwrap().ask(&options, Seq::ZERO, ms(at))
        };
        assert!(!ask(&mut turns, 4, 1), "four others came first");
        assert!(ask(&mut turns, 0, 1) && ask(&mut turns, 1, 1));
        assert!(!ask(&mut turns, 2, 1));
        assert!(turns[2].as_ref().unwrap().is_queued());
        assert_eq!(turns[2].as_ref().unwrap().retry_at(), Some(ms(11)));
        // The first has streamed, the second's link has broken off; the third's, too, while it waited.
        turns[0] = None;
        turns[1] = None;
        turns[2] = None;
        assert!(ask(&mut turns, 4, 1_500), "the fourth has not asked for long");
        assert!(ask(&mut turns, 3, 1_501));
        let mut overflow = Turn::of_overflow(&pace, Seq::ZERO, ms(1_501));
        assert!(overflow.ask(&options, Seq::ZERO, ms(1_501)), "a streaming link waits for no place");
        assert_eq!(pace.places.lock().taken, 2);
        turns.clear();
        drop(overflow);
        assert_eq!((pace.places.lock().taken, pace.sending.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn the_rate_is_kept_and_shared_evenly_whoever_asks_first() {
        const BATCH: usize = 64 << 10;
        const RATE: u64 = 4 << 20;
        let (pace, options) = (Arc::new(Pace::default()), options(0, RATE));
        let mut turns = [
            Turn::first(&pace, Seq::ZERO, ms(0)),
            Turn::first(&pace, Seq::ZERO, ms(0)),
            Turn::of_overflow(&pace, Seq::ZERO, ms(0)),
        ];
        let mut sent = [0_usize; 3];
        // The first always asks first, as often as it likes.
        for at in 0..10_000 {
            for (turn, sent) in turns.iter_mut().zip(&mut sent) {
                while turn.ask(&options, Seq::ZERO, ms(at)) {
                    turn.spent(BATCH, 1);
                    *sent += BATCH;
                }
                assert!(turn.retry_at().unwrap() > ms(at));
            }
        }
        let (total, wanted) = (sent.iter().sum::<usize>(), 10 * usize::try_from(RATE).unwrap());
        assert!(total.abs_diff(wanted) < 10 * BATCH, "{total} bytes in ten seconds, wanted {wanted}");
        assert!(sent.iter().all(|sent| sent.abs_diff(wanted / 3) < 3 * BATCH), "{sent:?}");
        // One that is through leaves its share to the others; one that rested saves little.
        turns[2].pause();
        let before = sent[0];
        let mut after = before;
        for at in 20_000..21_000 {
            while turns[0].ask(&options, Seq::ZERO, ms(at)) {
                turns[0].spent(BATCH, 1);
                after += BATCH;
            }
        }
        let (found, wanted) = (after - before, usize::try_from(RATE).unwrap() / 2 * 12 / 10);
        assert!(found.abs_diff(wanted) < 4 * BATCH, "{found} bytes in a second, wanted {wanted}");
    }

    #[test]
    fn a_batch_larger_than_a_second_of_the_rate_is_paid_for_later() {
        let (pace, options) = (Arc::new(Pace::default()), options(0, 1_000));
        let mut turn = Turn::first(&pace, Seq::ZERO, ms(0));
        assert!(turn.ask(&options, Seq::ZERO, ms(0)));
        turn.spent(5_001, 1);
        assert!(!turn.ask(&options, Seq::ZERO, ms(1)));
        assert_eq!(turn.retry_at(), Some(ms(501)), "its share may grow meanwhile");
        assert!(!turn.ask(&options, Seq::ZERO, ms(4_900)));
        assert!(turn.ask(&options, Seq::ZERO, ms(5_010)));
    }

    #[test]
    fn a_scan_leaves_room_for_writers_and_yet_outruns_them() {
        const SLOT: usize = 100;
        let options = Options { scan_bytes_per_second_busy: 4 << 20, ..Options::default() };
        // Bytes that a scan sends in a second while clients write so much.
        let sent_beside = |writes_per_ms: u64| {
            let pace = Arc::new(Pace::default());
            let (mut turn, mut sent) = (Turn::first(&pace, Seq::ZERO, ms(0)), 0);
            for at in 0..2_000 {
                // What a second of the scan's own work brings at most.
                for _ in 0..1_000 {
                    if !turn.ask(&options, Seq(at * writes_per_ms), ms(at)) {
                        break;
                    }
                    turn.spent(10 * SLOT, 10);
                    sent += if at < 1_000 { 0 } else { 10 * SLOT };
                }
            }
            sent
        };
        assert_eq!(sent_beside(0), 1_000 * 1_000 * 10 * SLOT, "nobody writes: nothing is held back");
        assert_eq!(sent_beside(9), sent_beside(0), "next to nobody");
        assert!(sent_beside(11).abs_diff(4 << 20) < 1 << 18, "{}", sent_beside(11));
        let (beside_many, many) = (sent_beside(1_000), 1_000 * 1_000 * SLOT * 6 / 5);
        assert!(beside_many.abs_diff(many) < many / 10, "{beside_many}");
    }
}
