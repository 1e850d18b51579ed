//! The little that a link needs of a connection: bytes out, bytes in, never waiting.
//!
//! A socket and the simulator's network both implement it. `WouldBlock` means "not now".

use std::io::{self, IoSlice, Read, Write};

/// Runs of bytes that one [`Transport::send`] takes.
pub const PARTS_MAX: usize = 4;

/// A nonblocking byte stream.
pub trait Transport {
    /// Sends the parts one behind the other; returns how many bytes were taken, at least one.
    fn send(&mut self, parts: &[&[u8]]) -> io::Result<usize>;
    /// Receives into `target`; 0 = the peer has closed.
    fn receive(&mut self, target: &mut [u8]) -> io::Result<usize>;
}

impl Transport for mio::net::TcpStream {
    fn send(&mut self, parts: &[&[u8]]) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); PARTS_MAX];
        assert!(parts.len() <= PARTS_MAX, "{} parts", parts.len());
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        retry(|| self.write_vectored(&slices[..parts.len()]))
    }

    fn receive(&mut self, target: &mut [u8]) -> io::Result<usize> {
        retry(|| self.read(target))
    }
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
