//! armdb 0.15: `FixedMap` with its replication server and client.
//!
//! `SYNCED = true` is armdb as it comes (`FixedConfig::balanced`): no fsync per write, but an fdatasync
//! in the path of every 1,024th write of a shard, or of the first after 50 ms. `SYNCED = false` puts both
//! thresholds out of reach, so that, as with slotstream, the kernel alone decides when to write back.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use armdb::fixed_replication::{FixedReplicationClient, FixedReplicationServer, FixedReplicationTarget};
use armdb::{FixedConfig, FixedMap, ShutdownSignal};

use crate::engine::{Engine, Follower, SHARD_COUNT};
use crate::workload::{KEY_SIZE, Key, VALUE_SIZE, Value};

type Map = FixedMap<[u8; KEY_SIZE], VALUE_SIZE>;

/// A fixed map that leads.
pub struct Armdb<const SYNCED: bool> {
    map: Map,
}

/// A fixed map that follows.
pub struct ArmdbFollower {
    map: Arc<Map>,
    // Joins its threads when dropped.
    _client: FixedReplicationClient,
}

fn config(synced: bool) -> FixedConfig {
    let config = FixedConfig::balanced().shard_count(usize::from(SHARD_COUNT));
    if synced {
        config.build()
    } else {
        config.sync_batch_size(u32::MAX).sync_interval(Duration::from_secs(86_400)).build()
    }
}

impl<const SYNCED: bool> Engine for Armdb<SYNCED> {
    type Leader = FixedReplicationServer;
    type EmptyFollower = Arc<Map>;
    type Follower = ArmdbFollower;
    // Its ring holds 8,192 events a shard; the spread over the shards is random, so stay well below.
    const STREAM_WINDOW: u64 = 16_384;

    fn open(directory: &Path) -> Result<Self> {
        Ok(Self { map: Map::open(directory, config(SYNCED))? })
    }

    #[inline]
    fn put(&self, key: &Key, value: &Value) -> Result<()> {
        self.map.put(key, value)?;
        Ok(())
    }

    #[inline]
    fn get(&self, key: &Key) -> Option<Value> {
        self.map.get(key)
    }

    fn shard_of(&self, key: &Key) -> usize {
        self.map.shard_for(key)
    }

    fn lead(engine: &Arc<Self>) -> Result<(Self::Leader, SocketAddr)> {
        // It cannot tell which port it got, so port 0 is of no use: take one that was free a moment ago.
        let mut last = None;
        for _ in 0..20 {
            let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
            let access = engine.map.fixed_engine_access();
            match FixedReplicationServer::start(address, access, ShutdownSignal::new()) {
                Ok(server) => return Ok((server, address)),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no attempt was made")?).context("armdb's leader found no free port")
    }

    fn overflows(_: &Self::Leader) -> Option<u64> {
        None
    }

    fn prepare_follower(directory: &Path, _: SocketAddr) -> Result<Self::EmptyFollower> {
        Ok(Arc::new(Map::open(directory, config(SYNCED))?))
    }

    fn follow(map: Self::EmptyFollower, leader: SocketAddr) -> Result<Self::Follower> {
        let target: Arc<dyn FixedReplicationTarget> = map.clone();
        let client = FixedReplicationClient::start(leader, target, ShutdownSignal::new())?;
        Ok(ArmdbFollower { map, _client: client })
    }
}

impl Follower for ArmdbFollower {
    fn record_count(&self) -> u64 {
        self.map.len() as u64
    }

    #[inline]
    fn get(&self, key: &Key) -> Option<Value> {
        self.map.get(key)
    }

    fn applied(&self) -> Option<u64> {
        None
    }
}
