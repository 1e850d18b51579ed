//! Floor 6: builds a role from its configuration, runs it until it is told to stop, and stops it in order.
//!
//! Order of start: log, ports (a port in use is found before any data is touched), signals, HTTP (so that
//! health can be asked while a large store opens), store, replication, Redis clients. Order of stop: Redis
//! clients and links, then the store's clean mark, then HTTP.

mod follow;
mod lead;
mod limits;
mod listen;
mod log;
mod progress;
mod sweep;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::MultiProgress;

use crate::clock::{Clock, SystemClock};
use crate::config::Common;
use crate::links::Links;
use crate::resp;
use crate::status::{Addresses, Role, View};
use crate::stop::Stop;
use crate::store::Store;
use crate::{http, signals};

pub use follow::follow;
pub use lead::lead;

/// A stop that takes longer than this is a bug somewhere; the process must end all the same.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// What both roles have before their store is open.
struct Base {
    stop: Stop,
    clock: Arc<dyn Clock>,
    links: Arc<Links>,
    bars: MultiProgress,
    view: Arc<View>,
    http: http::Server,
    resp_port: listen::Reserved,
    data_dir: PathBuf,
}

/// Logging, ports, signals and HTTP.
fn start_base(
    common: &Common,
    role: Role,
    leader: Option<String>,
    replication: Option<&TcpListener>,
) -> anyhow::Result<Base> {
    let resp_port = listen::reserve("listen", common.listen)?;
    let http_listener = listen::bind("http-listen", common.http_listen)?;
    let addresses = Addresses {
        listen: resp_port.address,
        http_listen: http_listener.local_addr()?,
        replication_listen: replication.map(TcpListener::local_addr).transpose()?,
    };
    if let Some(path) = &common.ports_file {
        listen::remove_ports_file(path)?;
    }
    let bars = MultiProgress::new();
    log::init(&common.log_level, common.log_format, &bars)?;
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
    Ok(Base { stop, clock, links, bars, view, http, resp_port, data_dir })
}

impl Base {
    /// Serves Redis clients on the reserved port.
    fn start_resp(&mut self, common: &Common, store: &Arc<Store>) -> anyhow::Result<resp::Server> {
        let role = match &self.view.leader {
            None => resp::Role::Leader,
            Some(leader) => resp::Role::Follower { leader: leader.clone() },
        };
        let stop = self.stop.clone();
        let context = resp::Context {
            store: Arc::clone(store),
            links: Arc::clone(&self.links),
            stop: self.stop.clone(),
            node: Arc::new(resp::Node::new(role)),
            shutdown: Arc::new(move || {
                tracing::info!("stopping: a client sent SHUTDOWN");
                stop.set();
            }),
        };
        let defaults = resp::Options::default();
        let options = resp::Options {
            workers: common.workers.map_or(defaults.workers, usize::from),
            clients_max: usize::try_from(common.max_clients).unwrap_or(usize::MAX),
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
            role = self.view.role.as_str(),
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
    fn finish(self, store: &Store, parts: impl FnOnce()) {
        let start = Instant::now();
        let guard = end_process_after(STOP_PATIENCE);
        parts();
        drop(guard);
        // What was written goes to the disk before the mark that says so. That takes what the disk takes.
        if let Err(error) = store.close() {
            tracing::error!(%error, "the store was not closed in order: its next start checks everything");
        }
        self.http.stop();
        tracing::info!(took = ?start.elapsed(), "stopped");
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
    let damaged = store.damaged();
    for (shard, slot, error) in damaged.iter().take(10) {
        tracing::error!(%shard, %slot, %error, "damaged slot set aside");
    }
    if damaged.len() > 10 {
        tracing::error!(count = damaged.len(), "damaged slots in all");
    }
}
