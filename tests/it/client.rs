//! A small RESP2 client for tests, which can also send what no client would.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::harness::PATIENCE;

/// A TCP connection whose reads and writes fail after [`PATIENCE`].
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)
        .unwrap_or_else(|error| panic!("connect to {address}: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).expect("socket option");
    stream.set_write_timeout(Some(PATIENCE)).expect("socket option");
    stream.set_nodelay(true).expect("socket option");
    stream
}

/// A RESP2 reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Self>),
}

impl Reply {
    /// The text of a bulk or simple string.
    #[track_caller]
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Simple(text) | Self::Error(text) => text.clone(),
            other => panic!("wanted a string, found {other:?}"),
        }
    }
}

/// A small RESP2 client that can also send what no client would.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects; panics if nobody listens.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self { stream: BufReader::with_capacity(1 << 16, connect(address)) }
    }

    /// Connects, or says that nobody listens.
    pub(crate) fn try_connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::with_capacity(1 << 16, stream) })
    }

    /// Sends one command and reads its reply.
    #[track_caller]
    pub(crate) fn call(&mut self, words: &[&str]) -> Reply {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.try_call(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// As [`Client::call`], for a server that may be killed meanwhile.
    pub(crate) fn try_call(&mut self, words: &[&[u8]]) -> std::io::Result<Reply> {
        let mut request = Vec::new();
        encode(&mut request, words);
        self.send(&request)?;
        self.reply()
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Reads one reply.
    pub(crate) fn reply(&mut self) -> std::io::Result<Reply> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        let bad = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
        let Some((kind, rest)) = line.strip_suffix(b"\r\n").and_then(<[u8]>::split_first) else {
            return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "connection closed"));
        };
        let rest = std::str::from_utf8(rest).map_err(|_| bad("not UTF-8"))?;
        let number = || rest.parse::<i64>().map_err(|_| bad("not a number"));
        Ok(match kind {
            b'+' => Reply::Simple(rest.to_owned()),
            b'-' => Reply::Error(rest.to_owned()),
            b':' => Reply::Integer(number()?),
            b'$' => match usize::try_from(number()?) {
                Err(_) => Reply::Nil,
                Ok(len) => {
                    let mut bytes = vec![0; len + 2];
                    self.stream.read_exact(&mut bytes)?;
                    bytes.truncate(len);
                    Reply::Bulk(bytes)
                }
            },
            b'*' => match usize::try_from(number()?) {
                Err(_) => Reply::Nil,
                Ok(len) => Reply::Array((0..len).map(|_| self.reply()).collect::<Result<_, _>>()?),
            },
            other => return Err(bad(&format!("reply of type {:?}", char::from(*other)))),
        })
    }
}

/// Appends a command as an array of bulk strings.
pub(crate) fn encode(target: &mut Vec<u8>, words: &[&[u8]]) {
    target.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        target.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        target.extend_from_slice(word);
        target.extend_from_slice(b"\r\n");
    }
}
