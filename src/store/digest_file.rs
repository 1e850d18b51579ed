//! The file that a shard's digest lies in.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::region::{Region, allocate};
use crate::shard::digest::digest_size;

/// Maps the digest of a shard with so many slots, or makes one. Where none can be made, memory serves: the
/// store is as good, but opens slowly the next time.
pub(super) fn open(path: &Path, slots: u32, slots_max: u32) -> io::Result<Region> {
    let reserved = digest_size(slots_max);
    let map = || {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let len = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let len = len.max(digest_size(slots)).min(reserved);
        // A hole on a full disk is a SIGBUS when it is written.
        allocate(&file, 0, len)?;
        Region::map(file, len, reserved)
    };
    map().or_else(|error| {
        let path = path.display();
        tracing::warn!(%path, %error, "no file for the shard's digest: the next opening will read every slot");
        Region::anonymous(digest_size(slots), reserved)
    })
}

/// A copy of what lies in the file, or room for it: nothing that is written reaches the file.
pub(super) fn copy(path: &Path, slots: u32, slots_max: u32) -> io::Result<Region> {
    let needed = digest_size(slots);
    if let Ok(file) = File::open(path)
        && let Ok(len) = usize::try_from(file.metadata()?.len())
        && len >= needed
    {
        return Region::map_private(&file, len);
    }
    Region::anonymous(needed, digest_size(slots_max).max(needed))
}

#[cfg(test)]
mod tests {
    use super::super::{Options, Store, directory};
    use crate::shard::Doubt;
    use crate::slot::{Geometry, ShardIndex};

    #[test]
    #[cfg_attr(miri, ignore = "maps files")]
    fn a_store_serves_without_a_file_for_its_digest() {
        let root = tempfile::tempdir().unwrap();
        let geometry = Geometry { shard_count: 1, key_size_max: 8, value_size_max: 8, shard_prefix_bits: 0 };
        let shard = ShardIndex(0);
        let store = Store::open(root.path(), Options::create(geometry)).unwrap();
        store.put(b"key", b"value").unwrap();
        store.close().unwrap();
        drop(store);
        let file = directory::shards_path(root.path()).join(directory::digest_file(shard));
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        for number in 0..3_u32 {
            let store = Store::open(root.path(), Options::default()).unwrap();
            assert_eq!(store.doubt(shard), Some(Doubt::Header));
            assert_eq!(store.get(b"key").unwrap().as_deref(), Some(&b"value"[..]));
            // Beyond what it held when it was opened.
            for key in 0..4_000 {
                store.put(&(key + number * 4_000).to_le_bytes(), b"more").unwrap();
            }
            store.check().unwrap();
            store.close().unwrap();
        }
        std::fs::remove_dir(&file).unwrap();
        drop(Store::open(root.path(), Options::default()).unwrap());
        let store = Store::open(root.path(), Options::default()).unwrap();
        assert_eq!(store.doubt(shard), None);
    }
}
