//! A follower that takes a shard: what it is sent next, and what it has acknowledged.
//!
//! The ring is attached before the scan begins, and after an overflow it is drained before the latch
//! is cleared, so between scan and ring nothing is missing. A writer that outruns the link costs
//! rounds of scan and stream; each begins at the last seq sent, and a slot that changed often within
//! a round is sent once, so rounds shrink instead of piling up.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::links::{LinkCell, Links, Phase, monotonic_ms};
use crate::planted::{Bug, is_planted};
use crate::ring::RingReader;
use crate::slot::image::RECORD_HEADER_SIZE;
use crate::slot::{Seq, ShardIndex, SlotIndex};
use crate::wire::Transport;
use crate::wire::frame::{FLAG_WANTED, HEADER_SIZE, Kind, end_batch};
use crate::wire::message::{Ack, Heartbeat, Hello, ScanDone, ScanStart, Want};
use crate::wire::window::AckWindow;

use super::hello::Plan;
use super::link::{Env, LinkError};
use super::pace::Turn;
use super::registry::Seat;
use super::scan::{ScanRange, ScanSender, ScanStep, payload_size_max};
use super::stream::RingFrame;

/// What an outbox keeps of its memory once the scan is through.
const CONTROL_BYTES_KEPT: usize = 256;

/// A link past its Hello.
#[derive(Debug)]
pub(super) struct Attached {
    shard: ShardIndex,
    epoch: u64,
    ring: RingReader,
    flow: Flow,
    /// The last seq sent in order: a scan's `through` once it is done, then each record of the ring.
    seq_sent: Seq,
    seq_acked: Seq,
    /// The ring was empty when it was last looked at, which is often: all up to `seq_sent` was all there was.
    is_drained: bool,
    /// The shard's head when it was last asked for: seldom, since that takes the shard's lock.
    head_seen: Seq,
    /// The follower's state is a prefix of ours from here on; `Seq::MAX` during a scan.
    consistent_at: Seq,
    window: AckWindow,
    /// What its scans may take; `None` once it streams.
    turn: Option<Turn>,
    shown: Shown,
    _seat: Seat,
}

#[derive(Debug)]
enum Flow {
    /// The follower asks for slots; these from `at` on are still to be sent. Then comes the scan.
    Asked {
        slots: Vec<SlotIndex>,
        at: usize,
        range: ScanRange,
    },
    Scan(ScanSender),
    /// Nothing of the ring is on its way.
    Stream,
    /// A part of this frame is out.
    Frame(RingFrame),
}

/// What comes next on a link.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A frame waits to be sent.
    Frame,
    /// Nothing yet; call again soon.
    Again,
    /// Nothing until an Ack, a record or a deadline.
    Nothing,
}

/// A cell that is shown to the outside as long as its link lives.
#[derive(Debug)]
struct Shown {
    cell: Arc<LinkCell>,
    links: Arc<Links>,
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.cell.set_phase(Phase::Closed);
        self.links.remove(&self.cell);
    }
}

impl Attached {
    /// Attaches a ring and begins the scan.
    pub(super) fn new(
        hello: &Hello,
        peer: SocketAddr,
        epoch: u64,
        plan: Plan,
        seat: Seat,
        env: Env<'_>,
    ) -> Self {
        let (shard, since) = (ShardIndex(hello.shard), plan.since);
        let totals = &env.links.totals;
        // A scan that goes on where it was cut off sends what is left of it.
        let is_full = since == Seq::ZERO && plan.scan_place.is_none();
        let scans = if is_full { &totals.full_scans } else { &totals.delta_scans_reconnect };
        scans.fetch_add(1, Relaxed);
        totals.scans_resumed.fetch_add(u64::from(plan.scan_place.is_some()), Relaxed);
        // Watermark before scan: what changes from here on is in the ring.
        // A ring that holds no record would never stream.
        let ring_bytes =
            env.options.ring_bytes.max(RECORD_HEADER_SIZE + env.store.geometry().image_size_max());
        let (ring, through) = env.store.attach(shard, ring_bytes, Arc::clone(env.sleeper));
        assert!(through >= since, "a shard's head went back from {since} to {through}");
        let cell = LinkCell::new(hello.follower_id, peer, hello.resp_port, hello.shard);
        cell.set_phase(Phase::Queued);
        cell.ring_capacity.store(ring.capacity() as u64, Relaxed);
        cell.head_seq.store(through.0, Relaxed);
        cell.applied_seq.store(since.0, Relaxed);
        cell.received_seq.store(since.0, Relaxed);
        cell.last_io_unix_ms.store(env.now.unix_ms, Relaxed);
        env.links.add(Arc::clone(&cell));
        let (follower, head) = (hello.follower_id, through.0);
        tracing::info!(shard = shard.0, %follower, %peer, since = since.0, head, "follower attached");
        env.links.heads.seen(shard, monotonic_ms(env.now), through);
        let range = ScanRange { since, through, place: plan.scan_place };
        Self {
            shard,
            epoch,
            ring,
            flow: if plan.asks {
                Flow::Asked { slots: Vec::new(), at: 0, range }
            } else {
                Flow::Scan(ScanSender::new(env.store, shard, range, env.now))
            },
            seq_sent: since,
            seq_acked: since,
            is_drained: false,
            head_seen: through,
            consistent_at: Seq::MAX,
            window: AckWindow::default(),
            turn: Some(Turn::first(&env.registry.pace, through, env.now.monotonic)),
            shown: Shown { cell, links: Arc::clone(env.links) },
            _seat: seat,
        }
    }

    pub(super) fn shard(&self) -> ShardIndex {
        self.shard
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn seq_sent(&self) -> Seq {
        self.seq_sent
    }

    /// The seq behind which the stream will go on, while a scan is under way.
    pub(super) fn through(&self) -> Seq {
        match &self.flow {
            Flow::Asked { range, .. } => range.through,
            Flow::Scan(scan) => scan.through,
            Flow::Stream | Flow::Frame(_) => self.seq_sent,
        }
    }

    pub(super) fn scan_since(&self) -> Option<Seq> {
        match &self.flow {
            Flow::Scan(scan) => Some(scan.since()),
            Flow::Asked { .. } | Flow::Stream | Flow::Frame(_) => None,
        }
    }

    pub(super) fn has_ring_work(&self) -> bool {
        match self.flow {
            Flow::Asked { .. } | Flow::Scan(_) => false,
            Flow::Stream | Flow::Frame(_) => !self.ring.is_empty() || self.ring.is_latched(),
        }
    }

    /// When a scan that may not send now is to ask again.
    pub(super) fn scan_retry_at(&self) -> Option<Duration> {
        self.turn.as_ref().and_then(Turn::retry_at)
    }

    /// Whether a part of a frame is out whose rest must follow.
    pub(super) fn has_frame(&self) -> bool {
        matches!(self.flow, Flow::Frame(_))
    }

    /// Goes on with that frame; returns the bytes taken and whether all of it is out.
    pub(super) fn send_frame(&mut self, transport: &mut impl Transport) -> io::Result<(usize, bool)> {
        let Flow::Frame(frame) = &mut self.flow else { return Ok((0, true)) };
        let (taken, is_out) = frame.send(&mut self.ring, transport)?;
        if is_out {
            self.flow = Flow::Stream;
        }
        Ok((taken, is_out))
    }

    /// Decides what is sent next; called only when all before it is out, with an empty `out`.
    pub(super) fn next(&mut self, out: &mut Vec<u8>, env: Env<'_>) -> Result<Next, LinkError> {
        match &self.flow {
            Flow::Asked { slots, at, .. } if *at == slots.len() => return Ok(Next::Nothing),
            Flow::Asked { .. } | Flow::Scan(_) => {}
            Flow::Stream | Flow::Frame(_) => return Ok(self.next_of_ring(out, env)),
        }
        if let Some(turn) = &mut self.turn {
            let may_send = turn.ask(env.options, env.store.head(self.shard), env.now.monotonic);
            self.shown.cell.set_phase(if turn.is_queued() { Phase::Queued } else { Phase::Scan });
            if !may_send {
                return Ok(Next::Nothing);
            }
        }
        let Flow::Scan(scan) = &mut self.flow else { return self.next_asked(out, env) };
        let slots_before = scan.slots_sent();
        let step = scan.step(env.store, env.options, &mut self.window, self.epoch, out)?;
        let slots = scan.slots_sent() - slots_before;
        env.links.totals.scan_slots_sent.fetch_add(slots, Relaxed);
        scan.report(&self.shown.cell, env.now);
        match step {
            ScanStep::Batch => {
                scan.publish(&self.shown.cell);
                self.shown.cell.carried(slots, out.len() - HEADER_SIZE);
                self.turn.iter_mut().for_each(|turn| turn.spent(out.len(), slots));
                Ok(Next::Frame)
            }
            ScanStep::Wait => Ok(Next::Nothing),
            ScanStep::Again => Ok(Next::Again),
            ScanStep::Half => {
                // A follower that sees slots from the start again raises its watermark to this.
                self.seq_sent = scan.since();
                Ok(Next::Again)
            }
            ScanStep::Through => {
                scan.publish(&self.shown.cell);
                scan.report_end(&self.shown.cell, env.now);
                let through = scan.through;
                self.finish_scan(through, out, env);
                Ok(Next::Frame)
            }
        }
    }

    /// Takes the next slots that the follower asks for; none = the scan may begin.
    pub(super) fn want(&mut self, want: Want, env: Env<'_>) -> Result<(), LinkError> {
        let Flow::Asked { slots, at, range } = &mut self.flow else {
            return Err(LinkError::Unexpected { kind: Kind::Want });
        };
        if *at < slots.len() {
            return Err(LinkError::Unexpected { kind: Kind::Want });
        }
        if want.slots.is_empty() {
            let scan = ScanSender::new(env.store, self.shard, *range, env.now);
            self.flow = Flow::Scan(scan);
        } else {
            (*slots, *at) = (want.slots, 0);
        }
        Ok(())
    }

    /// A batch of the slots that the follower asked for, as they are now.
    fn next_asked(&mut self, out: &mut Vec<u8>, env: Env<'_>) -> Result<Next, LinkError> {
        let Flow::Asked { slots, at, .. } = &mut self.flow else { return Ok(Next::Nothing) };
        let geometry = env.store.geometry();
        let bytes_max = HEADER_SIZE + payload_size_max(&geometry, env.options.scan_batch_bytes_max);
        out.resize(HEADER_SIZE, 0);
        let first = *at;
        while let Some(slot) = slots.get(*at).copied() {
            if out.len() > HEADER_SIZE
                && out.len() + RECORD_HEADER_SIZE + geometry.image_size_max() > bytes_max
            {
                break;
            }
            env.store.push_slot(self.shard, slot, out).map_err(|error| LinkError::Slot {
                shard: self.shard,
                slot,
                error,
            })?;
            *at += 1;
        }
        let payload = end_batch(out, FLAG_WANTED, self.epoch);
        let slots = (*at - first) as u64;
        self.shown.cell.carried(slots, payload);
        self.turn.iter_mut().for_each(|turn| turn.spent(out.len(), slots));
        Ok(Next::Frame)
    }

    fn finish_scan(&mut self, mut through: Seq, out: &mut Vec<u8>, env: Env<'_>) {
        if is_planted(Bug::AttachAfterScan) {
            (self.ring, through) =
                env.store.attach(self.shard, env.options.ring_bytes, Arc::clone(env.sleeper));
        }
        // The scan read slots that writers changed meanwhile, none of them later than this.
        self.consistent_at = env.store.head(self.shard);
        assert!(self.consistent_at >= through && through >= self.seq_sent, "a shard's head went back");
        self.head_seen = self.consistent_at;
        // A stream needs no room for batches.
        out.shrink_to(CONTROL_BYTES_KEPT);
        ScanDone { through, consistent_at: self.consistent_at }.push(out, self.epoch);
        self.seq_sent = through;
        self.flow = Flow::Stream;
        self.turn.iter_mut().for_each(Turn::pause);
        self.shown.cell.set_phase(Phase::CatchUp);
    }

    fn next_of_ring(&mut self, out: &mut Vec<u8>, env: Env<'_>) -> Next {
        let bytes_max = payload_size_max(&env.store.geometry(), env.options.stream_batch_bytes_max);
        if is_planted(Bug::UnlatchBeforeDrain) && self.ring.is_latched() {
            self.answer_overflow(out, env);
            return Next::Frame;
        }
        if let Some((frame, carried)) = RingFrame::cut(&mut self.ring, bytes_max, self.seq_sent, self.epoch) {
            if std::mem::take(&mut self.is_drained) {
                // The head has moved just now, after a rest that is nobody's lag.
                env.links.heads.seen(self.shard, monotonic_ms(env.now), self.seq_sent);
            }
            self.seq_sent = carried.seq_last;
            self.flow = Flow::Frame(frame);
            let cell = &self.shown.cell;
            cell.carried(carried.records, carried.payload_bytes);
            env.links.totals.records_sent.fetch_add(carried.records, Relaxed);
            return Next::Frame;
        }
        // The latch is looked at first: a set one says that all records before it are visible, so an
        // empty ring is a drained one.
        if self.ring.is_latched() && self.ring.is_empty() {
            self.answer_overflow(out, env);
            return Next::Frame;
        }
        self.is_drained = true;
        Next::Nothing
    }

    /// Clears the latch and scans what the ring could not take.
    fn answer_overflow(&mut self, out: &mut Vec<u8>, env: Env<'_>) {
        let through = env.store.rearm(self.shard, &self.ring);
        env.links.totals.delta_scans_overflow.fetch_add(1, Relaxed);
        if is_planted(Bug::OverflowIgnored) {
            self.seq_sent = through;
            return;
        }
        let since = if is_planted(Bug::ScanSinceHead) { env.store.head(self.shard) } else { self.seq_sent };
        ScanStart { since, through }.push(out, self.epoch);
        let range = ScanRange { since, through, place: None };
        self.flow = Flow::Scan(ScanSender::new(env.store, self.shard, range, env.now));
        let (pace, now) = (&env.registry.pace, env.now.monotonic);
        self.is_drained = false;
        self.turn.get_or_insert_with(|| Turn::of_overflow(pace, through, now));
        self.consistent_at = Seq::MAX;
        self.shown.cell.set_phase(Phase::Scan);
    }

    /// Takes an Ack.
    pub(super) fn acked(&mut self, ack: Ack, env: Env<'_>) -> Result<(), LinkError> {
        if ack.applied < self.seq_acked || ack.applied > self.seq_sent {
            return Err(LinkError::AckSeq { found: ack.applied, acked: self.seq_acked, sent: self.seq_sent });
        }
        self.window.acked(ack.received_bytes)?;
        let acked_before = std::mem::replace(&mut self.seq_acked, ack.applied);
        if ack.applied >= self.consistent_at && !matches!(self.flow, Flow::Asked { .. } | Flow::Scan(_)) {
            self.shown.cell.set_phase(Phase::Stream);
            self.turn = None;
        }
        let cell = &self.shown.cell;
        let received = ack.received.clamp(ack.applied, self.seq_sent);
        let received_before = Seq(cell.received_seq.swap(received.0, Relaxed));
        let applied = if is_planted(Bug::SentCountsAsApplied) { self.seq_sent } else { self.seq_acked };
        cell.applied_seq.store(applied.0, Relaxed);
        let durable = ack.durable.min(ack.applied);
        let durable_before = Seq(cell.durable_seq.swap(durable.0, Relaxed));
        cell.last_io_unix_ms.store(env.now.unix_ms, Relaxed);
        self.publish_head(env);
        env.links.passed(&self.shown.cell, acked_before.min(received_before), received);
        env.links.passed(&self.shown.cell, durable_before, durable);
        Ok(())
    }

    /// Takes a heartbeat.
    pub(super) fn heartbeat(&mut self, _heartbeat: Heartbeat, env: Env<'_>) {
        env.links.totals.heartbeats_received.fetch_add(1, Relaxed);
        self.shown.cell.last_io_unix_ms.store(env.now.unix_ms, Relaxed);
    }

    /// Appends our heartbeat.
    pub(super) fn push_heartbeat(&mut self, out: &mut Vec<u8>, env: Env<'_>) {
        self.publish(env);
        Heartbeat { seq: self.head_seen, unix_ms: env.now.unix_ms }.push(out, self.epoch);
        env.links.totals.heartbeats_sent.fetch_add(1, Relaxed);
    }

    /// Asks for the head and publishes what changes even while the follower is silent.
    pub(super) fn publish(&mut self, env: Env<'_>) {
        self.head_seen = env.store.head(self.shard);
        self.shown.cell.ring_used.store(self.ring.used() as u64, Relaxed);
        self.publish_head(env);
    }

    fn publish_head(&mut self, env: Env<'_>) {
        let head = self.head_seen.max(self.seq_sent);
        env.links.heads.seen(self.shard, monotonic_ms(env.now), head);
        self.shown.cell.head_seq.store(head.0, Relaxed);
    }
}
