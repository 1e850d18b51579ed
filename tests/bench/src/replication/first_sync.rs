//! A new follower while writers do all they can: it ends, what it costs them, and how much memory it takes.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::load::Load;
use super::process::Process;
use super::{REDIS, Stage};
use crate::report::{Report, Target, Unit};

const BEFORE: &str = "writes, no follower";
const DURING: &str = "writes during a first sync";
const KEPT: &str = "writes kept during a first sync";
const TIME: &str = "first sync under these writes";
const AFTER: &str = "writes, follower in stream";
const GROWTH: &str = "leader's memory, growth during it";
const PEAK: &str = "follower's memory, highest";

const WRITERS: u64 = 2;
const WHILE: Duration = Duration::from_secs(5);
/// How long a first sync may take under writes.
const PATIENCE: Duration = Duration::from_secs(180);
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);

pub(super) fn declare(report: &mut Report) {
    report.row(BEFORE, REDIS, Unit::PerSecond, &[]);
    report.row(DURING, REDIS, Unit::PerSecond, &[]);
    report.row(KEPT, REDIS, Unit::Core, &[Target::AtLeast(0.8)]);
    report.row(TIME, REDIS, Unit::Seconds, &[]);
    report.row(AFTER, REDIS, Unit::PerSecond, &[]);
    report.row(GROWTH, REDIS, Unit::Bytes, &[]);
    report.row(PEAK, REDIS, Unit::Bytes, &[]);
}

pub(super) fn measure(report: &mut Report, stage: &Stage<'_>, leader: &Process) -> Result<()> {
    const NAME: &str = "new";
    report.note(
        "Writes: two connections, pipeline 64, random keys, on the machine's same two cores as leader and follower. \
         Memory is resident memory, our mapped files and a fork's pages included, each page once.",
    );
    for round in 0..stage.size.rounds {
        report.begin_round("first sync", round, stage.size.rounds);
        let load = Load::start(leader.resp, WRITERS, stage.size.record_count)?;
        // Every page that writers touch is there before memory is looked at.
        load.rate_over(WHILE);
        let before = load.rate_over(WHILE);
        let memory = leader.memory()?;
        let (mark, full_syncs) = (load.mark(), leader.full_syncs()?);
        let (synced, peak) = with_peak(leader, || -> Result<(Process, bool)> {
            let follower = stage.follower(leader, NAME)?;
            let ended = leader.gets_a_follower_within(PATIENCE)?;
            Ok((follower, ended))
        })?;
        let during = load.rate_since(mark);
        let (follower, ended) = synced?;
        let took = if ended { mark.1.elapsed().as_secs_f64() } else { f64::INFINITY };
        if !ended {
            report.note(format!(
                "{:?}: the first sync under these writes had not ended after {} s, with {} begun.",
                stage.side,
                PATIENCE.as_secs(),
                leader.full_syncs()? - full_syncs
            ));
        }
        let after = load.rate_over(WHILE);
        load.finish()?;
        for (row, figure) in [
            (BEFORE, before),
            (DURING, during),
            (KEPT, during / before),
            (TIME, took),
            (AFTER, after),
            (GROWTH, peak.saturating_sub(memory) as f64),
            (PEAK, follower.memory_peak()? as f64),
        ] {
            report.sample(row, stage.side, figure);
        }
        drop(follower);
        stage.remove(NAME)?;
    }
    Ok(())
}

/// Does something and says how much memory the leader and its children had at most meanwhile.
fn with_peak<T>(leader: &Process, work: impl FnOnce() -> T) -> Result<(T, u64)> {
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| -> Result<u64> {
            let mut peak = 0;
            while !is_done.load(Relaxed) {
                peak = peak.max(leader.memory()?);
                thread::sleep(SAMPLE_INTERVAL);
            }
            Ok(peak)
        });
        let result = work();
        is_done.store(true, Relaxed);
        let peak = watcher.join().map_err(|_| anyhow!("the watcher panicked"))??;
        Ok((result, peak))
    })
}
