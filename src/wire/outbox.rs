//! Whole frames that wait to be sent, and how much of them is out already.
//!
//! A link has one; it is emptied before the next frame is made, so it holds what one round queued
//! (a scan batch, or a few control messages) and keeps its allocation.

use std::io;

use super::transport::Transport;

/// Frames on their way out.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    /// Whether all is out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Where to append whole frames.
    pub fn frames(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Sends what waits; returns the bytes taken and whether all is out.
    pub fn send(&mut self, transport: &mut impl Transport) -> io::Result<(usize, bool)> {
        if self.bytes.is_empty() {
            return Ok((0, true));
        }
        let taken = match transport.send(&[&self.bytes[self.sent..]]) {
            Ok(taken) => taken,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        self.sent += taken;
        let is_out = self.sent == self.bytes.len();
        if is_out {
            self.bytes.clear();
            self.sent = 0;
        }
        Ok((taken, is_out))
    }
}
