//! Floor 3: routing, the one write path, and what replication takes from a store.
//!
//! Locks: one per shard, and nothing is locked under it. The directory lock is held from open to
//! drop. A write holds its shard's lock exclusively while it looks up the slot, writes the image
//! and pushes it to the shard's rings; a step of a scan holds it shared. A read of one record takes
//! no lock: it copies the slot's words and asks the shard's version whether a writer was there
//! meanwhile; only then it takes the lock, shared. So consecutive reads overlap in the processor.
//! Who changes several shards as one *holds* them ([`hold`]): their gates, in ascending order, before any lock.
//! [`open`] makes and opens stores, [`records`] is what clients call, [`visit`] what goes by slots,
//! [`replicate`] what links call,
//! [`rewind`] what a follower does that holds what its leader never had, [`regain`] what a leader does that
//! lost what its followers hold, [`history`] what must be durable when roles and leaders change,
//! [`audit`] looks at slots in the background, [`pending`] is how changes wait for a log that comes first,
//! [`feed`] is what other programs follow a store by.

pub mod audit;
mod digest_file;
pub mod directory;
pub mod feed;
pub mod history;
pub mod hold;
pub(crate) mod host;
pub mod log;
mod log_buffer;
mod log_state;
mod mark;
mod memory;
pub mod open;
mod open_log;
mod pace;
mod parallel;
pub mod pending;
pub mod position;
pub mod records;
mod recovery;
pub mod regain;
pub mod replicate;
mod report;
pub mod rewind;
#[cfg(test)]
mod tests;
mod visit;

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use uuid::Uuid;

use crate::chance::Chance;
use crate::clock::Clock;
use crate::region::Window;
use crate::ring::RingWriter;
use crate::shard::Shard;
use crate::shard::index::IndexWindow;
use crate::slot::{Geometry, ShardIndex, SlotError, SlotIndex, SlotView};

pub use crate::ring::{RingReader, Sleeper};
pub use crate::shard::audit::Fault;
pub use crate::shard::header::{HeaderError, Progress, State, Step, Term};
pub use crate::shard::recover::{Ending, Host};
pub use crate::shard::scan::Scan;
pub use crate::shard::{ApplyError, BLOCK_SLOTS, Counts, Doubt};
pub use feed::{ChangeFeed, ChangeId, Changes, Fed, FeedError, SlotChange};
pub use history::HistoryError;
pub use hold::{Intent, Moment};
use log::Keeper;
pub use log::{Durability, LogStats, SyncError};
use log_buffer::Buffer;
pub use log_state::LogState;
use mark::Deletions;
pub use mark::Mark;
pub use open::{OpenError, Options};
pub use open_log::{Simulated, SimulatedShards};
pub use position::Position;
pub use records::{Change, Entry, NotANumber, ReadError, WriteError};
pub use recovery::ReplayError;
pub use regain::{GivenBack, RegainError};
pub use replicate::{Applied, PromoteError};
use report::Reports;
pub use rewind::{Rewinding, Rewound};

/// What lies behind a shard's lock.
pub(crate) struct Locked {
    pub(crate) shard: Shard,
    // A ring writer is no thread's to share; the mutex only says so, and is never waited for.
    pub(crate) rings: Mutex<Vec<RingWriter>>,
    log: Buffer,
    deletions: Deletions,
    pub(crate) puts: u64,
    pub(crate) deletes: u64,
    pub(crate) expired: u64,
    pub(crate) rejected: u64,
    pub(crate) ring_overflows: u64,
    pub(crate) audited: AtomicU64,
    pub(crate) mended: u64,
}

/// One shard behind its lock, and what readers use who do without it.
// On cache lines of its own: two shards' locks must not slow each other.
#[repr(align(128))]
pub(crate) struct Cell {
    lock: RwLock<Locked>,
    /// Odd while a writer is at work or the shard is held, and never the same again after it was.
    version: AtomicU64,
    index_buckets: AtomicUsize,
    index: IndexWindow,
    slots: Window,
    /// While a slot is damaged, a key that is not found may have been there.
    has_damaged: Arc<AtomicBool>,
    /// Locked by who holds the shard; others wait here.
    gate: Mutex<()>,
    /// Who that is, see [`hold`]; 0 = nobody.
    holder: AtomicUsize,
}

impl Cell {
    fn new(shard: Shard) -> Self {
        let ((index, slots), has_damaged) = (shard.windows(), shard.damage_flag());
        let index_buckets = AtomicUsize::new(shard.index_buckets());
        let locked = Locked {
            shard,
            rings: Mutex::new(Vec::new()),
            log: Buffer::off(),
            deletions: Deletions::new(),
            puts: 0,
            deletes: 0,
            expired: 0,
            rejected: 0,
            ring_overflows: 0,
            audited: AtomicU64::new(0),
            mended: 0,
        };
        Self {
            lock: RwLock::new(locked),
            version: AtomicU64::new(0),
            index_buckets,
            index,
            slots,
            has_damaged,
            gate: Mutex::new(()),
            holder: AtomicUsize::new(0),
        }
    }
}

/// A shard's lock, held exclusively. Readers without the lock see by the version that it was.
pub(crate) struct Exclusive<'a> {
    locked: RwLockWriteGuard<'a, Locked>,
    cell: &'a Cell,
    /// The version when this is dropped.
    after: u64,
}

impl<'a> Exclusive<'a> {
    #[inline]
    fn new(cell: &'a Cell) -> Self {
        debug_assert!(cell.is_mine() || !hold::holds_any(), "who holds shards touches no others");
        let locked = cell.lock.write();
        // Only who has the lock writes the version.
        let version = cell.version.load(Ordering::Relaxed);
        if !version.is_multiple_of(2) {
            return Self::of_held(cell, locked, version);
        }
        Self::begin(cell, locked, version)
    }

    #[inline]
    fn begin(cell: &'a Cell, locked: RwLockWriteGuard<'a, Locked>, version: u64) -> Self {
        cell.version.store(version + 1, Ordering::Relaxed);
        // The odd version is seen before anything that is changed under it.
        fence(Ordering::Release);
        Self { locked, cell, after: version + 2 }
    }

    /// Of a shard that is held: its holder goes on, others wait.
    #[cold]
    fn of_held(cell: &'a Cell, locked: RwLockWriteGuard<'a, Locked>, version: u64) -> Self {
        if cell.is_mine() {
            return Self { locked, cell, after: version };
        }
        drop(locked);
        let gate = cell.gate.lock();
        let locked = cell.lock.write();
        drop(gate);
        // Nobody holds the shard without its gate.
        Self::begin(cell, locked, cell.version.load(Ordering::Relaxed))
    }
}

impl Drop for Exclusive<'_> {
    #[inline]
    fn drop(&mut self) {
        self.cell.index_buckets.store(self.locked.shard.index_buckets(), Ordering::Relaxed);
        self.cell.version.store(self.after, Ordering::Release);
    }
}

impl Deref for Exclusive<'_> {
    type Target = Locked;

    #[inline]
    fn deref(&self) -> &Locked {
        &self.locked
    }
}

impl DerefMut for Exclusive<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Locked {
        &mut self.locked
    }
}

/// Figures of one shard.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct ShardStats {
    /// Last seq.
    pub seq: u64,
    /// Current epoch.
    pub epoch: u64,
    /// Slots that have a status: the shard's capacity without growing.
    pub slots_formatted: u64,
    /// Slots that hold a record.
    pub slots_used: u64,
    /// Tombstones.
    pub slots_deleted: u64,
    /// Slots found damaged, and not healed since.
    pub slots_damaged: u64,
    /// Slots looked at in the background since the store was opened without reading them.
    pub slots_audited: u64,
    /// Slots that the audit found index, free set or digest not to fit, and put right.
    pub misfits_mended: u64,
    /// Records that carry an expiry time.
    pub expiring: u64,
    /// Records stored since the store was opened.
    pub puts: u64,
    /// Records deleted since the store was opened.
    pub deletes: u64,
    /// Records deleted because they had expired, since the store was opened.
    pub expired: u64,
    /// Writes refused for want of space.
    pub rejected: u64,
    /// Rings attached.
    pub rings: u64,
    /// Times a ring was found full, since the store was opened.
    pub ring_overflows: u64,
    /// Memory for index and block summaries, in bytes.
    pub memory_bytes: u64,
    /// Size of the shard's file, in bytes.
    pub file_bytes: u64,
}

/// A store. Share it with `Arc`; all methods take `&self`.
pub struct Store {
    geometry: Geometry,
    store_id: Uuid,
    clock: Arc<dyn Clock>,
    chance: Arc<dyn Chance>,
    reports: Reports,
    cells: Box<[Cell]>,
    stride: usize,
    slots_offset: usize,
    read_only: AtomicBool,
    demotions: AtomicU32,
    closed: AtomicBool,
    ending: Ending,
    host: Host,
    /// See [`regain`].
    regaining: AtomicBool,
    durability: Durability,
    keeper: Option<Keeper>,
    /// A change is durable before it is in its slot; see [`pending`].
    log_first: bool,
    calls_wait: bool,
    /// Whether the new terms could not be made durable. Its lock is held while that is tried.
    regain_failed: Mutex<bool>,
    /// A role or history was not made durable: nothing goes on from there.
    sync_failed: AtomicBool,
    /// Above 0: a role or history may not be in the log yet, which has no space.
    history_owed: AtomicU32,
    /// Writes were stopped since the opening. Its lock keeps who stops them and who begins apart.
    was_stopped: Mutex<bool>,
    _directory_lock: Option<File>,
}

impl Store {
    /// The store's sizes.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The store's identity; all its followers share it.
    #[must_use]
    pub fn store_id(&self) -> Uuid {
        self.store_id
    }

    /// The clock that expiry times are compared with.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// How the last process that had the store open ended.
    #[must_use]
    pub fn ending(&self) -> Ending {
        self.ending
    }

    /// Whether only [`Store::apply`] changes the store.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    /// A follower's store is read-only for everybody but [`Store::apply`]. A closed one stays so, and one that
    /// regains its tail until it has.
    pub fn set_read_only(&self, read_only: bool) {
        let must_be = self.closed.load(Ordering::Relaxed) || self.is_regaining();
        self.read_only.store(read_only || must_be, Ordering::Relaxed);
    }

    /// Counts how often the store left a term: changes that it made before may be gone.
    #[inline]
    #[must_use]
    pub fn demotions(&self) -> u32 {
        self.demotions.load(Ordering::Relaxed)
    }

    /// Makes the store read-only; when this returns, no write is under way, none waits for the log, and none
    /// will come.
    pub fn stop_writes(&self) {
        let mut was_stopped = self.was_stopped.lock();
        *was_stopped = true;
        self.set_read_only(true);
        drop(was_stopped);
        // A writer looks again under its shard's lock: who had it before us is done, who has it after us sees.
        self.shards().for_each(|shard| drop(self.exclusive(shard)));
        self.land_all();
    }

    /// All shards' indexes.
    pub fn shards(&self) -> impl Iterator<Item = ShardIndex> + use<> {
        (0..self.geometry.shard_count).map(ShardIndex)
    }

    #[inline]
    fn slot_offset(&self, slot: SlotIndex) -> usize {
        self.slots_offset + slot.0 as usize * self.stride
    }

    #[inline]
    fn cell(&self, shard: ShardIndex) -> &Cell {
        &self.cells[usize::from(shard.0)]
    }

    #[inline]
    fn shared(&self, shard: ShardIndex) -> RwLockReadGuard<'_, Locked> {
        let cell = self.cell(shard);
        debug_assert!(cell.is_mine() || !hold::holds_any(), "who holds shards touches no others");
        let locked = cell.lock.read();
        // Odd under the lock: somebody holds the shard.
        if cell.version.load(Ordering::Relaxed).is_multiple_of(2) {
            locked
        } else {
            cell.shared_of_held(locked)
        }
    }

    #[inline]
    fn exclusive(&self, shard: ShardIndex) -> Exclusive<'_> {
        Exclusive::new(self.cell(shard))
    }

    /// Figures of a shard.
    #[must_use]
    pub fn stats(&self, shard: ShardIndex) -> ShardStats {
        let locked = self.shared(shard);
        let (counts, (file, memory)) = (locked.shard.counts(), locked.shard.sizes());
        let rings = locked.rings.lock();
        ShardStats {
            seq: locked.shard.seq().0,
            epoch: locked.shard.epoch(),
            slots_formatted: locked.shard.slots_formatted().into(),
            slots_used: counts.occupied,
            slots_deleted: counts.deleted,
            slots_damaged: locked.shard.damaged().len() as u64,
            slots_audited: locked.audited.load(Ordering::Relaxed),
            misfits_mended: locked.mended,
            expiring: counts.expiring,
            puts: locked.puts,
            deletes: locked.deletes,
            expired: locked.expired,
            rejected: locked.rejected,
            rings: rings.iter().filter(|ring| !ring.is_abandoned()).count() as u64,
            ring_overflows: locked.ring_overflows + rings.iter().map(RingWriter::overflows).sum::<u64>(),
            memory_bytes: memory as u64,
            file_bytes: file as u64,
        }
    }

    /// Slots found damaged when the store was opened, and not replaced since.
    #[must_use]
    pub fn damaged(&self) -> Vec<(ShardIndex, SlotIndex, SlotError)> {
        let of_shard = |shard| {
            let locked = self.shared(shard);
            locked
                .shard
                .damaged()
                .iter()
                .map(|(slot, error)| (shard, *slot, error.clone()))
                .collect::<Vec<_>>()
        };
        self.shards().flat_map(of_shard).collect()
    }

    /// Compares every shard's index, free set, counts and summaries with a rebuild from its slots.
    /// Holds one shard's lock at a time for as long as reading it takes: for tools and tests.
    pub fn check(&self) -> Result<(), String> {
        for shard in self.shards() {
            self.shared(shard).shard.check().map_err(|error| format!("shard {shard}: {error}"))?;
        }
        Ok(())
    }

    /// Calls `f` with a slot's checked image; for tools and tests.
    pub fn with_slot<T>(
        &self,
        shard: ShardIndex,
        slot: SlotIndex,
        f: impl FnOnce(Result<SlotView<'_>, SlotError>) -> T,
    ) -> T {
        let locked = self.shared(shard);
        assert!(slot.0 < locked.shard.slots_formatted(), "slot below slots_formatted");
        f(locked.shard.view(slot))
    }

    /// Makes everything durable and marks every shard as closed in an orderly way. Later writes fail.
    pub fn close(&self) -> io::Result<()> {
        self.closed.store(true, Ordering::Relaxed);
        self.stop_writes();
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(io::Error::other("a sync has failed before"));
        }
        // First, so that what fails here leaves no mark that says otherwise.
        match self.sync_log() {
            // The slots have all that was answered, and are about to be durable themselves.
            Err(error) if error.is_full() && !self.has_pending() => {}
            Err(error) if error.is_full() => {
                return Err(io::Error::other(format!(
                    "changes wait for the log and are given up, and whoever made them was told that they are not \
                     durable: {error}"
                )));
            }
            synced => synced.map_err(io::Error::other)?,
        }
        for shard in self.shards() {
            let mut locked = self.exclusive(shard);
            locked.rings.get_mut().clear();
            locked.shard.close()?;
        }
        self.end_log().map_err(io::Error::other)
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("store_id", &self.store_id)
            .field("geometry", &self.geometry)
            .field("read_only", &self.is_read_only())
            .finish_non_exhaustive()
    }
}
