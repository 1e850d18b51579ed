//! Floor 4: the leader's side of replication.
//!
//! [`link`] is one connection's state machine (no I/O, no clock of its own): it checks the Hello
//! ([`hello`]), asks for what a crash took ([`regain`]), sends the scan ([`scan`]), then the ring ([`stream`]). [`pool`] is the thin shell of
//! threads and sockets around many links; [`registry`] counts them, [`pace`] bounds what scans take.
//!
//! Memory per link, whatever the follower does: the ring, one scan batch, one receive buffer of
//! [`link::RECEIVE_BUFFER_SIZE`] bytes, and what the kernel buffers for its socket.

mod attached;
mod hello;
mod lenders;
pub mod link;
mod pace;
pub mod pool;
pub mod regain;
pub mod registry;
mod scan;
mod stream;
mod writes;

use std::time::Duration;

pub use link::{Env, Link, LinkError};
pub use pool::{Leader, Unconfirmed};
pub use registry::Registry;

use crate::slot::Geometry;
use crate::wire::frame::PAYLOAD_SIZE_MAX;

/// How a leader serves its followers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Threads that drive links.
    pub threads: usize,
    /// How often each end says that it is alive.
    pub heartbeat_interval: Duration,
    /// A follower that was silent for this long is gone.
    pub dead_after: Duration,
    /// A connection that sent no Hello for this long is closed.
    pub handshake_timeout: Duration,
    /// Bytes of ring per link. When it is full a scan takes its place; nothing is lost.
    pub ring_bytes: usize,
    /// Scan payload that may be under way without an Ack.
    pub ack_window_bytes_max: u64,
    /// Bytes per second that all scans may send together; 0 = no limit.
    pub scan_bytes_per_second_max: u64,
    /// The same while clients write; scans may always send more than clients write, so that they end. 0 = no limit.
    pub scan_bytes_per_second_busy: u64,
    /// Scans of links that do not stream yet, at one time; others wait in phase queued; 0 = no limit.
    pub scans_max: usize,
    /// Payload of a scan batch; one record always fits.
    pub scan_batch_bytes_max: usize,
    /// Payload of a stream batch; one record always fits.
    pub stream_batch_bytes_max: usize,
    /// Followers of one shard; more are refused.
    pub followers_per_shard_max: u16,
    /// Connections that have not said Hello; more are closed at once.
    pub pending_max: usize,
    /// How long a store that regains its tail waits for followers that may have it; one that brings something
    /// is waited for until it is through, or brings nothing for `dead_after`, at most ten times as long.
    pub regain_wait: Duration,
    /// Where this node answers Redis clients; 0 = nowhere.
    pub resp_port: u16,
    /// Where the leader takes followers, while this node is none: what refused followers are told.
    pub leader: Option<String>,
}

/// Ring bytes per link where nobody says: 64 MiB over all shards of a follower, so that many shards do
/// not take much memory and few have room for a pause of their link.
#[must_use]
pub fn ring_bytes_for(geometry: &Geometry) -> usize {
    ((64 << 20) / usize::from(geometry.shard_count)).clamp(256 << 10, 4 << 20)
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: 1,
            heartbeat_interval: Duration::from_secs(1),
            dead_after: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(5),
            ring_bytes: 4 << 20,
            ack_window_bytes_max: 1 << 20,
            scan_bytes_per_second_max: 0,
            scan_bytes_per_second_busy: 96 << 20,
            scans_max: 0,
            scan_batch_bytes_max: 64 << 10,
            stream_batch_bytes_max: PAYLOAD_SIZE_MAX,
            followers_per_shard_max: 16,
            pending_max: 64,
            regain_wait: Duration::from_secs(10),
            resp_port: 0,
            leader: None,
        }
    }
}
