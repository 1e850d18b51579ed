//! Where a store is opened, as far as it says whether the kernel still has in memory what the last opener wrote:
//! this start of the machine, this mounting of the file system, this directory.
//!
//! A device's number is not enough: a file system that was shut down, or lost its device, and was mounted again has
//! lost writes under the same number. Nor is the mount's id: a service manager or a container gives a process mounts
//! of its own at every start, over the same pages in memory. The directory under `/sys/fs` that a file system has
//! while it is mounted, wherever and how often, is made anew with each first mounting, and its inode number is used
//! once. File systems without one are known by their mount: another mount is then taken for a power cut.
//!
//! The directory counts, too: a copy of one that was in use holds slots and digest of different moments.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, major, minor, statx};
use xxhash_rust::xxh3::xxh3_64;

use crate::chance::{Chance, SystemChance};
use crate::shard::recover::Host;

/// Those that have a directory for each block device that they are mounted from.
const FILE_SYSTEMS: [&str; 3] = ["ext4", "xfs", "f2fs"];
/// `STATX_MNT_ID_UNIQUE`: an id that is used once; from Linux 6.8 on.
const MOUNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// What makes a mounting of a file system this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mounting {
    FileSystem(u64),
    Mount(u64),
    /// Like no other: nothing that was written before is known to be in memory.
    Unknown(u64),
}

impl Mounting {
    fn of(directory: &Path, device: u64, sysfs: &Path) -> Self {
        if let Some(inode) = file_system(device, sysfs) {
            return Self::FileSystem(inode);
        }
        match statx(CWD, directory, AtFlags::empty(), MOUNT_ID_UNIQUE) {
            Ok(found) if found.stx_mask & MOUNT_ID_UNIQUE.bits() != 0 => Self::Mount(found.stx_mnt_id),
            _ => Self::Unknown(SystemChance.next()),
        }
    }

    fn words(self) -> [u64; 2] {
        match self {
            Self::FileSystem(inode) => [1, inode],
            Self::Mount(id) => [2, id],
            Self::Unknown(id) => [3, id],
        }
    }
}

/// The inode number of the directory that a file system on this device has under `/sys/fs`.
fn file_system(device: u64, sysfs: &Path) -> Option<u64> {
    let link = fs::read_link(sysfs.join(format!("dev/block/{}:{}", major(device), minor(device)))).ok()?;
    let name = link.file_name()?;
    let found = |kind| fs::metadata(sysfs.join("fs").join(kind).join(name)).ok();
    FILE_SYSTEMS.into_iter().find_map(found).map(|found| found.ino())
}

/// This machine's start, and the file system and folder that shards lie in.
pub(crate) fn host(folder: &Path) -> io::Result<Host> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let boot_id = uuid::Uuid::parse_str(text.trim()).map_err(io::Error::other)?.into_bytes();
    let found = fs::metadata(folder)?;
    let [kind, id] = Mounting::of(folder, found.dev(), Path::new("/sys")).words();
    let words = [found.dev(), kind, id, found.ino()].map(u64::to_le_bytes);
    Ok(Host { boot_id, place_id: xxh3_64(words.as_flattened()) })
}

#[cfg(test)]
#[cfg_attr(miri, ignore = "asks the system")]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_itself_whatever_it_is_called_and_its_copy_is_another() {
        let root = tempfile::tempdir().unwrap();
        let [a, b, link] = ["a", "b", "link"].map(|name| root.path().join(name));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        let first = host(&a).unwrap();
        assert_eq!(host(&a).unwrap(), first);
        assert_ne!(host(&b).unwrap(), first, "a copy beside it");
        std::os::unix::fs::symlink(&a, &link).unwrap();
        assert_eq!(host(&link).unwrap(), first);
        fs::remove_dir(&b).unwrap();
        fs::rename(&a, &b).unwrap();
        assert_eq!(host(&b).unwrap(), first, "moved");
    }

    #[test]
    fn a_file_system_is_known_by_its_directory_and_another_one_by_its_mount() {
        let root = tempfile::tempdir().unwrap();
        let (sysfs, device) = (root.path(), rustix::fs::makedev(8, 1));
        fs::create_dir_all(sysfs.join("dev/block")).unwrap();
        std::os::unix::fs::symlink("../../devices/x/sda/sda1", sysfs.join("dev/block/8:1")).unwrap();
        let by_mount = Mounting::of(sysfs, device, sysfs);
        assert!(!matches!(by_mount, Mounting::FileSystem(_)), "{by_mount:?}");
        if matches!(by_mount, Mounting::Mount(_)) {
            assert_eq!(Mounting::of(sysfs, device, sysfs), by_mount);
        }
        let mounted = sysfs.join("fs/xfs/sda1");
        fs::create_dir_all(&mounted).unwrap();
        let first = Mounting::of(sysfs, device, sysfs);
        assert!(matches!(first, Mounting::FileSystem(_)), "{first:?}");
        assert_eq!(Mounting::of(sysfs, device, sysfs), first);
        // Two at a time, so that the number is not used again.
        fs::create_dir(sysfs.join("next")).unwrap();
        fs::remove_dir(&mounted).unwrap();
        fs::rename(sysfs.join("next"), &mounted).unwrap();
        assert_ne!(Mounting::of(sysfs, device, sysfs), first, "mounted again");
        assert_ne!(first.words(), by_mount.words());
    }
}
