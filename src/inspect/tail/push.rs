//! `slotstream tail --connect`: sends changes as JSON lines to a program that listens.
//!
//! The sink gets `AUTH token`, where there is a token, a line that says where the lines behind it begin, and then every
//! change. It answers `ACK` and the ids that it has, as a position file holds them, as often as it likes; what it has
//! not acknowledged when a connection breaks comes again on the next one. The position file holds what was
//! acknowledged. With --no-acks, for sinks that never answer, it holds what was handed to the system: what is on
//! its way when a connection breaks is lost then.
//!
//! Nothing is kept here but one of the node's replies on its way: what comes again is read again.

use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::peer::Peer;
use super::token::Token;
use super::{
    AskError, Asked, Places, Start, TIMEOUT, Tail, TailError, begin, complain, push_begin, read,
    read_position, write_position,
};
use crate::follower::back_off::BackOff;
use crate::stop::Stop;

const TICK: Duration = Duration::from_millis(20);
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A connection that lasted so long was a good one: the next attempt comes soon.
const LASTED: Duration = Duration::from_secs(5);
/// Longest position.
const ACK_BYTES_MAX: usize = 128 << 10;

/// Where to send.
#[derive(Debug, Clone)]
pub struct Sink {
    /// `HOST:PORT`.
    pub address: String,
    /// What it is shown.
    pub token: Option<Token>,
    /// Whether it says what it has.
    pub acks: bool,
}

/// Why a connection ended; another one may do better.
#[derive(Debug, thiserror::Error)]
enum PushError {
    #[error("{0}")]
    Sink(#[from] io::Error),
    #[error("the sink answers {found:?}, wanted `ACK` and the ids that it has")]
    Answer { found: String },
    #[error("the sink acknowledges {shard}:{found}, the last that it was sent is {sent}")]
    Ahead { shard: u16, found: u64, sent: u64 },
    #[error(transparent)]
    Node(AskError),
}

impl PushError {
    /// What the next connection cannot mend.
    fn of_node(error: TailError) -> Result<Self, TailError> {
        match error {
            TailError::Ask(error @ AskError::Io { .. }) => Ok(Self::Node(error)),
            error => Err(error),
        }
    }
}

/// Sends changes until `stop` is set.
pub fn run(tail: &Tail, sink: &Sink, stop: &Stop) -> Result<(), TailError> {
    let from = match &tail.position_file {
        Some(path) => read_position(path)?.unwrap_or_else(|| tail.from.clone()),
        None => tail.from.clone(),
    };
    let has = begin(tail, &mut Asked::new(&tail.node, TIMEOUT)?, from)?;
    let path = tail.position_file.clone();
    let tail = Tail { position_file: None, json: true, ..tail.clone() };
    let mut push = Push { tail, path, sink, has };
    push.keep()?;
    let mut back_off = BackOff::new(PAUSE_MIN, PAUSE_MAX, u64::from(std::process::id()));
    while !stop.is_set() {
        let began = Instant::now();
        if let Err(error) = push.connection(stop)? {
            complain(&format!("{}: {error}; trying again", sink.address));
        }
        if began.elapsed() > LASTED {
            back_off.reset();
        }
        let until = Instant::now() + back_off.pause();
        while !stop.is_set() && Instant::now() < until {
            std::thread::sleep(TICK);
        }
    }
    Ok(())
}

struct Push<'a> {
    /// Without the file: what is read is not what the sink has.
    tail: Tail,
    path: Option<PathBuf>,
    sink: &'a Sink,
    /// What the sink has.
    has: Places,
}

impl Push<'_> {
    fn keep(&self) -> Result<(), TailError> {
        self.path.as_ref().map_or(Ok(()), |path| write_position(path, &self.has))
    }

    /// One connection, to its end; the outer error is that of the whole run.
    fn connection(&mut self, stop: &Stop) -> Result<Result<(), PushError>, TailError> {
        // The node first: a sink has nothing of a connection on which nothing can come.
        let mut node = match Asked::new(&self.tail.node, TIMEOUT) {
            Ok(node) => node,
            Err(error) => return PushError::of_node(error.into()).map(Err),
        };
        let mut peer = match self.open(stop) {
            Ok(peer) => peer,
            Err(error) => return Ok(Err(error.into())),
        };
        complain(&format!("{}: connected", self.sink.address));
        let mut sent = self.has.clone();
        let mut lines = Vec::new();
        while !stop.is_set() {
            match read(&self.tail, &mut node, &mut sent, &mut lines) {
                Ok(()) => {}
                Err(error) => return PushError::of_node(error).map(Err),
            }
            let done = peer.send(&lines, stop).map_err(PushError::from);
            lines.clear();
            let done = done.and_then(|()| {
                if self.sink.acks {
                    self.take_acks(&mut peer, &sent)
                } else {
                    drain(&mut peer)?;
                    Ok(self.note(&sent))
                }
            });
            match done {
                Ok(true) => self.keep()?,
                Ok(false) => {}
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }

    fn open(&self, stop: &Stop) -> io::Result<Peer> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        let mut found = None;
        for address in self.sink.address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, TIMEOUT) {
                Ok(stream) => {
                    found = Some(stream);
                    break;
                }
                Err(error) => last = error,
            }
        }
        let mut peer = Peer::new(found.ok_or(last)?)?;
        let mut hello = self.sink.token.as_ref().map(Token::line).unwrap_or_default().into_bytes();
        push_begin(&mut hello, &self.has)?;
        peer.send(&hello, stop)?;
        Ok(peer)
    }

    /// The sink has this much; whether that is more than before.
    fn note(&mut self, places: &Places) -> bool {
        let is_new = self.has != *places;
        if is_new {
            self.has.clone_from(places);
        }
        is_new
    }

    /// What has come of acknowledgements; whether any has.
    fn take_acks(&mut self, peer: &mut Peer, sent: &Places) -> Result<bool, PushError> {
        let mut places = self.has.clone();
        while let Some(line) = peer.line(ACK_BYTES_MAX)? {
            let text = String::from_utf8_lossy(&line);
            let ids = text.strip_prefix("ACK ").and_then(|ids| ids.parse().ok());
            let Some(Start::After(ids)) = ids else {
                return Err(PushError::Answer { found: text.chars().take(64).collect() });
            };
            for (shard, id) in ids.0 {
                match sent.0.get(&shard) {
                    Some(last) if id.seq <= last.seq => drop(places.0.insert(shard, id)),
                    last => {
                        let sent = last.map_or(0, |last| last.seq.0);
                        return Err(PushError::Ahead { shard, found: id.seq.0, sent });
                    }
                }
            }
        }
        Ok(self.note(&places))
    }
}

/// What a sink says that is not asked: nobody needs it, but its end is seen.
fn drain(peer: &mut Peer) -> io::Result<()> {
    while peer.line(ACK_BYTES_MAX)?.is_some() {}
    Ok(())
}
