//! Floor 5: the tools that look at nodes and data directories from outside, and the demo and the small
//! load that drive nodes through their ports. Nothing here changes a byte of a shard file.

pub mod ask;
pub mod bench;
pub mod demo;
pub mod export;
mod fetch;
pub mod files;
pub mod import;
mod process;
mod redis;
pub mod roles;
pub mod status;
pub mod tail;
pub mod verify;

use std::io;
use std::path::PathBuf;

pub use fetch::{FetchError, fetch};

use crate::store::directory::FileError;
use crate::store::{HeaderError, OpenError};

/// What a tool found; the process's exit code follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Damage, a difference, or a node that does not answer.
    Bad,
}

/// Why a tool could not look.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// No data directory.
    #[error("{directory}: holds no store")]
    NoStore {
        /// What was named.
        directory: PathBuf,
    },
    /// Fewer shards than that.
    #[error("{directory}: shard {wanted} was asked for, the store has {shard_count}")]
    NoShard {
        /// What was named.
        directory: PathBuf,
        /// Shard asked for.
        wanted: u16,
        /// Shards there are.
        shard_count: u16,
    },
    /// Nothing to compare.
    #[error("{directory} was named twice, wanted two directories")]
    SameDirectory {
        /// What was named.
        directory: PathBuf,
    },
    /// Two stores that cannot be equal.
    #[error("the directories hold different stores: {first} and {second}")]
    OtherStore {
        /// The first one's id and sizes.
        first: String,
        /// The second one's.
        second: String,
    },
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A header is not what it should be.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The answer cannot be written.
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
}
