//! Writes of a store whose log comes first: made, then durable, then in their slots, seen and sent to followers.
//!
//! A change is made under its shard's lock: it gets slot and seq, and its record goes to the log's buffer. A *round*
//! of the log takes all buffers, makes them durable with one sync, and lands the changes, in the order of their seqs.
//! So whoever makes a round makes it for all who wait: concurrent writers share a sync.
//!
//! Readers, scans, rings and followers see what has landed; only a write looks at what waits for its key, and what it
//! says of that is not to be told before that is durable: who makes a change tells nobody before its round is over.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::ring::Sleeper;
use crate::slot::{Place, Records, Seq, ShardIndex, SlotIndex, SlotView, Status};

use super::log::{Goal, SyncError};
use super::records::Target;
use super::{ApplyError, Cell, Exclusive, Locked, ReadError, Store, WriteError};

/// Changes landed under one lock.
const LAND_BATCH: usize = 16;

/// Rounds of the log, counted.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    begun: AtomicU64,
    over: AtomicU64,
    asked: AtomicU64,
    /// Whoever makes rounds for others.
    sleeper: OnceLock<Arc<Sleeper>>,
}

impl Rounds {
    /// With the log locked, before shards are.
    pub(super) fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// All that was made before it began is durable, and has landed.
    pub(super) fn end(&self, round: u64) {
        self.over.store(round, Ordering::Release);
    }

    pub(super) fn is_over(&self, round: u64) -> bool {
        self.over.load(Ordering::Acquire) >= round
    }

    /// The first round that takes all that was made by now: if it had begun, its number would be seen by who has had
    /// a shard's lock behind it.
    fn next(&self) -> u64 {
        self.begun.load(Ordering::Acquire) + 1
    }

    fn ask(&self, round: u64) {
        self.asked.fetch_max(round, Ordering::Relaxed);
        if let Some(sleeper) = self.sleeper.get() {
            sleeper.notify();
        }
    }
}

/// Lands what is durable.
pub(super) fn land(cell: &Cell, bytes: &[u8]) -> Result<(), ApplyError> {
    let mut records = None;
    loop {
        let mut locked = Exclusive::new(cell);
        let records = records.get_or_insert_with(|| Records::new(locked.shard.geometry(), bytes));
        let mut hashes = [0; LAND_BATCH];
        let mut len = 0;
        for (hash, record) in hashes.iter_mut().zip(records.clone()) {
            *hash = locked.shard.prefetch_apply(&record?);
            len += 1;
        }
        for (hash, record) in hashes[..len].iter().zip(&mut *records) {
            let Locked { shard, rings, .. } = &mut *locked;
            if shard.land(record?, *hash)? {
                rings.get_mut().iter_mut().for_each(|ring| ring.push(shard.last_record()));
            }
        }
        if len < LAND_BATCH {
            return Ok(());
        }
    }
}

impl Locked {
    /// The record at a place as the next change of it finds it: what waits counts.
    #[inline]
    pub(super) fn latest(
        &self,
        store: &Store,
        place: Place,
        key: &[u8],
    ) -> Result<(Option<SlotIndex>, Option<SlotView<'_>>), ReadError> {
        let Some(waiting) = self.shard.pending(key) else { return self.live(store, place, key) };
        Ok(match waiting.view.status() {
            Status::Occupied => {
                let is_live = !store.is_expired(waiting.view.expire_at());
                (Some(waiting.slot), is_live.then_some(waiting.view))
            }
            _ => (None, None),
        })
    }

    /// Makes a change that stores a record.
    #[cold]
    pub(super) fn pend_put(
        &mut self,
        place: Place,
        target: Target,
        key: &[u8],
        value: &[u8],
        expire_at: u64,
    ) -> Result<Seq, WriteError> {
        let slot = match (target, self.shard.pending(key)) {
            (Target::Found(slot), _) => slot,
            (Target::Unknown, None) => self.shard.find(place.hash, key),
            (Target::Unknown, Some(waiting)) => {
                (waiting.view.status() == Status::Occupied).then_some(waiting.slot)
            }
        };
        match self.shard.pend_put(place.hash, slot, key, value, expire_at) {
            Ok(record) => self.log.push(record),
            Err(error) => return Err(self.refuse(place.shard, &error)),
        }
        self.puts += 1;
        Ok(self.shard.made())
    }

    /// Records once all that waits has landed.
    pub(super) fn len_made(&self, store: &Store, shard: ShardIndex) -> u64 {
        let mut len = self.shard.counts().occupied;
        for (key, status) in self.shard.all_pending() {
            let place = store.geometry.place(key);
            debug_assert_eq!(place.shard, shard);
            match (status, self.shard.find(place.hash, key)) {
                (Status::Occupied, None) => len += 1,
                (Status::Deleted, Some(_)) => len -= 1,
                _ => {}
            }
        }
        len
    }

    /// Makes a change that removes one.
    #[cold]
    pub(super) fn pend_delete(&mut self, slot: SlotIndex, key: &[u8]) {
        let record = self.shard.pend_delete(slot, key);
        self.log.push(record);
        self.deletes += 1;
    }
}

impl Store {
    /// Last seq given out in the shard: above [`Store::head`] while changes wait for the log.
    #[must_use]
    pub fn made(&self, shard: ShardIndex) -> Seq {
        self.shared(shard).shard.made()
    }

    /// Whether a change of this key waits for the log.
    #[must_use]
    pub fn is_pending(&self, key: &[u8]) -> bool {
        self.log_first && self.shared(self.shard_of(key)).shard.pending(key).is_some()
    }

    /// Whether any change waits for the log.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        self.log_first && self.shards().any(|shard| self.shared(shard).shard.has_pending())
    }

    /// Asks for the round of the log after which all that is made by now is durable and in its slots; says which.
    pub fn ask_for_a_round(&self) -> u64 {
        self.keeper.as_ref().map_or(0, |keeper| {
            let round = keeper.rounds.next();
            keeper.rounds.ask(round);
            round
        })
    }

    /// Whether that round is over.
    #[must_use]
    pub fn is_round_over(&self, round: u64) -> bool {
        self.keeper.as_ref().is_none_or(|keeper| keeper.rounds.is_over(round))
    }

    /// Rounds that are over.
    #[must_use]
    pub fn rounds(&self) -> u64 {
        self.keeper.as_ref().map_or(0, |keeper| keeper.rounds.over.load(Ordering::Acquire))
    }

    /// Whether somebody has asked for a round that is not over.
    #[must_use]
    pub fn is_asked_for_a_round(&self) -> bool {
        self.keeper
            .as_ref()
            .is_some_and(|keeper| !keeper.rounds.is_over(keeper.rounds.asked.load(Ordering::Relaxed)))
    }

    /// Who makes rounds for those who ask is woken through this; the first one stays.
    pub fn wake_for_rounds(&self, sleeper: Arc<Sleeper>) {
        if let Some(keeper) = &self.keeper {
            drop(keeper.rounds.sleeper.set(sleeper));
        }
    }

    /// Waits until all that is made by now is durable and in its slots; does it, where nobody else is at it.
    pub fn settle(&self) -> Result<(), SyncError> {
        let Some(keeper) = self.keeper.as_ref().filter(|_| self.log_first) else { return Ok(()) };
        keeper.drive(self, Goal::Round(keeper.rounds.next()))
    }

    /// For a call that returns when what it made is durable.
    #[cold]
    pub(super) fn settle_call(&self) -> Result<(), WriteError> {
        self.settle().map_err(|error| match error {
            SyncError::Held => WriteError::Held,
            error if error.is_full() => WriteError::NotDurable { error: error.to_string() },
            _ => WriteError::LogFailed,
        })
    }

    /// [`Store::put`] where the log comes first.
    #[cold]
    pub(super) fn put_first(
        &self,
        place: Place,
        key: &[u8],
        value: &[u8],
        expire_at: u64,
    ) -> Result<Seq, WriteError> {
        self.writable(place.shard)?.pend_put(place, Target::Unknown, key, value, expire_at)
    }

    /// Makes changes that delete all keys whose newest change waits; says how many.
    #[cold]
    pub(super) fn delete_waiting(&self, shard: ShardIndex) -> Result<u64, WriteError> {
        let mut locked = self.writable(shard)?;
        let is_live = |(key, status): (&[u8], Status)| (status == Status::Occupied).then(|| key.to_vec());
        let keys: Vec<_> = locked.shard.all_pending().filter_map(is_live).collect();
        for key in &keys {
            if let Some(slot) = locked.shard.pending(key).map(|waiting| waiting.slot) {
                locked.pend_delete(slot, key);
                locked.note_deletion(self.geometry.place(key).hash);
            }
        }
        Ok(keys.len() as u64)
    }

    /// A shard's lock for a change that does not wait, with none before it that does.
    pub(super) fn calm(&self, shard: ShardIndex) -> Result<Exclusive<'_>, WriteError> {
        loop {
            let locked = self.writable(shard)?;
            if !locked.shard.has_pending() {
                return Ok(locked);
            }
            drop(locked);
            self.settle_call()?;
        }
    }

    /// Lands what waits, when no more will come. What a log without space cannot take goes on waiting; what cannot be
    /// made durable for another reason may not be later, when the store follows another: the log takes nothing more.
    pub(super) fn land_all(&self) {
        if self.has_pending()
            && let Err(error) = self.settle()
        {
            if error.is_full() {
                tracing::error!(%error, "changes that were made wait for the log");
                return;
            }
            tracing::error!(%error, "changes that were made cannot be made durable: the log takes nothing more");
            self.keeper.iter().for_each(super::log::Keeper::fail);
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
