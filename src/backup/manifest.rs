//! `manifest.json`: what a backup is and holds. It is written last, so a backup that has one is whole.
//!
//! The text is JSON; its last line is a checksum of everything before it, so that any damaged byte is found,
//! whatever it means. A manifest of another format version is refused by its number.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::slot::{Geometry, GeometryError, Seq, ShardIndex, Term, lineage};

use super::blocks::Contents;
use super::directory::Directory;
use super::storage::Storage;
use super::{FileError, file_error};

pub use super::storage::MANIFEST_FILE;

const FORMAT_VERSION: u32 = 1;
/// A manifest of as many shards and terms as there can be is smaller than this.
const SIZE_MAX: u64 = 64 << 20;

/// What a backup is and holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// 1.
    pub format_version: u32,
    /// Names this backup.
    pub backup_id: Uuid,
    /// The backup that this one goes on from; none = it is a full one.
    pub base: Option<Uuid>,
    /// When it was begun, Unix ms.
    pub created_at_ms: u64,
    /// The store.
    pub store_id: Uuid,
    /// Its sizes.
    pub geometry: Geometry,
    /// One entry per shard, in order.
    pub shards: Vec<ShardEntry>,
}

/// One shard in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// Its index.
    pub shard: u16,
    /// The file holds what changed after this seq; zero = everything.
    pub since: u64,
    /// With all that its bases hold it is exactly the leader's state at this seq.
    pub seq: u64,
    /// The leader's epoch.
    pub epoch: u64,
    /// Terms that the shard has lived through, oldest first.
    pub lineage: Vec<Term>,
    /// What the shard's file holds.
    pub contents: Contents,
}

/// Why a directory is no backup.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is none.
    #[error("{path}: has no {MANIFEST_FILE}: it is no backup, or one that was not finished")]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// Its bytes are not those that were written.
    #[error("{path}: damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Another version wrote it.
    #[error("{path}: backup format {found}, wanted {FORMAT_VERSION}")]
    Version {
        /// The file.
        path: PathBuf,
        /// What it states.
        found: u64,
    },
    /// Sizes that no store can have.
    #[error("{path}: {error}")]
    Geometry {
        /// The file.
        path: PathBuf,
        /// Which.
        error: GeometryError,
    },
}

/// The name of a shard's file in a backup.
#[must_use]
pub fn shard_file(shard: ShardIndex) -> String {
    format!("{:04}.backup", shard.0)
}

impl Manifest {
    pub(super) fn new(
        backup_id: Uuid,
        base: Option<Uuid>,
        created_at_ms: u64,
        (store_id, geometry): (Uuid, Geometry),
        shards: Vec<ShardEntry>,
    ) -> Self {
        Self { format_version: FORMAT_VERSION, backup_id, base, created_at_ms, store_id, geometry, shards }
    }

    /// Reads and checks the manifest of the backup in `directory`.
    pub fn read(directory: &Path) -> Result<Self, ManifestError> {
        Self::load(&Directory::at(directory))
    }

    /// Reads and checks the manifest of the backup there.
    pub(super) fn load(storage: &dyn Storage) -> Result<Self, ManifestError> {
        let Some(source) = storage.open(MANIFEST_FILE)? else {
            return Err(ManifestError::Missing { path: storage.path().to_owned() });
        };
        let mut bytes = Vec::new();
        let read = source.bytes.take(SIZE_MAX).read_to_end(&mut bytes);
        read.map_err(file_error(&source.path, "read it"))?;
        Self::decode(&source.path, &bytes)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_else(|_| unreachable!("plain fields"));
        let end = bytes.pop();
        assert_eq!(end, Some(b'}'), "an object");
        // Between the last field and the brace.
        assert_eq!(bytes.pop(), Some(b'\n'), "the brace has a line of its own");
        let tail = tail(&bytes);
        bytes.extend_from_slice(tail.as_bytes());
        bytes
    }

    fn decode(path: &Path, bytes: &[u8]) -> Result<Self, ManifestError> {
        let damaged = |what: &str| ManifestError::Damaged { path: path.to_owned(), what: what.to_owned() };
        let text = bytes.len().checked_sub(TAIL_SIZE).map(|at| bytes.split_at(at));
        let (body, found) = text.ok_or_else(|| damaged("it is cut off"))?;
        if tail(body).as_bytes() != found {
            return Err(damaged("its checksum is wrong"));
        }
        let body = [body, b"\n}"].concat();
        let value: serde_json::Value = serde_json::from_slice(&body).map_err(|e| damaged(&e.to_string()))?;
        match value["format_version"].as_u64() {
            Some(version) if version == u64::from(FORMAT_VERSION) => {}
            found => {
                return Err(ManifestError::Version { path: path.to_owned(), found: found.unwrap_or(0) });
            }
        }
        let manifest: Self = serde_json::from_value(value).map_err(|e| damaged(&e.to_string()))?;
        let geometry = manifest.geometry.check();
        geometry.map_err(|error| ManifestError::Geometry { path: path.to_owned(), error })?;
        let in_order = (0..manifest.geometry.shard_count).eq(manifest.shards.iter().map(|entry| entry.shard));
        let is_sound = |entry: &ShardEntry| {
            entry.since <= entry.seq
                && entry.seq <= Seq::MAX.0
                && lineage::is_ordered(&entry.lineage)
                && (manifest.base.is_some() || entry.since == 0)
        };
        if !in_order || !manifest.shards.iter().all(is_sound) {
            return Err(damaged("its shards are not those of a store"));
        }
        Ok(manifest)
    }
}

const TAIL_SIZE: usize = ",\n  \"crc32\": \"00000000\"\n}\n".len();

/// What ends a manifest whose other bytes are these.
fn tail(body: &[u8]) -> String {
    format!(",\n  \"crc32\": \"{:08x}\"\n}}\n", crc32fast::hash(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let entry = |shard| ShardEntry {
            shard,
            since: 5,
            seq: u64::MAX >> 2,
            epoch: 3,
            lineage: vec![Term { epoch: 3, id: u64::MAX, first_seq: 1 }],
            contents: Contents { records: 1, raw_bytes: 2, file_bytes: 3, file_crc32: u32::MAX },
        };
        let geometry = Geometry { shard_count: 2, key_size_max: 16, value_size_max: 8, shard_prefix_bits: 0 };
        let store = (Uuid::from_u128(1), geometry);
        Manifest::new(Uuid::from_u128(2), Some(Uuid::from_u128(3)), 4, store, vec![entry(0), entry(1)])
    }

    #[test]
    fn a_manifest_is_json_and_reads_back() {
        let bytes = manifest().encode();
        let value: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!(value["shards"][1]["lineage"][0]["id"], u64::MAX);
        assert_eq!(Manifest::decode(Path::new("m"), &bytes).expect("reads"), manifest());
        let later = Manifest { format_version: 2, ..manifest() };
        let found = Manifest::decode(Path::new("m"), &later.encode());
        assert!(matches!(found, Err(ManifestError::Version { found: 2, .. })), "{found:?}");
        let unsound = Manifest { shards: manifest().shards[..1].to_vec(), ..manifest() };
        let found = Manifest::decode(Path::new("m"), &unsound.encode());
        assert!(matches!(found, Err(ManifestError::Damaged { .. })), "{found:?}");
    }

    #[test]
    fn every_damaged_byte_and_every_cut_is_found() {
        let good = manifest().encode();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                Manifest::decode(Path::new("m"), &bad).expect_err("damage is found");
            }
            Manifest::decode(Path::new("m"), &good[..at]).expect_err("a cut is found");
        }
    }
}
