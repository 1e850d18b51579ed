//! The simulated world: one leader, some followers, the network between them, and one random hand.
//!
//! [`World::run`] lets the hand act for a while (writes, parts of sends and receives, lost
//! connections, restarts, time), then stops writing and breaking things and asserts that everything
//! converges. Invariants are checked along the way, after every receive of a follower.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use slotstream::clock::{Clock, ManualClock, Now};
use slotstream::links::{LinkCell, Links, Phase};
use slotstream::ring::Sleeper;
use slotstream::store::{Options as StoreOptions, WriteError};
use slotstream::{Geometry, Seq, ShardIndex, Store, follower, leader};
use uuid::Uuid;

use crate::history::{History, Mirror};
use crate::network::Connection;
use crate::random::Random;

const ROUNDS_TO_CONVERGE_MAX: usize = 3_000;

/// What a seed makes of a run.
#[derive(Debug)]
struct Scenario {
    geometry: Geometry,
    slots: u32,
    follower_count: usize,
    key_count: usize,
    step_count: usize,
    network_bytes: usize,
    fault_percent: usize,
    write_percent: usize,
    /// Deliveries in a hundred that flip a bit; links may then end for what the other end sent.
    noise_percent: usize,
    leader: leader::Options,
}

impl Scenario {
    fn new(random: &mut Random) -> Self {
        let value_size_max = *random.pick(&[0, 8, 40]);
        let geometry = Geometry {
            shard_count: *random.pick(&[1, 1, 2, 3]),
            key_size_max: 8,
            value_size_max,
            shard_prefix_bits: 0,
        };
        let record_size = 8 + geometry.image_size_max();
        let leader = leader::Options {
            ring_bytes: *random.pick(&[
                record_size / 2,
                record_size,
                3 * record_size,
                10 * record_size,
                4096,
            ]),
            ack_window_bytes_max: *random.pick(&[1, 200, 1000, 1 << 20]),
            scan_batch_bytes_max: *random.pick(&[1, 150, 400, 64 << 10]),
            stream_batch_bytes_max: *random.pick(&[1, 200, 600, 256 << 10]),
            scan_bytes_per_second_max: *random.pick(&[0, 0, 0, 10_000]),
            scans_max: *random.pick(&[0, 0, 0, 1]),
            ..leader::Options::default()
        };
        Self {
            geometry,
            slots: *random.pick(&[4, 16, 40]),
            follower_count: random.between(1, 3),
            key_count: random.between(2, 60),
            step_count: random.between(50, 400),
            network_bytes: *random.pick(&[30, 200, 1000, 10_000]),
            fault_percent: *random.pick(&[0, 1, 3, 8]),
            noise_percent: *random.pick(&[0, 0, 0, 5]),
            write_percent: *random.pick(&[5, 10, 25]),
            leader,
        }
    }
}

struct LeaderNode {
    store: Store,
    links: Arc<Links>,
    registry: leader::Registry,
    sleeper: Arc<Sleeper>,
    ends: Vec<(leader::Link, Connection)>,
}

struct FollowerNode {
    name: String,
    store: Store,
    links: Arc<Links>,
    options: follower::Options,
    lanes: Vec<Lane>,
}

struct Lane {
    shard: ShardIndex,
    end: Option<(follower::Link, Connection)>,
    cell: Arc<LinkCell>,
    mirror: Mirror,
    watermark: Seq,
    /// Links begun with nothing held: how many full scans are fair.
    empty_hellos: u64,
}

pub(crate) struct World {
    random: Random,
    scenario: Scenario,
    clock: Arc<ManualClock>,
    leader: LeaderNode,
    followers: Vec<FollowerNode>,
    histories: Vec<History>,
    is_traced: bool,
    /// Load and faults have stopped.
    is_calm: bool,
    value: u64,
    connects: u64,
}

/// What a run did, to see that runs do something.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) full_scans: u64,
    pub(crate) delta_scans_reconnect: u64,
    pub(crate) delta_scans_overflow: u64,
    pub(crate) records_sent: u64,
    pub(crate) changes: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.full_scans += other.full_scans;
        self.delta_scans_reconnect += other.delta_scans_reconnect;
        self.delta_scans_overflow += other.delta_scans_overflow;
        self.records_sent += other.records_sent;
        self.changes += other.changes;
    }
}

impl World {
    pub(crate) fn new(seed: u64, is_traced: bool) -> Self {
        let mut random = Random::new(seed);
        let scenario = Scenario::new(&mut random);
        if is_traced {
            println!("{scenario:#?}");
        }
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let store_id = Uuid::from_u128(u128::from(seed) + 1);
        let open = || {
            let options = StoreOptions {
                store_id: Some(store_id),
                clock: Arc::clone(&clock) as Arc<dyn Clock>,
                ..StoreOptions::memory(scenario.geometry, scenario.slots)
            };
            Store::open(std::path::Path::new("memory"), options).expect("a store in memory")
        };
        let leader = LeaderNode::new(open(), &scenario);
        let followers = (0..scenario.follower_count)
            .map(|number| FollowerNode::new(number, open(), scenario.geometry.shard_count))
            .collect();
        let mut histories: Vec<_> = leader.store.shards().map(History::new).collect();
        histories.iter_mut().for_each(|history| history.attach(&leader.store));
        Self {
            random,
            scenario,
            clock,
            leader,
            followers,
            histories,
            is_traced,
            is_calm: false,
            value: 0,
            connects: 0,
        }
    }

    pub(crate) fn run(mut self) -> Tally {
        for step in 0..self.scenario.step_count {
            self.step(step);
        }
        self.converge();
        self.assert_equal();
        let totals = &self.leader.links.totals;
        Tally {
            full_scans: totals.full_scans.load(Relaxed),
            delta_scans_reconnect: totals.delta_scans_reconnect.load(Relaxed),
            delta_scans_overflow: totals.delta_scans_overflow.load(Relaxed),
            records_sent: totals.records_sent.load(Relaxed),
            changes: self.leader.store.shards().map(|shard| self.leader.store.head(shard).0).sum(),
        }
    }

    fn trace(&self, what: impl FnOnce() -> String) {
        if self.is_traced {
            println!("{}", what());
        }
    }

    // ---- the hand

    fn step(&mut self, step: usize) {
        if self.random.percent(self.scenario.fault_percent) {
            return self.fault(step);
        }
        if self.random.percent(self.scenario.write_percent) {
            return self.write();
        }
        match self.random.below(100) {
            0..10 => self.connect_one(),
            10..25 => self.turn_leader(),
            25..45 => self.turn_follower(),
            45..60 => self.deliver(),
            60..62 => {
                let ms = *self.random.pick(&[1, 10, 300, 1_000, 2_500]);
                self.pass_time(ms);
            }
            62..90 => self.pump_one(),
            _ => self.pump(),
        }
    }

    fn write(&mut self) {
        for _ in 0..self.random.between(1, 8) {
            let key = self.random.below(self.scenario.key_count) as u64;
            let key = &key.to_be_bytes()[8 - self.random_key_len(key)..];
            self.value += 1;
            let value_len = self.random.below(usize::from(self.scenario.geometry.value_size_max) + 1);
            let value = [self.value.to_le_bytes(); 5].concat();
            let value = &value[..value_len];
            let store = &self.leader.store;
            let result = match self.random.below(10) {
                0..6 => store.put(key, value).map(|_| ()),
                6 => {
                    let in_ms = *self.random.pick(&[1, 500, 100_000]);
                    store.put_expiring(key, value, self.clock.unix_ms() + in_ms).map(|_| ())
                }
                7 | 8 => store.delete(key).map(|_| ()),
                _ => {
                    let shard = store.shard_of(key);
                    store.sweep(shard, slotstream::SlotIndex(0), 64);
                    Ok(())
                }
            };
            match result {
                Ok(()) | Err(WriteError::Full { .. }) => {}
                Err(error) => panic!("write: {error}"),
            }
            for history in &mut self.histories {
                history.record(&self.leader.store);
            }
        }
    }

    /// Keys of several lengths, each key always of the same.
    fn random_key_len(&self, key: u64) -> usize {
        1 + usize::try_from(key % 8).unwrap_or(0)
    }

    fn connect_one(&mut self) {
        let follower = self.random.below(self.followers.len());
        let lane = self.random.below(self.followers[follower].lanes.len());
        self.connect(follower, lane);
    }

    fn connect(&mut self, follower: usize, lane: usize) {
        let now = self.clock.now();
        let node = &mut self.followers[follower];
        if node.lanes[lane].end.is_some() {
            return;
        }
        let Some(seat) = self.leader.registry.pending_seat() else { return };
        self.connects += 1;
        let noise_percent = if self.is_calm { 0 } else { self.scenario.noise_percent };
        let connection = Connection::new(self.scenario.network_bytes, noise_percent);
        let peer = ([127, 0, 0, 1], 1).into();
        let leader_link = leader::Link::new(peer, seat, &self.scenario.leader, now);
        self.leader.ends.push((leader_link, connection.clone()));
        let lane = &mut node.lanes[lane];
        lane.empty_hellos += u64::from(node.store.progress(lane.shard).seq == Seq::ZERO);
        let env = follower::Env { store: &node.store, options: &node.options, links: &node.links, now };
        let link = follower::Link::new(lane.shard, Arc::clone(&lane.cell), env);
        lane.end = Some((link, connection));
    }

    fn turn_leader(&mut self) {
        if !self.leader.ends.is_empty() {
            let at = self.random.below(self.leader.ends.len());
            let budget = *self.random.pick(&[1, 100, 1_000_000]);
            self.leader_turn(at, budget);
        }
    }

    fn turn_follower(&mut self) {
        let follower = self.random.below(self.followers.len());
        let lane = self.random.below(self.followers[follower].lanes.len());
        self.follower_turn(follower, lane);
    }

    fn deliver(&mut self) {
        if !self.leader.ends.is_empty() {
            let at = self.random.below(self.leader.ends.len());
            let is_all = self.random.percent(50);
            self.leader.ends[at].1.deliver(&mut self.random, is_all);
        }
    }

    fn pass_time(&mut self, ms: usize) {
        self.clock.advance(Duration::from_millis(ms as u64));
        let now = self.clock.now();
        let leader = &mut self.leader;
        let env = leader::Env {
            store: &leader.store,
            options: &self.scenario.leader,
            links: &leader.links,
            registry: &leader.registry,
            sleeper: &leader.sleeper,
            now,
        };
        leader.ends.retain_mut(|(link, connection)| {
            let is_alive = link.check_deadlines(env).is_ok();
            if !is_alive {
                connection.cut();
            }
            is_alive
        });
        for node in &mut self.followers {
            let env = follower::Env { store: &node.store, options: &node.options, links: &node.links, now };
            for lane in &mut node.lanes {
                if let Some((link, connection)) = &mut lane.end
                    && link.check_deadlines(env).is_err()
                {
                    connection.cut();
                    lane.end = None;
                }
            }
        }
    }

    /// One follower's lane goes on for a while, with nothing else between.
    fn pump_one(&mut self) {
        let follower = self.random.below(self.followers.len());
        let lane = self.random.below(self.followers[follower].lanes.len());
        self.connect(follower, lane);
        for _ in 0..self.random.between(1, 4) {
            let Some((_, connection)) = &self.followers[follower].lanes[lane].end else { return };
            let connection = connection.clone();
            connection.deliver(&mut self.random, true);
            if let Some(at) = self.leader.ends.iter().position(|(_, other)| other.is_same(&connection)) {
                self.leader_turn(at, 1_000_000);
            }
            connection.deliver(&mut self.random, true);
            self.follower_turn(follower, lane);
        }
    }

    /// Everybody has a turn, and everything is delivered.
    fn pump(&mut self) {
        for at in 0..self.leader.ends.len() {
            self.leader.ends[at].1.deliver(&mut self.random, true);
        }
        for at in (0..self.leader.ends.len()).rev() {
            self.leader_turn(at, 1_000_000);
        }
        for at in 0..self.leader.ends.len() {
            self.leader.ends[at].1.deliver(&mut self.random, true);
        }
        for follower in 0..self.followers.len() {
            for lane in 0..self.followers[follower].lanes.len() {
                self.follower_turn(follower, lane);
            }
        }
    }

    fn fault(&mut self, step: usize) {
        let at =
            if self.leader.ends.is_empty() { None } else { Some(self.random.below(self.leader.ends.len())) };
        match (self.random.below(8), at) {
            (0..3, Some(at)) => {
                self.trace(|| format!("{step}: cut {:?}", self.leader.ends[at].0.shard()));
                self.leader.ends[at].1.cut();
            }
            (3, Some(at)) => {
                self.trace(|| format!("{step}: freeze {:?}", self.leader.ends[at].0.shard()));
                self.leader.ends[at].1.freeze();
            }
            (4, _) => {
                // The follower goes away and may come back before the leader notices.
                let follower = self.random.below(self.followers.len());
                let lane = self.random.below(self.followers[follower].lanes.len());
                if let Some((_, connection)) = self.followers[follower].lanes[lane].end.take() {
                    self.trace(|| format!("{step}: follower {follower} drops lane {lane} without a word"));
                    connection.freeze();
                }
            }
            (5 | 6, _) => {
                let follower = self.random.below(self.followers.len());
                self.trace(|| format!("{step}: restart follower {follower}"));
                self.restart_follower(follower);
            }
            (7, _) => {
                self.trace(|| format!("{step}: restart leader"));
                self.restart_leader();
            }
            _ => {}
        }
    }

    fn restart_follower(&mut self, follower: usize) {
        let node = self.followers.remove(follower);
        let node = node.restart();
        for lane in &node.lanes {
            let found = node.store.progress(lane.shard).seq;
            assert_eq!(found, lane.watermark, "{}: watermark after a restart", node.name);
        }
        self.followers.insert(follower, node);
    }

    fn restart_leader(&mut self) {
        let open =
            || Store::open(std::path::Path::new("memory"), StoreOptions::memory(self.scenario.geometry, 1));
        let spare = LeaderNode::new(open().expect("a store in memory"), &self.scenario);
        let old = std::mem::replace(&mut self.leader, spare);
        for (_, connection) in &old.ends {
            connection.cut();
        }
        drop(old.ends);
        let store = old.store.reopen_in_memory().expect("a leader opens again");
        // The totals go on, so that a run's figures are the whole run's.
        self.leader = LeaderNode { links: old.links, ..LeaderNode::new(store, &self.scenario) };
        for history in &mut self.histories {
            history.attach(&self.leader.store);
        }
    }

    // ---- turns

    fn leader_turn(&mut self, at: usize, budget: usize) {
        let scenario_is_noisy = self.scenario.noise_percent > 0;
        let now = self.clock.now();
        let Self { leader, random, scenario, .. } = self;
        let env = leader::Env {
            store: &leader.store,
            options: &scenario.leader,
            links: &leader.links,
            registry: &leader.registry,
            sleeper: &leader.sleeper,
            now,
        };
        let (link, connection) = &mut leader.ends[at];
        let received = link.receive(&mut connection.end(true, random), env).map(|_| ());
        let result = received.and_then(|()| link.send(&mut connection.end(true, random), budget, env));
        if let Some(since) = link.scan_since() {
            assert_eq!(Some(since), link.seq_sent(), "a scan begins at the last seq sent in order");
        }
        if let Err(error) = result {
            self.trace(|| format!("leader: shard {:?}: {error}", self.leader.ends[at].0.shard()));
            assert!(!error.is_protocol() || scenario_is_noisy, "leader: {error}");
            assert!(
                !matches!(error, leader::LinkError::Refused(_) | leader::LinkError::Slot { .. }),
                "{error}"
            );
            let (_, connection) = self.leader.ends.remove(at);
            connection.cut();
        }
    }

    fn follower_turn(&mut self, follower: usize, lane: usize) {
        let scenario_is_noisy = self.scenario.noise_percent > 0;
        let now = self.clock.now();
        let Self { followers, random, histories, .. } = self;
        let node = &mut followers[follower];
        let lane = &mut node.lanes[lane];
        let Some((link, connection)) = &mut lane.end else { return };
        let env = follower::Env { store: &node.store, options: &node.options, links: &node.links, now };
        let applied_before = node.links.totals.records_applied.load(Relaxed);
        let received = link.receive(&mut connection.end(false, random), env).map(|_| ());
        let result = received.and_then(|()| link.send(&mut connection.end(false, random), env));
        let (watermark, is_streaming) = (link.watermark(), link.is_streaming());
        if let Err(error) = &result {
            let is_fair = scenario_is_noisy || !error.is_protocol();
            assert!(is_fair && !error.is_refusal(), "{}: shard {}: {error}", node.name, lane.shard);
            connection.cut();
            lane.end = None;
        }
        let progress = node.store.progress(lane.shard);
        assert_eq!(progress.seq, watermark, "{}: the store keeps the link's watermark", node.name);
        assert!(watermark >= lane.watermark, "{}: watermark goes back to {watermark}", node.name);
        assert!(!is_streaming || progress.is_consistent(), "{}: streaming inside a scan", node.name);
        if node.links.totals.records_applied.load(Relaxed) > applied_before {
            lane.mirror.assert_no_slot_goes_back(&node.store, lane.shard, &node.name);
        }
        let has_moved = watermark > lane.watermark;
        lane.watermark = watermark;
        if progress.is_consistent() && (has_moved || result.is_err()) {
            let history = &histories[usize::from(lane.shard.0)];
            lane.mirror.assert_prefix(history, &node.store, watermark, &node.name);
        }
    }

    // ---- the end

    fn is_converged(&self) -> bool {
        let is_there = |node: &FollowerNode, lane: &Lane| {
            let head = self.leader.store.head(lane.shard);
            let progress = node.store.progress(lane.shard);
            progress.seq == head
                && progress.is_consistent()
                && lane.cell.phase() == Phase::Stream
                && self.leader.links.acked(lane.shard, head) == self.followers.len()
        };
        self.followers.iter().all(|node| node.lanes.iter().all(|lane| is_there(node, lane)))
    }

    fn converge(&mut self) {
        self.is_calm = true;
        self.leader.ends.iter().for_each(|(_, connection)| connection.be_quiet());
        for _ in 0..ROUNDS_TO_CONVERGE_MAX {
            if self.is_converged() {
                return;
            }
            for follower in 0..self.followers.len() {
                for lane in 0..self.followers[follower].lanes.len() {
                    self.connect(follower, lane);
                }
            }
            self.pump();
            self.pass_time(20);
        }
        for node in &self.followers {
            for lane in &node.lanes {
                println!(
                    "{} shard {}: {:?} {:?}, head {}, acked by {}",
                    node.name,
                    lane.shard,
                    node.store.progress(lane.shard),
                    lane.cell.phase(),
                    self.leader.store.head(lane.shard),
                    self.leader.links.acked(lane.shard, self.leader.store.head(lane.shard)),
                );
            }
        }
        panic!("no convergence within {ROUNDS_TO_CONVERGE_MAX} rounds");
    }

    fn assert_equal(&mut self) {
        self.leader.store.check().unwrap_or_else(|error| panic!("leader: {error}"));
        let now: Now = self.clock.now();
        let mut empty_hellos = 0;
        for node in &mut self.followers {
            node.store.check().unwrap_or_else(|error| panic!("{}: {error}", node.name));
            for lane in &mut node.lanes {
                let history = &self.histories[usize::from(lane.shard.0)];
                let head = self.leader.store.head(lane.shard);
                lane.mirror.assert_prefix(history, &node.store, head, &node.name);
                Mirror::default().assert_prefix(history, &self.leader.store, head, "leader");
                empty_hellos += lane.empty_hellos;
            }
            for key in 0..self.scenario.key_count as u64 {
                let key = &key.to_be_bytes()[8 - (1 + usize::try_from(key % 8).unwrap())..];
                let (wanted, found) = (self.leader.store.get(key).unwrap(), node.store.get(key).unwrap());
                assert_eq!(found, wanted, "{}: key {key:?} at {now:?}", node.name);
            }
        }
        let totals = &self.leader.links.totals;
        let scans = totals.full_scans.load(Relaxed) + totals.delta_scans_reconnect.load(Relaxed);
        assert!(scans <= self.connects, "{scans} scans begun by {} connections", self.connects);
        let full_scans = self.leader.links.totals.full_scans.load(Relaxed);
        assert!(full_scans <= empty_hellos, "{full_scans} full scans for {empty_hellos} empty followers");
    }
}

impl LeaderNode {
    fn new(store: Store, scenario: &Scenario) -> Self {
        let registry = leader::Registry::new(scenario.geometry.shard_count, 1000, 1000);
        Self { store, links: Links::new(), registry, sleeper: Sleeper::new(|| {}), ends: Vec::new() }
    }
}

impl FollowerNode {
    fn new(number: usize, store: Store, shard_count: u16) -> Self {
        store.set_read_only(true);
        let options = follower::Options {
            follower_id: Uuid::from_u128(number as u128 + 1),
            receive_buffer_bytes: 72 * 1024,
            ..follower::Options::default()
        };
        let lane = |shard| Lane {
            shard: ShardIndex(shard),
            end: None,
            cell: LinkCell::new(options.follower_id, ([127, 0, 0, 1], 2).into(), 0, shard),
            mirror: Mirror::default(),
            watermark: Seq::ZERO,
            empty_hellos: 0,
        };
        let lanes = (0..shard_count).map(lane).collect();
        Self { name: format!("follower {number}"), store, links: Links::new(), options, lanes }
    }

    fn restart(mut self) -> Self {
        for lane in &mut self.lanes {
            if let Some((_, connection)) = lane.end.take() {
                connection.cut();
            }
        }
        self.store = self.store.reopen_in_memory().expect("a follower opens again");
        self.store.set_read_only(true);
        self
    }
}
