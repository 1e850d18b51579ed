//! What a follower gives back to its leader that lost it in a crash: slots above a seq, as a leader's scan.
//!
//! Nothing else changes the shard meanwhile: its only writer is this link, which has no Welcome yet. Always
//! true: what is sent and not acknowledged is at most the window, or one batch.

use crate::slot::ShardIndex;
use crate::slot::image::RECORD_HEADER_SIZE;
use crate::store::{Progress, Scan, Store};
use crate::wire::frame::{FLAG_SCAN, FrameHeader, HEADER_SIZE, Kind, payload_len};
use crate::wire::message::{Ack, Regain, ScanDone, regain_payload_size_max};

use super::link::LinkError;

/// A scan on its way to the leader.
#[derive(Debug)]
pub(super) struct Lender {
    shard: ShardIndex,
    scan: Scan,
    progress: Progress,
    window_bytes: u64,
    sent_bytes: u64,
    acked_bytes: u64,
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
        Self { shard, scan, progress, window_bytes, sent_bytes: 0, acked_bytes: 0, is_through: false }
    }

    /// Takes an Ack.
    pub(super) fn acked(&mut self, ack: Ack) -> Result<(), LinkError> {
        let found = ack.received_bytes;
        if found < self.acked_bytes || found > self.sent_bytes {
            return Err(LinkError::AckBytes { found, sent: self.sent_bytes });
        }
        self.acked_bytes = found;
        Ok(())
    }

    /// Appends the next batch, or the end, to `out`, which is empty; nothing while the window is full, or
    /// all is out.
    pub(super) fn next(&mut self, store: &Store, epoch: u64, out: &mut Vec<u8>) -> Result<(), LinkError> {
        let window = usize::try_from(self.window_bytes).unwrap_or(usize::MAX);
        let payload_max = regain_payload_size_max(&store.geometry(), window);
        let unacked = self.sent_bytes - self.acked_bytes;
        if self.is_through || (unacked > 0 && unacked + payload_max as u64 > self.window_bytes) {
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
        let payload = out.len() - HEADER_SIZE;
        let header = FrameHeader {
            payload_len: payload_len(payload),
            kind: Kind::SlotBatch,
            flags: FLAG_SCAN,
            epoch,
            payload_crc: 0,
        };
        out[..HEADER_SIZE].copy_from_slice(&header.encode());
        self.sent_bytes += payload as u64;
        Ok(())
    }
}
