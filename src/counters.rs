//! Floor 0: counters of the Redis port: written by one thread each, read by anybody.
//!
//! Every worker thread owns one [`WorkerCounters`]; nobody else writes to it, so counting is a plain
//! load and store and never a locked instruction. INFO and the metrics collector add the workers up.

pub mod feeds;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A figure that one thread writes.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the figure. Only its owner may call this: two writers would lose counts.
    #[inline]
    pub fn add(&self, by: u64) {
        // Relaxed: a reader that sees a slightly older figure reports a slightly older moment.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
    }

    /// The figure now.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the latency buckets, in nanoseconds; the last bucket has none.
pub const LATENCY_BOUNDS_NS: [u64; 15] = [
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    1_000_000,
    5_000_000,
    25_000_000,
    100_000_000,
    1_000_000_000,
    10_000_000_000,
];

/// Time per command; a sample of the batches, each counted with its mean.
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [Counter; LATENCY_BOUNDS_NS.len() + 1],
    sum_ns: Counter,
}

impl Latency {
    /// Counts `commands` commands that took `elapsed` together.
    pub fn record(&self, elapsed: Duration, commands: u64) {
        if commands == 0 {
            return;
        }
        let total_ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let each_ns = total_ns / commands;
        let bucket = LATENCY_BOUNDS_NS.partition_point(|bound| *bound < each_ns);
        self.buckets[bucket].add(commands);
        self.sum_ns.add(total_ns);
    }
}

/// What one worker thread counts.
#[derive(Debug)]
pub struct WorkerCounters {
    /// Calls by command, in the order of [`Counters::command_names`].
    pub commands: Box<[Counter]>,
    /// Commands nobody knows.
    pub commands_unknown: Counter,
    /// Replies that were errors.
    pub errors: Counter,
    /// Reads that found their key.
    pub keyspace_hits: Counter,
    /// Reads that did not.
    pub keyspace_misses: Counter,
    /// Bytes read from clients.
    pub net_input_bytes: Counter,
    /// Bytes written to clients.
    pub net_output_bytes: Counter,
    /// Writes refused because too few followers were near.
    pub writes_refused: Counter,
    /// Writes that too few followers had confirmed in time.
    pub writes_unconfirmed: Counter,
    /// Connections taken.
    pub connections_received: Counter,
    /// Connections turned away because there were too many.
    pub connections_rejected: Counter,
    /// Connections that ended.
    pub connections_closed: Counter,
    /// Connections closed because what they sent was not the protocol.
    pub protocol_errors: Counter,
    /// Time per command.
    pub latency: Latency,
}

/// All workers' counters.
#[derive(Debug)]
pub struct Counters {
    /// Readers of changes.
    pub feeds: feeds::Feeds,
    command_names: Vec<&'static str>,
    workers: Vec<Arc<WorkerCounters>>,
}

/// A moment's sum over all workers.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// Calls by command name; commands never called are left out.
    pub commands: Vec<(&'static str, u64)>,
    /// All calls, known or not.
    pub commands_processed: u64,
    /// Commands nobody knows.
    pub commands_unknown: u64,
    /// Replies that were errors.
    pub errors: u64,
    /// Reads that found their key.
    pub keyspace_hits: u64,
    /// Reads that did not.
    pub keyspace_misses: u64,
    /// Bytes read from clients.
    pub net_input_bytes: u64,
    /// Bytes written to clients.
    pub net_output_bytes: u64,
    /// Writes refused because too few followers were near.
    pub writes_refused: u64,
    /// Writes that too few followers had confirmed in time.
    pub writes_unconfirmed: u64,
    /// Connections taken.
    pub connections_received: u64,
    /// Connections turned away because there were too many.
    pub connections_rejected: u64,
    /// Clients connected now.
    pub connected_clients: u64,
    /// Connections closed because what they sent was not the protocol.
    pub protocol_errors: u64,
    /// Commands timed, by bucket of [`LATENCY_BOUNDS_NS`] (not cumulative) and one more above the last bound.
    pub latency_buckets: Vec<u64>,
    /// Nanoseconds of the commands timed.
    pub latency_sum_ns: u64,
}

impl Counters {
    /// Counters for `worker_count` workers and these commands.
    #[must_use]
    pub fn new(worker_count: usize, command_names: Vec<&'static str>) -> Arc<Self> {
        let worker = || {
            Arc::new(WorkerCounters {
                commands: command_names.iter().map(|_| Counter::default()).collect(),
                commands_unknown: Counter::default(),
                errors: Counter::default(),
                keyspace_hits: Counter::default(),
                keyspace_misses: Counter::default(),
                net_input_bytes: Counter::default(),
                net_output_bytes: Counter::default(),
                writes_refused: Counter::default(),
                writes_unconfirmed: Counter::default(),
                connections_received: Counter::default(),
                connections_rejected: Counter::default(),
                connections_closed: Counter::default(),
                protocol_errors: Counter::default(),
                latency: Latency::default(),
            })
        };
        let workers = (0..worker_count).map(|_| worker()).collect();
        Arc::new(Self { feeds: feeds::Feeds::default(), command_names, workers })
    }

    /// One worker's own counters.
    #[must_use]
    pub fn worker(&self, index: usize) -> Arc<WorkerCounters> {
        Arc::clone(&self.workers[index])
    }

    /// Command names, in the order in which workers count them.
    #[must_use]
    pub fn command_names(&self) -> &[&'static str] {
        &self.command_names
    }

    /// All commands processed so far; cheaper than [`Counters::totals`].
    #[must_use]
    pub fn commands_processed(&self) -> u64 {
        self.workers
            .iter()
            .map(|worker| {
                worker.commands.iter().map(Counter::value).sum::<u64>() + worker.commands_unknown.value()
            })
            .sum()
    }

    /// The sum over all workers.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let sum = |field: fn(&WorkerCounters) -> &Counter| -> u64 {
            self.workers.iter().map(|worker| field(worker).value()).sum()
        };
        let commands = self
            .command_names
            .iter()
            .enumerate()
            .map(|(index, name)| (*name, self.workers.iter().map(|w| w.commands[index].value()).sum()))
            .filter(|(_, calls)| *calls > 0)
            .collect();
        let latency_buckets = (0..=LATENCY_BOUNDS_NS.len())
            .map(|bucket| self.workers.iter().map(|w| w.latency.buckets[bucket].value()).sum())
            .collect();
        let connections_received = sum(|w| &w.connections_received);
        Totals {
            commands,
            commands_processed: self.commands_processed(),
            commands_unknown: sum(|w| &w.commands_unknown),
            errors: sum(|w| &w.errors),
            keyspace_hits: sum(|w| &w.keyspace_hits),
            keyspace_misses: sum(|w| &w.keyspace_misses),
            net_input_bytes: sum(|w| &w.net_input_bytes),
            net_output_bytes: sum(|w| &w.net_output_bytes),
            writes_refused: sum(|w| &w.writes_refused),
            writes_unconfirmed: sum(|w| &w.writes_unconfirmed),
            connections_received,
            connections_rejected: sum(|w| &w.connections_rejected),
            connected_clients: connections_received.saturating_sub(sum(|w| &w.connections_closed)),
            protocol_errors: sum(|w| &w.protocol_errors),
            latency_buckets,
            latency_sum_ns: sum(|w| &w.latency.sum_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_add_up_the_workers() {
        let counters = Counters::new(2, vec!["get", "set"]);
        counters.worker(0).commands[0].add(3);
        counters.worker(1).commands[0].add(4);
        counters.worker(1).connections_received.add(2);
        counters.worker(1).connections_closed.add(1);
        counters.worker(0).latency.record(Duration::from_micros(30), 10);
        let totals = counters.totals();
        assert_eq!(totals.commands, [("get", 7)]);
        assert_eq!(totals.commands_processed, 7);
        assert_eq!(totals.connected_clients, 1);
        // 3 us each: the bucket that ends at 5 us.
        assert_eq!(totals.latency_buckets[3], 10);
        assert_eq!(totals.latency_sum_ns, 30_000);
    }
}
