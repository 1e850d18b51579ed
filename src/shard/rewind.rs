//! Bringing a shard back to where its history and a leader's part, and healing damaged slots.
//!
//! A slot whose seq is above the fork is *astray*: it holds what the leader never had. So is a damaged
//! one. All of them leave the index first, and then get the leader's images, whatever these are.
//! Always true from then on: the index knows no slot that is astray, and of a key in two other slots the
//! newer one; so a key that a dropped write had moved is found where it was.

use std::io;

use crate::planted::{Bug, is_planted};
use crate::slot::{Record, Seq, SlotIndex, SlotView, Status};

use super::{ApplyError, BLOCK_SLOTS, Shard, Step};

/// Slots looked at under one lock.
const STEP_SLOTS_MAX: u32 = 16 << 10;

impl Shard {
    /// Appends the slots astray from `next` on to `astray`, up to `count_max` in all; says where to go
    /// on, `None` when all slots were looked at. Looks at a bounded number of slots.
    pub fn astray(
        &self,
        fork: Seq,
        next: SlotIndex,
        astray: &mut Vec<SlotIndex>,
        count_max: usize,
    ) -> Option<SlotIndex> {
        let end = self.slots_formatted();
        let mut slot = next.0;
        let stop = slot.saturating_add(STEP_SLOTS_MAX).min(end);
        while slot < stop && astray.len() < count_max {
            if self.derived.digest.block(SlotIndex(slot)) <= fork.0 {
                slot = (slot / BLOCK_SLOTS + 1) * BLOCK_SLOTS;
                continue;
            }
            if self.is_astray(SlotIndex(slot), fork) {
                astray.push(SlotIndex(slot));
            }
            slot += 1;
        }
        (slot < end).then_some(SlotIndex(slot))
    }

    fn is_astray(&self, slot: SlotIndex, fork: Seq) -> bool {
        self.view(slot).map_or(true, |view| view.seq() > fork)
    }

    /// Takes slots that are astray out of the index; as [`Shard::reindex`], in steps.
    pub fn unindex(&mut self, fork: Seq, next: SlotIndex) -> Option<SlotIndex> {
        let mut astray = Vec::new();
        let next = self.astray(fork, next, &mut astray, STEP_SLOTS_MAX as usize);
        for slot in astray {
            if is_planted(Bug::IndexKeptInRewind) {
                break;
            }
            if let Some(view) = self.slots.peek(slot).filter(|view| view.status() == Status::Occupied) {
                let hash = self.geometry().place(view.key()).hash;
                // The index may know the key elsewhere, or not at all if the slot is damaged.
                self.derived.index.remove(hash, slot);
            }
        }
        next
    }

    /// Lets the index know the slots that are not astray, which none below `done` is; says where to go on.
    pub fn reindex(&mut self, fork: Seq, done: SlotIndex, next: SlotIndex) -> io::Result<Option<SlotIndex>> {
        let end = self.slots_formatted();
        let stop = next.0.saturating_add(STEP_SLOTS_MAX).min(end);
        for slot in (next.0..stop).map(SlotIndex) {
            if slot >= done && self.is_astray(slot, fork) {
                continue;
            }
            // Copied, since the index is changed while the image is looked at.
            let image = self.slots.bytes(slot).to_vec();
            let geometry = *self.geometry();
            if let Ok(view) = SlotView::check_shape(&geometry, &image)
                && view.status() == Status::Occupied
            {
                self.point_index_at(slot, geometry.place(view.key()).hash, &view)?;
            }
        }
        Ok((stop < end).then_some(SlotIndex(stop)))
    }

    /// Applies an image that the leader was asked for, whatever its seq and status.
    pub fn apply_forced(&mut self, record: Record<'_>) -> Result<(), ApplyError> {
        let hash = self.prefetch_apply(&record);
        self.apply_image::<true>(record, hash)?;
        Ok(())
    }

    /// Every slot that was astray has the leader's image, durably: the last seq is again that of a slot.
    pub fn end_rewind(&mut self) {
        self.seq = self.derived.last_seq(&self.slots, self.slots_formatted());
        self.set_progress(super::Progress { step: Step::None, ..self.progress });
    }

    /// What an orderly close made durable is shared with the leader only up to here.
    pub fn limit_durable(&mut self, fork: Seq) {
        if self.state.durable_seq > fork {
            self.state.durable_seq = fork;
            self.write_state();
        }
    }
}
