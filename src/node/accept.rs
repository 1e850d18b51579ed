//! `--accept-store`: somebody says that a leader's store replaces what this directory holds.
//!
//! Nothing is thrown away unless the leader itself refuses these data, and has the store that was named; so
//! the option may stay among the arguments.

use std::path::Path;
use std::{fs, io};

use anyhow::Context as _;
use uuid::Uuid;

use super::open::PROBE_TIMEOUT;
use crate::follower;
use crate::slot::ShardIndex;
use crate::store::directory;

/// Removes the directory's store if the leader has store `id` and cannot take a follower with ours.
pub(super) fn store(data_dir: &Path, leader: &str, id: Uuid) -> anyhow::Result<()> {
    let (shards, doomed) = (directory::shards_path(data_dir), data_dir.join("shards.doomed"));
    // A removal was cut off.
    remove(&doomed)?;
    let file = shards.join(directory::shard_file(ShardIndex(0)));
    let held = match directory::inspect(&file) {
        Ok(found) => found?,
        // Nothing is in the way.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error).with_context(|| format!("{}: cannot read the header", file.display()));
        }
    };
    let info = follower::probe(leader, PROBE_TIMEOUT)
        .map_err(|error| anyhow::anyhow!("leader {error}; --accept-store needs its answer"))?;
    if info.store_id != id {
        anyhow::bail!("leader {leader} has store {}, --accept-store names {id}", info.store_id);
    }
    let epoch = held.state.lineage.last().map_or(0, |term| term.epoch);
    let reason = if held.identity.store_id != id {
        format!("it held store {}", held.identity.store_id)
    } else if held.identity.geometry != info.geometry {
        format!("its sizes were {}, the leader's are {}", held.identity.geometry, info.geometry)
    } else if epoch > info.epoch {
        format!("it was in epoch {epoch}, the leader is in epoch {}", info.epoch)
    } else {
        return Ok(());
    };
    // Held until the shards are gone, so that they are nobody's.
    let _lock = directory::lock(data_dir)
        .with_context(|| format!("{}: cannot lock the directory", data_dir.display()))?
        .map_err(|owner| anyhow::anyhow!("{}: in use by process {owner}", data_dir.display()))?;
    tracing::warn!(
        directory = %data_dir.display(),
        %leader,
        store_id = %id,
        reason,
        "--accept-store: THE DATA OF THIS DIRECTORY ARE THROWN AWAY and replaced by the leader's"
    );
    // Aside first: a removal that is cut off would leave a store that cannot be opened.
    fs::rename(&shards, &doomed).with_context(|| format!("{}: cannot move aside", shards.display()))?;
    remove(&doomed)
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: cannot remove", path.display()))
        }
        _ => Ok(()),
    }
}
