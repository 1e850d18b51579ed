//! The follower's end of one link: bytes in, bytes out, no I/O and no clock of its own.
//!
//! Driven like the leader's end: [`Link::receive`], [`Link::send`], [`Link::check_deadlines`]. An
//! error ends the link; the shard keeps its data and its watermark, and the next link asks for what
//! changed since.
//!
//! Batches are applied straight from the receive buffer. Acks say where the follower is *after* a
//! round of receiving, so there is one per round at most, however many batches it held.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::clock::Now;
use crate::links::{ClockOffset, LinkCell, Links, Notice, Phase, monotonic_ms};
use crate::planted::{Bug, is_planted};
use crate::slot::{Geometry, Records, Seq, ShardIndex, SlotError, SlotIndex, lineage};
use crate::store::{ApplyError, HistoryError, Store};
use crate::wire::frame::{
    FLAG_SCAN, FLAG_STREAM, FLAG_WANTED, Frame, FrameDecoder, FrameError, Kind, PREAMBLE, Side,
};
use crate::wire::message::{
    Ack, Heartbeat, Hello, MessageError, Refuse, RefuseCode, Regain, ScanDone, ScanStart, Want, Welcome,
};
use crate::wire::window::AckBytesError;
use crate::wire::{Outbox, Transport, next_beat};

use super::Options;
use super::apply::Applier;
use super::hello;
use super::lend::Lender;

/// What a link works with; the same for all links of a thread.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    /// The data.
    pub store: &'a Store,
    /// How to follow.
    pub options: &'a Options,
    /// Where figures go.
    pub links: &'a Links,
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
    /// The leader has closed.
    #[error("the leader has closed the connection")]
    Closed,
    /// The connection closed before the leader answered; something else may listen there.
    #[error("the connection was closed without an answer: is this the leader's replication port?")]
    ClosedInHandshake,
    /// The connection broke.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    /// No answer to Hello.
    #[error("no answer within {wanted:?}: is this the leader's replication port?")]
    HandshakeTimeout {
        /// How long an answer may take.
        wanted: Duration,
    },
    /// Nothing came, not even a heartbeat.
    #[error("the leader was silent for {found:?}, wanted a heartbeat within {wanted:?}")]
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
    #[error("{kind:?} is not what a leader sends here")]
    Unexpected {
        /// Which message.
        kind: Kind,
    },
    /// The leader answers for another shard.
    #[error("leader answers for shard {found}, wanted {wanted}")]
    Shard {
        /// What it answered.
        found: u16,
        /// What was asked for.
        wanted: u16,
    },
    /// The leader's epoch changed within a link.
    #[error("frame of epoch {found} on a link of epoch {wanted}")]
    Epoch {
        /// What the frame says.
        found: u64,
        /// What Welcome said.
        wanted: u64,
    },
    /// The scan does not begin where our data ends.
    #[error("leader scans from seq {found}, wanted {wanted}")]
    Since {
        /// What Welcome says.
        found: Seq,
        /// Our watermark, or the fork.
        wanted: Seq,
    },
    /// The leader names a fork behind what we hold.
    #[error("leader shares seqs up to {found}, this follower has only {head}")]
    Fork {
        /// What Welcome says.
        found: Seq,
        /// Our last seq.
        head: Seq,
    },
    /// A slot that was not asked for, or not now.
    #[error("{} came, wanted {}", slot_name(.found), slot_name(.wanted))]
    Unasked {
        /// What came.
        found: Option<SlotIndex>,
        /// The next one asked for.
        wanted: Option<SlotIndex>,
    },
    /// The report of dropped writes could not be written, or what came in their place not made durable.
    #[error("rewind: {0}")]
    Rewind(io::Error),
    /// What the leader has lived through was not made durable here; nothing of it may be taken.
    #[error("{0}")]
    History(#[from] HistoryError),
    /// The stream has a hole.
    #[error("stream goes on with seq {found}, wanted {wanted}")]
    SeqGap {
        /// Seq of the record.
        found: Seq,
        /// The one behind the watermark.
        wanted: Seq,
    },
    /// A ScanDone that goes back.
    #[error("scan done through seq {through}, consistent at {consistent_at}, but {watermark} is held")]
    ScanDone {
        /// What ScanDone says.
        through: Seq,
        /// What ScanDone says.
        consistent_at: Seq,
        /// Our watermark.
        watermark: Seq,
    },
    /// The leader refused.
    #[error("leader refuses: {}", .0.text)]
    Refused(Refuse),
    /// The leader holds another store than we do; our data stays as it is.
    #[error("leader is store {found}, this follower holds data of store {wanted}: it keeps them")]
    ForeignStore {
        /// The leader's store.
        found: uuid::Uuid,
        /// Ours.
        wanted: uuid::Uuid,
    },
    /// The leader's sizes are not ours.
    #[error("leader has other sizes ({found}) than this follower ({wanted})")]
    Geometry {
        /// The leader's.
        found: Geometry,
        /// Ours.
        wanted: Geometry,
    },
    /// The leader is behind what we have heard of.
    #[error("leader is in epoch {found}, this follower has heard of epoch {wanted}")]
    OldEpoch {
        /// The leader's.
        found: u64,
        /// The newest we know of.
        wanted: u64,
    },
    /// The leader's shard shares nothing with ours, and nobody was promoted since.
    #[error(
        "the leader's shard (seq {leader_head}, epoch {epoch}) has lived through nothing of what this follower holds of \
         it, {records} records up to seq {head}, and the follower keeps them: was the leader's data directory emptied \
         or replaced? Let this follower lead (promote --force), or throw its data away (start it with \
         --accept-store {store_id})"
    )]
    EmptiedStore {
        /// The leader's last seq.
        leader_head: Seq,
        /// The epoch of both.
        epoch: u64,
        /// Our records.
        records: u64,
        /// Our last seq.
        head: Seq,
        /// The store of both.
        store_id: uuid::Uuid,
    },
    /// An Ack that does not fit what was sent.
    #[error(transparent)]
    AckBytes(#[from] AckBytesError),
    /// A slot is damaged; it is not given back, and nothing behind it can be.
    #[error("slot {slot}: {error}")]
    Slot {
        /// Its place.
        slot: SlotIndex,
        /// What is wrong with it.
        error: SlotError,
    },
    /// A batch could not be applied.
    #[error("batch: {0}")]
    Apply(#[from] ApplyError),
}

impl LinkError {
    /// The word under which it is counted.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        use LinkError as E;
        match self {
            E::Closed | E::ClosedInHandshake | E::Io(_) => "closed",
            E::HandshakeTimeout { .. } | E::Silent { .. } => "timeout",
            E::Refused(_)
            | E::ForeignStore { .. }
            | E::Geometry { .. }
            | E::OldEpoch { .. }
            | E::EmptiedStore { .. } => "refused",
            E::Apply(ApplyError::Full { .. }) | E::Rewind(_) | E::History(_) | E::Slot { .. } => "store",
            _ => "protocol",
        }
    }

    /// Whether the peer sent what it must not.
    #[must_use]
    pub fn is_protocol(&self) -> bool {
        self.as_str() == "protocol"
    }

    /// Whether what is held here and what the leader has are not known to have anything in common.
    #[must_use]
    pub fn is_unrelated(&self) -> bool {
        match self {
            LinkError::Refused(Refuse { code, .. }) => {
                matches!(code, RefuseCode::FollowerAhead | RefuseCode::Forgotten | RefuseCode::ForeignStore)
            }
            LinkError::ForeignStore { .. } | LinkError::EmptiedStore { .. } => true,
            _ => false,
        }
    }

    /// Whether either side refused the other.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        self.as_str() == "refused"
    }
}

/// Why [`Link::receive`] or [`Link::send`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// Nothing more now.
    Nothing,
    /// There may be more to receive, or there is more to do.
    More,
    /// The transport takes no more.
    Blocked,
}

/// The follower's end of one link.
#[derive(Debug)]
pub struct Link {
    decoder: FrameDecoder,
    outbox: Outbox,
    core: Core,
    received_at: Duration,
    heartbeat_at: Duration,
    began_at: Duration,
}

/// All but the buffers, so that a frame can borrow from the decoder while it is handled.
#[derive(Debug)]
struct Core {
    shard: ShardIndex,
    state: State,
    applier: Applier,
    /// The leader was told that nothing is held.
    is_giving_up: bool,
    epoch: u64,
    /// Payload bytes of scan batches applied on this link.
    scan_bytes: u64,
    is_ack_due: bool,
    is_want_due: bool,
    /// While the leader gets back what it lost.
    lender: Option<Lender>,
    leader: LeaderClock,
    cell: Arc<LinkCell>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Hello is on its way or out.
    Handshake,
    /// The leader gets back what it lost; its Welcome comes after that.
    Lending,
    /// Slots are asked for; the scan comes after them.
    Rewind,
    /// Batches of a scan, then ScanDone.
    Scan,
    /// Batches of the stream; a batch of a scan says that a ring overflowed.
    Stream,
}

/// What heartbeats tell of the leader.
#[derive(Debug, Default)]
struct LeaderClock {
    head: Seq,
    offset: ClockOffset,
}

impl Link {
    /// A link for a connection that was just opened; figures go to `cell`.
    #[must_use]
    pub fn new(shard: ShardIndex, cell: Arc<LinkCell>, env: Env<'_>) -> Self {
        Self::begin(shard, cell, &hello::of_held(shard, env), false, env)
    }

    /// As [`Link::new`], to a leader that has refused what is held here: see [`hello::is_given_up`]. Nothing is given
    /// up before its Welcome.
    #[must_use]
    pub fn giving_up(shard: ShardIndex, cell: Arc<LinkCell>, env: Env<'_>) -> Self {
        Self::begin(shard, cell, &hello::of_given_up(shard, env), true, env)
    }

    fn begin(
        shard: ShardIndex,
        cell: Arc<LinkCell>,
        hello: &Hello,
        is_giving_up: bool,
        env: Env<'_>,
    ) -> Self {
        let Env { store, options, now, .. } = env;
        let mut outbox = Outbox::default();
        outbox.frames().extend_from_slice(PREAMBLE);
        hello.push(outbox.frames());
        cell.set_phase(Phase::Handshake);
        cell.applied_seq.store(store.progress(shard).seq.0, Relaxed);
        Self {
            decoder: FrameDecoder::new(Side::Follower, options.receive_buffer_bytes),
            outbox,
            core: Core {
                shard,
                state: State::Handshake,
                applier: Applier::new(store, shard),
                is_giving_up,
                epoch: hello.epoch,
                scan_bytes: 0,
                is_ack_due: false,
                is_want_due: false,
                lender: None,
                leader: LeaderClock::default(),
                cell,
            },
            received_at: now.monotonic,
            heartbeat_at: next_beat(now.monotonic, options.heartbeat_interval),
            began_at: now.monotonic,
        }
    }

    /// Everything up to here is held.
    #[must_use]
    pub fn watermark(&self) -> Seq {
        self.core.applier.watermark()
    }

    /// Whether the state is exactly the leader's at the watermark.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        self.core.state == State::Stream && self.core.applier.is_consistent()
    }

    /// Payload bytes of scan batches applied on this link.
    #[must_use]
    pub fn scan_bytes(&self) -> u64 {
        self.core.scan_bytes
    }

    /// When the link began.
    #[must_use]
    pub fn began_at(&self) -> Duration {
        self.began_at
    }

    /// When to call [`Link::check_deadlines`] and [`Link::send`] at the latest.
    #[must_use]
    pub fn deadline(&self, options: &Options) -> Duration {
        match self.core.state {
            State::Handshake => self.began_at + options.handshake_timeout,
            State::Lending | State::Rewind | State::Scan | State::Stream => {
                self.heartbeat_at.min(self.received_at + options.dead_after)
            }
        }
    }

    /// Ends the link if its peer has been silent for too long.
    pub fn check_deadlines(&mut self, env: Env<'_>) -> Result<(), LinkError> {
        let (now, options) = (env.now.monotonic, env.options);
        match self.core.state {
            State::Handshake if now >= self.began_at + options.handshake_timeout => {
                Err(LinkError::HandshakeTimeout { wanted: options.handshake_timeout })
            }
            State::Lending | State::Rewind | State::Scan | State::Stream
                if now >= self.received_at + options.dead_after =>
            {
                let found = now.saturating_sub(self.received_at);
                Err(LinkError::Silent { found, wanted: options.dead_after })
            }
            _ => Ok(()),
        }
    }

    /// Receives once, and handles every whole frame.
    pub fn receive(&mut self, transport: &mut impl Transport, env: Env<'_>) -> Result<Done, LinkError> {
        let space = self.decoder.space();
        let space_len = space.len();
        let received = match transport.receive(space) {
            Ok(0) if self.core.state == State::Handshake => return Err(LinkError::ClosedInHandshake),
            Ok(0) => return Err(LinkError::Closed),
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Done::Nothing),
            Err(error) => return Err(error.into()),
        };
        self.decoder.received(received);
        self.received_at = env.now.monotonic;
        env.links.totals.received_bytes.fetch_add(received as u64, Relaxed);
        while let Some(frame) = self.decoder.next()? {
            self.core.handle(&frame, env)?;
        }
        self.core.publish(env);
        Ok(if received == space_len { Done::More } else { Done::Nothing })
    }

    /// Sends what is due: Hello, an Ack, a heartbeat.
    pub fn send(&mut self, transport: &mut impl Transport, env: Env<'_>) -> Result<Done, LinkError> {
        loop {
            let (_, is_out) = self.outbox.send(transport)?;
            if !is_out {
                return Ok(Done::Blocked);
            }
            let frames = self.outbox.frames();
            if self.core.state == State::Handshake {
                return Ok(Done::Nothing);
            }
            if env.now.monotonic >= self.heartbeat_at {
                self.heartbeat_at = next_beat(env.now.monotonic, env.options.heartbeat_interval);
                self.core.push_heartbeat(frames, env);
                self.core.check_slots(env)?;
                // What became durable since is told with the next Ack, or by the heartbeat at the latest.
                self.core.is_ack_due |= self.core.has_more_durable(env);
            }
            if self.core.is_ack_due {
                self.core.push_ack(frames, env);
            }
            if self.core.applier.is_at_work() {
                if frames.is_empty() {
                    let slots_max = env.options.rewind_slots_max;
                    let done = self.core.applier.work(env.store, &env.links.totals, slots_max);
                    done.inspect_err(|error| self.core.tell_failed(error, env))?;
                    return Ok(Done::More);
                }
            } else if self.core.is_want_due {
                self.core.push_want(frames, env);
                if self.core.applier.is_at_work() {
                    continue;
                }
            }
            if let Some(lender) = self.core.lender.as_mut().filter(|_| frames.is_empty()) {
                lender.next(env.store, self.core.epoch, frames)?;
            }
            if frames.is_empty() {
                return Ok(Done::Nothing);
            }
        }
    }
}

impl Core {
    /// A slot that was found damaged while the link is up is asked for when the next one begins.
    fn check_slots(&self, env: Env<'_>) -> Result<(), LinkError> {
        match env.store.first_damaged(ShardIndex(self.shard.0)) {
            Some((slot, error)) if self.state == State::Stream => Err(LinkError::Slot { slot, error }),
            _ => Ok(()),
        }
    }

    fn handle(&mut self, frame: &Frame<'_>, env: Env<'_>) -> Result<(), LinkError> {
        match (self.state, frame.kind) {
            (State::Handshake, Kind::Welcome) => return self.welcome(&Welcome::read(frame)?, env),
            (State::Handshake, Kind::Refuse) => return Err(LinkError::Refused(Refuse::read(frame)?)),
            (State::Handshake, Kind::Regain) => return self.lend(frame, env),
            (State::Handshake, kind) => return Err(LinkError::Unexpected { kind }),
            _ if frame.epoch != self.epoch => {
                return Err(LinkError::Epoch { found: frame.epoch, wanted: self.epoch });
            }
            (State::Lending, Kind::Welcome) => return self.welcome(&Welcome::read(frame)?, env),
            (State::Lending, Kind::Refuse) => return Err(LinkError::Refused(Refuse::read(frame)?)),
            (State::Lending, Kind::Ack) => {
                let ack = Ack::read(frame)?;
                self.lender.as_mut().map_or(Ok(()), |lender| lender.acked(ack))?;
            }
            (State::Rewind, Kind::SlotBatch) if frame.flags == FLAG_WANTED => {
                self.is_want_due = self.applier.asked_batch(env.store, frame.payload)?;
                let records = Records::new(&env.store.geometry(), frame.payload).count();
                self.cell.carried(records as u64, frame.payload.len());
            }
            (State::Scan, Kind::SlotBatch) if frame.flags == FLAG_SCAN => {
                self.scan_batch(frame.payload, env)?;
            }
            (State::Stream, Kind::ScanStart) => {
                self.applier.scan_start(ScanStart::read(frame)?)?;
                self.state = State::Scan;
                // At once: readers may not want what the scan makes of the shard.
                self.cell.set_phase(Phase::Scan);
                self.cell.scan_since.store(self.applier.watermark().0, Relaxed);
            }
            (State::Stream, Kind::SlotBatch) if frame.flags == FLAG_STREAM => {
                let records = self.applier.stream_batch(env.store, &env.links.totals, frame.payload)?;
                self.is_ack_due = true;
                self.cell.carried(records, frame.payload.len());
            }
            (State::Scan, Kind::ScanDone) => {
                self.applier.scan_done(env.store, self.epoch, ScanDone::read(frame)?)?;
                self.is_ack_due = true;
                self.state = State::Stream;
            }
            (_, Kind::Heartbeat) => {
                self.heartbeat(Heartbeat::read(frame)?, env);
            }
            (_, kind) => return Err(LinkError::Unexpected { kind }),
        }
        Ok(())
    }

    /// Begins to give back what the leader lost; nothing changes here.
    fn lend(&mut self, frame: &Frame<'_>, env: Env<'_>) -> Result<(), LinkError> {
        let regain = Regain::read(frame)?;
        if frame.epoch < self.epoch {
            return Err(LinkError::OldEpoch { found: frame.epoch, wanted: self.epoch });
        }
        self.epoch = frame.epoch;
        self.lender = Some(Lender::new(env.store, self.shard, regain));
        self.state = State::Lending;
        self.cell.reason.lock().clear();
        Ok(())
    }

    fn welcome(&mut self, welcome: &Welcome, env: Env<'_>) -> Result<(), LinkError> {
        let (store_id, geometry) = (env.store.store_id(), env.store.geometry());
        if welcome.store_id != store_id {
            return Err(LinkError::ForeignStore { found: welcome.store_id, wanted: store_id });
        }
        if welcome.geometry != geometry {
            return Err(LinkError::Geometry { found: welcome.geometry, wanted: geometry });
        }
        if welcome.shard != self.shard.0 {
            return Err(LinkError::Shard { found: welcome.shard, wanted: self.shard.0 });
        }
        if welcome.epoch < self.epoch && !is_planted(Bug::OlderEpochAccepted) {
            return Err(LinkError::OldEpoch { found: welcome.epoch, wanted: self.epoch });
        }
        self.check_emptied(welcome, env)?;
        let is_asking = self.applier.welcome(env.store, welcome);
        let is_asking = is_asking.inspect_err(|error| self.tell_failed(error, env))?;
        self.epoch = welcome.epoch;
        self.lender = None;
        self.state = if is_asking { State::Rewind } else { State::Scan };
        self.is_want_due = is_asking;
        self.leader.head = welcome.head;
        self.cell.reason.lock().clear();
        self.cell.is_unrelated.store(false, Relaxed);
        self.cell.leader_resp_port.store(welcome.resp_port, Relaxed);
        let silence_ms = env.options.heartbeat_interval.as_millis().max(welcome.heartbeat_ms.into()) * 2;
        self.cell.silence_ms_max.store(u64::try_from(silence_ms).unwrap_or(u64::MAX), Relaxed);
        // Who waits for an epoch that this node had not heard of may have it now.
        env.links.changed(&self.cell);
        self.cell.scan_since.store(welcome.since.0, Relaxed);
        self.cell.scan_slots_total.store(welcome.slots_formatted, Relaxed);
        self.cell.scan_slots.store(0, Relaxed);
        Ok(())
    }

    /// What could not be made durable once must not be tried again.
    fn tell_failed(&self, error: &LinkError, env: Env<'_>) {
        if env.store.has_failed_sync() {
            tracing::error!(shard = self.shard.0, %error, "this node cannot follow, and ends");
            env.links.notices.tell(Notice::Failed);
        }
    }

    /// What is held here is not given up to a leader that has lived through none of it, unless somebody was promoted
    /// since, or says so. Its own writes since it came back empty change nothing about that. A leader that deleted
    /// its last record has a past all the same, and so has one that a power cut set back: it knows our terms, and
    /// has got back from its followers what they had, or lost nothing that is held here.
    fn check_emptied(&self, welcome: &Welcome, env: Env<'_>) -> Result<(), LinkError> {
        let (head, (_, records)) = (env.store.head_shared(self.shard), env.store.extent(self.shard));
        let is_relative = welcome.fork > Seq::ZERO || welcome.epoch != self.epoch && !self.is_giving_up;
        if is_relative || head == Seq::ZERO || records == 0 {
            return Ok(());
        }
        let ours = env.store.lineage(self.shard);
        let is_known = ours.last().is_some_and(|last| lineage::knows(&welcome.lineage, last));
        if welcome.head >= head && is_known && !self.is_giving_up {
            return Ok(());
        }
        let (epoch, store_id, leader_head) = (welcome.epoch, welcome.store_id, welcome.head);
        if env.options.accept_store != Some(store_id) {
            return Err(LinkError::EmptiedStore { leader_head, epoch, records, head, store_id });
        }
        tracing::warn!(
            shard = self.shard.0,
            records,
            "--accept-store: the leader's shard shares nothing with this one, and THE RECORDS OF THIS ONE ARE THROWN \
             AWAY; they are in the report of dropped writes"
        );
        Ok(())
    }

    fn scan_batch(&mut self, payload: &[u8], env: Env<'_>) -> Result<(), LinkError> {
        let records = self.applier.scan_batch(env.store, &env.links.totals, payload)?;
        self.scan_bytes += payload.len() as u64;
        self.is_ack_due = true;
        self.cell.carried(records, payload.len());
        // Slots come in order, so the first one of a batch tells how far the scan is.
        if let Some(slot) = payload.first_chunk::<4>() {
            let slot = SlotIndex(u32::from_le_bytes(*slot));
            self.cell.scan_slots.store(u64::from(slot.0) + 1, Relaxed);
        }
        Ok(())
    }

    fn heartbeat(&mut self, heartbeat: Heartbeat, env: Env<'_>) {
        env.links.totals.heartbeats_received.fetch_add(1, Relaxed);
        self.leader.head = self.leader.head.max(heartbeat.seq);
        let offset_ms = self.leader.offset.heard(heartbeat.unix_ms, monotonic_ms(env.now));
        self.cell.clock_offset_ms.store(offset_ms, Relaxed);
        env.links.heads.heard(self.shard, heartbeat.unix_ms, heartbeat.seq);
    }

    fn push_heartbeat(&mut self, frames: &mut Vec<u8>, env: Env<'_>) {
        let heartbeat = Heartbeat { seq: self.applier.watermark(), unix_ms: env.now.unix_ms };
        heartbeat.push(frames, self.epoch);
        env.links.totals.heartbeats_sent.fetch_add(1, Relaxed);
    }

    fn has_more_durable(&self, env: Env<'_>) -> bool {
        let told = Seq(self.cell.durable_seq.load(Relaxed));
        self.state == State::Stream && env.store.durable(self.shard).min(self.applier.watermark()) > told
    }

    fn push_ack(&mut self, frames: &mut Vec<u8>, env: Env<'_>) {
        let watermark = self.applier.watermark();
        let durable = env.store.durable(self.shard).min(watermark);
        self.cell.durable_seq.store(durable.0, Relaxed);
        let ack = Ack { received: watermark, applied: watermark, durable, received_bytes: self.scan_bytes };
        ack.push(frames, self.epoch);
        self.is_ack_due = false;
    }

    /// Asks for the next slots, or says that there are none and that the scan may begin.
    fn push_want(&mut self, frames: &mut Vec<u8>, env: Env<'_>) {
        let Some(slots) = self.applier.ask(env.store) else { return };
        if slots.is_empty() {
            self.state = State::Scan;
        }
        Want { slots }.push(frames, self.epoch);
        self.is_want_due = false;
    }

    fn publish(&mut self, env: Env<'_>) {
        let phase = match self.state {
            State::Handshake => Phase::Handshake,
            State::Lending => Phase::Queued,
            State::Rewind | State::Scan => Phase::Scan,
            State::Stream if self.applier.is_consistent() => Phase::Stream,
            State::Stream => Phase::CatchUp,
        };
        self.cell.set_phase(phase);
        self.cell.last_io_unix_ms.store(env.now.unix_ms, Relaxed);
        let watermark = self.applier.watermark();
        self.cell.head_seq.store(self.leader.head.max(watermark).0, Relaxed);
        let before = Seq(self.cell.applied_seq.swap(watermark.0, Relaxed));
        env.links.passed(&self.cell, before, watermark);
    }
}

fn slot_name(slot: &Option<SlotIndex>) -> String {
    slot.map_or("no slot".to_owned(), |slot| format!("slot {slot}"))
}
