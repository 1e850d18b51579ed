//! Work on all shards of a store that is being opened, on as many threads as there are processors.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Threads for work on so many shards.
pub(super) fn threads(shard_count: usize) -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(shard_count)
}

/// Calls `work` with every item, and `said` each second with the number of items that are done; results are in the
/// order of the items. With one thread that is the caller's, one after another.
pub(super) fn each<T: Send, R: Send>(
    threads: usize,
    items: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> R + Sync,
    mut said: impl FnMut(usize),
) -> Vec<R> {
    let mut pulse = Pulse::default();
    if threads <= 1 {
        let one = |(done, item)| {
            if pulse.is_due() {
                said(done);
            }
            work(item)
        };
        return items.into_iter().enumerate().map(one).collect();
    }
    let items: Vec<_> = items.into_iter().enumerate().collect();
    let (items, done) = (Mutex::new(items.into_iter()), AtomicUsize::new(0));
    let waiting = thread::current();
    let take = || items.lock().next();
    let run = || {
        let mut results = Vec::new();
        while let Some((place, item)) = take() {
            results.push((place, work(item)));
            done.fetch_add(1, Ordering::Relaxed);
        }
        waiting.unpark();
        results
    };
    let mut results = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            thread::park_timeout(Duration::from_millis(5));
            if pulse.is_due() {
                said(done.load(Ordering::Relaxed));
            }
        }
        let join = |worker: ScopedJoinHandle<'_, _>| match worker.join() {
            Ok(results) => results,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        workers.into_iter().flat_map(join).collect::<Vec<_>>()
    });
    results.sort_by_key(|(place, _)| *place);
    results.into_iter().map(|(_, result)| result).collect()
}

/// A second that comes again and again.
pub(super) struct Pulse(Instant);

impl Default for Pulse {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Pulse {
    /// Whether the last one is a second ago.
    pub(super) fn is_due(&mut self) -> bool {
        let is_due = self.0.elapsed() >= Duration::from_secs(1);
        if is_due {
            self.0 = Instant::now();
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once_and_results_are_in_order() {
        for threads in 1..5 {
            for count in [0_usize, 1, 3, 100] {
                let worked = AtomicUsize::new(0);
                let work = |item: usize| {
                    worked.fetch_add(1, Ordering::Relaxed);
                    item * 2
                };
                let results = each(threads, 0..count, work, |_| {});
                assert_eq!(results, (0..count).map(|item| item * 2).collect::<Vec<_>>());
                assert_eq!(worked.into_inner(), count);
            }
        }
    }
}
