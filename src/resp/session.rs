//! What a connection remembers between commands, and what others may see of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::task::AbortHandle;

use crate::slot::{Seq, ShardIndex};
use crate::store::Store;

use super::command::transaction::Watched;
use super::kept::KeptFeeds;
use super::parse::Arg;

/// What CLIENT LIST shows of a connection; written by its worker, read by anybody.
#[derive(Debug)]
pub(super) struct ClientInfo {
    pub(super) id: u64,
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
    /// Milliseconds of the node's monotonic time.
    pub(super) connected_ms: u64,
    pub(super) active_ms: AtomicU64,
    /// Index in the command table; `u8::MAX` = none yet.
    pub(super) last_command: AtomicU8,
    pub(super) resp3: AtomicBool,
    /// Name, library name, library version.
    pub(super) names: Mutex<ClientNames>,
    /// The connection's task, so that another connection can end it.
    pub(super) task: OnceLock<AbortHandle>,
}

impl ClientInfo {
    /// Ends the connection, whatever it is doing; its worker closes it.
    pub(super) fn end(&self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// What a client says of itself.
#[derive(Debug, Default, Clone)]
pub(super) struct ClientNames {
    pub(super) name: Vec<u8>,
    pub(super) library: Vec<u8>,
    pub(super) library_version: Vec<u8>,
}

/// All connections of the server.
#[derive(Debug, Default)]
pub(super) struct Clients {
    last_id: AtomicU64,
    connected: Mutex<BTreeMap<u64, Arc<ClientInfo>>>,
}

impl Clients {
    /// Takes a connection in, unless there are `clients_max` already.
    pub(super) fn admit(
        &self,
        peer: SocketAddr,
        local: SocketAddr,
        now_ms: u64,
        clients_max: usize,
    ) -> Option<Arc<ClientInfo>> {
        let mut connected = self.connected.lock();
        if connected.len() >= clients_max {
            return None;
        }
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let info = Arc::new(ClientInfo {
            id,
            peer,
            local,
            connected_ms: now_ms,
            active_ms: AtomicU64::new(now_ms),
            last_command: AtomicU8::new(u8::MAX),
            resp3: AtomicBool::new(false),
            names: Mutex::default(),
            task: OnceLock::new(),
        });
        connected.insert(id, Arc::clone(&info));
        Some(info)
    }

    pub(super) fn remove(&self, id: u64) {
        self.connected.lock().remove(&id);
    }

    /// By id.
    pub(super) fn all(&self) -> Vec<Arc<ClientInfo>> {
        self.connected.lock().values().cloned().collect()
    }

    pub(super) fn count(&self) -> usize {
        self.connected.lock().len()
    }
}

/// Commands between MULTI and EXEC.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// A command was refused: EXEC will refuse them all.
    pub(super) broken: bool,
    bytes: Vec<u8>,
    args: Vec<Arg>,
    /// Index in the command table, and where the command's arguments end in `args`.
    commands: Vec<(u8, usize)>,
}

/// A transaction that needs more memory than this is refused.
const QUEUE_BYTES_MAX: usize = 64 << 20;

impl Queue {
    /// Keeps a copy of a command; false if the queue is full.
    pub(super) fn push<'a>(&mut self, command: u8, args: impl Iterator<Item = &'a [u8]>) -> bool {
        for arg in args {
            if self.bytes.len() + self.args.len() * size_of::<Arg>() + arg.len() > QUEUE_BYTES_MAX {
                return false;
            }
            let start = self.bytes.len();
            self.bytes.extend_from_slice(arg);
            self.args.push(Arg { start, end: self.bytes.len() });
        }
        self.commands.push((command, self.args.len()));
        true
    }

    pub(super) fn len(&self) -> usize {
        self.commands.len()
    }

    /// Command, the buffer its arguments lie in, and where.
    pub(super) fn command(&self, index: usize) -> (u8, &[u8], &[Arg]) {
        let (command, end) = self.commands[index];
        let start = if index == 0 { 0 } else { self.commands[index - 1].1 };
        (command, &self.bytes, &self.args[start..end])
    }
}

/// A connection's own state.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) info: Arc<ClientInfo>,
    pub(super) resp3: bool,
    pub(super) queue: Option<Box<Queue>>,
    /// Keys that EXEC looks at first.
    pub(super) watched: Option<Box<Watched>>,
    /// By shard, where this connection's last write lies; empty until it writes.
    written: Vec<Written>,
    /// [`Store::demotions`] when [`Session::written`] was begun.
    demotions: u32,
    /// While it holds shards: no others are looked at.
    holds: bool,
    /// How many changes it has made.
    pub(super) writes: u64,
    /// Where XREAD is.
    pub(super) feeds: Option<Arc<KeptFeeds>>,
}

/// A connection's last write to a shard.
#[derive(Debug, Clone, Copy)]
struct Written {
    term: u64,
    /// Zero: none.
    seq: Seq,
}

impl Session {
    pub(super) fn new(info: Arc<ClientInfo>) -> Self {
        Self {
            info,
            resp3: false,
            queue: None,
            watched: None,
            written: Vec::new(),
            demotions: 0,
            holds: false,
            writes: 0,
            feeds: None,
        }
    }

    /// Remembers a write whose seq is known, for WAIT.
    #[inline]
    pub(super) fn wrote_at(&mut self, store: &Store, key: &[u8], seq: Seq) {
        self.wrote_in(store, store.shard_of(key), seq);
    }

    /// As [`Session::wrote_at`], of a write to a shard.
    #[inline]
    pub(super) fn wrote_in(&mut self, store: &Store, shard: ShardIndex, seq: Seq) {
        if self.written.len() <= usize::from(shard.0) || self.demotions != store.demotions() {
            self.begin(store);
        }
        self.written[usize::from(shard.0)].seq = seq;
        self.writes += 1;
    }

    /// Remembers a write. Others may have written since: a follower that has theirs has ours.
    pub(super) fn wrote(&mut self, store: &Store, key: &[u8]) {
        let shard = store.shard_of(key);
        self.wrote_in(store, shard, store.made(shard));
    }

    /// Remembers a write to every shard.
    pub(super) fn wrote_everywhere(&mut self, store: &Store) {
        for shard in store.shards() {
            let head = store.made(shard);
            // A shard that had nothing to change may stand where an earlier term left it.
            if store.lineage(shard).last().is_some_and(|term| head.0 >= term.first_seq) {
                self.wrote_in(store, shard, head);
            }
        }
    }

    /// Before this connection holds shards: what is remembered of writes to others is not asked for meanwhile.
    pub(super) fn begin_hold(&mut self, store: &Store) {
        if self.written.is_empty() || self.demotions != store.demotions() {
            self.begin(store);
        }
        self.holds = true;
    }

    pub(super) fn end_hold(&mut self) {
        self.holds = false;
    }

    /// The first write of this connection, or the first since the node has followed another meanwhile: what
    /// it wrote before may not have lived on.
    #[cold]
    fn begin(&mut self, store: &Store) {
        if self.holds {
            return;
        }
        self.demotions = store.demotions();
        self.written =
            store.shards().map(|shard| Written { term: store.term(shard), seq: Seq::ZERO }).collect();
    }

    /// What a follower must have to have this connection's writes; `None` if the node has followed another
    /// since they were made.
    pub(super) fn written(&self, store: &Store) -> Option<Vec<(ShardIndex, Seq)>> {
        let is_current = self.written.is_empty() || self.demotions == store.demotions();
        is_current.then(|| self.positions().map(|(shard, _, seq)| (shard, seq)).collect())
    }

    /// Shard, term and seq of this connection's last write to each shard that it has written to.
    pub(super) fn positions(&self) -> impl Iterator<Item = (ShardIndex, u64, Seq)> {
        let shards = (0..).map(ShardIndex);
        shards
            .zip(&self.written)
            .filter(|(_, written)| written.seq != Seq::ZERO)
            .map(|(shard, written)| (shard, written.term, written.seq))
    }

    pub(super) fn set_resp3(&mut self, resp3: bool) {
        self.resp3 = resp3;
        self.info.resp3.store(resp3, Ordering::Relaxed);
    }
}
