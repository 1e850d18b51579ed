//! Floor 2: one shard's slots with what is derived from them: index, free set, block summaries.
//!
//! A [`Shard`] is what lies behind a shard's lock; it takes no lock itself. Always true between calls:
//! - every slot below `slots_formatted` has a valid image, or is listed as damaged;
//! - the index holds exactly the keys of occupied slots (of two slots with one key, the newer's);
//! - the free set holds exactly the slots that are free or deleted;
//! - a block's summary is the highest seq among its slots, and the digest says of each slot what it is.
//!
//! A change is first written as a whole record to the redo place, then copied to its slot. A process
//! killed at any instruction leaves the slot as it was, or a redo record that [`recover`] copies again;
//! so no acknowledged value is lost to a kill in the middle of an overwrite. The same bytes are what
//! the rings get. The digest follows before the next change begins.

mod apply;
pub mod audit;
pub mod changes;
mod derived;
pub mod digest;
pub mod free;
mod grow;
pub mod header;
pub mod index;
#[cfg(test)]
mod kills;
mod pending;
#[cfg(test)]
mod power;
pub mod recover;
pub mod regain;
pub mod replay;
pub mod rewind;
pub mod scan;
mod slots;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::planted::{Bug, is_planted};
use crate::region::Window;
use crate::slot::image::{Image, RECORD_HEADER_SIZE, header_of, read_u32};
use crate::slot::layout::HEADER_SIZE;
use crate::slot::lineage;
use crate::slot::{Geometry, RecordError, Seq, ShardIndex, SlotError, SlotIndex, SlotView, Status};

use derived::Derived;
pub use digest::Doubt;
use digest::Word;
pub use header::{Progress, Role, State, Step, Term};
use index::IndexWindow;
use pending::Pending;
use slots::Slots;

/// Where the redo record lies.
pub const REDO_OFFSET: usize = header::HEADER_PAGE_SIZE;
/// Slots that share a summary: small, so that a delta of scattered slots reads little beside them.
pub const BLOCK_SLOTS: u32 = 8;

const PAGE_SIZE: usize = 4096;
/// What a disk takes in some tenths of a second; whole pages.
const SYNC_PIECE_BYTES: usize = 32 << 20;
const GROWTH_MIN: usize = 64 << 10;

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
    slots: Slots,
    derived: Derived,
    state: State,
    progress: Progress,
    seq: Seq,
    /// Why everything derived was made from the slots at opening, if it was.
    doubt: Option<Doubt>,
    /// While the shard waits for followers to give back what an OS crash took: everything up to here is held.
    tail: Option<regain::Tail>,
    pending: Pending,
    /// Slots that the shard's leader has.
    leader_slots: u32,
}

impl Shard {
    /// Bytes that a new shard's region has at first.
    #[must_use]
    pub fn initial_size(geometry: &Geometry) -> usize {
        header::slots_offset(geometry) + GROWTH_MIN.max(geometry.slot_stride()).next_multiple_of(PAGE_SIZE)
    }

    /// Slots that a region with so much address space can hold.
    #[must_use]
    pub fn slot_count_max(geometry: &Geometry, reserved: usize) -> u32 {
        Slots::count_max_of(geometry, reserved)
    }

    /// Position in the store.
    #[must_use]
    pub fn shard(&self) -> ShardIndex {
        self.slots.identity.shard
    }

    /// The store's sizes.
    #[inline]
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.slots.identity.geometry
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
        self.derived.counts
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
        (self.slots.region.len(), self.derived.index.memory() + self.derived.digest.size())
    }

    /// Slots whose bytes were found damaged, and that nothing has replaced since.
    #[must_use]
    pub fn damaged(&self) -> &[(SlotIndex, SlotError)] {
        &self.derived.damaged
    }

    /// Why index, free set and digest were made from the slots when the shard was opened, and not taken
    /// from the digest; none if they were.
    #[must_use]
    pub fn doubt(&self) -> Option<Doubt> {
        self.doubt
    }

    /// The slot's image, its CRC checked.
    #[inline]
    pub fn view(&self, slot: SlotIndex) -> Result<SlotView<'_>, SlotError> {
        self.slots.view(slot)
    }

    /// The slot that holds `key`, whose index hash is `hash`.
    #[inline]
    #[must_use]
    pub fn find(&self, hash: u32, key: &[u8]) -> Option<SlotIndex> {
        self.derived.index.find(hash, |slot| {
            self.slots.prefetch(slot);
            self.slots.names(slot, key)
        })
    }

    /// Readers of index and slots that run beside the owner.
    #[must_use]
    pub fn windows(&self) -> (IndexWindow, Window) {
        (self.derived.index.window(), self.slots.region.window())
    }

    /// Buckets of the index now; what an [`IndexWindow`] is told.
    #[inline]
    #[must_use]
    pub fn index_buckets(&self) -> usize {
        self.derived.index.bucket_count()
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
                if let Some(slot) = self.derived.damaged_holder(hash) {
                    // What the key's slot held is lost, and replaced by this.
                    self.derived.index.insert(hash, slot)?;
                    self.stage(slot, Status::Occupied, expire_at, key, value);
                    let word = Word::new(Status::Occupied, expire_at, hash);
                    return Ok(self.conclude(slot, key.len() + value.len(), Some(word)));
                }
                let slot = match self.derived.free.first() {
                    Some(slot) => slot,
                    None => self.grow_for_one()?,
                };
                self.derived.index.insert(hash, slot)?;
                self.derived.free.remove(slot);
                slot
            }
        };
        Ok(self.commit(slot, Status::Occupied, expire_at, hash, key, value))
    }

    /// Stores a record of which it is not known yet whether its key is there. As [`Shard::put`], but the
    /// image is made while the slot is on its way from memory: what comes after its arrival is little
    /// enough for the processor to begin the next record meanwhile.
    // One function, with all that it does in it: how well it runs must not hang on what else the compiler inlines.
    #[inline(never)]
    pub fn put_key(&mut self, hash: u32, key: &[u8], value: &[u8], expire_at: u64) -> io::Result<&[u8]> {
        if let Some(slot) = self.derived.index.first_candidate(hash) {
            self.slots.prefetch(slot);
            self.stage(slot, Status::Occupied, expire_at, key, value);
            if self.slots.names(slot, key) {
                return Ok(self.settle(slot, Status::Occupied, expire_at, hash, key.len() + value.len()));
            }
        }
        self.put_other(hash, key, value, expire_at)
    }

    /// As [`Shard::put_key`], for a key that the first candidate does not hold.
    #[inline(never)]
    fn put_other(&mut self, hash: u32, key: &[u8], value: &[u8], expire_at: u64) -> io::Result<&[u8]> {
        self.put(hash, self.find(hash, key), key, value, expire_at)
    }

    /// Turns an occupied slot into a tombstone; returns the bytes that rings get.
    pub fn delete(&mut self, hash: u32, slot: SlotIndex, key: &[u8]) -> &[u8] {
        let removed = self.derived.index.remove(hash, slot);
        assert!(removed, "an occupied slot is in the index");
        self.derived.free.insert(slot);
        self.commit(slot, Status::Deleted, 0, hash, key, &[])
    }

    #[inline]
    fn commit(
        &mut self,
        slot: SlotIndex,
        status: Status,
        expire_at: u64,
        hash: u32,
        key: &[u8],
        value: &[u8],
    ) -> &[u8] {
        self.stage(slot, status, expire_at, key, value);
        self.settle(slot, status, expire_at, hash, key.len() + value.len())
    }

    /// Writes a slot's next image to the redo place, which stays void: nothing has changed yet.
    #[inline(always)]
    fn stage(&mut self, slot: SlotIndex, status: Status, expire_at: u64, key: &[u8], value: &[u8]) {
        let image = Image { seq: self.seq.next(), status, expire_at, key, value };
        let shard = self.slots.identity.shard;
        let redo = self.slots.region.bytes_mut(REDO_OFFSET, RECORD_HEADER_SIZE + image.size());
        begin_redo(redo, slot);
        image.write(shard, slot, &mut redo[RECORD_HEADER_SIZE..]);
    }

    /// Makes the staged image, with so many bytes of key and value, its slot's.
    #[inline(always)]
    fn settle(
        &mut self,
        slot: SlotIndex,
        status: Status,
        expire_at: u64,
        hash: u32,
        content_size: usize,
    ) -> &[u8] {
        let before = header_of(self.slots.bytes(slot));
        // An overwrite leaves the slot's word as it is.
        let keeps_word = before.is_some_and(|(before, expiry)| {
            (before, status) == (Status::Occupied, Status::Occupied) && (expiry == 0) == (expire_at == 0)
        });
        self.conclude(slot, content_size, (!keeps_word).then(|| Word::new(status, expire_at, hash)))
    }

    /// As [`Shard::settle`]; `word` is what is to be kept of the slot, if that changes.
    #[inline(always)]
    fn conclude(&mut self, slot: SlotIndex, content_size: usize, word: Option<Word>) -> &[u8] {
        let size = HEADER_SIZE + content_size;
        self.finish_redo(slot, size);
        self.seq = self.seq.next();
        self.derived.digest.note(slot, self.seq);
        if let Some(word) = word
            && self.derived.set_word(slot, word)
        {
            self.derived.summarise(&self.slots, self.state.slots_formatted, slot);
        }
        // The digest is right before the next change declares this one's redo record void.
        compiler_fence(Ordering::SeqCst);
        self.slots.region.bytes(REDO_OFFSET, RECORD_HEADER_SIZE + size)
    }

    /// Declares the redo record whole, and copies it to its slot.
    #[inline(always)]
    fn finish_redo(&mut self, slot: SlotIndex, size: usize) {
        compiler_fence(Ordering::SeqCst);
        let len = u32::try_from(size).expect("an image is at most 24 + 1024 + 65535 bytes");
        self.slots.region.bytes_mut(REDO_OFFSET + 4, 4).copy_from_slice(&len.to_le_bytes());
        compiler_fence(Ordering::SeqCst);
        let target = self.slots.offset(slot);
        self.slots.region.copy(REDO_OFFSET + RECORD_HEADER_SIZE, target, size);
        compiler_fence(Ordering::SeqCst);
    }

    /// The record of the last change: what rings get.
    #[must_use]
    pub fn last_record(&self) -> &[u8] {
        let header = self.slots.region.bytes(REDO_OFFSET, RECORD_HEADER_SIZE);
        let size = read_u32(header, 4) as usize;
        self.slots.region.bytes(REDO_OFFSET, RECORD_HEADER_SIZE + size)
    }

    #[cfg(test)]
    pub(crate) fn region_bytes(&self) -> &[u8] {
        self.slots.region.bytes(0, self.slots.region.len())
    }

    // ---- header

    /// Makes all that was written durable.
    pub fn sync(&self) -> io::Result<()> {
        self.slots.region.sync()
    }

    /// Makes a piece of it durable, from this byte on; where the next one begins.
    pub fn sync_piece(&self, from: usize) -> io::Result<Option<usize>> {
        let to = from.saturating_add(SYNC_PIECE_BYTES).min(self.slots.region.len());
        if to == self.slots.region.len() {
            // Whatever is left, and any error that was not told yet.
            self.slots.region.sync()?;
            return Ok(None);
        }
        self.slots.region.sync_part(from, to - from)?;
        Ok(Some(to))
    }

    /// What is written to the shard from now on is told from what came before, also after a power cut.
    pub fn sync_header(&self) -> io::Result<()> {
        self.slots.region.sync_part(0, header::HEADER_PAGE_SIZE)
    }

    /// Writes the copy of the state that does not count; from then on it does.
    pub fn write_state(&mut self) {
        let page = self.slots.region.bytes_mut(0, header::HEADER_PAGE_SIZE);
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
        self.state.role == Some(Role::Leads)
    }

    /// Keeps how far the shard has followed its leader; a process crash does not lose it.
    pub fn set_progress(&mut self, progress: Progress) {
        assert!(!self.leads(), "only who follows has progress");
        if self.progress != progress {
            self.write_progress(progress);
        }
    }

    /// Takes over a leader's lineage; says whether it is another one.
    pub fn set_lineage(&mut self, lineage: &[Term]) -> bool {
        let kept = &lineage[lineage.len().saturating_sub(header::LINEAGE_LEN_MAX)..];
        let is_new = !kept.is_empty() && self.state.lineage != kept;
        if is_new {
            self.state.lineage = kept.to_vec();
            self.write_state();
        }
        is_new
    }

    /// Makes everything durable and marks the shard as closed in an orderly way; the mark comes last, so
    /// that it is true on whatever machine the shard is opened next.
    pub fn close(&mut self) -> io::Result<()> {
        assert!(!self.has_pending(), "what waits has landed before a shard is closed");
        self.slots.region.sync()?;
        if self.tail.is_some() {
            // Still as the OS crash left it: the next start asks the followers again.
            return Ok(());
        }
        // A follower holds all of its leader's history only up to its watermark.
        self.state.durable_seq = if self.leads() { self.seq } else { self.progress.seq };
        self.state.slots_durable = self.slots_formatted();
        self.state.clean_seq = Some(self.seq);
        // Behind the slots and before the mark, which says that both are whole.
        self.derived.digest.close(self.state.session, &self.slots.identity, self.slots_formatted())?;
        self.write_state();
        self.slots.region.sync()
    }

    /// Makes a shard that followed a leader one that leads: a new epoch, whose first seq is the next.
    /// The caller has seen that the state is a prefix of that leader's.
    pub fn promote(&mut self, epoch: u64, id: u64) -> io::Result<()> {
        assert!(self.progress.is_consistent(), "a shard inside a scan is not promoted");
        assert!(epoch > self.epoch(), "a promotion takes a new epoch");
        // Both at once: no shard leads in its leader's term.
        self.state.role = Some(Role::Leads);
        self.add_term(epoch, id);
        self.write_state();
        self.write_progress(Progress::default());
        self.sync_state()
    }

    /// Makes a shard that led one that follows: it holds all of its own history, and nothing else; that is
    /// something if its store `has_led`, and is not one made to follow. When this returns it is so after a power
    /// cut, too.
    pub fn demote(&mut self, has_led: bool) -> io::Result<()> {
        assert!(!self.has_pending(), "what waits has landed before a shard follows");
        if !self.leads() {
            return Ok(());
        }
        // Before the role: while the shard leads, its progress counts for nothing.
        if has_led {
            let (epoch, seq) = (self.epoch(), self.seq);
            // Slots that were damaged have to come again first.
            let consistent_at = if self.derived.damaged.is_empty() { seq } else { Seq::MAX };
            self.write_progress(Progress { epoch, seq, consistent_at, step: Step::None });
        }
        self.state.role = Some(Role::Follows);
        self.write_state();
        if is_planted(Bug::RoleNotSynced) { Ok(()) } else { self.sync_state() }
    }

    /// Makes a role or lineage that was written durable in both copies, one after the other. So a power cut tears
    /// one of them at most; and later writes change a few bytes of one sector, which is not torn.
    pub fn sync_state(&mut self) -> io::Result<()> {
        self.sync_header()?;
        self.write_state();
        self.sync_header()
    }

    fn write_progress(&mut self, progress: Progress) {
        self.progress = progress;
        progress.write(self.slots.region.bytes_mut(0, header::HEADER_PAGE_SIZE));
    }

    /// Adds a term that owns all seqs from the next one on; the caller writes it.
    fn add_term(&mut self, epoch: u64, id: u64) {
        let mut terms = self.state.lineage.clone();
        lineage::begin(&mut terms, Term { epoch, id, first_seq: self.made().next().0 });
        self.keep_terms(terms);
    }

    /// The newest of them, as many as a header holds; the caller writes it.
    fn keep_terms(&mut self, mut terms: Vec<Term>) {
        terms.drain(..terms.len().saturating_sub(header::LINEAGE_LEN_MAX));
        self.state.lineage = terms;
    }
}

/// Declares the redo record void, and names the slot of the one to come.
#[inline]
fn begin_redo(redo: &mut [u8], slot: SlotIndex) {
    redo[4..8].copy_from_slice(&[0; 4]);
    compiler_fence(Ordering::SeqCst);
    redo[..4].copy_from_slice(&slot.0.to_le_bytes());
}
