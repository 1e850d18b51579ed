//! The Ack window of a scan: how many bytes of batches are on their way to the other end.
//!
//! Always true: what is sent and not acknowledged is at most the window, or one batch. It lives as long as its link.

/// Payload bytes of scan batches, sent and acknowledged.
#[derive(Debug, Default)]
pub struct AckWindow {
    sent_bytes: u64,
    acked_bytes: u64,
}

/// An Ack for bytes that were not sent, or fewer than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Ack counts {found} scan bytes, wanted {acked} to {sent}")]
pub struct AckBytesError {
    /// What the Ack says.
    pub found: u64,
    /// Bytes acknowledged before.
    pub acked: u64,
    /// Bytes sent on this link.
    pub sent: u64,
}

impl AckWindow {
    /// Whether a batch of up to `bytes` may go out.
    #[must_use]
    pub fn admits(&self, bytes: usize, window_bytes_max: u64) -> bool {
        let unacked = self.sent_bytes - self.acked_bytes;
        unacked == 0 || unacked + bytes as u64 <= window_bytes_max
    }

    /// A batch goes out.
    pub fn sent(&mut self, bytes: u64) {
        self.sent_bytes += bytes;
    }

    /// Takes an Ack's count.
    pub fn acked(&mut self, found: u64) -> Result<(), AckBytesError> {
        let Self { sent_bytes: sent, acked_bytes: acked } = *self;
        if found < acked || found > sent {
            return Err(AckBytesError { found, acked, sent });
        }
        self.acked_bytes = found;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_waits_for_acks_of_those_before_it_and_one_may_always_go() {
        let mut window = AckWindow::default();
        assert!(window.admits(100, 10), "the first one, however large");
        window.sent(100);
        assert!(!window.admits(1, 100) && window.admits(1, 101));
        assert_eq!(window.acked(60), Ok(()));
        assert!(window.admits(60, 100) && !window.admits(61, 100));
    }

    #[test]
    fn an_ack_for_what_was_not_sent_or_for_less_than_before_is_refused() {
        let mut window = AckWindow::default();
        window.sent(100);
        assert_eq!(window.acked(101), Err(AckBytesError { found: 101, acked: 0, sent: 100 }));
        assert_eq!(window.acked(60), Ok(()));
        assert_eq!(window.acked(59), Err(AckBytesError { found: 59, acked: 60, sent: 100 }));
        assert_eq!(window.acked(60), Ok(()));
    }
}
