//! Making a shard larger.

use std::io;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::slot::SlotIndex;
use crate::slot::image::free_images;
use crate::slot::layout::HEADER_SIZE;

use super::{ApplyError, GROWTH_MIN, PAGE_SIZE, Shard};

// A writer waits while a growth step is allocated and formatted: about a millisecond for 4 MiB.
const GROWTH_MAX: usize = 4 << 20;
// How far beyond its end, and beyond the slots that its leader said it has, a shard follows its leader's slot indexes at
// once; a leader fills slots from the lowest, so that a larger step is a mistake and must not allocate a disk.
const APPLY_AHEAD_MAX: usize = 64 << 20;

impl Shard {
    #[cold]
    pub(super) fn grow_for_one(&mut self) -> io::Result<SlotIndex> {
        self.grow_a_step()?;
        self.derived.free.first().ok_or_else(|| io::ErrorKind::StorageFull.into())
    }

    /// Grows by half, within bounds.
    fn grow_a_step(&mut self) -> io::Result<()> {
        let used = self.slots_formatted() as usize * self.slots.stride;
        let step = (used / 2).clamp(GROWTH_MIN, GROWTH_MAX);
        // On a nearly full disk a small step may still fit.
        self.grow_by(step).or_else(|_| self.grow_by(self.slots.stride))
    }

    /// The leader's shard has so many slots, and so will this one: those of them that hold nothing are not sent, however
    /// many follow each other.
    pub fn expect_slots(&mut self, leader_slots: u32) {
        self.leader_slots = leader_slots;
    }

    #[cold]
    pub(super) fn grow_to(&mut self, slot: SlotIndex) -> Result<(), ApplyError> {
        let missing = (slot.0 - self.slots_formatted()) as usize * self.slots.stride;
        if missing > APPLY_AHEAD_MAX && slot.0 >= self.leader_slots {
            return Err(ApplyError::Range { slot, formatted: self.slots_formatted() });
        }
        while self.slots_formatted() <= slot.0 {
            self.grow_a_step().map_err(|error| ApplyError::Full { slot, error })?;
        }
        Ok(())
    }

    /// Allocates and formats at least `bytes` of slots.
    fn grow_by(&mut self, bytes: usize) -> io::Result<()> {
        let formatted = self.slots_formatted();
        let end = self.slots.offset(SlotIndex(formatted));
        let len = (end + bytes.max(self.slots.stride))
            .next_multiple_of(PAGE_SIZE)
            .min(self.slots.region.reserved());
        // The index counts slots from one in 32 bits.
        let slots =
            u32::try_from((len - self.slots.start) / self.slots.stride).unwrap_or(u32::MAX).min(u32::MAX - 1);
        if slots <= formatted {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the shard has all the slots it can have",
            ));
        }
        self.slots.region.grow(len)?;
        self.format_to(slots)
    }

    /// Gives slots a status. The count is raised last: until then nobody looks at them.
    pub(super) fn format_to(&mut self, slots: u32) -> io::Result<()> {
        const STEP_BYTES: usize = 256 << 10;
        let (formatted, image_of) = (self.slots_formatted(), free_images(self.shard()));
        let step = (STEP_BYTES / self.slots.stride).max(1).min((slots - formatted) as usize);
        // Headers only: what lies between them stays zero.
        let mut bytes = vec![0; step * self.slots.stride];
        self.derived.digest.grow(slots)?;
        for first in (formatted..slots).step_by(step) {
            let mut len = 0;
            for (slot, target) in (first..slots).zip(bytes.chunks_exact_mut(self.slots.stride)) {
                target[..HEADER_SIZE].copy_from_slice(&image_of(SlotIndex(slot)));
                len += self.slots.stride;
            }
            self.slots.region.fill(self.slots.offset(SlotIndex(first)), &bytes[..len])?;
        }
        compiler_fence(Ordering::SeqCst);
        self.derived.free.insert_range(formatted..slots);
        self.state.slots_formatted = slots;
        self.write_state();
        Ok(())
    }
}
