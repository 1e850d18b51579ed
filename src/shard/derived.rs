//! What follows from a shard's slots: index, free set, counts, digest. Made from all slots, or from the
//! digest that an earlier process kept of them; the two ways give the same.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::region::Region;
use crate::slot::{Seq, SlotError, SlotIndex, SlotView};

use super::digest::{DAMAGED_BLOCK, Digest, Word};
use super::free::FreeSet;
use super::index::Index;
use super::recover::DAMAGED_LEN_MAX;
use super::slots::Slots;
use super::{BLOCK_SLOTS, Counts};

// Words entered together, some blocks' and never more than a chunk's rest: their buckets are on their way from
// memory meanwhile.
const BATCH: u32 = 8 * BLOCK_SLOTS;
/// After a power cut nothing of a file is in memory: so many slots are asked for while those before are looked at.
const READ_SLOTS: u32 = 4096;

#[derive(Debug)]
pub(super) struct Derived {
    pub(super) index: Index,
    pub(super) free: FreeSet,
    pub(super) digest: Digest,
    pub(super) counts: Counts,
    /// Slots whose bytes were found damaged, and that nothing has replaced since.
    pub(super) damaged: Vec<(SlotIndex, SlotError)>,
    /// Whether there are any, for readers that run beside the owner.
    pub(super) has_damaged: Arc<AtomicBool>,
    /// Occupied slots found while the shard was opened, or got its tail back, whose key a newer slot held.
    pub(super) twins: Vec<SlotIndex>,
}

impl Derived {
    /// Of no slots yet, with room for `slots`.
    pub(super) fn new(slots: &Slots, count: u32, digest: Region) -> io::Result<Self> {
        Ok(Self {
            index: Index::new(count as usize, slots.count_max() as usize)?,
            free: FreeSet::with_room(count),
            digest: Digest::new(digest),
            counts: Counts::default(),
            damaged: Vec::new(),
            has_damaged: Arc::default(),
            twins: Vec::new(),
        })
    }

    /// Reads every slot. `visited` is told of slots as they are read.
    pub(super) fn rebuild(&mut self, slots: &Slots, count: u32, visited: impl Fn(u32)) -> io::Result<()> {
        self.digest.reset(count)?;
        let mut words = [Word::FREE; BATCH as usize];
        for first in (0..count).step_by(BATCH as usize) {
            if first % READ_SLOTS == 0 {
                slots.read_ahead(SlotIndex(first), 2 * READ_SLOTS);
            }
            let len = BATCH.min(count - first) as usize;
            for (slot, word) in (first..count).map(SlotIndex).zip(&mut words) {
                let mut summary = if slot.0 % BLOCK_SLOTS == 0 { 0 } else { self.digest.block(slot) };
                match slots.view(slot) {
                    Ok(view) => {
                        *word = self.word_of(slots, &view);
                        summary = summary.max(view.seq().0);
                    }
                    Err(_) => (*word, summary) = (Word::DAMAGED, DAMAGED_BLOCK),
                }
                self.digest.set_word(slot, *word);
                self.digest.set_block(slot, summary);
            }
            self.enter(slots, SlotIndex(first), &words[..len])?;
            if first % READ_SLOTS == 0 {
                visited((count - first).min(READ_SLOTS));
            }
        }
        Ok(())
    }

    /// Believes the digest.
    pub(super) fn load(&mut self, slots: &Slots, count: u32) -> io::Result<()> {
        let mut words = [Word::FREE; BATCH as usize];
        let mut first = 0;
        while first < count {
            let mut run = self.digest.run(SlotIndex(first), count);
            let len = run.len().min(BATCH as usize);
            words.iter_mut().zip(&mut run).for_each(|(word, found)| *word = found);
            drop(run);
            self.enter(slots, SlotIndex(first), &words[..len])?;
            first += BATCH;
        }
        Ok(())
    }

    fn word_of(&self, slots: &Slots, view: &SlotView<'_>) -> Word {
        Word::of(view, slots.identity.geometry.place(view.key()).hash)
    }

    /// Takes up slots with these words, which nothing is known of yet.
    fn enter(&mut self, slots: &Slots, first: SlotIndex, words: &[Word]) -> io::Result<()> {
        words.iter().filter_map(|word| word.key_hash()).for_each(|hash| self.index.prefetch(hash));
        for (slot, word) in (first.0..).map(SlotIndex).zip(words) {
            self.count(Word::FREE, *word);
            match word.key_hash() {
                Some(hash) => self.enter_key(slots, slot, hash)?,
                None if word.is_vacant() => self.free.insert(slot),
                None => self.enter_damaged(slots, slot)?,
            }
        }
        Ok(())
    }

    /// A key that lies in two slots belongs to the newer seq.
    #[inline]
    pub(super) fn enter_key(&mut self, slots: &Slots, slot: SlotIndex, hash: u32) -> io::Result<()> {
        let names_same_key = |other| match (slots.peek(slot), slots.peek(other)) {
            (Some(view), Some(other)) => view.key() == other.key(),
            _ => false,
        };
        match self.index.find_or_insert(hash, slot, names_same_key)? {
            None => {}
            Some(other) if other == slot => {}
            Some(other) if slots.seq(other) < slots.seq(slot) => {
                self.index.replace(hash, other, slot);
                self.twins.push(other);
            }
            Some(_) => self.twins.push(slot),
        }
        Ok(())
    }

    #[cold]
    fn enter_damaged(&mut self, slots: &Slots, slot: SlotIndex) -> io::Result<()> {
        match slots.view(slot) {
            Err(error) if self.damaged.len() <= DAMAGED_LEN_MAX => self.note_damage(slot, error),
            Err(_) => {}
            // It was healed, and the process killed before it could say so.
            Ok(view) => {
                let word = self.word_of(slots, &view);
                self.count(Word::DAMAGED, word);
                self.digest.set_word(slot, word);
                match word.key_hash() {
                    Some(hash) => self.enter_key(slots, slot, hash)?,
                    None => self.free.insert(slot),
                }
            }
        }
        Ok(())
    }

    /// Makes the word and the summary of a slot anew that a change may have left behind.
    pub(super) fn refresh(&mut self, slots: &Slots, count: u32, slot: SlotIndex) {
        let word = match slots.view(slot) {
            Ok(view) => self.word_of(slots, &view),
            Err(_) => self.digest.word(slot).damaged(),
        };
        self.digest.set_word(slot, word);
        self.summarise(slots, count, slot);
    }

    /// Makes a block's summary anew, after one of its slots was healed or went back.
    #[cold]
    pub(super) fn summarise(&mut self, slots: &Slots, count: u32, slot: SlotIndex) {
        let seq = |slot| slots.view(slot).map_or(DAMAGED_BLOCK, |view| view.seq().0);
        self.digest.set_block(slot, block_of(slot, count).map(seq).max().unwrap_or(0));
    }

    /// The highest seq of all slots that are not damaged.
    pub(super) fn last_seq(&self, slots: &Slots, count: u32) -> Seq {
        let good = |slot| slots.view(slot).map_or(0, |view| view.seq().0);
        let highest = |(first, summary)| match summary {
            DAMAGED_BLOCK => block_of(first, count).map(good).max().unwrap_or(0),
            summary => summary,
        };
        Seq(self.digest.blocks(count).map(highest).max().unwrap_or(0))
    }

    /// Notes what a slot has become; says whether it was damaged until now.
    #[inline]
    pub(super) fn set_word(&mut self, slot: SlotIndex, word: Word) -> bool {
        let before = self.digest.word(slot);
        self.count(before, word);
        self.digest.set_word(slot, word);
        before.is_damaged() && self.forget_damage(slot)
    }

    /// Whether the slot was found damaged.
    #[inline]
    pub(super) fn is_damaged(&self, slot: SlotIndex) -> bool {
        self.damaged.iter().any(|(damaged, _)| *damaged == slot)
    }

    #[cold]
    fn forget_damage(&mut self, slot: SlotIndex) -> bool {
        self.damaged.retain(|(damaged, _)| *damaged != slot);
        self.has_damaged.store(!self.damaged.is_empty(), Ordering::Relaxed);
        true
    }

    pub(super) fn note_damage(&mut self, slot: SlotIndex, error: SlotError) {
        self.damaged.push((slot, error));
        self.has_damaged.store(true, Ordering::Relaxed);
    }

    /// The damaged slot that held the key with this hash.
    pub(super) fn damaged_holder(&self, hash: u32) -> Option<SlotIndex> {
        let held = |slot: &SlotIndex| self.digest.word(*slot).may_have_held(hash) == Some(true);
        self.damaged.iter().map(|(slot, _)| *slot).find(held)
    }

    /// Keeps the counts right for a slot that changes.
    #[inline]
    fn count(&mut self, before: Word, after: Word) {
        let counts = &mut self.counts;
        counts.occupied -= u64::from(before.key_hash().is_some());
        counts.expiring -= u64::from(before.expires());
        counts.deleted -= u64::from(before == Word::DELETED);
        counts.occupied += u64::from(after.key_hash().is_some());
        counts.expiring += u64::from(after.expires());
        counts.deleted += u64::from(after == Word::DELETED);
    }

    /// Compares everything with what the slots say, one by one. Says what differs.
    pub(super) fn check(&self, slots: &Slots, count: u32) -> Result<(), String> {
        let (mut free, mut counts, mut indexed) = (FreeSet::default(), Counts::default(), 0_usize);
        for slot in (0..count).map(SlotIndex) {
            if self.is_damaged(slot) {
                if !self.digest.word(slot).is_damaged() || self.digest.block(slot) != DAMAGED_BLOCK {
                    return Err(format!("slot {slot}: it is damaged, and the digest does not say so"));
                }
                continue;
            }
            let view = slots.view(slot).map_err(|error| format!("slot {slot}: {error}"))?;
            let word = self.word_of(slots, &view);
            if self.digest.word(slot) != word {
                return Err(format!(
                    "slot {slot}: its word is {:?}, wanted {word:?}",
                    self.digest.word(slot)
                ));
            }
            counts.deleted += u64::from(word == Word::DELETED);
            if word.is_vacant() {
                free.insert(slot);
                continue;
            }
            counts.occupied += 1;
            counts.expiring += u64::from(view.expire_at() != 0);
            let place = slots.identity.geometry.place(view.key());
            if place.shard != slots.identity.shard {
                return Err(format!("slot {slot}: its key belongs to shard {}", place.shard));
            }
            match self.index.find(place.hash, |slot| slots.names(slot, view.key())) {
                Some(found) if found == slot => indexed += 1,
                Some(other) => return Err(format!("slot {slot}: its key is also in slot {other}")),
                None => return Err(format!("slot {slot}: its key is not in the index")),
            }
        }
        if indexed != self.index.len() {
            return Err(format!("the index has {} entries, the slots hold {indexed} keys", self.index.len()));
        }
        let differs = |slot| free.contains(slot) != self.free.contains(slot);
        if free.len() != self.free.len() || (0..count).map(SlotIndex).any(differs) {
            return Err(format!("the free set has {} slots, a rebuild {}", self.free.len(), free.len()));
        }
        if counts != self.counts {
            return Err(format!("counts are {}, a rebuild gives {counts}", self.counts));
        }
        let seq = |slot| slots.view(slot).map_or(DAMAGED_BLOCK, |view| view.seq().0);
        let is_right = |(first, summary)| block_of(first, count).map(seq).max() == Some(summary);
        if !self.digest.blocks(count).all(is_right) {
            return Err("a block summary differs from its slots".into());
        }
        Ok(())
    }
}

/// The slots of a slot's block, of `count` in all.
fn block_of(slot: SlotIndex, count: u32) -> impl Iterator<Item = SlotIndex> {
    let first = slot.0 / BLOCK_SLOTS * BLOCK_SLOTS;
    (first..(first + BLOCK_SLOTS).min(count)).map(SlotIndex)
}
