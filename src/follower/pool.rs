//! The follower's threads: sockets, readiness and time around the lanes of their shards.
//!
//! A shard's lane stays with one thread. A thread sleeps in the poll whenever no socket has something for
//! it. It needs no naps: what arrives in a round is applied in one go and acknowledged once, and the
//! leader's naps set the pace. Threads are named `repl-recv-N` and end when the stop signal is set.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use mio::{Events, Poll, Token, Waker};

use crate::clock::Now;
use crate::links::Links;
use crate::slot::{Seq, ShardIndex};
use crate::stop::Stop;
use crate::store::{Position, Store};

use super::Options;
use super::lane::Lane;
use super::link::Env;
use super::resolve::Resolver;

const TOKEN_WAKER: Token = Token(usize::MAX);

/// A follower that follows until it is stopped.
#[derive(Debug)]
pub struct Follower {
    store: Arc<Store>,
    links: Arc<Links>,
    threads: Vec<JoinHandle<()>>,
}

impl Follower {
    /// Lets `store` follow the leader at `leader` (`HOST:PORT`, looked up at each connect) until
    /// `stop` is set. From now on the store is read-only for everybody else.
    pub fn start(
        store: Arc<Store>,
        leader: String,
        options: Options,
        links: Arc<Links>,
        stop: Stop,
    ) -> io::Result<Self> {
        let shard_count = store.geometry().shard_count;
        if let Some(shard) = options.shards.iter().find(|shard| shard.0 >= shard_count) {
            let text = format!("no shard {shard}, this store has shards 0 to {}", shard_count - 1);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        store.demote().map_err(io::Error::other)?;
        links.heads.clear();
        let mut shards =
            if options.shards.is_empty() { store.shards().collect() } else { options.shards.clone() };
        shards.sort_unstable();
        shards.dedup();
        let thread_count = options.threads.clamp(1, shards.len());
        let mut threads = Vec::with_capacity(thread_count);
        for index in 0..thread_count {
            let shared = Shared {
                store: Arc::clone(&store),
                options: options.clone(),
                links: Arc::clone(&links),
                stop: stop.clone(),
            };
            let shards = shards.iter().copied().skip(index).step_by(thread_count);
            let worker = Worker::new(shared, leader.clone(), shards)?;
            let builder = std::thread::Builder::new().name(format!("repl-recv-{index}"));
            threads.push(builder.spawn(move || worker.run())?);
        }
        Ok(Self { store, links, threads })
    }

    /// Blocks until this follower holds a change that the leader made in this term under this seq, so that
    /// whoever made it can read it here.
    ///
    /// ```no_run
    /// # fn read(leader: &slotstream::Store, copy: &slotstream::Store, follower: &slotstream::follower::Follower)
    /// # -> Result<(), Box<dyn std::error::Error>> {
    /// let shard = leader.shard_of(b"hello");
    /// let (seq, term) = (leader.put(b"hello", b"world")?, leader.term(shard));
    /// follower.wait(shard, term, seq, std::time::Duration::from_millis(100))?;
    /// assert_eq!(copy.get(b"hello")?, Some(b"world".to_vec()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn wait(&self, shard: ShardIndex, term: u64, seq: Seq, timeout: Duration) -> Result<(), NotHeld> {
        let look = |_: &Links| match self.store.position(shard, term, seq) {
            Position::Ahead => None,
            found => Some(found),
        };
        match self.links.wait(vec![(shard, seq)], look).block(timeout) {
            Some(Position::Held) => Ok(()),
            found => Err(NotHeld { shard, term, seq, found: found.unwrap_or(Position::Ahead) }),
        }
    }

    /// Waits until all threads have ended; set the stop signal first.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a replication thread of the follower has panicked");
            }
        }
    }
}

/// A follower does not hold a change: not yet, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("seq {seq} of term {term} in shard {shard} is not held: {found}")]
pub struct NotHeld {
    /// The shard.
    pub shard: ShardIndex,
    /// The name of the term in which the change was made.
    pub term: u64,
    /// Its seq.
    pub seq: Seq,
    /// Where it stands instead.
    pub found: Position,
}

struct Worker {
    shared: Shared,
    resolver: Resolver,
    poll: Poll,
    lanes: Vec<Lane>,
    pass_at: Duration,
}

struct Shared {
    store: Arc<Store>,
    options: Options,
    links: Arc<Links>,
    stop: Stop,
}

impl Shared {
    fn env(&self, now: Now) -> Env<'_> {
        Env { store: &self.store, options: &self.options, links: &self.links, now }
    }
}

impl Worker {
    fn new(shared: Shared, leader: String, shards: impl Iterator<Item = ShardIndex>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), TOKEN_WAKER)?);
        shared.stop.on_stop({
            let waker = Arc::clone(&waker);
            move || wake(&waker)
        });
        let resolver = Resolver::new(leader, move || wake(&waker));
        let env = shared.env(shared.store.clock().now());
        let lane = |(index, shard): (usize, ShardIndex)| Lane::new(shard, Token(index), env);
        let lanes = shards.enumerate().map(lane).collect();
        Ok(Self { shared, resolver, poll, lanes, pass_at: Duration::ZERO })
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(256);
        let mut has_more = false;
        while !self.shared.stop.is_set() {
            let now = self.shared.store.clock().monotonic();
            let timeout = if has_more { Duration::ZERO } else { self.pass_at.saturating_sub(now) };
            if let Err(error) = self.poll.poll(&mut events, Some(timeout))
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "poll: replication stops");
                break;
            }
            let now = self.shared.store.clock().now();
            self.take_events(&events, now);
            if now.monotonic >= self.pass_at {
                self.pass(now);
            }
            has_more = self.round(now);
        }
        self.lanes.iter().for_each(|lane| lane.hide(&self.shared.links));
    }

    fn take_events(&mut self, events: &Events, now: Now) {
        let mut is_answered = false;
        for event in events {
            match event.token() {
                TOKEN_WAKER => is_answered = true,
                Token(index) => self.lanes[index].ready(event),
            }
        }
        if is_answered && let Some(answer) = self.resolver.answer() {
            let env = self.shared.env(now);
            for lane in &mut self.lanes {
                lane.resolved(&answer, self.poll.registry(), env);
            }
        }
    }

    /// One turn for every lane; says whether any has more to do at once.
    fn round(&mut self, now: Now) -> bool {
        let env = self.shared.env(now);
        let mut has_more = false;
        for lane in &mut self.lanes {
            has_more |= lane.turn(self.poll.registry(), env);
            // A lane that changed its state may be due earlier than the pass was.
            self.pass_at = self.pass_at.min(lane.deadline(env.options));
        }
        has_more
    }

    /// Deadlines of all lanes.
    fn pass(&mut self, now: Now) {
        let env = self.shared.env(now);
        for lane in &mut self.lanes {
            lane.pass(self.poll.registry(), &self.resolver, env);
        }
        self.pass_at = Duration::MAX / 2;
    }
}

fn wake(waker: &Waker) {
    if let Err(error) = waker.wake() {
        tracing::error!(%error, "the replication thread cannot be woken");
    }
}
