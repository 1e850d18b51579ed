//! Why a link of a follower ended.

use std::io;
use std::time::Duration;

use crate::slot::{Geometry, Seq, SlotError, SlotIndex};
use crate::store::{ApplyError, HistoryError};
use crate::wire::frame::{FrameError, Kind};
use crate::wire::message::{MessageError, Refuse, RefuseCode};
use crate::wire::window::AckBytesError;

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The leader has closed.
    #[error("the leader has closed the connection")]
    Closed,
    /// The connection closed before the leader answered; something else may listen there.
    #[error("the connection was closed without an answer: is this the leader's replication port?")]
    ClosedInHandshake,
    /// The connection broke.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    /// No answer to Hello.
    #[error("no answer within {wanted:?}: is this the leader's replication port?")]
    HandshakeTimeout {
        /// How long an answer may take.
        wanted: Duration,
    },
    /// Nothing came, not even a heartbeat.
    #[error("the leader was silent for {found:?}, wanted a heartbeat within {wanted:?}")]
    Silent {
        /// Silence so far.
        found: Duration,
        /// Longest silence allowed.
        wanted: Duration,
    },
    /// Bytes that are no frame.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// A frame that is not the message it should be.
    #[error("{0}")]
    Message(#[from] MessageError),
    /// A message that has no place here.
    #[error("{kind:?} is not what a leader sends here")]
    Unexpected {
        /// Which message.
        kind: Kind,
    },
    /// The leader answers for another shard.
    #[error("leader answers for shard {found}, wanted {wanted}")]
    Shard {
        /// What it answered.
        found: u16,
        /// What was asked for.
        wanted: u16,
    },
    /// The leader's epoch changed within a link.
    #[error("frame of epoch {found} on a link of epoch {wanted}")]
    Epoch {
        /// What the frame says.
        found: u64,
        /// What Welcome said.
        wanted: u64,
    },
    /// The scan does not begin where our data ends.
    #[error("leader scans from seq {found}, wanted {wanted}")]
    Since {
        /// What Welcome says.
        found: Seq,
        /// Our watermark, or the fork.
        wanted: Seq,
    },
    /// The leader names a fork behind what we hold.
    #[error("leader shares seqs up to {found}, this follower has only {head}")]
    Fork {
        /// What Welcome says.
        found: Seq,
        /// Our last seq.
        head: Seq,
    },
    /// A slot that was not asked for, or not now.
    #[error("{} came, wanted {}", slot_name(.found), slot_name(.wanted))]
    Unasked {
        /// What came.
        found: Option<SlotIndex>,
        /// The next one asked for.
        wanted: Option<SlotIndex>,
    },
    /// The report of dropped writes could not be written, or what came in their place not made durable.
    #[error("rewind: {0}")]
    Rewind(io::Error),
    /// What the leader has lived through was not made durable here; nothing of it may be taken.
    #[error("{0}")]
    History(#[from] HistoryError),
    /// The stream has a hole.
    #[error("stream goes on with seq {found}, wanted {wanted}")]
    SeqGap {
        /// Seq of the record.
        found: Seq,
        /// The one behind the watermark.
        wanted: Seq,
    },
    /// A ScanDone that goes back.
    #[error("scan done through seq {through}, consistent at {consistent_at}, but {watermark} is held")]
    ScanDone {
        /// What ScanDone says.
        through: Seq,
        /// What ScanDone says.
        consistent_at: Seq,
        /// Our watermark.
        watermark: Seq,
    },
    /// The leader refused.
    #[error("leader refuses: {}", .0.text)]
    Refused(Refuse),
    /// The leader holds another store than we do; our data stays as it is.
    #[error("leader is store {found}, this follower holds data of store {wanted}: it keeps them")]
    ForeignStore {
        /// The leader's store.
        found: uuid::Uuid,
        /// Ours.
        wanted: uuid::Uuid,
    },
    /// The leader's sizes are not ours.
    #[error("leader has other sizes ({found}) than this follower ({wanted})")]
    Geometry {
        /// The leader's.
        found: Geometry,
        /// Ours.
        wanted: Geometry,
    },
    /// The leader is behind what we have heard of.
    #[error("leader is in epoch {found}, this follower has heard of epoch {wanted}")]
    OldEpoch {
        /// The leader's.
        found: u64,
        /// The newest we know of.
        wanted: u64,
    },
    /// The leader's shard shares nothing with ours, and nobody was promoted since.
    #[error(
        "the leader's shard (seq {leader_head}, epoch {epoch}) has lived through nothing of what this follower holds of \
         it, {records} records up to seq {head}, and the follower keeps them: was the leader's data directory emptied \
         or replaced? Let this follower lead (promote --force), or throw its data away (start it with \
         --accept-store {store_id})"
    )]
    EmptiedStore {
        /// The leader's last seq.
        leader_head: Seq,
        /// The epoch of both.
        epoch: u64,
        /// Our records.
        records: u64,
        /// Our last seq.
        head: Seq,
        /// The store of both.
        store_id: uuid::Uuid,
    },
    /// An Ack that does not fit what was sent.
    #[error(transparent)]
    AckBytes(#[from] AckBytesError),
    /// A slot is damaged; it is not given back, and nothing behind it can be.
    #[error("slot {slot}: {error}")]
    Slot {
        /// Its place.
        slot: SlotIndex,
        /// What is wrong with it.
        error: SlotError,
    },
    /// A batch could not be applied.
    #[error("batch: {0}")]
    Apply(#[from] ApplyError),
}

impl LinkError {
    /// The word under which it is counted.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        use LinkError as E;
        match self {
            E::Closed | E::ClosedInHandshake | E::Io(_) => "closed",
            E::HandshakeTimeout { .. } | E::Silent { .. } => "timeout",
            E::Refused(_)
            | E::ForeignStore { .. }
            | E::Geometry { .. }
            | E::OldEpoch { .. }
            | E::EmptiedStore { .. } => "refused",
            E::Apply(ApplyError::Full { .. }) | E::Rewind(_) | E::History(_) | E::Slot { .. } => "store",
            _ => "protocol",
        }
    }

    /// Whether the peer sent what it must not.
    #[must_use]
    pub fn is_protocol(&self) -> bool {
        self.as_str() == "protocol"
    }

    /// Whether what is held here and what the leader has are not known to have anything in common.
    #[must_use]
    pub fn is_unrelated(&self) -> bool {
        match self {
            LinkError::Refused(Refuse { code, .. }) => {
                matches!(code, RefuseCode::FollowerAhead | RefuseCode::Forgotten | RefuseCode::ForeignStore)
            }
            LinkError::ForeignStore { .. } | LinkError::EmptiedStore { .. } => true,
            _ => false,
        }
    }

    /// Whether either side refused the other.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        self.as_str() == "refused"
    }
}

fn slot_name(slot: &Option<SlotIndex>) -> String {
    slot.map_or("no slot".to_owned(), |slot| format!("slot {slot}"))
}
