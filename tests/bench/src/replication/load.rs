//! Writers that keep a leader busy: pipelined SETs of random keys, counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::resp_client::RespClient;
use crate::workload::Indexes;

const PIPELINE: u64 = 64;

/// Writers under way; they end when dropped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// Starts writers on the first `key_count` keys of [`RespClient::fill`].
    pub fn start(address: SocketAddr, writers: u64, key_count: u64) -> Result<Self> {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut threads = Vec::new();
        for writer in 0..writers {
            let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
            let mut client = RespClient::connect(address)?;
            let mut indexes = Indexes::new(writer, key_count);
            threads.push(std::thread::spawn(move || {
                let value = "y".repeat(64);
                while !stop.load(Relaxed) {
                    client.set_all((0..PIPELINE).map(|_| indexes.draw()), &value)?;
                    written.fetch_add(PIPELINE, Relaxed);
                }
                Ok(())
            }));
        }
        Ok(Self { stop, written, threads })
    }

    /// Writes acknowledged so far, and when.
    pub fn mark(&self) -> (u64, Instant) {
        (self.written.load(Relaxed), Instant::now())
    }

    /// Writes a second since a mark.
    pub fn rate_since(&self, (written, at): (u64, Instant)) -> f64 {
        (self.written.load(Relaxed) - written) as f64 / at.elapsed().as_secs_f64()
    }

    /// Writes a second over the next while.
    pub fn rate_over(&self, duration: Duration) -> f64 {
        let mark = self.mark();
        std::thread::sleep(duration);
        self.rate_since(mark)
    }

    /// Ends the writers; an error of any of them is the result.
    pub fn finish(mut self) -> Result<()> {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a writer panicked"))??;
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}
