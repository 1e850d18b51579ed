//! Making and opening stores.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use uuid::Uuid;

use crate::chance::{Chance, SystemChance};
use crate::clock::{Clock, SystemClock};
use crate::region::{Region, allocate, create_file};
use crate::shard::Shard;
use crate::shard::header::{HeaderError, Identity, slots_offset};
use crate::shard::recover::{Ending, Files, Host, RecoverError};
use crate::slot::{Geometry, GeometryError, ShardIndex};

use super::host::host;
use super::log::Durability;
use super::open_log::{Simulated, discard_log, open_log};
use super::parallel::{each, threads};
use super::recovery::ReplayError;
use super::report::Reports;
use super::{Cell, Store, digest_file, directory};

// Address space, not memory: what all shards of a store may map together (a process has 128 TiB).
const RESERVE_TOTAL: u64 = 1 << 43;
const RESERVE_SHARD_MAX: u64 = 1 << 40;

/// How to open a store.
#[derive(Clone)]
pub struct Options {
    /// Sizes; `None` = as on disk.
    pub geometry: Option<Geometry>,
    /// Make a store where the directory holds none; needs `geometry`.
    pub create: bool,
    /// Identity; `None` = as on disk, or random for a new store.
    pub store_id: Option<Uuid>,
    /// Source of time.
    pub clock: Arc<dyn Clock>,
    /// Source of names for terms of leadership.
    pub chance: Arc<dyn Chance>,
    /// A leader's store that an OS crash may have cost its last writes opens read-only, until
    /// [`Store::end_regain`]: followers may be asked for them first. `false`: it leads with what is left.
    pub regain: bool,
    /// Map the files privately: nothing that this process does reaches them. For tools.
    pub private: bool,
    /// Keep the store in memory, with at most so many slots per shard; no directory is touched.
    pub memory_slots: Option<u32>,
    /// When a change is durable. A store has no threads: whoever opens one with a log drives it ([`Store::sync_log`] as
    /// often as is promised, [`Store::checkpoint`] where [`Store::wants_checkpoint`]), and so has to ask for it.
    pub durability: Durability,
    /// With [`Durability::Always`]: a call that changes something returns when that is durable. `false`: it returns
    /// when that is made, nobody sees anything of it yet, and the caller waits itself ([`Store::ask_for_a_round`]).
    pub calls_wait: bool,
    /// Bytes that the log may take; a write that finds it full waits until slots are durable.
    pub log_size_max: u64,
    /// Bytes of one of the log's files.
    pub log_segment_size: u32,
    /// What a store in memory lies on, for a simulator that cuts its power.
    pub simulated: Option<Simulated>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            geometry: None,
            create: false,
            store_id: None,
            clock: Arc::new(SystemClock::new()),
            chance: Arc::new(SystemChance),
            regain: false,
            private: false,
            memory_slots: None,
            durability: Durability::None,
            calls_wait: true,
            log_size_max: 1 << 30,
            log_segment_size: 16 << 20,
            simulated: None,
        }
    }
}

impl Options {
    /// Opens the directory's store, or makes one of these sizes.
    #[must_use]
    pub fn create(geometry: Geometry) -> Self {
        Self { geometry: Some(geometry), create: true, ..Self::default() }
    }

    /// A store in memory with at most `slots` slots per shard; for simulators and tests.
    #[must_use]
    pub fn memory(geometry: Geometry, slots: u32) -> Self {
        Self { memory_slots: Some(slots), ..Self::create(geometry) }
    }
}

/// Why a store was not opened. What was there is as it was.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system refused.
    #[error("{path}: cannot {action}: {error}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// Another process has the directory.
    #[error("{path}: in use by process {owner}")]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Its process id.
        owner: String,
    },
    /// There is no store, and none was to be made.
    #[error("{path}: holds no store")]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// What was named is no directory.
    #[error("{path}: found a file, wanted a directory")]
    NoDirectory {
        /// What was named.
        path: PathBuf,
    },
    /// The sizes asked for are no geometry.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The store has other sizes, or another identity, than what was asked for.
    #[error("{path}: the store's {field} is {found}, wanted {wanted}")]
    Differs {
        /// The directory.
        path: PathBuf,
        /// Which one.
        field: &'static str,
        /// On disk.
        found: String,
        /// Asked for.
        wanted: String,
    },
    /// A shard's file is not what it should be.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The log is not what it should be, or does not begin.
    #[error("{path}: {error}")]
    Log {
        /// Where it lies.
        path: PathBuf,
        /// What is wrong with it.
        error: ReplayError,
    },
    /// A shard is damaged beyond healing.
    #[error("{path}: {error}")]
    Ruined {
        /// The shard's file.
        path: PathBuf,
        /// What is wrong with it.
        error: RecoverError,
    },
}

pub(super) fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |error| OpenError::Io { path, action, error }
}

pub(super) fn recover_error(path: &Path, error: RecoverError) -> OpenError {
    match error {
        RecoverError::Header(error) => error.into(),
        error @ RecoverError::Damaged { .. } => OpenError::Ruined { path: path.into(), error },
        RecoverError::Index(error) => io_error(path, "index the shard")(error),
    }
}

pub(super) fn reserve(geometry: &Geometry) -> usize {
    let share = (RESERVE_TOTAL / u64::from(geometry.shard_count)).min(RESERVE_SHARD_MAX);
    usize::try_from(share).unwrap_or(usize::MAX / 2)
}

impl Store {
    /// Opens the store in `path`, or makes one, as the options say. After an orderly close, and after a kill
    /// on the same machine, its slots are not looked at: [`Store::audit`] does that beside everything else.
    /// What is damaged is never served; see [`Store::damaged`].
    pub fn open(path: &Path, options: Options) -> Result<Self, OpenError> {
        if let Some(geometry) = &options.geometry {
            geometry.check()?;
        }
        if let (Some(slots), Some(geometry)) = (options.memory_slots, options.geometry) {
            return Self::in_memory(geometry, slots, options);
        }
        if path.exists() && !path.is_dir() {
            return Err(OpenError::NoDirectory { path: path.into() });
        }
        if options.create {
            fs::create_dir_all(path).map_err(io_error(path, "create the directory"))?;
        }
        if !path.is_dir() {
            return Err(OpenError::Missing { path: path.into() });
        }
        let lock = match directory::lock(path).map_err(io_error(path, "lock the directory"))? {
            Ok(file) => file,
            Err(owner) => return Err(OpenError::InUse { path: path.into(), owner }),
        };
        let is_new = !directory::shards_path(path).exists();
        if is_new {
            discard_log(path)?;
            match options.geometry.filter(|_| options.create) {
                Some(geometry) => create(path, geometry, options.store_id.unwrap_or_else(Uuid::new_v4))?,
                None => return Err(OpenError::Missing { path: path.into() }),
            }
        }
        let shards_path = directory::shards_path(path);
        let host = host(&shards_path).map_err(io_error(&shards_path, "identify the file system"))?;
        let first = inspect_first(path)?;
        check_wanted(path, &options, &first)?;
        let log = open_log(path, is_new, first, host, &options)?;
        let shards = open_shards(path, first, host, &options)?;
        let reports = Reports::Directory(path.into());
        let assembly = Assembly {
            clock: Arc::clone(&options.clock),
            chance: Arc::clone(&options.chance),
            host,
            regains: options.regain,
            lock: Some(lock),
            reports,
        };
        let store = Self::assemble(first, shards, assembly).map_err(io_error(path, "sync the header"))?;
        store.with_log(log, &options, &directory::log_path(path))
    }

    /// All shards are good: from here on they are this process's.
    pub(super) fn assemble(
        Identity { geometry, store_id, .. }: Identity,
        mut shards: Vec<Shard>,
        assembly: Assembly,
    ) -> io::Result<Self> {
        let Assembly { clock, chance, host, regains, lock, reports } = assembly;
        let term_id = chance.next();
        let worst = |worst: Ending, ending: Ending| match (worst, ending) {
            (Ending::OsCrash, _) | (_, Ending::OsCrash) => Ending::OsCrash,
            (Ending::ProcessCrash, _) | (_, Ending::ProcessCrash) => Ending::ProcessCrash,
            (Ending::Clean, Ending::Clean) => Ending::Clean,
        };
        let mut ending = Ending::Clean;
        for shard in &mut shards {
            ending = worst(ending, shard.take_over(host, term_id, regains)?);
        }
        let regaining = shards.iter().any(|shard| shard.tail().is_some());
        Ok(Self {
            geometry,
            store_id,
            clock,
            chance,
            reports,
            cells: shards.into_iter().map(Cell::new).collect(),
            stride: geometry.slot_stride(),
            slots_offset: slots_offset(&geometry),
            read_only: AtomicBool::new(regaining),
            demotions: AtomicU32::new(0),
            closed: AtomicBool::new(false),
            ending,
            host,
            regaining: AtomicBool::new(regaining),
            durability: Durability::None,
            keeper: None,
            log_first: false,
            calls_wait: false,
            regain_failed: Mutex::default(),
            sync_failed: AtomicBool::new(false),
            history_owed: AtomicU32::new(0),
            was_stopped: Mutex::default(),
            _directory_lock: lock,
        })
    }
}

/// What a store is made of beside its shards.
pub(super) struct Assembly {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) chance: Arc<dyn Chance>,
    pub(super) host: Host,
    pub(super) regains: bool,
    pub(super) lock: Option<File>,
    pub(super) reports: Reports,
}

/// Makes all shards beside their final place, and then moves them there at once.
fn create(path: &Path, geometry: Geometry, store_id: Uuid) -> Result<(), OpenError> {
    let new = directory::new_shards_path(path);
    if new.exists() {
        // A creation that was cut off: nothing in it was ever in use.
        fs::remove_dir_all(&new).map_err(io_error(&new, "remove an unfinished store"))?;
    }
    let made = create_shards(&new, geometry, store_id);
    if made.is_err() {
        // Give the space back; the first error is the one to report.
        drop(fs::remove_dir_all(&new));
    }
    made?;
    fs::rename(&new, directory::shards_path(path)).map_err(io_error(&new, "move the shards into place"))?;
    directory::sync(path).map_err(io_error(path, "sync the directory"))
}

fn create_shards(new: &Path, geometry: Geometry, store_id: Uuid) -> Result<(), OpenError> {
    fs::create_dir(new).map_err(io_error(new, "create the directory"))?;
    for shard in (0..geometry.shard_count).map(ShardIndex) {
        let path = new.join(directory::shard_file(shard));
        let size = Shard::initial_size(&geometry);
        let file = create_file(&path, size).map_err(io_error(&path, "allocate the file"))?;
        let region = Region::map(file, size, size).map_err(io_error(&path, "map the file"))?;
        let identity = Identity { store_id, shard, geometry };
        let shard =
            Shard::create(region, identity, Host::default()).map_err(io_error(&path, "make the shard"))?;
        shard.into_region().sync().map_err(io_error(&path, "sync the file"))?;
    }
    directory::sync(new).map_err(io_error(new, "sync the directory"))
}

fn inspect_first(path: &Path) -> Result<Identity, OpenError> {
    let file = directory::shards_path(path).join(directory::shard_file(ShardIndex(0)));
    let inspection = directory::inspect(&file).map_err(io_error(&file, "read the header"))??;
    Ok(inspection.identity)
}

fn check_wanted(path: &Path, options: &Options, found: &Identity) -> Result<(), OpenError> {
    let differs = |field, found: String, wanted: String| {
        if found == wanted {
            Ok(())
        } else {
            Err(OpenError::Differs { path: path.into(), field, found, wanted })
        }
    };
    if let Some(wanted) = &options.geometry {
        let found = &found.geometry;
        differs("shard count", found.shard_count.to_string(), wanted.shard_count.to_string())?;
        differs("key size", found.key_size_max.to_string(), wanted.key_size_max.to_string())?;
        differs("value size", found.value_size_max.to_string(), wanted.value_size_max.to_string())?;
        let routing = |geometry: &Geometry| match geometry.has_hash_tags() {
            true => "hash tags".to_owned(),
            false => geometry.shard_prefix_bits.to_string(),
        };
        differs("shard prefix bits", routing(found), routing(wanted))?;
    }
    if let Some(wanted) = options.store_id {
        differs("id", found.store_id.to_string(), wanted.to_string())?;
    }
    Ok(())
}

/// Opens all shards, on as many threads as there are processors, with a log line each second.
fn open_shards(path: &Path, first: Identity, host: Host, options: &Options) -> Result<Vec<Shard>, OpenError> {
    let shard_count = first.geometry.shard_count;
    let visited = AtomicU64::new(0);
    let count = |slots: u32| {
        visited.fetch_add(slots.into(), Ordering::Relaxed);
    };
    let open = |shard| open_shard(path, Identity { shard, ..first }, host, options, count);
    let said = |shards_open| {
        let slots = visited.load(Ordering::Relaxed);
        tracing::info!(slots, shards_open, shard_count, "opening the store");
    };
    let shards = (0..shard_count).map(ShardIndex);
    each(threads(shard_count.into()), shards, open, said).into_iter().collect()
}

/// Every shard's file belongs to the same store, has its sizes, and is in its place.
fn check_identity(path: &Path, found: &Identity, wanted: &Identity) -> Result<(), OpenError> {
    let fields = [
        ("store id", found.store_id.to_string(), wanted.store_id.to_string()),
        ("shard", found.shard.to_string(), wanted.shard.to_string()),
        ("geometry", found.geometry.to_string(), wanted.geometry.to_string()),
    ];
    match fields.into_iter().find(|(_, found, wanted)| found != wanted) {
        Some((field, found, wanted)) => {
            Err(HeaderError::Differs { path: path.into(), field, found, wanted }.into())
        }
        None => Ok(()),
    }
}

fn open_shard(
    directory: &Path,
    wanted: Identity,
    host: Host,
    options: &Options,
    visited: impl Fn(u32),
) -> Result<Shard, OpenError> {
    let path = directory::shards_path(directory).join(directory::shard_file(wanted.shard));
    let found = directory::inspect(&path).map_err(io_error(&path, "read the header"))??;
    check_identity(&path, &found.identity, &wanted)?;
    let file = File::options().read(true).write(!options.private).open(&path);
    let file = file.map_err(io_error(&path, "open the file"))?;
    // The directory's LOCK may have been removed by hand; the file itself cannot be, unnoticed.
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path, owner: "unknown".to_owned() }),
        Err(TryLockError::Error(error)) => return Err(io_error(&path, "lock the file")(error)),
    }
    let len = usize::try_from(found.file_size).unwrap_or(usize::MAX);
    if !options.private {
        // A copied file may have holes, and a hole on a full disk is a SIGBUS when it is written.
        allocate(&file, 0, len).map_err(io_error(&path, "allocate the file"))?;
    }
    let digest_path = directory::shards_path(directory).join(directory::digest_file(wanted.shard));
    let (geometry, count) = (&wanted.geometry, found.state.slots_formatted);
    let map_error = || io_error(&path, "map the file");
    let (slots, digest) = if options.private {
        let slots = Region::map_private(&file, len).map_err(map_error())?;
        (slots, digest_file::copy(&digest_path, count, Shard::slot_count_max(geometry, len)))
    } else {
        let reserved = reserve(geometry).max(len);
        let slots = Region::map(file, len, reserved).map_err(map_error())?;
        (slots, digest_file::open(&digest_path, count, Shard::slot_count_max(geometry, reserved)))
    };
    let digest = digest.map_err(io_error(&digest_path, "map the file"))?;
    let shard = Shard::open(&path, Files { slots, digest }, wanted, host, visited);
    shard.map_err(|error| recover_error(&path, error))
}
