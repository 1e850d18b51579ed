//! Who gives back what a crash took, how far each has come, and until when that is waited for.
//!
//! Always true: the slots of a lender below its place hold what it has there, or something newer. So a link
//! that breaks costs what was under way on it: the next one of the same follower goes on at the place. A
//! follower that says anything else than before in its Hello may hold something else, and begins anew.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::slot::{ShardIndex, SlotIndex};
use crate::wire::message::Hello;

use super::Options;

/// Followers times shards that are remembered; more are refused.
const LENDERS_MAX: usize = 1024;
/// The wait ends after so many times the wait for who has not come, whoever still sends.
const BOUND_FACTOR: u32 = 10;

/// The wait; all links of a leader share it.
#[derive(Debug, Default)]
pub(super) struct Gate(pub(super) Arc<Mutex<Wait>>);

#[derive(Debug, Default)]
pub(super) struct Wait {
    /// When it ends for those who have not come; known once it has begun.
    pub(super) ends_at: Option<Duration>,
    pub(super) report_at: Duration,
    pub(super) is_over: bool,
    pub(super) lenders: Vec<Lender>,
}

/// A follower that gives back a shard.
#[derive(Debug)]
pub(super) struct Lender {
    pub(super) hello: Hello,
    /// Slots below this one have come.
    pub(super) next: SlotIndex,
    /// When it came, or brought anything last.
    progress_at: Duration,
    links: u32,
    pub(super) is_through: bool,
}

/// A link that sends; dropping it says that it does not any more.
#[derive(Debug)]
pub(super) struct Sender {
    wait: Arc<Mutex<Wait>>,
    lender: usize,
}

impl Gate {
    /// Lets a link send from the place that comes with it; `None` = the wait is over, or there are too many.
    pub(super) fn enter(&self, hello: &Hello, now: Duration) -> Option<(Sender, SlotIndex)> {
        let mut wait = self.0.lock();
        if wait.is_over {
            return None;
        }
        let is_same =
            |known: &Lender| known.hello.follower_id == hello.follower_id && known.hello.shard == hello.shard;
        let lender = match wait.lenders.iter().position(is_same) {
            Some(lender) => lender,
            None if wait.lenders.len() == LENDERS_MAX => return None,
            None => {
                wait.lenders.push(Lender::new(hello.clone(), now));
                wait.lenders.len() - 1
            }
        };
        let known = &mut wait.lenders[lender];
        if known.hello != *hello {
            // A link of before may still be there; what it brings is noted nowhere, which costs nothing.
            *known = Lender { links: known.links, ..Lender::new(hello.clone(), now) };
        }
        known.links += 1;
        let next = known.next;
        drop(wait);
        Some((Sender { wait: Arc::clone(&self.0), lender }, next))
    }
}

impl Lender {
    fn new(hello: Hello, now: Duration) -> Self {
        Self { hello, next: SlotIndex(0), progress_at: now, links: 0, is_through: false }
    }

    pub(super) fn shard(&self) -> ShardIndex {
        ShardIndex(self.hello.shard)
    }

    /// One whose link has ended has time to come back.
    fn is_hoped_for(&self, now: Duration, dead_after: Duration) -> bool {
        let patience = if self.links > 0 { dead_after } else { 2 * dead_after };
        !self.is_through && now < self.progress_at + patience
    }
}

impl Wait {
    /// Whether there is still somebody to wait for.
    pub(super) fn goes_on(&mut self, now: Duration, options: &Options) -> bool {
        let ends_at = *self.ends_at.get_or_insert(now + options.regain_wait);
        let bound = ends_at + (BOUND_FACTOR - 1) * options.regain_wait;
        now < ends_at
            || now < bound && self.lenders.iter().any(|known| known.is_hoped_for(now, options.dead_after))
    }

    pub(super) fn senders(&self) -> usize {
        self.lenders.iter().filter(|known| known.links > 0 && !known.is_through).count()
    }
}

impl Sender {
    /// Slots below `next` have come. Only what moves the place is progress.
    pub(super) fn passed(&self, hello: &Hello, next: SlotIndex, now: Duration) {
        let known = &mut self.wait.lock().lenders[self.lender];
        if known.hello == *hello && next > known.next {
            known.next = next;
            known.progress_at = now;
        }
    }

    /// All has come.
    pub(super) fn is_through(&self, hello: &Hello) {
        let known = &mut self.wait.lock().lenders[self.lender];
        known.is_through |= known.hello == *hello;
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.wait.lock().lenders[self.lender].links -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn hello(watermark: u64) -> Hello {
        super::super::hello::tests::hello(&[], watermark, watermark)
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn options() -> Options {
        Options { regain_wait: s(10), dead_after: s(5), ..Options::default() }
    }

    fn goes_on(gate: &Gate, now: u64) -> bool {
        gate.0.lock().goes_on(s(now), &options())
    }

    #[test]
    fn a_new_link_goes_on_where_the_last_one_broke() {
        let gate = Gate::default();
        let (sender, next) = gate.enter(&hello(50), s(0)).unwrap();
        assert_eq!(next, SlotIndex(0));
        sender.passed(&hello(50), SlotIndex(7), s(1));
        drop(sender);
        let (again, next) = gate.enter(&hello(50), s(2)).unwrap();
        assert_eq!(next, SlotIndex(7));
        // It holds something else by now: what came before counts for nothing, also on a link of before.
        let (_other, next) = gate.enter(&hello(51), s(2)).unwrap();
        assert_eq!(next, SlotIndex(0));
        again.passed(&hello(50), SlotIndex(9), s(3));
        again.is_through(&hello(50));
        assert_eq!(gate.enter(&hello(51), s(3)).unwrap().1, SlotIndex(0));
        assert!(!gate.0.lock().lenders[0].is_through);
    }

    #[test]
    fn the_wait_is_bounded_whoever_sends() {
        let gate = Gate::default();
        assert!(goes_on(&gate, 0) && goes_on(&gate, 9) && !goes_on(&gate, 10), "nobody came");
        let (sender, _) = gate.enter(&hello(50), s(8)).unwrap();
        assert!(goes_on(&gate, 12) && !goes_on(&gate, 13), "it is there and brings nothing");
        sender.passed(&hello(50), SlotIndex(1), s(12));
        assert!(goes_on(&gate, 16) && !goes_on(&gate, 17));
        sender.passed(&hello(50), SlotIndex(1), s(16));
        assert!(!goes_on(&gate, 17), "the same again is no progress");
        drop(sender);
        assert!(goes_on(&gate, 21) && !goes_on(&gate, 22), "it may come back");
        let (sender, _) = gate.enter(&hello(50), s(21)).unwrap();
        assert!(!goes_on(&gate, 22), "coming back is no progress");
        sender.passed(&hello(50), SlotIndex(1000), s(99));
        assert!(goes_on(&gate, 99) && !goes_on(&gate, 100), "no longer than ten times the wait");
        sender.is_through(&hello(50));
        assert!(!goes_on(&gate, 99));
    }

    #[test]
    fn lenders_are_bounded() {
        let gate = Gate::default();
        let of = |id: usize| Hello { follower_id: Uuid::from_u128(id as u128), ..hello(1) };
        assert!((0..LENDERS_MAX).all(|id| gate.enter(&of(id), s(0)).is_some()));
        assert!(gate.enter(&of(LENDERS_MAX), s(0)).is_none());
        assert!(gate.enter(&of(0), s(0)).is_some());
    }
}
