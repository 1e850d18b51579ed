//! A data directory from a backup and the incremental ones after it: byte for byte what the leader held.
//!
//! The store is built in `restoring/` inside the target and moved out of it at the end, so that a directory
//! holds all of it or none. It is a follower's: it knows its watermark and its history, so that a leader sends
//! it what changed since, and nothing else; or it is promoted.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use uuid::Uuid;

use crate::slot::lineage::fork;
use crate::slot::{Seq, ShardIndex};
use crate::store::{ApplyError, OpenError, Options, Progress, Step, Store, directory};
use crate::units;
use crate::watch::{Counts, Watch};

use super::blocks::{BlockError, BlockReader};
use super::manifest::{Manifest, ManifestError, ShardEntry, shard_file};
use super::storage::Storage;
use super::{FileError, Place, PlaceError, file_error, make_directory};

/// Where the store is built, inside the target.
const UNFINISHED: &str = "restoring";

/// A data directory that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The last backup's manifest: what the directory holds is its state.
    pub manifest: Manifest,
    /// Live records.
    pub records: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (records, seconds) = (units::count(self.records), self.elapsed.as_secs_f64());
        let (shards, store_id) = (self.manifest.geometry.shard_count, self.manifest.store_id);
        writeln!(f, "restored {records} records in {shards} shards of store {store_id} in {seconds:.1} s")?;
        write!(
            f,
            "start it with `slotstream follower`, or with `slotstream leader --promote` if no other leader is left"
        )
    }
}

/// Why there is no data directory.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A backup is none.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The first one holds only changes.
    #[error(
        "{path}: an incremental backup; name the full one first, then the others in the order they were taken"
    )]
    NotFull {
        /// The backup.
        path: PathBuf,
    },
    /// One is missing, or in the wrong place.
    #[error("{path}: goes on from backup {}, found {found} before it: a backup is missing, or the order is wrong", wanted.map_or("none (it is a full one)".to_owned(), |id| id.to_string()))]
    Order {
        /// The backup.
        path: PathBuf,
        /// The one named before it.
        found: Uuid,
        /// Its base.
        wanted: Option<Uuid>,
    },
    /// Two that do not belong together, though one names the other as its base.
    #[error("{path}: shard {shard} does not go on from the backup before it")]
    History {
        /// The backup.
        path: PathBuf,
        /// Which shard.
        shard: ShardIndex,
    },
    /// A shard's file is not what it should be.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The records are not the backup's state.
    #[error("{path}: shard {shard} goes on to seq {found}, wanted {wanted} at most")]
    Seq {
        /// The last backup.
        path: PathBuf,
        /// Which shard.
        shard: ShardIndex,
        /// The newest record's seq.
        found: Seq,
        /// What the manifest says.
        wanted: Seq,
    },
    /// The target is no directory of this machine.
    #[error("--to: {0}")]
    Target(PlaceError),
    /// The target holds something.
    #[error("{path}: holds {found:?}; a restore wants an empty directory, or none")]
    NotEmpty {
        /// The target.
        path: PathBuf,
        /// What.
        found: String,
    },
    /// Another process is at work there.
    #[error("{path}: in use by process {owner}")]
    InUse {
        /// The target.
        path: PathBuf,
        /// Its process id.
        owner: String,
    },
    /// The store cannot be made.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Records cannot be written.
    #[error("{path}: {error}")]
    Apply {
        /// The file that they come from.
        path: PathBuf,
        /// Why not.
        error: ApplyError,
    },
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

/// One backup of the chain.
struct Link {
    path: PathBuf,
    storage: Box<dyn Storage>,
    manifest: Manifest,
}

/// Makes `to` a data directory with what the last of `backups` holds: a full one, then incremental ones.
pub fn restore(backups: &[Place], to: &Path) -> Result<Restored, RestoreError> {
    let start = Instant::now();
    Place::check_local(to).map_err(RestoreError::Target)?;
    let chain = read_chain(backups)?;
    make_directory(to)?;
    check_empty(to)?;
    let lock = directory::lock(to).map_err(file_error(to, "lock it"))?;
    let _lock: File = lock.map_err(|owner| RestoreError::InUse { path: to.to_owned(), owner })?;
    let unfinished = to.join(UNFINISHED);
    remove(&unfinished)?;
    let restored = restore_store(&chain, &unfinished).and_then(|records| {
        publish(&unfinished, to)?;
        Ok(records)
    });
    if restored.is_err() {
        // Give the space back; the first error is the one to report.
        drop(remove(&unfinished));
    }
    let records = restored?;
    let manifest = chain.into_iter().next_back().map(|link| link.manifest);
    let manifest = manifest.unwrap_or_else(|| unreachable!("a chain holds a backup"));
    Ok(Restored { manifest, records, elapsed: start.elapsed() })
}

fn read_chain(backups: &[Place]) -> Result<Vec<Link>, RestoreError> {
    let mut chain: Vec<Link> = Vec::new();
    for place in backups {
        let storage = place.storage()?;
        let link = Link { path: place.path(), manifest: Manifest::load(&*storage)?, storage };
        match chain.last() {
            None if link.manifest.base.is_some() => {
                return Err(RestoreError::NotFull { path: link.path });
            }
            None => {}
            Some(before) => check_follows(before, &link)?,
        }
        chain.push(link);
    }
    assert!(!chain.is_empty(), "at least one backup is named");
    Ok(chain)
}

fn check_follows(before: &Link, link: &Link) -> Result<(), RestoreError> {
    let (path, found, wanted) = (link.path.clone(), before.manifest.backup_id, link.manifest.base);
    if wanted != Some(found) {
        return Err(RestoreError::Order { path, found, wanted });
    }
    let is_same = (before.manifest.store_id, before.manifest.geometry)
        == (link.manifest.store_id, link.manifest.geometry);
    let goes_on = |(before, after): &(&ShardEntry, &ShardEntry)| {
        let (head, before_head) = (Seq(after.seq), Seq(before.seq));
        let shared = fork(&after.lineage, head, &before.lineage, before_head);
        after.since == before.seq && shared == Some(before_head)
    };
    let mut pairs = before.manifest.shards.iter().zip(&link.manifest.shards);
    match pairs.find(|pair| !is_same || !goes_on(pair)) {
        Some((entry, _)) => Err(RestoreError::History { path, shard: ShardIndex(entry.shard) }),
        None => Ok(()),
    }
}

fn check_empty(to: &Path) -> Result<(), RestoreError> {
    for entry in fs::read_dir(to).map_err(file_error(to, "list it"))? {
        let name = entry.map_err(file_error(to, "list it"))?.file_name().to_string_lossy().into_owned();
        // What an unfinished restore left, and a file system's own directory.
        if !["LOCK", UNFINISHED, "lost+found"].contains(&name.as_str()) {
            return Err(RestoreError::NotEmpty { path: to.to_owned(), found: name });
        }
    }
    Ok(())
}

fn remove(unfinished: &Path) -> Result<(), FileError> {
    if unfinished.exists() {
        fs::remove_dir_all(unfinished).map_err(file_error(unfinished, "remove an unfinished restore"))?;
    }
    Ok(())
}

/// Builds the store; says how many records it holds.
fn restore_store(chain: &[Link], unfinished: &Path) -> Result<u64, RestoreError> {
    let last = &chain[chain.len() - 1];
    let (geometry, store_id) = (last.manifest.geometry, last.manifest.store_id);
    let options = Options { store_id: Some(store_id), ..Options::create(geometry) };
    let store = Store::open(unfinished, options)?;
    store
        .demote()
        .map_err(io::Error::other)
        .map_err(file_error(unfinished, "make the store a follower's"))?;
    let (next, failed, done) =
        (AtomicUsize::new(0), Mutex::new(None), [AtomicU64::new(0), AtomicU64::new(0)]);
    let is_stopped = AtomicBool::new(false);
    let work = || {
        let index =
            || u16::try_from(next.fetch_add(1, Relaxed)).ok().filter(|index| *index < geometry.shard_count);
        while let Some(shard) = index().map(ShardIndex).filter(|_| !is_stopped.load(Relaxed)) {
            if let Err(error) = restore_shard(chain, &store, shard, &done) {
                failed.lock().get_or_insert(error);
                is_stopped.store(true, Relaxed);
            }
        }
    };
    let contents = || chain.iter().flat_map(|link| &link.manifest.shards).map(|entry| entry.contents);
    let total = contents().map(|contents| contents.raw_bytes).sum();
    let counts = || Counts {
        done: done[1].load(Relaxed),
        total,
        records: done[0].load(Relaxed),
        bytes: done[1].load(Relaxed),
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.min(usize::from(geometry.shard_count));
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        Watch::new("restore", "bytes").while_running(&workers, counts);
    });
    if let Some(error) = failed.into_inner() {
        return Err(error);
    }
    let records = store.shards().map(|shard| store.extent(shard).1).sum();
    store.close().map_err(file_error(unfinished, "sync the store"))?;
    Ok(records)
}

fn restore_shard(
    chain: &[Link],
    store: &Store,
    shard: ShardIndex,
    done: &[AtomicU64; 2],
) -> Result<(), RestoreError> {
    let index = usize::from(shard.0);
    let last = &chain[chain.len() - 1];
    let path = |link: &Link| link.path.join(shard_file(shard));
    let apply_error = |link: &Link| {
        let path = path(link);
        move |error| RestoreError::Apply { path, error }
    };
    let first = &chain[0].manifest.shards[index].contents;
    store.reserve(shard, first.records).map_err(apply_error(&chain[0]))?;
    for link in chain {
        let source = link.storage.open(&shard_file(shard))?;
        let source = source.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
        let source = source.map_err(file_error(&path(link), "open it"))?;
        let mut reader = BlockReader::new(source, link.manifest.shards[index].contents)?;
        while let Some(records) = reader.next()? {
            let applied = store.apply(shard, records).map_err(apply_error(link))?;
            done[0].fetch_add(applied.applied + applied.skipped, Relaxed);
            done[1].fetch_add(records.len() as u64, Relaxed);
        }
    }
    let entry = &last.manifest.shards[index];
    let (found, wanted) = (store.head(shard), Seq(entry.seq));
    // Lower is no fault: the leader's last seq need not be that of a slot.
    if found > wanted {
        return Err(RestoreError::Seq { path: last.path.clone(), shard, found, wanted });
    }
    store.set_lineage(shard, &entry.lineage);
    let progress = Progress { epoch: entry.epoch, seq: wanted, consistent_at: wanted, step: Step::None };
    store.set_progress(shard, progress);
    Ok(())
}

/// Moves the whole store to where it belongs, its shards last: with them it is one.
fn publish(unfinished: &Path, to: &Path) -> Result<(), FileError> {
    let list = |error| file_error(unfinished, "list it")(error);
    let shards = directory::shards_path(unfinished);
    let mut paths = Vec::new();
    for entry in fs::read_dir(unfinished).map_err(list)? {
        let path = entry.map_err(list)?.path();
        if path != shards && path.file_name().is_some_and(|name| name != "LOCK") {
            paths.push(path);
        }
    }
    paths.push(shards);
    for path in paths {
        let name = path.file_name().unwrap_or_default();
        fs::rename(&path, to.join(name)).map_err(file_error(&path, "move it into place"))?;
    }
    directory::sync(to).map_err(file_error(to, "sync it"))?;
    // A leftover that the next restore, or nobody, would remove.
    drop(fs::remove_dir_all(unfinished));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN_SHARD: &str = include_str!("../../tests/data/backup_v1.hex");
    const GOLDEN_MANIFEST: &str = include_str!("../../tests/data/backup_v1.json");

    #[test]
    fn a_backup_of_the_first_format_is_restored() {
        let directory = tempfile::tempdir().expect("temp dir");
        let (backup, to) = (directory.path().join("backup"), directory.path().join("to"));
        fs::create_dir(&backup).expect("makes the directory");
        let words = GOLDEN_SHARD.lines().flat_map(|line| line.split(' ').skip(1));
        let bytes: Vec<u8> = words.map(|word| u8::from_str_radix(word, 16).expect("hex")).collect();
        fs::write(backup.join("0000.backup"), bytes).expect("writes");
        fs::write(backup.join("manifest.json"), GOLDEN_MANIFEST).expect("writes");
        let restored = restore(&[Place::Directory(backup)], &to).expect("restores");
        assert_eq!(restored.records, 2);
        let store = Store::open(&to, Options::default()).expect("opens");
        assert_eq!(store.store_id(), restored.manifest.store_id);
        let shard = ShardIndex(0);
        assert_eq!((store.head(shard), store.progress(shard).seq), (Seq(4), Seq(4)));
        assert_eq!(store.lineage(shard), restored.manifest.shards[0].lineage);
        assert_eq!(store.get(b"kept").expect("reads"), Some(b"one".to_vec()));
        assert_eq!(store.get(b"gone").expect("reads"), None);
        let found = store.read(b"expires", |entry| (entry.value.to_vec(), entry.expire_at)).expect("reads");
        assert_eq!(found, Some((b"two".to_vec(), 4_102_444_800_000)));
    }
}
