//! What a link of a follower does with each message, and what it has to say: all but the buffers.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::links::{ClockOffset, LinkCell, Notice, Phase, monotonic_ms};
use crate::planted::{Bug, is_planted};
use crate::slot::{Records, Seq, ShardIndex, SlotIndex, lineage};
use crate::wire::frame::{FLAG_SCAN, FLAG_STREAM, FLAG_WANTED, Frame, Kind};
use crate::wire::message::{Ack, Heartbeat, Refuse, Regain, ScanDone, ScanStart, Want, Welcome};

use super::super::apply::Applier;
use super::super::lend::Lender;
use super::{Env, LinkError};

/// All but the buffers, so that a frame can borrow from the decoder while it is handled.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) shard: ShardIndex,
    pub(super) state: State,
    pub(super) applier: Applier,
    /// The leader was told that nothing is held.
    pub(super) is_giving_up: bool,
    pub(super) epoch: u64,
    /// Payload bytes of scan batches applied on this link.
    pub(super) scan_bytes: u64,
    pub(super) is_ack_due: bool,
    pub(super) is_want_due: bool,
    /// While the leader gets back what it lost.
    pub(super) lender: Option<Lender>,
    pub(super) leader: LeaderClock,
    pub(super) cell: Arc<LinkCell>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
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
pub(super) struct LeaderClock {
    head: Seq,
    offset: ClockOffset,
}

impl Core {
    /// A slot that was found damaged while the link is up is asked for when the next one begins.
    pub(super) fn check_slots(&self, env: Env<'_>) -> Result<(), LinkError> {
        match env.store.first_damaged(ShardIndex(self.shard.0)) {
            Some((slot, error)) if self.state == State::Stream => Err(LinkError::Slot { slot, error }),
            _ => Ok(()),
        }
    }

    pub(super) fn handle(&mut self, frame: &Frame<'_>, env: Env<'_>) -> Result<(), LinkError> {
        match (self.state, frame.kind) {
            (State::Handshake, Kind::Welcome) => return self.welcome(&Welcome::read(frame)?, env),
            (State::Handshake, Kind::Refuse) => return Err(LinkError::Refused(Refuse::read(frame)?)),
            (State::Handshake, Kind::Regain) => return self.lend(frame, env),
            (State::Handshake, kind) => return Err(LinkError::Unexpected { kind }),
            _ if frame.epoch != self.epoch => {
                return Err(LinkError::Epoch { found: frame.epoch, wanted: self.epoch });
            }
            (State::Lending, Kind::Welcome) => return self.welcome(&Welcome::read(frame)?, env),
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
            // Also in the middle: a slot that comes next is damaged there.
            (_, Kind::Refuse) => return Err(LinkError::Refused(Refuse::read(frame)?)),
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
    pub(super) fn tell_failed(&self, error: &LinkError, env: Env<'_>) {
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

    pub(super) fn push_heartbeat(&mut self, frames: &mut Vec<u8>, env: Env<'_>) {
        let heartbeat = Heartbeat { seq: self.applier.watermark(), unix_ms: env.now.unix_ms };
        heartbeat.push(frames, self.epoch);
        env.links.totals.heartbeats_sent.fetch_add(1, Relaxed);
    }

    pub(super) fn has_more_durable(&self, env: Env<'_>) -> bool {
        let told = Seq(self.cell.durable_seq.load(Relaxed));
        self.state == State::Stream && env.store.durable(self.shard).min(self.applier.watermark()) > told
    }

    pub(super) fn push_ack(&mut self, frames: &mut Vec<u8>, env: Env<'_>) {
        let watermark = self.applier.watermark();
        let durable = env.store.durable(self.shard).min(watermark);
        self.cell.durable_seq.store(durable.0, Relaxed);
        let ack = Ack { received: watermark, applied: watermark, durable, received_bytes: self.scan_bytes };
        ack.push(frames, self.epoch);
        self.is_ack_due = false;
    }

    /// Asks for the next slots, or says that there are none and that the scan may begin.
    pub(super) fn push_want(&mut self, frames: &mut Vec<u8>, env: Env<'_>) {
        let Some(slots) = self.applier.ask(env.store) else { return };
        if slots.is_empty() {
            self.state = State::Scan;
        }
        Want { slots }.push(frames, self.epoch);
        self.is_want_due = false;
    }

    pub(super) fn publish(&mut self, env: Env<'_>) {
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
