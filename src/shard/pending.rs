//! Changes of a shard that are made, and not in its slots yet: with a log that comes first they wait for its sync.
//!
//! Making a change takes its seq and its slot, and makes its record; slots, index, digest and head stay as they are,
//! so nobody but the next write of that key sees anything of it. *Landing* is applying the record, in the order of
//! seqs. A new key's slot leaves the free set when the change is made. A key that is deleted and put again before the
//! deletion has landed gets another slot, so that no slot has two keys waiting for it.

use std::collections::{HashMap, HashSet};
use std::io;

use crate::slot::image::{Image, RECORD_HEADER_SIZE, image_seq, push_record, read_u32};
use crate::slot::{Geometry, Record, Seq, SlotIndex, SlotView, Status};

use super::{ApplyError, Shard};

/// What waits, by key: of each key the newest change only. The others are in the log's buffer.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Last seq given out to one of them.
    last: Seq,
    records: HashMap<Box<[u8]>, Box<[u8]>>,
    /// Slots that hold no record, and were given to changes that wait.
    promised: HashSet<SlotIndex>,
}

/// The newest change of a key, if it waits.
#[derive(Debug, Clone, Copy)]
pub struct Waiting<'a> {
    /// The slot that it is for.
    pub slot: SlotIndex,
    /// What that will hold.
    pub view: SlotView<'a>,
}

fn slot_of(record: &[u8]) -> SlotIndex {
    SlotIndex(read_u32(record, 0))
}

fn waiting<'a>(geometry: &Geometry, record: &'a [u8]) -> Waiting<'a> {
    let view = SlotView::check_shape(geometry, &record[RECORD_HEADER_SIZE..]);
    Waiting { slot: slot_of(record), view: view.expect("a record that this process made") }
}

impl Shard {
    /// Last seq given out: above the shard's own while changes wait.
    #[inline]
    #[must_use]
    pub fn made(&self) -> Seq {
        if self.has_pending() { self.pending.last } else { self.seq }
    }

    /// Whether changes wait.
    #[inline]
    #[must_use]
    pub fn has_pending(&self) -> bool {
        !self.pending.records.is_empty()
    }

    /// The newest change of a key, if it waits.
    #[inline]
    #[must_use]
    pub fn pending(&self, key: &[u8]) -> Option<Waiting<'_>> {
        if !self.has_pending() {
            return None;
        }
        self.pending.records.get(key).map(|record| waiting(self.geometry(), record))
    }

    /// Keys that wait, each with what its newest change leaves.
    pub fn all_pending(&self) -> impl Iterator<Item = (&[u8], Status)> {
        let geometry = self.geometry();
        self.pending.records.iter().map(|(key, record)| (&**key, waiting(geometry, record).view.status()))
    }

    /// Whether a slot that holds nothing yet was given to a change that waits.
    pub(super) fn is_promised(&self, slot: SlotIndex) -> bool {
        self.pending.promised.contains(&slot)
    }

    /// Makes a change that stores a record; returns it. `slot` is the one that holds the key once all that waits
    /// has landed. On an error nothing has changed.
    pub fn pend_put(
        &mut self,
        hash: u32,
        slot: Option<SlotIndex>,
        key: &[u8],
        value: &[u8],
        expire_at: u64,
    ) -> io::Result<&[u8]> {
        let slot = match slot {
            Some(slot) => slot,
            None => self.promise(hash)?,
        };
        Ok(self.pend(slot, Status::Occupied, key, value, expire_at))
    }

    /// Makes a change that leaves a tombstone in a key's slot; returns its record.
    pub fn pend_delete(&mut self, slot: SlotIndex, key: &[u8]) -> &[u8] {
        self.pend(slot, Status::Deleted, key, &[], 0)
    }

    /// A slot for a new key.
    fn promise(&mut self, hash: u32) -> io::Result<SlotIndex> {
        // Landing must not fail for want of memory.
        self.derived.index.reserve(self.derived.index.len() + self.pending.records.len() + 1)?;
        // What the key's slot held is lost, and replaced by this.
        let damaged = self.derived.damaged_holder(hash).filter(|slot| !self.is_promised(*slot));
        let slot = match damaged.or_else(|| self.derived.free.first()) {
            Some(slot) => slot,
            None => self.grow_for_one()?,
        };
        self.derived.free.remove(slot);
        self.pending.promised.insert(slot);
        Ok(slot)
    }

    fn pend(&mut self, slot: SlotIndex, status: Status, key: &[u8], value: &[u8], expire_at: u64) -> &[u8] {
        let seq = self.made().next();
        let image = Image { seq, status, expire_at, key, value };
        let mut bytes = vec![0; image.size()];
        image.write(self.shard(), slot, &mut bytes);
        let mut record = Vec::with_capacity(RECORD_HEADER_SIZE + bytes.len());
        push_record(&mut record, slot, &bytes);
        self.pending.last = seq;
        let place = self.pending.records.entry(key.into()).or_default();
        *place = record.into_boxed_slice();
        place
    }

    /// Lands a change that waits; false if the record is none of those.
    pub fn land(&mut self, record: Record<'_>, hash: u32) -> Result<bool, ApplyError> {
        if !self.has_pending() || image_seq(record.image) <= self.seq {
            return Ok(false);
        }
        let view = SlotView::check_shape(self.geometry(), record.image)
            .map_err(|error| ApplyError::Slot { slot: record.slot, error })?;
        // Whatever the slot says of itself: what waits is newer, and a slot that says otherwise is damaged.
        self.apply_image::<true>(record, hash)?;
        self.pending.promised.remove(&record.slot);
        let is_newest = |newest: &[u8]| image_seq(&newest[RECORD_HEADER_SIZE..]) == view.seq();
        if self.pending.records.get(view.key()).is_some_and(|newest| is_newest(newest)) {
            self.pending.records.remove(view.key());
        }
        Ok(true)
    }
}
