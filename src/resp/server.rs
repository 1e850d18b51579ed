//! The server: its listeners, its worker threads, its end.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};

use super::context::Context;
use super::rules::{Demands, Rules};
use super::settings::Keeper;
use super::table;
use super::worker::{self, Shared, Worker};
use crate::counters::Counters;
use crate::slot::Geometry;
use crate::store::Durability;

/// How the server serves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Worker threads; at least 1.
    pub workers: usize,
    /// Connections beyond these are turned away with an error.
    pub clients_max: usize,
    /// Bytes of one argument. What exceeds a slot but not this is answered with an error; what exceeds
    /// this is no longer read.
    pub bulk_size_max: usize,
    /// Arguments of one command.
    pub args_max: usize,
    /// Bytes of one command.
    pub command_size_max: usize,
    /// What reads and writes demand of replication, until CONFIG SET says otherwise.
    pub demands: Demands,
    /// What CONFIG REWRITE does, where there is something that lasts.
    pub keeper: Option<Keeper>,
}

impl Default for Options {
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            // One core is left to replication.
            workers: cores.saturating_sub(1).clamp(1, 8),
            clients_max: 10_000,
            bulk_size_max: 1 << 20,
            args_max: 1 << 20,
            command_size_max: 256 << 20,
            demands: Demands::default(),
            keeper: None,
        }
    }
}

impl Options {
    /// Limits that let everything in which a store of this geometry can hold.
    fn fit(mut self, geometry: &Geometry) -> Self {
        self.workers = self.workers.max(1);
        self.bulk_size_max = self.bulk_size_max.max(usize::from(geometry.value_size_max));
        self
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    counters: Arc<Counters>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Server {
    /// Binds the address and starts to serve. The server ends when `context.stop` is set.
    pub fn start(listener_address: SocketAddr, options: Options, context: Context) -> io::Result<Self> {
        let options = options.fit(&context.store.geometry());
        let listeners = listen(listener_address, options.workers)?;
        let address = listeners[0].local_addr()?;
        let shared = Shared {
            counters: Counters::new(options.workers, table::names()),
            clients: Arc::default(),
            rate: Arc::default(),
            rules: Arc::new(Rules::new(options.demands, context.store.durability() == Durability::Always)),
        };
        let mut threads = Vec::new();
        for (index, listener) in listeners.into_iter().enumerate() {
            let worker = Worker::new(index, address, options.clone(), context.clone(), shared.clone());
            let spawned = thread::Builder::new()
                .name(format!("resp-{index}"))
                .spawn(move || worker::run(worker, listener));
            match spawned {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    // The workers that run already would serve a server that nobody has.
                    context.stop.set();
                    return Err(error);
                }
            }
        }
        tracing::info!(%address, workers = options.workers, "serving Redis clients");
        Ok(Self { address, counters: shared.counters, threads: Mutex::new(threads) })
    }

    /// Where the server listens; with port 0 asked for, the port it got.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// What the workers count.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Waits until every worker has ended, which they do when the stop signal is set.
    pub fn join(&self) {
        for thread in std::mem::take(&mut *self.threads.lock()) {
            if thread.join().is_err() {
                tracing::error!("a RESP worker panicked");
            }
        }
    }
}

/// One listener per worker, all on one port.
fn listen(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    // SO_REUSEPORT would let two processes share a port without a word, so the port is first bound without it.
    let probe = bind(address, false)?;
    if count == 1 {
        return Ok(vec![start_listening(probe)?]);
    }
    let address = probe.local_addr()?.as_socket().unwrap_or(address);
    drop(probe);
    (0..count).map(|_| start_listening(bind(address, true)?)).collect()
}

fn bind(address: SocketAddr, share: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A port whose last connections are still closing may be taken again.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn start_listening(socket: Socket) -> io::Result<TcpListener> {
    const BACKLOG: i32 = 1024;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
