//! The follower: learns identity and sizes from its leader the first time, and serves what it holds
//! from then on, whether the leader is there or not.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::{Base, log_store, progress, start_base};
use crate::config;
use crate::follower::{self, Follower, LeaderInfo};
use crate::slot::ShardIndex;
use crate::status::Role;
use crate::stop::Stop;
use crate::store::{OpenError, Options, Store};

const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Runs a follower until it is told to stop.
pub fn follow(options: &config::Follower) -> anyhow::Result<()> {
    let common = &options.common;
    let leader = options.leader.clone().context("--leader is required")?;
    let mut base = start_base(common, Role::Follower, Some(leader.clone()), None)?;
    let start = Instant::now();
    let Some(store) = open_store(&base, &leader, options.shards.as_ref())? else {
        base.http.stop();
        return Ok(());
    };
    let store = Arc::new(store);
    log_store(&store, &base.data_dir, start.elapsed());
    let shards = carried(options, &store)?;
    let follower_options = follower::Options {
        heartbeat_interval: common.heartbeat_interval,
        dead_after: common.dead_after,
        shards: shards.clone(),
        resp_port: base.resp_port.address.port(),
        ..follower::Options::default()
    };
    let links = Arc::clone(&base.links);
    let follower =
        Follower::start(Arc::clone(&store), leader.clone(), follower_options, links, base.stop.clone())
            .context("the leader cannot be followed")?;
    let progress = progress::start(Arc::clone(&base.links), base.bars.clone(), &base.stop)
        .context("no thread for the progress display")?;
    let server = base.start_resp(common, &store)?;
    base.view.serve(Arc::clone(&store), shards, server.counters());
    base.announce(common)?;
    let misfit = watch_for_misfit(&leader, &store, &base.stop)?;
    base.wait_for_stop();
    base.finish(&store, || {
        server.join();
        follower.join();
        if progress.join().is_err() {
            tracing::error!("the progress display panicked");
        }
    });
    // Not joined: it may still be waiting for an answer that nobody needs any more.
    misfit.try_recv().map_or(Ok(()), Err)
}

/// Asks the leader, once and beside everything else, whether this is its follower. A follower with
/// data serves it while its leader is away; one that was pointed at another store's leader is a
/// mistake that somebody must see at once: the node stops and says so.
fn watch_for_misfit(
    leader: &str,
    store: &Arc<Store>,
    stop: &Stop,
) -> anyhow::Result<mpsc::Receiver<anyhow::Error>> {
    let (found, misfit) = mpsc::channel();
    let (leader, store, stop) = (leader.to_owned(), Arc::clone(store), stop.clone());
    let check = move || {
        let error = match follower::probe(&leader, PROBE_TIMEOUT) {
            Ok(info) if info.store_id == store.store_id() && info.geometry == store.geometry() => return,
            Ok(info) => anyhow::anyhow!(
                "leader {leader} has store {} ({}), this directory holds store {} ({})",
                info.store_id,
                info.geometry,
                store.store_id(),
                store.geometry()
            ),
            Err(error) if error.is_permanent() => anyhow::anyhow!("leader {error}"),
            Err(_) => return,
        };
        // The receiver is there until the process ends.
        if found.send(error).is_ok() {
            stop.set();
        }
    };
    std::thread::Builder::new().name("check-leader".to_owned()).spawn(check).context("no thread")?;
    Ok(misfit)
}

/// Opens the directory's store, or makes one as the leader says; none if told to stop meanwhile.
fn open_store(base: &Base, leader: &str, wanted: Option<&config::ShardSet>) -> anyhow::Result<Option<Store>> {
    // A damaged slot is set aside: the leader sends it again.
    let found = Options { clock: Arc::clone(&base.clock), quarantine: true, ..Options::default() };
    match Store::open(&base.data_dir, found.clone()) {
        Ok(store) => return Ok(Some(store)),
        Err(OpenError::Missing { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let Some(info) = ask_leader(base, leader)? else { return Ok(None) };
    // Before anything is made: a directory with a store that nobody wanted would be in the way.
    check_shards(wanted, info.geometry.shard_count)?;
    let made =
        Options { geometry: Some(info.geometry), store_id: Some(info.store_id), create: true, ..found };
    Ok(Some(Store::open(&base.data_dir, made)?))
}

/// Asks until the leader answers; a leader that is not there yet will come, one that refuses will not change.
fn ask_leader(base: &Base, leader: &str) -> anyhow::Result<Option<LeaderInfo>> {
    let (set, stopped) = mpsc::channel::<()>();
    base.stop.on_stop(move || drop(set));
    loop {
        match follower::probe(leader, PROBE_TIMEOUT) {
            Ok(info) => return Ok(Some(info)),
            Err(error) if error.is_permanent() => return Err(anyhow::anyhow!("leader {error}")),
            Err(error) => tracing::info!(%error, "waiting for the leader, which knows the store's sizes"),
        }
        if stopped.recv_timeout(PROBE_INTERVAL) != Err(mpsc::RecvTimeoutError::Timeout) {
            return Ok(None);
        }
    }
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

/// The shards to replicate: those asked for, or all.
fn carried(options: &config::Follower, store: &Store) -> anyhow::Result<Vec<ShardIndex>> {
    let shard_count = store.geometry().shard_count;
    let Some(wanted) = &options.shards else { return Ok(store.shards().collect()) };
    check_shards(Some(wanted), shard_count)?;
    Ok(wanted.indexes().iter().copied().map(ShardIndex).collect())
}
