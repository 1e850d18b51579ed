//! Messages: what a control frame's payload says. The table of all of them is in [`crate::wire`].
//!
//! Each type reads itself from a checked frame and appends itself as a frame. Reading allocates
//! only for the lists and texts that a payload really holds. Little-endian; offsets are in the
//! payload; the sender's epoch is in the frame's header.
//!
//! | Hello offset | size | field           | meaning                                                    |
//! |-------------:|-----:|-----------------|------------------------------------------------------------|
//! |            0 |    2 | version_min     | oldest protocol version the follower speaks                |
//! |            2 |    2 | version_max     | newest one; a later version may append fields to Hello     |
//! |            4 |    2 | shard           | [`SHARD_PROBE`] = "tell me your geometry"                  |
//! |            6 |    2 | resp_port       | where the follower answers Redis clients; 0 = nowhere      |
//! |            8 |    8 | geometry        | shard count, key size, value size, shard prefix bits (65535 = hash tags); zeros = none yet |
//! |           16 |   16 | store_id        | nil = none yet                                             |
//! |           32 |   16 | follower_id     | names the follower in figures                              |
//! |           48 |    8 | watermark       | everything up to here is held; 0 = nothing is              |
//! |           56 |    8 | head            | highest seq of what is held of the lineage                 |
//! |           64 |    8 | scan_through    | slots below scan_next hold everything up to here           |
//! |           72 |    4 | scan_next       | 0 = no scan was cut off                                    |
//! |           76 |    2 | flags           | bit 0: it will ask for slots, whatever the leader finds    |
//! |           78 |    2 | term_count      | entries of the lineage, at most [`TERMS_MAX`]              |
//! |           80 | 24 n | lineage         | epoch u64, id u64, first seq u64; oldest first             |
//!
//! | Welcome offset | size | field               | meaning                                              |
//! |---------------:|-----:|---------------------|------------------------------------------------------|
//! |              0 |    2 | version             | the version both speak from now on                   |
//! |              2 |    2 | shard               | as in Hello                                          |
//! |              4 |    2 | resp_port           | where the leader answers Redis clients; 0 = nowhere  |
//! |              6 |    2 | term_count          | entries of the lineage, at most [`TERMS_MAX`]        |
//! |              8 |    8 | geometry            | as in Hello                                          |
//! |             16 |   16 | store_id            |                                                      |
//! |             32 |    8 | since               | the scan sends slots above this seq; 0 = a full scan |
//! |             40 |    8 | head                | the shard's seq when the ring was attached           |
//! |             48 |    8 | slots_formatted     | slots a full scan looks at                           |
//! |             56 |    8 | records             | live records                                         |
//! |             64 |    8 | fork                | last seq that both have lived through                |
//! |             72 |    8 | scan_through        | where the scan goes on, as in Hello                  |
//! |             80 |    4 | scan_next           | as in Hello; 0 = the scan begins anew                |
//! |             84 |    4 | heartbeat_ms        | the leader's heartbeat interval                      |
//! |             88 | 24 n | lineage             | as in Hello                                          |
//!
//! | message   | payload                                                                                      |
//! |-----------|----------------------------------------------------------------------------------------------|
//! | Refuse    | code u16 ([`RefuseCode`]), size u16 and bytes of the leader's `HOST:PORT` (of a NotLeader that knows it, at most [`LEADER_SIZE_MAX`] bytes), then a sentence in UTF-8, at most [`REFUSE_TEXT_SIZE_MAX`] bytes |
//! | Want      | slot indexes, u32 each, rising, at most [`WANT_LEN_MAX`]; none = all have come                |
//! | ScanStart | since u64, through u64                                                                       |
//! | Regain    | since u64, window_bytes u64, next u32                                                        |
//! | ScanDone  | through u64, consistent_at u64                                                               |
//! | Ack       | received u64, applied u64, durable u64, received_bytes u64                                   |
//! | Heartbeat | seq u64, unix_ms u64                                                                         |

use uuid::Uuid;

use super::fields::{
    Fields, TERM_SIZE, newest, push_geometry, push_place, push_terms, push_words, term_count,
};
use super::frame::{Frame, Kind, PAYLOAD_SIZE_MAX, push_frame};
use crate::slot::image::RECORD_HEADER_SIZE;
use crate::slot::{Geometry, GeometryError, Seq, SlotIndex, Term};

pub use super::refuse::{LEADER_SIZE_MAX, REFUSE_TEXT_SIZE_MAX, Refuse, RefuseCode};

/// The protocol version that this code speaks.
pub const VERSION: u16 = 1;
/// A Hello for this shard asks for the leader's geometry only.
pub const SHARD_PROBE: u16 = 0xFFFF;
/// Most terms of a lineage in a Welcome.
pub const TERMS_MAX: usize = 128;
/// Most slots asked for at once.
pub const WANT_LEN_MAX: usize = 512;

/// Most bytes of payload in what a follower sends.
pub(crate) const FOLLOWER_PAYLOAD_SIZE_MAX: usize = HELLO_SIZE + TERMS_MAX * TERM_SIZE;
const _: () = assert!(WANT_LEN_MAX * size_of::<u32>() <= FOLLOWER_PAYLOAD_SIZE_MAX);

const HELLO_SIZE: usize = 80;
const WELCOME_SIZE: usize = 88;
const FLAG_ASKS: u16 = 1;

/// Why a checked frame's payload is not the message it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The payload has another size.
    #[error("{kind:?} has {found} bytes of payload, wanted {wanted}")]
    Size {
        /// Which message.
        kind: Kind,
        /// Bytes there.
        found: usize,
        /// Bytes it should have.
        wanted: usize,
    },
    /// The peer speaks no version that this code speaks.
    #[error("peer speaks protocol versions {min} to {max}, this is version {VERSION}")]
    Version {
        /// Oldest version the peer speaks.
        min: u16,
        /// Newest one.
        max: u16,
    },
    /// A seq above the largest there is.
    #[error("{kind:?} names seq {found}, more than a seq can be")]
    Seq {
        /// Which message.
        kind: Kind,
        /// What it said.
        found: u64,
    },
    /// Sizes that no store can have.
    #[error("{0}")]
    Geometry(#[from] GeometryError),
    /// The lineage is empty, too long or not in order.
    #[error("lineage is empty, too long or not in order")]
    Lineage,
    /// What should be the leader's address is none.
    #[error("a leader's address is {found:?}, wanted HOST:PORT of at most {LEADER_SIZE_MAX} bytes")]
    Leader {
        /// What it said.
        found: String,
    },
    /// The slots asked for are too many or not in order.
    #[error("Want names {found} slots, wanted at most {WANT_LEN_MAX} in rising order")]
    Want {
        /// How many.
        found: usize,
    },
}

/// Follower -> leader. Who the follower is, what it holds, what it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Oldest protocol version the follower speaks.
    pub version_min: u16,
    /// Newest protocol version the follower speaks.
    pub version_max: u16,
    /// The shard it wants, or [`SHARD_PROBE`].
    pub shard: u16,
    /// Where it answers Redis clients; 0 = nowhere.
    pub resp_port: u16,
    /// Its store's sizes; `None` = it has no store yet.
    pub geometry: Option<Geometry>,
    /// Its store's identity; nil = none yet.
    pub store_id: Uuid,
    /// Names the follower in figures.
    pub follower_id: Uuid,
    /// The newest epoch it has heard of.
    pub epoch: u64,
    /// Its watermark; zero = it holds nothing.
    pub watermark: Seq,
    /// Highest seq of what it holds of its lineage.
    pub head: Seq,
    /// Where a scan was cut off, if one was.
    pub scan_place: Option<ScanPlace>,
    /// It will ask for slots before the scan, whatever the leader finds.
    pub asks: bool,
    /// Terms that its shard has lived through, oldest first; empty for a probe.
    pub lineage: Vec<Term>,
}

/// How far a scan came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanPlace {
    /// Slots below this one hold everything up to `through`; never zero.
    pub next: SlotIndex,
    /// See `next`.
    pub through: Seq,
}

/// Leader -> follower. The Hello is fine; the scan begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The version both speak from now on.
    pub version: u16,
    /// As in Hello.
    pub shard: u16,
    /// Where the leader answers Redis clients; 0 = nowhere.
    pub resp_port: u16,
    /// The leader's sizes.
    pub geometry: Geometry,
    /// The leader's store.
    pub store_id: Uuid,
    /// The leader's epoch.
    pub epoch: u64,
    /// The scan sends slots above this seq; zero = a full scan.
    pub since: Seq,
    /// The shard's seq when the ring was attached.
    pub head: Seq,
    /// Slots that a full scan looks at.
    pub slots_formatted: u64,
    /// Live records.
    pub records: u64,
    /// The last seq that both have lived through.
    pub fork: Seq,
    /// Where the scan goes on; `None` = it begins anew.
    pub scan_place: Option<ScanPlace>,
    /// The leader's heartbeat interval in milliseconds.
    pub heartbeat_ms: u32,
    /// Terms that the shard has lived through, oldest first.
    pub lineage: Vec<Term>,
}

/// Follower -> leader. Slots that it asks for, in rising order; none = it has all that it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// The slots.
    pub slots: Vec<SlotIndex>,
}

/// Leader -> follower. A ring overflowed: a scan begins in the middle of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanStart {
    /// Slots above this seq will be sent.
    pub since: Seq,
    /// Everything up to here will have been sent when the scan is through.
    pub through: Seq,
}

/// Leader -> follower. The leader may have lost what is newer than this in a crash: the follower sends it
/// such slots, as a leader sends a scan, and then waits for its Welcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Regain {
    /// Slots above this seq are to be sent.
    pub since: Seq,
    /// Payload that may be under way without an Ack.
    pub window_bytes: u64,
    /// Slots below this one have come already, on a link that broke.
    pub next: SlotIndex,
}

/// Leader -> follower, and back after Regain. The scan is through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanDone {
    /// Everything up to here has been sent; the stream goes on with the next seq.
    pub through: Seq,
    /// The scan may have carried changes up to here: only from here on is the follower's state a prefix.
    pub consistent_at: Seq,
}

/// Follower -> leader. How far the follower is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ack {
    /// Everything up to here has arrived.
    pub received: Seq,
    /// Everything up to here can be read.
    pub applied: Seq,
    /// Everything up to here survives a power cut; zero = nothing is promised.
    pub durable: Seq,
    /// Payload bytes of scan batches applied on this link so far; opens the scan's window.
    pub received_bytes: u64,
}

/// Both directions. The sender is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// The leader's head, the follower's watermark.
    pub seq: Seq,
    /// The sender's clock, Unix milliseconds.
    pub unix_ms: u64,
}

impl Hello {
    /// Appends the message as a frame.
    pub fn push(&self, target: &mut Vec<u8>) {
        push_frame(target, Kind::Hello, self.epoch, |out| {
            let start = out.len();
            for half in [self.version_min, self.version_max, self.shard, self.resp_port] {
                out.extend_from_slice(&half.to_le_bytes());
            }
            push_geometry(out, self.geometry.as_ref());
            out.extend_from_slice(self.store_id.as_bytes());
            out.extend_from_slice(self.follower_id.as_bytes());
            out.extend_from_slice(&self.watermark.0.to_le_bytes());
            out.extend_from_slice(&self.head.0.to_le_bytes());
            push_place(out, self.scan_place);
            let flags = if self.asks { FLAG_ASKS } else { 0 };
            out.extend_from_slice(&flags.to_le_bytes());
            let terms = newest(&self.lineage);
            out.extend_from_slice(&term_count(terms).to_le_bytes());
            assert_eq!(out.len() - start, HELLO_SIZE, "Hello's fixed size");
            push_terms(out, terms);
        });
    }

    /// Reads a Hello. The versions are checked before anything that a version may change.
    pub fn read(frame: &Frame<'_>) -> Result<Self, MessageError> {
        let mut fields = Fields::new(frame);
        let (version_min, version_max) = (fields.u16()?, fields.u16()?);
        if version_min > VERSION || version_max < VERSION {
            return Err(MessageError::Version { min: version_min, max: version_max });
        }
        let (shard, resp_port) = (fields.u16()?, fields.u16()?);
        let mut hello = Self {
            version_min,
            version_max,
            shard,
            resp_port,
            geometry: fields.geometry()?,
            store_id: fields.uuid()?,
            follower_id: fields.uuid()?,
            epoch: frame.epoch,
            watermark: fields.seq()?,
            head: fields.seq()?,
            scan_place: fields.place()?,
            asks: fields.u16()? & FLAG_ASKS != 0,
            lineage: Vec::new(),
        };
        let term_count = fields.u16()?;
        hello.lineage = fields.terms(term_count, shard == SHARD_PROBE)?;
        if version_max == VERSION {
            fields.end()?;
        }
        Ok(hello)
    }
}

impl Welcome {
    /// Appends the message as a frame.
    pub fn push(&self, target: &mut Vec<u8>) {
        assert!(!self.lineage.is_empty(), "a lineage is never empty");
        let terms = newest(&self.lineage);
        push_frame(target, Kind::Welcome, self.epoch, |out| {
            let start = out.len();
            for half in [self.version, self.shard, self.resp_port, term_count(terms)] {
                out.extend_from_slice(&half.to_le_bytes());
            }
            push_geometry(out, Some(&self.geometry));
            out.extend_from_slice(self.store_id.as_bytes());
            for word in [self.since.0, self.head.0, self.slots_formatted, self.records, self.fork.0] {
                out.extend_from_slice(&word.to_le_bytes());
            }
            push_place(out, self.scan_place);
            out.extend_from_slice(&self.heartbeat_ms.to_le_bytes());
            assert_eq!(out.len() - start, WELCOME_SIZE, "Welcome's fixed size");
            push_terms(out, terms);
        });
    }

    /// Reads a Welcome.
    pub fn read(frame: &Frame<'_>) -> Result<Self, MessageError> {
        let mut fields = Fields::new(frame);
        let version = fields.u16()?;
        if version != VERSION {
            return Err(MessageError::Version { min: version, max: version });
        }
        let (shard, resp_port, term_count) = (fields.u16()?, fields.u16()?, fields.u16()?);
        let geometry = fields.geometry()?.ok_or(GeometryError::ShardCount { found: 0 })?;
        let store_id = fields.uuid()?;
        let (since, head) = (fields.seq()?, fields.seq()?);
        let (slots_formatted, records) = (fields.u64()?, fields.u64()?);
        let (fork, scan_place, heartbeat_ms) = (fields.seq()?, fields.place()?, fields.u32()?);
        let lineage = fields.terms(term_count, false)?;
        fields.end()?;
        Ok(Self {
            version,
            shard,
            resp_port,
            geometry,
            store_id,
            epoch: frame.epoch,
            since,
            head,
            slots_formatted,
            records,
            fork,
            scan_place,
            heartbeat_ms,
            lineage,
        })
    }
}

impl Want {
    /// Appends the message as a frame.
    pub fn push(&self, target: &mut Vec<u8>, epoch: u64) {
        assert!(self.slots.len() <= WANT_LEN_MAX, "{} slots asked for at once", self.slots.len());
        push_frame(target, Kind::Want, epoch, |out| {
            self.slots.iter().for_each(|slot| out.extend_from_slice(&slot.0.to_le_bytes()));
        });
    }

    /// Reads a Want.
    pub fn read(frame: &Frame<'_>) -> Result<Self, MessageError> {
        let mut fields = Fields::new(frame);
        let found = frame.payload.len().div_ceil(size_of::<u32>());
        if found > WANT_LEN_MAX {
            return Err(MessageError::Want { found });
        }
        let mut slots = Vec::with_capacity(found);
        while !fields.rest.is_empty() {
            slots.push(SlotIndex(fields.u32()?));
        }
        if !slots.is_sorted_by(|a, b| a < b) {
            return Err(MessageError::Want { found });
        }
        Ok(Self { slots })
    }
}

impl ScanStart {
    /// Appends the message as a frame.
    pub fn push(&self, target: &mut Vec<u8>, epoch: u64) {
        push_words(target, Kind::ScanStart, epoch, [self.since.0, self.through.0]);
    }

    /// Reads a ScanStart.
    pub fn read(frame: &Frame<'_>) -> Result<Self, MessageError> {
        let mut fields = Fields::new(frame);
        let message = Self { since: fields.seq()?, through: fields.seq()? };
        fields.end().map(|()| message)
    }
}

impl Regain {
    /// Appends the message as a frame.
    pub fn push(&self, target: &mut Vec<u8>, epoch: u64) {
        push_frame(target, Kind::Regain, epoch, |out| {
            out.extend_from_slice(&self.since.0.to_le_bytes());
            out.extend_from_slice(&self.window_bytes.to_le_bytes());
            out.extend_from_slice(&self.next.0.to_le_bytes());
        });
    }

    /// Reads a Regain.
    pub fn read(frame: &Frame<'_>) -> Result<Self, MessageError> {
        let mut fields = Fields::new(frame);
        let (since, window_bytes) = (fields.seq()?, fields.u64()?);
        let message = Self { since, window_bytes, next: SlotIndex(fields.u32()?) };
        fields.end().map(|()| message)
    }
}

/// Payload of a batch that a follower gives back: within the window, but one record always fits.
#[must_use]
pub fn regain_payload_size_max(geometry: &Geometry, window_bytes: usize) -> usize {
    const WANTED: usize = 64 << 10;
    WANTED.min(window_bytes).max(RECORD_HEADER_SIZE + geometry.image_size_max()).min(PAYLOAD_SIZE_MAX)
}

impl ScanDone {
    /// Appends the message as a frame.
    pub fn push(&self, target: &mut Vec<u8>, epoch: u64) {
        push_words(target, Kind::ScanDone, epoch, [self.through.0, self.consistent_at.0]);
    }

    /// Reads a ScanDone.
    pub fn read(frame: &Frame<'_>) -> Result<Self, MessageError> {
        let mut fields = Fields::new(frame);
        let message = Self { through: fields.seq()?, consistent_at: fields.seq()? };
        fields.end().map(|()| message)
    }
}

impl Ack {
    /// Appends the message as a frame.
    pub fn push(&self, target: &mut Vec<u8>, epoch: u64) {
        let words = [self.received.0, self.applied.0, self.durable.0, self.received_bytes];
        push_words(target, Kind::Ack, epoch, words);
    }

    /// Reads an Ack.
    pub fn read(frame: &Frame<'_>) -> Result<Self, MessageError> {
        let mut fields = Fields::new(frame);
        let message = Self {
            received: fields.seq()?,
            applied: fields.seq()?,
            durable: fields.seq()?,
            received_bytes: fields.u64()?,
        };
        fields.end().map(|()| message)
    }
}

impl Heartbeat {
    /// Appends the message as a frame.
    pub fn push(&self, target: &mut Vec<u8>, epoch: u64) {
        push_words(target, Kind::Heartbeat, epoch, [self.seq.0, self.unix_ms]);
    }

    /// Reads a Heartbeat.
    pub fn read(frame: &Frame<'_>) -> Result<Self, MessageError> {
        let mut fields = Fields::new(frame);
        let message = Self { seq: fields.seq()?, unix_ms: fields.u64()? };
        fields.end().map(|()| message)
    }
}
