//! What durability costs: SET through RESP at each level, beside redis-server with the same promise.

use anyhow::Result;

use crate::report::{Report, Side, Target, Unit};
use crate::resp_client::RespClient;
use crate::server::{Launcher, Promise};
use crate::through_resp::{KEY_COUNT, Load, REDIS, SHARDS, Size, VALUE_SIZE, measure};

const PROMISES: [Promise; 3] = [Promise::None, Promise::Interval, Promise::Always];

fn loads(promise: Promise) -> [Load; 2] {
    let counts = if promise == Promise::Always { (60_000, 600_000) } else { (360_000, 1_500_000) };
    [(1, counts.0), (16, counts.1)].map(|(pipeline, request_count)| Load {
        command: "set",
        pipeline,
        request_count,
    })
}

fn row_name(promise: Promise, load: Load, figure: &str) -> String {
    format!("SET pipeline {}, durability {}{figure}", load.pipeline, promise.names()[0])
}

/// Runs every measurement of this suite into `report`. `only` leaves the other side's column empty.
pub fn run(report: &mut Report, size: Size, launcher: &Launcher, only: Option<Side>) -> Result<()> {
    for promise in PROMISES {
        for load in loads(promise) {
            let target = if load.pipeline == 16 { vec![Target::RatioAtLeast(1.3)] } else { Vec::new() };
            report.row(&row_name(promise, load, ""), REDIS, Unit::PerSecond, &target);
            report.row(&row_name(promise, load, ", p99"), REDIS, Unit::Seconds, &[]);
        }
    }
    report.note(
        "Durability rows: none beside `appendonly no`, interval (100 ms) beside `everysec`, always beside `always`, \
         each on new files, and no other server beside them.",
    );
    for round in 0..size.rounds {
        report.begin_round("durability", round, size.rounds);
        for promise in PROMISES {
            // One after another: they share the disk.
            for side in
                [Side::Peer, Side::Ours].into_iter().filter(|side| only.is_none_or(|only| only == *side))
            {
                let leader = launcher.leader_that(side, SHARDS, promise)?;
                RespClient::connect(leader.resp)?.fill(KEY_COUNT, &"x".repeat(VALUE_SIZE))?;
                for load in loads(promise) {
                    let figures = measure(&leader, load, size.divisor)?;
                    report.sample(&row_name(promise, load, ""), side, figures.rate);
                    report.sample(&row_name(promise, load, ", p99"), side, figures.p99_seconds);
                }
            }
        }
    }
    Ok(())
}
