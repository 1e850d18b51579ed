//! A link in user space: a TCP relay between followers and their leader that delays, stalls, throttles,
//! holds, cuts, resets and half-opens, frame by frame.
//!
//! Each connection has a reader and a writer per direction, with a short queue between, so that a slow
//! link fills its sender's socket as a slow network would. Rules apply to every connection, those under
//! way included. What a connection carried is counted by frame, so that a test can act at a moment of the
//! protocol and not at a moment of the clock.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use slotstream::wire::frame::{FLAG_SCAN, FrameHeader, HEADER_SIZE, Kind, PAYLOAD_SIZE_MAX, PREAMBLE};

/// How soon a pump that has nothing to do sees that its connection was cut.
const TICK: Duration = Duration::from_millis(10);
/// Frames between a reader and its writer.
const QUEUE_FRAMES: usize = 4;

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Leader -> follower.
    Down,
    /// Follower -> leader.
    Up,
}

/// Frames that a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Follower -> leader: Acks. Heartbeats overtake them.
    Acks,
    /// Leader -> follower: scan batches from the one with this number on, and all behind them.
    ScanBatch(u64),
    /// Leader -> follower: ScanDone, and all behind it.
    ScanDone,
    /// Leader -> follower: all that is behind ScanDone.
    BehindScanDone,
    /// Follower -> leader: batches that are given back from the one with this number on, and all behind them.
    LentBatch(u64),
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cut {
    /// Both ends get a reset.
    Reset = 1,
    /// Both ends get an orderly end, in the middle of a frame if need be.
    Fin = 2,
    /// The leader's end is reset; the follower's stays open, and silent.
    LeaderLost = 3,
    /// The follower's end is reset; the leader's stays open, and silent.
    FollowerLost = 4,
}

const OPEN: u8 = 0;

/// What a link does to what it carries.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rules {
    /// Every frame arrives this much later, in either direction.
    pub(crate) delay: Duration,
    /// Bytes a second, for each connection and direction.
    pub(crate) rate: Option<u64>,
    /// A loss as TCP shows it: after so many bytes nothing arrives for so long.
    pub(crate) stall: Option<(u64, Duration)>,
    /// These frames wait until the rule goes.
    pub(crate) hold: Option<Which>,
    /// Connections that carried so many bytes to the follower end, like this.
    pub(crate) cut: Option<(u64, Cut)>,
    /// Every other connection ends at a byte of its own, each further on; those between end soon after
    /// their scan, so that their follower knows them for good ones.
    pub(crate) sweep: bool,
    /// New connections are reset at once.
    pub(crate) refuse: bool,
}

/// What all connections together have carried and met.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) connections: AtomicU64,
    pub(crate) scan_batches: AtomicU64,
    pub(crate) stream_batches: AtomicU64,
    /// Frames that wait for a hold to end.
    pub(crate) held: AtomicU64,
    /// Connections ended by [`Rules::cut`].
    pub(crate) cuts: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    leader: SocketAddr,
    rules: Mutex<Rules>,
    seen: Seen,
    connections: Mutex<Vec<Arc<Connection>>>,
    is_over: AtomicBool,
}

impl Shared {
    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().expect("no pump panics with the rules in hand")
    }
}

/// A relay in front of a leader; it ends when dropped, its connections with it.
#[derive(Debug)]
pub(crate) struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Relay {
    /// A link to the leader at `leader` that does nothing yet but carry.
    pub(crate) fn start(leader: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared {
            leader,
            rules: Mutex::default(),
            seen: Seen::default(),
            connections: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.is_over.load(Relaxed) {
                    break;
                }
                accept(&accepting, stream.expect("a connection"));
            }
        });
        Self { address, shared }
    }

    /// Where followers find their leader.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the rules.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.shared.rules());
    }

    /// What went through so far.
    pub(crate) fn seen(&self) -> &Seen {
        &self.shared.seen
    }

    /// Ends every connection under way.
    pub(crate) fn cut(&self, cut: Cut) {
        let mut connections = self.shared.connections.lock().expect("not poisoned");
        for connection in connections.iter() {
            connection.end(cut);
        }
        // A half-open one stays until its other end gives it up.
        connections.retain(|connection| connection.state.load(Relaxed) == OPEN);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Relaxed);
        self.cut(Cut::Reset);
        // Lets the acceptor see it.
        drop(TcpStream::connect(self.address));
    }
}

fn accept(shared: &Arc<Shared>, follower: TcpStream) {
    let number = shared.seen.connections.fetch_add(1, Relaxed);
    // A leader that is away resets its follower, as its machine would.
    let leader = if shared.rules().refuse { None } else { TcpStream::connect(shared.leader).ok() };
    let Some(leader) = leader else {
        reset_when_dropped(&follower);
        return;
    };
    for stream in [&follower, &leader] {
        stream.set_nodelay(true).expect("socket option");
        stream.set_read_timeout(Some(TICK)).expect("socket option");
        stream.set_write_timeout(Some(TICK)).expect("socket option");
    }
    let connection =
        Arc::new(Connection { number, state: AtomicU8::new(OPEN), down_bytes: AtomicU64::new(0) });
    shared.connections.lock().expect("not poisoned").push(Arc::clone(&connection));
    let (follower, leader) = (Arc::new(follower), Arc::new(leader));
    for (way, from, to) in [(Way::Down, &leader, &follower), (Way::Up, &follower, &leader)] {
        let (sender, receiver) = sync_channel(QUEUE_FRAMES);
        let pump = |stream: &Arc<TcpStream>| Pump {
            way,
            stream: Arc::clone(stream),
            connection: Arc::clone(&connection),
            shared: Arc::clone(shared),
        };
        let (reader, writer) = (pump(from), pump(to));
        thread::spawn(move || reader.read(&sender));
        thread::spawn(move || writer.write(&receiver));
    }
}

fn reset_when_dropped(stream: &TcpStream) {
    // The peer may have gone already; then there is nothing to reset.
    drop(socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}

#[derive(Debug)]
struct Connection {
    /// How many there were before it.
    number: u64,
    /// [`OPEN`], or the [`Cut`] that ended it.
    state: AtomicU8,
    down_bytes: AtomicU64,
}

impl Connection {
    fn end(&self, cut: Cut) {
        // The first cut counts: the other end of a half-open one is not to be told.
        self.state.compare_exchange(OPEN, cut as u8, Relaxed, Relaxed).ok();
    }

    /// After how many bytes to the follower it ends, and how.
    fn cut(&self, rules: &Rules) -> Option<(u64, Cut)> {
        if !rules.sweep || self.number % 2 == 1 {
            return rules.cut;
        }
        // Every byte of Welcome, then wider steps through the batches.
        let step = self.number / 2;
        let after = if step < 200 { step } else { 200 + (step - 200) * 97 };
        Some((after, if step.is_multiple_of(2) { Cut::Fin } else { Cut::Reset }))
    }
}

/// One direction's reader or writer. Sockets close when the last pump that holds them has ended.
struct Pump {
    way: Way,
    stream: Arc<TcpStream>,
    connection: Arc<Connection>,
    shared: Arc<Shared>,
}

/// A frame on its way.
struct Carried {
    due: Instant,
    bytes: Vec<u8>,
    /// None for what stands before the first frame.
    kind: Option<(Kind, u8)>,
}

impl Pump {
    fn state(&self) -> u8 {
        self.connection.state.load(Relaxed)
    }

    /// Whether this pump's own socket is to be reset.
    fn is_lost(&self, is_reader: bool) -> bool {
        let is_leaders = (self.way == Way::Down) == is_reader;
        let state = self.state();
        state == Cut::Reset as u8
            || state == if is_leaders { Cut::LeaderLost as u8 } else { Cut::FollowerLost as u8 }
            || self.shared.is_over.load(Relaxed)
    }

    fn read(self, sender: &SyncSender<Carried>) {
        let mut bytes = Vec::new();
        let mut chunk = vec![0; 64 << 10];
        while !self.is_lost(true) {
            match (&*self.stream).read(&mut chunk) {
                Ok(0) => return,
                Ok(len) => bytes.extend_from_slice(&chunk[..len]),
                Err(error) if is_tick(&error) => continue,
                Err(_) => {
                    self.connection.end(Cut::Reset);
                    break;
                }
            }
            if self.state() != OPEN {
                // Half-open or ending: what comes is taken and goes nowhere.
                bytes.clear();
                continue;
            }
            while let Some(carried) = self.next_frame(&mut bytes) {
                if sender.send(carried).is_err() {
                    bytes.clear();
                    break;
                }
            }
        }
        reset_when_dropped(&self.stream);
    }

    /// Cuts a whole frame off what was read.
    fn next_frame(&self, bytes: &mut Vec<u8>) -> Option<Carried> {
        let due = Instant::now() + self.shared.rules().delay;
        let (len, kind) = if bytes.starts_with(PREAMBLE) {
            (PREAMBLE.len(), None)
        } else {
            let header = bytes.first_chunk::<HEADER_SIZE>()?;
            let header = FrameHeader::decode(header, PAYLOAD_SIZE_MAX).expect("both ends send frames");
            (HEADER_SIZE + header.payload_len as usize, Some((header.kind, header.flags)))
        };
        (bytes.len() >= len).then(|| Carried { due, bytes: bytes.drain(..len).collect(), kind })
    }

    fn write(self, receiver: &Receiver<Carried>) {
        let mut stash = Vec::new();
        let mut gate = Gate::default();
        let mut pace = Pace::default();
        loop {
            if self.is_lost(false) {
                reset_when_dropped(&self.stream);
                return;
            }
            if self.state() == Cut::Fin as u8 {
                // It may be gone already.
                drop(self.stream.shutdown(Shutdown::Write));
                return;
            }
            if self.state() != OPEN {
                // The other end is lost: this one stays open and hears nothing more.
                if matches!(receiver.recv_timeout(TICK), Err(RecvTimeoutError::Disconnected)) {
                    return;
                }
                continue;
            }
            let hold = self.shared.rules().hold;
            if hold != Some(Which::Acks) && !stash.is_empty() {
                for frame in std::mem::take(&mut stash) {
                    self.send(&frame, &mut pace);
                    self.shared.seen.held.fetch_sub(1, Relaxed);
                }
            }
            match receiver.recv_timeout(TICK) {
                Ok(frame) if hold == Some(Which::Acks) && frame.is(Kind::Ack) => {
                    self.shared.seen.held.fetch_add(1, Relaxed);
                    stash.push(frame);
                }
                Ok(frame) => {
                    self.wait_at(&mut gate, &frame);
                    self.send(&frame, &mut pace);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.connection.end(Cut::Fin),
            }
        }
    }

    /// Counts a frame, and keeps it here as long as the rules hold it.
    fn wait_at(&self, gate: &mut Gate, frame: &Carried) {
        let seen = &self.shared.seen;
        let is_behind_done = gate.frames_behind_done.is_some();
        if is_behind_done || frame.is(Kind::ScanDone) {
            gate.frames_behind_done = Some(gate.frames_behind_done.map_or(0, |frames| frames + 1));
        }
        if frame.is(Kind::SlotBatch) {
            let is_scan = frame.kind.is_some_and(|(_, flags)| flags == FLAG_SCAN);
            gate.scan_batches += u64::from(is_scan);
            (if is_scan { &seen.scan_batches } else { &seen.stream_batches }).fetch_add(1, Relaxed);
        }
        if self.way == Way::Down && self.shared.rules().sweep && gate.frames_behind_done > Some(3) {
            // Orderly, so that what was sent arrives.
            self.connection.end(Cut::Fin);
        }
        let mut is_held = false;
        loop {
            let holds = self.state() == OPEN
                && !self.shared.is_over.load(Relaxed)
                && match (self.way, self.shared.rules().hold) {
                    (Way::Down, Some(Which::ScanBatch(number)))
                    | (Way::Up, Some(Which::LentBatch(number))) => gate.scan_batches >= number,
                    (Way::Down, Some(Which::ScanDone)) => frame.is(Kind::ScanDone),
                    (Way::Down, Some(Which::BehindScanDone)) => is_behind_done,
                    _ => false,
                };
            if holds != is_held {
                let change = if holds { 1 } else { u64::MAX };
                seen.held.fetch_add(change, Relaxed);
                is_held = holds;
            }
            if !holds {
                return;
            }
            thread::sleep(TICK / 4);
        }
    }

    fn send(&self, frame: &Carried, pace: &mut Pace) {
        let mut bytes = &frame.bytes[..];
        while !bytes.is_empty() && self.state() == OPEN && !self.shared.is_over.load(Relaxed) {
            let now = Instant::now();
            let wait = frame.due.max(pace.due).saturating_duration_since(now);
            if !wait.is_zero() {
                thread::sleep(wait.min(TICK));
                continue;
            }
            let rules = *self.shared.rules();
            let mut len = bytes.len();
            if rules.rate.is_some() || rules.stall.is_some() {
                len = len.min(4 << 10);
            }
            if let (Way::Down, Some((after, cut))) = (self.way, self.connection.cut(&rules)) {
                let left = after.saturating_sub(self.connection.down_bytes.load(Relaxed));
                if left == 0 {
                    self.shared.seen.cuts.fetch_add(1, Relaxed);
                    self.connection.end(cut);
                    return;
                }
                len = len.min(usize::try_from(left).unwrap_or(len));
            }
            match (&*self.stream).write(&bytes[..len]) {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    pace.sent(now, sent as u64, &rules);
                    if self.way == Way::Down {
                        self.connection.down_bytes.fetch_add(sent as u64, Relaxed);
                    }
                }
                Err(error) if is_tick(&error) => {}
                Err(_) => self.connection.end(Cut::Reset),
            }
        }
    }
}

impl Carried {
    fn is(&self, kind: Kind) -> bool {
        self.kind.is_some_and(|(own, _)| own == kind)
    }
}

/// How far a connection is in the protocol.
#[derive(Default)]
struct Gate {
    scan_batches: u64,
    /// None until ScanDone has come by.
    frames_behind_done: Option<u64>,
}

/// When the next byte may go.
struct Pace {
    due: Instant,
    since_stall: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { due: Instant::now(), since_stall: 0 }
    }
}

impl Pace {
    fn sent(&mut self, now: Instant, bytes: u64, rules: &Rules) {
        if let Some(rate) = rules.rate {
            self.due = self.due.max(now) + Duration::from_micros(bytes * 1_000_000 / rate);
        }
        if let Some((every, pause)) = rules.stall {
            self.since_stall += bytes;
            if self.since_stall >= every {
                self.since_stall = 0;
                self.due = self.due.max(now) + pause;
            }
        }
    }
}

fn is_tick(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
