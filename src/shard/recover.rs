//! Making, opening and checking a shard: everything derived comes from the slots themselves.

use std::fmt;
use std::io;
use std::path::Path;

use crate::region::Region;
use crate::slot::image::{RECORD_HEADER_SIZE, read_u32, read_u64};
use crate::slot::{Seq, SlotError, SlotIndex, SlotView, Status};

use super::free::FreeSet;
use super::header::{HEADER_PAGE_SIZE, HeaderError, Identity, Progress, State, Step, Term, slots_offset};
use super::index::Index;
use super::{BLOCK_SLOTS, Counts, REDO_OFFSET, Shard};

// Damage is kept slot by slot up to here; beyond, the file as a whole is refused.
const DAMAGED_LEN_MAX: usize = 10_000;

/// The machine and device that a store is opened on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Host {
    /// The machine since its start.
    pub boot_id: [u8; 16],
    /// The device that holds its files.
    pub device_id: u64,
}

/// How the last process that had the shard open ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// In an orderly way, or the shard is new.
    Clean,
    /// It was killed; the page cache kept what it wrote.
    ProcessCrash,
    /// The machine or its mount went away; what was written may be missing in any order.
    OsCrash,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clean => "clean",
            Self::ProcessCrash => "process crash",
            Self::OsCrash => "os crash",
        })
    }
}

/// Why a shard was not opened.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The file is not the one that was expected.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// More of the file is damaged than can be healed slot by slot.
    #[error("more than {DAMAGED_LEN_MAX} slots are damaged, the first one is slot {slot}: {error}")]
    Damaged {
        /// The first one found.
        slot: SlotIndex,
        /// What is wrong with it.
        error: SlotError,
    },
    /// No memory for the index.
    #[error("no memory for the index: {0}")]
    Index(io::Error),
}

impl Shard {
    /// Makes a shard in a zeroed region of [`Shard::initial_size`] bytes.
    pub fn create(mut region: Region, identity: Identity, host: Host) -> io::Result<Self> {
        identity.write(region.bytes_mut(0, HEADER_PAGE_SIZE));
        Progress::default().write(region.bytes_mut(0, HEADER_PAGE_SIZE));
        let state = State {
            slots_formatted: 0,
            seq_reserved: 0,
            boot_id: host.boot_id,
            device_id: host.device_id,
            clean_seq: Some(Seq::ZERO),
            durable_seq: Seq::ZERO,
            lineage: vec![Term { epoch: 1, id: 0, first_seq: 1 }],
        };
        let mut shard = Self::bare(region, identity, state)?;
        let slots = (shard.region.len() - shard.slots_offset) / shard.stride;
        shard.format_to(u32::try_from(slots).unwrap_or(u32::MAX - 1))?;
        Ok(shard)
    }

    fn bare(region: Region, identity: Identity, state: State) -> io::Result<Self> {
        let (stride, slots_offset) = (identity.geometry.slot_stride(), slots_offset(&identity.geometry));
        let slots_max = (region.reserved().saturating_sub(slots_offset) / stride).min(u32::MAX as usize);
        let index = Index::new(state.slots_formatted as usize, slots_max)?;
        Ok(Self {
            identity,
            stride,
            slots_offset,
            region,
            blocks: vec![0; state.slots_formatted.div_ceil(BLOCK_SLOTS) as usize],
            state,
            progress: Progress::default(),
            index,
            free: FreeSet::default(),
            seq: Seq::ZERO,
            counts: Counts::default(),
            damaged: Vec::new(),
            twins: Vec::new(),
            tail: None,
        })
    }

    /// Opens the shard that a region holds and rebuilds what is derived from its slots. `visited` is
    /// told of slots as they are read. Damaged slots are listed, not judged: the caller decides, and
    /// calls [`Shard::take_over`] if it goes on.
    pub fn open(
        path: &Path,
        region: Region,
        identity: Identity,
        visited: impl Fn(u32),
    ) -> Result<Self, RecoverError> {
        let page = region.bytes(0, HEADER_PAGE_SIZE);
        let state = State::read(path, page)?;
        let progress = Progress::read(path, page)?;
        let has_bad_copy = State::has_bad_copy(page);
        let wanted = slots_offset(&identity.geometry)
            + state.slots_formatted as usize * identity.geometry.slot_stride();
        if region.len() < wanted {
            let (found, wanted) = (region.len() as u64, wanted as u64);
            return Err(HeaderError::Truncated { path: path.into(), found, wanted }.into());
        }
        let mut shard = Self::bare(region, identity, state).map_err(RecoverError::Index)?;
        shard.progress = progress;
        if has_bad_copy {
            let counted = shard.slots_formatted();
            shard.count_slots();
            let found = shard.slots_formatted();
            tracing::warn!(path = %path.display(), counted, found, "a copy of the header's state is not valid");
        }
        shard.redo();
        shard.rebuild(visited).map_err(RecoverError::Index)?;
        if shard.damaged.len() > DAMAGED_LEN_MAX {
            let (slot, error) = shard.damaged.swap_remove(0);
            return Err(RecoverError::Damaged { slot, error });
        }
        Ok(shard)
    }

    /// Makes the shard this process's own; says how the last one ended. A leader's shard takes a new
    /// term, named `term_id`: what this process writes is told from what any other writes at the same seq.
    /// One that may have lost its tail waits with that, if it `regains`: see [`Shard::end_regain`].
    pub fn take_over(&mut self, host: Host, term_id: u64, regains: bool) -> io::Result<Ending> {
        let ending = self.ending(host);
        if ending == Ending::OsCrash && self.leads() {
            self.begin_regain();
            if !regains {
                self.end_regain(host, term_id)?;
            }
            return Ok(ending);
        }
        if ending == Ending::OsCrash {
            self.distrust();
        } else if self.leads() {
            self.begin_term(self.epoch(), term_id);
        } else if !self.damaged.is_empty() {
            // Not the leader's state at any seq until the leader has sent the damaged slots again.
            self.set_progress(Progress { consistent_at: Seq::MAX, ..self.progress });
        }
        if self.leads() {
            self.bury_twins();
        }
        self.note_host(host);
        // Before anything is written that a clean mark on the disk would not know of.
        self.sync_header()?;
        Ok(ending)
    }

    pub(super) fn note_host(&mut self, host: Host) {
        self.state.boot_id = host.boot_id;
        self.state.device_id = host.device_id;
        self.state.clean_seq = None;
        self.write_state();
    }

    fn ending(&self, host: Host) -> Ending {
        let state = &self.state;
        let same_host = (state.boot_id, state.device_id) == (host.boot_id, host.device_id);
        match state.clean_seq {
            // The mark was written after all else was durable: it counts on any machine.
            Some(seq) if seq == self.seq => Ending::Clean,
            _ if same_host => Ending::ProcessCrash,
            _ => Ending::OsCrash,
        }
    }

    /// After an OS crash any slot may be older than it was: a follower's shard forgets its watermark and is
    /// scanned in full.
    fn distrust(&mut self) {
        let step = match self.progress.step {
            Step::Rewind { fork, .. } => Step::Rewind { fork, next: SlotIndex(0) },
            Step::None | Step::Scan { .. } => Step::None,
        };
        self.set_progress(Progress { seq: Seq::ZERO, consistent_at: Seq::MAX, step, ..self.progress });
    }

    /// A leader's key is in one slot. After an OS crash an older slot may hold it too, whose reuse was lost:
    /// it becomes a tombstone, or a later delete would bring its value back.
    pub(super) fn bury_twins(&mut self) {
        for slot in std::mem::take(&mut self.twins) {
            let Some(view) = self.peek(slot).filter(|view| view.status() == Status::Occupied) else {
                continue;
            };
            let key = view.key().to_vec();
            if self.find(self.geometry().place(&key).hash, &key) == Some(slot) {
                // It got another image meanwhile.
                continue;
            }
            self.free.insert(slot);
            self.commit(slot, Status::Deleted, 0, &key, &[]);
        }
    }

    /// Finds the slots that only a lost count knows: slots are made before they are counted.
    fn count_slots(&mut self) {
        let end = (self.region.len() - self.slots_offset) / self.stride;
        while (self.slots_formatted() as usize) < end && self.view(SlotIndex(self.slots_formatted())).is_ok()
        {
            self.state.slots_formatted += 1;
        }
        self.blocks.resize(self.slots_formatted().div_ceil(BLOCK_SLOTS) as usize, 0);
    }

    /// Copies a whole redo record to its slot again, if the slot has not got it.
    fn redo(&mut self) {
        let header = self.region.bytes(REDO_OFFSET, RECORD_HEADER_SIZE);
        let (slot, size) = (SlotIndex(read_u32(header, 0)), read_u32(header, 4) as usize);
        if size == 0 || size > self.geometry().image_size_max() || slot.0 >= self.slots_formatted() {
            return;
        }
        let image = self.region.bytes(REDO_OFFSET + RECORD_HEADER_SIZE, size);
        let Ok(redo) = SlotView::check(self.geometry(), self.shard(), slot, image) else { return };
        if self.view(slot).is_ok_and(|view| view.seq() >= redo.seq()) {
            return;
        }
        let target = self.slot_offset(slot);
        self.region.copy(REDO_OFFSET + RECORD_HEADER_SIZE, target, size);
    }

    fn rebuild(&mut self, visited: impl Fn(u32)) -> io::Result<()> {
        for slot in (0..self.slots_formatted()).rev().map(SlotIndex) {
            if slot.0 % 4096 == 0 {
                visited((self.slots_formatted() - slot.0).min(4096));
            }
            // Not `self.view`: the borrow of the region must not be a borrow of the index.
            let bytes = self.region.bytes(self.slots_offset + slot.0 as usize * self.stride, self.stride);
            let view = match SlotView::check(&self.identity.geometry, self.identity.shard, slot, bytes) {
                Ok(view) => view,
                Err(error) => {
                    if self.damaged.len() <= DAMAGED_LEN_MAX {
                        self.damaged.push((slot, error));
                    }
                    // No scan may skip it: it must be met, and refused.
                    self.blocks[(slot.0 / BLOCK_SLOTS) as usize] = Seq::MAX.0;
                    continue;
                }
            };
            let (seq, status, expire_at) = (view.seq(), view.status(), view.expire_at());
            self.seq = self.seq.max(seq);
            self.blocks[(slot.0 / BLOCK_SLOTS) as usize] =
                self.blocks[(slot.0 / BLOCK_SLOTS) as usize].max(seq.0);
            match status {
                Status::Free => self.free.insert(slot),
                Status::Deleted => {
                    self.counts.deleted += 1;
                    self.free.insert(slot);
                }
                Status::Occupied => {
                    self.counts.occupied += 1;
                    self.counts.expiring += u64::from(expire_at != 0);
                    let hash = self.identity.geometry.place(view.key()).hash;
                    let (region, stride, offset) = (&self.region, self.stride, self.slots_offset);
                    let geometry = &self.identity.geometry;
                    let peek = |slot: SlotIndex| {
                        let bytes = region.bytes(offset + slot.0 as usize * stride, stride);
                        SlotView::check_shape(geometry, bytes).ok()
                    };
                    let twin = self
                        .index
                        .find(hash, |other| peek(other).is_some_and(|other| other.key() == view.key()));
                    match twin {
                        None => self.index.insert(hash, slot)?,
                        Some(other) if peek(other).is_some_and(|other| other.seq() < seq) => {
                            self.index.replace(hash, other, slot);
                            self.twins.push(other);
                        }
                        Some(_) => self.twins.push(slot),
                    }
                }
            }
        }
        Ok(())
    }

    /// Compares what is derived with a rebuild from the slots. Says what differs.
    pub fn check(&self) -> Result<(), String> {
        let (mut free, mut counts, mut indexed) = (FreeSet::default(), Counts::default(), 0_usize);
        let mut blocks = vec![0_u64; self.blocks.len()];
        for slot in (0..self.slots_formatted()).map(SlotIndex) {
            if self.damaged.iter().any(|(damaged, _)| *damaged == slot) {
                blocks[(slot.0 / BLOCK_SLOTS) as usize] = Seq::MAX.0;
                continue;
            }
            let view = self.view(slot).map_err(|error| format!("slot {slot}: {error}"))?;
            let block = &mut blocks[(slot.0 / BLOCK_SLOTS) as usize];
            *block = (*block).max(view.seq().0);
            match view.status() {
                Status::Free => free.insert(slot),
                Status::Deleted => {
                    counts.deleted += 1;
                    free.insert(slot);
                }
                Status::Occupied => {
                    counts.occupied += 1;
                    counts.expiring += u64::from(view.expire_at() != 0);
                    let place = self.geometry().place(view.key());
                    if place.shard != self.shard() {
                        return Err(format!("slot {slot}: its key belongs to shard {}", place.shard));
                    }
                    match self.find(place.hash, view.key()) {
                        Some(found) if found == slot => indexed += 1,
                        Some(other) => return Err(format!("slot {slot}: its key is also in slot {other}")),
                        None => return Err(format!("slot {slot}: its key is not in the index")),
                    }
                }
            }
        }
        if indexed != self.index.len() {
            return Err(format!("the index has {} entries, the slots hold {indexed} keys", self.index.len()));
        }
        if free.len() != self.free.len()
            || (0..self.slots_formatted())
                .map(SlotIndex)
                .any(|slot| free.contains(slot) != self.free.contains(slot))
        {
            return Err(format!("the free set has {} slots, a rebuild {}", self.free.len(), free.len()));
        }
        if counts != self.counts {
            return Err(format!("counts are {}, a rebuild gives {counts}", self.counts));
        }
        if blocks != self.blocks {
            return Err("a block summary differs from its slots".into());
        }
        Ok(())
    }

    /// A copy of the memory, as a backup of the file holds it.
    #[must_use]
    pub fn copy_region(&self) -> Region {
        self.region.copy_to_heap()
    }

    /// Gives heap memory a disk.
    pub fn keep_disk(&self) {
        self.region.keep_disk();
    }

    /// What a power cut leaves of heap memory, as far as it has a disk.
    #[must_use]
    pub fn region_on_disk(&self) -> Region {
        let Some(mut region) = self.region.after_power_cut() else { return self.copy_region() };
        for offset in (0..self.slots_formatted()).map(|slot| self.slot_offset(SlotIndex(slot))) {
            // An allocation is on the disk before it is used.
            if read_u64(region.bytes(offset, 8), 0) == 0 {
                region.bytes_mut(offset, self.stride).copy_from_slice(self.region.bytes(offset, self.stride));
            }
        }
        region
    }

    /// Lets those parts of heap memory reach its disk that are chosen: pages of the header, the redo record,
    /// slots.
    pub fn write_back(&self, mut choose: impl FnMut() -> bool) {
        let sync = |offset, len| self.region.sync_part(offset, len).expect("heap memory");
        let half = HEADER_PAGE_SIZE / 2;
        let parts = [(0, half), (half, half), (REDO_OFFSET, self.slots_offset - REDO_OFFSET)];
        let slots = (0..self.slots_formatted()).map(|slot| (self.slot_offset(SlotIndex(slot)), self.stride));
        for (offset, len) in parts.into_iter().chain(slots) {
            if choose() {
                sync(offset, len);
            }
        }
    }

    /// Gives the memory back, as a killed process leaves it.
    #[must_use]
    pub fn into_region(self) -> Region {
        self.region
    }
}
