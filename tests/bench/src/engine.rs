//! What a store must be able to do to be measured in process, and which stores there are.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};

use crate::workload::{Key, Value};

/// Shards of every store under test.
pub const SHARD_COUNT: u16 = 4;

/// A store that leads. One writer at a time in all of the measurements.
pub trait Engine: Send + Sync + Sized + 'static {
    /// The running leader's side; ends when dropped.
    type Leader;
    /// A follower's open store before it follows.
    type EmptyFollower;
    /// A follower with its own store; ends when dropped.
    type Follower: Follower;
    /// Updates a writer may be ahead of the follower without overflowing what the leader keeps for it.
    const STREAM_WINDOW: u64;

    /// Opens an empty store in an empty directory.
    fn open(directory: &Path) -> Result<Self>;
    /// Inserts or updates.
    fn put(&self, key: &Key, value: &Value) -> Result<()>;
    /// Reads a copy.
    fn get(&self, key: &Key) -> Option<Value>;
    /// Which shard holds the key.
    fn shard_of(&self, key: &Key) -> usize;
    /// Starts to listen for followers.
    fn lead(engine: &Arc<Self>) -> Result<(Self::Leader, SocketAddr)>;
    /// Times the leader had to give up streaming, if it says so.
    fn overflows(leader: &Self::Leader) -> Option<u64>;
    /// Opens a follower's store in an empty directory; asks the leader for sizes, if it has to.
    fn prepare_follower(directory: &Path, leader: SocketAddr) -> Result<Self::EmptyFollower>;
    /// Starts to follow.
    fn follow(follower: Self::EmptyFollower, leader: SocketAddr) -> Result<Self::Follower>;
}

/// A store that follows.
pub trait Follower: Send + Sync + 'static {
    /// Records held.
    fn record_count(&self) -> u64;
    /// Reads a copy.
    fn get(&self, key: &Key) -> Option<Value>;
    /// Changes applied since the start, if the engine counts them.
    fn applied(&self) -> Option<u64>;
}

/// The stores that are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineName {
    /// This project.
    Slotstream,
    /// armdb's fixed map as it comes: an fdatasync every 1,024 writes of a shard or 50 ms.
    Armdb,
    /// The same with those thresholds out of reach: like slotstream it leaves write-back to the kernel.
    ArmdbUnsynced,
}

impl EngineName {
    /// The word on a command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Slotstream => "slotstream",
            Self::Armdb => "armdb",
            Self::ArmdbUnsynced => "armdb-unsynced",
        }
    }

    /// The engine with that word.
    pub fn parse(word: &str) -> Result<Self> {
        let all = [Self::Slotstream, Self::Armdb, Self::ArmdbUnsynced];
        match all.into_iter().find(|name| name.as_str() == word) {
            Some(name) => Ok(name),
            None => bail!("engine is {word}, wanted slotstream, armdb or armdb-unsynced"),
        }
    }
}
