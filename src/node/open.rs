//! The store of a directory: opened, or made of the sizes that the arguments or the leader say.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::Context as _;

use super::memory::LeaderAt;
use super::{BadUsage, Base};
use crate::config;
use crate::follower::{self, LeaderInfo, ProbeError};
use crate::slot::{Geometry, HASH_TAGS, ShardIndex};
use crate::store::{OpenError, Options, Store, directory};

/// Sizes of a new store where none are given.
const SHARD_COUNT: u16 = 4;
const KEY_SIZE: u16 = 64;
const VALUE_SIZE: u16 = 256;

pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Opens a leader's store, or makes one. Sizes that are not given are taken from the directory.
pub(super) fn for_leader(options: &config::Leader, base: &Base) -> anyhow::Result<Store> {
    let directory = &base.data_dir;
    let geometry = match sizes_on_disk(directory)? {
        Some(geometry) => {
            check_sizes(options, &geometry).with_context(|| directory.display().to_string())?;
            geometry
        }
        None => {
            let geometry = Geometry {
                shard_count: options.shard_count.unwrap_or(SHARD_COUNT),
                key_size_max: options.key_size.unwrap_or(KEY_SIZE),
                value_size_max: options.value_size.unwrap_or(VALUE_SIZE),
                shard_prefix_bits: options.shard_prefix_bits.unwrap_or(HASH_TAGS),
            };
            geometry.check().map_err(BadUsage)?;
            geometry
        }
    };
    let made = Options::create(geometry);
    let made = base.durability.apply(made);
    Ok(Store::open(directory, Options { clock: Arc::clone(&base.clock), regain: base.regains, ..made })?)
}

/// Opens the store of a directory that leads since it was promoted at run time.
pub(super) fn promoted(base: &Base) -> anyhow::Result<Store> {
    let found = base.durability.apply(Options::default());
    let found = Options { clock: Arc::clone(&base.clock), regain: base.regains, ..found };
    Ok(Store::open(&base.data_dir, found)?)
}

/// The sizes of the store in a directory, before it is opened: opening changes the files' headers.
fn sizes_on_disk(directory: &Path) -> anyhow::Result<Option<Geometry>> {
    let file = directory::shards_path(directory).join(directory::shard_file(ShardIndex(0)));
    match directory::inspect(&file) {
        Ok(found) => Ok(Some(found?.identity.geometry)),
        // Of what is no directory at all, opening the store says more.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{}: cannot read the header", file.display())),
    }
}

/// Given sizes must be the store's own: a store's sizes never change.
fn check_sizes(options: &config::Leader, found: &Geometry) -> anyhow::Result<()> {
    let sizes = [
        ("--shard-count", options.shard_count, found.shard_count),
        ("--key-size", options.key_size, found.key_size_max),
        ("--value-size", options.value_size, found.value_size_max),
        ("--shard-prefix-bits", options.shard_prefix_bits, found.prefix_bits()),
    ];
    if let Some(wanted) = options.shard_prefix_bits.filter(|_| found.has_hash_tags()) {
        anyhow::bail!(
            "the store was made without --shard-prefix-bits, so that hash tags choose shards, wanted {wanted}; \
             how keys find their shards never changes"
        );
    }
    for (option, wanted, found) in sizes {
        if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
            anyhow::bail!(
                "the store was made with {option} {found}, wanted {wanted}; a store's sizes never change"
            );
        }
    }
    Ok(())
}

/// Opens a follower's store, or makes one as its leader says; none if told to stop meanwhile. The leader may
/// turn out to be another one.
pub(super) fn for_follower(
    base: &Base,
    leader: &mut LeaderAt,
    shards: Option<&config::ShardSet>,
) -> anyhow::Result<Option<Store>> {
    let found = base.durability.apply(Options::default());
    let found = Options { clock: Arc::clone(&base.clock), ..found };
    match Store::open(&base.data_dir, found.clone()) {
        Ok(store) => return Ok(Some(store)),
        Err(OpenError::Missing { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let Some(info) = ask_leader(base, leader)? else { return Ok(None) };
    // Before anything is made: a directory with a store that nobody wanted would be in the way.
    check_shards(shards, info.geometry.shard_count)?;
    let made =
        Options { geometry: Some(info.geometry), store_id: Some(info.store_id), create: true, ..found };
    Ok(Some(Store::open(&base.data_dir, made)?))
}

/// Asks until the leader answers; a leader that is not there yet will come, one that refuses will not change.
fn ask_leader(base: &Base, leader: &mut LeaderAt) -> anyhow::Result<Option<LeaderInfo>> {
    let (set, stopped) = mpsc::channel::<()>();
    base.stop.on_stop(move || drop(set));
    let configured = leader.clone();
    loop {
        match follower::probe(&leader.replication, PROBE_TIMEOUT) {
            Ok(info) => return Ok(Some(info)),
            Err(error) if error.is_permanent() => return Err(anyhow::anyhow!("leader {error}")),
            Err(error) => {
                tracing::info!(%error, "waiting for the leader, which knows the store's sizes");
                // Who is told where the leader is looks there, and starts over if it is not.
                *leader = match error {
                    ProbeError::Refused { refuse, .. } => refuse
                        .leader
                        .map_or(configured.clone(), |replication| LeaderAt { replication, resp_port: 0 }),
                    _ => configured.clone(),
                };
            }
        }
        if stopped.recv_timeout(PROBE_INTERVAL) != Err(mpsc::RecvTimeoutError::Timeout) {
            return Ok(None);
        }
    }
}

/// The shards to replicate: those asked for, or all.
pub(super) fn carried(wanted: Option<&config::ShardSet>, store: &Store) -> anyhow::Result<Vec<ShardIndex>> {
    let Some(wanted) = wanted else { return Ok(store.shards().collect()) };
    check_shards(Some(wanted), store.geometry().shard_count)?;
    Ok(wanted.indexes().iter().copied().map(ShardIndex).collect())
}

fn check_shards(wanted: Option<&config::ShardSet>, shard_count: u16) -> anyhow::Result<()> {
    let beyond = wanted.and_then(|wanted| wanted.indexes().iter().find(|shard| **shard >= shard_count));
    if let Some(beyond) = beyond {
        anyhow::bail!(
            "--shards names shard {beyond}, the leader's store has {shard_count} (0 to {})",
            shard_count - 1
        );
    }
    Ok(())
}
