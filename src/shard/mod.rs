//! Floor 2: one shard's slots with what is derived from them: index, free set, block summaries.
//!
//! A [`Shard`] is what lies behind a shard's lock; it takes no lock itself. Always true between calls:
//! - every slot below `slots_formatted` has a valid image, or is listed as damaged;
//! - the index holds exactly the keys of occupied slots (of two slots with one key, the newer's);
//! - the free set holds exactly the slots that are free or deleted;
//! - a block's summary is the highest seq among its slots.
//!
//! A change is first written as a whole record to the redo place, then copied to its slot. A process
//! killed at any instruction leaves the slot as it was, or a redo record that [`recover`] copies again;
//! so no acknowledged value is lost to a kill in the middle of an overwrite. The same bytes are what
//! the rings get.

pub mod free;
pub mod header;
pub mod index;
pub mod recover;
pub mod regain;
pub mod rewind;
pub mod scan;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::planted::{Bug, is_planted};
use crate::region::{Region, Window, prefetch};
use crate::slot::image::{Image, RECORD_HEADER_SIZE, free_images, header_of, names_key, read_u32};
use crate::slot::layout::HEADER_SIZE;
use crate::slot::lineage;
use crate::slot::{Geometry, Record, RecordError, Seq, ShardIndex, SlotError, SlotIndex, SlotView, Status};

use free::FreeSet;
pub use header::{Identity, Progress, State, Step, Term};
use index::{Index, IndexWindow};

/// Where the redo record lies.
pub const REDO_OFFSET: usize = header::HEADER_PAGE_SIZE;
/// Slots that share a summary: small, so that a delta of scattered slots reads little beside them.
pub const BLOCK_SLOTS: u32 = 8;

const PAGE_SIZE: usize = 4096;
const GROWTH_MIN: usize = 64 << 10;
// A writer waits while a growth step is allocated and formatted: about a millisecond for 4 MiB.
const GROWTH_MAX: usize = 4 << 20;
// How far beyond its end a shard follows its leader's slot indexes at once; a leader fills slots
// from the lowest, so that a larger step is a mistake and must not allocate a disk.
const APPLY_AHEAD_MAX: usize = 64 << 20;

/// Why a record was not applied. Records before it in the batch are.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The run of records is not well formed.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// An image is damaged, or not one that is ever sent.
    #[error("slot {slot}: {error}")]
    Slot {
        /// Its slot.
        slot: SlotIndex,
        /// What is wrong with it.
        error: SlotError,
    },
    /// The slot lies too far behind the shard's end.
    #[error("slot {slot} is out of range: this shard has {formatted} slots")]
    Range {
        /// Slot index in the record.
        slot: SlotIndex,
        /// Slots here.
        formatted: u32,
    },
    /// No room for the slot.
    #[error("no space for slot {slot}: {error}")]
    Full {
        /// Its slot.
        slot: SlotIndex,
        /// What the system said.
        error: io::Error,
    },
}

/// What a shard counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Slots that hold a record.
    pub occupied: u64,
    /// Tombstones.
    pub deleted: u64,
    /// Records with an expiry time.
    pub expiring: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { occupied, deleted, expiring } = self;
        write!(f, "{occupied} records ({expiring} expiring) and {deleted} tombstones")
    }
}

/// The slots of one shard.
#[derive(Debug)]
pub struct Shard {
    identity: Identity,
    stride: usize,
    slots_offset: usize,
    region: Region,
    state: State,
    progress: Progress,
    index: Index,
    free: FreeSet,
    blocks: Vec<u64>,
    seq: Seq,
    counts: Counts,
    damaged: Vec<(SlotIndex, SlotError)>,
    /// Occupied slots found while the shard was opened, or got its tail back, whose key a newer slot held.
    twins: Vec<SlotIndex>,
    /// While the shard waits for followers to give back what an OS crash took: everything up to here is held.
    tail: Option<Seq>,
}

impl Shard {
    /// Bytes that a new shard's region has at first.
    #[must_use]
    pub fn initial_size(geometry: &Geometry) -> usize {
        header::slots_offset(geometry) + GROWTH_MIN.max(geometry.slot_stride()).next_multiple_of(PAGE_SIZE)
    }

    /// Position in the store.
    #[must_use]
    pub fn shard(&self) -> ShardIndex {
        self.identity.shard
    }

    /// The store's sizes.
    #[inline]
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.identity.geometry
    }

    /// Last seq.
    #[inline]
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// What is counted.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Slots that have a status.
    #[inline]
    #[must_use]
    pub fn slots_formatted(&self) -> u32 {
        self.state.slots_formatted
    }

    /// Terms of leadership, oldest first.
    #[must_use]
    pub fn lineage(&self) -> &[Term] {
        &self.state.lineage
    }

    /// The current epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.state.lineage.last().map_or(0, |term| term.epoch)
    }

    /// Bytes of the file, and of memory for derived data.
    #[must_use]
    pub fn sizes(&self) -> (usize, usize) {
        (self.region.len(), self.index.memory() + self.blocks.len() * 8)
    }

    /// Slots whose bytes were damaged when the shard was opened, and that nothing has replaced since.
    #[must_use]
    pub fn damaged(&self) -> &[(SlotIndex, SlotError)] {
        &self.damaged
    }

    #[inline]
    fn slot_offset(&self, slot: SlotIndex) -> usize {
        self.slots_offset + slot.0 as usize * self.stride
    }

    #[inline]
    fn slot_bytes(&self, slot: SlotIndex) -> &[u8] {
        self.region.bytes(self.slot_offset(slot), self.stride)
    }

    /// The slot's image, its CRC checked.
    #[inline]
    pub fn view(&self, slot: SlotIndex) -> Result<SlotView<'_>, SlotError> {
        SlotView::check(self.geometry(), self.shard(), slot, self.slot_bytes(slot))
    }

    /// The slot's image, its CRC not checked; for looking at keys and headers.
    #[inline]
    fn peek(&self, slot: SlotIndex) -> Option<SlotView<'_>> {
        SlotView::check_shape(self.geometry(), self.slot_bytes(slot)).ok()
    }

    /// The slot that holds `key`, whose index hash is `hash`.
    #[inline]
    #[must_use]
    pub fn find(&self, hash: u32, key: &[u8]) -> Option<SlotIndex> {
        self.index.find(hash, |slot| {
            // All of its lines at once: the header's arrival would otherwise start the next load.
            self.prefetch_slot(slot);
            names_key(self.slot_bytes(slot), key)
        })
    }

    /// Readers of index and slots that run beside the owner.
    #[must_use]
    pub fn windows(&self) -> (IndexWindow, Window) {
        (self.index.window(), self.region.window())
    }

    /// Buckets of the index now; what an [`IndexWindow`] is told.
    #[inline]
    #[must_use]
    pub fn index_buckets(&self) -> usize {
        self.index.bucket_count()
    }

    #[inline]
    fn prefetch_slot(&self, slot: SlotIndex) {
        let address = self.region.address(self.slot_offset(slot));
        prefetch(address);
        prefetch(address + self.stride.min(128) - 1);
    }

    // ---- changes

    /// Stores a record; returns the bytes that rings get. On an error nothing has changed.
    /// `slot` is what [`Shard::find`] said.
    #[inline]
    pub fn put(
        &mut self,
        hash: u32,
        slot: Option<SlotIndex>,
        key: &[u8],
        value: &[u8],
        expire_at: u64,
    ) -> io::Result<&[u8]> {
        let slot = match slot {
            Some(slot) => slot,
            None => {
                let slot = match self.free.first() {
                    Some(slot) => slot,
                    None => self.grow_for_one()?,
                };
                self.index.insert(hash, slot)?;
                self.free.remove(slot);
                slot
            }
        };
        Ok(self.commit(slot, Status::Occupied, expire_at, key, value))
    }

    /// Stores a record of which it is not known yet whether its key is there. As [`Shard::put`], but the
    /// image is made while the slot is on its way from memory: what comes after its arrival is little
    /// enough for the processor to begin the next record meanwhile.
    #[inline]
    pub fn put_key(&mut self, hash: u32, key: &[u8], value: &[u8], expire_at: u64) -> io::Result<&[u8]> {
        if let Some(slot) = self.index.first_candidate(hash) {
            self.prefetch_slot(slot);
            self.stage(slot, Status::Occupied, expire_at, key, value);
            if names_key(self.slot_bytes(slot), key) {
                return Ok(self.settle(slot, Status::Occupied, expire_at, key.len() + value.len()));
            }
        }
        self.put(hash, self.find(hash, key), key, value, expire_at)
    }

    /// Turns an occupied slot into a tombstone; returns the bytes that rings get.
    pub fn delete(&mut self, hash: u32, slot: SlotIndex, key: &[u8]) -> &[u8] {
        let removed = self.index.remove(hash, slot);
        assert!(removed, "an occupied slot is in the index");
        self.free.insert(slot);
        self.commit(slot, Status::Deleted, 0, key, &[])
    }

    #[inline]
    fn commit(&mut self, slot: SlotIndex, status: Status, expire_at: u64, key: &[u8], value: &[u8]) -> &[u8] {
        self.stage(slot, status, expire_at, key, value);
        self.settle(slot, status, expire_at, key.len() + value.len())
    }

    /// Writes a slot's next image to the redo place, which stays void: nothing has changed yet.
    #[inline]
    fn stage(&mut self, slot: SlotIndex, status: Status, expire_at: u64, key: &[u8], value: &[u8]) {
        let image = Image { seq: self.seq.next(), status, expire_at, key, value };
        let shard = self.identity.shard;
        let redo = self.region.bytes_mut(REDO_OFFSET, RECORD_HEADER_SIZE + image.size());
        begin_redo(redo, slot);
        image.write(shard, slot, &mut redo[RECORD_HEADER_SIZE..]);
    }

    /// Makes the staged image, with so many bytes of key and value, its slot's.
    #[inline]
    fn settle(&mut self, slot: SlotIndex, status: Status, expire_at: u64, content_size: usize) -> &[u8] {
        let size = HEADER_SIZE + content_size;
        self.count(header_of(self.slot_bytes(slot)), status, expire_at);
        self.finish_redo(slot, size);
        self.seq = self.seq.next();
        self.note_seq(slot, self.seq);
        self.region.bytes(REDO_OFFSET, RECORD_HEADER_SIZE + size)
    }

    /// Declares the redo record whole, and copies it to its slot.
    #[inline]
    fn finish_redo(&mut self, slot: SlotIndex, size: usize) {
        compiler_fence(Ordering::SeqCst);
        let len = u32::try_from(size).expect("an image is at most 24 + 1024 + 65535 bytes");
        self.region.bytes_mut(REDO_OFFSET + 4, 4).copy_from_slice(&len.to_le_bytes());
        compiler_fence(Ordering::SeqCst);
        let target = self.slot_offset(slot);
        self.region.copy(REDO_OFFSET + RECORD_HEADER_SIZE, target, size);
        compiler_fence(Ordering::SeqCst);
    }

    /// Keeps the counts right for a slot that is about to change from what it was `before`.
    #[inline]
    fn count(&mut self, before: Option<(Status, u64)>, status: Status, expire_at: u64) {
        let counts = &mut self.counts;
        match before {
            Some((Status::Occupied, expire_at)) => {
                counts.occupied -= 1;
                counts.expiring -= u64::from(expire_at != 0);
            }
            Some((Status::Deleted, _)) => counts.deleted -= 1,
            Some((Status::Free, _)) | None => {}
        }
        match status {
            Status::Occupied => {
                counts.occupied += 1;
                counts.expiring += u64::from(expire_at != 0);
            }
            Status::Deleted => counts.deleted += 1,
            Status::Free => {}
        }
    }

    #[inline]
    fn note_seq(&mut self, slot: SlotIndex, seq: Seq) {
        let block = &mut self.blocks[(slot.0 / BLOCK_SLOTS) as usize];
        *block = (*block).max(seq.0);
    }

    /// Makes a block's summary anew, after one of its slots was healed or went back.
    #[cold]
    fn summarise(&mut self, slot: SlotIndex) {
        let block = slot.0 / BLOCK_SLOTS;
        let end = ((block + 1) * BLOCK_SLOTS).min(self.slots_formatted());
        let seq = |slot| self.view(SlotIndex(slot)).map_or(Seq::MAX, |view| view.seq());
        self.blocks[block as usize] = (block * BLOCK_SLOTS..end).map(seq).max().unwrap_or_default().0;
    }

    // ---- a follower's changes

    /// Applies a leader's record if its seq is newer than the slot's own; says whether it was.
    /// `hash` is the index hash of the image's key.
    pub fn apply(&mut self, record: Record<'_>, hash: u32) -> Result<bool, ApplyError> {
        self.apply_image::<false>(record, hash)
    }

    /// Applies a record; a forced one whatever its seq and status.
    #[inline]
    fn apply_image<const FORCED: bool>(&mut self, record: Record<'_>, hash: u32) -> Result<bool, ApplyError> {
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
        let healed = self.damaged.iter().position(|(damaged, _)| *damaged == slot);
        let old = if healed.is_some() { None } else { self.peek(slot) };
        if let Some(old) = &old
            && old.seq() >= new.seq()
            && (!FORCED || is_planted(Bug::ForcedImageRefused))
            && !is_planted(Bug::StaleImageApplied)
            && !(is_planted(Bug::RegainedThoughOlder) && self.tail.is_some())
        {
            return Ok(false);
        }
        let before = old.map(|old| (old.status(), old.expire_at()));
        let old_hash = old
            .filter(|old| old.status() == Status::Occupied)
            .filter(|old| new.status() != Status::Occupied || old.key() != new.key())
            .map(|old| self.geometry().place(old.key()).hash);
        if new.status() == Status::Occupied {
            let full = |error| ApplyError::Full { slot, error };
            self.point_index_at(slot, hash, &new).map_err(full)?;
            self.free.remove(slot);
        } else {
            self.free.insert(slot);
        }
        if let Some(hash) = old_hash.filter(|_| !is_planted(Bug::FormerKeyKept)) {
            // Only if the index still means this slot: the key may have moved to a newer one.
            self.index.remove(hash, slot);
        }
        if let Some(place) = healed {
            self.damaged.swap_remove(place);
        }
        self.count(before, new.status(), new.expire_at());
        let size = record.image.len();
        let redo = self.region.bytes_mut(REDO_OFFSET, RECORD_HEADER_SIZE + size);
        begin_redo(redo, slot);
        redo[RECORD_HEADER_SIZE..].copy_from_slice(record.image);
        self.finish_redo(slot, size);
        self.seq = self.seq.max(new.seq());
        if healed.is_some() || FORCED {
            self.summarise(slot);
        } else {
            self.note_seq(slot, new.seq());
        }
        Ok(true)
    }

    /// Makes the index know an occupied slot; a key that lies in two slots belongs to the newer seq.
    fn point_index_at(&mut self, slot: SlotIndex, hash: u32, new: &SlotView<'_>) -> io::Result<()> {
        match self.find(hash, new.key()) {
            Some(other) if other == slot => {}
            Some(other) => {
                let is_newer = self.peek(other).is_none_or(|view| view.seq() < new.seq());
                if is_newer {
                    self.index.replace(hash, other, slot);
                }
                if self.tail.is_some() {
                    self.twins.push(if is_newer { other } else { slot });
                }
            }
            None => self.index.insert(hash, slot)?,
        }
        Ok(())
    }

    /// Starts loading what applying a record will touch; returns the index hash of its key.
    #[inline]
    pub fn prefetch_apply(&self, record: &Record<'_>) -> u32 {
        if record.slot.0 < self.slots_formatted() {
            self.prefetch_slot(record.slot);
        }
        // An image of no shape is refused when it is applied.
        let view = SlotView::check_shape(self.geometry(), record.image);
        let hash = view.map_or(1, |view| self.geometry().place(view.key()).hash);
        self.index.prefetch(hash);
        hash
    }

    /// Makes room for so many records in the index ahead of a first scan: memory that is not touched
    /// before records come. Slots are allocated as they come.
    pub fn reserve(&mut self, records: usize) -> io::Result<()> {
        self.index.reserve(records)
    }

    /// The record of the last change: what rings get.
    #[must_use]
    pub fn last_record(&self) -> &[u8] {
        let header = self.region.bytes(REDO_OFFSET, RECORD_HEADER_SIZE);
        let size = read_u32(header, 4) as usize;
        self.region.bytes(REDO_OFFSET, RECORD_HEADER_SIZE + size)
    }

    // ---- growth

    #[cold]
    fn grow_for_one(&mut self) -> io::Result<SlotIndex> {
        self.grow_a_step()?;
        self.free.first().ok_or_else(|| io::ErrorKind::StorageFull.into())
    }

    /// Grows by half, within bounds.
    fn grow_a_step(&mut self) -> io::Result<()> {
        let used = self.slots_formatted() as usize * self.stride;
        let step = (used / 2).clamp(GROWTH_MIN, GROWTH_MAX);
        // On a nearly full disk a small step may still fit.
        self.grow_by(step).or_else(|_| self.grow_by(self.stride))
    }

    #[cold]
    fn grow_to(&mut self, slot: SlotIndex) -> Result<(), ApplyError> {
        let missing = (slot.0 - self.slots_formatted()) as usize * self.stride;
        if missing > APPLY_AHEAD_MAX {
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
        let end = self.slot_offset(SlotIndex(formatted));
        let len = (end + bytes.max(self.stride)).next_multiple_of(PAGE_SIZE).min(self.region.reserved());
        // The index counts slots from one in 32 bits.
        let slots =
            u32::try_from((len - self.slots_offset) / self.stride).unwrap_or(u32::MAX).min(u32::MAX - 1);
        if slots <= formatted {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the shard has all the slots it can have",
            ));
        }
        self.region.grow(len)?;
        self.format_to(slots)
    }

    /// Gives slots a status. The count is raised last: until then nobody looks at them.
    fn format_to(&mut self, slots: u32) -> io::Result<()> {
        const STEP_BYTES: usize = 256 << 10;
        let (formatted, image_of) = (self.slots_formatted(), free_images(self.shard()));
        let step = (STEP_BYTES / self.stride).max(1).min((slots - formatted) as usize);
        // Headers only: what lies between them stays zero.
        let mut bytes = vec![0; step * self.stride];
        for first in (formatted..slots).step_by(step) {
            let mut len = 0;
            for (slot, target) in (first..slots).zip(bytes.chunks_exact_mut(self.stride)) {
                target[..HEADER_SIZE].copy_from_slice(&image_of(SlotIndex(slot)));
                len += self.stride;
            }
            self.region.fill(self.slot_offset(SlotIndex(first)), &bytes[..len])?;
        }
        compiler_fence(Ordering::SeqCst);
        self.free.insert_range(formatted..slots);
        self.blocks.resize(slots.div_ceil(BLOCK_SLOTS) as usize, 0);
        self.state.slots_formatted = slots;
        self.write_state();
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn region_bytes(&self) -> &[u8] {
        self.region.bytes(0, self.region.len())
    }

    // ---- header

    /// Makes all that was written durable.
    pub fn sync(&self) -> io::Result<()> {
        self.region.sync()
    }

    /// What is written to the shard from now on is told from what came before, also after a power cut.
    pub fn sync_header(&self) -> io::Result<()> {
        self.region.sync_part(0, header::HEADER_PAGE_SIZE)
    }

    fn write_state(&mut self) {
        let page = self.region.bytes_mut(0, header::HEADER_PAGE_SIZE);
        self.state.write(page);
    }

    /// How far the shard has followed its leader.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Whether what the shard holds is its own history, and no leader's.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.progress == Progress::default()
    }

    /// Keeps how far the shard has followed its leader; a process crash does not lose it.
    pub fn set_progress(&mut self, progress: Progress) {
        if self.progress != progress {
            self.progress = progress;
            progress.write(self.region.bytes_mut(0, header::HEADER_PAGE_SIZE));
        }
    }

    /// Takes over a leader's lineage.
    pub fn set_lineage(&mut self, lineage: &[Term]) {
        let kept = &lineage[lineage.len().saturating_sub(header::LINEAGE_LEN_MAX)..];
        if !kept.is_empty() && self.state.lineage != kept {
            self.state.lineage = kept.to_vec();
            self.write_state();
        }
    }

    /// Makes everything durable and marks the shard as closed in an orderly way; the mark comes last, so
    /// that it is true on whatever machine the shard is opened next.
    pub fn close(&mut self) -> io::Result<()> {
        self.region.sync()?;
        if self.tail.is_some() {
            // Still as the OS crash left it: the next start asks the followers again.
            return Ok(());
        }
        // A follower holds all of its leader's history only up to its watermark.
        self.state.durable_seq = if self.leads() { self.seq } else { self.progress.seq };
        self.state.clean_seq = Some(self.seq);
        self.write_state();
        self.region.sync()
    }

    /// Makes a shard that followed a leader one that leads: a new epoch, whose first seq is the next.
    /// The caller has seen that the state is a prefix of that leader's.
    pub fn promote(&mut self, epoch: u64, id: u64) -> io::Result<()> {
        assert!(self.progress.is_consistent(), "a shard inside a scan is not promoted");
        assert!(epoch > self.epoch(), "a promotion takes a new epoch");
        // The term first: a kill in between leaves a follower with a term that nobody else has.
        self.begin_term(epoch, id);
        self.set_progress(Progress::default());
        self.sync_header()
    }

    /// Makes a shard that led one that follows: it holds all of its own history, and nothing else.
    pub fn demote(&mut self) {
        if self.leads() && self.seq != Seq::ZERO {
            let (epoch, seq) = (self.epoch(), self.seq);
            // Slots that were damaged have to come again first.
            let consistent_at = if self.damaged.is_empty() { seq } else { Seq::MAX };
            self.set_progress(Progress { epoch, seq, consistent_at, step: Step::None });
        }
    }

    /// Adds a term that owns all seqs from the next one on.
    fn begin_term(&mut self, epoch: u64, id: u64) {
        let mut lineage = self.state.lineage.clone();
        lineage::begin(&mut lineage, Term { epoch, id, first_seq: self.seq.next().0 });
        self.set_lineage(&lineage);
    }
}

/// Declares the redo record void, and names the slot of the one to come.
#[inline]
fn begin_redo(redo: &mut [u8], slot: SlotIndex) {
    redo[4..8].copy_from_slice(&[0; 4]);
    compiler_fence(Ordering::SeqCst);
    redo[..4].copy_from_slice(&slot.0.to_le_bytes());
}
