//! A shard's slots where they lie: where each one begins, and what may be read of it.

use crate::region::{Region, prefetch};
use crate::slot::image::names_key;
use crate::slot::{Geometry, Seq, SlotError, SlotIndex, SlotView};

use super::header::{Identity, slots_offset};

/// The region of a shard, and the sizes that say where its slots are.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) identity: Identity,
    pub(super) stride: usize,
    pub(super) start: usize,
    pub(super) region: Region,
}

impl Slots {
    pub(super) fn new(identity: Identity, region: Region) -> Self {
        let geometry = &identity.geometry;
        Self { stride: geometry.slot_stride(), start: slots_offset(geometry), identity, region }
    }

    /// Slots that the region has address space for. The index counts slots from one in 32 bits.
    pub(super) fn count_max(&self) -> u32 {
        Self::count_max_of(&self.identity.geometry, self.region.reserved())
    }

    /// As [`Slots::count_max`], of a region with so much address space.
    pub(super) fn count_max_of(geometry: &Geometry, reserved: usize) -> u32 {
        let slots = reserved.saturating_sub(slots_offset(geometry)) / geometry.slot_stride();
        u32::try_from(slots).unwrap_or(u32::MAX).min(u32::MAX - 1)
    }

    #[inline]
    pub(super) fn offset(&self, slot: SlotIndex) -> usize {
        self.start + slot.0 as usize * self.stride
    }

    #[inline]
    pub(super) fn bytes(&self, slot: SlotIndex) -> &[u8] {
        self.region.bytes(self.offset(slot), self.stride)
    }

    /// The slot's image, its CRC checked.
    #[inline]
    pub(super) fn view(&self, slot: SlotIndex) -> Result<SlotView<'_>, SlotError> {
        SlotView::check(&self.identity.geometry, self.identity.shard, slot, self.bytes(slot))
    }

    /// The slot's image, its CRC not checked; for looking at keys and headers.
    #[inline]
    pub(super) fn peek(&self, slot: SlotIndex) -> Option<SlotView<'_>> {
        SlotView::check_shape(&self.identity.geometry, self.bytes(slot)).ok()
    }

    #[inline]
    pub(super) fn names(&self, slot: SlotIndex, key: &[u8]) -> bool {
        names_key(self.bytes(slot), key)
    }

    /// The seq that a slot states, unchecked.
    pub(super) fn seq(&self, slot: SlotIndex) -> Option<Seq> {
        self.peek(slot).map(|view| view.seq())
    }

    /// Begins to read slots from the disk.
    pub(super) fn read_ahead(&self, first: SlotIndex, count: u32) {
        self.region.read_ahead(self.offset(first), count as usize * self.stride);
    }

    /// Starts loading a slot: all of its lines at once, as the header's arrival would otherwise start the
    /// next load.
    #[inline]
    pub(super) fn prefetch(&self, slot: SlotIndex) {
        let address = self.region.address(self.offset(slot));
        prefetch(address);
        prefetch(address + self.stride.min(128) - 1);
    }
}
