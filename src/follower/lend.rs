//! What a follower gives back to its leader that lost it in a crash: slots above a seq, as a leader's scan.
//!
//! Nothing else changes the shard meanwhile: its only writer is this link, which has no Welcome yet.

use crate::slot::ShardIndex;
use crate::slot::image::RECORD_HEADER_SIZE;
use crate::store::{Progress, Scan, Store};
use crate::wire::frame::{FLAG_SCAN, HEADER_SIZE, end_batch};
use crate::wire::message::{Ack, Regain, ScanDone, regain_payload_size_max};
use crate::wire::window::AckWindow;

use super::link::LinkError;

/// A scan on its way to the leader.
#[derive(Debug)]
pub(super) struct Lender {
    shard: ShardIndex,
    scan: Scan,
    progress: Progress,
    window_bytes: u64,
    window: AckWindow,
    is_through: bool,
}

impl Lender {
    pub(super) fn new(store: &Store, shard: ShardIndex, regain: Regain) -> Self {
        let Regain { since, next, window_bytes } = regain;
        let progress = store.progress(shard);
        tracing::info!(
            %shard,
            since = since.0,
            next = next.0,
            watermark = progress.seq.0,
            "the leader lost writes in a crash: it gets back what is here"
        );
        let mut scan = store.scan(shard, since);
        scan.next = next;
        Self { shard, scan, progress, window_bytes, window: AckWindow::default(), is_through: false }
    }

    /// Takes an Ack.
    pub(super) fn acked(&mut self, ack: Ack) -> Result<(), LinkError> {
        Ok(self.window.acked(ack.received_bytes)?)
    }

    /// Appends the next batch, or the end, to `out`, which is empty; nothing while the window is full, or
    /// all is out.
    pub(super) fn next(&mut self, store: &Store, epoch: u64, out: &mut Vec<u8>) -> Result<(), LinkError> {
        let window = usize::try_from(self.window_bytes).unwrap_or(usize::MAX);
        let payload_max = regain_payload_size_max(&store.geometry(), window);
        if self.is_through || !self.window.admits(payload_max, self.window_bytes) {
            return Ok(());
        }
        assert!(out.is_empty(), "a batch starts an empty outbox");
        // The scan writes behind the room for the header: no copy afterwards.
        out.extend_from_slice(&[0; HEADER_SIZE]);
        let bytes_max = HEADER_SIZE + payload_max - RECORD_HEADER_SIZE;
        let mut has_more = true;
        while has_more && out.len() + store.geometry().image_size_max() <= bytes_max {
            let step = store.scan_next(self.shard, &mut self.scan, out, bytes_max);
            has_more = step.map_err(|(slot, error)| LinkError::Slot { slot, error })?;
        }
        if out.len() == HEADER_SIZE {
            out.clear();
            let Progress { seq: through, consistent_at, .. } = self.progress;
            ScanDone { through, consistent_at }.push(out, epoch);
            self.is_through = true;
            return Ok(());
        }
        self.window.sent(end_batch(out, FLAG_SCAN, epoch) as u64);
        Ok(())
    }
}
