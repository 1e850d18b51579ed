//! The follower's end of one link: bytes in, bytes out, no I/O and no clock of its own.
//!
//! Driven like the leader's end: [`Link::receive`], [`Link::send`], [`Link::check_deadlines`]. An
//! error ends the link; the shard keeps its data and its watermark, and the next link asks for what
//! changed since.
//!
//! Batches are applied straight from the receive buffer. Acks say where the follower is *after* a
//! round of receiving, so there is one per round at most, however many batches it held.

mod error;
mod state;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::clock::Now;
use crate::links::{LinkCell, Links, Phase};
use crate::slot::{Seq, ShardIndex};
use crate::store::Store;
use crate::wire::frame::{FrameDecoder, PREAMBLE, Side};
use crate::wire::message::Hello;
use crate::wire::{Outbox, Transport, next_beat};

use super::Options;
use super::apply::Applier;
use super::hello;

pub use error::LinkError;
use state::{Core, LeaderClock, State};

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
