//! A worker: one thread, one runtime, one listener, the connections it accepts.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::bell::Bell;
use super::connection::Connection;
use super::context::Context;
use super::feeds::Lookout;
use super::kept::AllKept;
use super::parse::Limits;
use super::rules::Rules;
use super::server::Options;
use super::session::{Clients, Session};
use super::turn::Scratch;
use crate::counters::{Counters, WorkerCounters};

/// What a worker's connections share.
pub(super) struct Worker {
    index: usize,
    pub(super) address: SocketAddr,
    pub(super) options: Options,
    pub(super) limits: Limits,
    pub(super) context: Context,
    pub(super) counters: Arc<WorkerCounters>,
    pub(super) all_counters: Arc<Counters>,
    pub(super) clients: Arc<Clients>,
    pub(super) rate: Arc<Rate>,
    pub(super) bell: Arc<Bell>,
    pub(super) lookout: Arc<Lookout>,
    pub(super) kept_feeds: AllKept,
    pub(super) rules: Arc<Rules>,
    /// Buffers of the turn under way; only this worker's thread locks them.
    pub(super) scratch: Mutex<Scratch>,
    now_ms: AtomicU64,
}

/// What all workers share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) counters: Arc<Counters>,
    pub(super) clients: Arc<Clients>,
    pub(super) rate: Arc<Rate>,
    pub(super) rules: Arc<Rules>,
}

/// Commands per second, over the last second and a half.
#[derive(Debug, Default)]
pub(super) struct Rate {
    samples: Mutex<Samples>,
}

#[derive(Debug, Default)]
struct Samples {
    /// Milliseconds and commands processed by then; a ring.
    taken: [(u64, u64); Rate::SAMPLE_COUNT],
    next: usize,
}

impl Rate {
    const SAMPLE_COUNT: usize = 16;

    fn sample(&self, now_ms: u64, commands: u64) {
        let mut samples = self.samples.lock();
        let next = samples.next;
        samples.taken[next] = (now_ms, commands);
        samples.next = (next + 1) % Self::SAMPLE_COUNT;
    }

    pub(super) fn per_second(&self) -> u64 {
        let samples = self.samples.lock();
        let (oldest_ms, oldest) = samples.taken[samples.next];
        let newest = (samples.next + Self::SAMPLE_COUNT - 1) % Self::SAMPLE_COUNT;
        let (newest_ms, newest) = samples.taken[newest];
        (newest.saturating_sub(oldest) * 1000).checked_div(newest_ms.saturating_sub(oldest_ms)).unwrap_or(0)
    }
}

/// How often a worker looks at the clock; what CLIENT LIST and the rate are exact to.
const TICK: Duration = Duration::from_millis(100);

impl Worker {
    pub(super) fn new(
        index: usize,
        address: SocketAddr,
        options: Options,
        context: Context,
        shared: Shared,
    ) -> Arc<Self> {
        let Shared { counters, clients, rate, rules } = shared;
        let limits = Limits {
            args_max: options.args_max,
            bulk_size_max: options.bulk_size_max,
            inline_size_max: 64 << 10,
        };
        let now_ms = AtomicU64::new(context.node.uptime_ms());
        Arc::new(Self {
            index,
            address,
            options,
            limits,
            context,
            counters: counters.worker(index),
            all_counters: counters,
            clients,
            rate,
            bell: Arc::default(),
            lookout: Arc::default(),
            kept_feeds: AllKept::default(),
            rules,
            scratch: Mutex::new(Scratch::new()),
            now_ms,
        })
    }

    /// Milliseconds since the node's start, as of the last tick.
    #[inline]
    pub(super) fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    fn tick(&self) {
        let now_ms = self.context.node.uptime_ms();
        self.now_ms.store(now_ms, Ordering::Relaxed);
        self.kept_feeds.forget_idle(now_ms);
        if self.index == 0 {
            self.rate.sample(now_ms, self.all_counters.commands_processed());
        }
    }
}

/// The worker's thread. Returns when the stop signal is set; its connections are closed then.
pub(super) fn run(worker: Arc<Worker>, listener: TcpListener) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start a RESP worker");
            return;
        }
    };
    let stopped = Arc::new(Notify::new());
    let stop = worker.context.stop.clone();
    {
        let stopped = Arc::clone(&stopped);
        // A permit is kept if nobody waits yet.
        stop.on_stop(move || stopped.notify_one());
    }
    runtime.block_on(async {
        tokio::select! {
            () = stopped.notified() => {}
            () = accept(&worker, listener) => {}
            () = tick(&worker) => {}
            () = worker.bell.attend() => {}
            () = worker.lookout.attend(&worker.context.store) => {}
        }
    });
}

async fn tick(worker: &Worker) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        interval.tick().await;
        worker.tick();
    }
}

async fn accept(worker: &Arc<Worker>, listener: TcpListener) {
    /// Out of descriptors or memory: time for some to come back.
    const BACKOFF: Duration = Duration::from_millis(100);
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "cannot listen for Redis clients");
            return;
        }
    };
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => admit(worker, stream, peer),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a Redis client");
                tokio::time::sleep(BACKOFF).await;
            }
        }
    }
}

fn admit(worker: &Arc<Worker>, mut stream: TcpStream, peer: SocketAddr) {
    let local = stream.local_addr().unwrap_or(worker.address);
    let Some(info) = worker.clients.admit(peer, local, worker.now_ms(), worker.options.clients_max) else {
        worker.counters.connections_rejected.add(1);
        tokio::spawn(async move {
            // The client is turned away whether or not it hears why.
            drop(stream.write_all(b"-ERR max number of clients reached\r\n").await);
        });
        return;
    };
    worker.counters.connections_received.add(1);
    if let Err(error) = set_options(&stream) {
        tracing::debug!(%error, %peer, "cannot set a client's socket options");
    }
    let task =
        tokio::spawn(Connection::new(stream, Arc::clone(worker), Session::new(Arc::clone(&info))).run());
    // It runs on this thread, so it has not begun yet.
    drop(info.task.set(task.abort_handle()));
}

fn set_options(stream: &TcpStream) -> std::io::Result<()> {
    // Without it a reply may wait for the client's acknowledgement of the one before.
    stream.set_nodelay(true)?;
    // A client whose machine went away sends no FIN: it is found out in ten minutes, as by Redis.
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3).with_retries(3);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Silence after which a client's machine is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(300);
