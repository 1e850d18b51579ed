//! The leader's end of one link: bytes in, bytes out, no I/O and no clock of its own.
//!
//! Whoever drives a link calls [`Link::receive`] when bytes may have come, [`Link::send`] when
//! bytes may go out or a ring has filled, and [`Link::check_deadlines`] when [`Link::deadline`] has
//! passed. An error from any of them ends the link: drop it, and its ring and seats are given back.
//!
//! Always true: one frame is on its way at a time, so a half-sent one is finished before the next.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::clock::Now;
use crate::links::Links;
use crate::planted::{Bug, is_planted};
use crate::ring::Sleeper;
use crate::slot::{Seq, ShardIndex, SlotError, SlotIndex};
use crate::store::{ApplyError, Store, Term};
use crate::wire::frame::{Frame, FrameDecoder, FrameError, HEADER_SIZE, Kind, PREAMBLE, Side};
use crate::wire::message::{
    Ack, FOLLOWER_PAYLOAD_SIZE_MAX, Heartbeat, Hello, MessageError, Refuse, RefuseCode, SHARD_PROBE, VERSION,
    Want, Welcome, regain_payload_size_max,
};
use crate::wire::window::AckBytesError;
use crate::wire::{Outbox, Transport, next_beat};

use super::Options;
use super::attached::{Attached, Next};
use super::hello::{Plan, check_identity, plan};
use super::regain::Regaining;
use super::registry::{Registry, Seat};

/// Bytes of a link's receive buffer: followers send small frames only.
pub const RECEIVE_BUFFER_SIZE: usize = 4096;
const _: () = assert!(PREAMBLE.len() + HEADER_SIZE + FOLLOWER_PAYLOAD_SIZE_MAX <= RECEIVE_BUFFER_SIZE);

/// What a link works with; the same for all links of a thread.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    /// The data.
    pub store: &'a Store,
    /// How to serve.
    pub options: &'a Options,
    /// Where figures go.
    pub links: &'a Arc<Links>,
    /// How many links there are.
    pub registry: &'a Registry,
    /// What a writer wakes when it fills a ring.
    pub sleeper: &'a Arc<Sleeper>,
    /// The time.
    pub now: Now,
}

impl std::fmt::Debug for Env<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Env").field("now", &self.now).finish_non_exhaustive()
    }
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The follower has closed.
    #[error("the follower has closed the connection")]
    Closed,
    /// The connection broke.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    /// No Hello came.
    #[error("no Hello within {wanted:?}")]
    HelloTimeout {
        /// How long a Hello may take.
        wanted: Duration,
    },
    /// Nothing came, not even a heartbeat.
    #[error("the follower was silent for {found:?}, wanted a heartbeat within {wanted:?}")]
    Silent {
        /// Silence so far.
        found: Duration,
        /// Longest silence allowed.
        wanted: Duration,
    },
    /// Bytes that are no frame.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// A frame that is not the message it should be.
    #[error("{0}")]
    Message(#[from] MessageError),
    /// A message that has no place here.
    #[error("{kind:?} is not what a follower sends here")]
    Unexpected {
        /// Which message.
        kind: Kind,
    },
    /// An Ack that does not fit what was sent.
    #[error(transparent)]
    AckBytes(#[from] AckBytesError),
    /// An Ack for a seq that was not sent, or one before an earlier Ack.
    #[error("Ack names seq {found}, wanted {acked} to {sent}")]
    AckSeq {
        /// What the Ack says.
        found: Seq,
        /// What was acknowledged before.
        acked: Seq,
        /// Last seq sent.
        sent: Seq,
    },
    /// A follower in another epoch than its leader.
    #[error("frame of epoch {found} on a link of epoch {wanted}")]
    Epoch {
        /// What the frame says.
        found: u64,
        /// What Welcome said.
        wanted: u64,
    },
    /// The leader refused; the follower has been told.
    #[error("refused: {}", .0.text)]
    Refused(Refuse),
    /// A probe had its answer.
    #[error("probe answered")]
    Probed,
    /// What a follower gave back could not be applied.
    #[error("batch: {0}")]
    Apply(#[from] ApplyError),
    /// A follower says that it gave back something else than what it holds.
    #[error("what was given back ends at seq {found}, wanted {wanted}")]
    GivenBack {
        /// What ScanDone says.
        found: Seq,
        /// The follower's watermark.
        wanted: Seq,
    },
    /// The wait for what followers give back was ended in the middle.
    #[error("this leader waits no longer for what it lost")]
    RegainOver,
    /// A slot is damaged; it is not sent, and nothing behind it can be.
    #[error("shard {shard}: slot {slot}: {error}")]
    Slot {
        /// Its shard.
        shard: ShardIndex,
        /// Its place.
        slot: SlotIndex,
        /// What is wrong with it.
        error: SlotError,
    },
}

impl LinkError {
    /// Whether the peer sent what it must not.
    #[must_use]
    pub fn is_protocol(&self) -> bool {
        use LinkError as E;
        matches!(
            self,
            E::Frame(_)
                | E::Message(_)
                | E::Unexpected { .. }
                | E::AckBytes(_)
                | E::AckSeq { .. }
                | E::GivenBack { .. }
                | E::Apply(ApplyError::Record(_) | ApplyError::Slot { .. } | ApplyError::Range { .. })
        ) || matches!(self, E::Epoch { found, wanted } if found < wanted)
    }
}

/// What [`Link::send`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Why it stopped.
    pub stop: SendStop,
    /// Bytes that the transport took, unless they were heartbeats only.
    pub batch_bytes: usize,
}

/// Why [`Link::send`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendStop {
    /// Nothing to send now.
    Nothing,
    /// The transport takes no more.
    Blocked,
    /// The budget is used up, or there is more to look at.
    More,
}

/// Why [`Link::receive`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// The transport has nothing more now.
    Nothing,
    /// There may be more.
    More,
}

/// The leader's end of one link.
#[derive(Debug)]
pub struct Link {
    peer: SocketAddr,
    decoder: FrameDecoder,
    outbox: Outbox,
    state: State,
    received_at: Duration,
    heartbeat_at: Duration,
}

#[derive(Debug)]
enum State {
    /// Connected; the Hello is due by then.
    Pending { deadline: Duration, _seat: Seat },
    /// The follower gives back what the leader lost, or has.
    Regaining(Box<Regaining>),
    /// Scan and stream.
    Attached(Box<Attached>),
    /// The last frame is on its way; then the link ends with this.
    Ending { deadline: Duration, end: Option<LinkError> },
}

impl Link {
    /// A link for a connection that was just accepted.
    #[must_use]
    pub fn new(peer: SocketAddr, seat: Seat, options: &Options, now: Now) -> Self {
        Self {
            peer,
            decoder: FrameDecoder::new(Side::Leader, RECEIVE_BUFFER_SIZE),
            outbox: Outbox::default(),
            state: State::Pending { deadline: now.monotonic + options.handshake_timeout, _seat: seat },
            received_at: now.monotonic,
            heartbeat_at: next_beat(now.monotonic, options.heartbeat_interval),
        }
    }

    /// The other end's address.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The shard that this link serves, once its Hello was fine.
    #[must_use]
    pub fn shard(&self) -> Option<u16> {
        match &self.state {
            State::Attached(attached) => Some(attached.shard().0),
            State::Regaining(regaining) => Some(regaining.shard().0),
            _ => None,
        }
    }

    /// The last seq sent in order; `None` before the Hello.
    #[must_use]
    pub fn seq_sent(&self) -> Option<Seq> {
        match &self.state {
            State::Attached(attached) => Some(attached.seq_sent()),
            _ => None,
        }
    }

    /// On a link whose follower has given back what a crash took: up to where it holds everything.
    #[must_use]
    pub fn given_back(&self) -> Option<Seq> {
        match &self.state {
            State::Regaining(regaining) => regaining.given_back(),
            _ => None,
        }
    }

    /// Where the scan under way began.
    #[must_use]
    pub fn scan_since(&self) -> Option<Seq> {
        match &self.state {
            State::Attached(attached) => attached.scan_since(),
            _ => None,
        }
    }

    /// Whether [`Link::send`] would find ring records to send, or an overflow to answer.
    #[must_use]
    pub fn has_ring_work(&self) -> bool {
        matches!(&self.state, State::Attached(attached) if attached.has_ring_work())
    }

    /// When to call [`Link::send`] for a scan that had to wait.
    #[must_use]
    pub fn scan_retry_at(&self) -> Option<Duration> {
        match &self.state {
            State::Attached(attached) => attached.scan_retry_at(),
            _ => None,
        }
    }

    /// When to call [`Link::check_deadlines`] and [`Link::send`] at the latest.
    #[must_use]
    pub fn deadline(&self, options: &Options) -> Duration {
        match &self.state {
            State::Pending { deadline, .. } | State::Ending { deadline, .. } => *deadline,
            State::Attached(_) | State::Regaining(_) => {
                self.heartbeat_at.min(self.received_at + options.dead_after)
            }
        }
    }

    /// Ends the link if its peer has been silent for too long.
    pub fn check_deadlines(&mut self, env: Env<'_>) -> Result<(), LinkError> {
        let now = env.now.monotonic;
        match &mut self.state {
            State::Pending { deadline, .. } if now >= *deadline => {
                Err(LinkError::HelloTimeout { wanted: env.options.handshake_timeout })
            }
            State::Ending { deadline, end } if now >= *deadline => {
                Err(end.take().unwrap_or(LinkError::Closed))
            }
            State::Attached(_) | State::Regaining(_) if now >= self.received_at + env.options.dead_after => {
                Err(LinkError::Silent {
                    found: now.saturating_sub(self.received_at),
                    wanted: env.options.dead_after,
                })
            }
            _ => Ok(()),
        }
    }

    /// Receives once, and handles every whole frame.
    pub fn receive(&mut self, transport: &mut impl Transport, env: Env<'_>) -> Result<Received, LinkError> {
        let space = self.decoder.space();
        let space_len = space.len();
        let received = match transport.receive(space) {
            Ok(0) => return Err(LinkError::Closed),
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Nothing),
            Err(error) => return Err(error.into()),
        };
        self.decoder.received(received);
        self.received_at = env.now.monotonic;
        let mut is_attaching = false;
        while let Some(frame) = self.decoder.next()? {
            match &mut self.state {
                State::Pending { .. } => {
                    let next = answer_hello(&frame, self.peer, &mut self.outbox, env)?;
                    is_attaching = true;
                    self.state = next;
                }
                State::Regaining(regaining) => {
                    check_epoch(&frame, regaining.epoch(), env)?;
                    regaining.take(&frame, env)?;
                }
                State::Attached(attached) => match check_epoch(&frame, attached.epoch(), env)? {
                    Kind::Ack => attached.acked(Ack::read(&frame)?, env)?,
                    Kind::Heartbeat => attached.heartbeat(Heartbeat::read(&frame)?, env),
                    Kind::Want => attached.want(Want::read(&frame)?, env)?,
                    kind => return Err(LinkError::Unexpected { kind }),
                },
                // It was on its way when a follower that gave back what it had was refused.
                State::Ending { .. } => {}
            }
        }
        if is_attaching && matches!(self.state, State::Regaining(_)) {
            self.decoder.resize(HEADER_SIZE + regain_payload_size_max(&env.store.geometry(), usize::MAX));
        }
        // A short read means that nothing more is there; after a Hello the answer goes out first.
        Ok(if received == space_len && !is_attaching { Received::More } else { Received::Nothing })
    }

    /// Sends what there is, about `budget` bytes of it at most.
    pub fn send(
        &mut self,
        transport: &mut impl Transport,
        budget: usize,
        env: Env<'_>,
    ) -> Result<Sent, LinkError> {
        let mut spent = 0;
        let mut has_records = false;
        let stop = loop {
            let (taken, is_out) = match &mut self.state {
                State::Attached(attached) if attached.has_frame() => attached.send_frame(transport)?,
                _ => self.outbox.send(transport)?,
            };
            spent += taken;
            env.links.totals.sent_bytes.fetch_add(taken as u64, Relaxed);
            if !is_out {
                break SendStop::Blocked;
            }
            let next = match &mut self.state {
                State::Pending { .. } => Next::Nothing,
                State::Ending { end, .. } => return Err(end.take().unwrap_or(LinkError::Closed)),
                State::Regaining(regaining) => {
                    if env.now.monotonic >= self.heartbeat_at {
                        self.heartbeat_at = next_beat(env.now.monotonic, env.options.heartbeat_interval);
                        regaining.push_heartbeat(self.outbox.frames(), env);
                        continue;
                    }
                    if regaining.push_ack(self.outbox.frames()) {
                        continue;
                    }
                    match regaining.next(env)? {
                        None => Next::Nothing,
                        Some(hello) => {
                            // Leading at last: the Hello is answered as any other.
                            self.decoder.resize(RECEIVE_BUFFER_SIZE);
                            let answer = attach(&hello, self.peer, &mut self.outbox, env);
                            self.state = answered(answer, hello.epoch, &mut self.outbox, env);
                            continue;
                        }
                    }
                }
                State::Attached(attached) if env.now.monotonic >= self.heartbeat_at => {
                    self.heartbeat_at = next_beat(env.now.monotonic, env.options.heartbeat_interval);
                    attached.push_heartbeat(self.outbox.frames(), env);
                    continue;
                }
                State::Attached(_) if spent >= budget => Next::Again,
                State::Attached(attached) => match attached.next(self.outbox.frames(), env) {
                    Err(error @ LinkError::Slot { .. }) => {
                        // Half a batch.
                        self.outbox.frames().clear();
                        refuse_damaged(&error).push(self.outbox.frames(), attached.epoch());
                        let deadline = env.now.monotonic + env.options.handshake_timeout;
                        let shard = attached.shard();
                        self.state = State::Ending { deadline, end: Some(error) };
                        env.store.release(shard);
                        continue;
                    }
                    next => next?,
                },
            };
            match next {
                Next::Frame => has_records = true,
                Next::Again => break SendStop::More,
                Next::Nothing => break SendStop::Nothing,
            }
        };
        Ok(Sent { stop, batch_bytes: if has_records { spent } else { 0 } })
    }

    /// Publishes figures that change even while the follower is silent; for now and then.
    pub fn publish(&mut self, env: Env<'_>) {
        if let State::Attached(attached) = &mut self.state {
            attached.publish(env);
        }
    }
}

/// Whoever waits for the slot learns why it does not come, and what helps.
fn refuse_damaged(error: &LinkError) -> Refuse {
    let text = format!(
        "{error}: nothing behind that slot is sent; it heals when its key is written or deleted here, or when \
         this node follows one that has it (`slotstream inspect` and `verify` tell more)"
    );
    Refuse::new(RefuseCode::Damaged, text)
}

/// A follower answers in its leader's epoch; one that is in a newer epoch has met the leader's successor.
fn check_epoch(frame: &Frame<'_>, wanted: u64, env: Env<'_>) -> Result<Kind, LinkError> {
    let found = frame.epoch;
    if found > wanted {
        supersede(found, env);
    }
    if found == wanted { Ok(frame.kind) } else { Err(LinkError::Epoch { found, wanted }) }
}

/// Somebody was promoted after us: from now on a write taken here would be dropped later.
fn supersede(epoch: u64, env: Env<'_>) {
    if env.links.supersede(epoch) {
        tracing::error!(epoch, "a follower has heard of a newer epoch: this leader takes no more writes");
        if !is_planted(Bug::SupersededIgnored) {
            env.store.stop_writes();
        }
    }
}

fn answer_hello(
    frame: &Frame<'_>,
    peer: SocketAddr,
    outbox: &mut Outbox,
    env: Env<'_>,
) -> Result<State, LinkError> {
    if frame.kind != Kind::Hello {
        return Err(LinkError::Unexpected { kind: frame.kind });
    }
    let answer = match Hello::read(frame) {
        Ok(hello) if hello.shard == SHARD_PROBE => answer_probe(&hello, outbox, env),
        Ok(hello) if env.store.is_regaining() => ask_back(hello, outbox, env),
        Ok(hello) => attach(&hello, peer, outbox, env),
        Err(error @ MessageError::Version { .. }) => Err(Refuse::new(RefuseCode::Version, error.to_string())),
        Err(error) => return Err(error.into()),
    };
    Ok(answered(answer, frame.epoch, outbox, env))
}

/// The state behind an answer; `epoch` is the follower's.
fn answered(answer: Result<State, Refuse>, epoch: u64, outbox: &mut Outbox, env: Env<'_>) -> State {
    let deadline = env.now.monotonic + env.options.handshake_timeout;
    let epoch_now = |shard| env.store.lineage(shard).last().expect("a lineage is never empty").epoch;
    match answer {
        Ok(state) => state,
        Err(mut refuse) => {
            if refuse.code == RefuseCode::NotLeader {
                refuse.leader.clone_from(&env.options.leader);
                if let Some(epoch) = env.links.superseded_by_epoch() {
                    refuse.text = format!("this leader was replaced: another one leads in epoch {epoch}");
                }
            }
            if refuse.code == RefuseCode::OldEpoch {
                supersede(epoch, env);
            }
            refuse.push(outbox.frames(), epoch_now(ShardIndex(0)));
            State::Ending { deadline, end: Some(LinkError::Refused(refuse)) }
        }
    }
}

fn answer_probe(hello: &Hello, outbox: &mut Outbox, env: Env<'_>) -> Result<State, Refuse> {
    let lineage = env.store.lineage(ShardIndex(0));
    let epoch = lineage.last().expect("a lineage is never empty").epoch;
    check_identity(env.store, epoch, hello)?;
    let nothing = Plan { fork: Seq::ZERO, since: Seq::ZERO, scan_place: None, asks: false };
    welcome(hello, &lineage, nothing, Seq::ZERO, env).push(outbox.frames());
    let deadline = env.now.monotonic + env.options.handshake_timeout;
    Ok(State::Ending { deadline, end: Some(LinkError::Probed) })
}

/// Lets a follower give back what this store may have lost.
fn ask_back(hello: Hello, outbox: &mut Outbox, env: Env<'_>) -> Result<State, Refuse> {
    // The shard may not exist; any shard of this store tells its epoch until that is checked.
    let shard = ShardIndex(hello.shard.min(env.store.geometry().shard_count - 1));
    let lineage = env.store.lineage(shard);
    check_identity(env.store, lineage.last().expect("a lineage is never empty").epoch, &hello)?;
    Ok(State::Regaining(Box::new(Regaining::new(hello, &lineage, outbox.frames(), env)?)))
}

fn attach(hello: &Hello, peer: SocketAddr, outbox: &mut Outbox, env: Env<'_>) -> Result<State, Refuse> {
    // The shard may not exist; any shard of this store tells its epoch until that is checked.
    let shard = ShardIndex(hello.shard.min(env.store.geometry().shard_count - 1));
    let lineage = env.store.lineage(shard);
    let epoch = lineage.last().expect("a lineage is never empty").epoch;
    check_identity(env.store, epoch, hello)?;
    let plan = plan(&lineage, env.store.head(shard), hello)?;
    let seat = take_seat(shard, env)?;
    let attached = Attached::new(hello, peer, epoch, plan, seat, env);
    welcome(hello, &lineage, plan, attached.through(), env).push(outbox.frames());
    Ok(State::Attached(Box::new(attached)))
}

/// A seat for a follower of a shard, or why there is none.
pub(super) fn take_seat(shard: ShardIndex, env: Env<'_>) -> Result<Seat, Refuse> {
    env.registry.follower_seat(shard.0).ok_or_else(|| {
        let found = env.options.followers_per_shard_max;
        let text = format!("shard {shard} has {found} followers, which is as many as it may have");
        Refuse::new(RefuseCode::TooManyFollowers, text)
    })
}

fn welcome(hello: &Hello, lineage: &[Term], plan: Plan, head: Seq, env: Env<'_>) -> Welcome {
    let shard = (hello.shard != SHARD_PROBE).then_some(ShardIndex(hello.shard));
    let (slots_formatted, records) = shard.map_or((0, 0), |shard| env.store.extent(shard));
    let interval = env.options.heartbeat_interval.as_millis();
    Welcome {
        version: VERSION,
        shard: hello.shard,
        resp_port: env.options.resp_port,
        geometry: env.store.geometry(),
        store_id: env.store.store_id(),
        epoch: lineage.last().expect("a lineage is never empty").epoch,
        since: plan.since,
        head,
        slots_formatted: slots_formatted.into(),
        records,
        fork: plan.fork,
        scan_place: plan.scan_place,
        heartbeat_ms: u32::try_from(interval).unwrap_or(u32::MAX),
        lineage: lineage.to_vec(),
    }
}
