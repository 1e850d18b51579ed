//! Taking a backup: some shards at a time, and the manifest once every file is durable.

use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use uuid::Uuid;

use crate::clock::{Clock, SystemClock};
use crate::follower::{LeaderInfo, ProbeError, probe};
use crate::slot::{Seq, ShardIndex};
use crate::units;
use crate::watch::{Counts, Watch};

use super::blocks::BlockWriter;
use super::manifest::{Manifest, ManifestError, ShardEntry, shard_file};
use super::pull::{Figures, PullError, Wanted, pull};
use super::storage::{ClaimError, Storage};
use super::{FileError, Place};

/// Shards taken at one time: more are no faster on one disk.
const THREADS_MAX: usize = 4;
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// A shard whose connection broke is begun again so often.
const ATTEMPTS_MAX: u32 = 3;
const ATTEMPT_PAUSE: Duration = Duration::from_secs(1);
const WATCH_INTERVAL: Duration = Duration::from_millis(10);

/// What to back up, and where to.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The leader's replication address, `HOST:PORT`.
    pub leader: &'a str,
    /// Where the backup is to lie; a directory is made if it is not there.
    pub to: &'a Place,
    /// An earlier backup: only what changed since is taken.
    pub since: Option<&'a Place>,
}

/// A backup that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// What it holds.
    pub manifest: Manifest,
    /// How long it took.
    pub elapsed: Duration,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |of: fn(&ShardEntry) -> u64| self.manifest.shards.iter().map(of).sum::<u64>();
        let (raw, packed) = (sum(|entry| entry.contents.raw_bytes), sum(|entry| entry.contents.file_bytes));
        let kind = if self.manifest.base.is_some() { "incremental" } else { "full" };
        write!(
            f,
            "{kind} backup {} of store {}: {} records in {} shards, {}, packed to {}, in {:.1} s",
            self.manifest.backup_id,
            self.manifest.store_id,
            units::count(sum(|entry| entry.contents.records)),
            self.manifest.geometry.shard_count,
            units::bytes(raw),
            units::bytes(packed),
            self.elapsed.as_secs_f64()
        )
    }
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The leader could not be asked who it is.
    #[error("{error}{}", named_leader(.error))]
    Probe {
        /// Why not.
        error: ProbeError,
    },
    /// A shard could not be taken.
    #[error("shard {shard}: {error}")]
    Shard {
        /// Which.
        shard: ShardIndex,
        /// Why not.
        error: PullError,
    },
    /// The base is no backup.
    #[error("--since: {0}")]
    Base(ManifestError),
    /// The base is of another store.
    #[error("--since: {path} is a backup of store {found}, the leader's is {wanted}")]
    OtherStore {
        /// The base.
        path: PathBuf,
        /// Its store.
        found: Uuid,
        /// The leader's.
        wanted: Uuid,
    },
    /// The base is of a newer epoch.
    #[error(
        "--since: {path} was taken in epoch {found}, this leader is in epoch {wanted}: another one has replaced it"
    )]
    OldLeader {
        /// The base.
        path: PathBuf,
        /// Its epoch.
        found: u64,
        /// The leader's.
        wanted: u64,
    },
    /// The backup cannot be written there.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A follower that was asked knows whom to ask.
fn named_leader(error: &ProbeError) -> String {
    match error {
        ProbeError::Refused { refuse, .. } => {
            refuse.leader.as_ref().map(|leader| format!("; its leader is at {leader}")).unwrap_or_default()
        }
        _ => String::new(),
    }
}

/// Takes a backup of a running leader's store, and shows how far it is.
pub fn take(request: Request<'_>) -> Result<Taken, BackupError> {
    let mut bar = Watch::new("backup", "slots");
    let taken = take_watched(request, &mut |counts| {
        bar.show(|| counts);
        ControlFlow::Continue(())
    });
    bar.end();
    taken
}

/// Takes a backup; `watch` hears how far it is, many times a second, and may give it up.
pub(crate) fn take_watched(
    request: Request<'_>,
    watch: &mut dyn FnMut(Counts) -> ControlFlow<()>,
) -> Result<Taken, BackupError> {
    let clock = SystemClock::new();
    let created_at_ms = clock.unix_ms();
    let base = request.since.map(read_base).transpose()?;
    let leader = probe(request.leader, PROBE_TIMEOUT).map_err(|error| BackupError::Probe { error })?;
    if let (Some(base), Some(place)) = (&base, request.since) {
        check_base(base, place, &leader)?;
    }
    let mut storage = request.to.storage()?;
    storage.claim()?;
    let backup_id = Uuid::new_v4();
    let whole = take_shards(request.leader, &leader, base.as_ref(), (&*storage, backup_id), watch).and_then(
        |shards| {
            let (base, store) = (base.map(|base| base.backup_id), (leader.store_id, leader.geometry));
            let manifest = Manifest::new(backup_id, base, created_at_ms, store, shards);
            storage.publish(&manifest.encode())?;
            Ok(manifest)
        },
    );
    if whole.is_err() {
        // Give the space back; the first error is the one to report.
        storage.clear();
    }
    Ok(Taken { manifest: whole?, elapsed: clock.monotonic() })
}

fn read_base(place: &Place) -> Result<Manifest, BackupError> {
    Manifest::load(&*place.storage()?).map_err(BackupError::Base)
}

fn check_base(base: &Manifest, place: &Place, leader: &LeaderInfo) -> Result<(), BackupError> {
    let path = place.path();
    if (base.store_id, base.geometry) != (leader.store_id, leader.geometry) {
        return Err(BackupError::OtherStore { path, found: base.store_id, wanted: leader.store_id });
    }
    // A leader that is told of a newer epoch takes no more writes. That is for followers to tell it.
    let found = base.shards.iter().map(|entry| entry.epoch).max().unwrap_or(0);
    if found > leader.epoch {
        return Err(BackupError::OldLeader { path, found, wanted: leader.epoch });
    }
    Ok(())
}

fn take_shards(
    address: &str,
    leader: &LeaderInfo,
    base: Option<&Manifest>,
    (storage, backup_id): (&dyn Storage, Uuid),
    watch: &mut dyn FnMut(Counts) -> ControlFlow<()>,
) -> Result<Vec<ShardEntry>, BackupError> {
    let shard_count = leader.geometry.shard_count;
    let (figures, next) = (Figures::default(), AtomicUsize::new(0));
    let (entries, failed) = (Mutex::new(Vec::new()), Mutex::new(None));
    let work = || {
        let index = || u16::try_from(next.fetch_add(1, Relaxed)).ok().filter(|index| *index < shard_count);
        while let Some(shard) = index().map(ShardIndex) {
            let held = base.and_then(|base| base.shards.get(usize::from(shard.0)));
            let (since, lineage) = held.map(|held| (Seq(held.seq), held.lineage.clone())).unwrap_or_default();
            let wanted = Wanted { backup_id, shard, since, lineage };
            match take_shard(address, leader, &wanted, storage, &figures) {
                Ok(entry) => entries.lock().push(entry),
                Err(error) => {
                    // The first one is why the others stop.
                    failed.lock().get_or_insert(BackupError::Shard { shard, error });
                    figures.is_stopped.store(true, Relaxed);
                    return;
                }
            }
        }
    };
    let counts = || Counts {
        done: figures.slots.load(Relaxed),
        total: figures.slots_total.load(Relaxed),
        records: figures.records.load(Relaxed),
        bytes: figures.bytes.load(Relaxed),
    };
    thread::scope(|scope| {
        let threads = THREADS_MAX.min(usize::from(shard_count));
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            thread::sleep(WATCH_INTERVAL);
            if watch(counts()).is_break() {
                figures.is_stopped.store(true, Relaxed);
            }
        }
    });
    if let Some(error) = failed.into_inner() {
        return Err(error);
    }
    let mut entries = entries.into_inner();
    entries.sort_by_key(|entry| entry.shard);
    Ok(entries)
}

fn take_shard(
    address: &str,
    leader: &LeaderInfo,
    wanted: &Wanted,
    storage: &dyn Storage,
    figures: &Figures,
) -> Result<ShardEntry, PullError> {
    let name = shard_file(wanted.shard);
    let mut attempt = 1;
    loop {
        let mut target = BlockWriter::new(storage.path().join(&name), storage.create(&name)?)?;
        match pull(address, leader, wanted, &mut target, figures) {
            Ok(pulled) => {
                let contents = target.finish()?;
                return Ok(ShardEntry {
                    shard: wanted.shard.0,
                    since: wanted.since.0,
                    seq: pulled.seq.0,
                    epoch: pulled.epoch,
                    lineage: pulled.lineage,
                    contents,
                });
            }
            Err(_) if figures.is_stopped.load(Relaxed) => return Err(PullError::Stopped),
            Err(error) if error.is_temporary() && attempt < ATTEMPTS_MAX => attempt += 1,
            Err(error) => return Err(error),
        }
        thread::sleep(ATTEMPT_PAUSE);
    }
}
