//! Looking at slots one by one beside their users: at a shard that came back without a look at its slots.
//!
//! A damaged slot is set aside: its key leaves the index, no scan skips it, nothing reuses it. What is derived
//! and does not fit its slot is put right.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::slot::{Seq, SlotError, SlotIndex, Status};

use super::digest::{DAMAGED_BLOCK, Word};
use super::{Shard, Step};

/// What is wrong with a slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Its bytes.
    #[error(transparent)]
    Damaged(#[from] SlotError),
    /// What the shard took it for.
    #[error("the index, the free set or the digest did not fit it")]
    Misfit,
}

impl Shard {
    /// A damaged slot that may hold a key which is not in the index; where it is known what the slot held, only
    /// for that key.
    #[must_use]
    pub fn may_hide(&self, hash: u32) -> Option<&(SlotIndex, SlotError)> {
        let may_hide = |slot| self.derived.digest.word(slot).may_have_held(hash).unwrap_or(true);
        self.derived.damaged.iter().find(|(slot, _)| may_hide(*slot))
    }

    /// The damaged slot that is known to have held the key with this hash.
    #[must_use]
    pub fn damaged_holder(&self, hash: u32) -> Option<SlotIndex> {
        self.derived.damaged_holder(hash)
    }

    /// Whether any slot is damaged, for readers that run beside the owner.
    #[must_use]
    pub fn damage_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.derived.has_damaged)
    }

    /// Makes a tombstone of a damaged slot, whatever it held; returns the bytes that rings get.
    pub fn bury_damaged(&mut self, slot: SlotIndex, key: &[u8]) -> &[u8] {
        assert!(self.derived.is_damaged(slot), "only what is lost is buried unread");
        self.derived.free.insert(slot);
        self.stage(slot, Status::Deleted, 0, key, &[]);
        self.conclude(slot, key.len(), Some(Word::DELETED))
    }

    /// What is wrong with a slot, unless that is known already.
    #[must_use]
    pub fn fault(&self, slot: SlotIndex) -> Option<Fault> {
        if self.derived.is_damaged(slot) {
            return None;
        }
        let view = match self.view(slot) {
            Ok(view) => view,
            Err(error) => return Some(error.into()),
        };
        let hash = self.geometry().place(view.key()).hash;
        let word = Word::of(&view, hash);
        // What a rewind replaces is in no index.
        let is_rewinding = matches!(self.progress.step, Step::Rewind { .. });
        let is_found = || {
            let found = self.find(hash, view.key());
            found == Some(slot) || found.is_some_and(|other| self.slots.seq(other) > Some(view.seq()))
        };
        let fits = self.derived.digest.word(slot) == word
            && self.derived.digest.block(slot) >= view.seq().0
            && (self.derived.free.contains(slot) == word.is_vacant() || self.is_promised(slot))
            && (word.key_hash().is_none() || is_rewinding || is_found());
        (!fits).then_some(Fault::Misfit)
    }

    /// Sets a damaged slot aside, or puts right what is derived from a good one.
    pub fn mend(&mut self, slot: SlotIndex, fault: &Fault) -> std::io::Result<()> {
        let before = self.derived.digest.word(slot);
        let after = match self.slots.view(slot) {
            Ok(view) => Word::of(&view, self.geometry().place(view.key()).hash),
            Err(_) => before.damaged(),
        };
        if let Some(hash) = before.key_hash().filter(|hash| after.key_hash() != Some(*hash)) {
            self.derived.index.remove(hash, slot);
        }
        self.derived.set_word(slot, after);
        self.seq = self.seq.max(self.slots.view(slot).map_or(Seq::ZERO, |view| view.seq()));
        if let Fault::Damaged(error) = fault {
            self.derived.free.remove(slot);
            self.derived.note_damage(slot, error.clone());
            self.derived.digest.set_block(slot, DAMAGED_BLOCK);
            return Ok(());
        }
        if after.is_vacant() {
            self.derived.free.insert(slot);
        } else {
            self.derived.free.remove(slot);
        }
        self.derived.summarise(&self.slots, self.state.slots_formatted, slot);
        match after.key_hash() {
            Some(hash) if !matches!(self.progress.step, Step::Rewind { .. }) => {
                self.derived.enter_key(&self.slots, slot, hash)
            }
            _ => Ok(()),
        }
    }
}
