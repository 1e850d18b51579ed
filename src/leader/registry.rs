//! How many links a leader has: bounded per shard, and bounded before a Hello.
//!
//! Shared by all sender threads; a seat is given back when its guard is dropped, on every exit path.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::lenders::Gate;
use super::pace::Pace;

/// Counts of links.
#[derive(Debug)]
pub struct Registry {
    pub(super) pace: Arc<Pace>,
    pub(super) gate: Gate,
    pending: Seats,
    shards: Box<[Seats]>,
}

#[derive(Debug)]
struct Seats {
    taken: Arc<AtomicUsize>,
    seat_count: usize,
}

/// One seat; dropping it gives it back.
#[derive(Debug)]
pub struct Seat {
    taken: Arc<AtomicUsize>,
}

impl Registry {
    /// No links yet, and room for so many.
    #[must_use]
    pub fn new(shard_count: u16, followers_per_shard_max: u16, pending_max: usize) -> Self {
        let shard = || Seats::new(usize::from(followers_per_shard_max));
        let shards = (0..shard_count).map(|_| shard()).collect();
        Self { pace: Arc::default(), gate: Gate::default(), pending: Seats::new(pending_max), shards }
    }

    /// A seat for a connection that has not said Hello; `None` = there are too many.
    #[must_use]
    pub fn pending_seat(&self) -> Option<Seat> {
        self.pending.take()
    }

    /// A seat for a follower of a shard; `None` = there are too many, or no such shard.
    #[must_use]
    pub fn follower_seat(&self, shard: u16) -> Option<Seat> {
        self.shards.get(usize::from(shard))?.take()
    }
}

impl Seats {
    fn new(seat_count: usize) -> Self {
        Self { taken: Arc::default(), seat_count }
    }

    fn take(&self) -> Option<Seat> {
        let take = |taken: usize| (taken < self.seat_count).then_some(taken + 1);
        self.taken.try_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        Some(Seat { taken: Arc::clone(&self.taken) })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_bounded_and_given_back() {
        let registry = Registry::new(2, 1, 2);
        let first = registry.follower_seat(1).unwrap();
        assert!(registry.follower_seat(1).is_none());
        assert!(registry.follower_seat(0).is_some());
        assert!(registry.follower_seat(2).is_none());
        drop(first);
        assert!(registry.follower_seat(1).is_some());
        let pending = [registry.pending_seat().unwrap(), registry.pending_seat().unwrap()];
        assert!(registry.pending_seat().is_none());
        drop(pending);
        assert!(registry.pending_seat().is_some());
    }
}
