//! What every replication link reports about itself, for whoever asks from outside.
//!
//! A link writes plain atomics as it goes; INFO, ROLE, WAIT, `/status` and `/metrics` read them.
//! Values are pushed here from above and never fetched from above.

mod lag;
mod notice;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering, fence};
use std::task::Waker;

use parking_lot::Mutex;
use serde::Serialize;
use uuid::Uuid;

pub use self::lag::LagSamples;
pub use self::notice::{Notice, Notices};
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
    /// Phase 1: slots are sent under Ack flow control.
    Scan = 2,
    /// The scan is through; the stream has not yet reached the last seq that the scan carried.
    CatchUp = 3,
    /// Phase 2: the ring is streamed; the follower's state is a prefix of the leader's.
    Stream = 4,
    /// The leader refused, or was refused; see the link's reason.
    Refused = 5,
    /// The link has ended.
    Closed = 6,
}

impl Phase {
    /// The word used in logs, status and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Handshake => "handshake",
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
            2 => Self::Scan,
            3 => Self::CatchUp,
            4 => Self::Stream,
            5 => Self::Refused,
            _ => Self::Closed,
        }
    }
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
    /// Leader: last seq sent. Follower: the leader's head as last heard.
    pub head_seq: AtomicU64,
    /// Leader: last seq the follower acknowledged as applied. Follower: its watermark.
    pub applied_seq: AtomicU64,
    /// The scan's `since`; meaningful in phase scan.
    pub scan_since: AtomicU64,
    /// How many slots the scan under way or last ended has looked at.
    pub scan_slots: AtomicU64,
    /// Slots that the scan has to look at.
    pub scan_slots_total: AtomicU64,
    /// Payload bytes sent (leader) or received (follower) on this link.
    pub bytes: AtomicU64,
    /// Ring capacity in bytes; 0 on a follower.
    pub ring_capacity: AtomicU64,
    /// Ring bytes waiting; 0 on a follower.
    pub ring_used: AtomicU64,
    /// How far behind, in milliseconds of the leader's clock.
    pub lag_ms: AtomicU64,
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
            head_seq: AtomicU64::new(0),
            applied_seq: AtomicU64::new(0),
            scan_since: AtomicU64::new(0),
            scan_slots: AtomicU64::new(0),
            scan_slots_total: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            ring_capacity: AtomicU64::new(0),
            ring_used: AtomicU64::new(0),
            lag_ms: AtomicU64::new(0),
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
    /// Heartbeats sent.
    pub heartbeats_sent: AtomicU64,
    /// Heartbeats received.
    pub heartbeats_received: AtomicU64,
    /// Damaged slots that scans have met; a scan ends there.
    pub damaged_slots_met: AtomicU64,
    /// Frames, records or peers refused for what they sent.
    pub protocol_errors: AtomicU64,
    /// Times a follower lost or failed to get a link, by reason (`closed`, `timeout`, `refused`,
    /// `protocol`, `connect`, `store`).
    pub reconnects: Mutex<std::collections::BTreeMap<&'static str, u64>>,
}

/// All links of a node, and the totals.
#[derive(Debug, Default)]
pub struct Links {
    cells: Mutex<Vec<Arc<LinkCell>>>,
    ack_waiters: AckWaiters,
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
        self.cells.lock().push(cell);
    }

    /// Takes a link's series away.
    pub fn remove(&self, cell: &Arc<LinkCell>) {
        self.cells.lock().retain(|other| !Arc::ptr_eq(other, cell));
    }

    /// All links as they are now.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<LinkCell>> {
        self.cells.lock().clone()
    }

    /// Leader: how many followers have applied everything of the shard up to `seq`. A follower that
    /// has two links (it came back before its old one timed out) counts once.
    #[must_use]
    pub fn acked(&self, shard: ShardIndex, seq: Seq) -> usize {
        let cells = self.cells.lock();
        let has_acked = |cell: &LinkCell| {
            cell.shard == shard.0
                && cell.phase() != Phase::Closed
                && cell.applied_seq.load(Ordering::Relaxed) >= seq.0
        };
        let is_repeated = |at: usize| {
            cells[..at].iter().any(|other| other.follower == cells[at].follower && has_acked(other))
        };
        (0..cells.len()).filter(|&at| has_acked(&cells[at]) && !is_repeated(at)).count()
    }

    /// Calls `waker` once, at the next Ack that moves a follower forward (or at once, if one just
    /// did). To wait for a condition: register, then look at [`Links::acked`], then wait; repeat.
    ///
    /// Cost: with nobody waiting, an Ack pays a fence and a load. With waiters, each Ack wakes all of
    /// them, and each looks for itself; an Ack covers a whole round of records, so there are few.
    pub fn on_ack(&self, waker: Waker) {
        self.ack_waiters.add(waker);
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
        self.superseded_by_epoch.fetch_max(epoch, Ordering::Relaxed) < epoch
    }

    /// Leader's links: a follower's `applied_seq` has moved.
    pub(crate) fn notify_ack(&self) {
        self.ack_waiters.wake_all();
    }
}

/// Who waits for Acks.
#[derive(Debug, Default)]
struct AckWaiters {
    is_any: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl AckWaiters {
    fn add(&self, waker: Waker) {
        self.wakers.lock().push(waker);
        self.is_any.store(true, Ordering::Relaxed);
        // Pairs with the fence in `wake_all`: either the link sees the flag, or the caller, who looks
        // at the figures after this, sees what the link stored before it looked at the flag.
        fence(Ordering::SeqCst);
    }

    fn wake_all(&self) {
        fence(Ordering::SeqCst);
        if !self.is_any.load(Ordering::Relaxed) {
            return;
        }
        let wakers = {
            let mut wakers = self.wakers.lock();
            // Under the lock, so that a waker added later sets the flag later.
            self.is_any.store(false, Ordering::Relaxed);
            std::mem::take(&mut *wakers)
        };
        for waker in wakers {
            waker.wake();
        }
    }
}
