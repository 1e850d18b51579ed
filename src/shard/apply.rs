//! What a follower does with a leader's images.

use std::io;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::planted::{Bug, is_planted};
use crate::slot::image::RECORD_HEADER_SIZE;
use crate::slot::{Record, SlotError, SlotIndex, SlotView, Status};

use super::digest::Word;
use super::{ApplyError, REDO_OFFSET, Shard, begin_redo};

impl Shard {
    /// Applies a leader's record if its seq is newer than the slot's own; says whether it was.
    /// `hash` is the index hash of the image's key.
    pub fn apply(&mut self, record: Record<'_>, hash: u32) -> Result<bool, ApplyError> {
        self.apply_image::<false>(record, hash)
    }

    /// Applies a record; a forced one whatever its seq and status.
    #[inline]
    pub(super) fn apply_image<const FORCED: bool>(
        &mut self,
        record: Record<'_>,
        hash: u32,
    ) -> Result<bool, ApplyError> {
        let slot = record.slot;
        let damaged = |error| ApplyError::Slot { slot, error };
        let new = SlotView::check(self.geometry(), self.shard(), slot, record.image).map_err(damaged)?;
        if new.status() == Status::Free && !FORCED {
            return Err(damaged(SlotError::Status));
        }
        if slot.0 >= self.slots_formatted() {
            self.grow_to(slot)?;
        }
        // A slot that was damaged when the shard was opened has no usable past.
        let healed = self.derived.is_damaged(slot);
        let old = if healed { None } else { self.slots.peek(slot) };
        if let Some(old) = &old
            && old.seq() >= new.seq()
            && (!FORCED || is_planted(Bug::ForcedImageRefused))
            && !is_planted(Bug::StaleImageApplied)
            && !(is_planted(Bug::RegainedThoughOlder) && self.tail.is_some())
        {
            return Ok(false);
        }
        let keeps_word = old.as_ref().is_some_and(|old| {
            (old.status(), new.status()) == (Status::Occupied, Status::Occupied)
                && (old.expire_at() == 0) == (new.expire_at() == 0)
                && old.key() == new.key()
        });
        let old_hash = old
            .filter(|old| old.status() == Status::Occupied)
            .filter(|old| new.status() != Status::Occupied || old.key() != new.key())
            .map(|old| self.geometry().place(old.key()).hash);
        if new.status() == Status::Occupied {
            let full = |error| ApplyError::Full { slot, error };
            self.point_index_at(slot, hash, &new).map_err(full)?;
            self.derived.free.remove(slot);
        } else {
            self.derived.free.insert(slot);
        }
        if let Some(hash) = old_hash.filter(|_| !is_planted(Bug::FormerKeyKept)) {
            // Only if the index still means this slot: the key may have moved to a newer one.
            self.derived.index.remove(hash, slot);
        }
        let size = record.image.len();
        let redo = self.slots.region.bytes_mut(REDO_OFFSET, RECORD_HEADER_SIZE + size);
        begin_redo(redo, slot);
        redo[RECORD_HEADER_SIZE..].copy_from_slice(record.image);
        self.finish_redo(slot, size);
        self.seq = self.seq.max(new.seq());
        if !keeps_word {
            self.derived.set_word(slot, Word::of(&new, hash));
        }
        if healed || FORCED {
            self.derived.summarise(&self.slots, self.state.slots_formatted, slot);
        } else {
            self.derived.digest.note(slot, new.seq());
        }
        // The digest is right before the next change declares this one's redo record void.
        compiler_fence(Ordering::SeqCst);
        Ok(true)
    }

    /// Makes the index know an occupied slot; a key that lies in two slots belongs to the newer seq.
    pub(super) fn point_index_at(
        &mut self,
        slot: SlotIndex,
        hash: u32,
        new: &SlotView<'_>,
    ) -> io::Result<()> {
        match self.find(hash, new.key()) {
            Some(other) if other == slot => {}
            Some(other) => {
                let is_newer = self.slots.peek(other).is_none_or(|view| view.seq() < new.seq());
                if is_newer {
                    self.derived.index.replace(hash, other, slot);
                }
                if self.tail.is_some() {
                    self.derived.twins.push(if is_newer { other } else { slot });
                }
            }
            None => self.derived.index.insert(hash, slot)?,
        }
        Ok(())
    }

    /// Starts loading what applying a record will touch; returns the index hash of its key.
    #[inline]
    pub fn prefetch_apply(&self, record: &Record<'_>) -> u32 {
        if record.slot.0 < self.slots_formatted() {
            self.slots.prefetch(record.slot);
        }
        // An image of no shape is refused when it is applied.
        let view = SlotView::check_shape(self.geometry(), record.image);
        let hash = view.map_or(1, |view| self.geometry().place(view.key()).hash);
        self.derived.index.prefetch(hash);
        hash
    }

    /// Makes room for so many records in the index ahead of a first scan: memory that is not touched
    /// before records come. Slots are allocated as they come.
    pub fn reserve(&mut self, records: usize) -> io::Result<()> {
        self.derived.index.reserve(records)
    }
}
