//! Accepts HTTP connections on one thread with a runtime of its own, and bounds what they cost:
//! connections at a time, bytes of a request's head, time to send it, life of a connection.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Notify, Semaphore};

use super::routes::{self, Context};

/// Connections at a time; the next one waits in the kernel's queue.
const CONNECTIONS_MAX: usize = 1024;
/// Bytes of request line and headers; more is answered with 431.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// Time to send a request's head; also the time a kept connection may stay silent.
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection is closed after this time whatever it does, so that one that reads slowly ends too.
const CONNECTION_LIFE_MAX: Duration = Duration::from_mins(5);
/// How often histograms are folded when nobody scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Pause after a failed accept (no descriptors left, say), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The HTTP thread. It has a stop of its own, since a node answers until everything else has ended.
#[derive(Debug)]
pub struct Server {
    thread: JoinHandle<()>,
    stopped: Arc<Notify>,
}

impl Server {
    /// Serves on a bound listener.
    pub fn start(listener: TcpListener, context: Context) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stopped = Arc::new(Notify::new());
        let thread = {
            let stopped = Arc::clone(&stopped);
            std::thread::Builder::new().name("http".to_owned()).spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(listener, Arc::new(context)) => {}
                        () = stopped.notified() => {}
                    }
                });
                // Connections in flight end with the runtime.
            })?
        };
        Ok(Self { thread, stopped })
    }

    /// Ends the thread.
    pub fn stop(self) {
        self.stopped.notify_one();
        if self.thread.join().is_err() {
            tracing::error!("the HTTP thread panicked");
        }
    }
}

async fn accept(listener: TcpListener, context: Arc<Context>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "HTTP listener cannot be polled");
            return;
        }
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut upkeep = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place.expect("the semaphore is never closed"),
            _ = upkeep.tick() => {
                context.upkeep();
                continue;
            }
        };
        let stream = loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => break stream,
                    Err(error) => {
                        tracing::warn!(%error, "HTTP connection not accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                _ = upkeep.tick() => context.upkeep(),
            }
        };
        let context = Arc::clone(&context);
        tokio::spawn(async move {
            serve(stream, context).await;
            drop(place);
        });
    }
}

async fn serve(stream: tokio::net::TcpStream, context: Arc<Context>) {
    let service = service_fn(move |request| {
        let answer = routes::answer(&context, &request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_LIFE_MAX, connection).await {
        Ok(Ok(())) | Err(_) => {}
        // The client sent no HTTP (it was told so with 400), or went away.
        Ok(Err(error)) => tracing::debug!(%error, "HTTP connection ended"),
    }
}
