//! What a backup wants of the place where it lies: parts that are written one after the other and read again, and a
//! manifest that appears whole or not at all.
//!
//! Always true: [`Storage::claim`] comes before anything is written, [`Storage::publish`] comes last, and a place with
//! a manifest is never written to. Names are those of a backup's files, without a slash.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::FileError;

/// The manifest's name in a backup.
pub const MANIFEST_FILE: &str = "manifest.json";

/// A place for one backup.
pub(super) trait Storage: Send + Sync {
    /// What people call it.
    fn path(&self) -> &Path;

    /// Takes the place for a new backup, over what an unfinished one left there.
    fn claim(&mut self) -> Result<(), ClaimError>;

    /// Begins a part, also one that was begun before and given up.
    fn create(&self, name: &str) -> Result<Box<dyn Part>, FileError>;

    /// Makes the backup whole: all its parts were finished.
    fn publish(&self, manifest: &[u8]) -> Result<(), ClaimError>;

    /// Gives the space of an unfinished backup back, as far as that can be done.
    fn clear(&self);

    /// Opens a part; `None` where the place is there and has no such part.
    fn open(&self, name: &str) -> Result<Option<Source>, FileError>;
}

/// A part of a backup while it is written. What is dropped before it was finished is no part.
pub(super) trait Part: Write + Send {
    /// Waits, not longer than `timeout`, until some megabytes can be written without a wait; false if they cannot yet.
    fn wait_for_room(&mut self, timeout: Duration) -> io::Result<bool>;

    /// Makes it durable.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// A part of a backup to be read.
pub(super) struct Source {
    /// What people call it.
    pub(super) path: PathBuf,
    /// Its size in bytes.
    pub(super) size: u64,
    /// These bytes.
    pub(super) bytes: Box<dyn Read + Send>,
}

/// Why a backup cannot be written to a place.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Somebody else's files are there.
    #[error("{path}: holds {found:?}; a backup wants a directory of its own")]
    NotEmpty {
        /// The place.
        path: PathBuf,
        /// One of them.
        found: String,
    },
    /// A backup is there already.
    #[error("{path}: holds a backup already")]
    Whole {
        /// The place.
        path: PathBuf,
    },
    /// Another backup is being written there.
    #[error("{path}: another process writes a backup there")]
    InUse {
        /// The place.
        path: PathBuf,
    },
    /// Another process has written there while this backup was made.
    #[error(
        "{path}: another process has written a backup there at the same time; their parts have replaced each other, so \
         that neither may be whole: take one of them again, to a place of its own"
    )]
    Mixed {
        /// The place.
        path: PathBuf,
    },
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}
