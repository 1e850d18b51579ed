//! What reads and writes demand of replication and of the log; CONFIG SET changes the former while the server runs.
//!
//! A turn reads one byte of flags: with nothing demanded, a command pays nothing.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use super::command::Args;
use super::context::{Context, Role};
use super::error::CommandError;
use super::table::{Command, flag};
use super::worker::Worker;
use crate::links::Level;
use crate::slot::ShardIndex;

/// What is demanded; the default is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demands {
    /// A write is refused where fewer followers than this are near; 0 = none need be.
    pub followers_min: usize,
    /// How far behind such a follower may be.
    pub followers_lag_max: Duration,
    /// A write's reply waits for followers to be as sure as this; `None` = it does not wait.
    pub sync_level: Option<Level>,
    /// How many followers that takes.
    pub sync_followers: usize,
    /// How long it may take.
    pub sync_timeout: Duration,
    /// Whether a follower's shard is read while it is inside a scan, or before it was ever in sync.
    pub reads_while_syncing: bool,
}

impl Default for Demands {
    fn default() -> Self {
        Self {
            followers_min: 0,
            followers_lag_max: Duration::from_secs(10),
            sync_level: None,
            sync_followers: 1,
            sync_timeout: Duration::from_secs(1),
            reads_while_syncing: true,
        }
    }
}

impl Demands {
    /// Whether a write's reply waits for followers.
    pub(super) fn is_sync(&self) -> bool {
        self.sync_level.is_some() && self.sync_followers > 0
    }
}

/// What the flags say.
pub(super) mod demand {
    /// Writes need followers that are near.
    pub(in super::super) const FOLLOWERS: u8 = 1;
    /// Replies to writes wait for followers.
    pub(in super::super) const SYNC: u8 = 1 << 1;
    /// Reads need a shard that was in sync.
    pub(in super::super) const IN_SYNC: u8 = 1 << 2;
    /// Replies to writes wait for the log.
    pub(in super::super) const DURABLE: u8 = 1 << 3;
}

/// The demands of a server, for all its workers.
#[derive(Debug)]
pub(super) struct Rules {
    flags: AtomicU8,
    demands: RwLock<Demands>,
    /// The log comes first: what is made is not to be told before it is durable.
    log_first: bool,
}

/// What a write is answered that too few followers would get.
const NO_REPLICAS: &str = "NOREPLICAS Not enough good replicas to write.";
/// What a read is answered that may see what no leader ever had.
const MASTER_DOWN: &str = "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.";

impl Rules {
    pub(super) fn new(demands: Demands, log_first: bool) -> Self {
        let rules = Self { flags: AtomicU8::new(0), demands: RwLock::new(demands), log_first };
        rules.set(demands);
        rules
    }

    /// What is demanded at all, as bits of [`demand`].
    #[inline]
    pub(super) fn flags(&self) -> u8 {
        self.flags.load(Ordering::Relaxed)
    }

    pub(super) fn demands(&self) -> Demands {
        *self.demands.read()
    }

    pub(super) fn set(&self, demands: Demands) {
        let mut current = self.demands.write();
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let flags = flag(demands.followers_min > 0, demand::FOLLOWERS)
            | flag(demands.is_sync(), demand::SYNC)
            | flag(!demands.reads_while_syncing, demand::IN_SYNC)
            | flag(self.log_first, demand::DURABLE);
        *current = demands;
        // Under the lock, so that flags and demands belong together.
        self.flags.store(flags, Ordering::Relaxed);
    }

    /// Refuses a command whose demands are not met, before it changes anything.
    #[cold]
    pub(super) fn check(
        &self,
        worker: &Worker,
        command: &Command,
        args: Args<'_>,
    ) -> Result<(), CommandError> {
        let (flags, context) = (self.flags(), &worker.context);
        if flags & demand::FOLLOWERS != 0 && command.is(flag::WRITE) {
            let demands = self.demands();
            let now = context.store.clock().now();
            let is_short = |shard| {
                let head = context.store.head(shard);
                context.links.near(shard, head, demands.followers_lag_max, now) < demands.followers_min
            };
            if shards(context, command, args).into_iter().any(is_short) {
                worker.counters.writes_refused.add(1);
                return Err(CommandError::text(NO_REPLICAS));
            }
        }
        let follows = || matches!(*context.node.role.read(), Role::Follower { .. });
        if flags & demand::IN_SYNC != 0 && command.is(flag::READONLY) && follows() {
            let is_odd = |shard| !context.store.was_in_sync(shard) && !context.links.streams(shard);
            if shards(context, command, args).into_iter().any(is_odd) {
                return Err(CommandError::text(MASTER_DOWN));
            }
        }
        Ok(())
    }
}

/// The shards that a command touches: those of its keys, or all that this node carries.
fn shards(context: &Context, command: &Command, args: Args<'_>) -> Vec<ShardIndex> {
    let mut shards: Vec<_> = if command.first_key > 0 {
        command.key_positions(args.len()).map(|key| context.store.shard_of(args.at(key))).collect()
    } else if context.store.is_read_only() {
        context.links.all().iter().map(|cell| ShardIndex(cell.shard)).collect()
    } else {
        context.store.shards().collect()
    };
    shards.sort_unstable();
    shards.dedup();
    shards
}
