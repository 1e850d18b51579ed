//! Waiting until links have come to a seq, without looking again and again.
//!
//! A wait names shards and seqs, and is woken when a link of such a shard passes such a seq, or when a
//! link is added that may be there already: never by an Ack that cannot matter to it. Then it looks for
//! itself, and waits on if that was not enough.
//!
//! Cost: with nobody waiting, an Ack pays a fence and a load.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Links;
use crate::slot::{Seq, ShardIndex};

/// In place of a shard: whoever waits for any link at all. No store has so many shards.
const ANY_SHARD: u16 = u16::MAX;
/// In place of a shard: whoever waits for a round of the log, which then stands in place of a seq.
pub(super) const LOG: u16 = u16::MAX - 1;

/// Shard, seq, and a number that tells apart who wait for the same.
type Ticket = (u16, Seq, u64);

/// Who waits for what.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    is_any: AtomicBool,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    by_ticket: BTreeMap<Ticket, Waker>,
    last_number: u64,
}

impl Waiters {
    fn register(&self, shard: u16, seq: Seq, waker: Waker) -> Ticket {
        let mut waiting = self.waiting.lock();
        waiting.last_number += 1;
        let ticket = (shard, seq, waiting.last_number);
        waiting.by_ticket.insert(ticket, waker);
        self.is_any.store(true, Ordering::Relaxed);
        drop(waiting);
        // Pairs with the fence in `wake`: either the link sees the flag, or the caller, who looks at the
        // figures after this, sees what the link stored before it looked at the flag.
        fence(Ordering::SeqCst);
        ticket
    }

    fn forget(&self, tickets: &mut Vec<Ticket>) {
        if tickets.is_empty() {
            return;
        }
        let mut waiting = self.waiting.lock();
        for ticket in tickets.drain(..) {
            waiting.by_ticket.remove(&ticket);
        }
        if waiting.by_ticket.is_empty() {
            self.is_any.store(false, Ordering::Relaxed);
        }
    }

    /// A link of the shard went from one seq to another.
    pub(super) fn passed(&self, shard: u16, from: Seq, to: Seq) {
        if from < to {
            self.wake(&[(shard, Seq(from.0 + 1), 0)..=(shard, to, u64::MAX)]);
        }
    }

    /// A link of the shard has begun, wherever it is.
    pub(super) fn began(&self, shard: u16) {
        let all = |shard| (shard, Seq::ZERO, 0)..=(shard, Seq(u64::MAX), u64::MAX);
        self.wake(&[all(shard), all(ANY_SHARD)]);
    }

    fn wake(&self, ranges: &[std::ops::RangeInclusive<Ticket>]) {
        fence(Ordering::SeqCst);
        if !self.is_any.load(Ordering::Relaxed) {
            return;
        }
        let mut woken = Vec::new();
        {
            let mut waiting = self.waiting.lock();
            for range in ranges {
                woken
                    .extend(waiting.by_ticket.extract_if(range.clone(), |_, _| true).map(|(_, waker)| waker));
            }
            if waiting.by_ticket.is_empty() {
                // Under the lock, so that who registers later sets the flag later.
                self.is_any.store(false, Ordering::Relaxed);
            }
        }
        woken.into_iter().for_each(Waker::wake);
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.lock().by_ticket.is_empty()
    }
}

/// A wait; see [`Links::wait`]. Dropping it leaves nothing behind.
#[derive(Debug)]
pub struct Wait<F> {
    links: Arc<Links>,
    targets: Vec<(ShardIndex, Seq)>,
    look: F,
    tickets: Vec<Ticket>,
}

impl<F> Wait<F> {
    pub(super) fn new(links: Arc<Links>, targets: Vec<(ShardIndex, Seq)>, look: F) -> Self {
        Self { links, targets, look, tickets: Vec::new() }
    }
}

impl<T, F: FnMut(&Links) -> Option<T> + Unpin> Future for Wait<F> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        let waiters = &this.links.waiters;
        waiters.forget(&mut this.tickets);
        // Registered before the look, so that nothing in between is missed.
        for (shard, seq) in &this.targets {
            this.tickets.push(waiters.register(shard.0, *seq, context.waker().clone()));
        }
        if this.targets.is_empty() {
            this.tickets.push(waiters.register(ANY_SHARD, Seq::ZERO, context.waker().clone()));
        }
        (this.look)(&this.links).map_or(Poll::Pending, Poll::Ready)
    }
}

impl<T, F: FnMut(&Links) -> Option<T> + Unpin> Wait<F> {
    /// Waits in this thread; `None` if the time is over first.
    pub fn block(mut self, timeout: Duration) -> Option<T> {
        let deadline = Instant::now().checked_add(timeout);
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        loop {
            if let Poll::Ready(found) = Pin::new(&mut self).poll(&mut Context::from_waker(&waker)) {
                return Some(found);
            }
            // A wake that came since the look ends the next park at once.
            match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return None,
                Some(left) => std::thread::park_timeout(left),
                None => std::thread::park(),
            }
        }
    }
}

impl<F> Drop for Wait<F> {
    fn drop(&mut self) {
        self.links.waiters.forget(&mut self.tickets);
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
