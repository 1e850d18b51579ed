//! Floor 5: backups of a running leader's store, and data directories made of them.
//!
//! A backup is taken as a follower takes a shard: a scan, then the stream until the state is exactly the
//! leader's at a seq. So no writer stops, nothing is forked, and a backup that is slow costs the leader what
//! a slow follower costs. A record goes to the file as it comes; a slot that changed meanwhile is in the file
//! more than once, and the restore keeps the newest. [`take()`] makes a backup, [`restore()`] a data directory.
//!
//! A backup is a directory, or a prefix in object storage ([`Place`]): `NNNN.backup` per shard ([`blocks`]), and
//! `manifest.json` ([`manifest`]), which is written last. Without a manifest it is no backup. An incremental one holds
//! what changed, deletions too, since the seqs of the backup that it names as its base.
//!
//! ```text
//!  take: pull --> blocks --+                  +--> directory
//!                          +--> place: storage+
//!  restore: blocks <-------+                  +--> s3 (upload, download), with the feature `s3`
//! ```

pub mod blocks;
mod directory;
pub mod manifest;
mod place;
mod pull;
pub mod restore;
#[cfg(feature = "s3")]
pub mod s3;
mod storage;
pub mod take;

use std::fs;
use std::path::Path;

use crate::store::directory::file_error;

pub use crate::store::directory::FileError;
pub use manifest::{Manifest, ManifestError};
pub use place::{Place, PlaceError};
pub use pull::PullError;
pub use restore::{RestoreError, Restored, restore};
pub use storage::ClaimError;
pub(crate) use take::take_watched;
pub use take::{BackupError, Request, Taken, take};

/// Makes a directory, durably, unless it is there.
fn make_directory(path: &Path) -> Result<(), FileError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(file_error(path, "create it"))?;
    let parent = path.canonicalize().map(|path| path.parent().unwrap_or(Path::new("/")).to_owned());
    parent
        .and_then(|parent| crate::store::directory::sync(&parent))
        .map_err(file_error(path, "sync its parent"))
}
