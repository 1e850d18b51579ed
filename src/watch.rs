//! Floor 1: shows how far a tool's work is that takes longer than a moment: a bar on a terminal, a line on
//! standard error every few seconds otherwise.

use std::io::{self, IsTerminal, Write};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::units;

/// Work that is done sooner shows nothing.
const MOMENT: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// How far it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Units done, of `total`.
    pub(crate) done: u64,
    /// Zero = nobody knows.
    pub(crate) total: u64,
    /// Records so far.
    pub(crate) records: u64,
    /// Bytes so far.
    pub(crate) bytes: u64,
}

/// Shows the progress of one piece of work.
#[derive(Debug)]
pub(crate) struct Watch {
    what: &'static str,
    unit: &'static str,
    start: Instant,
    said: Instant,
    bar: Option<ProgressBar>,
}

impl Watch {
    /// For work that is called `what` and counts `unit`.
    #[must_use]
    pub(crate) fn new(what: &'static str, unit: &'static str) -> Self {
        let start = Instant::now();
        Self { what, unit, start, said: start, bar: None }
    }

    /// Shows the counts until every one of `workers` has ended.
    pub(crate) fn while_running<T>(
        &mut self,
        workers: &[ScopedJoinHandle<'_, T>],
        counts: impl Fn() -> Counts,
    ) {
        while workers.iter().any(|worker| !worker.is_finished()) {
            thread::sleep(POLL_INTERVAL);
            self.show(&counts);
        }
        self.end();
    }

    /// Shows the counts if it is time to.
    pub(crate) fn show(&mut self, counts: impl FnOnce() -> Counts) {
        let since = self.said.elapsed();
        let interval = if self.bar.is_some() { MOMENT / 10 } else { LINE_INTERVAL };
        if self.start.elapsed() < MOMENT || (since < interval && self.said != self.start) {
            return;
        }
        self.said = Instant::now();
        let counts = counts();
        let figures = self.figures(&counts);
        if io::stderr().is_terminal() {
            let bar = self.bar.get_or_insert_with(|| bar(self.what));
            bar.set_length(counts.total.max(counts.done));
            bar.set_position(counts.done);
            bar.set_message(figures);
        } else {
            let of =
                if counts.total == 0 { String::new() } else { format!(" of {}", units::count(counts.total)) };
            let done = format!("{}{of} {}", units::count(counts.done), self.unit);
            // A line that nobody takes is no reason to stop.
            drop(writeln!(io::stderr(), "{}: {done}, {figures}", self.what));
        }
    }

    /// Takes the bar away.
    pub(crate) fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn figures(&self, counts: &Counts) -> String {
        let seconds = self.start.elapsed().as_secs_f64().max(0.001);
        let rate = units::float(counts.bytes) / seconds / 1e6;
        format!("{} records, {}, {rate:.1} MB/s", units::count(counts.records), units::bytes(counts.bytes))
    }
}

fn bar(what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {bar:30} {percent:>3} % {msg}, {eta} left");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_prefix(what)
}
