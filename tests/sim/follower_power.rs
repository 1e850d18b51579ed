//! A follower on a machine that loses its power, in every call that changes its disk, with any write-back, also while its
//! store is opened again: real links, a real leader, every level of durability.
//!
//! After a power cut: it holds everything up to the watermark that it called durable, knows whether its state is its
//! leader's, and does not pass for one that is if it is not. It goes on from its watermark, and is then, byte for byte,
//! what its leader is.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use slotstream::clock::{Clock, ManualClock};
use slotstream::links::{LinkCell, Links};
use slotstream::store::{Durability, OpenError, Simulated, Sleeper};
use slotstream::wal::SEGMENT_SIZE_MIN;
use slotstream::wal::simulated::{Fault, SimulatedDisk};
use slotstream::{Geometry, Options, Seq, ShardIndex, Store, follower, leader};
use uuid::Uuid;

use crate::history::{Histories, Mirror, Recorder};
use crate::log::Dice;
use crate::network::Connection;
use crate::random::Random;
use crate::shards::Shards;

const SHARD: ShardIndex = ShardIndex(0);
/// Slots so large that a shard has fourteen at first, and grows by as many.
const GEOMETRY: Geometry =
    Geometry { shard_count: 1, key_size_max: 8, value_size_max: 4_500, shard_prefix_bits: 0 };
const SLOTS: u32 = 56;
const STEPS: usize = 60;
const ROUNDS_TO_CATCH_UP: usize = 400;

type Ends = (leader::Link, follower::Link, Connection);

/// A leader that nothing happens to, and what it went through.
struct Leader {
    store: Store,
    links: Arc<Links>,
    registry: leader::Registry,
    sleeper: Arc<Sleeper>,
    options: leader::Options,
    histories: Histories,
    recorder: Recorder,
}

/// A follower's machine.
struct Follower {
    disk: SimulatedDisk,
    shards: Arc<Shards>,
    boot: u8,
    chance: Arc<Dice>,
    durability: Durability,
    links: Arc<Links>,
    options: follower::Options,
    /// The highest watermark that it called durable.
    durable: Seq,
}

impl Follower {
    fn open(&self, clock: &Arc<ManualClock>) -> Result<Store, OpenError> {
        let simulated =
            Simulated { disk: Arc::new(self.disk.clone()), shards: self.shards.clone(), boot: self.boot };
        let options = Options {
            store_id: Some(Uuid::from_u128(5)),
            clock: Arc::clone(clock) as Arc<dyn Clock>,
            chance: self.chance.clone(),
            durability: self.durability,
            log_segment_size: SEGMENT_SIZE_MIN,
            log_size_max: 3 * u64::from(SEGMENT_SIZE_MIN),
            simulated: Some(simulated),
            ..Options::memory(GEOMETRY, SLOTS)
        };
        Store::open(Path::new("memory"), options)
    }

    fn cut_power(&mut self, store: Option<&Store>) {
        if let Some(store) = store {
            self.shards.keep(store);
        }
        self.disk = self.shards.cut_power();
        self.boot += 1;
    }
}

struct Pair {
    clock: Arc<ManualClock>,
    random: Random,
    leader: Leader,
    follower: Follower,
    ends: Option<Ends>,
    context: String,
    /// The follower's disk fails some time.
    may_fail: bool,
}

impl Pair {
    fn new(seed: u64, durability: Durability, context: String) -> Self {
        let (clock, chance) = (Arc::new(ManualClock::new(1_700_000_000_000)), Dice::new(seed));
        let options = Options {
            store_id: Some(Uuid::from_u128(5)),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            chance: Dice::new(seed + 1_000),
            ..Options::memory(GEOMETRY, SLOTS)
        };
        let store = Store::open(Path::new("leader"), options).expect("a store in memory");
        let mut histories = Histories::default();
        let before = Recorder::before(&histories, &store);
        let recorder = Recorder::begin(&mut histories, &store, before);
        let leader = Leader {
            store,
            links: Links::new(),
            registry: leader::Registry::new(1, 10, 10),
            sleeper: Sleeper::new(|| {}),
            options: leader::Options { ring_bytes: 10_000, ..leader::Options::default() },
            histories,
            recorder,
        };
        let disk = SimulatedDisk::new(chance.clone());
        let shards = Shards::new(&disk, chance.clone(), durability == Durability::None);
        let follower = Follower {
            disk,
            shards,
            boot: 1,
            chance,
            durability,
            links: Links::new(),
            options: follower::Options::default(),
            durable: Seq::ZERO,
        };
        Self { clock, random: Random::new(seed), leader, follower, ends: None, context, may_fail: false }
    }

    fn write(&mut self) {
        let key = self.random.below(40).to_le_bytes();
        let value = vec![self.random.next().to_le_bytes()[0]; self.random.between(0, 4_500)];
        if self.random.percent(15) {
            self.leader.store.delete(&key).expect("a leader takes writes");
        } else {
            self.leader.store.put(&key, &value).expect("a leader takes writes");
        }
        self.leader.recorder.record(&mut self.leader.histories, &self.leader.store);
    }

    /// Both ends have a turn; false: the follower's disk has failed.
    fn pump(&mut self, store: &Store) -> bool {
        let now = self.clock.now();
        let Leader { store: leading, links, registry, sleeper, options, .. } = &self.leader;
        let leader_env = leader::Env { store: leading, options, links, registry, sleeper, now };
        let Follower { links, options, .. } = &self.follower;
        let env = follower::Env { store, options, links, now };
        let random = &mut self.random;
        let (end, link, connection) = self.ends.get_or_insert_with(|| {
            let connection = Connection::new(1, Seq::ZERO, 1 << 20, 0);
            let cell = LinkCell::new(options.follower_id, ([127, 0, 0, 1], 2).into(), 0, SHARD.0);
            let seat = registry.pending_seat().expect("room");
            let end = leader::Link::new(([127, 0, 0, 1], 1).into(), seat, leader_env.options, now);
            (end, follower::Link::new(SHARD, cell, env), connection)
        });
        connection.deliver(random, true);
        let context = &self.context;
        let failed = |error| panic!("{context}: the leader: {error}");
        end.receive(&mut connection.end(true, random), leader_env).map(drop).unwrap_or_else(failed);
        end.send(&mut connection.end(true, random), 1 << 20, leader_env).map(drop).unwrap_or_else(failed);
        connection.deliver(random, true);
        let received = link.receive(&mut connection.end(false, random), env).map(drop);
        let sent = received.and_then(|()| link.send(&mut connection.end(false, random), env).map(drop));
        self.clock.advance(Duration::from_millis(20));
        let Err(error) = sent else { return true };
        assert!(self.may_fail, "{context}: the follower: {error}");
        false
    }

    /// Works until the follower's disk fails.
    fn work(&mut self, store: &Store, steps: usize) -> bool {
        for _ in 0..steps {
            let goes_on = match self.random.below(100) {
                0..45 => {
                    self.write();
                    true
                }
                45..75 => self.pump(store),
                75..80 => {
                    self.ends = None;
                    true
                }
                80..87 => store.write_log().is_ok(),
                87..95 => store.sync_log().is_ok(),
                _ => store.checkpoint().is_ok(),
            };
            self.follower.durable = self.follower.durable.max(store.durable(SHARD));
            if !goes_on {
                return false;
            }
        }
        true
    }

    /// What the follower holds after a power cut.
    fn check(&self, store: &Store) {
        let context = &self.context;
        store.check().unwrap_or_else(|error| panic!("{context}: {error}"));
        let (progress, durable) = (store.progress(SHARD), self.follower.durable);
        assert!(
            progress.seq >= durable,
            "{context}: {durable} was durable, the watermark is {}",
            progress.seq
        );
        assert!(store.is_follower() || progress.seq == Seq::ZERO, "{context}: it leads");
        if store.is_follower() && store.was_in_sync(SHARD) {
            let mut mirror = Mirror::default();
            mirror.assert_prefix(&self.leader.histories, store, SHARD, progress.seq, context);
        }
    }

    /// It goes on from there, until it is what its leader is.
    fn catch_up(&mut self, store: &Store) {
        self.ends = None;
        let head = self.leader.store.head(SHARD);
        for _ in 0..ROUNDS_TO_CATCH_UP {
            assert!(self.pump(store), "{}: the disk is good", self.context);
            if store.progress(SHARD).seq == head && store.was_in_sync(SHARD) {
                break;
            }
        }
        let progress = store.progress(SHARD);
        assert_eq!(progress.seq, head, "{}: it does not catch up: {progress:?}", self.context);
        assert_eq!(store.damaged(), [], "{}: a slot stays damaged", self.context);
        Mirror::default().assert_prefix(&self.leader.histories, store, SHARD, head, &self.context);
    }

    /// It starts, and is told that it follows.
    fn begin(&self) -> Result<Store, String> {
        let store = self.follower.open(&self.clock).map_err(|error| error.to_string())?;
        if !store.is_follower() {
            store.demote().map_err(|error| error.to_string())?;
        }
        store.set_read_only(true);
        Ok(store)
    }
}

/// One life of a follower with a fault in this call after its first start; says how many calls there were.
fn life(seed: u64, durability: Durability, fault: Option<(u64, Fault)>) -> u64 {
    let mut pair = Pair::new(seed, durability, format!("seed {seed}, {durability:?}, {fault:?}"));
    let store = pair.begin().unwrap_or_else(|error| panic!("{}: {error}", pair.context));
    let begun = pair.follower.disk.calls();
    if let Some((call, fault)) = fault {
        pair.follower.disk.plan(begun + call, fault);
        pair.may_fail = true;
    }
    let worked = pair.work(&store, STEPS);
    assert!(worked || fault.is_some(), "{}: failed without a fault", pair.context);
    let calls = pair.follower.disk.calls() - begun;
    pair.follower.cut_power(Some(&store));
    drop(store);
    pair.ends = None;
    // Opened again, with a kill or a power cut in every call of that in turn; the last time nothing goes wrong.
    for cut in 0.. {
        let is_kill = pair.random.percent(30);
        pair.follower.disk.plan(cut, if is_kill { Fault::Kill } else { Fault::PowerCut });
        match pair.begin() {
            Ok(store) => {
                pair.follower.disk.plan_nothing();
                go_on(pair, store);
                break;
            }
            Err(error) => {
                assert!(!pair.follower.disk.has_power(), "{}, opening cut at {cut}: {error}", pair.context);
                if is_kill {
                    pair.follower.disk.outlive();
                } else {
                    pair.follower.cut_power(None);
                }
            }
        }
    }
    calls
}

/// After a power cut: it catches up, and loses its power once more while it follows.
fn go_on(mut pair: Pair, store: Store) {
    pair.may_fail = false;
    pair.check(&store);
    pair.catch_up(&store);
    assert!(pair.work(&store, STEPS / 2), "{}: nothing fails", pair.context);
    pair.follower.cut_power(Some(&store));
    drop(store);
    let store = pair.begin().unwrap_or_else(|error| panic!("{}: {error}", pair.context));
    pair.check(&store);
    pair.catch_up(&store);
}

fn lives(durability: Durability, seeds: u64) {
    for seed in 0..seeds {
        let calls = life(seed, durability, None);
        for call in 0..calls {
            life(seed, durability, Some((call, Fault::PowerCut)));
            life(seed, durability, Some((call, Fault::Failure)));
        }
    }
}

/// All lives of a follower with a log.
pub(crate) fn all_lives() {
    lives(Durability::Interval(Duration::from_millis(100)), 2);
    lives(Durability::Always, 1);
}

#[test]
fn a_follower_goes_on_from_what_it_called_durable_whatever_call_the_power_goes_in() {
    all_lives();
}

/// All lives of one without.
pub(crate) fn all_lives_without_log() {
    lives(Durability::None, 30);
}

#[test]
fn a_follower_without_a_log_begins_anew_whatever_the_power_cut_leaves() {
    all_lives_without_log();
}
