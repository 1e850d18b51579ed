//! The follower's thread: sockets, readiness and time around the lanes of all shards.
//!
//! The thread sleeps in the poll whenever no socket has something for it. It needs no naps: what
//! arrives in a round is applied in one go and acknowledged once, and the leader's naps set the pace.
//! It is named `repl-recv-0` and ends when the stop signal is set.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use mio::{Events, Poll, Token, Waker};

use crate::clock::Now;
use crate::links::Links;
use crate::slot::ShardIndex;
use crate::stop::Stop;
use crate::store::Store;

use super::Options;
use super::lane::Lane;
use super::link::Env;
use super::resolve::Resolver;

const TOKEN_WAKER: Token = Token(usize::MAX);

/// A follower that follows until it is stopped.
#[derive(Debug)]
pub struct Follower {
    thread: JoinHandle<()>,
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
        if let Some(shard) = store.led_shard() {
            let seq = store.head(shard);
            let text = format!(
                "this store has led: its shard {shard} is at seq {seq} by changes of its own, which no leader \
                 can take back; remove its data so that it starts anew, or let it lead"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        store.set_read_only(true);
        let worker = Worker::new(store, leader, options, links, stop)?;
        let thread =
            std::thread::Builder::new().name("repl-recv-0".to_owned()).spawn(move || worker.run())?;
        Ok(Self { thread })
    }

    /// Waits until the thread has ended; set the stop signal first.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the follower's replication thread has panicked");
        }
    }
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
    fn new(
        store: Arc<Store>,
        leader: String,
        options: Options,
        links: Arc<Links>,
        stop: Stop,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), TOKEN_WAKER)?);
        stop.on_stop({
            let waker = Arc::clone(&waker);
            move || wake(&waker)
        });
        let resolver = Resolver::new(leader, move || wake(&waker));
        let mut shards = options.shards.clone();
        if shards.is_empty() {
            shards = store.shards().collect();
        }
        shards.sort_unstable();
        shards.dedup();
        let shared = Shared { store, options, links, stop };
        let env = shared.env(shared.store.clock().now());
        let lane = |(index, shard): (usize, &ShardIndex)| Lane::new(*shard, Token(index), env);
        let lanes = shards.iter().enumerate().map(lane).collect();
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
    }

    fn take_events(&mut self, events: &Events, now: Now) {
        let mut is_answered = false;
        for event in events {
            match event.token() {
                TOKEN_WAKER => is_answered = true,
                Token(index) => {
                    let is_readable = event.is_readable() || event.is_error();
                    self.lanes[index].ready(is_readable, event.is_writable());
                }
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
