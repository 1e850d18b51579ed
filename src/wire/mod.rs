//! Floor 2: what travels between a leader and a follower, byte by byte.
//!
//! One connection per shard and follower. [`frame`] cuts the byte stream into checked frames,
//! [`message`] gives them meaning, [`transport`] is all that a link needs of a socket. Nothing here
//! waits, reads a clock, or keeps state beyond one half-received frame.
//!
//! | message   | direction          | when                                                          |
//! |-----------|--------------------|---------------------------------------------------------------|
//! | Hello     | follower -> leader | first; who I am, what I hold                                  |
//! | Welcome   | leader -> follower | Hello is fine; where the scan begins                          |
//! | Refuse    | leader -> follower | Hello is not fine, or a slot is damaged; the leader closes after |
//! | Want      | follower -> leader | slots that it asks for before the scan; none = it has all      |
//! | SlotBatch | leader -> follower | records of a scan (flag SCAN), of the stream (STREAM), of slots that were asked for (WANTED) |
//! | ScanStart | leader -> follower | a ring overflowed: a scan begins                              |
//! | ScanDone  | leader -> follower | the scan is through                                           |
//! | Regain    | leader -> follower | before Welcome: give back what a crash took; then SlotBatch, ScanDone and Ack go the other way |
//! | Ack       | follower -> leader | how far the follower is; also opens the scan's window         |
//! | Heartbeat | both               | every heartbeat interval, whatever else is sent               |
//!
//! ```text
//! follower                                            leader
//!    | preamble, Hello{store, shard, watermark W} ------> |
//!    |   only if the leader may have lost in a crash what is newer than D, and D < W:
//!    | <--------------- Regain{since D}                   |
//!    | SlotBatch SCAN (slots with seq > D), as the Ack window allows
//!    | <--------------- Ack{received_bytes}               |
//!    | ScanDone{through W} -----------------------------> | the leader waits for others, then takes its new term
//!    |                                                    | ring attached at S0, both under the shard lock
//!    | <--------------- Welcome{since W, head S0, ...}    |
//!    |   only if the follower's history parts from the leader's at F, below its head, or slots are damaged:
//!    | Want{slots with seq > F} ------------------------> |
//!    | <--------------- SlotBatch WANTED (these slots as they are)
//!    | Want{} ------------------------------------------> |
//!    | <--------------- SlotBatch SCAN (slots with seq > W), as the Ack window allows
//!    | Ack{received_bytes} -----------------------------> |
//!    | <--------------- ScanDone{through S0, consistent_at E}
//!    | <--------------- SlotBatch STREAM (S0+1, S0+2, ...)
//!    | Ack{applied} ------------------------------------> |
//!    |                         ring overflows after seq L |
//!    | <--------------- SlotBatch STREAM (... L)          | what the ring still held
//!    |                                                    | latch cleared at S1 under the shard lock
//!    | <--------------- ScanStart{since L, through S1}
//!    | <--------------- SlotBatch SCAN (slots with seq > L)
//!    | <--------------- ScanDone{through S1, consistent_at E1}
//!    | <--------------- SlotBatch STREAM (S1+1, ...)
//! ```

mod fields;
pub mod frame;
pub mod message;
pub mod outbox;
mod refuse;
#[cfg(test)]
mod tests;
pub mod transport;
pub mod window;

pub use frame::{Frame, FrameDecoder, FrameError, FrameHeader, Kind};
pub use message::{
    Ack, Heartbeat, Hello, MessageError, Refuse, RefuseCode, Regain, ScanDone, ScanPlace, ScanStart, Want,
    Welcome,
};
pub use outbox::Outbox;
pub use transport::Transport;

use std::time::Duration;

/// When the next heartbeat is due: at a multiple of the interval, so that all links of a thread beat
/// together and an idle thread wakes once for all of them.
pub(crate) fn next_beat(now: Duration, interval: Duration) -> Duration {
    let interval_ns = interval.as_nanos().max(1);
    let next_ns = (now.as_nanos() / interval_ns + 1) * interval_ns;
    Duration::from_nanos(u64::try_from(next_ns).unwrap_or(u64::MAX))
}
