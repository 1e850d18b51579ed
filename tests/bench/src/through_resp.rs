//! Our leader and redis-server side by side, asked in turns by redis-benchmark: SET and GET, 50 clients,
//! several pipeline depths, without and with one follower.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::clocks::process_cpu;
use crate::report::{Report, Side, Target, Unit};
use crate::resp_client::RespClient;
use crate::server::{Launcher, Server, ShardCount};

pub(crate) const REDIS: &str = "redis 7.0";
const CLIENTS: &str = "50";
pub(crate) const KEY_COUNT: u64 = 1_000_000;
pub(crate) const VALUE_SIZE: usize = 64;
pub(crate) const SHARDS: ShardCount = ShardCount(4);

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Times everything is repeated.
    pub rounds: usize,
    /// Requests are divided by this.
    pub divisor: u64,
}

impl Size {
    /// What the published figures are taken with: about three seconds a measurement.
    pub const FULL: Self = Self { rounds: 5, divisor: 1 };
    /// A look.
    pub const QUICK: Self = Self { rounds: 1, divisor: 8 };
}

/// What redis-benchmark is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) command: &'static str,
    pub(crate) pipeline: u64,
    pub(crate) request_count: u64,
}

fn loads() -> impl Iterator<Item = Load> {
    let depths = [(1, 360_000), (16, 1_500_000), (64, 2_400_000)];
    ["set", "get"].into_iter().flat_map(move |command| {
        depths.map(|(pipeline, request_count)| Load { command, pipeline, request_count })
    })
}

/// Runs every measurement of this suite into `report`. `only` leaves the other side's column empty.
pub fn run(report: &mut Report, size: Size, launcher: &Launcher, only: Option<Side>) -> Result<()> {
    for follower_count in [0, 1] {
        loads().for_each(|load| declare(report, load, follower_count));
    }
    report.note(
        "RESP rows: redis-benchmark on the same machine, 50 clients, 16-byte keys of a million, 64-byte values; \
         redis-server with `--save '' --appendonly no`; server CPU from /proc/PID/stat, the follower's not included. \
         \"Until it has all\" ends when WAIT says that the follower has the last write.",
    );
    let sides = [Side::Peer, Side::Ours].into_iter().filter(|side| only.is_none_or(|only| only == *side));
    let mut leaders = Vec::new();
    for side in sides {
        let leader = launcher.leader(side, SHARDS)?;
        RespClient::connect(leader.resp)?.fill(KEY_COUNT, &"x".repeat(VALUE_SIZE))?;
        leaders.push((side, leader));
    }
    for follower_count in [0, 1] {
        let mut followers = Vec::new();
        for (side, leader) in &leaders {
            for _ in 0..follower_count {
                followers.push(launcher.follower(*side, leader)?);
            }
        }
        for round in 0..size.rounds {
            let suite = format!("redis, {follower_count} followers");
            report.begin_round(&suite, round, size.rounds);
            for load in loads() {
                for (side, leader) in &leaders {
                    let start = Instant::now();
                    let figures = measure(leader, load, size.divisor)?;
                    // What the follower still has to do must not fall into the other side's measurement.
                    leader.settle(follower_count)?;
                    let took = start.elapsed().as_secs_f64();
                    report.sample(&row_name(load, follower_count, RATE), *side, figures.rate);
                    report.sample(&row_name(load, follower_count, CPU), *side, figures.cpu);
                    if follower_count > 0 && load.command == "set" {
                        let row = row_name(load, follower_count, SETTLED);
                        report.sample(&row, *side, figures.request_count as f64 / took);
                    }
                }
            }
        }
    }
    Ok(())
}

const RATE: &str = "";
const CPU: &str = ", server CPU";
const SETTLED: &str = ", until it has all";

fn row_name(load: Load, follower_count: i64, figure: &str) -> String {
    let followers = if follower_count == 0 { "" } else { ", one follower" };
    format!("{} pipeline {}{followers}{figure}", load.command.to_uppercase(), load.pipeline)
}

fn declare(report: &mut Report, load: Load, follower_count: i64) {
    let (rate, cpu) = match load.pipeline {
        1 => (0.95, 1.0),
        16 => (1.7, 0.6),
        _ => (2.0, 0.6),
    };
    let (mut rate, mut cpu) = (vec![Target::RatioAtLeast(rate)], vec![Target::RatioAtMost(cpu)]);
    if follower_count > 0 {
        let is_named = load.command == "set" && load.pipeline == 64;
        rate = if is_named { vec![Target::RatioAtLeast(3.0)] } else { Vec::new() };
        cpu = Vec::new();
    }
    report.row(&row_name(load, follower_count, RATE), REDIS, Unit::PerSecond, &rate);
    report.row(&row_name(load, follower_count, CPU), REDIS, Unit::CpuPerMillion, &cpu);
    if follower_count > 0 && load.command == "set" {
        report.row(&row_name(load, follower_count, SETTLED), REDIS, Unit::PerSecond, &[]);
    }
}

pub(crate) struct Figures {
    request_count: u64,
    /// Requests a second.
    pub(crate) rate: f64,
    /// What one request in a hundred takes at least; the pipeline it is in, that is.
    pub(crate) p99_seconds: f64,
    /// CPU seconds of the server per million requests.
    cpu: f64,
}

pub(crate) fn measure(server: &Server, load: Load, divisor: u64) -> Result<Figures> {
    let request_count = load.request_count / divisor;
    let before = process_cpu(server.pid())?;
    let output = Command::new("redis-benchmark")
        .args(["-h", &server.resp.ip().to_string(), "-p", &server.resp.port().to_string(), "-c", CLIENTS])
        .args(["-P", &load.pipeline.to_string(), "-n", &request_count.to_string(), "-t", load.command])
        .args(["-r", &KEY_COUNT.to_string(), "-d", &VALUE_SIZE.to_string(), "--csv"])
        .output()
        .context("cannot run redis-benchmark (package redis-tools)")?;
    let used = process_cpu(server.pid())? - before;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "redis-benchmark failed: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let cpu = used.as_secs_f64() * 1e6 / request_count as f64;
    let p99_seconds = parse_field(&text, P99_MS)? / 1000.0;
    Ok(Figures { request_count, rate: parse_field(&text, RATE_FIELD)?, p99_seconds, cpu })
}

const RATE_FIELD: usize = 1;
const P99_MS: usize = 6;

/// A field of the last line: `"SET","123456.78",...`.
fn parse_field(csv: &str, index: usize) -> Result<f64> {
    let field = csv.lines().next_back().and_then(|line| line.split(',').nth(index));
    let field = field.with_context(|| format!("redis-benchmark printed no field {index}: {csv:?}"))?;
    Ok(field.trim_matches('"').parse()?)
}

#[cfg(test)]
mod tests {
    use super::parse_field;

    #[test]
    fn a_figure_is_a_field_of_the_last_line() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\"\n\"SET\",\"120481.93\",\"0.4\"\n";
        assert_eq!(parse_field(csv, 1).unwrap(), 120_481.93);
        assert!(parse_field(csv, 3).is_err() && parse_field("", 1).is_err());
    }
}
