//! The leader's threads: sockets, readiness and time around many links.
//!
//! A sender thread is in one of three gears. *Busy*: a link has more to send, go round again without
//! pause. *Napping*: the last write is less than [`PARK_AFTER`] ago, so look again after a nap;
//! writers pay nothing, and what they write meanwhile goes out in one frame. Naps are short while
//! little is written, for the sake of latency, and longer under load, where fewer and larger frames
//! save a third of what both ends spend. *Parked*: sleep until a socket, a deadline or the first
//! write; that write pays one wake. A thread with nothing but heartbeats to send stays parked
//! between them.
//!
//! A follower whose socket takes nothing costs its thread nothing: the socket says when it is
//! writable again. Its ring fills and latches, and from then on costs its writers nothing either.
//!
//! Thread 0 accepts; connections go round robin to all threads. Threads are named `repl-send-N`; they
//! end when the stop signal is set.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use parking_lot::Mutex;

use crate::clock::Now;
use crate::links::{Level, Links, monotonic_ms};
use crate::ring::Sleeper;
use crate::slot::{Seq, ShardIndex};
use crate::stop::Stop;
use crate::store::Store;

use super::link::{Env, Link, LinkError, Received, SendStop, Sent};
use super::{Options, Registry, regain};

/// How long a thread naps after little work, or none.
const NAP: Duration = Duration::from_micros(30);
/// How long a thread naps after a round of [`LOADED_BYTES`] or more.
const NAP_LOADED: Duration = Duration::from_micros(100);
/// Bytes of a round that tell load from a few writes.
const LOADED_BYTES: usize = 4096;
/// A thread that found nothing to do for this long parks.
const PARK_AFTER: Duration = Duration::from_millis(1);
/// The kernel rounds a nap up by this much.
const TIMER_SLACK_NS: NonZeroU64 = NonZeroU64::new(1000).expect("not zero");
/// Bytes that one link may send before the others have their turn.
const SEND_BUDGET: usize = 256 * 1024;
/// Receives of one link before the others have their turn.
const RECEIVES_MAX: usize = 4;
/// Connections accepted before the links have their turn.
const ACCEPTS_MAX: usize = 64;
/// How often a busy thread looks at deadlines and publishes figures.
const PASS_INTERVAL: Duration = Duration::from_millis(100);
/// How often thread 0 notes where every shard's head is, so that a follower that comes back after a while
/// is known to be that old.
const HEADS_INTERVAL: Duration = Duration::from_secs(1);
/// How soon accepting is tried again after the system refused it.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// At most one log line about bad peers in this time.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);

const TOKEN_LISTENER: Token = Token(usize::MAX - 1);
const TOKEN_WAKER: Token = Token(usize::MAX);

/// A leader that serves followers until it is stopped.
#[derive(Debug)]
pub struct Leader {
    address: SocketAddr,
    links: Arc<Links>,
    threads: Vec<JoinHandle<()>>,
}

impl Leader {
    /// Serves `store` to the followers that connect to `listener`, until `stop` is set.
    pub fn start(
        store: Arc<Store>,
        listener: TcpListener,
        options: Options,
        links: Arc<Links>,
        stop: Stop,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        links.heads.clear();
        let registry = Arc::new(Registry::new(
            store.geometry().shard_count,
            options.followers_per_shard_max,
            options.pending_max,
        ));
        let shared = Shared { store, options, links: Arc::clone(&links), registry, stop };
        let mut workers = (0..shared.options.threads.max(1))
            .map(|_| Worker::new(shared.clone()))
            .collect::<io::Result<Vec<_>>>()?;
        let doors: Vec<Door> = workers.iter().map(|worker| worker.door.clone()).collect();
        workers[0].listen(mio::net::TcpListener::from_std(listener), doors)?;
        let mut leader = Self { address, links, threads: Vec::new() };
        for (number, worker) in workers.into_iter().enumerate() {
            let builder = std::thread::Builder::new().name(format!("repl-send-{number}"));
            leader.threads.push(builder.spawn(move || worker.run())?);
        }
        Ok(leader)
    }

    /// Where followers connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Blocks until `followers` followers have a change of the shard, which [`Store::put`] names by its seq,
    /// or the time is over; says how many have it.
    ///
    /// ```no_run
    /// # fn wait(store: &slotstream::Store, leader: &slotstream::leader::Leader) -> Result<(), Box<dyn std::error::Error>> {
    /// use slotstream::links::Level;
    ///
    /// let seq = store.put(b"hello", b"world")?;
    /// leader.wait(store.shard_of(b"hello"), seq, Level::Applied, 1, std::time::Duration::from_millis(100))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn wait(
        &self,
        shard: ShardIndex,
        seq: Seq,
        level: Level,
        followers: usize,
        timeout: Duration,
    ) -> Result<usize, Unconfirmed> {
        let needed = [(shard, seq)];
        let enough = move |links: &Links| {
            let holders = links.holders(level, &needed);
            (holders >= followers).then_some(holders)
        };
        self.links.wait(needed.to_vec(), enough).block(timeout).ok_or_else(|| Unconfirmed {
            shard,
            seq,
            found: self.links.holders(level, &needed),
            wanted: followers,
        })
    }

    /// Waits until all threads have ended; set the stop signal first.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a replication thread of the leader has panicked");
            }
        }
    }
}

/// Fewer followers than wanted have a change; the leader has it all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("seq {seq} of shard {shard} is on {found} followers, wanted {wanted}; it is applied here")]
pub struct Unconfirmed {
    /// The shard.
    pub shard: ShardIndex,
    /// The change.
    pub seq: Seq,
    /// Followers that have it.
    pub found: usize,
    /// Followers that should.
    pub wanted: usize,
}

/// What all threads share.
#[derive(Clone)]
struct Shared {
    store: Arc<Store>,
    options: Options,
    links: Arc<Links>,
    registry: Arc<Registry>,
    stop: Stop,
}

/// The way into a thread, for the one that accepts.
#[derive(Clone)]
struct Door {
    inbox: Arc<Mutex<Vec<Connection>>>,
    waker: Arc<Waker>,
}

/// A link and its socket.
struct Connection {
    link: Link,
    stream: TcpStream,
    is_readable: bool,
    /// The peer has closed. Behind its last bytes stands the end, and no event says so once more.
    is_ending: bool,
    is_writable: bool,
    /// Something other than the ring may have made something to send.
    is_send_due: bool,
}

struct Accepting {
    listener: mio::net::TcpListener,
    doors: Vec<Door>,
    accepted: usize,
    retry_at: Option<Duration>,
    heads_at: Duration,
}

struct Worker {
    shared: Shared,
    sleeper: Arc<Sleeper>,
    door: Door,
    poll: Poll,
    accepting: Option<Accepting>,
    connections: Vec<Option<Connection>>,
    complaints: Complaints,
}

/// What a round came to.
#[derive(Debug, Clone, Copy)]
struct Round {
    work: Work,
    bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    /// Nothing but upkeep.
    None,
    /// Something went out, and that was all of it.
    Some,
    /// There is more to do at once.
    More,
}

impl Worker {
    fn new(shared: Shared) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), TOKEN_WAKER)?);
        let sleeper = Sleeper::new({
            let waker = Arc::clone(&waker);
            move || wake(&waker)
        });
        shared.stop.on_stop({
            let waker = Arc::clone(&waker);
            move || wake(&waker)
        });
        Ok(Self {
            shared,
            sleeper,
            door: Door { inbox: Arc::default(), waker },
            poll,
            accepting: None,
            connections: Vec::new(),
            complaints: Complaints::default(),
        })
    }

    fn listen(&mut self, mut listener: mio::net::TcpListener, doors: Vec<Door>) -> io::Result<()> {
        self.poll.registry().register(&mut listener, TOKEN_LISTENER, Interest::READABLE)?;
        self.accepting =
            Some(Accepting { listener, doors, accepted: 0, retry_at: None, heads_at: Duration::ZERO });
        Ok(())
    }

    fn run(mut self) {
        if let Err(error) = rustix::thread::set_current_timer_slack(Some(TIMER_SLACK_NS)) {
            tracing::debug!(%error, "naps will be longer than asked for");
        }
        let mut events = Events::with_capacity(256);
        let (mut worked_at, mut pass_at) = (Duration::ZERO, Duration::ZERO);
        while !self.shared.stop.is_set() {
            let now = self.shared.store.clock().now();
            if now.monotonic >= pass_at {
                pass_at = now.monotonic + PASS_INTERVAL;
                self.pass(now);
            }
            let Round { work, bytes } = self.round(now);
            if work > Work::None {
                worked_at = now.monotonic;
            }
            let is_quiet = now.monotonic.saturating_sub(worked_at) >= PARK_AFTER;
            let mut timeout = Duration::ZERO;
            let mut is_announced = false;
            if work == Work::None && is_quiet {
                // Announce, then look once more: a write before the announcement is seen here, one
                // after it wakes us.
                self.sleeper.announce();
                is_announced = true;
                let deadline = self.deadline();
                if !self.has_ring_work() {
                    timeout = deadline.saturating_sub(now.monotonic);
                }
                pass_at = deadline;
            } else {
                pass_at = pass_at.min(now.monotonic + PASS_INTERVAL);
                if work < Work::More {
                    std::thread::sleep(if bytes < LOADED_BYTES { NAP } else { NAP_LOADED });
                }
            }
            if let Err(error) = self.poll.poll(&mut events, Some(timeout))
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "poll: replication stops");
                break;
            }
            if is_announced {
                // Not at every turn: writers read that cache line at every push.
                self.sleeper.awake();
            }
            if self.take_events(&events) {
                worked_at = self.shared.store.clock().monotonic();
            }
        }
        // What writers pushed before the stop still goes out, as far as sockets take it.
        self.round(self.shared.store.clock().now());
    }

    /// Notes what is ready; says whether a writer woke us.
    fn take_events(&mut self, events: &Events) -> bool {
        let mut was_woken = false;
        for event in events {
            match event.token() {
                TOKEN_WAKER => was_woken = true,
                TOKEN_LISTENER => {
                    if let Some(accepting) = &mut self.accepting {
                        accepting.retry_at = Some(Duration::ZERO);
                    }
                }
                Token(index) => {
                    if let Some(Some(connection)) = self.connections.get_mut(index) {
                        connection.is_ending |= event.is_read_closed() || event.is_error();
                        connection.is_readable |= event.is_readable() || connection.is_ending;
                        connection.is_writable |= event.is_writable();
                    }
                }
            }
        }
        was_woken
    }

    /// One turn for every link that has something to do.
    fn round(&mut self, now: Now) -> Round {
        self.accept(now);
        self.take_inbox();
        let env = self.shared.env(&self.sleeper, now);
        let mut round = Round { work: Work::None, bytes: 0 };
        for place in &mut self.connections {
            let Some(connection) = place else { continue };
            match connection.turn(env) {
                Ok(done) => {
                    round.work = round.work.max(done.work);
                    round.bytes += done.bytes;
                }
                Err(error) => {
                    self.complaints.link_ended(&connection.link, &error, env);
                    end(place, env);
                }
            }
        }
        round
    }

    /// Deadlines, heartbeats and figures of all links.
    fn pass(&mut self, now: Now) {
        let env = self.shared.env(&self.sleeper, now);
        if self.accepting.is_some() {
            regain::pass(env);
        }
        if let Some(accepting) =
            self.accepting.as_mut().filter(|accepting| now.monotonic >= accepting.heads_at)
        {
            accepting.heads_at = crate::wire::next_beat(now.monotonic, HEADS_INTERVAL);
            // Who follows hears of its leader's heads, in its leader's clock; its own are none.
            let leads = env.options.leader.is_none();
            for shard in env.store.shards().filter(|_| leads) {
                env.links.heads.seen(shard, monotonic_ms(now), env.store.head(shard));
            }
        }
        for place in &mut self.connections {
            let Some(connection) = place else { continue };
            connection.is_send_due = true;
            connection.link.publish(env);
            if connection.is_readable {
                // What it said while this thread did not run is still to be read: it is not silent.
                continue;
            }
            if let Err(error) = connection.link.check_deadlines(env) {
                self.complaints.link_ended(&connection.link, &error, env);
                end(place, env);
            }
        }
    }

    /// When the next pass is due if nothing else happens.
    fn deadline(&self) -> Duration {
        let of_link = |connection: &Connection| {
            let deadline = connection.link.deadline(&self.shared.options);
            // Nothing can be sent while the socket takes nothing.
            let retry_at = connection.link.scan_retry_at().filter(|_| connection.is_writable);
            retry_at.map_or(deadline, |retry_at| retry_at.min(deadline))
        };
        let of_links = self.connections.iter().flatten().map(of_link).min();
        let of_accepting = self.accepting.as_ref();
        let of_heads = of_accepting.map(|accepting| accepting.heads_at);
        let of_retry = of_accepting.and_then(|accepting| accepting.retry_at);
        // A thread without links has nothing to wait for but sockets and the stop signal.
        of_links.into_iter().chain(of_retry).chain(of_heads).min().unwrap_or(Duration::MAX / 2)
    }

    fn has_ring_work(&self) -> bool {
        let is_ready = |connection: &Connection| connection.is_writable && connection.link.has_ring_work();
        self.connections.iter().flatten().any(is_ready)
    }

    fn take_inbox(&mut self) {
        if self.shared.options.threads <= 1 {
            return;
        }
        let arrived = std::mem::take(&mut *self.door.inbox.lock());
        for connection in arrived {
            self.add(connection);
        }
    }

    fn add(&mut self, mut connection: Connection) {
        let index = self.connections.iter().position(Option::is_none).unwrap_or(self.connections.len());
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut connection.stream, Token(index), interest) {
            tracing::warn!(peer = %connection.link.peer(), %error, "connection cannot be polled");
            return;
        }
        if index == self.connections.len() {
            self.connections.push(None);
        }
        self.connections[index] = Some(connection);
    }

    fn accept(&mut self, now: Now) {
        let Some(mut accepting) = self.accepting.take() else { return };
        for _ in 0..ACCEPTS_MAX {
            if accepting.retry_at.is_none_or(|at| now.monotonic < at) {
                break;
            }
            match accepting.listener.accept() {
                Ok((stream, peer)) => {
                    let Some(connection) = self.shared.connection(stream, peer, now) else { continue };
                    let door = &accepting.doors[accepting.accepted % accepting.doors.len()];
                    accepting.accepted += 1;
                    if Arc::ptr_eq(&door.inbox, &self.door.inbox) {
                        self.add(connection);
                    } else {
                        door.inbox.lock().push(connection);
                        wake(&door.waker);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => accepting.retry_at = None,
                Err(error) => {
                    tracing::warn!(%error, "accepting a follower");
                    accepting.retry_at = Some(now.monotonic + ACCEPT_RETRY);
                }
            }
        }
        self.accepting = Some(accepting);
    }
}

impl Shared {
    fn env<'a>(&'a self, sleeper: &'a Arc<Sleeper>, now: Now) -> Env<'a> {
        Env {
            store: &self.store,
            options: &self.options,
            links: &self.links,
            registry: &self.registry,
            sleeper,
            now,
        }
    }

    fn connection(&self, stream: TcpStream, peer: SocketAddr, now: Now) -> Option<Connection> {
        let Some(seat) = self.registry.pending_seat() else {
            tracing::debug!(%peer, "too many connections without a Hello: closed");
            return None;
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "no TCP_NODELAY");
        }
        let link = Link::new(peer, seat, &self.options, now);
        Some(Connection {
            link,
            stream,
            is_readable: true,
            is_ending: false,
            is_writable: true,
            is_send_due: false,
        })
    }
}

impl Connection {
    fn turn(&mut self, env: Env<'_>) -> Result<Round, LinkError> {
        for _ in 0..RECEIVES_MAX {
            if !self.is_readable {
                break;
            }
            self.is_readable = self.link.receive(&mut self.stream, env)? == Received::More || self.is_ending;
            self.is_send_due = true;
        }
        let mut bytes = 0;
        let mut work = if self.is_readable { Work::More } else { Work::None };
        let has_work =
            self.link.has_ring_work() || self.link.scan_retry_at().is_some_and(|at| env.now.monotonic >= at);
        if self.is_writable && (self.is_send_due || has_work) {
            let Sent { stop, batch_bytes } = self.link.send(&mut self.stream, SEND_BUDGET, env)?;
            self.is_send_due = stop == SendStop::More;
            self.is_writable = stop != SendStop::Blocked;
            work = work.max(match stop {
                SendStop::More => Work::More,
                SendStop::Nothing | SendStop::Blocked if batch_bytes > 0 => Work::Some,
                SendStop::Nothing | SendStop::Blocked => Work::None,
            });
            bytes = batch_bytes;
        }
        Ok(Round { work, bytes })
    }
}

/// Drops a link with its socket, which takes it out of the poll, too, and frees its ring.
fn end(place: &mut Option<Connection>, env: Env<'_>) {
    if let Some(shard) = place.take().and_then(|connection| connection.link.shard()) {
        env.store.release(ShardIndex(shard));
    }
}

/// Says why links end, without letting a bad peer fill the log.
#[derive(Default)]
struct Complaints {
    next_at: Duration,
    suppressed: u64,
}

impl Complaints {
    fn link_ended(&mut self, link: &Link, error: &LinkError, env: Env<'_>) {
        use std::sync::atomic::Ordering::Relaxed;
        let (peer, shard) = (link.peer(), link.shard());
        if matches!(error, LinkError::Probed) || (shard.is_none() && matches!(error, LinkError::Closed)) {
            // A probe, or a port check that connects and leaves.
            return;
        }
        if error.is_protocol() {
            env.links.totals.protocol_errors.fetch_add(1, Relaxed);
        }
        if let LinkError::Refused(refuse) = error {
            *env.links.totals.refusals.lock().entry(refuse.code.as_str()).or_default() += 1;
        }
        if let LinkError::Slot { shard, slot, error } = error {
            env.links.totals.damaged_slots_met.fetch_add(1, Relaxed);
            tracing::error!(%peer, shard = shard.0, %slot, "damaged slot, not sent: {error}");
            return;
        }
        if let Some(shard) = shard.filter(|_| !error.is_protocol()) {
            tracing::info!(%peer, shard, "link ended: {error}");
            return;
        }
        if env.now.monotonic < self.next_at {
            self.suppressed += 1;
            return;
        }
        tracing::warn!(%peer, suppressed = self.suppressed, "connection closed: {error}");
        self.suppressed = 0;
        self.next_at = env.now.monotonic + COMPLAINT_INTERVAL;
    }
}

fn wake(waker: &Waker) {
    if let Err(error) = waker.wake() {
        tracing::error!(%error, "a replication thread cannot be woken");
    }
}
