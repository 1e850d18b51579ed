//! The leader: its store is made or opened, followers are served, expired keys are deleted.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;

use super::{listen, log_store, start_base, sweep};
use crate::config;
use crate::leader::{self, Leader};
use crate::slot::{Geometry, ShardIndex};
use crate::status::Role;
use crate::store::{Options, Store, directory};

/// Sizes of a new store where none are given.
const SHARD_COUNT: u16 = 4;
const KEY_SIZE: u16 = 64;
const VALUE_SIZE: u16 = 256;

/// Runs a leader until it is told to stop.
pub fn lead(options: &config::Leader) -> anyhow::Result<()> {
    let common = &options.common;
    let replication = listen::bind("replication-listen", common.replication_listen)?;
    let mut base = start_base(common, Role::Leader, None, Some(&replication))?;
    let start = Instant::now();
    let store = Arc::new(open_store(options, &base)?);
    take_the_lead(options, &store).with_context(|| base.data_dir.display().to_string())?;
    log_store(&store, &base.data_dir, start.elapsed());
    let leader_options = leader::Options {
        heartbeat_interval: common.heartbeat_interval,
        dead_after: common.dead_after,
        ring_bytes: options.ring_size.unwrap_or_else(|| leader::ring_bytes_for(&store.geometry())),
        ack_window_bytes_max: options.ack_window as u64,
        resp_port: base.resp_port.address.port(),
        ..leader::Options::default()
    };
    let links = Arc::clone(&base.links);
    let leader = Leader::start(Arc::clone(&store), replication, leader_options, links, base.stop.clone())
        .context("followers cannot be served")?;
    let sweep = sweep::start(Arc::clone(&store), &base.stop).context("no thread for the expiry sweep")?;
    let server = base.start_resp(common, &store)?;
    base.view.serve(Arc::clone(&store), store.shards().collect(), server.counters());
    base.announce(common)?;
    base.wait_for_stop();
    base.finish(&store, || {
        server.join();
        leader.join();
        if sweep.join().is_err() {
            tracing::error!("the expiry sweep panicked");
        }
    });
    Ok(())
}

/// Opens the directory's store, or makes one. Sizes that are not given are taken from the directory.
fn open_store(options: &config::Leader, base: &super::Base) -> anyhow::Result<Store> {
    let directory = &base.data_dir;
    let geometry = match sizes_on_disk(directory)? {
        Some(geometry) => {
            check_sizes(options, &geometry).with_context(|| directory.display().to_string())?;
            geometry
        }
        None => Geometry {
            shard_count: options.shard_count.unwrap_or(SHARD_COUNT),
            key_size_max: options.key_size.unwrap_or(KEY_SIZE),
            value_size_max: options.value_size.unwrap_or(VALUE_SIZE),
            shard_prefix_bits: options.shard_prefix_bits.unwrap_or(0),
        },
    };
    Ok(Store::open(directory, Options { clock: Arc::clone(&base.clock), ..Options::create(geometry) })?)
}

/// A directory that followed another leader leads only if somebody says so.
fn take_the_lead(options: &config::Leader, store: &Store) -> anyhow::Result<()> {
    if !store.is_follower() {
        return Ok(());
    }
    if !options.promote {
        anyhow::bail!("this store follows a leader; give --promote to let it lead from what it holds");
    }
    store.promote().context("this store cannot lead")?;
    let epoch = store.lineage(ShardIndex(0)).last().map(|term| term.epoch);
    tracing::warn!(epoch, "promoted: this store followed a leader until now");
    Ok(())
}

/// The sizes of the store in a directory, before it is opened: opening changes the files' headers.
fn sizes_on_disk(directory: &Path) -> anyhow::Result<Option<Geometry>> {
    let file = directory::shards_path(directory).join(directory::shard_file(ShardIndex(0)));
    match directory::inspect(&file) {
        Ok(found) => Ok(Some(found?.identity.geometry)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{}: cannot read the header", file.display())),
    }
}

/// Given sizes must be the store's own: a store's sizes never change.
fn check_sizes(options: &config::Leader, found: &Geometry) -> anyhow::Result<()> {
    let sizes = [
        ("--shard-count", options.shard_count, found.shard_count),
        ("--key-size", options.key_size, found.key_size_max),
        ("--value-size", options.value_size, found.value_size_max),
        ("--shard-prefix-bits", options.shard_prefix_bits, found.shard_prefix_bits),
    ];
    for (option, wanted, found) in sizes {
        if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
            anyhow::bail!(
                "the store was made with {option} {found}, wanted {wanted}; a store's sizes never change"
            );
        }
    }
    Ok(())
}
