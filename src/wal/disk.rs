//! What the log asks of a disk: files of a fixed size, written in place, made durable one by one.
//!
//! [`FileDisk`] is a directory; [`super::simulated::SimulatedDisk`] loses what a power cut may lose. Files have numbers for
//! names, which say nothing of what is in them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::region::create_file;

/// The file that holds the checkpoint; all others are segments.
pub const CHECKPOINT_FILE: u32 = 0;

/// Files of a fixed size. What was written is durable once the file's `sync` has returned `Ok`, and not before.
pub trait Disk: Send + Sync {
    /// All files and their sizes.
    fn files(&self) -> io::Result<Vec<(u32, u64)>>;
    /// Makes a file of zeros. It is durable when this returns, its place in the directory too, and there is room for
    /// all that will be written to it.
    fn create(&self, file: u32, size: u64) -> io::Result<()>;
    /// Removes a file; it may come back after a power cut.
    fn remove(&self, file: u32) -> io::Result<()>;
    /// Fills `target` from a place in a file.
    fn read(&self, file: u32, offset: u64, target: &mut [u8]) -> io::Result<()>;
    /// Writes to a place in a file, within its size.
    fn write(&self, file: u32, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes what was written to a file durable. After an error nothing is known of it, and asking again would lie.
    fn sync(&self, file: u32) -> io::Result<()>;
}

/// Whether the system has no room, or allows no more of it: both pass.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What a file's blocks are when it is made. Each is allocated, and reads as zeros; but on most file systems one that
/// was never written is marked so, and the sync behind its first write has to change that mark, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstUse {
    /// They are written with zeros, so that all syncs are alike: for those whom somebody waits for.
    Zeroed,
    /// They are left as they are, as writing everything twice is most of what a log costs until its files are used
    /// again: for syncs that are few, and nobody waits for.
    Allocated,
}

/// A directory that holds `checkpoint` and `NNNN.wal`.
#[derive(Debug)]
pub struct FileDisk {
    directory: PathBuf,
    first_use: FirstUse,
    /// Open from creation to exit: the kernel reports a failed write-back to who had the file open then.
    open: Mutex<HashMap<u32, Arc<File>>>,
}

impl FileDisk {
    /// The log in `directory`, which is made if it is not there; on a full disk, with the first file.
    pub fn new(directory: &Path, first_use: FirstUse) -> io::Result<Self> {
        let disk = Self { directory: directory.into(), first_use, open: Mutex::default() };
        match disk.make_directory() {
            Err(error) if !is_full(&error) => Err(error),
            _ => Ok(disk),
        }
    }

    fn make_directory(&self) -> io::Result<()> {
        match fs::create_dir(&self.directory) {
            Ok(()) => File::open(self.directory.parent().unwrap_or(Path::new(".")))?.sync_all(),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn path(&self, file: u32) -> PathBuf {
        match file {
            CHECKPOINT_FILE => self.directory.join("checkpoint"),
            _ => self.directory.join(format!("{file:04}.wal")),
        }
    }

    fn file(&self, file: u32) -> io::Result<Arc<File>> {
        let mut open = self.open.lock();
        if let Some(file) = open.get(&file) {
            return Ok(Arc::clone(file));
        }
        let opened = Arc::new(File::options().read(true).write(true).open(self.path(file))?);
        open.insert(file, Arc::clone(&opened));
        Ok(opened)
    }

    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    fn make(&self, file: u32, size: u64) -> io::Result<()> {
        let len = usize::try_from(size).map_err(io::Error::other)?;
        let opened = create_file(&self.path(file), len)?;
        if self.first_use == FirstUse::Zeroed {
            const STEP: usize = 256 << 10;
            let zeros = vec![0; STEP.min(len)];
            for offset in (0..len).step_by(STEP) {
                opened.write_all_at(&zeros[..STEP.min(len - offset)], offset as u64)?;
            }
        }
        opened.sync_all()?;
        self.open.lock().insert(file, Arc::new(opened));
        self.sync_directory()
    }
}

impl Disk for FileDisk {
    fn files(&self) -> io::Result<Vec<(u32, u64)>> {
        let mut files = Vec::new();
        if !self.directory.exists() {
            return Ok(files);
        }
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let number = match name.strip_suffix(".wal") {
                Some(number) => number.parse().ok().filter(|number| *number != CHECKPOINT_FILE),
                None => (name == "checkpoint").then_some(CHECKPOINT_FILE),
            };
            if let Some(number) = number {
                files.push((number, entry.metadata()?.len()));
            }
        }
        files.sort_unstable();
        Ok(files)
    }

    fn create(&self, file: u32, size: u64) -> io::Result<()> {
        self.make_directory()?;
        let made = self.make(file, size);
        if made.is_err() {
            // Give the space back; the first error is the one to report.
            drop(fs::remove_file(self.path(file)));
        }
        made
    }

    fn remove(&self, file: u32) -> io::Result<()> {
        self.open.lock().remove(&file);
        fs::remove_file(self.path(file))
    }

    fn read(&self, file: u32, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.file(file)?.read_exact_at(target, offset)
    }

    fn write(&self, file: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(file)?.write_all_at(bytes, offset)
    }

    fn sync(&self, file: u32) -> io::Result<()> {
        self.file(file)?.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_up_quota_is_a_full_disk_and_a_bad_disk_is_none() {
        let is_full = |code| is_full(&io::Error::from_raw_os_error(code));
        let codes = [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT, rustix::io::Errno::IO];
        assert_eq!(codes.map(|code| is_full(code.raw_os_error())), [true, true, false]);
    }

    #[test]
    fn a_directory_keeps_what_was_written_under_its_number() {
        for first_use in [FirstUse::Zeroed, FirstUse::Allocated] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("wal");
            let disk = FileDisk::new(&path, first_use).unwrap();
            disk.create(CHECKPOINT_FILE, 100).unwrap();
            disk.create(7, 300_000).unwrap();
            disk.write(7, 299_990, b"the end").unwrap();
            disk.sync(7).unwrap();
            fs::write(path.join("notes.txt"), "none of ours").unwrap();
            let disk = FileDisk::new(&path, first_use).unwrap();
            assert_eq!(disk.files().unwrap(), [(CHECKPOINT_FILE, 100), (7, 300_000)]);
            let mut found = [1; 300_000];
            disk.read(7, 0, &mut found).unwrap();
            assert!(found[..299_990].iter().all(|byte| *byte == 0), "{first_use:?}");
            assert_eq!(&found[299_990..299_997], b"the end");
            assert!(disk.read(7, 299_999, &mut [0; 7]).is_err(), "behind the end");
            disk.remove(7).unwrap();
            assert_eq!(disk.files().unwrap().len(), 1);
        }
    }
}
