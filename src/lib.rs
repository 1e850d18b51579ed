//! Leader/follower replication on fixed-slot storage.
//!
//! Records of bounded size live in memory-mapped slots, one file per shard. A leader takes writes;
//! every write pushes the slot's image into a ring per attached follower; a link per shard and
//! follower first scans the shard's slots, then streams the ring.
#![doc = include_str!("ARCHITECTURE.md")]

pub mod chance;
mod checksum;
pub mod clock;
pub mod counters;
pub mod follower;
pub mod leader;
pub mod links;
#[doc(hidden)]
pub mod planted;
#[expect(unreachable_pub, reason = "as in `ring`")]
mod region;
#[expect(unreachable_pub, reason = "pub is what the floors above use; `store` says what leaves the crate")]
mod ring;
#[expect(unreachable_pub, reason = "as in `ring`")]
mod shard;
pub mod slot;
pub mod stop;
pub mod store;
pub mod units;
#[doc(hidden)]
pub mod wal;
pub mod wire;

#[cfg(feature = "server")]
pub mod backup;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
pub mod inspect;
#[cfg(feature = "server")]
pub mod metrics;
#[cfg(feature = "server")]
pub mod node;
#[cfg(feature = "server")]
#[expect(unreachable_pub, reason = "as in `ring`")]
mod rdb;
#[cfg(feature = "server")]
pub mod resp;
#[cfg(feature = "server")]
pub mod rows;
#[cfg(feature = "server")]
pub mod saves;
#[cfg(feature = "server")]
pub mod signals;
#[cfg(feature = "server")]
pub mod status;
#[cfg(feature = "server")]
mod watch;

pub use slot::{Geometry, HASH_TAGS, Seq, ShardIndex, SlotIndex};
pub use store::{Change, Entry, Options, Store};

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
