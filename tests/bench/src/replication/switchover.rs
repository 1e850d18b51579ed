//! A leader and its follower change places again and again under clients that use `WAIT 1`: how long such a
//! client waits, and whether anything that it was promised is missing afterwards.
//!
//! Both sides are asked with `FAILOVER TO`. A client that is refused, or cut off, turns to the other node.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::process::Process;
use super::{REDIS, Stage};
use crate::report::{Report, Target, Unit, percentile};
use crate::resp_client::RespClient;

const PAUSE_P50: &str = "switchover under WAIT 1 clients, pause p50";
const PAUSE_P99: &str = "the same, pause p99";
const LOST: &str = "the same, acknowledged writes lost";
const RATE: &str = "the same, writes a second between";

const CLIENTS: usize = 4;
const KEYS: usize = 100;
/// Acknowledged writes between two switchovers.
const WRITES_BETWEEN: u64 = 400;
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn declare(report: &mut Report) {
    report.row(PAUSE_P50, REDIS, Unit::Nanoseconds, &[Target::AtMost(200e6)]);
    report.row(PAUSE_P99, REDIS, Unit::Nanoseconds, &[Target::AtMost(1e9)]);
    report.row(LOST, REDIS, Unit::Count, &[Target::AtMost(0.0)]);
    report.row(RATE, REDIS, Unit::PerSecond, &[]);
}

pub(super) fn measure(report: &mut Report, stage: &Stage<'_>) -> Result<()> {
    report.begin_round("switchover", 0, 1);
    let leader = Process::leader(stage.binary, stage.side, &stage.folder.join("one"), &[])?;
    let follower = stage.follower(&leader, "other")?;
    leader.wait_for_follower()?;
    let addresses = [leader.resp, follower.resp];
    let shared = Shared::default();
    let (clients, rate) = thread::scope(|scope| -> Result<_> {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let shared = &shared;
                scope.spawn(move || Client::new(number, addresses).run(shared))
            })
            .collect();
        let result = switch_over(stage.size.switchovers, addresses, &shared);
        // Also after a failure, or the clients would go on for ever.
        shared.stop.store(true, Relaxed);
        let mut ended = Vec::new();
        for client in clients {
            ended.push(client.join().map_err(|_| anyhow!("a client panicked"))?);
        }
        Ok((ended, result?))
    })?;
    let leads = addresses[stage.size.switchovers % 2];
    let mut lost = 0;
    for client in &clients {
        lost += client.lost(leads)?;
    }
    let pauses = shared.pauses.into_inner().map_err(|_| anyhow!("a client panicked"))?;
    report.note(format!(
        "{:?}: {} switchovers, {} clients, {} writes acknowledged by WAIT 1; a pause is the longest time one client \
         was without an acknowledged write during a switchover.",
        stage.side,
        stage.size.switchovers,
        CLIENTS,
        shared.acknowledged.load(Relaxed)
    ));
    report.sample(PAUSE_P50, stage.side, percentile(&pauses, 50).context("no pause")?);
    report.sample(PAUSE_P99, stage.side, percentile(&pauses, 99).context("no pause")?);
    report.sample(LOST, stage.side, lost as f64);
    report.sample(RATE, stage.side, rate);
    Ok(())
}

/// Changes places so many times; returns the rate of acknowledged writes while nobody did.
fn switch_over(count: usize, addresses: [SocketAddr; 2], shared: &Shared) -> Result<f64> {
    let (mut writes, mut time) = (0, Duration::ZERO);
    for round in 0..count {
        let (start, before) = (Instant::now(), shared.acknowledged.load(Relaxed));
        shared.wait_for(before + WRITES_BETWEEN)?;
        writes += shared.acknowledged.load(Relaxed) - before;
        time += start.elapsed();
        let (from, to) = (addresses[round % 2], addresses[(round + 1) % 2]);
        shared.round.fetch_add(1, Relaxed);
        let start = Instant::now();
        let port = to.port().to_string();
        // Refused as long as the follower of a moment ago has not attached yet.
        while RespClient::connect(from)?.text(&["FAILOVER", "TO", "127.0.0.1", &port]).is_err() {
            ensure!(start.elapsed() < PATIENCE, "switchover {round} is refused");
            thread::sleep(Duration::from_millis(5));
        }
        while !RespClient::connect(to)?.text(&["INFO", "replication"])?.contains("role:master") {
            ensure!(start.elapsed() < PATIENCE, "switchover {round} does not end");
            thread::sleep(Duration::from_millis(1));
        }
        // Every client has written to the new leader: their pauses are over.
        shared.wait_for(shared.acknowledged.load(Relaxed) + 10 * CLIENTS as u64)?;
        shared.round.fetch_add(1, Relaxed);
    }
    Ok(writes as f64 / time.as_secs_f64())
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    /// Odd during a switchover.
    round: AtomicU64,
    /// In nanoseconds, one of each client for each switchover.
    pauses: Mutex<Vec<f64>>,
}

impl Shared {
    fn wait_for(&self, acknowledged: u64) -> Result<()> {
        let start = Instant::now();
        while self.acknowledged.load(Relaxed) < acknowledged {
            ensure!(start.elapsed() < PATIENCE, "clients are stuck");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// Writes numbers to keys of its own, each higher than the one before.
struct Client {
    number: usize,
    addresses: [SocketAddr; 2],
    /// The highest number that was acknowledged, by key.
    acknowledged: Vec<u64>,
}

impl Client {
    fn new(number: usize, addresses: [SocketAddr; 2]) -> Self {
        Self { number, addresses, acknowledged: vec![0; KEYS] }
    }

    fn key(&self, key: usize) -> String {
        format!("{}:{key:04}", self.number)
    }

    fn run(mut self, shared: &Shared) -> Self {
        let (mut at, mut connection) = (0, None);
        let (mut longest, mut round, mut good_at) = (Duration::ZERO, 0, Instant::now());
        for value in 1.. {
            if shared.stop.load(Relaxed) {
                break;
            }
            let key = usize::try_from(value).unwrap_or(0) % KEYS;
            if connection.is_none() {
                connection = RespClient::connect(self.addresses[at]).ok();
            }
            let name = self.key(key);
            if !connection.as_mut().is_some_and(|connection| put(connection, &name, value)) {
                connection = None;
                at = 1 - at;
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            self.acknowledged[key] = value;
            shared.acknowledged.fetch_add(1, Relaxed);
            let gap = std::mem::replace(&mut good_at, Instant::now()).elapsed();
            let now = shared.round.load(Relaxed);
            let was_during = round % 2 == 1;
            // The gap that a switchover began in is a part of it, and so is the one it ended in.
            longest = if was_during { longest.max(gap) } else { gap };
            if now != round && (was_during || now.is_multiple_of(2)) {
                let mut pauses = shared.pauses.lock().unwrap_or_else(|poison| poison.into_inner());
                pauses.push(longest.as_secs_f64() * 1e9);
            }
            round = now;
        }
        self
    }

    /// How many of the acknowledged numbers are missing.
    fn lost(&self, leader: SocketAddr) -> Result<u64> {
        let mut connection = RespClient::connect(leader)?;
        let mut lost = 0;
        for (key, value) in self.acknowledged.iter().enumerate().filter(|(_, value)| **value > 0) {
            let found = connection.text(&["GET", &self.key(key)]).ok().and_then(|text| text.parse().ok());
            lost += u64::from(found.unwrap_or(0) < *value);
        }
        Ok(lost)
    }
}

/// Whether the write is on the leader and on a follower.
fn put(connection: &mut RespClient, key: &str, value: u64) -> bool {
    connection.text(&["SET", key, &value.to_string()]).is_ok_and(|reply| reply == "OK")
        && connection.integer(&["WAIT", "1", "1000"]).is_ok_and(|followers| followers >= 1)
}
