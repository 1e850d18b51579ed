//! What an idle leader costs: our binary with eight shards and two followers, nobody writing.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::clocks::process_cpu;
use crate::report::{Report, Side, Target, Unit};
use crate::resp_client::RespClient;
use crate::server::{Launcher, ShardCount};

const LEADER: &str = "idle leader, 8 shards, 2 followers";
const FOLLOWER: &str = "idle follower, 8 shards";
const DURATION: Duration = Duration::from_secs(10);

/// Runs this suite into `report`.
pub fn run(report: &mut Report, rounds: usize, launcher: &Launcher) -> Result<()> {
    report.row(LEADER, "-", Unit::Core, &[Target::AtMost(0.01)]);
    report.row(FOLLOWER, "-", Unit::Core, &[]);
    let leader = launcher.leader(Side::Ours, ShardCount(8))?;
    RespClient::connect(leader.resp)?.fill(1_000, "idle")?;
    let followers = [launcher.follower(Side::Ours, &leader)?, launcher.follower(Side::Ours, &leader)?];
    leader.settle(2)?;
    for round in 0..rounds {
        report.begin_round("idle", round, rounds);
        let servers = [(LEADER, &leader), (FOLLOWER, &followers[0])];
        let mut before = Vec::new();
        for (_, server) in servers {
            before.push(process_cpu(server.pid())?);
        }
        let start = Instant::now();
        thread::sleep(DURATION);
        for ((row, server), before) in servers.into_iter().zip(before) {
            let used = process_cpu(server.pid())? - before;
            report.sample(row, Side::Ours, used.as_secs_f64() / start.elapsed().as_secs_f64());
        }
    }
    Ok(())
}
