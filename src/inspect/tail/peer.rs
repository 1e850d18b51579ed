//! The other side of an exported feed: lines from it, bytes to it, and nothing waited for without an end.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};

use crate::stop::Stop;

/// How long a system call may wait before the stop signal is looked at.
const TICK: Duration = Duration::from_millis(200);
/// A peer that takes no byte for so long is given up; one that takes a few is only slow.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Bytes that are kept for a peer that speaks and does not listen.
const PULLED_MAX: usize = 128 << 10;
/// Silence after which the system asks whether the peer's machine is there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A connected peer.
pub(super) struct Peer {
    stream: TcpStream,
    /// Read and not taken yet: a line at most and what came with its end, or what came while it took nothing.
    read: Vec<u8>,
}

impl Peer {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(TICK))?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3).with_retries(3);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(Self { stream, read: Vec::new() })
    }

    /// Sends all of it, as slowly as the peer takes it.
    pub(super) fn send(&mut self, mut bytes: &[u8], stop: &Stop) -> io::Result<()> {
        let mut taken = Instant::now();
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    bytes = &bytes[count..];
                    taken = Instant::now();
                }
                Err(error) if !is_pause(&error) => return Err(error),
                Err(_) if stop.is_set() => {
                    return Err(io::Error::new(io::ErrorKind::Interrupted, "told to stop"));
                }
                Err(_) if taken.elapsed() > SILENCE_MAX => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "it takes nothing any more"));
                }
                // It may wait for us to read before it reads on.
                Err(_) => self.pull()?,
            }
        }
        Ok(())
    }

    /// Takes what has come while there is room for it. Its end is found by who wants a line.
    fn pull(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        self.stream.set_nonblocking(true)?;
        while self.read.len() < PULLED_MAX {
            match self.stream.read(&mut bytes) {
                Ok(count) if count > 0 => self.read.extend_from_slice(&bytes[..count]),
                _ => break,
            }
        }
        self.stream.set_nonblocking(false)
    }

    /// A line that has come, without its end.
    pub(super) fn line(&mut self, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
        self.stream.set_nonblocking(true)?;
        let line = self.read_line(bytes_max);
        self.stream.set_nonblocking(false)?;
        line
    }

    /// The next line, without its end, if it comes before the deadline.
    pub(super) fn line_by(
        &mut self,
        deadline: Instant,
        bytes_max: usize,
        stop: &Stop,
    ) -> io::Result<Vec<u8>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || stop.is_set() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no line in time"));
            }
            self.stream.set_read_timeout(Some(left.min(TICK)))?;
            if let Some(line) = self.read_line(bytes_max)? {
                return Ok(line);
            }
        }
    }

    fn read_line(&mut self, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.read.drain(..=end).collect();
                line.truncate(line.trim_ascii_end().len());
                return Ok(Some(line));
            }
            if self.read.len() > bytes_max {
                let error = format!("found a line of more than {bytes_max} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has hung up")),
                Ok(count) => {
                    self.read.extend_from_slice(&bytes[..count]);
                    if !bytes[..count].contains(&b'\n') {
                        // The deadline counts for who sends a byte now and then, too.
                        return Ok(None);
                    }
                }
                Err(error) if is_pause(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

/// A time-out of one system call, which says nothing yet.
fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (Peer, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let other = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
        let (own, _) = listener.accept().expect("a connection");
        for stream in [&own, &other] {
            SockRef::from(stream).set_recv_buffer_size(4096).expect("a socket");
            SockRef::from(stream).set_send_buffer_size(4096).expect("a socket");
        }
        (Peer::new(own).expect("a socket"), other)
    }

    #[test]
    fn a_peer_that_speaks_before_it_listens_gets_everything_and_is_heard() {
        let (mut peer, mut other) = pair();
        let lines = 1_000;
        let other = std::thread::spawn(move || {
            // More than the sockets take: this goes on only if it is read meanwhile.
            (0..lines).for_each(|number| writeln!(other, "ACK 0:1-{number:06}").expect("somebody reads"));
            let mut got = 0;
            let mut bytes = [0; 4096];
            while got < 128 << 10 {
                got += other.read(&mut bytes).expect("more");
            }
            other
        });
        peer.send(&vec![b'x'; 128 << 10], &Stop::new()).expect("all is taken in the end");
        let other = other.join().expect("no panic");
        for number in 0..lines {
            let deadline = Instant::now() + Duration::from_secs(30);
            let line = peer.line_by(deadline, 64, &Stop::new()).expect("a line");
            assert_eq!(line, format!("ACK 0:1-{number:06}").into_bytes());
        }
        drop(other);
        let ended = peer.line(64).expect_err("nobody is there");
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_line_is_as_long_as_it_may_be_and_no_longer() {
        let (mut peer, mut other) = pair();
        assert_eq!(peer.line(10).expect("nothing yet"), None);
        other.write_all(b"whole\r\nha").expect("room");
        let deadline = || Instant::now() + Duration::from_secs(30);
        assert_eq!(peer.line_by(deadline(), 10, &Stop::new()).expect("a line"), b"whole");
        let late = peer.line_by(Instant::now() + Duration::from_millis(20), 10, &Stop::new());
        assert_eq!(late.expect_err("half a line").kind(), io::ErrorKind::TimedOut);
        other.write_all(b"lf\nlonger than ten").expect("room");
        assert_eq!(peer.line_by(deadline(), 10, &Stop::new()).expect("a line"), b"half");
        let long = peer.line_by(deadline(), 10, &Stop::new()).expect_err("too long");
        assert!(long.to_string().contains("more than 10 bytes"), "{long}");
        let stop = Stop::new();
        stop.set();
        assert_eq!(
            peer.line_by(deadline(), 99, &stop).expect_err("told to stop").kind(),
            io::ErrorKind::TimedOut
        );
    }
}
