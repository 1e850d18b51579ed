//! Floor 4: the follower's side of replication.
//!
//! [`link`] is one connection's state machine (no I/O, no clock of its own); [`apply`] is what it does
//! to the store and what it knows of its own progress, [`lend`] what it gives back to a leader that lost it. [`pool`] is the threads and the sockets around
//! the links of all shards, [`probe()`] asks a leader who it is before there is a store.
//!
//! Memory per link: one receive buffer of [`Options::receive_buffer_bytes`], touched as far as it is used.

mod apply;
pub(crate) mod back_off;
mod hello;
mod lane;
mod lend;
pub mod link;
pub mod pool;
pub mod probe;
mod resolve;

use std::time::Duration;

use uuid::Uuid;

pub use hello::is_given_up;
pub use link::{Env, Link, LinkError};
pub use pool::{Follower, NotHeld};
pub use probe::{LeaderInfo, ProbeError, probe, tell_epoch};

use crate::slot::ShardIndex;
use crate::wire::frame::{HEADER_SIZE, PAYLOAD_SIZE_MAX};

/// Room in a receive buffer beside the largest frame, so that the next frame's begin comes with it.
const RECEIVE_AHEAD_BYTES: usize = 64 * 1024;

/// More threads than these help nobody by default: one applies millions of records a second, and only a
/// first scan is bound by it.
const THREADS_MAX: usize = 4;

/// How a follower follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Threads that drive links; never more than there are shards to follow.
    pub threads: usize,
    /// Shards to follow; empty = all.
    pub shards: Vec<ShardIndex>,
    /// Names this follower in its leader's figures.
    pub follower_id: Uuid,
    /// Where this node answers Redis clients; 0 = nowhere.
    pub resp_port: u16,
    /// A leader with this store may replace what is held here though it holds nothing itself.
    pub accept_store: Option<Uuid>,
    /// How often this end says that it is alive.
    pub heartbeat_interval: Duration,
    /// A leader that was silent for this long is gone.
    pub dead_after: Duration,
    /// Longest time for a connection to open, and again for the answer to Hello.
    pub handshake_timeout: Duration,
    /// First pause before connecting again; each one after it is twice as long.
    pub back_off_min: Duration,
    /// Longest pause before connecting again.
    pub back_off_max: Duration,
    /// A link that lived this long, reached phase stream or got on with a scan was a good one: the next pause
    /// is short again.
    pub back_off_reset_after: Duration,
    /// Slots that are reported at most in one piece of a rewind's report; between pieces the link says that it lives.
    pub rewind_slots_max: usize,
    /// Bytes of a link's receive buffer; the largest frame must fit.
    pub receive_buffer_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX),
            shards: Vec::new(),
            follower_id: Uuid::new_v4(),
            resp_port: 0,
            accept_store: None,
            heartbeat_interval: Duration::from_secs(1),
            dead_after: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(5),
            back_off_min: Duration::from_millis(100),
            back_off_max: Duration::from_secs(5),
            back_off_reset_after: Duration::from_secs(10),
            rewind_slots_max: 4096,
            receive_buffer_bytes: HEADER_SIZE + PAYLOAD_SIZE_MAX + RECEIVE_AHEAD_BYTES,
        }
    }
}
