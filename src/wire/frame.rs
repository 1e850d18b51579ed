//! Frames: a fixed header of 24 bytes, then the payload. Little-endian.
//!
//! | offset | size | field       | meaning                                                             |
//! |-------:|-----:|-------------|---------------------------------------------------------------------|
//! |      0 |    4 | payload_len | bytes of payload, at most [`PAYLOAD_SIZE_MAX`]                      |
//! |      4 |    1 | kind        | which message, see [`Kind`]                                         |
//! |      5 |    1 | flags       | meaning depends on the kind; unknown bits are an error              |
//! |      6 |    2 | magic       | [`MAGIC`]                                                           |
//! |      8 |    8 | epoch       | the sender's epoch                                                  |
//! |     16 |    4 | payload_crc | CRC-32 of the payload; 0 for SlotBatch, whose images carry their own |
//! |     20 |    4 | header_crc  | CRC-32 of bytes 0 to 20                                             |
//!
//! A follower sends [`PREAMBLE`] before its first frame. It is a line of text, so that a Redis or
//! HTTP server which a follower was pointed at by mistake answers at once with an error that we
//! recognise, and so that a leader tells foreign clients from their first byte.
//!
//! The decoder reads into a buffer of fixed capacity: no length that a peer states makes it grow.
//! Half a frame stays where it is until the rest arrives, however long that takes.

/// Bytes of a frame's header.
pub const HEADER_SIZE: usize = 24;
/// Most bytes of payload in a frame.
pub const PAYLOAD_SIZE_MAX: usize = 256 * 1024;
/// What a follower sends before its first frame.
pub const PREAMBLE: &[u8; 12] = b"SLOTSTREAM\r\n";
/// "This is a frame."
pub const MAGIC: u16 = 0x5EF7;

const OFFSET_PAYLOAD_LEN: usize = 0;
const OFFSET_KIND: usize = OFFSET_PAYLOAD_LEN + 4;
const OFFSET_FLAGS: usize = OFFSET_KIND + 1;
const OFFSET_MAGIC: usize = OFFSET_FLAGS + 1;
const OFFSET_EPOCH: usize = OFFSET_MAGIC + 2;
const OFFSET_PAYLOAD_CRC: usize = OFFSET_EPOCH + 8;
const OFFSET_HEADER_CRC: usize = OFFSET_PAYLOAD_CRC + 4;
const _: () = assert!(OFFSET_HEADER_CRC + 4 == HEADER_SIZE);

/// Which message a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Follower -> leader.
    Hello = 1,
    /// Leader -> follower.
    Welcome = 2,
    /// Leader -> follower.
    Refuse = 3,
    /// Leader -> follower, and back after Regain. The payload is a run of whole records.
    SlotBatch = 4,
    /// Leader -> follower.
    ScanDone = 5,
    /// Follower -> leader.
    Ack = 6,
    /// Both directions.
    Heartbeat = 7,
    /// Leader -> follower.
    ScanStart = 8,
    /// Follower -> leader.
    Want = 9,
    /// Leader -> follower.
    Regain = 10,
}

/// SlotBatch flag: the records come from a scan.
pub const FLAG_SCAN: u8 = 1;
/// SlotBatch flag: the records come from the ring, each one seq above the one before.
pub const FLAG_STREAM: u8 = 2;
/// SlotBatch flag: the records are of slots that the follower asked for; each replaces what its slot holds.
pub const FLAG_WANTED: u8 = 4;

impl Kind {
    fn from_u8(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Refuse,
            4 => Self::SlotBatch,
            5 => Self::ScanDone,
            6 => Self::Ack,
            7 => Self::Heartbeat,
            8 => Self::ScanStart,
            9 => Self::Want,
            10 => Self::Regain,
            _ => return None,
        })
    }

    fn flags_are_known(self, flags: u8) -> bool {
        match self {
            Self::SlotBatch => matches!(flags, FLAG_SCAN | FLAG_STREAM | FLAG_WANTED),
            _ => flags == 0,
        }
    }
}

/// A frame's header, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of payload.
    pub payload_len: u32,
    /// Which message.
    pub kind: Kind,
    /// Meaning depends on the kind.
    pub flags: u8,
    /// The sender's epoch.
    pub epoch: u64,
    /// CRC-32 of the payload; 0 for SlotBatch.
    pub payload_crc: u32,
}

impl FrameHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        assert!(self.payload_len as usize <= PAYLOAD_SIZE_MAX, "payload of {} bytes", self.payload_len);
        assert!(self.kind.flags_are_known(self.flags), "flags {:#x} of {:?}", self.flags, self.kind);
        let mut bytes = [0; HEADER_SIZE];
        bytes[OFFSET_PAYLOAD_LEN..OFFSET_KIND].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes[OFFSET_KIND] = self.kind as u8;
        bytes[OFFSET_FLAGS] = self.flags;
        bytes[OFFSET_MAGIC..OFFSET_EPOCH].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[OFFSET_EPOCH..OFFSET_PAYLOAD_CRC].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[OFFSET_PAYLOAD_CRC..OFFSET_HEADER_CRC].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..OFFSET_HEADER_CRC]);
        bytes[OFFSET_HEADER_CRC..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Checks and reads a header. `payload_size_max` is what the receiver has room for.
    pub fn decode(bytes: &[u8; HEADER_SIZE], payload_size_max: usize) -> Result<Self, FrameError> {
        let magic = u16::from_le_bytes(word(bytes, OFFSET_MAGIC));
        if magic != MAGIC {
            return Err(FrameError::Magic { found: magic });
        }
        let (found, wanted) = (
            u32::from_le_bytes(word(bytes, OFFSET_HEADER_CRC)),
            crc32fast::hash(&bytes[..OFFSET_HEADER_CRC]),
        );
        if found != wanted {
            return Err(FrameError::HeaderChecksum { found, wanted });
        }
        let payload_len = u32::from_le_bytes(word(bytes, OFFSET_PAYLOAD_LEN));
        if payload_len as usize > payload_size_max {
            return Err(FrameError::Length { found: payload_len, wanted: payload_size_max });
        }
        let kind = Kind::from_u8(bytes[OFFSET_KIND]).ok_or(FrameError::Kind { found: bytes[OFFSET_KIND] })?;
        let flags = bytes[OFFSET_FLAGS];
        if !kind.flags_are_known(flags) {
            return Err(FrameError::Flags { kind, found: flags });
        }
        let epoch = u64::from_le_bytes(word(bytes, OFFSET_EPOCH));
        if epoch > EPOCH_MAX {
            return Err(FrameError::Epoch { found: epoch });
        }
        Ok(Self {
            payload_len,
            kind,
            flags,
            epoch,
            payload_crc: u32::from_le_bytes(word(bytes, OFFSET_PAYLOAD_CRC)),
        })
    }
}

#[inline]
fn word<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut word = [0; N];
    word.copy_from_slice(&bytes[offset..offset + N]);
    word
}

/// The highest epoch that a peer may name: the next one is always a number, too.
pub const EPOCH_MAX: u64 = 1 << 48;

/// Why bytes are not frames of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A Redis server (or our own RESP port) answered a follower.
    #[error("the peer speaks the Redis protocol: is this its RESP port? Wanted is the replication port")]
    RedisServer,
    /// An HTTP server answered a follower.
    #[error("the peer speaks HTTP: is this its metrics port? Wanted is the replication port")]
    HttpServer,
    /// A Redis client connected to a leader's replication port.
    #[error("a Redis client connected to the replication port; clients want the port given with --listen")]
    RedisClient,
    /// An HTTP client connected to a leader's replication port.
    #[error("an HTTP client connected to the replication port; metrics are at --http-listen")]
    HttpClient,
    /// Either side met TLS.
    #[error("the peer speaks TLS, this port does not")]
    Tls,
    /// Neither a frame nor anything known.
    #[error("frame magic is {found:#06x}, wanted {MAGIC:#06x}: the peer does not speak this protocol")]
    Magic {
        /// What stood there.
        found: u16,
    },
    /// The first bytes are neither a preamble nor anything known.
    #[error("connection begins with byte {found:#04x}: the peer does not speak this protocol")]
    Preamble {
        /// First byte that differs.
        found: u8,
    },
    /// More payload than the receiver takes.
    #[error("frame states {found} bytes of payload, wanted at most {wanted}")]
    Length {
        /// Bytes stated.
        found: u32,
        /// Most bytes taken.
        wanted: usize,
    },
    /// The header is damaged.
    #[error("frame header checksum is {found:#010x}, wanted {wanted:#010x}")]
    HeaderChecksum {
        /// CRC stated.
        found: u32,
        /// CRC of what is there.
        wanted: u32,
    },
    /// The payload is damaged.
    #[error("frame payload checksum is {found:#010x}, wanted {wanted:#010x}")]
    PayloadChecksum {
        /// CRC stated.
        found: u32,
        /// CRC of what is there.
        wanted: u32,
    },
    /// No leader gets so far.
    #[error("frame epoch is {found}, wanted at most {EPOCH_MAX}")]
    Epoch {
        /// Number stated.
        found: u64,
    },
    /// No message has this number.
    #[error("frame kind is {found}, which this version does not know")]
    Kind {
        /// Number stated.
        found: u8,
    },
    /// No such flags for this message.
    #[error("frame flags are {found:#04x}, which {kind:?} does not have")]
    Flags {
        /// Which message.
        kind: Kind,
        /// Flags stated.
        found: u8,
    },
}

/// A whole frame; its header, and the payload of a control message, are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Which message.
    pub kind: Kind,
    /// Meaning depends on the kind.
    pub flags: u8,
    /// The sender's epoch.
    pub epoch: u64,
    /// Of a SlotBatch: records whose images are not checked yet.
    pub payload: &'a [u8],
}

/// Which end of a connection a decoder serves; decides how foreign bytes are explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Expects [`PREAMBLE`], then frames.
    Leader,
    /// Expects frames.
    Follower,
}

/// Cuts received bytes into frames.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: Box<[u8]>,
    /// What waits to be decoded is `buffer[start..end]`.
    start: usize,
    end: usize,
    side: Side,
    /// Bytes of preamble still to come.
    preamble_left: usize,
    /// No frame was decoded yet, so bad bytes may come from another protocol altogether.
    is_first: bool,
}

impl FrameDecoder {
    /// A decoder with a buffer of `capacity` bytes; frames that do not fit are errors.
    #[must_use]
    pub fn new(side: Side, capacity: usize) -> Self {
        assert!(capacity > HEADER_SIZE, "a buffer of {capacity} bytes holds no frame");
        let preamble_left = if side == Side::Leader { PREAMBLE.len() } else { 0 };
        Self {
            buffer: vec![0; capacity].into_boxed_slice(),
            start: 0,
            end: 0,
            side,
            preamble_left,
            is_first: true,
        }
    }

    /// Makes the buffer as large, but no smaller than what waits in it.
    pub fn resize(&mut self, capacity: usize) {
        let mut buffer = vec![0; capacity.max(self.waiting() + 1)].into_boxed_slice();
        buffer[..self.waiting()].copy_from_slice(&self.buffer[self.start..self.end]);
        (self.buffer, self.end, self.start) = (buffer, self.waiting(), 0);
    }

    /// Where to receive the next bytes; never empty once [`FrameDecoder::next`] returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 && self.end > self.buffer.len() / 2 {
            // Move the half frame to the front once the back half is in use, not at every receive.
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// Says that the first `len` bytes of [`FrameDecoder::space`] were filled.
    pub fn received(&mut self, len: usize) {
        assert!(len <= self.buffer.len() - self.end, "more bytes received than there was space for");
        self.end += len;
    }

    /// Bytes that wait for the rest of their frame.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.end - self.start
    }

    /// The next whole frame, if there is one. An error ends the connection: bytes after it mean nothing.
    #[expect(clippy::should_implement_trait, reason = "frames borrow from the decoder")]
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        if self.preamble_left > 0 {
            self.take_preamble()?;
        }
        let waiting = &self.buffer[self.start..self.end];
        if self.is_first && self.preamble_left == 0 {
            check_first_bytes(self.side, waiting)?;
        }
        let Some(header) = waiting.first_chunk::<HEADER_SIZE>().filter(|_| self.preamble_left == 0) else {
            return Ok(None);
        };
        let header = FrameHeader::decode(header, self.buffer.len() - HEADER_SIZE)?;
        let payload_start = self.start + HEADER_SIZE;
        let payload_end = payload_start + header.payload_len as usize;
        if payload_end > self.end {
            return Ok(None);
        }
        self.is_first = false;
        self.start = payload_end;
        let payload = &self.buffer[payload_start..payload_end];
        if header.kind != Kind::SlotBatch {
            let wanted = crc32fast::hash(payload);
            if header.payload_crc != wanted {
                return Err(FrameError::PayloadChecksum { found: header.payload_crc, wanted });
            }
        }
        Ok(Some(Frame { kind: header.kind, flags: header.flags, epoch: header.epoch, payload }))
    }

    fn take_preamble(&mut self) -> Result<(), FrameError> {
        let waiting = &self.buffer[self.start..self.end];
        let wanted = &PREAMBLE[PREAMBLE.len() - self.preamble_left..];
        let differs = waiting.iter().zip(wanted).position(|(found, wanted)| found != wanted);
        if let Some(at) = differs {
            return Err(foreign_client(waiting, at));
        }
        // Keep a preamble that is not whole: a later byte may show that it is none, and then its
        // first bytes tell what it is.
        if waiting.len() >= self.preamble_left {
            self.start += self.preamble_left;
            self.preamble_left = 0;
        }
        Ok(())
    }
}

fn foreign_client(waiting: &[u8], at: usize) -> FrameError {
    let http = [&b"GET "[..], b"HEAD ", b"POST ", b"PUT ", b"OPTIONS "];
    match waiting[0] {
        0x16 => FrameError::Tls,
        _ if http.iter().any(|verb| waiting.starts_with(verb)) => FrameError::HttpClient,
        b'*' | b'A'..=b'Z' | b'a'..=b'z' => FrameError::RedisClient,
        _ => FrameError::Preamble { found: waiting[at] },
    }
}

/// Explains a server that is none of ours by its first bytes, before a whole header has arrived.
fn check_first_bytes(side: Side, waiting: &[u8]) -> Result<(), FrameError> {
    let Some(first) = waiting.first_chunk::<4>() else { return Ok(()) };
    if side == Side::Leader {
        return Ok(());
    }
    // Four bytes of text make a length above any limit, and the header of a TLS record one that no
    // first frame has, so no frame of ours is mistaken for another protocol.
    let found = u32::from_le_bytes(*first);
    match first {
        b"HTTP" => Err(FrameError::HttpServer),
        [0x15 | 0x16, 3, 1..=4, _] => Err(FrameError::Tls),
        _ if found as usize <= PAYLOAD_SIZE_MAX => Ok(()),
        [b'-' | b'+' | b'$' | b'*' | b':' | b'%', ..] => Err(FrameError::RedisServer),
        _ => Err(FrameError::Length { found, wanted: PAYLOAD_SIZE_MAX }),
    }
}

/// Appends a control message's frame: `write_payload` appends the payload to the buffer it gets.
pub fn push_frame(target: &mut Vec<u8>, kind: Kind, epoch: u64, write_payload: impl FnOnce(&mut Vec<u8>)) {
    let header_at = target.len();
    target.extend_from_slice(&[0; HEADER_SIZE]);
    write_payload(target);
    let payload = &target[header_at + HEADER_SIZE..];
    let header = FrameHeader {
        payload_len: payload_len(payload.len()),
        kind,
        flags: 0,
        epoch,
        payload_crc: crc32fast::hash(payload),
    };
    target[header_at..header_at + HEADER_SIZE].copy_from_slice(&header.encode());
}

/// A SlotBatch's header. The images carry checksums of their own.
#[must_use]
pub fn batch_header(flags: u8, epoch: u64, payload_size: usize) -> [u8; HEADER_SIZE] {
    let payload_len = payload_len(payload_size);
    FrameHeader { payload_len, kind: Kind::SlotBatch, flags, epoch, payload_crc: 0 }.encode()
}

/// Makes a SlotBatch of records that stand behind room for a header, so that they need no copy; the payload's size.
pub fn end_batch(out: &mut [u8], flags: u8, epoch: u64) -> usize {
    let payload_size = out.len() - HEADER_SIZE;
    out[..HEADER_SIZE].copy_from_slice(&batch_header(flags, epoch, payload_size));
    payload_size
}

/// A payload's size as the header states it.
pub(super) fn payload_len(bytes: usize) -> u32 {
    assert!(bytes <= PAYLOAD_SIZE_MAX, "payload of {bytes} bytes");
    #[expect(clippy::cast_possible_truncation, reason = "checked above")]
    let len = bytes as u32;
    len
}
