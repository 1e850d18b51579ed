//! The slots of a shard that hold no record, lowest first.
//!
//! Derived data: a rebuild from the slots gives the same set. A bitmap with summaries above it:
//! a bit of level n + 1 is set where the word below has any bit set, so that insert, remove and
//! first are a few words each, whatever the shard's size.

use crate::slot::SlotIndex;

const WORD_BITS: u32 = u64::BITS;

/// A set of slot indexes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FreeSet {
    levels: Vec<Vec<u64>>,
    len: u32,
}

fn split(index: u32) -> (usize, u64) {
    ((index / WORD_BITS) as usize, 1 << (index % WORD_BITS))
}

impl FreeSet {
    /// An empty set with room for the slots below `count`.
    #[must_use]
    pub fn with_room(count: u32) -> Self {
        let mut free = Self::default();
        if let Some(last) = count.checked_sub(1) {
            free.reach(last);
        }
        free
    }

    /// How many slots are free.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether no slot is free.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether this slot is free.
    #[must_use]
    pub fn contains(&self, slot: SlotIndex) -> bool {
        let (word, bit) = split(slot.0);
        self.levels.first().and_then(|level| level.get(word)).is_some_and(|word| word & bit != 0)
    }

    /// Adds a slot; no change if it is there.
    #[inline]
    pub fn insert(&mut self, slot: SlotIndex) {
        self.reach(slot.0);
        let mut index = slot.0;
        for (height, level) in self.levels.iter_mut().enumerate() {
            let (word, bit) = split(index);
            let before = level[word];
            if before & bit != 0 {
                return;
            }
            if height == 0 {
                self.len += 1;
            }
            level[word] = before | bit;
            if before != 0 {
                return;
            }
            index /= WORD_BITS;
        }
    }

    /// Adds a run of slots, a word of them at a time.
    pub fn insert_range(&mut self, slots: std::ops::Range<u32>) {
        // Highest first, so that the levels are made once.
        let mut end = slots.end;
        while end > slots.start {
            let start = slots.start.max((end - 1) / WORD_BITS * WORD_BITS);
            // The last one goes the long way, which keeps the levels above right.
            self.insert(SlotIndex(end - 1));
            let (word, _) = split(start);
            let run = (u64::MAX >> (WORD_BITS - (end - start))) << (start % WORD_BITS);
            let before = self.levels[0][word];
            self.len += (run & !before).count_ones();
            self.levels[0][word] = before | run;
            end = start;
        }
    }

    /// Takes a slot out; no change if it is not there.
    #[inline]
    pub fn remove(&mut self, slot: SlotIndex) {
        if !self.contains(slot) {
            return;
        }
        self.len -= 1;
        let mut index = slot.0;
        for level in &mut self.levels {
            let (word, bit) = split(index);
            level[word] &= !bit;
            if level[word] != 0 {
                return;
            }
            index /= WORD_BITS;
        }
    }

    /// The lowest free slot.
    #[inline]
    #[must_use]
    pub fn first(&self) -> Option<SlotIndex> {
        if self.is_empty() {
            return None;
        }
        let mut index = 0_u32;
        for level in self.levels.iter().rev() {
            let word = level[index as usize];
            index = index * WORD_BITS + word.trailing_zeros();
        }
        Some(SlotIndex(index))
    }

    /// Makes every level long enough for `index`, and the top one a single word.
    fn reach(&mut self, index: u32) {
        let bottom = (index / WORD_BITS) as usize + 1;
        if self.levels.first().is_some_and(|level| level.len() >= bottom) {
            return;
        }
        let mut words = bottom;
        let mut height = 0;
        loop {
            if self.levels.len() == height {
                // A new top summarises what was the top until now.
                let summary = self.levels.last().is_some_and(|below| below.first().is_some_and(|w| *w != 0));
                self.levels.push(vec![u64::from(summary)]);
            }
            let level = &mut self.levels[height];
            if level.len() < words {
                // Ahead of need by half, so that growth slot by slot stays linear.
                level.resize(words + if height == 0 { words / 2 } else { words / 2 + 1 }, 0);
            }
            if self.levels[height].len() == 1 {
                break;
            }
            words = self.levels[height].len().div_ceil(WORD_BITS as usize);
            height += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_an_ordered_set(
            ops in prop::collection::vec((0_u32..3, 0_u32..300_000, 1_u32..300), 1..400),
        ) {
            let (mut free, mut model) = (FreeSet::default(), BTreeSet::new());
            for (op, index, len) in ops {
                match op {
                    0 => {
                        free.insert(SlotIndex(index));
                        model.insert(index);
                    }
                    1 => {
                        free.insert_range(index..index + len);
                        model.extend(index..index + len);
                    }
                    _ => {
                        free.remove(SlotIndex(index));
                        model.remove(&index);
                    }
                }
                prop_assert_eq!(free.first().map(|slot| slot.0), model.first().copied());
                prop_assert_eq!(free.len() as usize, model.len());
                prop_assert_eq!(free.contains(SlotIndex(index)), op != 2);
            }
        }
    }

    #[test]
    fn is_emptied_lowest_first() {
        let mut free = FreeSet::default();
        for index in 0..10_000 {
            free.insert(SlotIndex(index));
        }
        for index in 0..10_000 {
            assert_eq!(free.first(), Some(SlotIndex(index)));
            free.remove(SlotIndex(index));
        }
        assert_eq!(free.first(), None);
    }
}
