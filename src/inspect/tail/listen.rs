//! `slotstream tail --listen`: serves changes as JSON lines to programs that connect.
//!
//! A reader sends `AUTH token`, where there is a token, and then `FROM start`, `FROM now` or `FROM` with the ids that
//! it has, as a position file holds them. It is answered with a line that repeats where it begins, and then every
//! change; or with one line that has an `error`, and the end. Whoever comes back says again where it is: nothing is
//! kept for it here.
//!
//! Each reader has a thread and a connection to the node of its own, and at most one of the node's replies on its
//! way. So a slow one asks the node seldom, and gets the newest state of what changed meanwhile.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::peer::Peer;
use super::token::Token;
use super::{AskError, Asked, Start, TIMEOUT, Tail, TailError, begin, complain, push_begin, read};
use crate::stop::Stop;

/// How long a reader may take to say who it is and where it begins.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// Longest line from somebody who has not shown a token.
const AUTH_BYTES_MAX: usize = 2048;
/// Longest position: that of a store with the most shards is shorter.
const FROM_BYTES_MAX: usize = 128 << 10;
/// Between two looks at the stop signal.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// Between attempts to reach a node that went away.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Where to serve, and whom.
#[derive(Debug, Clone)]
pub struct Listen {
    /// The address; port 0 for any.
    pub address: SocketAddr,
    /// What readers must show.
    pub token: Option<Token>,
    /// Readers at one time; more are turned away.
    pub readers_max: usize,
}

/// Why a reader is not served any more.
#[derive(Debug, thiserror::Error)]
enum ReaderError {
    #[error("found {found}, wanted `{wanted}`")]
    Word { found: &'static str, wanted: &'static str },
    #[error("the token is not the one that is set here")]
    Token,
    #[error(transparent)]
    Tail(#[from] TailError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Serves readers until `stop` is set.
pub fn run(tail: &Tail, listen: &Listen, stop: &Stop) -> Result<(), TailError> {
    // A node that is none, or has no such shards, is a mistake of whoever started this, and not of readers.
    begin(tail, &mut Asked::new(&tail.node, TIMEOUT)?, Start::Start)?;
    let listener = TcpListener::bind(listen.address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    let failed = |error| TailError::Listen { address: listen.address, error };
    let listener = listener.map_err(failed)?;
    complain(&format!("listening on {}", listener.local_addr().map_err(failed)?));
    let shared = Arc::new((tail.clone(), listen.clone()));
    let mut readers: Vec<JoinHandle<()>> = Vec::new();
    while !stop.is_set() {
        let mut ready = [PollFd::new(&listener, PollFlags::IN)];
        if poll(&mut ready, Some(&TICK)).is_ok_and(|ready| ready == 0) {
            continue;
        }
        readers.retain(|reader| !reader.is_finished());
        match listener.accept() {
            Ok((stream, address)) if readers.len() >= listen.readers_max => {
                complain(&format!("reader {address}: turned away, {} are served", readers.len()));
                drop(Peer::new(stream).map(|mut peer| say(&mut peer, "too many readers", stop)));
            }
            Ok((stream, address)) => {
                let (shared, stop) = (Arc::clone(&shared), stop.clone());
                let run = move || serve(stream, address, &shared.0, &shared.1, &stop);
                match std::thread::Builder::new().name("tail-reader".to_owned()).spawn(run) {
                    Ok(reader) => readers.push(reader),
                    Err(error) => complain(&format!("reader {address}: {error}")),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                complain(&format!("cannot accept a reader: {error}"));
                // Out of descriptors, perhaps: time for some to come back.
                std::thread::sleep(RETRY_INTERVAL);
            }
        }
    }
    for reader in readers {
        if reader.join().is_err() {
            complain("a reader's thread panicked");
        }
    }
    Ok(())
}

fn serve(stream: TcpStream, address: SocketAddr, tail: &Tail, listen: &Listen, stop: &Stop) {
    let mut peer = match Peer::new(stream) {
        Ok(peer) => peer,
        Err(error) => return complain(&format!("reader {address}: {error}")),
    };
    let ended = greet(&mut peer, listen, stop).and_then(|from| {
        complain(&format!("reader {address}: begins"));
        feed(&mut peer, tail, from, stop)
    });
    let Err(error) = ended else { return };
    complain(&format!("reader {address}: {error}"));
    if !matches!(&error, ReaderError::Io(error) if error.kind() != io::ErrorKind::InvalidData) {
        say(&mut peer, &error.to_string(), stop);
    }
}

/// The last line that a reader gets, if it takes it.
fn say(peer: &mut Peer, error: &str, stop: &Stop) {
    let line = serde_json::json!({ "error": error });
    drop(peer.send(format!("{line}\n").as_bytes(), stop));
}

/// Where a reader begins, once it has shown that it may.
fn greet(peer: &mut Peer, listen: &Listen, stop: &Stop) -> Result<Start, ReaderError> {
    let deadline = Instant::now() + HELLO_WITHIN;
    if let Some(token) = &listen.token {
        let line = peer.line_by(deadline, AUTH_BYTES_MAX, stop)?;
        let given = line.strip_prefix(b"AUTH ");
        let given = given.ok_or(ReaderError::Word { found: "another line", wanted: "AUTH token" })?;
        if !token.is(given) {
            return Err(ReaderError::Token);
        }
    }
    let line = peer.line_by(deadline, FROM_BYTES_MAX, stop)?;
    let from = line.strip_prefix(b"FROM ").ok_or_else(|| {
        // A token is nobody's business who reads messages.
        let found = if line.starts_with(b"AUTH ") { "a token, and none is set here" } else { "another line" };
        ReaderError::Word { found, wanted: "FROM start, now or the ids that you have" }
    })?;
    let from = String::from_utf8_lossy(from).parse::<Start>().map_err(TailError::from)?;
    Ok(from)
}

fn feed(peer: &mut Peer, tail: &Tail, from: Start, stop: &Stop) -> Result<(), ReaderError> {
    let mut node = Asked::new(&tail.node, TIMEOUT).map_err(TailError::from)?;
    let mut places = begin(tail, &mut node, from)?;
    let mut lines = Vec::new();
    push_begin(&mut lines, &places)?;
    while !stop.is_set() {
        peer.send(&lines, stop)?;
        lines.clear();
        if peer.line(0)?.is_some() {
            return Err(ReaderError::Word { found: "a line", wanted: "nothing behind FROM" });
        }
        match read(tail, &mut node, &mut places, &mut lines) {
            Ok(()) => {}
            Err(TailError::Ask(AskError::Io { address, error })) => {
                complain(&format!("{address}: {error}; trying again"));
                // What was read of the reply is not sent: it comes again.
                match again(peer, tail, stop)? {
                    Some(connected) => node = connected,
                    None => break,
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Connects to the node again, for as long as the reader is there; `None` = told to stop.
fn again(peer: &mut Peer, tail: &Tail, stop: &Stop) -> Result<Option<Asked>, ReaderError> {
    while !stop.is_set() {
        if let Ok(node) = Asked::new(&tail.node, TIMEOUT) {
            return Ok(Some(node));
        }
        peer.line(0)?;
        std::thread::sleep(RETRY_INTERVAL);
    }
    Ok(None)
}
