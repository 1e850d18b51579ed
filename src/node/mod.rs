//! Floor 6: builds a node from its configuration, runs it until it is told to stop, and stops it in order.
//!
//! A node owns its store, its Redis port and HTTP for its whole life. Its *role* is a value that is started
//! and stopped ([`role`]): one thread owns it and changes it as clients and links ask ([`roles`]), the
//! directory remembers it ([`memory`]).
//!
//! Order of start: log, ports (a port in use is found before any data is touched), signals, HTTP (so that
//! health can be asked while a large store opens), store, role, Redis clients. Order of stop: Redis clients,
//! the role with its links, then the store's clean mark, then HTTP.

mod accept;
mod asking;
mod audit;
mod durability;
mod limits;
mod listen;
mod log;
mod memory;
mod open;
mod owed;
mod progress;
mod role;
mod roles;
mod saves;
mod settings;
mod sweep;
mod switchover;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::MultiProgress;
use uuid::Uuid;

use crate::clock::{Clock, SystemClock};
use crate::config::{self, Common};
use crate::follower::{self, LeaderInfo};
use crate::leader;
use crate::links::Links;
use crate::resp;
use crate::slot::ShardIndex;
use crate::slot::layout::GeometryError;
use crate::status::{Addresses, Role, View};
use crate::stop::Stop;
use crate::store::Store;
use crate::{http, signals};

pub use crate::region::fault::exit_on_bus_error;
use memory::{LeaderAt, Memory, Remembered};
use role::{Parts, Running};
use roles::Director;
use settings::Settings;

/// Where a node takes followers if nobody says.
const REPLICATION: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8379);

/// The arguments fit no store, whatever the directory may be told to hold.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct BadUsage(GeometryError);

/// A stop that takes longer than this is a bug somewhere; the process must end all the same.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Runs a node that is started as a leader until it is told to stop.
pub fn lead(options: &config::Leader) -> anyhow::Result<()> {
    let common = &options.common;
    let base = start_base(common, Role::Leader, None)?;
    // With --promote it is another word than without: it overrides what the directory remembers.
    let started_as = if options.promote { "leader --promote" } else { "leader" };
    let memory = Memory::new(&base.data_dir, started_as.to_owned());
    let start = Instant::now();
    let (store, role) = match memory.recall()? {
        Some(Remembered::Follower(mut leader)) => {
            say_recalled("follower", &base);
            let Some(store) = open::for_follower(&base, &mut leader, None)? else { return base.leave() };
            (store, Remembered::Follower(leader))
        }
        Some(role @ Remembered::Leader { .. }) => {
            (finish_promotion(open::for_leader(options, &base)?)?, role)
        }
        None => {
            let store = open::for_leader(options, &base)?;
            take_the_lead(options, &store).with_context(|| base.data_dir.display().to_string())?;
            (store, Remembered::Leader { superseded_by_epoch: None })
        }
    };
    log_store(&store, &base.data_dir, start.elapsed());
    let shards = store.shards().collect();
    base.run(common, &options.lead, store, shards, role, memory)
}

/// Runs a node that is started as a follower until it is told to stop.
pub fn follow(options: &config::Follower) -> anyhow::Result<()> {
    let common = &options.common;
    let given = options.leader.clone().context("--leader is required")?;
    let mut base = start_base(common, Role::Follower, Some(given.clone()))?;
    base.accept_store = options.accept_store;
    let memory = Memory::new(&base.data_dir, format!("follower of {given}"));
    let start = Instant::now();
    let (store, role) = match memory.recall()? {
        Some(role @ Remembered::Leader { .. }) => {
            say_recalled("leader", &base);
            (finish_promotion(open::promoted(&base)?)?, role)
        }
        remembered => {
            let mut leader = LeaderAt { replication: given.clone(), resp_port: 0 };
            if let Some(Remembered::Follower(moved)) = remembered {
                leader = moved;
            }
            if let Some(id) = options.accept_store {
                accept::store(&base.data_dir, &leader.replication, id)?;
            }
            let shards = options.shards.as_ref();
            let Some(store) = open::for_follower(&base, &mut leader, shards)? else { return base.leave() };
            (store, Remembered::Follower(leader))
        }
    };
    log_store(&store, &base.data_dir, start.elapsed());
    if options.accept_store == Some(store.store_id()) {
        tracing::warn!(
            "--accept-store names the store of this directory: a leader of it that comes back empty empties this \
             follower; take the option away once the leader is what it should be"
        );
    }
    let shards = open::carried(options.shards.as_ref(), &store)?;
    base.run(common, &options.lead, store, shards, role, memory)
}

fn say_recalled(role: &str, base: &Base) {
    tracing::warn!(
        role,
        directory = %base.data_dir.display(),
        "the role that this node was given at run time holds until its arguments are changed"
    );
}

/// A promotion at run time that a kill cut short ends here.
fn finish_promotion(store: Store) -> anyhow::Result<Store> {
    store.promote_rest().context("this store was promoted at run time, and cannot lead any more")?;
    Ok(store)
}

/// A directory that followed another leader leads only if somebody says so.
fn take_the_lead(options: &config::Leader, store: &Store) -> anyhow::Result<()> {
    if !store.is_follower() {
        return Ok(());
    }
    if !options.promote {
        anyhow::bail!("this store follows a leader; give --promote to let it lead from what it holds");
    }
    store.promote().context("this store cannot lead")?;
    let epoch = store.lineage(ShardIndex(0)).last().map(|term| term.epoch);
    tracing::warn!(epoch, "promoted: this store followed a leader until now");
    Ok(())
}

/// A leader of another store must not be followed: our data are not a part of it.
fn check_store(leader: &str, info: &LeaderInfo, store: &Store) -> Result<(), String> {
    if info.store_id == store.store_id() && info.geometry == store.geometry() {
        return Ok(());
    }
    Err(format!(
        "leader {leader} has store {} ({}), this directory holds store {} ({}) and keeps it; to throw it away, \
         start a follower with --accept-store {}",
        info.store_id,
        info.geometry,
        store.store_id(),
        store.geometry(),
        info.store_id
    ))
}

/// A leader that was replaced in its last life takes no writes, unless it has led on past that epoch.
fn still_superseded(by_epoch: Option<u64>, store: &Store) -> Option<u64> {
    let led = store.shards().map(|shard| store.stats(shard).epoch).min().unwrap_or(0);
    let by_epoch = by_epoch.filter(|epoch| *epoch > led);
    if let Some(epoch) = by_epoch {
        tracing::error!(
            epoch,
            "this leader was replaced before it was stopped and takes no writes: let it follow the one that leads \
             in that epoch (REPLICAOF), or lead again (slotstream promote --force)"
        );
    }
    by_epoch
}

/// The newest epoch that the store has lived through.
fn epoch_seen(store: &Store) -> u64 {
    store.shards().map(|shard| store.stats(shard).epoch).max().unwrap_or(0)
}

/// A leader of an older epoch was replaced, and does not know it.
fn check_epoch(leader: &str, info: &LeaderInfo, store: &Store) -> Result<(), String> {
    let seen = epoch_seen(store);
    if info.epoch >= seen {
        return Ok(());
    }
    Err(format!("leader {leader} is in epoch {}, this node has seen epoch {seen}", info.epoch))
}

/// What a node has before its store is open.
struct Base {
    stop: Stop,
    clock: Arc<dyn Clock>,
    links: Arc<Links>,
    bars: MultiProgress,
    view: Arc<View>,
    http: http::Server,
    resp_port: listen::Reserved,
    replication: TcpListener,
    data_dir: PathBuf,
    accept_store: Option<Uuid>,
    /// Whether a leader's store waits for what followers give back after an OS crash.
    regains: bool,
    durability: config::Durability,
}

/// Logging, ports, signals and HTTP.
fn start_base(common: &Common, role: Role, leader: Option<String>) -> anyhow::Result<Base> {
    saves::check(&common.saves)?;
    let resp_port = listen::reserve("listen", common.listen)?;
    let http_listener = listen::bind("http-listen", common.http_listen)?;
    // Last: its default may be what one of the others was told to take.
    let (replication, moved) =
        listen::bind_replication(common.replication_listen, REPLICATION, role == Role::Follower)?;
    let addresses = Addresses {
        listen: resp_port.address,
        http_listen: http_listener.local_addr()?,
        replication_listen: Some(replication.local_addr()?),
    };
    if let Some(path) = &common.ports_file {
        listen::remove_ports_file(path)?;
    }
    let bars = MultiProgress::new();
    log::init(&common.log_level, common.log_format, &bars)?;
    if let Some(moved) = moved {
        moved.say();
    }
    limits::raise_descriptors();
    let stop = Stop::new();
    signals::set_on_signals(&stop).context("signals cannot be handled")?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let links = Links::new();
    let view = View::new(role, addresses, leader, Arc::clone(&links), stop.clone(), Arc::clone(&clock));
    let view = Arc::new(view);
    let recorder = http::install_recorder().context("metrics cannot be recorded")?;
    let context = http::Context::new(Arc::clone(&view), http::Collector::default(), recorder);
    // HTTP answers until the very end, also while the rest is stopping.
    let http = http::Server::start(http_listener, context).context("HTTP cannot be served")?;
    let data_dir = common.data_dir.clone().context("--data-dir is required")?;
    let regains = !common.replication.recover_from_followers.is_zero();
    Ok(Base {
        regains,
        durability: common.durability.clone(),
        stop,
        clock,
        links,
        bars,
        view,
        http,
        resp_port,
        replication,
        data_dir,
        accept_store: None,
    })
}

impl Base {
    /// Serves `store` in its first role, and in others as clients ask, until told to stop. A follower serves
    /// what it holds whoever its leader turns out to be: its links say why they are refused.
    fn run(
        self,
        common: &Common,
        lead: &config::Lead,
        store: Store,
        shards: Vec<ShardIndex>,
        role: Remembered,
        memory: Memory,
    ) -> anyhow::Result<()> {
        let store = Arc::new(store);
        let keepers = durability::start(&store, &self.links, &self.stop)?;
        durability::pace(&store, common.durability.checkpoint_rate as u64, &self.stop);
        let parts = self.parts(common, lead, &store, &shards)?;
        let node = Arc::clone(&parts.node);
        let running = match role {
            Remembered::Leader { superseded_by_epoch } => {
                Running::lead(&parts, still_superseded(superseded_by_epoch, &store))?
            }
            Remembered::Follower(leader) => Running::follow(&parts, leader)?,
        };
        let server = self.start_resp(common, &store, node)?;
        self.view.serve(Arc::clone(&store), shards, server.counters());
        let director = Director::start(parts, running, memory, self.stop.clone())?;
        let audit = audit::start(&store, &self.stop).context("no thread for the audit")?;
        let place = (self.replication.local_addr()?, store.store_id());
        let saver = saves::start(&common.saves, &self.view.saves, place, &self.stop);
        let saver = saver.context("no thread for backups")?;
        self.announce(common)?;
        self.wait_for_stop();
        let mut result = Ok(());
        let finished = self.finish(&store, || {
            server.join();
            result = director.join();
            if audit.is_some_and(|audit| audit.join().is_err()) {
                tracing::error!("the audit has panicked");
            }
            if saver.is_some_and(|saver| saver.join().is_err()) {
                tracing::error!("the thread for backups has panicked");
            }
            keepers.into_iter().for_each(durability::join);
        });
        result.and(finished)
    }

    fn parts(
        &self,
        common: &Common,
        lead: &config::Lead,
        store: &Arc<Store>,
        shards: &[ShardIndex],
    ) -> anyhow::Result<Parts> {
        let mut node = resp::Node::new(resp::Role::Leader);
        node.replication_port = self.replication.local_addr()?.port();
        node.saves = Arc::clone(&self.view.saves);
        let directory = self.data_dir.canonicalize().unwrap_or_else(|_| self.data_dir.clone());
        node.config = vec![("dir".to_owned(), directory.display().to_string())];
        let resp_port = self.resp_port.address.port();
        Ok(Parts {
            store: Arc::clone(store),
            links: Arc::clone(&self.links),
            view: Arc::clone(&self.view),
            replication: self.replication.try_clone().context("the replication port cannot be shared")?,
            bars: self.bars.clone(),
            leader_options: leader::Options {
                heartbeat_interval: common.heartbeat_interval,
                dead_after: common.dead_after,
                ring_bytes: lead.ring_size.unwrap_or_else(|| leader::ring_bytes_for(&store.geometry())),
                ack_window_bytes_max: lead.ack_window as u64,
                scan_bytes_per_second_max: common.replication.scan_rate_max.unwrap_or(0) as u64,
                scan_bytes_per_second_busy: common.replication.scan_rate_busy as u64,
                scans_max: common.replication.scans_max.map_or(0, usize::from),
                regain_wait: common.replication.recover_from_followers,
                resp_port,
                ..leader::Options::default()
            },
            follower_options: follower::Options {
                heartbeat_interval: common.heartbeat_interval,
                dead_after: common.dead_after,
                shards: shards.to_vec(),
                resp_port,
                accept_store: self.accept_store,
                follower_id: node.node_id,
                ..follower::Options::default()
            },
            node: Arc::new(node),
        })
    }

    /// Told to stop before there was a store.
    fn leave(self) -> anyhow::Result<()> {
        self.http.stop();
        Ok(())
    }

    /// Serves Redis clients on the reserved port.
    fn start_resp(
        &self,
        common: &Common,
        store: &Arc<Store>,
        node: Arc<resp::Node>,
    ) -> anyhow::Result<resp::Server> {
        let stop = self.stop.clone();
        let context = resp::Context {
            store: Arc::clone(store),
            links: Arc::clone(&self.links),
            stop: self.stop.clone(),
            node,
            shutdown: Arc::new(move || {
                tracing::info!("stopping: a client sent SHUTDOWN");
                stop.set();
            }),
        };
        let settings = Settings::new(&self.data_dir, common.replication.demands());
        let demands = settings.recall()?;
        let keeper = resp::Keeper::new(move |demands| settings.keep(demands));
        let defaults = resp::Options::default();
        let options = resp::Options {
            workers: common.workers.map_or(defaults.workers, usize::from),
            clients_max: usize::try_from(common.max_clients).unwrap_or(usize::MAX),
            demands,
            keeper: Some(keeper),
            ..defaults
        };
        let address = self.resp_port.address;
        resp::Server::start(address, options, context)
            .with_context(|| format!("cannot listen on {address} (--listen)"))
    }

    /// All is up: says so in the log and, where asked to, in the ports file.
    fn announce(&self, common: &Common) -> anyhow::Result<()> {
        let addresses = &self.view.addresses;
        if let Some(path) = &common.ports_file {
            listen::write_ports_file(path, addresses)?;
        }
        tracing::info!(
            role = self.view.role().as_str(),
            listen = %addresses.listen,
            http_listen = %addresses.http_listen,
            replication_listen = addresses.replication_listen.map(|at| at.to_string()),
            version = env!("CARGO_PKG_VERSION"),
            "serving"
        );
        Ok(())
    }

    /// Blocks until the node is told to stop.
    fn wait_for_stop(&self) {
        let (set, stopped) = mpsc::channel::<()>();
        self.stop.on_stop(move || drop(set));
        // Nothing is ever sent: this ends when the hook drops the sender.
        while stopped.recv().is_ok() {}
    }

    /// Ends what still runs, in order: `parts` (clients, links), the store, HTTP.
    fn finish(self, store: &Store, parts: impl FnOnce()) -> anyhow::Result<()> {
        let start = Instant::now();
        let guard = end_process_after(STOP_PATIENCE);
        parts();
        drop(guard);
        // What was written goes to the disk before the mark that says so. That takes what the disk takes.
        let closed = store.close();
        if let Err(error) = &closed {
            tracing::error!(%error, "the store was not closed in order: its next start checks everything");
        }
        self.http.stop();
        tracing::info!(took = ?start.elapsed(), "stopped");
        closed.context("the store was not closed in order")
    }
}

/// Ends the process, whatever still hangs, when the time is over and the guard is still held.
fn end_process_after(patience: Duration) -> mpsc::Sender<()> {
    let (guard, released) = mpsc::channel::<()>();
    let watch = std::thread::Builder::new().name("stop-guard".to_owned()).spawn(move || {
        if released.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::error!(?patience, "the node did not stop in time, exiting");
            std::process::exit(1);
        }
    });
    if let Err(error) = watch {
        tracing::warn!(%error, "no thread for the stop guard");
    }
    guard
}

/// Says what was opened and how it was left.
fn log_store(store: &Store, directory: &Path, took: Duration) {
    let geometry = store.geometry();
    tracing::info!(
        directory = %directory.display(),
        store_id = %store.store_id(),
        shard_count = geometry.shard_count,
        key_size = geometry.key_size_max,
        value_size = geometry.value_size_max,
        records = store.len(),
        last_ending = %store.ending(),
        took = ?took,
        "store open"
    );
    let mut rebuilt = store.shards().filter_map(|shard| Some((shard, store.doubt(shard)?)));
    if let Some((shard, doubt)) = rebuilt.next().filter(|_| !store.is_empty()) {
        tracing::info!(shards = 1 + rebuilt.count(), "every slot was read, since in shard {shard} {doubt}");
    }
    let damaged = store.damaged();
    for (shard, slot, error) in damaged.iter().take(10) {
        tracing::error!(%shard, %slot, %error, "damaged slot set aside");
    }
    if damaged.len() > 10 {
        tracing::error!(count = damaged.len(), "damaged slots in all");
    }
}
