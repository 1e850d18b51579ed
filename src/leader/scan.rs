//! Phase 1: batches of slots above a seq, as many as the Ack window allows.

use std::time::Duration;

use crate::clock::Now;
use crate::links::LinkCell;
use crate::planted::{Bug, is_planted};
use crate::slot::image::RECORD_HEADER_SIZE;
use crate::slot::{Geometry, Seq, ShardIndex, SlotIndex};
use crate::store::{Scan, Store};
use crate::wire::frame::{FLAG_SCAN, HEADER_SIZE, PAYLOAD_SIZE_MAX, end_batch};
use crate::wire::message::ScanPlace;
use crate::wire::window::AckWindow;

use super::Options;
use super::link::LinkError;

/// How often a running scan says how far it is.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// Steps of [`Store::scan_next`] in one go: bounds the time other links wait where little has changed.
const STEPS_MAX: usize = 4;

/// What a scan is to send.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScanRange {
    /// Slots above this seq are sent.
    pub(super) since: Seq,
    /// The stream goes on behind this seq.
    pub(super) through: Seq,
    /// Where an earlier scan was cut off: slots before it hold more than the others.
    pub(super) place: Option<ScanPlace>,
}

/// A scan under way.
#[derive(Debug)]
pub(super) struct ScanSender {
    shard: ShardIndex,
    scan: Scan,
    /// The scan went on in the middle: the slots before that come last.
    rest: Option<ScanPlace>,
    /// The stream goes on behind this seq once the scan is through.
    pub(super) through: Seq,
    slots_total: u64,
    bytes: u64,
    started: Duration,
    reported: Duration,
}

/// What a step of a scan came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ScanStep {
    /// A batch was appended to the outbox.
    Batch,
    /// The window is full; an Ack will open it.
    Wait,
    /// Nothing to send yet, and more slots to look at.
    Again,
    /// The slots behind the place where the scan went on are through: all slots hold more than before.
    Half,
    /// Every slot was looked at.
    Through,
}

impl ScanSender {
    pub(super) fn new(store: &Store, shard: ShardIndex, range: ScanRange, now: Now) -> Self {
        let ScanRange { since, through, place } = range;
        let mut scan = store.scan(shard, since);
        if let Some(place) = place {
            let next = if is_planted(Bug::ResumedTooFar) { SlotIndex(place.next.0 + 1) } else { place.next };
            scan.next = next.min(scan.end);
        }
        Self {
            shard,
            scan,
            rest: place.filter(|_| !is_planted(Bug::RestForgotten)),
            through,
            slots_total: store.extent(shard).0.into(),
            bytes: 0,
            started: now.monotonic,
            reported: now.monotonic,
        }
    }

    pub(super) fn publish(&self, cell: &LinkCell) {
        use std::sync::atomic::Ordering::Relaxed;
        cell.scan_since.store(self.scan.since.0, Relaxed);
        cell.scan_slots.store(u64::from(self.scan.next.0), Relaxed);
        cell.scan_slots_total.store(self.slots_total, Relaxed);
    }

    /// Slots above this seq are sent.
    pub(super) fn since(&self) -> Seq {
        self.scan.since
    }

    /// Slots sent so far.
    pub(super) fn slots_sent(&self) -> u64 {
        self.scan.slots_sent
    }

    /// Appends the next batch, as a whole frame, to `out`, which is empty.
    pub(super) fn step(
        &mut self,
        store: &Store,
        options: &Options,
        window: &mut AckWindow,
        epoch: u64,
        out: &mut Vec<u8>,
    ) -> Result<ScanStep, LinkError> {
        assert!(out.is_empty(), "a batch starts an empty outbox");
        let payload_max = payload_size_max(&store.geometry(), options.scan_batch_bytes_max);
        if !window.admits(payload_max, options.ack_window_bytes_max) {
            return Ok(ScanStep::Wait);
        }
        // The scan writes behind the room for the header: no copy afterwards.
        out.extend_from_slice(&[0; HEADER_SIZE]);
        let bytes_max = HEADER_SIZE + payload_max - RECORD_HEADER_SIZE;
        let mut is_through = false;
        for _ in 0..STEPS_MAX {
            let len = out.len();
            is_through = !store
                .scan_next(self.shard, &mut self.scan, out, bytes_max)
                .map_err(|(slot, error)| LinkError::Slot { shard: self.shard, slot, error })?;
            let is_full =
                out.len() > HEADER_SIZE && out.len() + store.geometry().image_size_max() > bytes_max;
            if is_through || is_full || (out.len() == len && len > HEADER_SIZE) {
                break;
            }
        }
        if out.len() == HEADER_SIZE {
            out.clear();
            if !is_through {
                return Ok(ScanStep::Again);
            }
            let Some(place) = self.rest.take() else { return Ok(ScanStep::Through) };
            let (since, end) = (place.through, place.next.min(self.scan.end));
            self.scan = Scan { since, next: SlotIndex(0), end, slots_sent: self.scan.slots_sent };
            return Ok(ScanStep::Half);
        }
        let payload = end_batch(out, FLAG_SCAN, epoch) as u64;
        window.sent(payload);
        self.bytes += payload;
        Ok(ScanStep::Batch)
    }

    /// Says in the log how far the scan is, if it is time to.
    pub(super) fn report(&mut self, cell: &LinkCell, now: Now) {
        if now.monotonic.saturating_sub(self.reported) < REPORT_INTERVAL {
            return;
        }
        self.reported = now.monotonic;
        let seconds = now.monotonic.saturating_sub(self.started).as_secs_f64().max(0.001);
        let seen = u64::from(self.scan.next.0);
        #[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
        let left = self.slots_total.saturating_sub(seen) as f64 * seconds / (seen.max(1) as f64);
        #[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
        let rate = self.bytes as f64 / seconds / 1e6;
        tracing::info!(
            shard = self.shard.0,
            follower = %cell.follower,
            since = self.scan.since.0,
            slots = seen,
            slots_total = self.slots_total,
            bytes = self.bytes,
            "scan: {rate:.1} MB/s, {left:.0} s left"
        );
    }

    /// Says in the log that the scan is through, if it was worth a line.
    pub(super) fn report_end(&self, cell: &LinkCell, now: Now) {
        let elapsed = now.monotonic.saturating_sub(self.started);
        if self.scan.since == Seq::ZERO || elapsed >= REPORT_INTERVAL {
            tracing::info!(
                shard = self.shard.0,
                follower = %cell.follower,
                since = self.scan.since.0,
                slots = self.scan.slots_sent,
                bytes = self.bytes,
                "scan done in {:.3} s",
                elapsed.as_secs_f64()
            );
        }
    }
}

/// Payload of a batch: what the options say, but always room for one record.
pub(super) fn payload_size_max(geometry: &Geometry, wanted: usize) -> usize {
    wanted.max(RECORD_HEADER_SIZE + geometry.image_size_max()).min(PAYLOAD_SIZE_MAX)
}
const _: () = assert!(
    RECORD_HEADER_SIZE
        + crate::slot::layout::HEADER_SIZE
        + crate::slot::layout::KEY_SIZE_MAX as usize
        + crate::slot::layout::VALUE_SIZE_MAX as usize
        <= PAYLOAD_SIZE_MAX
);
