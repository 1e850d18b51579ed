//! A leader that may have lost its last writes in an OS crash asks followers for them before it leads.
//!
//! Asked is who holds everything up to a seq above what is held here for sure, and nothing that is not of this
//! store's own history. Such a follower sends the slots in question, as a leader sends a scan; its Hello is
//! answered when the wait is over. All others are refused until then.
//!
//! A follower that was cut off inside a scan holds all up to its watermark, and here and there more. What it has
//! more is taken, too: it is of the same history, and this store holds such singles itself. But only
//! the watermark tells what is held for sure, so only that moves the place where the new term begins.
//!
//! Always true: a shard that has its new term takes nothing back any more, whoever still sends.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::links::Notice;
use crate::slot::lineage::fork;
use crate::slot::{Seq, ShardIndex};
use crate::store::{GivenBack, Term};
use crate::wire::frame::{FLAG_SCAN, Frame, Kind};
use crate::wire::message::{Ack, Heartbeat, Hello, Refuse, RefuseCode, Regain, ScanDone};

use super::lenders::{Lender, Sender};
use super::link::{Env, LinkError, take_seat};
use super::registry::Seat;

/// How often the wait says how it goes.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// Ends the wait when its time is over and nobody sends; says how it goes meanwhile. Whoever drives links
/// calls this now and then.
pub fn pass(env: Env<'_>) {
    if !env.store.is_regaining() {
        return;
    }
    let (now, totals) = (env.now.monotonic, &env.links.totals);
    let mut wait = env.registry.gate.0.lock();
    let (slots, bytes) = (totals.slots_regained.load(Relaxed), totals.regain_bytes.load(Relaxed));
    if wait.is_over {
        // It has failed, and the node may not have listened yet.
        env.links.notices.tell(Notice::Failed);
        return;
    }
    if wait.goes_on(now, env.options) {
        if now >= wait.report_at {
            wait.report_at = now + REPORT_INTERVAL;
            let seconds_left = wait.ends_at.unwrap_or(now).saturating_sub(now).as_secs();
            tracing::warn!(
                slots,
                bytes,
                links = wait.senders(),
                seconds_left,
                "the last writes may be lost to a crash: waiting for followers that have them; no writes are taken"
            );
        }
        return;
    }
    wait.is_over = true;
    drop(wait);
    match env.store.end_regain() {
        Ok(()) => {
            say_what_came(&env.registry.gate.0.lock().lenders, env);
            tracing::warn!(slots, bytes, "the wait for what a crash took is over; this node leads");
            if env.links.superseded_by_epoch().is_none() {
                env.store.begin_writes();
            }
        }
        Err(error) => {
            tracing::error!(%error, "this node cannot lead, and ends");
            env.links.notices.tell(Notice::Failed);
        }
    }
}

/// What may be missing, in the log: who held more, and how much of it came.
fn say_what_came(lenders: &[Lender], env: Env<'_>) {
    if lenders.is_empty() {
        let waited = env.options.regain_wait;
        tracing::warn!(
            ?waited,
            "no follower came that holds more than this node: its last writes may be lost"
        );
    }
    for lender in lenders.iter().filter(|lender| !lender.is_through) {
        let (shard, follower) = (lender.shard(), lender.hello.follower_id);
        let (held, slots) = (lender.hello.watermark.0, lender.next.0);
        let is_made_up = lenders.iter().any(|other| {
            other.is_through && other.shard() == shard && other.hello.watermark >= lender.hello.watermark
        });
        if is_made_up {
            continue;
        }
        tracing::warn!(
            %shard,
            %follower,
            held,
            slots,
            "a follower held everything up to this seq, and only slots below this one came back: writes may be lost"
        );
    }
}

/// A link whose follower gives back what it has.
#[derive(Debug)]
pub(super) struct Regaining {
    hello: Hello,
    shard: ShardIndex,
    epoch: u64,
    received_bytes: u64,
    is_ack_due: bool,
    /// `None` once it is through.
    sender: Option<Sender>,
    seat: Option<Seat>,
}

impl Regaining {
    /// Asks for what is missing here, or refuses a follower that cannot help.
    pub(super) fn new(
        hello: Hello,
        lineage: &[Term],
        out: &mut Vec<u8>,
        env: Env<'_>,
    ) -> Result<Self, Refuse> {
        let refuse = || {
            let text = "this leader gets back from others what it lost in a crash, and takes followers then";
            Refuse::new(RefuseCode::Regaining, text.to_owned())
        };
        let shard = ShardIndex(hello.shard);
        let since = env.store.tail(shard).ok_or_else(refuse)?;
        // How far this history went before the crash is not known here.
        let is_ours = fork(lineage, Seq::MAX, &hello.lineage, hello.head) == Some(hello.head);
        // No more can be held for sure than is held.
        let is_sound = hello.watermark <= hello.head;
        if !is_ours || !is_sound || hello.asks || hello.watermark <= since {
            return Err(refuse());
        }
        let seat = take_seat(shard, env)?;
        let (sender, next) = env.registry.gate.enter(&hello, env.now.monotonic).ok_or_else(refuse)?;
        let epoch = lineage.last().map_or(0, |term| term.epoch);
        let (follower, through) = (hello.follower_id, hello.watermark.0);
        tracing::info!(%shard, %follower, since = since.0, through, next = next.0, "a follower gives back what it has");
        Regain { since, next, window_bytes: env.options.ack_window_bytes_max }.push(out, epoch);
        let (sender, seat) = (Some(sender), Some(seat));
        Ok(Self { hello, shard, epoch, received_bytes: 0, is_ack_due: false, sender, seat })
    }

    pub(super) fn shard(&self) -> ShardIndex {
        self.shard
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Up to where the follower holds everything, once all of it has come.
    pub(super) fn given_back(&self) -> Option<Seq> {
        self.sender.is_none().then_some(self.hello.watermark)
    }

    /// Takes what the follower sends.
    pub(super) fn take(&mut self, frame: &Frame<'_>, env: Env<'_>) -> Result<(), LinkError> {
        let totals = &env.links.totals;
        match frame.kind {
            Kind::Heartbeat => {
                Heartbeat::read(frame)?;
                totals.heartbeats_received.fetch_add(1, Relaxed);
            }
            Kind::SlotBatch
                if frame.flags == FLAG_SCAN
                    && let Some(sender) = &self.sender =>
            {
                let applied = env.store.give_back(self.shard, frame.payload)?;
                let GivenBack { applied, next } = applied.ok_or(LinkError::RegainOver)?;
                sender.passed(&self.hello, next, env.now.monotonic);
                totals.slots_regained.fetch_add(applied.applied, Relaxed);
                totals.regain_bytes.fetch_add(frame.payload.len() as u64, Relaxed);
                self.received_bytes += frame.payload.len() as u64;
                self.is_ack_due = true;
            }
            Kind::ScanDone if let Some(sender) = &self.sender => {
                let ScanDone { through, .. } = ScanDone::read(frame)?;
                if through != self.hello.watermark {
                    return Err(LinkError::GivenBack { found: through, wanted: self.hello.watermark });
                }
                if !env.store.regained(self.shard, through) {
                    return Err(LinkError::RegainOver);
                }
                sender.is_through(&self.hello);
                tracing::info!(shard = %self.shard, follower = %self.hello.follower_id, through = through.0, "given back");
                self.sender = None;
            }
            kind => return Err(LinkError::Unexpected { kind }),
        }
        Ok(())
    }

    /// The Hello, once it can be answered.
    pub(super) fn next(&mut self, env: Env<'_>) -> Result<Option<Hello>, LinkError> {
        if env.store.is_regaining() {
            return Ok(None);
        }
        if self.sender.is_some() {
            return Err(LinkError::RegainOver);
        }
        // The answer takes one of its own.
        self.seat = None;
        Ok(Some(self.hello.clone()))
    }

    pub(super) fn push_heartbeat(&self, out: &mut Vec<u8>, env: Env<'_>) {
        Heartbeat { seq: env.store.head(self.shard), unix_ms: env.now.unix_ms }.push(out, self.epoch);
        env.links.totals.heartbeats_sent.fetch_add(1, Relaxed);
    }

    /// Says whether there was anything to acknowledge.
    pub(super) fn push_ack(&mut self, out: &mut Vec<u8>) -> bool {
        if !std::mem::take(&mut self.is_ack_due) {
            return false;
        }
        let received_bytes = self.received_bytes;
        Ack { received: Seq::ZERO, applied: Seq::ZERO, durable: Seq::ZERO, received_bytes }
            .push(out, self.epoch);
        true
    }
}
