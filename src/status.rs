//! Floor 4: what a node says of itself, in one place: `/status`, `/readyz` and `/metrics` show it, and
//! `slotstream status` reads it back.
//!
//! Everything here is read from atomics and short locks that no write path waits for.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::{Clock, Now};
use crate::counters::Counters;
use crate::links::{Lag, LinkCell, Links, Phase};
use crate::saves::{SaveStats, Saves};
use crate::slot::{Seq, ShardIndex};
use crate::stop::Stop;
use crate::store::{LogStats, Store};

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Leader or follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Takes writes.
    Leader,
    /// Replicates, read-only.
    Follower,
}

impl Role {
    /// The word for logs and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
        }
    }
}

/// Addresses of a node, bound.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Addresses {
    /// RESP.
    pub listen: SocketAddr,
    /// Metrics, health, status.
    pub http_listen: SocketAddr,
    /// Replication; none before it is bound.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub replication_listen: Option<SocketAddr>,
}

/// A node as seen from outside; complete once its store is open.
pub struct View {
    /// What the node is, and where its leader takes followers, if it follows.
    standing: RwLock<(Role, Option<String>)>,
    /// Where it listens.
    pub addresses: Addresses,
    /// What is counted about changes of role.
    pub changes: Changes,
    /// Backups that clients ask for.
    pub saves: Arc<Saves>,
    /// Its replication links.
    pub links: Arc<Links>,
    /// Set when the node is stopping.
    pub stop: Stop,
    clock: Arc<dyn Clock>,
    started: Instant,
    serving: OnceLock<Serving>,
}

/// What is counted about changes of role since the process started.
#[derive(Debug, Default)]
pub struct Changes {
    /// Times the role changed.
    pub role_changes: AtomicU64,
    /// Hand-overs of the lead that were done.
    pub switchovers_done: AtomicU64,
    /// Hand-overs that were given up, and the leader went on.
    pub switchovers_failed: AtomicU64,
    /// How long the last hand-over, done or not, held writes back, in microseconds.
    pub switchover_pause_us: AtomicU64,
}

/// What a node serves once its store is open.
struct Serving {
    store: Arc<Store>,
    shards: Vec<ShardIndex>,
    clients: Arc<Counters>,
}

impl View {
    /// A node that has no store yet.
    #[must_use]
    pub fn new(
        role: Role,
        addresses: Addresses,
        leader: Option<String>,
        links: Arc<Links>,
        stop: Stop,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            standing: RwLock::new((role, leader)),
            addresses,
            changes: Changes::default(),
            saves: Arc::default(),
            links,
            stop,
            clock,
            started: Instant::now(),
            serving: OnceLock::new(),
        }
    }

    /// What the node is now.
    #[must_use]
    pub fn role(&self) -> Role {
        self.standing.read().0
    }

    /// Where a follower's leader takes followers.
    #[must_use]
    pub fn leader(&self) -> Option<String> {
        self.standing.read().1.clone()
    }

    /// The node is something else from now on; `leader` is whom it follows.
    pub fn set_role(&self, role: Role, leader: Option<String>) {
        let mut standing = self.standing.write();
        if *standing != (role, leader.clone()) {
            *standing = (role, leader);
            self.changes.role_changes.fetch_add(1, Relaxed);
        }
    }

    /// The store is open, `shards` of it are served, to clients counted in `clients`. Called once.
    pub fn serve(&self, store: Arc<Store>, shards: Vec<ShardIndex>, clients: Arc<Counters>) {
        assert!(self.serving.set(Serving { store, shards, clients }).is_ok(), "a node has one store");
    }

    /// What is counted about Redis clients, once they are served.
    #[must_use]
    pub fn clients(&self) -> Option<&Arc<Counters>> {
        self.serving.get().map(|serving| &serving.clients)
    }

    /// The store, once it is open.
    #[must_use]
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.serving.get().map(|serving| &serving.store)
    }

    /// The shards served.
    #[must_use]
    pub fn shards(&self) -> &[ShardIndex] {
        self.serving.get().map_or(&[], |serving| &serving.shards)
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// Everything, as of now.
    #[must_use]
    pub fn status(&self) -> Status {
        let now = self.clock.now();
        let cells = self.links.all();
        let shards: Vec<ShardStatus> = self.serving.get().map_or_else(Vec::new, |serving| {
            serving
                .shards
                .iter()
                .map(|&shard| self.shard_status(&serving.store, shard, &cells, now))
                .collect()
        });
        let (role, leader) = self.standing.read().clone();
        let links = match role {
            Role::Leader => cells.iter().map(|cell| self.link(cell, now)).collect(),
            Role::Follower => Vec::new(),
        };
        let store = self.store();
        Status {
            node: self.addresses.listen.to_string(),
            role,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: self.is_ready(&shards),
            addresses: self.addresses.clone(),
            leader,
            store_id: store.map(|store| store.store_id()),
            sizes: store.map(|store| {
                let geometry = store.geometry();
                Sizes {
                    shard_count: geometry.shard_count,
                    key_size: geometry.key_size_max,
                    value_size: geometry.value_size_max,
                    shard_prefix_bits: geometry.prefix_bits(),
                    hash_tags: geometry.has_hash_tags(),
                }
            }),
            epoch: shards.iter().map(|shard| shard.epoch).max().unwrap_or(0),
            superseded_by_epoch: self.links.superseded_by_epoch(),
            durability: store.map(|store| DurabilityStatus {
                level: store.durability().level().to_owned(),
                interval_seconds: store.durability().interval().map(|interval| interval.as_secs_f64()),
            }),
            log: store.and_then(|store| store.log_stats()),
            backups: self.saves.stats(),
            shards,
            links,
        }
    }

    /// A node is ready when its store is open, it is not stopping, no newer leader has replaced it, and each
    /// shard has been in sync once.
    #[must_use]
    pub fn is_ready(&self, shards: &[ShardStatus]) -> bool {
        let is_replaced = self.links.superseded_by_epoch().is_some();
        self.serving.get().is_some()
            && !self.stop.is_set()
            && !is_replaced
            && shards.iter().all(|shard| shard.ready)
    }

    /// A link, as of now.
    #[must_use]
    pub fn link(&self, cell: &LinkCell, now: Now) -> LinkStatus {
        let phase = cell.phase();
        let store = self.store();
        let stats = store.map(|store| store.stats(ShardIndex(cell.shard))).unwrap_or_default();
        // Nobody knows a leader's head better than its store; a follower knows what it heard.
        let head = Seq(match self.role() {
            Role::Leader => stats.seq,
            Role::Follower => cell.head_seq.load(Relaxed),
        });
        let record_bytes_max = store.map_or(0, |store| store.geometry().image_size_max());
        let lag = self.links.lag(cell, head, stats.slots_formatted, record_bytes_max as u64, now);
        LinkStatus::new(cell, phase, head, lag)
    }

    fn shard_status(
        &self,
        store: &Store,
        shard: ShardIndex,
        cells: &[Arc<LinkCell>],
        now: Now,
    ) -> ShardStatus {
        let stats = store.stats(shard);
        let base = ShardStatus {
            shard: shard.0,
            seq: stats.seq,
            epoch: stats.epoch,
            phase: PHASE_LEADING.to_owned(),
            reason: String::new(),
            applied_seq: stats.seq,
            leader_seq: stats.seq,
            lag_records: 0,
            lag_bytes: 0,
            lag_seconds: 0.0,
            inconsistent: false,
            ready: true,
            slots_used: stats.slots_used,
            slots_deleted: stats.slots_deleted,
            slots_damaged: stats.slots_damaged,
            slots_audited: stats.slots_audited,
            slots_formatted: stats.slots_formatted,
            file_bytes: stats.file_bytes,
            scan: None,
        };
        if self.role() == Role::Leader {
            if store.is_regaining() {
                let reason = "gets back from followers what a crash took".to_owned();
                return ShardStatus { phase: PHASE_REGAINING.to_owned(), reason, ready: false, ..base };
            }
            return base;
        }
        let (watermark, inconsistent) =
            (store.progress(shard).seq, is_inconsistent(store, &self.links, shard));
        // An empty shard has no watermark to tell it by.
        let was_in_sync = watermark > Seq::ZERO || store.was_in_sync(shard);
        let Some(cell) = cells.iter().find(|cell| cell.shard == shard.0) else {
            return ShardStatus {
                phase: Phase::Connecting.as_str().to_owned(),
                applied_seq: watermark.0,
                inconsistent,
                ready: was_in_sync,
                ..base
            };
        };
        let link = self.link(cell, now);
        let trouble = cell.trouble.lock().clone();
        let is_well = trouble.is_empty();
        ShardStatus {
            phase: link.phase,
            reason: if link.reason.is_empty() { trouble } else { link.reason },
            applied_seq: link.applied_seq,
            leader_seq: link.head_seq,
            lag_records: link.lag_records,
            lag_bytes: link.lag_bytes,
            lag_seconds: link.lag_seconds,
            inconsistent,
            // Once in sync it may serve what it holds, leader or no leader; `/follower?max_lag=` asks for
            // more. One that is refused, or whose store takes no more, will not catch up by itself.
            ready: match cell.phase() {
                Phase::Stream => true,
                Phase::Refused => false,
                // Also while it asks a leader again that has refused it.
                _ => was_in_sync && is_well && !cell.is_unrelated.load(Relaxed),
            },
            scan: link.scan,
            ..base
        }
    }
}

const PHASE_LEADING: &str = "leading";
const PHASE_REGAINING: &str = "regaining";

/// A node's status.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The node's name: its RESP address.
    pub node: String,
    /// What it is.
    pub role: Role,
    /// Program version.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// What `/readyz` answers.
    pub ready: bool,
    /// Where it listens.
    pub addresses: Addresses,
    /// A follower's leader.
    pub leader: Option<String>,
    /// The store's identity; none until the store is open.
    pub store_id: Option<Uuid>,
    /// The store's sizes; none until the store is open.
    pub sizes: Option<Sizes>,
    /// Highest epoch among the shards.
    pub epoch: u64,
    /// On a leader that was replaced: the newer epoch that it has heard of; it takes no writes.
    #[serde(default)]
    pub superseded_by_epoch: Option<u64>,
    /// When a write is durable; none until the store is open.
    #[serde(default)]
    pub durability: Option<DurabilityStatus>,
    /// The write-ahead log, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogStats>,
    /// Backups that clients ask for, where the node takes any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backups: Option<SaveStats>,
    /// The shards it serves.
    pub shards: Vec<ShardStatus>,
    /// A leader's links, one per attached follower and shard.
    pub links: Vec<LinkStatus>,
}

/// The geometry of a store, named as the options.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sizes {
    /// Shards.
    pub shard_count: u16,
    /// Key capacity in bytes.
    pub key_size: u16,
    /// Value capacity in bytes.
    pub value_size: u16,
    /// Leading key bits that choose the shard; 0 = all.
    pub shard_prefix_bits: u16,
    /// Whether hash tags decide shards.
    #[serde(default)]
    pub hash_tags: bool,
}

/// When a write is durable.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DurabilityStatus {
    /// `none`, `interval` or `always`.
    pub level: String,
    /// With `interval`: how long after its reply a write may still be lost to a power cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_seconds: Option<f64>,
}

/// One shard of a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Shard index.
    pub shard: u16,
    /// Highest seq among the shard's slots.
    pub seq: u64,
    /// Current epoch.
    pub epoch: u64,
    /// `leading`, or the phase of the follower's link.
    pub phase: String,
    /// Why the link is where it is; empty when all is well.
    pub reason: String,
    /// A follower's watermark; a leader's seq.
    pub applied_seq: u64,
    /// The leader's head as last heard.
    pub leader_seq: u64,
    /// Changes that the follower still lacks.
    pub lag_records: u64,
    /// About what a delta would have to send.
    #[serde(default)]
    pub lag_bytes: u64,
    /// How old the state is, in seconds.
    pub lag_seconds: f64,
    /// A follower's shard that is inside a scan, or never was in sync: its state is none that its leader had.
    #[serde(default)]
    pub inconsistent: bool,
    /// Whether this shard is fit to serve.
    pub ready: bool,
    /// Slots that hold a record.
    pub slots_used: u64,
    /// Tombstones.
    pub slots_deleted: u64,
    /// Slots found damaged, and not healed since.
    #[serde(default)]
    pub slots_damaged: u64,
    /// Slots checked in the background after an opening that read none.
    #[serde(default)]
    pub slots_audited: u64,
    /// Slots there are.
    pub slots_formatted: u64,
    /// Bytes of the shard file.
    pub file_bytes: u64,
    /// The scan under way.
    pub scan: Option<ScanStatus>,
}

/// A scan under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScanStatus {
    /// Only slots above this seq are sent; 0 = all.
    pub since: u64,
    /// Slots sent or received so far.
    pub slots: u64,
    /// Slots to look at.
    pub slots_total: u64,
}

/// One of a leader's links.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The follower's id.
    pub follower: Uuid,
    /// Its end of the connection.
    pub peer: SocketAddr,
    /// Where it serves Redis clients, at the same address; 0 = nowhere.
    #[serde(default)]
    pub resp_port: u16,
    /// The shard carried.
    pub shard: u16,
    /// What the link is doing.
    pub phase: String,
    /// Why; empty when all is well.
    pub reason: String,
    /// The leader's head; on a follower as last heard.
    pub head_seq: u64,
    /// Last seq applied by the follower.
    pub applied_seq: u64,
    /// The difference of the two.
    pub lag_records: u64,
    /// About what a delta would have to send.
    #[serde(default)]
    pub lag_bytes: u64,
    /// How old the follower's state is, in seconds; 0 when it has caught up.
    pub lag_seconds: f64,
    /// Bytes a ring holds.
    pub ring_capacity: u64,
    /// Bytes waiting in it.
    pub ring_used: u64,
    /// Payload bytes carried.
    pub bytes: u64,
    /// The scan under way.
    pub scan: Option<ScanStatus>,
}

impl LinkStatus {
    fn new(cell: &LinkCell, phase: Phase, head: Seq, lag: Lag) -> Self {
        let scan = (phase == Phase::Scan).then(|| ScanStatus {
            since: cell.scan_since.load(Relaxed),
            slots: cell.scan_slots.load(Relaxed),
            slots_total: cell.scan_slots_total.load(Relaxed),
        });
        Self {
            follower: cell.follower,
            peer: cell.peer,
            resp_port: cell.resp_port,
            shard: cell.shard,
            phase: phase.as_str().to_owned(),
            reason: cell.reason.lock().clone(),
            head_seq: head.0,
            applied_seq: cell.applied_seq.load(Relaxed),
            lag_records: lag.records,
            lag_bytes: lag.bytes,
            lag_seconds: crate::units::float(lag.ms) / 1000.0,
            ring_capacity: cell.ring_capacity.load(Relaxed),
            ring_used: cell.ring_used.load(Relaxed),
            bytes: cell.bytes.load(Relaxed),
            scan,
        }
    }
}

/// Whether a follower's shard is inside a scan or never was in sync: its state is none that its leader had.
#[must_use]
pub fn is_inconsistent(store: &Store, links: &Links, shard: ShardIndex) -> bool {
    !store.was_in_sync(shard) && !links.streams(shard)
}
