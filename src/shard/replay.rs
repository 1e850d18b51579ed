//! What the log keeps of a shard beside its records, and putting both back after a power cut.
//!
//! A replay works on the shard's bytes alone: slots and header. Then the shard is opened as after any power cut,
//! and everything derived comes from the slots. Cut off at any instruction it is done again from its beginning:
//! an image is copied if it is newer than what its slot has, or its slot is damaged.
//!
//! A shard as the log has it, little-endian:
//!
//! | offset | size | field           | meaning                                        |
//! |-------:|-----:|-----------------|------------------------------------------------|
//! |      0 |    8 | seq             | last one at that moment                        |
//! |      8 |    4 | slots formatted | at that moment                                 |
//! |     12 |    2 | step            | of the progress, as in [`super::header`]       |
//! |     14 |    2 | role            | as in [`super::header`]                        |
//! |     16 |    8 | epoch           | of the progress                                |
//! |     24 |    8 | watermark       | of the progress                                |
//! |     32 |    8 | consistent at   | of the progress                                |
//! |     40 |    8 | step seq        | of the progress                                |
//! |     48 |    4 | step slot       | of the progress                                |
//! |     52 |    4 | lineage length  | terms                                          |
//! |     56 | 24 n | lineage         | epoch u64, id u64, first seq u64; oldest first |

use std::path::Path;

use crate::planted::{Bug, is_planted};
use crate::region::{Region, prefetch};
use crate::slot::image::{free_images, read_u16, read_u32, read_u64};
use crate::slot::{Record, Seq, SlotIndex, SlotView};

use super::header::{
    HEADER_PAGE_SIZE, HeaderError, Identity, LINEAGE_LEN_MAX, Progress, Role, State, Step, Term, slots_offset,
};
use super::{ApplyError, REDO_OFFSET, Shard};

/// A leader gives out no seq that is so far above the last durable one. So a seq that is so far above it was never
/// given out, whatever was lost: nothing has to be written to reserve it.
pub const SEQ_WINDOW: u64 = 1 << 24;

const LOGGED_FIXED_SIZE: usize = 56;
const TERM_SIZE: usize = 24;
const PAGE_SIZE: usize = 4096;

/// What a shard is beside its slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// Last seq.
    pub seq: Seq,
    /// Slots below this had a status.
    pub slots_formatted: u32,
    /// Whose history it holds; none where an older release said it.
    pub role: Option<Role>,
    /// How far it has followed.
    pub progress: Progress,
    /// Oldest first.
    pub lineage: Vec<Term>,
}

impl Logged {
    /// Its bytes in the log.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, step_seq, step_slot) = match self.progress.step {
            Step::None => (0_u16, Seq::ZERO, SlotIndex(0)),
            Step::Scan { next, through } => (1, through, next),
            Step::Rewind { fork, next } => (2, fork, next),
        };
        let mut bytes = Vec::with_capacity(LOGGED_FIXED_SIZE + self.lineage.len() * TERM_SIZE);
        bytes.extend_from_slice(&self.seq.0.to_le_bytes());
        bytes.extend_from_slice(&self.slots_formatted.to_le_bytes());
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&self.role.map_or(0, |role| role as u16).to_le_bytes());
        for word in [self.progress.epoch, self.progress.seq.0, self.progress.consistent_at.0, step_seq.0] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&step_slot.0.to_le_bytes());
        let terms = u32::try_from(self.lineage.len()).expect("at most 128");
        bytes.extend_from_slice(&terms.to_le_bytes());
        for word in self.lineage.iter().flat_map(|term| [term.epoch, term.id, term.first_seq]) {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// What these bytes say; none if they are no shard.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (fixed, terms) = bytes.split_at_checked(LOGGED_FIXED_SIZE)?;
        let terms_len = read_u32(fixed, 52) as usize;
        if !(1..=LINEAGE_LEN_MAX).contains(&terms_len) || terms.len() != terms_len * TERM_SIZE {
            return None;
        }
        let (step_seq, step_slot) = (Seq(read_u64(fixed, 40)), SlotIndex(read_u32(fixed, 48)));
        let role = u8::try_from(read_u16(fixed, 14)).ok().and_then(|role| Role::from_number(role).ok())?;
        let step = match read_u16(fixed, 12) {
            0 => Step::None,
            1 => Step::Scan { next: step_slot, through: step_seq },
            2 => Step::Rewind { fork: step_seq, next: step_slot },
            _ => return None,
        };
        let term = |term: &[u8]| Term {
            epoch: read_u64(term, 0),
            id: read_u64(term, 8),
            first_seq: read_u64(term, 16),
        };
        Some(Self {
            seq: Seq(read_u64(fixed, 0)),
            slots_formatted: read_u32(fixed, 8),
            role,
            progress: Progress {
                epoch: read_u64(fixed, 16),
                seq: Seq(read_u64(fixed, 24)),
                consistent_at: Seq(read_u64(fixed, 32)),
                step,
            },
            lineage: terms.chunks_exact(TERM_SIZE).map(term).collect(),
        })
    }
}

impl Shard {
    /// What the log keeps of the shard beside its records.
    #[must_use]
    pub fn logged(&self) -> Logged {
        Logged {
            // What a shard that waits for its tail holds beyond it is not all that there was.
            seq: self.tail().unwrap_or(self.made()),
            slots_formatted: self.slots_formatted(),
            role: self.state.role,
            progress: self.progress(),
            lineage: self.lineage().to_vec(),
        }
    }

    /// Whether the log knows the shard as it is, but for its slots.
    #[must_use]
    pub fn is_logged(&self, said: &Logged) -> bool {
        said.role == self.state.role && said.progress == self.progress() && said.lineage == self.lineage()
    }
}

/// A shard's bytes after a power cut, on their way back to what the log knows.
#[derive(Debug)]
pub struct Healing {
    identity: Identity,
    region: Region,
    state: State,
    last: Logged,
    durable: Seq,
    /// Images that were copied.
    pub healed: u64,
}

impl Healing {
    /// Begins with what the log's first word on the shard was: what it says of slots was durable when the log was
    /// cut there. Slots made since then were perhaps never written.
    pub fn begin(
        path: &Path,
        region: Region,
        identity: Identity,
        first: Logged,
    ) -> Result<Self, HeaderError> {
        let stride = identity.geometry.slot_stride();
        let wanted = slots_offset(&identity.geometry) + first.slots_formatted as usize * stride;
        if region.len() < wanted {
            let (found, wanted) = (region.len() as u64, wanted as u64);
            return Err(HeaderError::Truncated { path: path.into(), found, wanted });
        }
        // Both copies may have been on their way: everything in them is in the log, too.
        let counted =
            State::read(path, region.bytes(0, HEADER_PAGE_SIZE)).map_or(0, |state| state.slots_formatted);
        let room = (region.len() - slots_offset(&identity.geometry)) / stride;
        let slots_formatted = counted.max(first.slots_formatted).min(u32::try_from(room).unwrap_or(u32::MAX));
        let state = State {
            slots_formatted,
            slots_durable: slots_formatted,
            seq_reserved: 0,
            boot_id: [0; 16],
            place_id: 0,
            clean_seq: None,
            durable_seq: Seq::ZERO,
            session: 0,
            role: first.role,
            lineage: first.lineage.clone(),
        };
        let mut healing = Self { identity, region, state, durable: first.seq, last: first, healed: 0 };
        let made_since = healing.last.slots_formatted..slots_formatted;
        made_since.for_each(|slot| healing.format(SlotIndex(slot)));
        Ok(healing)
    }

    fn offset(&self, slot: SlotIndex) -> usize {
        let geometry = &self.identity.geometry;
        slots_offset(geometry) + slot.0 as usize * geometry.slot_stride()
    }

    fn view(&self, slot: SlotIndex) -> Option<SlotView<'_>> {
        let bytes = self.region.bytes(self.offset(slot), self.identity.geometry.slot_stride());
        SlotView::check(&self.identity.geometry, self.identity.shard, slot, bytes).ok()
    }

    /// Makes a slot free that holds nothing good. What it may have held is in the log, or was never durable.
    fn format(&mut self, slot: SlotIndex) {
        if self.view(slot).is_none() {
            let image = free_images(self.identity.shard)(slot);
            let offset = self.offset(slot);
            self.region.bytes_mut(offset, image.len()).copy_from_slice(&image);
        }
    }

    /// Begins to read all of it: a replay goes here and there, and a disk takes long for each of its pages.
    pub fn read_ahead(&self) {
        self.region.read_ahead(0, self.region.len());
    }

    /// Starts loading what a record will be compared with.
    #[inline]
    pub fn prefetch(&self, slot: SlotIndex) {
        if slot.0 < self.state.slots_formatted {
            let address = self.region.address(self.offset(slot));
            prefetch(address);
            prefetch(address + self.identity.geometry.slot_stride().min(128) - 1);
        }
    }

    /// Puts back a record of the log.
    pub fn apply(&mut self, record: Record<'_>, is_forced: bool) -> Result<(), ApplyError> {
        let slot = record.slot;
        let new = SlotView::check(&self.identity.geometry, self.identity.shard, slot, record.image)
            .map_err(|error| ApplyError::Slot { slot, error })?;
        while self.state.slots_formatted <= slot.0 {
            let made = SlotIndex(self.state.slots_formatted);
            let end = self.offset(SlotIndex(made.0 + 1)).next_multiple_of(PAGE_SIZE);
            self.region.grow(end).map_err(|error| ApplyError::Full { slot, error })?;
            self.format(made);
            self.state.slots_formatted += 1;
        }
        if !is_forced && self.view(slot).is_some_and(|old| old.seq() >= new.seq()) {
            return Ok(());
        }
        let offset = self.offset(slot);
        self.region.bytes_mut(offset, record.image.len()).copy_from_slice(record.image);
        self.healed += 1;
        Ok(())
    }

    /// Notes a later word on the shard.
    pub fn note(&mut self, logged: Logged) {
        self.durable = logged.seq;
        self.last = logged;
    }

    /// Writes the header, so that the shard is opened as after a power cut, and makes all of it durable.
    pub fn finish(mut self) -> std::io::Result<Region> {
        self.state.role = self.last.role;
        self.state.slots_durable = self.state.slots_formatted;
        let leads = self.state.leads(&self.last.progress);
        self.state.durable_seq = if leads { self.durable } else { self.last.progress.seq };
        self.state.seq_reserved = self.durable.0 + if is_planted(Bug::SeqReused) { 1 } else { SEQ_WINDOW };
        self.state.lineage = self.last.lineage;
        // What was on its way to a slot is in the log, or was never durable.
        self.region.bytes_mut(REDO_OFFSET, 8).fill(0);
        let page = self.region.bytes_mut(0, HEADER_PAGE_SIZE);
        // Twice, so that both copies are good and say the same.
        for _ in 0..2 {
            self.state.write(page);
            self.last.progress.write(page);
        }
        self.region.sync()?;
        Ok(self.region)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_read_from_the_log_as_it_was_written_and_nothing_else_is() {
        for step in [
            Step::None,
            Step::Scan { next: SlotIndex(3), through: Seq(9) },
            Step::Rewind { fork: Seq(4), next: SlotIndex(1) },
        ] {
            let logged = Logged {
                seq: Seq(77),
                slots_formatted: 12,
                role: Some(Role::Follows),
                progress: Progress { epoch: 2, seq: Seq(70), consistent_at: Seq::MAX, step },
                lineage: vec![
                    Term { epoch: 1, id: 5, first_seq: 1 },
                    Term { epoch: 2, id: 6, first_seq: 40 },
                ],
            };
            let bytes = logged.encode();
            assert_eq!(Logged::decode(&bytes), Some(logged));
            for len in 0..bytes.len() {
                assert_eq!(Logged::decode(&bytes[..len]), None, "{len} bytes");
            }
        }
    }
}
