//! From a key's hash to the slot that may hold it: open addressing over cache-line buckets.
//!
//! A bucket is one line of eight 64-bit entries: 32 bits of hash, never zero, and the slot index + 1;
//! zero is empty.
//! A hash's home is `hash * bucket_count >> 32`, so buckets are in hash order and doubling the
//! table is one sequential pass that reads no slot. A full bucket spills into the next one.
//! Invariant: from an entry's home to the bucket it lies in, every bucket before that is full. A
//! search may therefore stop at the first bucket that has an empty entry.
//! Keys are not stored: the caller says whether a candidate slot holds the key.
//! The table grows in place, within a reserve of address space, so that a reader beside the writer
//! always reads a table, though perhaps one half-changed; it finds that out by the shard's version.

use std::io;

use crate::region::{LINE_SIZE, Region, Window, high_halves_equal, prefetch};
use crate::slot::SlotIndex;

const BUCKET_ENTRIES: usize = 8;
const BUCKET_COUNT_MIN: usize = 8;
const HEAP_MAX: usize = 64 << 10;

/// Address space for a table: the largest power of two of buckets that a shard's slots can call for,
/// unless many shards share the process's address space.
fn reserve_for(entries_max: usize) -> usize {
    const RESERVE_MAX: usize = 1 << 34;
    (Index::bucket_count_for(entries_max) * LINE_SIZE).min(RESERVE_MAX)
}

/// Slot indexes by hash.
#[derive(Debug)]
pub struct Index {
    region: Region,
    bucket_count: usize,
    len: usize,
}

#[inline]
fn entry(hash: u32, slot: SlotIndex) -> u64 {
    (u64::from(hash) << 32) | (u64::from(slot.0) + 1)
}

#[inline]
fn entry_hash(entry: u64) -> u32 {
    (entry >> 32) as u32
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "takes an entry apart")]
fn entry_slot(entry: u64) -> SlotIndex {
    SlotIndex((entry as u32).wrapping_sub(1))
}

#[inline]
fn home(hash: u32, bucket_count: usize) -> usize {
    ((u64::from(hash) * bucket_count as u64) >> 32) as usize
}

#[inline]
fn find_in(
    line: &[u64; BUCKET_ENTRIES],
    hash: u32,
    mut is_key: impl FnMut(SlotIndex) -> bool,
) -> Option<SlotIndex> {
    let mut matches = high_halves_equal(line, hash);
    while matches != 0 {
        let slot = entry_slot(line[matches.trailing_zeros() as usize]);
        if is_key(slot) {
            return Some(slot);
        }
        matches &= matches - 1;
    }
    None
}

impl Index {
    /// An empty index with room for `len` entries, that grows to at most `entries_max`.
    pub fn new(len: usize, entries_max: usize) -> io::Result<Self> {
        let bucket_count = Self::bucket_count_for(len);
        let (size, reserved) = (bucket_count * LINE_SIZE, reserve_for(entries_max.max(len)));
        // A small table is not worth a huge page; heap words also serve where there is no mmap.
        let region = if cfg!(miri) || reserved < HEAP_MAX {
            Region::heap(size, reserved)
        } else {
            Region::anonymous(size, reserved)?
        };
        Ok(Self { region, bucket_count, len: 0 })
    }

    /// Buckets that hold `len` entries at three quarters full.
    fn bucket_count_for(len: usize) -> usize {
        (len * 4).div_ceil(BUCKET_ENTRIES * 3).next_power_of_two().max(BUCKET_COUNT_MIN)
    }

    /// Entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes of memory it takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.region.len()
    }

    /// Makes room for `len` entries in all.
    pub fn reserve(&mut self, len: usize) -> io::Result<()> {
        if Self::bucket_count_for(len) > self.bucket_count {
            self.resize(Self::bucket_count_for(len))
        } else {
            Ok(())
        }
    }

    /// The slot with this hash for which `is_key` says yes.
    #[inline]
    pub fn find(&self, hash: u32, mut is_key: impl FnMut(SlotIndex) -> bool) -> Option<SlotIndex> {
        let mut bucket = home(hash, self.bucket_count);
        loop {
            let line = self.region.line(bucket);
            if let Some(slot) = find_in(line, hash, &mut is_key) {
                return Some(slot);
            }
            // Entries of a bucket are packed to its front: the last one empty = room = end of search.
            if line[BUCKET_ENTRIES - 1] == 0 {
                return None;
            }
            bucket = self.next(bucket);
        }
    }

    /// The first slot with this hash in its home bucket; whether it holds the key is not known yet.
    #[inline]
    pub fn first_candidate(&self, hash: u32) -> Option<SlotIndex> {
        find_in(self.region.line(home(hash, self.bucket_count)), hash, |_| true)
    }

    /// Adds an entry that is not there. Fails only where the table must grow and memory is out;
    /// nothing is changed then.
    #[inline]
    pub fn insert(&mut self, hash: u32, slot: SlotIndex) -> io::Result<()> {
        if (self.len + 1) * 4 > self.bucket_count * BUCKET_ENTRIES * 3 {
            self.resize(self.bucket_count * 2)?;
        }
        self.place(entry(hash, slot));
        Ok(())
    }

    /// The slot with this hash for which `is_key` says yes; adds the entry if there is none. As
    /// [`Index::find`] and [`Index::insert`], in one look at each bucket.
    #[inline]
    pub fn find_or_insert(
        &mut self,
        hash: u32,
        slot: SlotIndex,
        mut is_key: impl FnMut(SlotIndex) -> bool,
    ) -> io::Result<Option<SlotIndex>> {
        if (self.len + 1) * 4 > self.bucket_count * BUCKET_ENTRIES * 3 {
            self.resize(self.bucket_count * 2)?;
        }
        let mut bucket = home(hash, self.bucket_count);
        loop {
            if let Some(slot) = find_in(self.region.line(bucket), hash, &mut is_key) {
                return Ok(Some(slot));
            }
            if self.place_in(bucket, entry(hash, slot)) {
                return Ok(None);
            }
            bucket = self.next(bucket);
        }
    }

    /// Points the entry of `from` at `to`.
    pub fn replace(&mut self, hash: u32, from: SlotIndex, to: SlotIndex) -> bool {
        let Some((bucket, place)) = self.locate(hash, from) else { return false };
        self.region.set_word(bucket, place, entry(hash, to));
        true
    }

    /// Takes the entry of a slot out, if it is there.
    pub fn remove(&mut self, hash: u32, slot: SlotIndex) -> bool {
        let Some((mut hole, mut place)) = self.locate(hash, slot) else { return false };
        self.len -= 1;
        loop {
            let was_full = self.region.line(hole)[BUCKET_ENTRIES - 1] != 0;
            if !was_full {
                self.take_out(hole, place);
                return true;
            }
            // The bucket was full: an entry further on may be there only because of that.
            let Some((bucket, other)) = self.spilled_over(hole) else {
                self.take_out(hole, place);
                return true;
            };
            let spilled = self.region.line(bucket)[other];
            self.region.set_word(hole, place, spilled);
            (hole, place) = (bucket, other);
        }
    }

    /// An entry behind bucket `hole` whose home is `hole` or before it.
    fn spilled_over(&self, hole: usize) -> Option<(usize, usize)> {
        let mut bucket = self.next(hole);
        while bucket != hole {
            let line = self.region.line(bucket);
            for (place, entry) in line.iter().enumerate().filter(|(_, entry)| **entry != 0) {
                let home = home(entry_hash(*entry), self.bucket_count);
                let (from_home, from_hole) = (self.distance(home, bucket), self.distance(hole, bucket));
                if from_home >= from_hole {
                    return Some((bucket, place));
                }
            }
            if line[BUCKET_ENTRIES - 1] == 0 {
                return None;
            }
            bucket = self.next(bucket);
        }
        None
    }

    fn take_out(&mut self, bucket: usize, place: usize) {
        let line = self.region.line(bucket);
        let last = line.iter().rposition(|entry| *entry != 0).unwrap_or(place);
        let moved = line[last];
        self.region.set_word(bucket, place, moved);
        self.region.set_word(bucket, last, 0);
    }

    fn locate(&self, hash: u32, slot: SlotIndex) -> Option<(usize, usize)> {
        let wanted = entry(hash, slot);
        let mut bucket = home(hash, self.bucket_count);
        loop {
            let line = self.region.line(bucket);
            if let Some(place) = line.iter().position(|entry| *entry == wanted) {
                return Some((bucket, place));
            }
            if line[BUCKET_ENTRIES - 1] == 0 {
                return None;
            }
            bucket = self.next(bucket);
        }
    }

    #[inline]
    fn place(&mut self, entry: u64) {
        let mut bucket = home(entry_hash(entry), self.bucket_count);
        while !self.place_in(bucket, entry) {
            bucket = self.next(bucket);
        }
    }

    #[inline]
    fn place_in(&mut self, bucket: usize, entry: u64) -> bool {
        let empty = high_halves_equal(self.region.line(bucket), 0);
        if empty == 0 {
            return false;
        }
        self.region.set_word(bucket, empty.trailing_zeros() as usize, entry);
        self.len += 1;
        true
    }

    #[inline]
    fn next(&self, bucket: usize) -> usize {
        if bucket + 1 == self.bucket_count { 0 } else { bucket + 1 }
    }

    #[inline]
    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from { to - from } else { to + self.bucket_count - from }
    }

    /// Grows the table in place, from its last bucket to its first: an entry's new home is never before
    /// its old one, so it lies among buckets that are done.
    #[cold]
    fn resize(&mut self, bucket_count: usize) -> io::Result<()> {
        let (old_count, len) = (self.bucket_count, self.len);
        self.region.grow(bucket_count * LINE_SIZE)?;
        self.bucket_count = bucket_count;
        self.len = 0;
        // Entries that lay behind their home, and whose new place is not done yet or wraps around.
        let mut later = Vec::new();
        for bucket in (0..old_count).rev() {
            let line = *self.region.line(bucket);
            (0..BUCKET_ENTRIES).for_each(|place| self.region.set_word(bucket, place, 0));
            for entry in line.into_iter().filter(|entry| *entry != 0) {
                let home = home(entry_hash(entry), bucket_count);
                if home < bucket || !(home..bucket_count).any(|bucket| self.place_in(bucket, entry)) {
                    later.push(entry);
                }
            }
        }
        later.into_iter().for_each(|entry| self.place(entry));
        assert_eq!(self.len, len, "a resize keeps every entry");
        Ok(())
    }

    /// A reader that runs beside the owner.
    #[must_use]
    pub fn window(&self) -> IndexWindow {
        IndexWindow { window: self.region.window() }
    }

    /// Buckets of the table.
    #[inline]
    #[must_use]
    pub fn bucket_count(&self) -> usize {
        self.bucket_count
    }

    /// Starts loading the home bucket of a hash.
    #[inline]
    pub fn prefetch(&self, hash: u32) {
        prefetch(self.region.address(home(hash, self.bucket_count) * LINE_SIZE));
    }

    /// Every (hash, slot) in table order.
    #[cfg(test)]
    fn iter(&self) -> impl Iterator<Item = (u32, SlotIndex)> + '_ {
        (0..self.bucket_count).flat_map(|bucket| {
            self.region
                .line(bucket)
                .iter()
                .filter(|entry| **entry != 0)
                .map(|entry| (entry_hash(*entry), entry_slot(*entry)))
        })
    }
}

/// Reads an index beside its owner.
#[derive(Debug)]
pub struct IndexWindow {
    window: Window,
}

impl IndexWindow {
    /// Starts loading the home bucket of a hash in a table of so many buckets.
    #[inline]
    pub fn prefetch(&self, bucket_count: usize, hash: u32) {
        self.window.prefetch(home(hash, bucket_count) * LINE_SIZE);
    }

    /// Calls `f` with the slots of the home bucket that may hold a key with this hash.
    #[inline]
    pub fn candidates(&self, bucket_count: usize, hash: u32, mut f: impl FnMut(SlotIndex)) {
        if let Some(line) = self.window.load_line(home(hash, bucket_count)) {
            find_in(&line, hash, |slot| {
                f(slot);
                false
            });
        }
    }

    /// Begins a search for a hash in a table of so many buckets.
    #[inline]
    pub fn search(&self, bucket_count: usize, hash: u32) -> Result<Search<'_>, Moved> {
        let bucket = home(hash, bucket_count);
        let mut search = Search {
            window: &self.window,
            hash,
            bucket_count,
            bucket,
            matches: 0,
            is_last: false,
            buckets_left: SEARCH_MAX,
        };
        search.look()?;
        Ok(search)
    }
}

// A table that changes under us may look full everywhere; an honest search is a few buckets.
const SEARCH_MAX: u32 = 64;

/// A search beside the writer, as [`Index::find`]'s. What it finds counts only if the shard's version has not
/// moved meanwhile. It is a loop in the caller: handing a closure down costs a tenth of a read.
#[derive(Debug)]
pub struct Search<'a> {
    window: &'a Window,
    hash: u32,
    bucket_count: usize,
    bucket: usize,
    /// Places in the bucket that are still to be named.
    matches: u32,
    is_last: bool,
    buckets_left: u32,
}

impl Search<'_> {
    #[inline]
    fn look(&mut self) -> Result<(), Moved> {
        let line = self.window.load_line(self.bucket).ok_or(Moved)?;
        self.matches = high_halves_equal(&line, self.hash);
        self.is_last = line[BUCKET_ENTRIES - 1] == 0;
        Ok(())
    }

    /// The next slot that may hold a key with this hash; `Err` if the table is sure to have changed.
    #[inline]
    pub fn next_slot(&mut self) -> Result<Option<SlotIndex>, Moved> {
        while self.matches == 0 {
            if self.is_last {
                return Ok(None);
            }
            self.buckets_left = self.buckets_left.checked_sub(1).ok_or(Moved)?;
            self.bucket = if self.bucket + 1 == self.bucket_count { 0 } else { self.bucket + 1 };
            self.look()?;
        }
        let place = self.matches.trailing_zeros() as usize;
        self.matches &= self.matches - 1;
        // Loaded again: a line kept in memory until here would be stored first.
        let entry = self.window.load_word(self.bucket * BUCKET_ENTRIES + place).ok_or(Moved)?;
        Ok(Some(entry_slot(entry)))
    }
}

/// A reader beside the writer has seen that the writer was at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        // Few distinct hashes in few buckets: spills, wraps at the table's end and shifts back on removal.
        #[test]
        fn behaves_as_a_map(ops in prop::collection::vec((0_u8..3, 0_u32..24, 0_u32..40), 1..300)) {
            let mut index = Index::new(0, 1 << 20).unwrap();
            let mut model: HashMap<u32, u32> = HashMap::new(); // slot -> hash
            for (op, group, slot) in ops {
                let hash = 1 | (group % 3).wrapping_mul(0x5555_5555).wrapping_add(group >> 3) | if group == 23 { 0xFFFF_FF00 } else { 0 };
                match op {
                    0 if !model.contains_key(&slot) => {
                        index.insert(hash, SlotIndex(slot)).unwrap();
                        model.insert(slot, hash);
                    }
                    1 => {
                        let there = model.get(&slot) == Some(&hash);
                        prop_assert_eq!(index.remove(hash, SlotIndex(slot)), there);
                        if there {
                            model.remove(&slot);
                        }
                    }
                    _ => {}
                }
                prop_assert_eq!(index.len(), model.len());
                for (slot, hash) in &model {
                    prop_assert_eq!(index.find(*hash, |found| found.0 == *slot), Some(SlotIndex(*slot)));
                }
            }
            prop_assert_eq!(index.iter().count(), model.len());
        }
    }

    #[test]
    fn grows_and_keeps_everything() {
        let mut index = Index::new(0, 1 << 20).unwrap();
        let hash = |slot: u32| slot.wrapping_mul(0x9E37_79B1).max(1);
        let count = if cfg!(miri) { 300 } else { 100_000 };
        for slot in 0..count {
            index.insert(hash(slot), SlotIndex(slot)).unwrap();
        }
        for slot in 0..count {
            assert_eq!(index.find(hash(slot), |found| found.0 == slot), Some(SlotIndex(slot)));
        }
        assert_eq!(index.find(hash(count), |found| found.0 == count), None);
    }
}
