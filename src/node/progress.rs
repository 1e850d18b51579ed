//! Shows a follower's scans that take longer than a moment, all shards in one figure: a bar on a terminal,
//! a log line every few seconds otherwise, and a line when the last one is done.

use std::collections::BTreeMap;
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
        let mut watch = Watch { on_terminal: std::io::stderr().is_terminal(), bars, round: None };
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
    round: Option<Round>,
}

/// Scans that overlap, from the first one's begin to the last one's end.
struct Round {
    start: Instant,
    logged: Instant,
    bar: Option<ProgressBar>,
    shards: BTreeMap<u16, Scanned>,
}

/// How far one shard's scan was when it was last seen.
#[derive(Default, Clone, Copy)]
struct Scanned {
    slots: u64,
    slots_total: u64,
    bytes_before: u64,
    bytes: u64,
}

impl Watch {
    fn look(&mut self, cells: &[Arc<LinkCell>]) {
        let scanning: Vec<_> = cells.iter().filter(|cell| cell.phase() == Phase::Scan).collect();
        if scanning.is_empty() {
            if let Some(round) = self.round.take() {
                round.end();
            }
            return;
        }
        let (on_terminal, bars) = (self.on_terminal, &self.bars);
        let round = self.round.get_or_insert_with(|| Round::begin(on_terminal.then(|| bar(bars))));
        for cell in scanning {
            let bytes = cell.bytes.load(Relaxed);
            let scanned = round
                .shards
                .entry(cell.shard)
                .or_insert(Scanned { bytes_before: bytes, ..Scanned::default() });
            scanned.slots = cell.scan_slots.load(Relaxed);
            scanned.slots_total = cell.scan_slots_total.load(Relaxed);
            scanned.bytes = bytes.saturating_sub(scanned.bytes_before);
        }
        round.show();
    }
}

impl Round {
    fn begin(bar: Option<ProgressBar>) -> Self {
        let now = Instant::now();
        Self { start: now, logged: now, bar, shards: BTreeMap::new() }
    }

    fn sum(&self, field: fn(&Scanned) -> u64) -> u64 {
        self.shards.values().map(field).sum()
    }

    fn slots_per_second(&self) -> f64 {
        units::float(self.sum(|shard| shard.slots)) / self.start.elapsed().as_secs_f64().max(0.001)
    }

    fn show(&mut self) {
        let (slots, slots_total) = (self.sum(|shard| shard.slots), self.sum(|shard| shard.slots_total));
        let left = units::float(slots_total.saturating_sub(slots)) / self.slots_per_second().max(1.0);
        if let Some(bar) = &self.bar {
            bar.set_length(slots_total);
            bar.set_position(slots);
            bar.set_prefix(format!("scan of {} shards", self.shards.len()));
            let bytes = units::bytes(self.sum(|shard| shard.bytes));
            bar.set_message(format!("{bytes}, {:.0} slots/s, {left:.0} s left", self.slots_per_second()));
        } else if self.logged.elapsed() >= LOG_INTERVAL {
            self.logged = Instant::now();
            self.log("scan under way", slots_total, Some(left));
        }
    }

    fn log(&self, what: &str, slots_total: u64, seconds_left: Option<f64>) {
        tracing::info!(
            shards = self.shards.len(),
            slots = self.sum(|shard| shard.slots),
            slots_total,
            bytes = self.sum(|shard| shard.bytes),
            slots_per_second = format!("{:.0}", self.slots_per_second()),
            seconds_left = seconds_left.map(|left| format!("{left:.0}")),
            "{what}"
        );
    }

    fn end(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.log("scan done", self.sum(|shard| shard.slots_total), None);
    }
}

fn bar(bars: &MultiProgress) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{wide_bar}] {human_pos} of {human_len} slots, {msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bars.add(ProgressBar::new(0).with_style(style))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_sums_its_shards_and_ends_with_the_last_scan() {
        let cell = |shard| {
            let cell = LinkCell::new(uuid::Uuid::nil(), ([127, 0, 0, 1], 1).into(), 0, shard);
            cell.set_phase(Phase::Scan);
            cell.scan_slots_total.store(100, Relaxed);
            cell
        };
        let cells = [cell(0), cell(1)];
        let mut watch = Watch { on_terminal: false, bars: MultiProgress::new(), round: None };
        cells[0].scan_slots.store(40, Relaxed);
        watch.look(&cells);
        cells[0].set_phase(Phase::Stream);
        cells[1].scan_slots.store(70, Relaxed);
        watch.look(&cells);
        let round = watch.round.as_ref().expect("shard 1 is still scanning");
        assert_eq!((round.sum(|shard| shard.slots), round.sum(|shard| shard.slots_total)), (110, 200));
        cells[1].set_phase(Phase::Stream);
        watch.look(&cells);
        assert!(watch.round.is_none());
    }
}
