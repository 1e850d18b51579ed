//! One HTTP `GET`, with deadlines and a bounded answer; enough to read a node's `/status`.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);
/// A node with 1,024 shards and 8 followers answers with some 3 MiB.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

const PROTOCOL: &[u8] = b"HTTP/1.";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection, or it broke.
    #[error("{address}: {error}")]
    Io {
        /// What was asked.
        address: String,
        /// What went wrong.
        error: io::Error,
    },
    /// Somebody answered, but not with HTTP.
    #[error("{address} does not speak HTTP; wanted a node's HTTP address")]
    NotHttp {
        /// What was asked.
        address: String,
    },
    /// An HTTP status other than 200.
    #[error("{address}{path} answers {code}, wanted 200")]
    Code {
        /// What was asked.
        address: String,
        /// Path asked for.
        path: String,
        /// What came back.
        code: u16,
    },
    /// Not what a node of this version answers.
    #[error("{address}{path} answers something else than a slotstream node: {error}")]
    Content {
        /// What was asked.
        address: String,
        /// Path asked for.
        path: String,
        /// What went wrong.
        error: String,
    },
}

/// The body of `GET http://address/path`.
pub fn fetch(address: &str, path: &str) -> Result<String, FetchError> {
    let bytes =
        exchange(address, path).map_err(|error| FetchError::Io { address: address.to_owned(), error })?;
    let not_http = || FetchError::NotHttp { address: address.to_owned() };
    let text = String::from_utf8(bytes).map_err(|_| not_http())?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(not_http)?;
    match head.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok()) {
        Some(200) => Ok(body.to_owned()),
        Some(code) => Err(FetchError::Code { address: address.to_owned(), path: path.to_owned(), code }),
        None => Err(not_http()),
    }
}

fn exchange(address: &str, path: &str) -> io::Result<Vec<u8>> {
    let target = address
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))?;
    let mut stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // HTTP/1.0, so that the body comes in one piece and ends with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    // The first bytes show who is there: a Redis port answers too, and then waits for more.
    let mut bytes = vec![0; PROTOCOL.len()];
    let mut read = 0;
    while read < bytes.len() && bytes[..read] == PROTOCOL[..read] {
        match stream.read(&mut bytes[read..])? {
            0 => break,
            more => read += more,
        }
    }
    bytes.truncate(read);
    if bytes == PROTOCOL {
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}
