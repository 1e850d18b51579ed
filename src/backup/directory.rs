//! A backup in a directory of this machine.
//!
//! Always true: a directory that holds a manifest is left alone; what an unfinished backup left is removed; two
//! processes never write to one.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::store::directory::{self, file_error};

use super::storage::{ClaimError, MANIFEST_FILE, Part, Source, Storage};
use super::{FileError, make_directory};

/// The manifest's name until it is whole.
const MANIFEST_FILE_NEW: &str = "manifest.json.new";
const READ_BUFFER_SIZE: usize = 1 << 16;

/// A directory for one backup.
pub(super) struct Directory {
    path: PathBuf,
    /// Holds the directory for as long as it is open; leaves no file in it.
    lock: Option<File>,
}

impl Directory {
    pub(super) fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), lock: None }
    }

    /// What an unfinished backup left, if nothing else is there.
    fn leftovers(&self) -> Result<Vec<PathBuf>, ClaimError> {
        let list = |error| file_error(&self.path, "list it")(error);
        let mut ours = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(list)? {
            let entry = entry.map_err(list)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match name.as_str() {
                MANIFEST_FILE => return Err(ClaimError::Whole { path: self.path.clone() }),
                // A file system's own directory is nobody's file.
                "lost+found" => {}
                _ if is_shard_file(&name) || name == MANIFEST_FILE_NEW => ours.push(entry.path()),
                _ => return Err(ClaimError::NotEmpty { path: self.path.clone(), found: name }),
            }
        }
        Ok(ours)
    }
}

impl Storage for Directory {
    fn path(&self) -> &Path {
        &self.path
    }

    fn claim(&mut self) -> Result<(), ClaimError> {
        make_directory(&self.path)?;
        let lock = File::open(&self.path).map_err(file_error(&self.path, "open it"))?;
        match lock.try_lock() {
            Ok(()) => self.lock = Some(lock),
            Err(TryLockError::WouldBlock) => return Err(ClaimError::InUse { path: self.path.clone() }),
            Err(TryLockError::Error(error)) => return Err(file_error(&self.path, "lock it")(error).into()),
        }
        for path in self.leftovers()? {
            fs::remove_file(&path).map_err(file_error(&path, "remove what an unfinished backup left"))?;
        }
        Ok(())
    }

    fn create(&self, name: &str) -> Result<Box<dyn Part>, FileError> {
        let path = self.path.join(name);
        let file = File::create(&path).map_err(file_error(&path, "create it"))?;
        Ok(Box::new(PartFile(file)))
    }

    fn publish(&self, manifest: &[u8]) -> Result<(), ClaimError> {
        let (new, path) = (self.path.join(MANIFEST_FILE_NEW), self.path.join(MANIFEST_FILE));
        let mut file = File::create(&new).map_err(file_error(&new, "create it"))?;
        file.write_all(manifest).map_err(file_error(&new, "write to it"))?;
        file.sync_all().map_err(file_error(&new, "sync it"))?;
        // The files' names first: a manifest on the disk says that they are there.
        directory::sync(&self.path).map_err(file_error(&self.path, "sync it"))?;
        fs::rename(&new, &path).map_err(file_error(&path, "move it into place"))?;
        Ok(directory::sync(&self.path).map_err(file_error(&self.path, "sync it"))?)
    }

    fn clear(&self) {
        let files = self.leftovers().unwrap_or_default();
        files.iter().for_each(|path| drop(fs::remove_file(path)));
    }

    fn open(&self, name: &str) -> Result<Option<Source>, FileError> {
        let path = self.path.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.path.is_dir() => return Ok(None),
            Err(error) => return Err(file_error(&path, "open it")(error)),
        };
        let size = file.metadata().map_err(file_error(&path, "look at it"))?.len();
        Ok(Some(Source { path, size, bytes: Box::new(BufReader::with_capacity(READ_BUFFER_SIZE, file)) }))
    }
}

struct PartFile(File);

impl Write for PartFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Part for PartFile {
    fn wait_for_room(&mut self, _: Duration) -> io::Result<bool> {
        Ok(true)
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.0.sync_all()
    }
}

/// Whether a backup gives a shard's part this name.
fn is_shard_file(name: &str) -> bool {
    let digits = name.strip_suffix(".backup").unwrap_or("");
    digits.len() >= 4 && digits.bytes().all(|byte| byte.is_ascii_digit())
}
