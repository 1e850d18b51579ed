//! Shows a follower's scans that take longer than a moment: a bar per shard on a terminal, a log line
//! every few seconds otherwise.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::links::{LinkCell, Links, Phase};
use crate::stop::Stop;
use crate::units;

const POLL_INTERVAL: Duration = Duration::from_millis(200);
const LOG_INTERVAL: Duration = Duration::from_secs(2);

/// Starts the thread that watches `links`; it ends when the stop signal is set.
pub(super) fn start(links: Arc<Links>, bars: MultiProgress, stop: &Stop) -> std::io::Result<JoinHandle<()>> {
    let (wake, stopped) = mpsc::channel::<()>();
    let thread = std::thread::Builder::new().name("progress".to_owned()).spawn(move || {
        let mut watch = Watch { on_terminal: std::io::stderr().is_terminal(), bars, scans: HashMap::new() };
        while stopped.recv_timeout(POLL_INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
            watch.look(&links.all());
        }
    })?;
    stop.on_stop(move || drop(wake));
    Ok(thread)
}

struct Watch {
    on_terminal: bool,
    bars: MultiProgress,
    scans: HashMap<u16, Watched>,
}

/// A scan under way.
struct Watched {
    start: Instant,
    logged: Instant,
    bytes_before: u64,
    bar: Option<ProgressBar>,
}

impl Watch {
    fn look(&mut self, cells: &[Arc<LinkCell>]) {
        let now = Instant::now();
        for cell in cells {
            if cell.phase() == Phase::Scan {
                self.step(cell, now);
            } else if let Some(scan) = self.scans.remove(&cell.shard)
                && let Some(bar) = scan.bar
            {
                bar.finish_and_clear();
            }
        }
    }

    fn step(&mut self, cell: &LinkCell, now: Instant) {
        let bytes = cell.bytes.load(Relaxed);
        let (slots, slots_total) = (cell.scan_slots.load(Relaxed), cell.scan_slots_total.load(Relaxed));
        let (on_terminal, bars) = (self.on_terminal, &self.bars);
        let scan = self.scans.entry(cell.shard).or_insert_with(|| Watched {
            start: now,
            logged: now,
            bytes_before: bytes,
            bar: on_terminal.then(|| bar(bars, cell.shard)),
        });
        if let Some(bar) = &scan.bar {
            bar.set_length(slots_total);
            bar.set_position(slots);
        } else if now.duration_since(scan.logged) >= LOG_INTERVAL {
            scan.logged = now;
            let elapsed = now.duration_since(scan.start).as_secs_f64();
            let rate = units::float(slots) / elapsed;
            let left = units::float(slots_total.saturating_sub(slots)) / rate.max(1.0);
            tracing::info!(
                shard = cell.shard,
                since = cell.scan_since.load(Relaxed),
                slots,
                slots_total,
                bytes = bytes.saturating_sub(scan.bytes_before),
                slots_per_second = format!("{rate:.0}"),
                seconds_left = format!("{left:.0}"),
                "scan under way"
            );
        }
    }
}

fn bar(bars: &MultiProgress, shard: u16) -> ProgressBar {
    let style = "{prefix} [{wide_bar}] {human_pos}/{human_len} slots, {per_sec}, {eta} left";
    let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    bars.add(ProgressBar::new(0).with_style(style).with_prefix(format!("shard {shard}")))
}
