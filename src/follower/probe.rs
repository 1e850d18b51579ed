//! Asking a leader who it is, for a follower that has no store yet and must make one of its sizes.
//!
//! Blocks the caller; everything has one deadline, except a name server's answer.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::slot::{Geometry, Seq};
use crate::wire::frame::{FrameDecoder, FrameError, Kind, PREAMBLE, Side};
use crate::wire::message::{Hello, MessageError, Refuse, RefuseCode, SHARD_PROBE, VERSION, Welcome};

const RECEIVE_BUFFER_SIZE: usize = 64 * 1024;

/// What a leader says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderInfo {
    /// Its store's identity, which its followers take over.
    pub store_id: Uuid,
    /// Its store's sizes.
    pub geometry: Geometry,
    /// Its epoch.
    pub epoch: u64,
    /// Where it answers Redis clients; 0 = nowhere.
    pub resp_port: u16,
}

/// Why a leader could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The address means nothing.
    #[error("{address}: {error}")]
    Address {
        /// What was asked for.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// Nobody answers there.
    #[error("{address}: {error}")]
    Connect {
        /// What was asked for.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// Somebody listens there and says nothing.
    #[error("{address}: no answer within {wanted:?}: is this the leader's replication port?")]
    Timeout {
        /// What was asked for.
        address: String,
        /// How long an answer may take.
        wanted: Duration,
    },
    /// Somebody listens there and hangs up.
    #[error("{address}: closed without an answer: is this the leader's replication port?")]
    Closed {
        /// What was asked for.
        address: String,
    },
    /// The answer is no frame.
    #[error("{address}: {error}")]
    Frame {
        /// What was asked for.
        address: String,
        /// What came instead.
        error: FrameError,
    },
    /// The answer is no Welcome.
    #[error("{address}: {error}")]
    Message {
        /// What was asked for.
        address: String,
        /// What is wrong with it.
        error: MessageError,
    },
    /// The answer is another message.
    #[error("{address}: answers with {kind:?}, wanted Welcome")]
    Unexpected {
        /// What was asked for.
        address: String,
        /// What came instead.
        kind: Kind,
    },
    /// The leader does not want us.
    #[error("{address}: {}", refuse.text)]
    Refused {
        /// What was asked for.
        address: String,
        /// Why not.
        refuse: Refuse,
    },
}

impl ProbeError {
    /// Whether asking again changes nothing until somebody acts.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Refused { refuse, .. } => refuse.code.is_permanent(),
            Self::Frame { .. } | Self::Message { .. } | Self::Unexpected { .. } => true,
            Self::Address { error, .. } => error.kind() == io::ErrorKind::InvalidInput,
            Self::Connect { .. } | Self::Timeout { .. } | Self::Closed { .. } => false,
        }
    }
}

/// Asks the leader at `address` (`HOST:PORT`) for its store's identity and sizes.
pub fn probe(address: &str, timeout: Duration) -> Result<LeaderInfo, ProbeError> {
    ask(address, Uuid::nil(), 0, timeout)
}

/// Tells the leader at `address` of an epoch that its store has reached elsewhere.
pub fn tell_epoch(address: &str, store_id: Uuid, epoch: u64, timeout: Duration) -> Result<(), ProbeError> {
    match ask(address, store_id, epoch, timeout) {
        Ok(_) => Ok(()),
        // That is how it says that it has heard.
        Err(ProbeError::Refused { refuse, .. }) if refuse.code == RefuseCode::OldEpoch => Ok(()),
        Err(error) => Err(error),
    }
}

fn ask(address: &str, store_id: Uuid, epoch: u64, timeout: Duration) -> Result<LeaderInfo, ProbeError> {
    let deadline = Instant::now() + timeout;
    let mut stream = connect(address, deadline)?;
    let io_error = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            ProbeError::Timeout { address: address.to_owned(), wanted: timeout }
        }
        _ => ProbeError::Connect { address: address.to_owned(), error },
    };
    stream.set_write_timeout(Some(left(deadline))).map_err(io_error)?;
    stream.write_all(&hello(store_id, epoch)).map_err(io_error)?;
    let mut decoder = FrameDecoder::new(Side::Follower, RECEIVE_BUFFER_SIZE);
    loop {
        match decoder.next() {
            Ok(None) => {}
            Ok(Some(frame)) => {
                let message = |error| ProbeError::Message { address: address.to_owned(), error };
                return match frame.kind {
                    Kind::Welcome => Ok(info(&Welcome::read(&frame).map_err(message)?)),
                    Kind::Refuse => Err(ProbeError::Refused {
                        address: address.to_owned(),
                        refuse: Refuse::read(&frame).map_err(message)?,
                    }),
                    kind => Err(ProbeError::Unexpected { address: address.to_owned(), kind }),
                };
            }
            Err(error) => return Err(ProbeError::Frame { address: address.to_owned(), error }),
        }
        stream.set_read_timeout(Some(left(deadline))).map_err(io_error)?;
        let received = match stream.read(decoder.space()) {
            Ok(0) => return Err(ProbeError::Closed { address: address.to_owned() }),
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(io_error(error)),
        };
        decoder.received(received);
        if Instant::now() >= deadline {
            return Err(ProbeError::Timeout { address: address.to_owned(), wanted: timeout });
        }
    }
}

fn connect(address: &str, deadline: Instant) -> Result<TcpStream, ProbeError> {
    let named = |error| ProbeError::Address { address: address.to_owned(), error };
    let addresses = address.to_socket_addrs().map_err(named)?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for candidate in addresses {
        match TcpStream::connect_timeout(&candidate, left(deadline)) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(ProbeError::Connect { address: address.to_owned(), error: last })
}

/// Never zero, which would mean "for ever".
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

fn hello(store_id: Uuid, epoch: u64) -> Vec<u8> {
    let mut bytes = PREAMBLE.to_vec();
    let hello = Hello {
        version_min: VERSION,
        version_max: VERSION,
        shard: SHARD_PROBE,
        resp_port: 0,
        geometry: None,
        store_id,
        follower_id: Uuid::nil(),
        epoch,
        watermark: Seq::ZERO,
        head: Seq::ZERO,
        scan_place: None,
        asks: false,
        lineage: Vec::new(),
    };
    hello.push(&mut bytes);
    bytes
}

fn info(welcome: &Welcome) -> LeaderInfo {
    LeaderInfo {
        store_id: welcome.store_id,
        geometry: welcome.geometry,
        epoch: welcome.epoch,
        resp_port: welcome.resp_port,
    }
}
