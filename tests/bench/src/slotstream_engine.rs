//! slotstream through its public library API, default options throughout.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result};
use slotstream::follower::{self, probe};
use slotstream::leader;
use slotstream::links::Links;
use slotstream::stop::Stop;
use slotstream::{Geometry, Options, Store};

use crate::engine::{Engine, Follower, SHARD_COUNT};
use crate::workload::{KEY_SIZE, Key, VALUE_SIZE, Value};

/// Records in a batch; what a RESP pipeline of that depth would be.
pub const BATCH: usize = 16;

/// A store that leads.
pub struct Slotstream {
    store: Arc<Store>,
}

/// A leader; stops when dropped.
pub struct SlotstreamLeader {
    leader: Option<leader::Leader>,
    links: Arc<Links>,
    stop: Stop,
}

/// A store that follows; stops when dropped.
pub struct SlotstreamFollower {
    store: Arc<Store>,
    follower: Option<follower::Follower>,
    links: Arc<Links>,
    stop: Stop,
}

fn copy(value: &[u8]) -> Value {
    value.try_into().expect("every value here is of one size")
}

impl Slotstream {
    /// Stores [`BATCH`] records, or fewer, in one call.
    #[inline]
    pub fn put_batch(&self, records: &[(Key, Value)]) -> Result<()> {
        Ok(self.store.put_batch(records)?)
    }

    /// Reads [`BATCH`] records, or fewer, in one call.
    #[inline]
    pub fn get_batch(&self, keys: &[Key], mut f: impl FnMut(Value)) -> Result<()> {
        Ok(self.store.get_batch(keys, |_, entry| {
            if let Some(entry) = entry {
                f(copy(entry.value));
            }
        })?)
    }
}

impl Engine for Slotstream {
    type Leader = SlotstreamLeader;
    type EmptyFollower = Arc<Store>;
    type Follower = SlotstreamFollower;
    // A ring of the default 4 MiB holds some 37,000 records of this size, and there is one for each of four shards.
    const STREAM_WINDOW: u64 = 65_536;

    fn open(directory: &Path) -> Result<Self> {
        let geometry = Geometry {
            shard_count: SHARD_COUNT,
            key_size_max: u16::try_from(KEY_SIZE)?,
            value_size_max: u16::try_from(VALUE_SIZE)?,
            shard_prefix_bits: 0,
        };
        let options = Options { geometry: Some(geometry), create: true, ..Options::default() };
        Ok(Self { store: Arc::new(Store::open(directory, options)?) })
    }

    #[inline]
    fn put(&self, key: &Key, value: &Value) -> Result<()> {
        self.store.put(key, value)?;
        Ok(())
    }

    #[inline]
    fn get(&self, key: &Key) -> Option<Value> {
        self.store.read(key, |entry| copy(entry.value)).ok().flatten()
    }

    fn shard_of(&self, key: &Key) -> usize {
        usize::from(self.store.shard_of(key).0)
    }

    fn lead(engine: &Arc<Self>) -> Result<(Self::Leader, SocketAddr)> {
        let (links, stop) = (Links::new(), Stop::new());
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let options = leader::Options::default();
        let leader = leader::Leader::start(
            Arc::clone(&engine.store),
            listener,
            options,
            Arc::clone(&links),
            stop.clone(),
        )?;
        let address = leader.address();
        Ok((SlotstreamLeader { leader: Some(leader), links, stop }, address))
    }

    fn overflows(leader: &Self::Leader) -> Option<u64> {
        Some(leader.links.totals.delta_scans_overflow.load(Ordering::Relaxed))
    }

    fn prepare_follower(directory: &Path, leader: SocketAddr) -> Result<Self::EmptyFollower> {
        let info =
            probe(&leader.to_string(), Duration::from_secs(5)).context("the leader does not answer")?;
        let (geometry, store_id) = (Some(info.geometry), Some(info.store_id));
        let options = Options { geometry, store_id, create: true, ..Options::default() };
        Ok(Arc::new(Store::open(directory, options)?))
    }

    fn follow(store: Self::EmptyFollower, leader: SocketAddr) -> Result<Self::Follower> {
        let (links, stop) = (Links::new(), Stop::new());
        let options = follower::Options::default();
        let follower = follower::Follower::start(
            Arc::clone(&store),
            leader.to_string(),
            options,
            Arc::clone(&links),
            stop.clone(),
        )?;
        Ok(SlotstreamFollower { store, follower: Some(follower), links, stop })
    }
}

impl Follower for SlotstreamFollower {
    fn record_count(&self) -> u64 {
        self.store.len()
    }

    #[inline]
    fn get(&self, key: &Key) -> Option<Value> {
        self.store.read(key, |entry| copy(entry.value)).ok().flatten()
    }

    fn applied(&self) -> Option<u64> {
        Some(self.links.totals.records_applied.load(Ordering::Relaxed))
    }
}

impl Drop for SlotstreamLeader {
    fn drop(&mut self) {
        self.stop.set();
        self.leader.take().into_iter().for_each(leader::Leader::join);
    }
}

impl Drop for SlotstreamFollower {
    fn drop(&mut self) {
        self.stop.set();
        self.follower.take().into_iter().for_each(follower::Follower::join);
    }
}
