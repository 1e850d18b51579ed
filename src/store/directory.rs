//! A store's directory: `LOCK`, for each shard `shards/NNNN.slots` and `NNNN.digest`, which is made of it, and
//! perhaps the log in `wal`.
//!
//! A new store is built in `shards.new` and renamed into place, so that a directory holds a whole
//! store or none. Every file is allocated before it is used.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::shard::header::{HEADER_PAGE_SIZE, HeaderError, Identity, Progress, State};
use crate::slot::ShardIndex;

/// A file or directory that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: cannot {action}: {error}")]
pub struct FileError {
    /// Which one.
    pub path: PathBuf,
    /// What was tried.
    pub action: &'static str,
    /// What the system said.
    pub error: io::Error,
}

/// Says of what the system said which file it was, and what was tried with it.
pub fn file_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |error| FileError { path, action, error }
}

/// Where a store's shard files lie.
#[must_use]
pub fn shards_path(directory: &Path) -> PathBuf {
    directory.join("shards")
}

/// Where a store's shard files lie while they are made.
#[must_use]
pub fn new_shards_path(directory: &Path) -> PathBuf {
    directory.join("shards.new")
}

/// Where a store's log lies.
#[must_use]
pub fn log_path(directory: &Path) -> PathBuf {
    directory.join("wal")
}

/// The name of a shard's file.
#[must_use]
pub fn shard_file(shard: ShardIndex) -> String {
    format!("{:04}.slots", shard.0)
}

/// The name of the file that holds a shard's digest.
#[must_use]
pub fn digest_file(shard: ShardIndex) -> String {
    format!("{:04}.digest", shard.0)
}

/// Takes the directory's lock, or says which process has it.
pub fn lock(directory: &Path) -> io::Result<Result<File, String>> {
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(directory.join("LOCK"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            file.read_to_string(&mut owner)?;
            return Ok(Err(owner.trim().to_owned()));
        }
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Which process has it is for people; a full disk must not keep the store closed.
    let named =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    match named {
        Err(error) if !crate::wal::disk::is_full(&error) => Err(error),
        _ => Ok(Ok(file)),
    }
}

/// Makes a directory's entries durable.
pub fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// What a shard file's header says, read without the directory's lock.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// What the file is.
    pub identity: Identity,
    /// What changes seldom.
    pub state: State,
    /// How far a follower has come; all zero on a leader.
    pub progress: Progress,
    /// Size of the file in bytes.
    pub file_size: u64,
}

/// Reads a shard file's header. A node may be running on it.
pub fn inspect(path: &Path) -> io::Result<Result<Inspection, HeaderError>> {
    let mut file = File::open(path)?;
    let file_size = file.metadata()?.len();
    let mut page = Vec::with_capacity(HEADER_PAGE_SIZE);
    (&mut file).take(HEADER_PAGE_SIZE as u64).read_to_end(&mut page)?;
    let read = || {
        let identity = Identity::read(path, &page)?;
        let state = State::read(path, &page)?;
        Ok(Inspection { identity, state, progress: Progress::read(path, &page)?, file_size })
    };
    Ok(read())
}
