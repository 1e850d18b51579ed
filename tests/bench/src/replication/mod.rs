//! What a follower costs that was away, one that comes anew while everybody writes, and a change of places:
//! both sides as processes, Redis with its own defaults.

mod delta;
mod first_sync;
pub(crate) mod load;
pub(crate) mod process;
mod switchover;

use std::path::Path;

use anyhow::Result;

use crate::report::{Report, Side};
use crate::server::Launcher;
use process::Process;

const REDIS: &str = "redis 7.0";
const VALUE_SIZE: usize = 64;
/// Used bytes of a slot: header, a key of 16 bytes, the value.
const IMAGE_SIZE: u64 = 24 + 16 + 64;

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Times syncs of ours are repeated, on the same leader; one of Redis takes minutes and is done once.
    pub rounds: usize,
    /// Records of the leader.
    pub record_count: u64,
    /// Times that leader and follower change places.
    pub switchovers: usize,
}

impl Size {
    /// What the published figures are taken with.
    pub const FULL: Self = Self { rounds: 3, record_count: 10_000_000, switchovers: 100 };
    /// A look.
    pub const QUICK: Self = Self { rounds: 1, record_count: 1_000_000, switchovers: 20 };
}

/// Runs every measurement of this suite into `report`. `only` leaves the other side's column empty.
pub fn run(report: &mut Report, size: Size, launcher: &Launcher, only: Option<Side>) -> Result<()> {
    delta::declare(report);
    first_sync::declare(report);
    switchover::declare(report);
    report.note(format!(
        "Replication rows: {} records of 16-byte keys and 64-byte values, 4 shards; redis-server with its own defaults \
         (saves, backlog of 1 MB, diskless sync after 5 s). A sync ends when WAIT says that the follower has writes \
         that were made after it began.",
        size.record_count
    ));
    for side in [Side::Peer, Side::Ours].into_iter().filter(|side| only.is_none_or(|only| only == *side)) {
        let size = if side == Side::Peer { Size { rounds: 1, ..size } } else { size };
        let stage = Stage { binary: &launcher.binary, folder: &launcher.folder, side, size };
        let leader = stage.filled_leader()?;
        delta::measure(report, &stage, &leader)?;
        first_sync::measure(report, &stage, &leader)?;
        drop(leader);
        switchover::measure(report, &stage)?;
        // Gigabytes.
        std::fs::remove_dir_all(stage.folder)?;
    }
    Ok(())
}

/// What all measurements of a side share.
struct Stage<'a> {
    binary: &'a Path,
    folder: &'a Path,
    side: Side,
    size: Size,
}

impl Stage<'_> {
    fn filled_leader(&self) -> Result<Process> {
        let leader = Process::leader(self.binary, self.side, &self.folder.join("leader"), &[])?;
        eprintln!("replication: filling a leader with {} records", self.size.record_count);
        let mut client = crate::resp_client::RespClient::connect(leader.resp)?;
        client.fill(self.size.record_count, &"x".repeat(VALUE_SIZE))?;
        Ok(leader)
    }

    fn follower(&self, leader: &Process, name: &str) -> Result<Process> {
        Process::follower(self.binary, &self.folder.join(name), leader)
    }

    fn remove(&self, name: &str) -> Result<()> {
        Ok(std::fs::remove_dir_all(self.folder.join(name))?)
    }
}
