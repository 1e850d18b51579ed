//! What clients do with records: read, put, delete, update, visit.
//!
//! An expired record is absent for every reader; only [`Store::sweep`] and writes by the leader
//! remove it, as ordinary changes. [`super::visit`] removes many.

use std::io;
use std::sync::atomic::{Ordering, fence};

use crate::region::bytes_of;
use crate::shard::index::Moved;
use crate::slot::image::names_key;
use crate::slot::{Place, Seq, ShardIndex, SlotError, SlotIndex, SlotView};

use super::{Cell, Exclusive, Locked, Store};

// Keys whose cache lines are loaded ahead: enough to hide a miss, few enough to stay in the first level.
const BATCH_KEYS: usize = 16;
// Slots up to this size are read without the lock: larger ones cost more to copy than a lock does.
const COPY_WORDS_MAX: usize = 32;
const COPY_WORDS_SMALL: usize = 16;

/// Why a record was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The slot that should hold it is damaged; or, where it is not known what that held, may have held it.
    #[error("shard {shard} slot {slot}: {error}")]
    Damaged {
        /// Its shard.
        shard: ShardIndex,
        /// Its slot.
        slot: SlotIndex,
        /// What is wrong with it.
        error: SlotError,
    },
}

/// Why a write was not done; nothing was changed, but for [`WriteError::NotDurable`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// No such key fits.
    #[error("key is {found} bytes, this store holds keys of 1 to {wanted}")]
    KeySize {
        /// Bytes of the key.
        found: usize,
        /// Key capacity.
        wanted: u16,
    },
    /// No such value fits.
    #[error("value is {found} bytes, this store holds values of at most {wanted}")]
    ValueSize {
        /// Bytes of the value.
        found: usize,
        /// Value capacity.
        wanted: u16,
    },
    /// No slot is free and the shard could not grow.
    #[error("no free slot in shard {shard} and no space to grow: {error}")]
    Full {
        /// The key's shard.
        shard: ShardIndex,
        /// What the system said.
        error: String,
    },
    /// The log has no space: nothing is taken until it has.
    #[error("the log has no space, and no change is taken until it has: shard {shard}: {error}")]
    LogFull {
        /// The key's shard.
        shard: ShardIndex,
        /// What the system said.
        error: String,
    },
    /// A follower's store takes changes from its leader only.
    #[error("this store is read-only")]
    ReadOnly,
    /// A leader's store takes changes once it has back what an OS crash took.
    #[error("this store gets back from followers what a crash took, and takes writes then")]
    Regaining,
    /// It was made, but the log has no space for it: a reader may see it later, and a power cut may take it.
    #[error("the change is made but not durable, and may be seen later: {error}")]
    NotDurable {
        /// What the system said.
        error: String,
    },
    /// What has to wait for the log is not done while shards are held.
    #[error("a change of a damaged slot waits for the log, and is not made inside a transaction")]
    Held,
    /// A transaction's changes are more than are kept for the log at one time: this one is not made.
    #[error("the changes of this transaction are more than the {wanted} bytes that one may have")]
    TransactionSize {
        /// Bytes that a transaction may change in a shard.
        wanted: usize,
    },
    /// The log takes nothing more: a write of it failed.
    #[error("the log has failed, and this store takes no changes until it is started again")]
    LogFailed,
    /// The record's present value had to be read, and is damaged.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// A record as a reader sees it. Expired records are never seen.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// Unix time in milliseconds; 0 = never.
    pub expire_at: u64,
    /// Commit number of its last change, within its shard.
    pub seq: Seq,
}

impl<'a> From<SlotView<'a>> for Entry<'a> {
    #[inline]
    fn from(view: SlotView<'a>) -> Self {
        Self { key: view.key(), value: view.value(), expire_at: view.expire_at(), seq: view.seq() }
    }
}

/// What [`Store::update`] is to do with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Leave it as it is.
    Keep,
    /// Remove it, if there is one.
    Delete,
    /// Store the value that the closure left in its buffer.
    Put {
        /// Unix time in milliseconds; 0 = never.
        expire_at: u64,
    },
    /// Keep the value and set another expiry, if there is a record.
    Expire {
        /// Unix time in milliseconds; 0 = never.
        expire_at: u64,
    },
}

/// The value of a counter is no decimal 64-bit number, or the result would be none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("value is not an integer or out of range")]
pub struct NotANumber;

/// The number in a value, as Redis reads one: decimal, no sign but a minus, no leading zeros or blanks.
#[must_use]
pub fn parse_integer(value: &[u8]) -> Option<i64> {
    let digits = value.strip_prefix(b"-").unwrap_or(value);
    let canonical = match digits {
        [b'0'] => digits.len() == value.len(),
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    canonical.then(|| std::str::from_utf8(value).ok()?.parse().ok()).flatten()
}

/// What a write knows of its key.
pub(super) enum Target {
    /// Nothing yet: whether it has a slot is for the shard to find out.
    Unknown,
    /// The slot that holds it, or that there is none.
    Found(Option<SlotIndex>),
}

impl Locked {
    /// The live record at a place.
    #[inline]
    pub(super) fn live(
        &self,
        store: &Store,
        place: Place,
        key: &[u8],
    ) -> Result<(Option<SlotIndex>, Option<SlotView<'_>>), ReadError> {
        let Some(slot) = self.shard.find(place.hash, key) else {
            return match self.shard.may_hide(place.hash) {
                Some((slot, error)) => {
                    Err(ReadError::Damaged { shard: place.shard, slot: *slot, error: error.clone() })
                }
                None => Ok((None, None)),
            };
        };
        let damaged = |error| ReadError::Damaged { shard: place.shard, slot, error };
        let view = self.shard.view(slot).map_err(damaged)?;
        Ok((Some(slot), Some(view).filter(|view| !store.is_expired(view.expire_at()))))
    }

    /// Stores a record and pushes it to the rings.
    // Always, as all on the way of a SET: with a call here and there it costs a third more.
    #[inline(always)]
    fn put(
        &mut self,
        place: Place,
        target: Target,
        key: &[u8],
        value: &[u8],
        expire_at: u64,
    ) -> Result<Seq, WriteError> {
        let stored = match target {
            Target::Found(slot) => self.shard.put(place.hash, slot, key, value, expire_at),
            Target::Unknown => self.shard.put_key(place.hash, key, value, expire_at),
        };
        match stored {
            Ok(record) => {
                self.log.push(record);
                for ring in self.rings.get_mut() {
                    ring.push(record);
                }
            }
            Err(error) => return Err(self.refuse(place.shard, &error)),
        }
        self.puts += 1;
        Ok(self.shard.seq())
    }

    #[cold]
    pub(super) fn refuse(&mut self, shard: ShardIndex, error: &io::Error) -> WriteError {
        self.rejected += 1;
        WriteError::Full { shard, error: error.to_string() }
    }

    pub(super) fn remove(&mut self, hash: u32, slot: SlotIndex, key: &[u8]) {
        if self.log.comes_first {
            return self.pend_delete(slot, key);
        }
        let record = self.shard.delete(hash, slot, key);
        self.log.push(record);
        for ring in self.rings.get_mut() {
            ring.push(record);
        }
        self.deletes += 1;
    }
}

impl Store {
    /// The shard that holds `key`.
    #[must_use]
    pub fn shard_of(&self, key: &[u8]) -> ShardIndex {
        self.geometry.place(key).shard
    }

    #[inline]
    pub(super) fn is_expired(&self, expire_at: u64) -> bool {
        // The clock is asked only for records that can expire.
        expire_at != 0 && expire_at <= self.clock.unix_ms()
    }

    /// Why a read-only store takes no write.
    #[cold]
    pub(super) fn refusal(&self) -> WriteError {
        if self.is_regaining() { WriteError::Regaining } else { WriteError::ReadOnly }
    }

    #[inline]
    fn check_write(&self, key: &[u8], value: &[u8]) -> Result<(), WriteError> {
        // What was begun is not cut in half.
        if self.is_read_only() && !self.may_write_held() {
            return Err(self.refusal());
        }
        let geometry = &self.geometry;
        if key.is_empty() || key.len() > usize::from(geometry.key_size_max) {
            return Err(WriteError::KeySize { found: key.len(), wanted: geometry.key_size_max });
        }
        if value.len() > usize::from(geometry.value_size_max) {
            return Err(WriteError::ValueSize { found: value.len(), wanted: geometry.value_size_max });
        }
        Ok(())
    }

    /// A shard's lock for a client's write: looked at again under the lock, so that after
    /// [`Store::stop_writes`] there is none.
    #[inline(always)]
    pub(super) fn writable(&self, shard: ShardIndex) -> Result<Exclusive<'_>, WriteError> {
        let locked = self.exclusive(shard);
        if self.takes_writes(&locked) {
            return Ok(locked);
        }
        drop(locked);
        self.writable_later(shard)
    }

    #[inline]
    fn takes_writes(&self, locked: &Locked) -> bool {
        !self.is_read_only() && !locked.log.is_full() && self.has_good_log()
    }

    /// As [`Store::writable`], once the log has room.
    #[cold]
    #[inline(never)]
    fn writable_later(&self, shard: ShardIndex) -> Result<Exclusive<'_>, WriteError> {
        loop {
            if self.is_read_only() && !self.may_write_held() {
                return Err(self.refusal());
            }
            if self.may_write_held() {
                return self.writable_held(shard);
            }
            self.make_room(shard)?;
            let locked = self.exclusive(shard);
            if self.takes_writes(&locked) {
                return Ok(locked);
            }
        }
    }

    // ---- reads

    /// Calls `f` with the record, perhaps under its shard's shared lock: keep it short, and do not call
    /// the store from it.
    #[inline]
    pub fn read<T>(&self, key: &[u8], f: impl FnOnce(Entry<'_>) -> T) -> Result<Option<T>, ReadError> {
        self.read_at(self.geometry.place(key), key, |entry| entry.map(f))
    }

    /// As [`Store::read`], of a key that belongs to `place`.
    #[inline]
    pub(crate) fn read_at<T>(
        &self,
        place: Place,
        key: &[u8],
        f: impl FnOnce(Option<Entry<'_>>) -> T,
    ) -> Result<T, ReadError> {
        // Two sizes, since the copy's place is cleared first: that would be a tenth of a small slot's read.
        let copy = match self.stride / 8 {
            ..=COPY_WORDS_SMALL => self.read_copy::<COPY_WORDS_SMALL, T, _>(place, key, f),
            words if words <= COPY_WORDS_MAX => self.read_copy::<COPY_WORDS_MAX, T, _>(place, key, f),
            _ => Err(f),
        };
        let f = match copy {
            Ok(result) => return result,
            Err(f) => f,
        };
        let locked = self.shared(place.shard);
        // A holder sees what it has made itself, which nobody else does before it is durable.
        let is_mine = self.log_first && self.cell(place.shard).is_mine();
        let (_, live) =
            if is_mine { locked.latest(self, place, key)? } else { locked.live(self, place, key)? };
        Ok(f(live.map(Entry::from)))
    }

    /// Reads without the shard's lock; gives `f` back if a writer was at work.
    #[inline]
    fn read_copy<const WORDS: usize, T, F: FnOnce(Option<Entry<'_>>) -> T>(
        &self,
        place: Place,
        key: &[u8],
        f: F,
    ) -> Result<Result<T, ReadError>, F> {
        let mut words = [0; WORDS];
        let words = &mut words[..self.stride / 8];
        let Ok(slot) = self.copy_slot(self.cell(place.shard), place.hash, key, words) else { return Err(f) };
        let Some(slot) = slot else {
            let is_sure = !self.cell(place.shard).has_damaged.load(Ordering::Relaxed);
            return if is_sure { Ok(Ok(f(None))) } else { Err(f) };
        };
        let view = match SlotView::check(&self.geometry, place.shard, slot, bytes_of(words)) {
            Ok(view) => view,
            Err(error) => return Ok(Err(ReadError::Damaged { shard: place.shard, slot, error })),
        };
        Ok(Ok(f(Some(view).filter(|view| !self.is_expired(view.expire_at())).map(Entry::from))))
    }

    /// Copies the slot that holds `key`, without the shard's lock. `Err` if a writer was at work.
    #[inline]
    fn copy_slot(
        &self,
        cell: &Cell,
        hash: u32,
        key: &[u8],
        words: &mut [u64],
    ) -> Result<Option<SlotIndex>, Moved> {
        let version = cell.version.load(Ordering::Acquire);
        if !version.is_multiple_of(2) {
            return Err(Moved);
        }
        let mut search = cell.index.search(cell.index_buckets.load(Ordering::Relaxed), hash)?;
        let found = loop {
            let Some(slot) = search.next_slot()? else { break None };
            let offset = self.slot_offset(slot);
            cell.slots.prefetch(offset);
            cell.slots.prefetch(offset + 64);
            if !cell.slots.load(offset, words) {
                return Err(Moved);
            }
            // Half-written words name any key; the version tells them from a key that is not there.
            if names_key(bytes_of(words), key) {
                break Some(slot);
            }
        };
        // The words are loaded before the version is looked at again.
        fence(Ordering::Acquire);
        if cell.version.load(Ordering::Relaxed) != version {
            return Err(Moved);
        }
        Ok(found)
    }

    /// A copy of the value.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        self.read(key, |entry| entry.value.to_vec())
    }

    /// Puts the value into `target`, in place of what is there; false if there is no such record.
    #[inline]
    pub fn get_into(&self, key: &[u8], target: &mut Vec<u8>) -> Result<bool, ReadError> {
        target.clear();
        Ok(self.read(key, |entry| target.extend_from_slice(entry.value))?.is_some())
    }

    /// Whether there is a record.
    pub fn contains(&self, key: &[u8]) -> Result<bool, ReadError> {
        Ok(self.read(key, |_| ())?.is_some())
    }

    /// Reads many records, calling `f` with each key's position and record, in order, perhaps under a
    /// shard's lock: `f` must not call the store. Cache lines are
    /// loaded ahead, which is several times faster than one [`Store::read`] after another.
    pub fn get_batch<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
        mut f: impl FnMut(usize, Option<Entry<'_>>),
    ) -> Result<(), ReadError> {
        for (chunk_index, chunk) in keys.chunks(BATCH_KEYS).enumerate() {
            let places = self.prefetch_places(chunk.iter().map(AsRef::as_ref));
            for (offset, key) in chunk.iter().enumerate() {
                let position = chunk_index * BATCH_KEYS + offset;
                self.read_at(places[offset], key.as_ref(), |entry| f(position, entry))?;
            }
        }
        Ok(())
    }

    /// Starts loading the cache lines that reading or writing these keys will need; takes at most the first 16.
    #[inline(never)]
    pub fn prefetch<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) {
        self.prefetch_places(keys);
    }

    /// Starts loading the bucket of the index that a key is looked for in; for a caller that has several at hand.
    #[inline]
    pub(crate) fn prefetch_bucket(&self, place: Place) {
        let cell = self.cell(place.shard);
        cell.index.prefetch(cell.index_buckets.load(Ordering::Relaxed), place.hash);
    }

    #[inline]
    fn prefetch_places<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) -> [Place; BATCH_KEYS] {
        let mut places = [Place { shard: ShardIndex(0), hash: 0 }; BATCH_KEYS];
        let mut len = 0;
        for (place, key) in places.iter_mut().zip(keys) {
            *place = self.geometry.place(key);
            self.prefetch_bucket(*place);
            len += 1;
        }
        places[..len].iter().for_each(|place| self.prefetch_slots(*place));
        places
    }

    /// Starts loading the slots that may hold a key, once its bucket is there.
    #[inline]
    pub(crate) fn prefetch_slots(&self, place: Place) {
        let cell = self.cell(place.shard);
        // A stale table costs a useless prefetch and no more.
        cell.index.candidates(cell.index_buckets.load(Ordering::Relaxed), place.hash, |slot| {
            let offset = self.slot_offset(slot);
            cell.slots.prefetch(offset);
            cell.slots.prefetch(offset + self.stride.min(128) - 1);
        });
    }

    // ---- writes

    /// Stores a record that never expires; returns the change's seq in the key's shard.
    #[inline]
    pub fn put(&self, key: &[u8], value: &[u8]) -> Result<Seq, WriteError> {
        self.put_expiring(key, value, 0)
    }

    /// Stores a record that expires at a Unix time in milliseconds (0 = never).
    #[inline]
    pub fn put_expiring(&self, key: &[u8], value: &[u8], expire_at: u64) -> Result<Seq, WriteError> {
        let place = self.geometry.place(key);
        // Before the lock: taking it waits until the stores of the write before this one are out, and
        // what this one needs can be on its way meanwhile.
        self.prefetch_slots(place);
        self.put_at(place, key, value, expire_at)
    }

    /// As [`Store::put_expiring`], of a key that belongs to `place`.
    // Always, as all on the way of a SET: with a call here and there it costs a third more.
    #[inline(always)]
    pub(crate) fn put_at(
        &self,
        place: Place,
        key: &[u8],
        value: &[u8],
        expire_at: u64,
    ) -> Result<Seq, WriteError> {
        debug_assert_eq!(place, self.geometry.place(key), "a key's own place");
        self.check_write(key, value)?;
        if self.log_first {
            return self.put_and_settle(place, key, value, expire_at);
        }
        self.writable(place.shard)?.put(place, Target::Unknown, key, value, expire_at)
    }

    #[cold]
    fn put_and_settle(
        &self,
        place: Place,
        key: &[u8],
        value: &[u8],
        expire_at: u64,
    ) -> Result<Seq, WriteError> {
        let seq = self.put_first(place, key, value, expire_at)?;
        self.settle_if_called(seq)
    }

    /// Stores many records, in order. Cache lines are loaded ahead, which is several times faster than
    /// one [`Store::put`] after another. On an error the records before the refused one are stored.
    pub fn put_batch<K: AsRef<[u8]>, V: AsRef<[u8]>>(&self, records: &[(K, V)]) -> Result<(), WriteError> {
        for chunk in records.chunks(BATCH_KEYS) {
            let places = self.prefetch_places(chunk.iter().map(|(key, _)| key.as_ref()));
            for (place, (key, value)) in places.iter().zip(chunk) {
                self.put_in_batch(*place, key.as_ref(), value.as_ref())?;
            }
        }
        self.settle_if_called(())
    }

    #[inline]
    fn put_in_batch(&self, place: Place, key: &[u8], value: &[u8]) -> Result<Seq, WriteError> {
        if self.log_first {
            // The whole batch is settled at once.
            self.check_write(key, value)?;
            return self.put_first(place, key, value, 0);
        }
        self.put_at(place, key, value, 0)
    }

    /// Removes a record, also one whose slot is damaged; false if there was none.
    pub fn delete(&self, key: &[u8]) -> Result<bool, WriteError> {
        let delete = |entry: Option<Entry<'_>>, _: &mut Vec<u8>| (Change::Delete, entry.is_some());
        match self.update(key, delete) {
            Err(WriteError::Read(ReadError::Damaged { .. })) if self.bury_damaged(key)? => {
                self.settle_if_called(true)
            }
            done => done,
        }
    }

    pub(super) fn settle_if_called<T>(&self, done: T) -> Result<T, WriteError> {
        if self.calls_wait && !self.is_held_here() {
            self.settle_call()?;
        }
        Ok(done)
    }

    /// Read-modify-write under the shard's exclusive lock; `f` must not call the store. It gets the live record, if there is one,
    /// and an empty buffer for a new value; what it returns beside the change is the result.
    pub fn update<T>(
        &self,
        key: &[u8],
        f: impl FnOnce(Option<Entry<'_>>, &mut Vec<u8>) -> (Change, T),
    ) -> Result<T, WriteError> {
        let result = self.update_made(key, f)?;
        self.settle_if_called(result)
    }

    fn update_made<T>(
        &self,
        key: &[u8],
        f: impl FnOnce(Option<Entry<'_>>, &mut Vec<u8>) -> (Change, T),
    ) -> Result<T, WriteError> {
        self.check_write(key, &[])?;
        let place = self.geometry.place(key);
        self.prefetch_slots(place);
        let mut locked = self.writable(place.shard)?;
        let (slot, live) = locked.latest(self, place, key)?;
        let mut value = Vec::new();
        let is_live = live.is_some();
        let (change, result) = f(live.map(Entry::from), &mut value);
        let expire_at = match (change, live, slot) {
            // An expired record that a write meets goes away with it.
            (Change::Delete, _, Some(slot)) => {
                locked.remove(place.hash, slot, key);
                if is_live {
                    locked.note_deletion(place.hash);
                }
                return Ok(result);
            }
            (Change::Put { expire_at }, _, _) => expire_at,
            (Change::Expire { expire_at }, Some(live), _) => {
                value.clear();
                value.extend_from_slice(live.value());
                expire_at
            }
            (Change::Keep | Change::Delete | Change::Expire { .. }, _, _) => return Ok(result),
        };
        debug_assert!(
            is_live || !matches!(change, Change::Expire { .. }),
            "only a live record is given another expiry"
        );
        self.check_write(key, &value)?;
        if self.log_first {
            locked.pend_put(place, Target::Found(slot), key, &value, expire_at)?;
        } else {
            locked.put(place, Target::Found(slot), key, &value, expire_at)?;
        }
        Ok(result)
    }

    /// Stores `value` if the record's value is `expected` (`None`: if there is no record).
    pub fn compare_and_set(
        &self,
        key: &[u8],
        expected: Option<&[u8]>,
        value: &[u8],
    ) -> Result<bool, WriteError> {
        self.check_write(key, value)?;
        self.update(key, |entry, buffer| {
            if entry.map(|entry| entry.value) != expected {
                return (Change::Keep, false);
            }
            buffer.extend_from_slice(value);
            (Change::Put { expire_at: entry.map_or(0, |entry| entry.expire_at) }, true)
        })
    }

    /// Adds to a decimal counter, which is zero where there is no record; keeps its expiry.
    pub fn increment(&self, key: &[u8], by: i64) -> Result<Result<i64, NotANumber>, WriteError> {
        self.update(key, |entry, buffer| {
            let old = entry.map_or(Some(0), |entry| parse_integer(entry.value));
            let Some(sum) = old.and_then(|old| old.checked_add(by)) else {
                return (Change::Keep, Err(NotANumber));
            };
            buffer.extend_from_slice(sum.to_string().as_bytes());
            (Change::Put { expire_at: entry.map_or(0, |entry| entry.expire_at) }, Ok(sum))
        })
    }
}
