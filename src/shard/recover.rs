//! Making, opening and taking over a shard. What is derived comes from the digest, if it is beyond doubt
//! that it belongs to these slots, else from the slots themselves.

use std::fmt;
use std::io;
use std::path::Path;

use crate::planted::{Bug, is_planted};
use crate::region::Region;
use crate::slot::image::{RECORD_HEADER_SIZE, free_images, read_u32};
use crate::slot::{Geometry, Seq, SlotError, SlotIndex, SlotView, Status};

use super::derived::Derived;
use super::digest::{Doubt, digest_size};
use super::header::{HEADER_PAGE_SIZE, HeaderError, Identity, Progress, Role, State, Step, Term};
use super::pending::Pending;
use super::slots::Slots;
use super::{PAGE_SIZE, REDO_OFFSET, Shard};

/// Damage is kept slot by slot up to here; beyond, the file as a whole is refused.
pub(super) const DAMAGED_LEN_MAX: usize = 10_000;

/// Where a store is opened: in the same place the kernel has in memory what the last opener wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Host {
    /// The machine since its start.
    pub boot_id: [u8; 16],
    /// The file system that holds its files, as it was mounted, and their folder.
    pub place_id: u64,
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

/// What a shard lies in.
#[derive(Debug)]
pub struct Files {
    /// Header and slots.
    pub slots: Region,
    /// What was kept of them.
    pub digest: Region,
}

impl Files {
    /// Slots of which nothing was kept.
    #[must_use]
    pub fn without_digest(slots: Region, geometry: &Geometry) -> Self {
        let count_max = Shard::slot_count_max(geometry, slots.reserved());
        Self { slots, digest: Region::heap(digest_size(0), digest_size(count_max)) }
    }
}

impl State {
    /// Whether the last opener was here.
    fn is_of(&self, host: Host) -> bool {
        (self.boot_id, self.place_id) == (host.boot_id, host.place_id)
    }

    /// Whether the last opener's machine went down while it had the shard open.
    #[must_use]
    pub fn is_cut_off(&self, host: Host) -> bool {
        self.clean_seq.is_none() && !self.is_of(host) && !is_planted(Bug::GrowthTrusted)
    }
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
        // Both copies, so that damage to one is not the end of the file.
        (0..2).for_each(|_| Progress::default().write(region.bytes_mut(0, HEADER_PAGE_SIZE)));
        let slots = Slots::new(identity, region);
        let count = (slots.region.len() - slots.start) / slots.stride;
        let count = u32::try_from(count).unwrap_or(u32::MAX - 1);
        let state = State {
            slots_formatted: 0,
            // Made aside, and durable before anybody takes it for a shard.
            slots_durable: count,
            seq_reserved: 0,
            boot_id: host.boot_id,
            place_id: host.place_id,
            clean_seq: Some(Seq::ZERO),
            durable_seq: Seq::ZERO,
            session: 0,
            role: Some(Role::Leads),
            lineage: vec![Term { epoch: 1, id: 0, first_seq: 1 }],
        };
        let digest = Region::heap(digest_size(0), digest_size(slots.count_max()));
        let derived = Derived::new(&slots, 0, digest)?;
        let (progress, seq) = (Progress::default(), Seq::ZERO);
        let mut shard = Self {
            slots,
            derived,
            state,
            progress,
            seq,
            doubt: None,
            tail: None,
            pending: Pending::default(),
            leader_slots: 0,
        };
        shard.format_to(count)?;
        Ok(shard)
    }

    /// Opens a shard: with what its digest says if that is beyond doubt on this host, else from its slots
    /// alone; `visited` is told of slots as they are read. Damaged slots are listed, not judged: the caller
    /// decides, and calls [`Shard::take_over`] if it goes on.
    pub fn open(
        path: &Path,
        files: Files,
        identity: Identity,
        host: Host,
        visited: impl Fn(u32),
    ) -> Result<Self, RecoverError> {
        let mut slots = Slots::new(identity, files.slots);
        let page = slots.region.bytes(0, HEADER_PAGE_SIZE);
        let mut state = State::read(path, page)?;
        let found = Progress::read(path, page)?;
        let (role, progress) = match state.leads(&found) {
            // A promotion that was cut off has left the follower's.
            true => (Role::Leads, Progress::default()),
            false => (Role::Follows, found),
        };
        state.role = Some(role);
        let has_bad_copy = State::has_bad_copy(page);
        let is_cut_off = state.is_cut_off(host);
        let wanted = if is_cut_off { state.slots_durable } else { state.slots_formatted };
        let wanted = slots.offset(SlotIndex(wanted));
        if slots.region.len() < wanted {
            let (found, wanted) = (slots.region.len() as u64, wanted as u64);
            return Err(HeaderError::Truncated { path: path.into(), found, wanted }.into());
        }
        if is_cut_off {
            forget_lost(path, &mut slots, &mut state);
        }
        if has_bad_copy {
            let counted = state.slots_formatted;
            count_slots(&slots, &mut state);
            let found = state.slots_formatted;
            tracing::warn!(path = %path.display(), counted, found, "a copy of the header's state is not valid");
        }
        let count = state.slots_formatted;
        let derived = Derived::new(&slots, count, files.digest).map_err(RecoverError::Index)?;
        let mut shard = Self {
            slots,
            derived,
            state,
            progress,
            seq: Seq::ZERO,
            doubt: None,
            tail: None,
            pending: Pending::default(),
            leader_slots: 0,
        };
        shard.redo();
        let doubt = if has_bad_copy { Err(Doubt::State) } else { shard.check_digest(host) };
        match doubt {
            Ok(()) => shard.derived.load(&shard.slots, count),
            Err(_) => shard.derived.rebuild(&shard.slots, count, visited),
        }
        .map_err(RecoverError::Index)?;
        shard.doubt = doubt.err();
        shard.seq = shard.derived.last_seq(&shard.slots, count);
        if shard.derived.damaged.len() > DAMAGED_LEN_MAX {
            let (slot, error) = shard.derived.damaged.swap_remove(0);
            return Err(RecoverError::Damaged { slot, error });
        }
        Ok(shard)
    }

    /// Whether the digest is what the shard's last opening made of these very slots; then it is whole.
    fn check_digest(&mut self, host: Host) -> Result<(), Doubt> {
        let (State { session, slots_formatted: count, clean_seq, .. }, identity) =
            (&self.state, &self.slots.identity);
        let digest = &self.derived.digest;
        match clean_seq {
            Some(_) => digest.check_closed(*session, identity, *count)?,
            None if self.state.is_of(host) || is_planted(Bug::StaleDigestBelieved) => {
                digest.check_live(*session, identity, *count)?
            }
            None => return Err(Doubt::OsCrash),
        }
        // The one change that a kill may have cut off, between slot and digest.
        if let Some(slot) = self.redo_slot().filter(|_| clean_seq.is_none()) {
            self.derived.refresh(&self.slots, self.state.slots_formatted, slot);
        }
        let found = self.derived.last_seq(&self.slots, self.state.slots_formatted);
        if found > Seq::MAX {
            return Err(Doubt::Contents);
        }
        match self.state.clean_seq {
            Some(wanted) if wanted != found => Err(Doubt::Seq { found, wanted }),
            _ => Ok(()),
        }
    }

    /// Makes the shard this process's own; says how the last one ended. A leader's shard takes a new
    /// term, named `term_id`: what this process writes is told from what any other writes at the same seq.
    /// One that may have lost its tail waits with that, if it `regains`: see [`Shard::end_regain`].
    pub fn take_over(&mut self, host: Host, term_id: u64, regains: bool) -> io::Result<Ending> {
        let ending = self.ending(host);
        match ending {
            Ending::Clean => {}
            // A kill may have left a copy of the header that is not durable yet; the other one is about to be written.
            Ending::ProcessCrash if is_planted(Bug::KilledHeaderNotSynced) => {}
            Ending::ProcessCrash => self.sync_header()?,
            // Slots that were made again; from here on what there is counts as durable.
            Ending::OsCrash => self.sync()?,
        }
        if ending != Ending::ProcessCrash {
            self.state.slots_durable = self.slots_formatted();
        }
        if self.leads() {
            self.write_progress(Progress::default());
        }
        if ending == Ending::OsCrash && self.leads() {
            self.begin_regain();
            if !regains {
                self.close_regain();
                self.end_regain(host, term_id)?;
            }
            return Ok(ending);
        }
        if ending == Ending::OsCrash {
            self.distrust();
        } else if self.leads() {
            self.add_term(self.epoch(), term_id);
        } else if !self.derived.damaged.is_empty() {
            // Not the leader's state at any seq until the leader has sent the damaged slots again.
            self.set_progress(Progress { consistent_at: Seq::MAX, ..self.progress });
        }
        self.note_host(host, term_id);
        // The mark of an orderly close, which says that slots and digest are whole and belong together, is
        // gone from the disk before either changes: a power cut must not bring it back beside newer slots.
        if self.leads() {
            self.sync_state()?;
            self.bury_twins();
        } else {
            self.sync_header()?;
        }
        Ok(ending)
    }

    /// From here on the file is this process's, and the digest is what it keeps of it.
    pub(super) fn note_host(&mut self, host: Host, session: u64) {
        self.derived.digest.begin(session, &self.slots.identity);
        self.state.session = session;
        self.state.boot_id = host.boot_id;
        self.state.place_id = host.place_id;
        self.state.clean_seq = None;
        self.write_state();
    }

    fn ending(&self, host: Host) -> Ending {
        let state = &self.state;
        match state.clean_seq {
            // The mark was written after all else was durable: it counts on any machine.
            Some(seq) if seq == self.seq => Ending::Clean,
            _ if state.is_of(host) => Ending::ProcessCrash,
            _ => Ending::OsCrash,
        }
    }

    /// After an OS crash any slot may be older than it was: a follower's shard forgets its watermark and is
    /// scanned in full.
    fn distrust(&mut self) {
        if is_planted(Bug::WatermarkTrusted) {
            return;
        }
        if self.state.seq_reserved != 0 {
            // From the log: the watermark is durable, and slots that are ahead of it are so by chance.
            let whole = self.damaged().is_empty();
            let consistent_at = if whole { self.progress.consistent_at.max(self.seq) } else { Seq::MAX };
            self.set_progress(Progress { consistent_at, ..self.progress });
            return;
        }
        let step = match self.progress.step {
            Step::Rewind { fork, .. } => Step::Rewind { fork, next: SlotIndex(0) },
            Step::None | Step::Scan { .. } => Step::None,
        };
        self.set_progress(Progress { seq: Seq::ZERO, consistent_at: Seq::MAX, step, ..self.progress });
    }

    /// A leader's key is in one slot. After an OS crash an older slot may hold it too, whose reuse was lost:
    /// it becomes a tombstone, or a later delete would bring its value back.
    pub(super) fn bury_twins(&mut self) {
        for slot in std::mem::take(&mut self.derived.twins) {
            let view = self.slots.peek(slot).filter(|view| view.status() == Status::Occupied);
            let Some(key) = view.map(|view| view.key().to_vec()) else { continue };
            let hash = self.geometry().place(&key).hash;
            if self.find(hash, &key) == Some(slot) {
                // It got another image meanwhile.
                continue;
            }
            self.derived.free.insert(slot);
            self.commit(slot, Status::Deleted, 0, hash, &key, &[]);
        }
    }

    /// Whether the shard is as its log healed it.
    #[must_use]
    pub fn is_healed(&self) -> bool {
        self.state.seq_reserved != 0
    }

    /// The log has a newer word on the shard than what it was healed to, or all of it is durable.
    pub fn forget_reserved(&mut self) {
        if self.tail.is_none() && self.state.seq_reserved != 0 {
            self.state.seq_reserved = 0;
            self.write_state();
        }
    }

    /// Goes on above every seq that was ever given out, lost or not: by writing a slot again as it is, since the last
    /// seq is always a slot's. Where all are free, one becomes the tombstone of nothing.
    pub(super) fn skip_to(&mut self, reserved: Seq) {
        if reserved <= self.seq {
            return;
        }
        let slots = || (0..self.slots_formatted()).map(SlotIndex);
        let is_held = |slot: &SlotIndex| self.view(*slot).is_ok_and(|view| view.status() != Status::Free);
        let found = slots().find(is_held).or_else(|| slots().find(|slot| self.view(*slot).is_ok()));
        let Some((slot, Ok(view))) = found.map(|slot| (slot, self.view(slot))) else { return };
        let (status, expire_at) = match view.status() {
            Status::Free => (Status::Deleted, 0),
            held => (held, view.expire_at()),
        };
        let (key, value) = (view.key().to_vec(), view.value().to_vec());
        self.seq = reserved;
        let hash = self.geometry().place(&key).hash;
        self.commit(slot, status, expire_at, hash, &key, &value);
    }

    /// The slot that the last change named.
    fn redo_slot(&self) -> Option<SlotIndex> {
        let slot = SlotIndex(read_u32(self.slots.region.bytes(REDO_OFFSET, RECORD_HEADER_SIZE), 0));
        (slot.0 < self.slots_formatted()).then_some(slot)
    }

    /// Copies a whole redo record to its slot again, if the slot has not got it.
    fn redo(&mut self) {
        let Some(slot) = self.redo_slot() else { return };
        let size = read_u32(self.slots.region.bytes(REDO_OFFSET, RECORD_HEADER_SIZE), 4) as usize;
        if size == 0 || size > self.geometry().image_size_max() {
            return;
        }
        let image = self.slots.region.bytes(REDO_OFFSET + RECORD_HEADER_SIZE, size);
        let Ok(redo) = SlotView::check(self.geometry(), self.shard(), slot, image) else { return };
        if self.view(slot).is_ok_and(|view| view.seq() >= redo.seq()) {
            return;
        }
        let target = self.slots.offset(slot);
        self.slots.region.copy(REDO_OFFSET + RECORD_HEADER_SIZE, target, size);
    }

    /// Compares what is derived with a rebuild from the slots. Says what differs.
    pub fn check(&self) -> Result<(), String> {
        self.derived.check(&self.slots, self.slots_formatted())
    }

    /// A copy of the memory of the slots, as a backup of the file holds it.
    #[must_use]
    pub fn copy_region(&self) -> Region {
        self.slots.region.copy_to_heap()
    }

    /// A copy of all memory, as a killed process leaves it.
    #[must_use]
    pub fn copy_files(&self) -> Files {
        Files { slots: self.copy_region(), digest: self.derived.digest.region().copy_to_heap() }
    }

    /// Gives heap memory a disk.
    pub fn keep_disk(&self) {
        self.slots.region.keep_disk();
        self.derived.digest.region().keep_disk();
    }

    /// What a power cut leaves of heap memory, as far as it has a disk.
    #[must_use]
    pub fn files_on_disk(&self) -> Files {
        let digest = self.derived.digest.region();
        let Some((region, digest)) = self.slots.region.after_power_cut().zip(digest.after_power_cut()) else {
            return self.copy_files();
        };
        Files { slots: region, digest }
    }

    /// Lets those parts of heap memory reach its disk that are chosen: pages of the header, the redo record,
    /// slots, pages of the digest.
    pub fn write_back(&self, mut choose: impl FnMut() -> bool) {
        let half = HEADER_PAGE_SIZE / 2;
        let redo_size = self.slots.start - REDO_OFFSET;
        let slot_part = |slot| (self.slots.offset(SlotIndex(slot)), self.slots.stride);
        let slots = (0..self.slots_formatted()).map(slot_part);
        let slots = [(0, half), (half, half), (REDO_OFFSET, redo_size)].into_iter().chain(slots);
        let digest = self.derived.digest.region();
        let pages = (0..digest.len()).step_by(PAGE_SIZE).map(|offset| (offset, PAGE_SIZE));
        let slots = slots.map(|part| (&self.slots.region, part));
        for (region, (offset, len)) in slots.chain(pages.map(|part| (digest, part))) {
            if choose() {
                region.sync_part(offset, len).expect("heap memory");
            }
        }
    }

    /// Gives the memory of the slots back, as a killed process leaves it.
    #[must_use]
    pub fn into_region(self) -> Region {
        self.slots.region
    }
}

/// After an OS crash the file may lack what the header counts: the system writes both back in any order. A slot that
/// is missing was never made; one that was made since the last mark, and is not good, is made again, as it never held
/// anything durable.
fn forget_lost(path: &Path, slots: &mut Slots, state: &mut State) {
    let counted = state.slots_formatted;
    let room = (slots.region.len() - slots.start) / slots.stride;
    state.slots_formatted = counted.min(u32::try_from(room).unwrap_or(u32::MAX));
    let image_of = free_images(slots.identity.shard);
    let mut made_again = 0_u32;
    for slot in (state.slots_durable..state.slots_formatted).map(SlotIndex) {
        if slots.view(slot).is_err() {
            let (offset, image) = (slots.offset(slot), image_of(slot));
            slots.region.bytes_mut(offset, image.len()).copy_from_slice(&image);
            made_again += 1;
        }
    }
    let missing = counted - state.slots_formatted;
    if made_again > 0 || missing > 0 {
        let since = state.slots_durable;
        tracing::warn!(
            path = %path.display(), counted, since, made_again, missing,
            "the machine went down before all slots were on the disk: what was made since is empty where it is not whole"
        );
    }
}

/// Finds the slots that only a lost count knows: slots are made before they are counted.
fn count_slots(slots: &Slots, state: &mut State) {
    let end = (slots.region.len() - slots.start) / slots.stride;
    while (state.slots_formatted as usize) < end && slots.view(SlotIndex(state.slots_formatted)).is_ok() {
        state.slots_formatted += 1;
    }
}
