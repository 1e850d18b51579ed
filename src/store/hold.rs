//! Several shards held at once: what is done with them meanwhile is one step for everybody else on this node.
//!
//! Who holds shards locks their *gates*, in ascending order, then leaves their versions odd. The locks themselves stay
//! free: the holder's own calls take them as always, find the version odd and their thread named as the holder, and go
//! on. Everybody else who finds an odd version under a lock lets go of it and waits at the gate. So a call on a
//! shard that nobody holds pays for one look at a number that it needs anyway.
//!
//! Order: checkpoint, log, `making`, gates, shard. Under a gate nobody waits for the log: a holder's changes go to its
//! buffers, however full these are, and `making` keeps a round of the log from taking a half of them.

use std::sync::atomic::{Ordering, fence};

use parking_lot::{MutexGuard, RwLockReadGuard};

use super::{Cell, Exclusive, Locked, LogState, Store, WriteError};
use crate::slot::ShardIndex;

/// What shards are held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// They are read as they are at one moment.
    Read,
    /// They are changed.
    Write,
}

/// Bytes that a transaction may leave in a shard's buffer for the log.
const HELD_BUFFER_MAX: usize = 64 << 20;

/// In [`Cell::holder`], beside the thread.
const MAY_WRITE: usize = 1;

/// Names the current thread: no two have the same at a time, and none is zero or odd.
fn this_thread() -> usize {
    thread_local! { static NAME: u64 = const { 0 } }
    NAME.with(|name| std::ptr::from_ref(name).addr())
}

#[cfg(debug_assertions)]
thread_local! { static HOLDS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) } }

/// Whether the current thread holds any shards: it must not wait for others then. Only debug builds ask.
pub(super) fn holds_any() -> bool {
    #[cfg(debug_assertions)]
    return HOLDS.get() > 0;
    #[cfg(not(debug_assertions))]
    false
}

impl Cell {
    /// Whether the current thread holds the shard.
    pub(super) fn is_mine(&self) -> bool {
        // Relaxed: only this thread names itself, and what others write names others.
        self.holder.load(Ordering::Relaxed) & !MAY_WRITE == this_thread()
    }

    fn may_write(&self) -> bool {
        self.holder.load(Ordering::Relaxed) == this_thread() | MAY_WRITE
    }

    /// The shared lock of a shard that was found to be held.
    #[cold]
    pub(super) fn shared_of_held<'a>(
        &'a self,
        locked: RwLockReadGuard<'a, Locked>,
    ) -> RwLockReadGuard<'a, Locked> {
        if self.is_mine() {
            return locked;
        }
        drop(locked);
        let _gate = self.gate.lock();
        self.lock.read()
    }
}

/// Shards that this thread holds.
pub(super) struct Hold<'a> {
    cells: Vec<(&'a Cell, MutexGuard<'a, ()>)>,
}

impl<'a> Hold<'a> {
    /// In ascending order.
    pub(super) fn new(cells: impl Iterator<Item = &'a Cell>, intent: Intent) -> Self {
        // All gates before the first version, so that readers are kept away for as short as can be.
        let cells: Vec<_> = cells.map(|cell| (cell, cell.gate.lock())).collect();
        let holder = this_thread() | if intent == Intent::Write { MAY_WRITE } else { 0 };
        for (cell, _) in &cells {
            let locked = cell.lock.write();
            cell.holder.store(holder, Ordering::Relaxed);
            cell.version.store(cell.version.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            // As in `Exclusive`: seen before anything that is changed.
            fence(Ordering::Release);
            drop(locked);
        }
        #[cfg(debug_assertions)]
        HOLDS.set(HOLDS.get() + 1);
        Self { cells }
    }

    /// What waits for the log is one change.
    fn make_group(&self) {
        for (cell, _) in &self.cells {
            let mut locked = cell.lock.write();
            locked.log.is_group |= locked.shard.has_pending();
        }
    }

    /// Whether some shard's log must be written before more is added.
    fn needs_room(&self) -> bool {
        self.cells.iter().any(|(cell, _)| cell.lock.read().log.is_full())
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        #[cfg(debug_assertions)]
        HOLDS.set(HOLDS.get() - 1);
        for (cell, _) in &self.cells {
            let locked = cell.lock.write();
            cell.holder.store(0, Ordering::Relaxed);
            cell.version.store(cell.version.load(Ordering::Relaxed) + 1, Ordering::Release);
            drop(locked);
        }
    }
}

impl Store {
    /// Calls `f` while these shards are held: nobody else on this node reads or changes anything of them meanwhile, so
    /// that all that `f` does with them is seen at once, or not yet. `f` calls the store as always, for keys of
    /// these shards and no others, and waits for nothing.
    ///
    /// An error says that nothing was done. With a log that comes first, the changes are one in it, too.
    ///
    /// # Panics
    ///
    /// Inside another call of this, for shards that were not named there.
    pub fn transact<T>(
        &self,
        shards: impl IntoIterator<Item = ShardIndex>,
        intent: Intent,
        f: impl FnOnce() -> T,
    ) -> Result<T, WriteError> {
        let mut shards: Vec<_> = shards.into_iter().collect();
        shards.sort_unstable();
        shards.dedup();
        if self.is_held_here() {
            assert!(
                shards.iter().all(|shard| self.cell(*shard).is_mine()),
                "shards are named when the outermost transaction begins"
            );
            if intent == Intent::Write && !self.may_write_held() {
                return Err(self.refusal());
            }
            return Ok(f());
        }
        let result = {
            let keeper = self.keeper.as_ref().filter(|_| self.log_first && intent == Intent::Write);
            let (_making, hold) = loop {
                let making = keeper.map(|keeper| keeper.making.read());
                let hold = Hold::new(shards.iter().map(|shard| self.cell(*shard)), intent);
                if intent == Intent::Read {
                    break (making, hold);
                }
                if self.is_read_only() {
                    return Err(self.refusal());
                }
                if !hold.needs_room() && self.log_state() == LogState::Going {
                    break (making, hold);
                }
                drop(hold);
                drop(making);
                if let Some(shard) = shards.first() {
                    self.make_room(*shard)?;
                }
            };
            let result = f();
            if self.log_first && intent == Intent::Write {
                hold.make_group();
            }
            drop(hold);
            result
        };
        if intent == Intent::Write { self.settle_if_called(result) } else { Ok(result) }
    }

    /// A held shard's lock for a change, where its buffer for the log is full or the log does not go on. What one
    /// transaction may add to it has an end, too.
    #[cold]
    pub(super) fn writable_held(&self, shard: ShardIndex) -> Result<Exclusive<'_>, WriteError> {
        if self.log_state() != LogState::Going {
            self.make_room(shard)?;
        }
        let locked = self.exclusive(shard);
        if locked.log.len() > HELD_BUFFER_MAX {
            return Err(WriteError::TransactionSize { wanted: HELD_BUFFER_MAX });
        }
        Ok(locked)
    }

    /// Whether the current thread holds shards of this store.
    pub(super) fn is_held_here(&self) -> bool {
        self.cells.iter().any(Cell::is_mine)
    }

    /// Whether it does to change them.
    pub(super) fn may_write_held(&self) -> bool {
        self.cells.iter().any(Cell::may_write)
    }

    /// What there is to be compared with later, to see whether these shards were left alone meanwhile; none if somebody
    /// is at work.
    #[must_use]
    pub fn moment(&self, shards: impl IntoIterator<Item = ShardIndex>) -> Option<Moment> {
        let version = |shard| (shard, self.cell(shard).version.load(Ordering::Acquire));
        let seen: Vec<_> = shards.into_iter().map(version).collect();
        seen.iter().all(|(_, version)| version.is_multiple_of(2)).then_some(Moment { seen })
    }

    /// Whether nothing has changed since: then all that was read meanwhile was there at one moment.
    #[must_use]
    pub fn is_still(&self, moment: &Moment) -> bool {
        // What was read was loaded before the versions are looked at again.
        fence(Ordering::Acquire);
        moment
            .seen
            .iter()
            .all(|(shard, version)| self.cell(*shard).version.load(Ordering::Relaxed) == *version)
    }
}

/// The state of some shards, as a point in time; see [`Store::moment`].
#[derive(Debug)]
pub struct Moment {
    seen: Vec<(ShardIndex, u64)>,
}

#[cfg(test)]
mod tests;
