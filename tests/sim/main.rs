//! The replication protocol under a deterministic simulator, and once over real sockets.
//!
//! Real stores, real links, a simulated network and clock; one seed decides all of a run. A run that
//! fails prints the command that replays it. `SIM_SEEDS` sets how many seeds are run.

#![expect(clippy::unwrap_used, reason = "a test may end this way")]

mod follower_power;
mod headers;
mod history;
mod log;
mod long_rewind;
mod network;
mod nodes;
mod peers;
#[cfg(feature = "planted-bugs")]
mod planted;
mod power;
mod random;
mod scenario;
mod shards;
mod sockets;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use scenario::Tally;
use world::World;

const SEEDS_DEFAULT: u64 = 2_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: not a number")))
}

/// Runs one seed; says how to replay it before it passes a failure on.
fn run(seed: u64) -> Tally {
    try_run(seed).unwrap_or_else(|failure| {
        eprintln!("\nreplay: SIM_SEED={seed} cargo test --test sim -- replay --nocapture\n");
        resume_unwind(failure)
    })
}

fn try_run(seed: u64) -> std::thread::Result<Tally> {
    catch_unwind(AssertUnwindSafe(|| World::new(seed, false).run()))
}

#[test]
fn every_seed_converges_and_keeps_the_invariants() {
    let (first, count) =
        (number("SIM_SEED_FIRST").unwrap_or(0), number("SIM_SEEDS").unwrap_or(SEEDS_DEFAULT));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let next = AtomicU64::new(first);
    let started = std::time::Instant::now();
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let worker = || {
            let mut sum = Tally::default();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + count {
                    return sum;
                }
                sum.add(&run(seed));
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|failure| resume_unwind(failure)))
            .collect()
    });
    let mut sum = Tally::default();
    tallies.iter().for_each(|tally| sum.add(tally));
    let rate = f64::from(u32::try_from(count).unwrap()) / started.elapsed().as_secs_f64();
    println!("{count} seeds, {rate:.0} a second: {sum:?}");
    // Runs in which nothing happens prove nothing.
    assert!(sum.delta_scans_overflow > count && sum.delta_scans_reconnect > count / 2, "{sum:?}");
    assert!(sum.rewinds > count / 10 && sum.promotions > count / 20 && sum.restored > count / 20, "{sum:?}");
    assert!(sum.scans_resumed > count / 10, "{sum:?}");
    assert!(sum.power_cuts > count / 2 && sum.slots_regained > count / 4, "{sum:?}");
    assert!(sum.given_up > count / 50, "{sum:?}");
    assert!(sum.follower_power_cuts > count / 4, "{sum:?}");
    assert!(sum.full_scans >= count && sum.records_sent > count, "{sum:?}");
}

#[test]
fn replay() {
    if let Some(seed) = number("SIM_SEED") {
        println!("{:?}", World::new(seed, true).run());
    }
}
