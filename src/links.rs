//! Floor 2: what every replication link reports about itself, for whoever asks from outside.
//!
//! A link writes plain atomics as it goes; INFO, ROLE, WAIT, `/status` and `/metrics` read them.
//! Values are pushed here from above and never fetched from above. [`waiting`] wakes who waits for them,
//! [`lag`] keeps what turns seqs into time.

mod lag;
mod notice;
mod waiting;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use uuid::Uuid;

pub use self::lag::{ClockOffset, Heads, LagSamples};
pub use self::notice::{Notice, Notices};
pub use self::waiting::Wait;
use crate::clock::Now;
use crate::planted::{Bug, is_planted};
use crate::slot::{Seq, ShardIndex};

/// What a link is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Phase {
    /// No connection; the follower is trying.
    Connecting = 0,
    /// Hello was sent, the answer is due.
    Handshake = 1,
    /// Leader: as many scans as may be are under way; this one waits for its turn.
    Queued = 2,
    /// Phase 1: slots are sent under Ack flow control.
    Scan = 3,
    /// The scan is through; the stream has not yet reached the last seq that the scan carried.
    CatchUp = 4,
    /// Phase 2: the ring is streamed; the follower's state is a prefix of the leader's.
    Stream = 5,
    /// The leader refused, or was refused; see the link's reason.
    Refused = 6,
    /// The link has ended.
    Closed = 7,
}

impl Phase {
    /// The word used in logs, status and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Handshake => "handshake",
            Self::Queued => "queued",
            Self::Scan => "scan",
            Self::CatchUp => "catch_up",
            Self::Stream => "stream",
            Self::Refused => "refused",
            Self::Closed => "closed",
        }
    }

    fn from_u8(byte: u8) -> Self {
        match byte {
            0 => Self::Connecting,
            1 => Self::Handshake,
            2 => Self::Queued,
            3 => Self::Scan,
            4 => Self::CatchUp,
            5 => Self::Stream,
            6 => Self::Refused,
            _ => Self::Closed,
        }
    }
}

impl Phase {
    /// Whether there is a connection that has got past its Hello.
    #[must_use]
    pub fn is_connected(self) -> bool {
        matches!(self, Self::Queued | Self::Scan | Self::CatchUp | Self::Stream)
    }
}

/// How sure a change is to be on a follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The follower has it. (This version's followers apply what they receive before they say so.)
    Received,
    /// The follower has applied it: its readers see it.
    Applied,
    /// The follower has it where a power cut does not take it.
    Durable,
}

/// How far a link is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lag {
    /// Changes that the follower lacks.
    pub records: u64,
    /// About what a delta would have to send: those changes, but no slot twice, at the mean size of the
    /// records that the link has carried.
    pub bytes: u64,
    /// Age of the follower's state: for how long the leader's head has been another; 0 when caught up.
    pub ms: u64,
}

/// One link's figures. The leader keeps one per connected (shard, follower), a follower one per shard.
#[derive(Debug)]
pub struct LinkCell {
    /// The follower's id (on both sides).
    pub follower: Uuid,
    /// The other end's address.
    pub peer: SocketAddr,
    /// The follower's RESP port, as it announced it; 0 if it has none.
    pub resp_port: u16,
    /// On a follower: the leader's RESP port, as it announced it; 0 until then.
    pub leader_resp_port: AtomicU16,
    /// The shard this link carries.
    pub shard: u16,
    phase: AtomicU8,
    /// Why the link is where it is: the last refusal or disconnect; empty when all is well.
    pub reason: Mutex<String>,
    /// Follower: what its own store could not do (a full disk, say), from then on until a link streams: it
    /// will not catch up before somebody has mended that. Empty when all is well.
    pub trouble: Mutex<String>,
    /// Follower: the leader refused what is held here as nothing that it has ever had, or was refused as one that
    /// never had it; from then on until a leader takes it.
    pub is_unrelated: AtomicBool,
    /// Leader: the shard's head as last looked at. Follower: the leader's head as last heard.
    pub head_seq: AtomicU64,
    /// Leader: last seq the follower acknowledged as applied. Follower: its watermark.
    pub applied_seq: AtomicU64,
    /// Leader: last seq the follower acknowledged as received.
    pub received_seq: AtomicU64,
    /// What of that survives a power cut of the follower; 0 where it keeps no log.
    pub durable_seq: AtomicU64,
    /// The scan's `since`; meaningful in phase scan.
    pub scan_since: AtomicU64,
    /// How many slots the scan under way or last ended has looked at.
    pub scan_slots: AtomicU64,
    /// Slots that the scan has to look at.
    pub scan_slots_total: AtomicU64,
    /// Payload bytes sent (leader) or received (follower) on this link.
    pub bytes: AtomicU64,
    /// Records in those.
    pub records: AtomicU64,
    /// Ring capacity in bytes; 0 on a follower.
    pub ring_capacity: AtomicU64,
    /// Ring bytes waiting; 0 on a follower.
    pub ring_used: AtomicU64,
    /// What to add to this node's monotonic milliseconds to get the clock that [`Links::heads`] is in.
    pub clock_offset_ms: AtomicI64,
    /// For how long nothing new of the head may be heard before that is lag. Zero on a leader, who knows it.
    pub silence_ms_max: AtomicU64,
    /// Unix time in milliseconds of the last byte received on this link.
    pub last_io_unix_ms: AtomicU64,
}

impl LinkCell {
    /// A cell in phase connecting with all figures zero.
    #[must_use]
    pub fn new(follower: Uuid, peer: SocketAddr, resp_port: u16, shard: u16) -> Arc<Self> {
        Arc::new(Self {
            follower,
            peer,
            resp_port,
            leader_resp_port: AtomicU16::new(0),
            shard,
            phase: AtomicU8::new(Phase::Connecting as u8),
            reason: Mutex::new(String::new()),
            trouble: Mutex::new(String::new()),
            is_unrelated: AtomicBool::new(false),
            head_seq: AtomicU64::new(0),
            applied_seq: AtomicU64::new(0),
            received_seq: AtomicU64::new(0),
            durable_seq: AtomicU64::new(0),
            scan_since: AtomicU64::new(0),
            scan_slots: AtomicU64::new(0),
            scan_slots_total: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            records: AtomicU64::new(0),
            ring_capacity: AtomicU64::new(0),
            ring_used: AtomicU64::new(0),
            clock_offset_ms: AtomicI64::new(0),
            silence_ms_max: AtomicU64::new(0),
            last_io_unix_ms: AtomicU64::new(0),
        })
    }

    /// What the link is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        Phase::from_u8(self.phase.load(Ordering::Relaxed))
    }

    /// Publishes what the link is doing.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Counts what was sent, or received.
    pub fn carried(&self, records: u64, bytes: usize) {
        self.records.fetch_add(records, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn has(&self, level: Level, seq: Seq) -> bool {
        let reached = match level {
            Level::Received => &self.received_seq,
            Level::Applied => &self.applied_seq,
            Level::Durable => &self.durable_seq,
        };
        self.phase().is_connected() && reached.load(Ordering::Relaxed) >= seq.0
    }
}

/// Node-wide totals that outlive the links which counted them.
#[derive(Debug, Default)]
pub struct Totals {
    /// Scans with `since = 0` that were begun.
    pub full_scans: AtomicU64,
    /// Delta scans begun because a follower came (back) with a watermark.
    pub delta_scans_reconnect: AtomicU64,
    /// Delta scans begun because a ring overflowed.
    pub delta_scans_overflow: AtomicU64,
    /// Scans that went on where a broken link had left one.
    pub scans_resumed: AtomicU64,
    /// Slots sent by scans.
    pub scan_slots_sent: AtomicU64,
    /// Bytes written to replication sockets by the leader.
    pub sent_bytes: AtomicU64,
    /// Bytes read from replication sockets by the follower.
    pub received_bytes: AtomicU64,
    /// Stream records sent.
    pub records_sent: AtomicU64,
    /// Records applied to slots.
    pub records_applied: AtomicU64,
    /// Records that the slot already held, or something newer.
    pub records_skipped: AtomicU64,
    /// Rewinds begun by a follower that held what its leader never had.
    pub rewinds: AtomicU64,
    /// Writes that rewinds dropped; each is in a report.
    pub writes_dropped: AtomicU64,
    /// Slots that followers gave back to a leader that lost them in a crash.
    pub slots_regained: AtomicU64,
    /// Bytes of what they sent for that.
    pub regain_bytes: AtomicU64,
    /// Heartbeats sent.
    pub heartbeats_sent: AtomicU64,
    /// Heartbeats received.
    pub heartbeats_received: AtomicU64,
    /// Damaged slots that scans have met; a scan ends there.
    pub damaged_slots_met: AtomicU64,
    /// Frames, records or peers refused for what they sent.
    pub protocol_errors: AtomicU64,
    /// Followers that the leader refused, by reason.
    pub refusals: Mutex<std::collections::BTreeMap<&'static str, u64>>,
    /// Times a follower lost or failed to get a link, by reason (`closed`, `timeout`, `refused`,
    /// `protocol`, `connect`, `store`).
    pub reconnects: Mutex<std::collections::BTreeMap<&'static str, u64>>,
}

/// All links of a node, and the totals.
#[derive(Debug, Default)]
pub struct Links {
    /// By follower and shard.
    cells: Mutex<Vec<Arc<LinkCell>>>,
    waiters: waiting::Waiters,
    /// When which shard's head was where.
    pub heads: Heads,
    /// What links tell their node.
    pub notices: Notices,
    superseded_by_epoch: AtomicU64,
    /// Totals since the process started.
    pub totals: Totals,
}

impl Links {
    /// No links.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Shows a link to the outside until [`Links::remove`].
    pub fn add(&self, cell: Arc<LinkCell>) {
        let shard = cell.shard;
        {
            let mut cells = self.cells.lock();
            let key = |cell: &LinkCell| (cell.follower, cell.shard);
            let place = cells.partition_point(|other| key(other) <= key(&cell));
            cells.insert(place, cell);
        }
        // It may be where somebody waits for it already: its follower lost the link before its last Ack.
        self.waiters.began(shard);
    }

    /// Takes a link's series away.
    pub fn remove(&self, cell: &Arc<LinkCell>) {
        self.cells.lock().retain(|other| !Arc::ptr_eq(other, cell));
    }

    /// All links as they are now, by follower and shard.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<LinkCell>> {
        self.cells.lock().clone()
    }

    /// Leader: how many followers have all of these seqs, each in its shard. With none named, the
    /// followers that are connected. A follower counts once, however many links it has to a shard (it may
    /// be back before its old link timed out), and whatever other shards it carries or does not.
    #[must_use]
    pub fn holders(&self, level: Level, needed: &[(ShardIndex, Seq)]) -> usize {
        let cells = self.cells.lock();
        let has = |links: &[Arc<LinkCell>], (shard, seq): (ShardIndex, Seq)| {
            let first = links.partition_point(|cell| cell.shard < shard.0);
            let mut of_shard = links[first..].iter().take_while(|cell| cell.shard == shard.0);
            of_shard.any(|cell| cell.has(level, seq))
        };
        cells
            .chunk_by(|a, b| a.follower == b.follower)
            .filter(|links| links.iter().any(|cell| cell.phase().is_connected()))
            .filter(|links| needed.iter().all(|needed| has(links, *needed)))
            .count()
    }

    /// This node's own shard is durable from one seq to another: for who waits for that.
    pub fn durable_here(&self, shard: ShardIndex, from: Seq, to: Seq) {
        self.waiters.passed(shard.0, from, to);
    }

    /// As [`Links::wait`], for a round of this node's log.
    pub fn wait_for_round<T, F: FnMut(&Self) -> Option<T> + Unpin>(
        self: &Arc<Self>,
        round: u64,
        look: F,
    ) -> Wait<F> {
        self.wait(vec![(ShardIndex(waiting::LOG), Seq(round))], look)
    }

    /// Rounds of this node's log are over, from one to another.
    pub fn rounds_over(&self, from: u64, to: u64) {
        self.waiters.passed(waiting::LOG, Seq(from), Seq(to));
    }

    /// Leader: how many followers have applied everything of the shard up to `seq`.
    #[must_use]
    pub fn acked(&self, shard: ShardIndex, seq: Seq) -> usize {
        self.holders(Level::Applied, &[(shard, seq)])
    }

    /// Leader: how many followers are at most `lag_max` behind in a shard whose head is `head`.
    #[must_use]
    pub fn near(&self, shard: ShardIndex, head: Seq, lag_max: Duration, now: Now) -> usize {
        let cells = self.cells.lock();
        let is_near = |cell: &LinkCell| {
            let applied = cell.applied_seq.load(Ordering::Relaxed);
            cell.shard == shard.0
                && cell.phase().is_connected()
                // One in its first scan has nothing, however young the store is.
                && (applied > 0 || applied == head.0 || cell.phase() == Phase::Stream)
                && u128::from(self.age_ms(cell, head, now)) <= lag_max.as_millis()
        };
        cells
            .chunk_by(|a, b| a.follower == b.follower)
            .filter(|links| links.iter().any(|cell| is_near(cell)))
            .count()
    }

    /// Follower: whether the shard's link streams. Then its state is one that its leader had, also while a
    /// batch of the stream is being applied.
    #[must_use]
    pub fn streams(&self, shard: ShardIndex) -> bool {
        self.cells.lock().iter().any(|cell| cell.shard == shard.0 && cell.phase() == Phase::Stream)
    }

    /// Leader: the newest epoch that a follower has heard of, if it is newer than ours. The leader has
    /// stopped taking writes then; whoever drives the node decides what it does next.
    #[must_use]
    pub fn superseded_by_epoch(&self) -> Option<u64> {
        match self.superseded_by_epoch.load(Ordering::Relaxed) {
            0 => None,
            epoch => Some(epoch),
        }
    }

    /// Forgets that, when the node has another role.
    pub fn forget_superseded(&self) {
        self.superseded_by_epoch.store(0, Ordering::Relaxed);
    }

    /// Leader's links: a follower has heard of a newer epoch; says whether that is news.
    pub(crate) fn supersede(&self, epoch: u64) -> bool {
        let is_news = self.superseded_by_epoch.fetch_max(epoch, Ordering::Relaxed) < epoch;
        if is_news {
            self.notices.tell(Notice::Superseded);
        }
        is_news
    }

    /// A wait until `look` finds what it looks for: it is asked at once, and again whenever a link of one
    /// of these shards passes the seq named with it (with none named: whenever a link begins). The wait is
    /// a future, and [`Wait::block`] waits in a thread.
    pub fn wait<T, F: FnMut(&Self) -> Option<T> + Unpin>(
        self: &Arc<Self>,
        targets: Vec<(ShardIndex, Seq)>,
        look: F,
    ) -> Wait<F> {
        Wait::new(Arc::clone(self), targets, look)
    }

    /// A link went from one seq to another.
    pub(crate) fn passed(&self, cell: &LinkCell, from: Seq, to: Seq) {
        self.waiters.passed(cell.shard, from, to);
    }

    /// Something other than its seq has changed for a link, which may end a wait.
    pub(crate) fn changed(&self, cell: &LinkCell) {
        self.waiters.began(cell.shard);
    }

    /// How far a link is behind. `head` is the shard's head where it is known better than the link knows
    /// it (a leader's); `slots` what a scan has to look at, and `record_bytes_max` the size of a record where
    /// the link has carried none.
    #[must_use]
    pub fn lag(&self, cell: &LinkCell, head: Seq, slots: u64, record_bytes_max: u64, now: Now) -> Lag {
        let records = match cell.is_unrelated.load(Ordering::Relaxed) {
            false => head.0.saturating_sub(cell.applied_seq.load(Ordering::Relaxed)),
            // Nothing that is held counts.
            true => head.0.max(1),
        };
        let (carried, bytes) = (cell.records.load(Ordering::Relaxed), cell.bytes.load(Ordering::Relaxed));
        let record_bytes = bytes.checked_div(carried).unwrap_or(record_bytes_max);
        let ms = self.age_ms(cell, head, now);
        Lag { records, bytes: records.min(slots.max(1)).saturating_mul(record_bytes), ms }
    }

    fn age_ms(&self, cell: &LinkCell, head: Seq, now: Now) -> u64 {
        let applied = Seq(cell.applied_seq.load(Ordering::Relaxed));
        let silence_ms_max = cell.silence_ms_max.load(Ordering::Relaxed);
        if applied >= head && (silence_ms_max == 0 || is_planted(Bug::SilenceForgotten)) {
            return 0;
        }
        let offset = cell.clock_offset_ms.load(Ordering::Relaxed);
        let now_ms = monotonic_ms(now).saturating_add_signed(offset);
        let Some(at_ms) = self.heads.time_at(ShardIndex(cell.shard), applied) else {
            // Nothing known, not even whether there is anything to have: as old as this process at least.
            return monotonic_ms(now).max(1);
        };
        let age_ms = now_ms.saturating_sub(at_ms);
        let is_level = applied >= head && !cell.is_unrelated.load(Ordering::Relaxed);
        match is_level {
            true if age_ms <= silence_ms_max => 0,
            // Who is behind is never said not to be, also where nobody knows since when.
            _ => age_ms.max(1),
        }
    }
}

/// Monotonic time in the unit that figures are in.
#[must_use]
pub fn monotonic_ms(now: Now) -> u64 {
    u64::try_from(now.monotonic.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
