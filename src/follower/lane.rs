//! A shard's way to its leader: pause, resolve, connect, link, and round again.
//!
//! A lane never gives up, and nothing that happens to it touches another lane.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use crate::links::{LinkCell, Links, Notice, Phase};
use crate::slot::ShardIndex;
use crate::wire::Refuse;

use super::Options;
use super::back_off::BackOff;
use super::hello::is_given_up;
use super::link::{Done, Env, Link, LinkError};
use super::resolve::{Answer, Resolver};

/// A link that brought so much of a scan was a good one, however it ended: a batch or so.
const GOOD_SCAN_BYTES: u64 = 64 << 10;

/// One shard's connection, or the wait for it.
pub(super) struct Lane {
    shard: ShardIndex,
    token: Token,
    state: State,
    back_off: BackOff,
    /// Counts attempts, so that each address of a name has its turn.
    attempts: usize,
    /// The leader has refused what is held here, and somebody said by hand that it is to be replaced.
    is_given_up: bool,
    cell: Arc<LinkCell>,
}

enum State {
    Paused { until: Duration },
    Resolving { deadline: Duration },
    Connecting { stream: TcpStream, deadline: Duration, is_ready: bool },
    Up(Box<Up>),
}

struct Up {
    link: Link,
    stream: TcpStream,
    is_readable: bool,
    /// The leader has closed. Behind its last bytes stands the end, and no event says so once more.
    is_ending: bool,
    is_writable: bool,
    is_send_due: bool,
    has_streamed: bool,
}

/// Why a lane has no link.
#[derive(Debug, thiserror::Error)]
enum LaneError {
    #[error("address: {0}")]
    Resolve(io::Error),
    #[error("connect: {0}")]
    Connect(io::Error),
    #[error("no connection within {wanted:?}")]
    ConnectTimeout { wanted: Duration },
    #[error("{0}")]
    Link(#[from] LinkError),
}

impl LaneError {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Resolve(_) | Self::Connect(_) | Self::ConnectTimeout { .. } => "connect",
            Self::Link(error) => error.as_str(),
        }
    }

    /// Whether this node's own store is why, so that trying again mends nothing.
    fn is_of_the_store(&self) -> bool {
        self.as_str() == "store"
    }
}

impl Lane {
    pub(super) fn new(shard: ShardIndex, token: Token, env: Env<'_>) -> Self {
        let options = env.options;
        let unknown = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let cell = LinkCell::new(options.follower_id, unknown, options.resp_port, shard.0);
        let watermark = env.store.progress(shard).seq;
        cell.applied_seq.store(watermark.0, Relaxed);
        cell.head_seq.store(watermark.0, Relaxed);
        let silence_ms = options.heartbeat_interval.as_millis() * 2;
        cell.silence_ms_max.store(u64::try_from(silence_ms).unwrap_or(u64::MAX), Relaxed);
        env.links.add(Arc::clone(&cell));
        let (high, low) = options.follower_id.as_u64_pair();
        let seed = high ^ low ^ u64::from(shard.0).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Self {
            shard,
            token,
            state: State::Paused { until: env.now.monotonic },
            back_off: BackOff::new(options.back_off_min, options.back_off_max, seed),
            attempts: 0,
            is_given_up: false,
            cell,
        }
    }

    /// Takes the lane's figures away: nobody follows any more.
    pub(super) fn hide(&self, links: &Links) {
        links.remove(&self.cell);
    }

    /// When [`Lane::pass`] is due.
    pub(super) fn deadline(&self, options: &Options) -> Duration {
        match &self.state {
            State::Paused { until } => *until,
            State::Resolving { deadline } | State::Connecting { deadline, .. } => *deadline,
            State::Up(up) => up.link.deadline(options),
        }
    }

    /// Notes what the socket is ready for.
    pub(super) fn ready(&mut self, event: &Event) {
        match &mut self.state {
            State::Up(up) => {
                up.is_ending |= event.is_read_closed() || event.is_error();
                up.is_readable |= event.is_readable() || up.is_ending;
                up.is_writable |= event.is_writable();
            }
            State::Connecting { is_ready, .. } => *is_ready = true,
            State::Paused { .. } | State::Resolving { .. } => {}
        }
    }

    /// Goes on with whatever is possible now; says whether there is more to do at once.
    pub(super) fn turn(&mut self, poll: &Registry, env: Env<'_>) -> bool {
        let result = match &mut self.state {
            State::Paused { .. } | State::Resolving { .. } => return false,
            State::Connecting { is_ready: false, .. } => return false,
            State::Connecting { stream, is_ready, .. } => match is_connected(stream) {
                Ok(false) => {
                    *is_ready = false;
                    return false;
                }
                Ok(true) => {
                    self.connected(env);
                    return true;
                }
                Err(error) => Err(LaneError::Connect(error)),
            },
            State::Up(up) => {
                let had_streamed = up.has_streamed;
                let result = up.turn(env).map_err(LaneError::from);
                if up.has_streamed && !had_streamed {
                    self.cell.trouble.lock().clear();
                    let watermark = up.link.watermark().0;
                    tracing::info!(shard = self.shard.0, leader = %self.cell.peer, watermark, "link streams");
                }
                result
            }
        };
        match result {
            Ok(has_more) => has_more,
            Err(error) => {
                self.fail(&error, poll, env);
                false
            }
        }
    }

    /// Looks at the lane's deadline.
    pub(super) fn pass(&mut self, poll: &Registry, resolver: &Resolver, env: Env<'_>) {
        let now = env.now.monotonic;
        let is_due = now >= self.deadline(env.options);
        let result = match &mut self.state {
            State::Up(up) => {
                up.is_send_due = true;
                // What the leader said while this thread did not run is still to be read.
                if up.is_readable { Ok(()) } else { up.link.check_deadlines(env).map_err(LaneError::from) }
            }
            State::Paused { .. } if is_due => {
                self.attempts = self.attempts.wrapping_add(1);
                match resolver.literal() {
                    Some(address) => self.connect(address, poll, env),
                    None => {
                        resolver.ask();
                        self.state = State::Resolving { deadline: now + env.options.handshake_timeout };
                        Ok(())
                    }
                }
            }
            State::Resolving { .. } if is_due => {
                Err(LaneError::Resolve(io::Error::from(io::ErrorKind::TimedOut)))
            }
            State::Connecting { .. } if is_due => {
                Err(LaneError::ConnectTimeout { wanted: env.options.handshake_timeout })
            }
            State::Paused { .. } | State::Resolving { .. } | State::Connecting { .. } => Ok(()),
        };
        if let Err(error) = result {
            self.fail(&error, poll, env);
        }
    }

    /// The leader's addresses are known, or are not to be had.
    pub(super) fn resolved(&mut self, answer: &Answer, poll: &Registry, env: Env<'_>) {
        if !matches!(self.state, State::Resolving { .. }) {
            return;
        }
        let result = match answer {
            Ok(addresses) if addresses.is_empty() => {
                Err(LaneError::Resolve(io::Error::other("the name has no address")))
            }
            Ok(addresses) => self.connect(addresses[self.attempts % addresses.len()], poll, env),
            Err(error) => Err(LaneError::Resolve(io::Error::new(error.kind(), error.to_string()))),
        };
        if let Err(error) = result {
            self.fail(&error, poll, env);
        }
    }

    fn connect(&mut self, address: SocketAddr, poll: &Registry, env: Env<'_>) -> Result<(), LaneError> {
        if self.cell.peer != address {
            self.show_peer(address, env);
        }
        let mut stream = TcpStream::connect(address).map_err(LaneError::Connect)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.register(&mut stream, self.token, interest).map_err(LaneError::Connect)?;
        let deadline = env.now.monotonic + env.options.handshake_timeout;
        self.state = State::Connecting { stream, deadline, is_ready: false };
        Ok(())
    }

    /// The leader's address is a part of the figures, so another address means another cell.
    fn show_peer(&mut self, address: SocketAddr, env: Env<'_>) {
        let old = &self.cell;
        let cell = LinkCell::new(old.follower, address, old.resp_port, old.shard);
        for (new, old) in [
            (&cell.head_seq, &old.head_seq),
            (&cell.applied_seq, &old.applied_seq),
            (&cell.bytes, &old.bytes),
            (&cell.records, &old.records),
            (&cell.silence_ms_max, &old.silence_ms_max),
            (&cell.last_io_unix_ms, &old.last_io_unix_ms),
        ] {
            new.store(old.load(Relaxed), Relaxed);
        }
        cell.clock_offset_ms.store(old.clock_offset_ms.load(Relaxed), Relaxed);
        cell.leader_resp_port.store(old.leader_resp_port.load(Relaxed), Relaxed);
        cell.is_unrelated.store(old.is_unrelated.load(Relaxed), Relaxed);
        cell.set_phase(old.phase());
        cell.reason.lock().clone_from(&old.reason.lock());
        cell.trouble.lock().clone_from(&old.trouble.lock());
        env.links.add(Arc::clone(&cell));
        env.links.remove(old);
        self.cell = cell;
    }

    fn connected(&mut self, env: Env<'_>) {
        let paused = State::Paused { until: env.now.monotonic };
        let State::Connecting { stream, .. } = std::mem::replace(&mut self.state, paused) else {
            unreachable!("a lane that connects is in state connecting")
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(shard = self.shard.0, %error, "no TCP_NODELAY");
        }
        let begin = if self.is_given_up { Link::giving_up } else { Link::new };
        self.state = State::Up(Box::new(Up {
            link: begin(self.shard, Arc::clone(&self.cell), env),
            stream,
            is_readable: true,
            is_ending: false,
            is_writable: true,
            is_send_due: true,
            has_streamed: false,
        }));
    }

    fn fail(&mut self, error: &LaneError, poll: &Registry, env: Env<'_>) {
        let now = env.now.monotonic;
        let was_good = match &mut self.state {
            State::Up(up) => {
                deregister(&mut up.stream, poll);
                let is_protocol = matches!(error, LaneError::Link(error) if error.is_protocol());
                let lived = now.saturating_sub(up.link.began_at());
                // A scan over links that break again and again gets on with each that carried some of it.
                up.has_streamed
                    || lived >= env.options.back_off_reset_after
                    || (up.link.scan_bytes() >= GOOD_SCAN_BYTES && !is_protocol)
            }
            State::Connecting { stream, .. } => {
                deregister(stream, poll);
                false
            }
            State::Paused { .. } | State::Resolving { .. } => false,
        };
        if was_good {
            self.back_off.reset();
        }
        let is_refusal = matches!(error, LaneError::Link(link_error) if link_error.is_refusal());
        let is_permanent = match error {
            LaneError::Link(LinkError::Refused(refuse)) => refuse.code.is_permanent(),
            LaneError::Link(link_error) => link_error.is_refusal(),
            _ => false,
        };
        if let LaneError::Link(link_error) = error {
            self.is_given_up = is_given_up(link_error, env);
            if link_error.is_unrelated() {
                self.cell.is_unrelated.store(true, Relaxed);
            }
        }
        let pause =
            if is_permanent && !self.is_given_up { self.back_off.longest() } else { self.back_off.pause() };
        self.state = State::Paused { until: now + pause };
        self.cell.set_phase(if is_refusal { Phase::Refused } else { Phase::Connecting });
        if matches!(error, LaneError::Link(link_error) if link_error.is_protocol()) {
            env.links.totals.protocol_errors.fetch_add(1, Relaxed);
        }
        if let LaneError::Link(LinkError::Refused(Refuse { leader: Some(leader), .. })) = error {
            env.links.notices.tell(Notice::Moved { leader: leader.clone() });
        }
        *env.links.totals.reconnects.lock().entry(error.as_str()).or_default() += 1;
        self.log(error, is_permanent, pause);
    }

    /// One line when the reason changes; the same reason again is for those who debug.
    fn log(&self, error: &LaneError, is_permanent: bool, pause: Duration) {
        let (reason, shard, leader) = (error.to_string(), self.shard.0, self.cell.peer);
        let mut last = self.cell.reason.lock();
        if *last == reason {
            tracing::debug!(shard, %leader, ?pause, "link: {reason}");
        } else if is_permanent {
            tracing::error!(shard, %leader, ?pause, "link: {reason}");
        } else if error.is_of_the_store() {
            let mut trouble = self.cell.trouble.lock();
            if *trouble == reason {
                tracing::debug!(shard, %leader, ?pause, "link: {reason}");
            } else {
                tracing::warn!(shard, %leader, ?pause, "link: {reason}: this follower does not catch up until that is mended");
            }
            trouble.clone_from(&reason);
        } else {
            tracing::info!(shard, %leader, ?pause, "link: {reason}");
        }
        *last = reason;
    }
}

impl Up {
    fn turn(&mut self, env: Env<'_>) -> Result<bool, LinkError> {
        if self.is_readable {
            self.is_readable = self.link.receive(&mut self.stream, env)? == Done::More || self.is_ending;
            self.is_send_due = true;
            self.has_streamed |= self.link.is_streaming();
        }
        if self.is_send_due && self.is_writable {
            let done = self.link.send(&mut self.stream, env)?;
            self.is_writable = done != Done::Blocked;
            self.is_send_due = done != Done::Nothing;
        }
        Ok(self.is_readable || self.is_send_due && self.is_writable)
    }
}

fn is_connected(stream: &TcpStream) -> io::Result<bool> {
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    match stream.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}

fn deregister(stream: &mut TcpStream, poll: &Registry) {
    if let Err(error) = poll.deregister(stream) {
        tracing::debug!(%error, "a socket was not known to the poll");
    }
}
