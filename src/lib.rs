//! Leader/follower replication on fixed-slot storage.
//!
//! Records of bounded size live in memory-mapped slots, one file per shard. A leader takes writes;
//! every write pushes the slot's image into a ring per attached follower; a link per shard and
//! follower first scans the shard's slots, then streams the ring.

pub mod clock;
#[cfg(feature = "server")]
pub mod counters;
pub mod follower;
pub mod leader;
pub mod links;
#[doc(hidden)]
pub mod planted;
pub mod region;
#[cfg(feature = "server")]
pub mod resp;
pub mod ring;
pub mod shard;
pub mod slot;
pub mod stop;
pub mod store;
pub mod wire;

pub use slot::{Geometry, Seq, ShardIndex, SlotIndex};
pub use store::{Change, Entry, Options, Store};
