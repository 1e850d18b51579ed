//! Floor 1: SIGTERM and SIGINT set the stop signal; a second one, a second later or more, ends the process at once.
//!
//! One that comes sooner is the first one again: supervisors send it to a group and to the process, and shells to all
//! that a terminal runs.

use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use crate::stop::Stop;

/// Exit code of a process that was told twice.
const EXIT_FORCED: i32 = 130;

/// Signals that come within this belong to the first one.
const FIRST_LASTS: Duration = Duration::from_secs(1);

/// Starts the thread that waits for signals. It lives as long as the process.
pub fn set_on_signals(stop: &Stop) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let entered = runtime.enter();
    // Installed here and not in the thread, so that from now on no signal is missed.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    drop(entered);
    let stop = stop.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            let mut told: Option<Instant> = None;
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                match told {
                    Some(first) if first.elapsed() >= FIRST_LASTS => {
                        tracing::warn!(signal = name, "told to stop a second time, exiting at once");
                        std::process::exit(EXIT_FORCED);
                    }
                    Some(_) => tracing::info!(signal = name, "stopping already"),
                    None => {
                        told = Some(Instant::now());
                        tracing::info!(signal = name, "stopping");
                        stop.set();
                    }
                }
            }
        });
    })?;
    Ok(())
}
