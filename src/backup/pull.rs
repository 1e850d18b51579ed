//! One shard's records from a running leader, over the followers' protocol: the scan, then the stream up to a
//! seq at which the state is exactly the leader's.
//!
//! Nobody is told that a new write has arrived: Acks name the seq where the backup began (zero, or its base's),
//! whatever has come since, so that a client's `WAIT` for such a write does not count a backup as a follower. They
//! count bytes, which opens the scan's window.
//! Blocks the caller; while its file takes no more, the leader's ring overflows, and a scan sends the rest.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::clock::{Clock, SystemClock};
use crate::follower::LeaderInfo;
use crate::slot::{RecordError, Records, Seq, ShardIndex, SlotError, SlotIndex, SlotView, Term};
use crate::wire::frame::{
    FLAG_SCAN, FLAG_STREAM, Frame, FrameDecoder, FrameError, HEADER_SIZE, Kind, PAYLOAD_SIZE_MAX, PREAMBLE,
    Side,
};
use crate::wire::message::{
    Ack, Heartbeat, Hello, MessageError, Refuse, RefuseCode, ScanDone, ScanStart, VERSION, Welcome,
};

use super::FileError;
use super::blocks::BlockWriter;

const RECEIVE_BUFFER_SIZE: usize = HEADER_SIZE + PAYLOAD_SIZE_MAX + 64 * 1024;
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// A leader that was silent for this long is gone; also the longest time for a connection to open.
const DEAD_AFTER: Duration = Duration::from_secs(10);

/// Why a shard could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The connection could not be made, or broke.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    /// The leader closed it.
    #[error("the leader has closed the connection; its log says why")]
    Closed,
    /// Nothing came, not even a heartbeat.
    #[error("the leader was silent for {DEAD_AFTER:?}")]
    Silent,
    /// Bytes that are no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame that is not the message it should be.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A batch that is none.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A record that is damaged.
    #[error("record of slot {slot}: {error}")]
    Slot {
        /// Its slot.
        slot: SlotIndex,
        /// What is wrong with it.
        error: SlotError,
    },
    /// A message that has no place here.
    #[error("{kind:?} is not what a leader sends here")]
    Unexpected {
        /// Which message.
        kind: Kind,
    },
    /// The leader refused.
    #[error("leader refuses: {}", .0.text)]
    Refused(Refuse),
    /// The leader waits for what its followers give back.
    #[error("the leader gets back from its followers what a power cut took; try again once it takes writes")]
    Regaining,
    /// The leader changed while the backup was made.
    #[error("the leader became another one (store {found}, wanted {wanted}), or has other sizes or shards")]
    OtherLeader {
        /// The store that answers.
        found: Uuid,
        /// The store that was asked before.
        wanted: Uuid,
    },
    /// The leader's epoch changed within a link.
    #[error("frame of epoch {found} on a link of epoch {wanted}")]
    Epoch {
        /// What the frame says.
        found: u64,
        /// What Welcome said.
        wanted: u64,
    },
    /// What the base holds is not a part of the leader's history any more.
    #[error(
        "the base was taken at seq {wanted}, and the leader shares its history only up to seq {found}: it was rewound \
         or replaced since; take a full backup"
    )]
    Fork {
        /// The last seq shared.
        found: Seq,
        /// Where the base ends.
        wanted: Seq,
    },
    /// The stream has a hole, or a scan begins or ends where it cannot.
    #[error("the leader goes on with seq {found}, wanted {wanted}")]
    SeqGap {
        /// What came.
        found: Seq,
        /// What is next.
        wanted: Seq,
    },
    /// The file takes no more.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another shard failed, or the process is to end.
    #[error("given up")]
    Stopped,
}

impl PullError {
    /// Whether trying again may help.
    pub(super) fn is_temporary(&self) -> bool {
        match self {
            Self::Io(_) | Self::Closed | Self::Silent => true,
            Self::Refused(refuse) => refuse.code == RefuseCode::TooManyFollowers,
            _ => false,
        }
    }
}

/// Which shard, and what is held of it already.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Names the links in the leader's figures.
    pub(super) backup_id: Uuid,
    pub(super) shard: ShardIndex,
    /// Zero = nothing is.
    pub(super) since: Seq,
    /// The terms of what is held; nobody asks for those of nothing.
    pub(super) lineage: Vec<Term>,
}

/// Where a shard was when all of it had come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pulled {
    pub(super) seq: Seq,
    pub(super) epoch: u64,
    pub(super) lineage: Vec<Term>,
}

/// How far all shards are together; for whoever shows it.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) slots_total: AtomicU64,
    pub(super) slots: AtomicU64,
    pub(super) records: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) is_stopped: AtomicBool,
}

/// Writes the records of one shard to `target`, until they make up the leader's state at a seq.
pub(super) fn pull(
    address: &str,
    leader: &LeaderInfo,
    wanted: &Wanted,
    target: &mut BlockWriter,
    figures: &Figures,
) -> Result<Pulled, PullError> {
    let clock = SystemClock::new();
    let mut stream = connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(DEAD_AFTER))?;
    stream.set_read_timeout(Some(HEARTBEAT_INTERVAL))?;
    let mut out = PREAMBLE.to_vec();
    hello(leader, wanted).push(&mut out);
    let mut decoder = FrameDecoder::new(Side::Follower, RECEIVE_BUFFER_SIZE);
    let mut core = Core::new(leader, wanted);
    let (mut received_at, mut beat_at) = (Instant::now(), Instant::now());
    loop {
        if !out.is_empty() {
            stream.write_all(&out)?;
            out.clear();
        }
        match stream.read(decoder.space()) {
            Ok(0) => return Err(PullError::Closed),
            Ok(received) => {
                decoder.received(received);
                received_at = Instant::now();
            }
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {}
                _ => return Err(error.into()),
            },
        }
        if figures.is_stopped.load(Relaxed) {
            return Err(PullError::Stopped);
        }
        let acked_bytes = core.scan_bytes;
        while let Some(frame) = decoder.next()? {
            core.handle(&frame, target, figures)?;
            if core.is_whole() {
                let Core { watermark: seq, epoch, lineage, .. } = core;
                return Ok(Pulled { seq, epoch, lineage });
            }
        }
        if received_at.elapsed() >= DEAD_AFTER {
            return Err(PullError::Silent);
        }
        let Some(epoch) = core.answers_in() else { continue };
        // Object storage may take long over a part: the leader hears meanwhile that we are here, and sends no more
        // than its window and the socket hold.
        while !target.wait_for_room(HEARTBEAT_INTERVAL)? {
            if figures.is_stopped.load(Relaxed) {
                return Err(PullError::Stopped);
            }
            Heartbeat { seq: wanted.since, unix_ms: clock.unix_ms() }.push(&mut out, epoch);
            stream.write_all(&out)?;
            out.clear();
            (received_at, beat_at) = (Instant::now(), Instant::now());
        }
        if core.scan_bytes != acked_bytes {
            let (seq, received_bytes) = (wanted.since, core.scan_bytes);
            Ack { received: seq, applied: seq, durable: Seq::ZERO, received_bytes }.push(&mut out, epoch);
        }
        if beat_at.elapsed() >= HEARTBEAT_INTERVAL {
            beat_at = Instant::now();
            Heartbeat { seq: wanted.since, unix_ms: clock.unix_ms() }.push(&mut out, epoch);
        }
    }
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for candidate in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&candidate, DEAD_AFTER) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn hello(leader: &LeaderInfo, wanted: &Wanted) -> Hello {
    let of_nothing = || vec![Term { epoch: leader.epoch, id: 0, first_seq: 1 }];
    Hello {
        version_min: VERSION,
        version_max: VERSION,
        shard: wanted.shard.0,
        resp_port: 0,
        geometry: Some(leader.geometry),
        store_id: leader.store_id,
        follower_id: wanted.backup_id,
        epoch: leader.epoch,
        watermark: wanted.since,
        head: wanted.since,
        scan_place: None,
        asks: false,
        lineage: if wanted.since == Seq::ZERO { of_nothing() } else { wanted.lineage.clone() },
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Handshake,
    Scan,
    Stream,
}

/// What has come so far.
#[derive(Debug)]
struct Core<'a> {
    leader: &'a LeaderInfo,
    wanted: &'a Wanted,
    state: State,
    epoch: u64,
    lineage: Vec<Term>,
    /// Everything up to here has come.
    watermark: Seq,
    /// From here on that is the leader's state.
    consistent_at: Seq,
    scan_bytes: u64,
    /// Slots of the scan under way that were counted.
    slots: u64,
}

impl<'a> Core<'a> {
    fn new(leader: &'a LeaderInfo, wanted: &'a Wanted) -> Self {
        Self {
            leader,
            wanted,
            state: State::Handshake,
            epoch: leader.epoch,
            lineage: Vec::new(),
            watermark: wanted.since,
            consistent_at: Seq::MAX,
            scan_bytes: 0,
            slots: 0,
        }
    }

    fn is_whole(&self) -> bool {
        self.state == State::Stream && self.watermark >= self.consistent_at
    }

    /// The epoch of our frames; none as long as nothing but Hello may be said.
    fn answers_in(&self) -> Option<u64> {
        (self.state != State::Handshake).then_some(self.epoch)
    }

    fn handle(
        &mut self,
        frame: &Frame<'_>,
        target: &mut BlockWriter,
        figures: &Figures,
    ) -> Result<(), PullError> {
        match (self.state, frame.kind) {
            (State::Handshake, Kind::Welcome) => self.welcome(Welcome::read(frame)?, figures)?,
            (_, Kind::Refuse) => return Err(PullError::Refused(Refuse::read(frame)?)),
            (State::Handshake, Kind::Regain) => return Err(PullError::Regaining),
            (State::Scan | State::Stream, _) if frame.epoch != self.epoch => {
                return Err(PullError::Epoch { found: frame.epoch, wanted: self.epoch });
            }
            (State::Scan, Kind::SlotBatch) if frame.flags == FLAG_SCAN => {
                self.scan_bytes += frame.payload.len() as u64;
                let last = self.check(frame.payload, |_| Ok(()))?;
                self.slots_seen(last.map_or(0, |slot| u64::from(slot.0) + 1), figures);
                self.keep(frame.payload, target, figures)?;
            }
            (State::Scan, Kind::ScanDone) => {
                let done = ScanDone::read(frame)?;
                let (found, wanted) =
                    (done.through.min(done.consistent_at), self.watermark.max(done.through));
                if found < wanted {
                    return Err(PullError::SeqGap { found, wanted });
                }
                (self.watermark, self.consistent_at) = (done.through, done.consistent_at);
                self.state = State::Stream;
            }
            (State::Stream, Kind::SlotBatch) if frame.flags == FLAG_STREAM => {
                let mut last = self.watermark;
                self.check(frame.payload, |found| {
                    let wanted = last.next();
                    last = found;
                    if found == wanted { Ok(()) } else { Err(PullError::SeqGap { found, wanted }) }
                })?;
                self.watermark = last;
                self.keep(frame.payload, target, figures)?;
            }
            (State::Stream, Kind::ScanStart) => {
                let start = ScanStart::read(frame)?;
                if start.since != self.watermark {
                    return Err(PullError::SeqGap { found: start.since, wanted: self.watermark });
                }
                (self.state, self.consistent_at) = (State::Scan, Seq::MAX);
            }
            (State::Scan | State::Stream, Kind::Heartbeat) => {
                Heartbeat::read(frame)?;
            }
            (_, kind) => return Err(PullError::Unexpected { kind }),
        }
        Ok(())
    }

    fn welcome(&mut self, welcome: Welcome, figures: &Figures) -> Result<(), PullError> {
        let Welcome { store_id, geometry, shard, epoch, fork, since, lineage, .. } = welcome;
        if (store_id, geometry, shard) != (self.leader.store_id, self.leader.geometry, self.wanted.shard.0)
            || epoch < self.leader.epoch
        {
            return Err(PullError::OtherLeader { found: store_id, wanted: self.leader.store_id });
        }
        let found = fork.min(since);
        if found != self.wanted.since {
            return Err(PullError::Fork { found, wanted: self.wanted.since });
        }
        (self.state, self.epoch, self.lineage) = (State::Scan, epoch, lineage);
        figures.slots_total.fetch_add(welcome.slots_formatted, Relaxed);
        Ok(())
    }

    /// Checks every record of a batch, and its seq by `check_seq`; returns the last one's slot.
    fn check(
        &self,
        payload: &[u8],
        mut check_seq: impl FnMut(Seq) -> Result<(), PullError>,
    ) -> Result<Option<SlotIndex>, PullError> {
        let mut last = None;
        for record in Records::new(&self.leader.geometry, payload) {
            let record = record?;
            let slot = record.slot;
            let view = SlotView::check(&self.leader.geometry, self.wanted.shard, slot, record.image)
                .map_err(|error| PullError::Slot { slot, error })?;
            check_seq(view.seq())?;
            last = Some(slot);
        }
        Ok(last)
    }

    fn keep(&self, payload: &[u8], target: &mut BlockWriter, figures: &Figures) -> Result<(), PullError> {
        let records = Records::new(&self.leader.geometry, payload).count();
        figures.records.fetch_add(records as u64, Relaxed);
        figures.bytes.fetch_add(payload.len() as u64, Relaxed);
        target.add(payload, u32::try_from(records).unwrap_or_else(|_| unreachable!("a batch is small")))?;
        Ok(())
    }

    /// A later scan of the same shard counts from where the one before ended.
    fn slots_seen(&mut self, slots: u64, figures: &Figures) {
        figures.slots.fetch_add(slots.saturating_sub(self.slots), Relaxed);
        self.slots = self.slots.max(slots);
    }
}
