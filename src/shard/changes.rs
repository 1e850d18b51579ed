//! Which slots changed in a range of seqs: what readers of changes are told, a step at a time.

use crate::slot::{Seq, SlotError, SlotIndex, Status};

use super::scan::Scan;
use super::{BLOCK_SLOTS, Shard};

// Summaries and slots looked at under one lock: some microseconds, whether nothing changed or everything.
const STEP_BLOCKS_MAX: u32 = 4096;
const STEP_SLOTS_MAX: u32 = 256;

impl Shard {
    /// Looks on for slots whose last change is above the scan's bound and not above `until`; adds seq and slot
    /// to `found`. False: all were looked at. A damaged slot ends it: it may be one of those.
    pub fn find_changed(
        &self,
        scan: &mut Scan,
        until: Seq,
        found: &mut Vec<(Seq, SlotIndex)>,
    ) -> Result<bool, (SlotIndex, SlotError)> {
        let (mut blocks, mut slots) = (0, 0);
        while scan.next < scan.end {
            let block = scan.next.0 / BLOCK_SLOTS;
            let block_end = SlotIndex(((block + 1) * BLOCK_SLOTS).min(scan.end.0));
            blocks += 1;
            if self.derived.digest.block(scan.next) > scan.since.0 {
                for slot in (scan.next.0..block_end.0).map(SlotIndex) {
                    let view = self.view(slot).map_err(|error| (slot, error))?;
                    if view.status() != Status::Free && view.seq() > scan.since && view.seq() <= until {
                        found.push((view.seq(), slot));
                    }
                }
                slots += BLOCK_SLOTS;
            }
            scan.next = block_end;
            if blocks >= STEP_BLOCKS_MAX || slots >= STEP_SLOTS_MAX {
                return Ok(scan.next < scan.end);
            }
        }
        Ok(false)
    }
}
