//! A store's log where the store is opened: found, replayed, begun; and the machines of simulators.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use uuid::Uuid;

use crate::region::{Region, allocate};
use crate::shard::Shard;
use crate::shard::header::{HEADER_PAGE_SIZE, Identity, State, slots_offset};
use crate::shard::recover::{Files, Host};
use crate::slot::{Geometry, ShardIndex};
use crate::wal::disk::{Disk, FileDisk, FirstUse};
use crate::wal::{Log, LogError, LogOptions};

use super::log::{Durability, Keeper, SyncError};
use super::open::{Assembly, OpenError, Options, io_error, recover_error, reserve};
use super::parallel::threads;
use super::recovery::{Ground, Left, recover};
use super::report::Reports;
use super::{Store, directory};

/// A machine that a store in memory runs on.
#[derive(Clone)]
pub struct Simulated {
    /// Holds the log.
    pub disk: Arc<dyn Disk>,
    /// Hold the shards.
    pub shards: Arc<dyn SimulatedShards>,
    /// Another one after each power cut.
    pub boot: u8,
}

/// Files of shards that a simulator keeps.
pub trait SimulatedShards: Send + Sync {
    /// What the shard's file holds; none before it is made.
    fn load(&self, shard: ShardIndex) -> Option<Vec<u8>>;
    /// Makes these bytes durable, at this offset of the file.
    fn sync(&self, shard: ShardIndex, offset: usize, bytes: &[u8]) -> io::Result<()>;
}

impl Store {
    pub(super) fn with_log(
        mut self,
        log: Option<Log>,
        options: &Options,
        path: &Path,
    ) -> Result<Self, OpenError> {
        if let Some(log) = log {
            self.durability = options.durability;
            self.log_first = self.durability == Durability::Always;
            self.calls_wait = self.log_first && options.calls_wait;
            let failed = |error: SyncError| match error {
                SyncError::Log(error) => OpenError::Log { path: path.into(), error: error.into() },
                error => io_error(path, "begin the log")(io::Error::other(error)),
            };
            self.keeper = Some(Keeper::begin(log, &self.cells, self.log_first).map_err(failed)?);
        } else {
            // What was healed is durable, what came since is too: from here on nothing is.
            for shard in self.shards().filter(|shard| self.shared(*shard).shard.is_healed()) {
                let mut locked = self.exclusive(shard);
                let synced = locked.shard.sync();
                locked.shard.forget_reserved();
                let synced = synced.and_then(|()| locked.shard.sync_header());
                synced.map_err(io_error(path, "sync a shard"))?;
            }
        }
        Ok(self)
    }

    /// A store in memory on a machine that a simulator keeps.
    pub(super) fn on_simulated(
        geometry: Geometry,
        slots: u32,
        options: Options,
        simulated: Simulated,
    ) -> Result<Self, OpenError> {
        let store_id = options.store_id.unwrap_or_else(Uuid::new_v4);
        let identity = Identity { store_id, shard: ShardIndex(0), geometry };
        let host = Host { boot_id: [simulated.boot; 16], place_id: 1 };
        let path = Path::new("memory");
        let reserved =
            (slots_offset(&geometry) + slots as usize * geometry.slot_stride()).next_multiple_of(4096);
        let all = || (0..geometry.shard_count).map(ShardIndex);
        for shard in all().filter(|shard| simulated.shards.load(*shard).is_none()) {
            let zeros = vec![0; Shard::initial_size(&geometry).min(reserved)];
            let region = simulated_region(&simulated, shard, &zeros, reserved);
            let made = Shard::create(region, Identity { shard, ..identity }, host);
            let made = made.and_then(|shard| shard.into_region().sync());
            made.map_err(io_error(path, "make a shard"))?;
        }
        let mut ground = SimulatedGround { simulated: &simulated, host, reserved };
        let failed = |error: LogError| OpenError::Log { path: path.into(), error: error.into() };
        let is_wanted = options.durability != Durability::None;
        let old = simulated.disk.files().map_err(io_error(path, "find the log"))?;
        let mut log = None;
        if is_wanted || !old.is_empty() {
            let opened = Log::open(Arc::clone(&simulated.disk), log_options(store_id, &options));
            log = Some(recover(&mut ground, identity, opened.map_err(failed)?)?).filter(|_| is_wanted);
        }
        let open = |shard| {
            let bytes = simulated.shards.load(shard).unwrap_or_default();
            let region = simulated_region(&simulated, shard, &bytes, reserved);
            let files = Files::without_digest(region, &geometry);
            Shard::open(path, files, Identity { shard, ..identity }, host, |_| {})
                .map_err(|error| recover_error(path, error))
        };
        let shards = all().map(open).collect::<Result<_, OpenError>>()?;
        let assembly = Assembly {
            clock: Arc::clone(&options.clock),
            chance: Arc::clone(&options.chance),
            host,
            regains: options.regain,
            lock: None,
            reports: Reports::Memory(Mutex::default()),
        };
        let store = Self::assemble(identity, shards, assembly).map_err(io_error(path, "sync the header"))?;
        store.with_log(log, &options, path)
    }

    /// What readers of a shard's file see; for a simulator.
    #[doc(hidden)]
    #[must_use]
    pub fn shard_bytes(&self, shard: ShardIndex) -> Vec<u8> {
        let copy = self.shared(shard).shard.copy_region();
        copy.bytes(0, copy.len()).to_vec()
    }
}

fn log_options(store_id: Uuid, options: &Options) -> LogOptions {
    let segments = options.log_size_max / u64::from(options.log_segment_size).max(1);
    LogOptions {
        store_id,
        segment_size: options.log_segment_size,
        segments_max: u32::try_from(segments).unwrap_or(u32::MAX).max(2),
    }
}

/// A log without its shards is nobody's.
pub(super) fn discard_log(path: &Path) -> Result<(), OpenError> {
    let log = directory::log_path(path);
    match fs::remove_dir_all(&log) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(&log, "remove the log")(error)),
        _ => Ok(()),
    }
}

/// Replays the directory's log, if there is one; then there is one or none, as the options say.
pub(super) fn open_log(
    path: &Path,
    is_new: bool,
    first: Identity,
    host: Host,
    options: &Options,
) -> Result<Option<Log>, OpenError> {
    let log_path = directory::log_path(path);
    let is_wanted = options.durability != Durability::None;
    if options.private || (!is_wanted && !log_path.exists()) {
        return Ok(None);
    }
    if !is_new && !log_path.exists() {
        tracing::info!(
            durability = options.durability.level(),
            "this store had no log until now: what was written before is made durable with the first checkpoint"
        );
    }
    let first_use = match options.durability {
        Durability::Always => FirstUse::Zeroed,
        Durability::None | Durability::Interval(_) => FirstUse::Allocated,
    };
    let disk = FileDisk::new(&log_path, first_use).map_err(io_error(&log_path, "open the log"))?;
    let opened = Log::open(Arc::new(disk), log_options(first.store_id, options));
    let log = opened.map_err(|error| OpenError::Log { path: log_path.clone(), error: error.into() })?;
    let log = recover(&mut StoreFiles { path, host, geometry: first.geometry }, first, log)?;
    if is_wanted {
        return Ok(Some(log));
    }
    drop(log);
    discard_log(path)?;
    tracing::info!(
        "the log of this store is at its end: what it held is in the slots, and durability is none"
    );
    Ok(None)
}

/// The files of a store, before it is opened.
struct StoreFiles<'a> {
    path: &'a Path,
    host: Host,
    geometry: Geometry,
}

impl StoreFiles<'_> {
    fn open(&self, shard: ShardIndex) -> Result<File, OpenError> {
        let path = self.path(shard);
        File::options().read(true).write(true).open(&path).map_err(io_error(&path, "open the file"))
    }
}

impl Ground for StoreFiles<'_> {
    fn path(&self, shard: ShardIndex) -> PathBuf {
        directory::shards_path(self.path).join(directory::shard_file(shard))
    }

    fn left(&self, shard: ShardIndex) -> Option<Left> {
        let found = directory::inspect(&self.path(shard)).ok()?.ok()?;
        Some(Left::new(&found.state, self.host))
    }

    fn map(&mut self, shard: ShardIndex) -> Result<Region, OpenError> {
        let path = self.path(shard);
        let file = self.open(shard)?;
        let len = file.metadata().map_err(io_error(&path, "read the file's size"))?.len();
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        // A hole on a full disk is a SIGBUS when it is written.
        allocate(&file, 0, len).map_err(io_error(&path, "allocate the file"))?;
        Region::map(file, len, reserve(&self.geometry).max(len)).map_err(io_error(&path, "map the file"))
    }

    fn unmap(&mut self, _: ShardIndex, region: Region) {
        drop(region);
    }

    fn sync(&self, shard: ShardIndex) -> Result<(), OpenError> {
        self.open(shard)?.sync_data().map_err(io_error(&self.path(shard), "sync the file"))
    }

    fn threads(&self) -> usize {
        threads(self.geometry.shard_count.into())
    }
}

fn simulated_region(simulated: &Simulated, shard: ShardIndex, bytes: &[u8], reserved: usize) -> Region {
    let shards = Arc::clone(&simulated.shards);
    Region::simulated(
        bytes,
        reserved.max(bytes.len()),
        Arc::new(move |offset, bytes| shards.sync(shard, offset, bytes)),
    )
}

struct SimulatedGround<'a> {
    simulated: &'a Simulated,
    host: Host,
    reserved: usize,
}

impl Ground for SimulatedGround<'_> {
    fn path(&self, shard: ShardIndex) -> PathBuf {
        PathBuf::from(format!("memory/{}", directory::shard_file(shard)))
    }

    fn left(&self, shard: ShardIndex) -> Option<Left> {
        let bytes = self.simulated.shards.load(shard)?;
        Some(Left::new(&State::read(&self.path(shard), bytes.get(..HEADER_PAGE_SIZE)?).ok()?, self.host))
    }

    fn map(&mut self, shard: ShardIndex) -> Result<Region, OpenError> {
        let bytes = self.simulated.shards.load(shard).unwrap_or_default();
        Ok(simulated_region(self.simulated, shard, &bytes, self.reserved))
    }

    fn unmap(&mut self, _: ShardIndex, region: Region) {
        drop(region);
    }

    fn threads(&self) -> usize {
        1
    }

    fn sync(&self, shard: ShardIndex) -> Result<(), OpenError> {
        let bytes = self.simulated.shards.load(shard).unwrap_or_default();
        self.simulated.shards.sync(shard, 0, &bytes).map_err(io_error(&self.path(shard), "sync the file"))
    }
}
