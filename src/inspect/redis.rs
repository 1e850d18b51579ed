//! A small blocking Redis client for `demo`, `bench` and changes of role: pipelines of commands, RESP2 replies.
//!
//! A reply has one deadline, from when it is waited for to its last byte: who sends it in drops is late, too.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest bulk string taken; values of a store are shorter than 64 KiB, INFO is too.
const BULK_BYTES_MAX: i64 = 1 << 20;

/// Longest array taken, and how deep arrays may lie in arrays: XREAD's are not longer or deeper.
const ARRAY_LEN_MAX: i64 = 1 << 20;
const ARRAY_DEPTH_MAX: u32 = 8;

/// A reply of the kinds that `SET`, `GET`, `DBSIZE`, `XREAD` and errors use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// `+OK`.
    Simple(String),
    /// `-ERR ...`.
    Error(String),
    /// `:1`.
    Integer(i64),
    /// A string, or none.
    Bulk(Option<Vec<u8>>),
    /// Replies, or none.
    Array(Option<Vec<Self>>),
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Simple(text) | Self::Error(text) => f.write_str(text),
            Self::Integer(number) => number.fmt(f),
            Self::Bulk(None) | Self::Array(None) => f.write_str("nothing"),
            Self::Array(Some(replies)) => write!(f, "{} replies", replies.len()),
            Self::Bulk(Some(text)) => write!(f, "\"{}\"", text.escape_ascii()),
        }
    }
}

/// A connection whose reads end at a deadline.
struct Timed {
    stream: TcpStream,
    timeout: Duration,
    deadline: Instant,
}

impl Read for Timed {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(target)
    }
}

/// One connection.
pub(super) struct Client {
    stream: BufReader<Timed>,
    request: Vec<u8>,
    line: Vec<u8>,
}

impl Client {
    pub(super) fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::connect_within(address, TIMEOUT)
    }

    /// Connects; that, and each reply, may take `timeout`.
    pub(super) fn connect_within(address: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(timeout))?;
        let deadline = Instant::now() + timeout;
        let stream = BufReader::with_capacity(64 << 10, Timed { stream, timeout, deadline });
        Ok(Self { stream, request: Vec::new(), line: Vec::new() })
    }

    /// Adds a command to the pipeline.
    pub(super) fn queue(&mut self, words: &[&[u8]]) {
        push_header(&mut self.request, b'*', words.len());
        for word in words {
            push_header(&mut self.request, b'$', word.len());
            self.request.extend_from_slice(word);
            self.request.extend_from_slice(b"\r\n");
        }
    }

    /// Sends the pipeline; as many replies are due as commands were queued.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.stream.get_mut().stream.write_all(&self.request)?;
        self.request.clear();
        Ok(())
    }

    /// One command and its reply.
    pub(super) fn call(&mut self, words: &[&[u8]]) -> io::Result<Reply> {
        self.queue(words);
        self.flush()?;
        self.reply()
    }

    /// The next reply.
    pub(super) fn reply(&mut self) -> io::Result<Reply> {
        let timed = self.stream.get_mut();
        timed.deadline = Instant::now() + timed.timeout;
        self.reply_within(ARRAY_DEPTH_MAX)
    }

    fn reply_within(&mut self, depth_max: u32) -> io::Result<Reply> {
        self.line.clear();
        // A reply's first line is short, also an error's.
        (&mut self.stream).take(64 << 10).read_until(b'\n', &mut self.line)?;
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "the other side does not speak RESP");
        let (kind, rest) = match self.line.strip_suffix(b"\r\n").and_then(<[u8]>::split_first) {
            Some(parts) => parts,
            None if self.line.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            None => return Err(bad()),
        };
        let text = std::str::from_utf8(rest).map_err(|_| bad())?;
        match kind {
            b'+' => Ok(Reply::Simple(text.to_owned())),
            b'-' => Ok(Reply::Error(text.to_owned())),
            b':' => Ok(Reply::Integer(text.parse().map_err(|_| bad())?)),
            b'$' => match text.parse::<i64>().map_err(|_| bad())? {
                -1 => Ok(Reply::Bulk(None)),
                len if (0..=BULK_BYTES_MAX).contains(&len) => {
                    let len = usize::try_from(len).map_err(|_| bad())?;
                    let mut bytes = vec![0; len + 2];
                    self.stream.read_exact(&mut bytes)?;
                    bytes.truncate(len);
                    Ok(Reply::Bulk(Some(bytes)))
                }
                _ => Err(bad()),
            },
            b'*' => match text.parse::<i64>().map_err(|_| bad())? {
                -1 => Ok(Reply::Array(None)),
                len if (0..=ARRAY_LEN_MAX).contains(&len) && depth_max > 0 => {
                    let replies = (0..len).map(|_| self.reply_within(depth_max - 1));
                    Ok(Reply::Array(Some(replies.collect::<io::Result<_>>()?)))
                }
                _ => Err(bad()),
            },
            _ => Err(bad()),
        }
    }
}

fn push_header(target: &mut Vec<u8>, kind: u8, number: usize) {
    target.push(kind);
    target.extend_from_slice(number.to_string().as_bytes());
    target.extend_from_slice(b"\r\n");
}
