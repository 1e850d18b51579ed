//! Phase 1's source: the slots whose seq is above a bound, block by block.
//!
//! A step holds the shard's lock for a bounded number of slots and bytes; writers run in between.

use crate::slot::image::{Image, push_record};
use crate::slot::layout::HEADER_SIZE;
use crate::slot::{Seq, SlotError, SlotIndex, Status};

use super::{BLOCK_SLOTS, Shard};

// Blocks looked at under one lock: a few microseconds where nothing changed.
const STEP_BLOCKS_MAX: u32 = 4096;
const STEP_SLOTS_MAX: u32 = 1024;
// How far ahead of a changed block the next one is looked for.
const AHEAD_BLOCKS_MAX: u32 = 64;
const AHEAD_CHANGED: usize = 4;

/// A scan's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// Slots above this seq are sent.
    pub since: Seq,
    /// Where to go on.
    pub next: SlotIndex,
    /// One behind the last slot to look at; what was formatted later is in the ring.
    pub end: SlotIndex,
    /// Slots sent so far.
    pub slots_sent: u64,
}

impl Shard {
    /// Begins a scan of the slots above `since`.
    #[must_use]
    pub fn scan(&self, since: Seq) -> Scan {
        Scan { since, next: SlotIndex(0), end: SlotIndex(self.slots_formatted()), slots_sent: 0 }
    }

    /// Appends the record of a slot as it is, a free one if there is no such slot.
    pub fn push_slot(&self, slot: SlotIndex, out: &mut Vec<u8>) -> Result<(), SlotError> {
        if slot.0 < self.slots_formatted() {
            push_record(out, slot, self.view(slot)?.image());
            return Ok(());
        }
        let free = Image { seq: Seq::ZERO, status: Status::Free, expire_at: 0, key: &[], value: &[] };
        let mut image = [0; HEADER_SIZE];
        free.write(self.shard(), slot, &mut image);
        push_record(out, slot, &image);
        Ok(())
    }

    /// Appends records to `out`, at most `bytes_max` in all (but at least one record, if there is
    /// one to send). False: the scan is through. A damaged slot ends it: it is never sent.
    pub fn scan_next(
        &self,
        scan: &mut Scan,
        out: &mut Vec<u8>,
        bytes_max: usize,
    ) -> Result<bool, (SlotIndex, SlotError)> {
        let (mut blocks, mut slots, mut ahead) = (0, 0, 0);
        while scan.next < scan.end {
            let block = scan.next.0 / BLOCK_SLOTS;
            let block_end = SlotIndex(((block + 1) * BLOCK_SLOTS).min(scan.end.0));
            if self.derived.digest.block(scan.next) <= scan.since.0 {
                scan.next = block_end;
                blocks += 1;
                if blocks == STEP_BLOCKS_MAX {
                    return Ok(true);
                }
                continue;
            }
            if ahead <= block {
                ahead = (0..AHEAD_CHANGED).fold(block + 1, |ahead, _| self.prefetch_changed(scan, ahead));
            }
            ahead = self.prefetch_changed(scan, ahead);
            while scan.next < block_end {
                if !out.is_empty() && out.len() + self.geometry().image_size_max() > bytes_max {
                    return Ok(true);
                }
                let slot = scan.next;
                self.scan_slot(scan, slot, out)?;
                scan.next = SlotIndex(slot.0 + 1);
            }
            slots += BLOCK_SLOTS;
            if slots >= STEP_SLOTS_MAX {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Prefetches the first changed block in a range, so that its lines come while the one before it is
    /// checked; returns the block behind it.
    fn prefetch_changed(&self, scan: &Scan, from: u32) -> u32 {
        let until = (from + AHEAD_BLOCKS_MAX).min(scan.end.0.div_ceil(BLOCK_SLOTS));
        let Some(block) = (from..until)
            .find(|block| self.derived.digest.block(SlotIndex(*block * BLOCK_SLOTS)) > scan.since.0)
        else {
            return until.max(from);
        };
        let slots = block * BLOCK_SLOTS..((block + 1) * BLOCK_SLOTS).min(scan.end.0);
        slots.for_each(|slot| self.slots.prefetch(SlotIndex(slot)));
        block + 1
    }

    #[inline]
    fn scan_slot(
        &self,
        scan: &mut Scan,
        slot: SlotIndex,
        out: &mut Vec<u8>,
    ) -> Result<(), (SlotIndex, SlotError)> {
        // Checked before its seq is believed: a damaged seq must not make a changed slot look unchanged.
        let view = self.view(slot).map_err(|error| (slot, error))?;
        if view.status() != Status::Free && view.seq() > scan.since {
            push_record(out, slot, view.image());
            scan.slots_sent += 1;
        }
        Ok(())
    }
}
