//! The simulated world: some nodes, the network between them, and one random hand.
//!
//! [`World::run`] lets the hand act for a while (writes, parts of sends and receives, lost connections,
//! restarts, roles that change, copies that are restored, time), then stops writing and breaking things,
//! lets one node lead all others, and asserts that everything converges. Invariants are checked along the
//! way, after every receive of a follower.

mod claims;
mod faults;
mod holding;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use slotstream::chance::Chance;
use slotstream::clock::{Clock, ManualClock};
use slotstream::links::Phase;
use slotstream::store::{Options as StoreOptions, Step, WriteError};
use slotstream::wire::RefuseCode;
use slotstream::{Seq, ShardIndex, Store, follower, leader};
use uuid::Uuid;

use crate::history::{Held, Histories, Mirror, Recorder};
use crate::network::{Connection, Welcomed};
use crate::nodes::{Dropped, Node, Role};
use crate::random::Random;
use crate::scenario::{Scenario, SeededChance, Tally};
use holding::Holding;

const ROUNDS_TO_CONVERGE_MAX: usize = 3_000;

/// A copy of a node's directory.
struct Backup {
    node: usize,
    store: Store,
    is_leader: bool,
    held: Held,
    dropped: Dropped,
    epochs: Vec<u64>,
}

pub(crate) struct World {
    random: Random,
    scenario: Scenario,
    nodes: Vec<Node>,
    histories: Histories,
    backup: Option<Backup>,
    is_traced: bool,
    /// Load and faults have stopped.
    is_calm: bool,
    /// A leader has forgotten what it was.
    is_long_lived: bool,
    value: u64,
    connects: u64,
    /// Links begun with nothing held, or nothing shared: how many full scans are fair.
    empty_hellos: u64,
    tally: Tally,
}

impl World {
    pub(crate) fn new(seed: u64, is_traced: bool) -> Self {
        let mut random = Random::new(seed);
        let scenario = Scenario::new(&mut random);
        if is_traced {
            println!("{scenario:#?}");
        }
        let store_id = Uuid::from_u128(u128::from(seed) + 1);
        let chance: Arc<dyn Chance> = Arc::new(SeededChance::new(Random::new(seed ^ 0x7E53)));
        let mut histories = Histories::default();
        let mut node = |number| {
            let clock =
                Arc::new(ManualClock::new(1_700_000_000_000 + random.below(scenario.skew_ms + 1) as u64));
            let options = StoreOptions {
                store_id: Some(store_id),
                clock: Arc::clone(&clock) as Arc<dyn Clock>,
                chance: Arc::clone(&chance),
                ..StoreOptions::memory(scenario.geometry, scenario.slots)
            };
            let store = Store::open(std::path::Path::new("memory"), options).expect("a store in memory");
            let mut node = Node::new(number, store, clock);
            node.options.rewind_slots_max = scenario.rewind_slots_max;
            node
        };
        let mut nodes: Vec<_> = (0..scenario.node_count).map(&mut node).collect();
        nodes[0].lead(&mut histories, |_| {});
        nodes[1..].iter_mut().for_each(|node| node.follow(0));
        Self {
            random,
            scenario,
            nodes,
            histories,
            backup: None,
            is_traced,
            is_calm: false,
            is_long_lived: false,
            value: 0,
            connects: 0,
            empty_hellos: 0,
            tally: Tally::default(),
        }
    }

    pub(crate) fn run(mut self) -> Tally {
        for step in 0..self.scenario.step_count {
            self.step(step);
        }
        self.converge();
        self.assert_equal();
        self.tally
    }

    fn trace(&self, what: impl FnOnce() -> String) {
        if self.is_traced {
            println!("{}", what());
        }
    }

    fn leaders(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].is_leader()).collect()
    }

    fn a_leader(&mut self) -> usize {
        let leaders = self.leaders();
        *self.random.pick(&leaders)
    }

    /// A follower and one of its lanes, if there is a follower.
    fn a_lane(&mut self) -> Option<(usize, usize)> {
        let followers: Vec<_> = (0..self.nodes.len()).filter(|node| !self.nodes[*node].is_leader()).collect();
        if followers.is_empty() {
            return None;
        }
        let node = *self.random.pick(&followers);
        Some((node, self.random.below(usize::from(self.scenario.geometry.shard_count))))
    }

    // ---- the hand

    fn step(&mut self, step: usize) {
        if self.random.percent(self.scenario.fault_percent) {
            if self.random.percent(self.scenario.power_percent) {
                return self.cut_power(step);
            }
            if self.random.percent(self.scenario.role_percent) {
                return self.change_roles(step);
            }
            return self.fault(step);
        }
        if self.random.percent(self.scenario.write_percent) {
            return self.write();
        }
        match self.random.below(100) {
            0..10 => {
                if let Some((node, lane)) = self.a_lane() {
                    self.connect(node, lane);
                }
            }
            10..25 => {
                let node = self.a_leader();
                let end_count = self.nodes[node].leading().map_or(0, |leading| leading.ends.len());
                if end_count > 0 {
                    let at = self.random.below(end_count);
                    let budget = *self.random.pick(&[1, 100, 1_000_000]);
                    self.leader_turn(node, at, budget);
                }
            }
            25..45 => {
                if let Some((node, lane)) = self.a_lane() {
                    self.follower_turn(node, lane);
                }
            }
            45..60 => {
                let is_all = self.random.percent(50);
                if let Some(connection) = self.a_connection() {
                    connection.deliver(&mut self.random, is_all);
                }
            }
            60..62 => {
                let ms = *self.random.pick(&[1, 10, 300, 1_000, 2_500]);
                self.pass_time(ms);
            }
            62..90 => self.pump_one(),
            _ => self.pump(),
        }
    }

    fn a_connection(&mut self) -> Option<Connection> {
        let node = self.a_leader();
        let leading = self.nodes[node].leading()?;
        if leading.ends.is_empty() {
            return None;
        }
        Some(leading.ends[self.random.below(leading.ends.len())].1.clone())
    }

    fn write(&mut self) {
        let node = self.a_leader();
        self.write_to(node);
    }

    fn write_to(&mut self, node: usize) {
        for _ in 0..self.random.between(1, 8) {
            let key = self.random.below(self.scenario.key_count) as u64;
            let key = &key_bytes(key);
            self.value += 1;
            let value_len = self.random.below(usize::from(self.scenario.geometry.value_size_max) + 1);
            let value = [self.value.to_le_bytes(); 5].concat();
            let value = &value[..value_len];
            let Node { store, role, links, clock, .. } = &mut self.nodes[node];
            let heads = |store: &Store| store.shards().map(|shard| store.head(shard).0).sum::<u64>();
            let heads_before = heads(store);
            let result = match self.random.below(10) {
                0..6 => store.put(key, value).map(|_| ()),
                6 => {
                    let in_ms = *self.random.pick(&[1, 500, 100_000]);
                    store.put_expiring(key, value, clock.unix_ms() + in_ms).map(|_| ())
                }
                7 | 8 => store.delete(key).map(|_| ()),
                _ => {
                    let shard = store.shard_of(key);
                    store.sweep(shard, slotstream::SlotIndex(0), 64);
                    Ok(())
                }
            };
            match result {
                Ok(()) => {}
                Err(WriteError::ReadOnly) => {
                    assert!(links.superseded_by_epoch().is_some(), "a leader takes writes");
                }
                Err(WriteError::Regaining) => assert!(store.is_regaining(), "a leader takes writes"),
                Err(WriteError::Full { .. }) => {}
                Err(error) => panic!("write: {error}"),
            }
            let has_written = heads(store) > heads_before;
            assert!(
                !has_written || links.superseded_by_epoch().is_none(),
                "a leader that was replaced writes"
            );
            if let Role::Leader(leading) = role {
                leading.recorder.record(&mut self.histories, store);
            }
        }
    }

    fn connect(&mut self, node: usize, lane: usize) {
        let Role::Follower { leader: target, lanes } = &self.nodes[node].role else { return };
        let (target, shard) = (*target, lanes[lane].shard);
        if lanes[lane].end.is_some() || target == node {
            return;
        }
        let is_given_up = lanes[lane].is_given_up;
        let noise_percent = if self.is_calm { 0 } else { self.scenario.noise_percent };
        let held = self.nodes[node].store.progress(shard).seq;
        // A handshake brings 128 terms each way, and has a deadline.
        let bytes = if self.is_long_lived {
            self.scenario.network_bytes.max(200)
        } else {
            self.scenario.network_bytes
        };
        let connection = Connection::new(node, held, bytes, noise_percent);
        let shared = match is_given_up {
            true => Seq::ZERO,
            false => self.histories.shared(&self.nodes[node].store, &self.nodes[target].store, shard),
        };
        let leader_now = self.nodes[target].now();
        let Some(leading) = self.nodes[target].leading() else { return };
        let Some(seat) = leading.registry.pending_seat() else { return };
        let peer = ([127, 0, 0, 1], 1).into();
        let leader_link = leader::Link::new(peer, seat, &self.scenario.leader, leader_now);
        leading.ends.push((leader_link, connection.clone()));
        self.connects += 1;
        let now = self.nodes[node].now();
        let Node { store, options, links, role, .. } = &mut self.nodes[node];
        let Role::Follower { lanes, .. } = role else { return };
        self.empty_hellos += u64::from(store.progress(shard).seq.min(shared) == Seq::ZERO);
        let env = follower::Env { store, options, links, now };
        let begin = if is_given_up { follower::Link::giving_up } else { follower::Link::new };
        let link = begin(shard, Arc::clone(&lanes[lane].cell), env);
        (lanes[lane].end, lanes[lane].shared) = (Some((link, connection)), shared);
    }

    fn pass_time(&mut self, ms: usize) {
        for node in &mut self.nodes {
            node.advance(Duration::from_millis(ms as u64));
            let now = node.now();
            let Node { store, options, links, role, .. } = node;
            match role {
                Role::Leader(leading) => {
                    let env = leader::Env {
                        store,
                        options: &self.scenario.leader,
                        links,
                        registry: &leading.registry,
                        sleeper: &leading.sleeper,
                        now,
                    };
                    leading.ends.retain_mut(|(link, connection)| {
                        let is_alive = link.check_deadlines(env).is_ok();
                        if !is_alive {
                            connection.cut();
                        }
                        is_alive
                    });
                }
                Role::Follower { lanes, .. } => {
                    let env = follower::Env { store, options, links, now };
                    for lane in lanes {
                        if let Some((link, connection)) = &mut lane.end
                            && link.check_deadlines(env).is_err()
                        {
                            connection.cut();
                            lane.end = None;
                        }
                    }
                }
            }
        }
        self.pass_regaining();
        self.assert_lags();
    }

    /// One follower's lane goes on for a while, with nothing else between.
    fn pump_one(&mut self) {
        let Some((node, lane)) = self.a_lane() else { return };
        self.connect(node, lane);
        for _ in 0..self.random.between(1, 4) {
            let Role::Follower { leader, lanes } = &self.nodes[node].role else { return };
            let (leader, Some((_, connection))) = (*leader, &lanes[lane].end) else { return };
            let connection = connection.clone();
            connection.deliver(&mut self.random, true);
            let ends = self.nodes[leader].leading().map(|leading| &leading.ends);
            let at = ends.and_then(|ends| ends.iter().position(|(_, other)| other.is_same(&connection)));
            if let Some(at) = at {
                self.leader_turn(leader, at, 1_000_000);
            }
            connection.deliver(&mut self.random, true);
            self.follower_turn(node, lane);
        }
    }

    fn deliver_all(&mut self) {
        for node in &mut self.nodes {
            if let Role::Leader(leading) = &mut node.role {
                leading.ends.iter().for_each(|(_, connection)| connection.deliver(&mut self.random, true));
            }
        }
    }

    /// Everybody has a turn, and everything is delivered.
    fn pump(&mut self) {
        self.deliver_all();
        for node in 0..self.nodes.len() {
            let end_count = self.nodes[node].leading().map_or(0, |leading| leading.ends.len());
            for at in (0..end_count).rev() {
                self.leader_turn(node, at, 1_000_000);
            }
        }
        self.deliver_all();
        for node in 0..self.nodes.len() {
            for lane in 0..self.nodes[node].lanes().len() {
                self.follower_turn(node, lane);
            }
        }
    }

    // ---- roles

    fn change_roles(&mut self, step: usize) {
        match self.random.below(9) {
            0..3 => {
                let node = self.random.below(self.nodes.len());
                if !self.nodes[node].is_leader() && self.nodes[node].store.check_promote().is_ok() {
                    self.trace(|| format!("{step}: promote node {node}"));
                    self.nodes[node].store.check().unwrap_or_else(|error| panic!("node {node}: {error}"));
                    self.nodes[node].lead(&mut self.histories, |store| store.promote().unwrap());
                    self.tally.promotions += 1;
                }
            }
            3 => {
                let (node, leader) = (self.a_leader(), self.a_leader());
                if node != leader {
                    self.trace(|| format!("{step}: leader {node} follows {leader}"));
                    self.end_regain(node);
                    self.nodes[node].follow(leader);
                }
            }
            4 | 5 => {
                if let Some((node, _)) = self.a_lane() {
                    let leader = self.a_leader();
                    self.trace(|| format!("{step}: node {node} follows {leader}"));
                    self.nodes[node].follow(leader);
                }
            }
            6 => {
                let number = self.random.below(self.nodes.len());
                self.trace(|| format!("{step}: copy node {number}"));
                let node = &self.nodes[number];
                if node.store.is_regaining() {
                    return;
                }
                self.backup = Some(Backup {
                    node: number,
                    is_leader: node.is_leader(),
                    held: Recorder::before(&self.histories, &node.store),
                    store: node.store.copy_in_memory().expect("a copy"),
                    dropped: node.dropped.clone(),
                    epochs: node.epochs.clone(),
                });
            }
            7 => self.restore(step),
            _ => self.live_long(step),
        }
    }

    // ---- turns

    fn leader_turn(&mut self, node: usize, at: usize, budget: usize) {
        let is_noisy = self.scenario.noise_percent > 0;
        let now = self.nodes[node].now();
        let Self { nodes, random, scenario, .. } = self;
        let Node { store, links, role, .. } = &mut nodes[node];
        let Role::Leader(leading) = role else { return };
        let env = leader::Env {
            store,
            options: &scenario.leader,
            links,
            registry: &leading.registry,
            sleeper: &leading.sleeper,
            now,
        };
        let (link, connection) = &mut leading.ends[at];
        let received = link.receive(&mut connection.end(true, random), env).map(|_| ());
        // Nothing is written meanwhile, so the head is what a Welcome says.
        let result = received.and_then(|()| link.send(&mut connection.end(true, random), budget, env));
        if let (Some(_), Some(shard)) = (link.seq_sent(), link.shard().map(ShardIndex)) {
            connection.welcome(|| Welcomed {
                head: store.head(shard),
                epoch: store.epoch_seen(shard),
                lineage: store.lineage(shard),
            });
        }
        if let (Some(through), Some(shard)) = (link.given_back(), link.shard())
            && let Some(lost) = &mut leading.lost
        {
            let wanted = &mut lost.wanted[usize::from(shard)];
            *wanted = (*wanted).max(through);
        }
        if let Some(since) = link.scan_since() {
            assert_eq!(Some(since), link.seq_sent(), "a scan begins at the last seq sent in order");
        }
        if let Err(error) = result {
            let (_, connection) = leading.ends.remove(at);
            if self.is_calm && matches!(error, leader::LinkError::Refused(_)) {
                // A close in order loses nothing.
                connection.deliver(random, true);
            }
            connection.cut();
            self.trace(|| format!("leader {node}: {error}"));
            let is_fair = match &error {
                leader::LinkError::Refused(refuse) => is_fair_refusal(refuse.code, self.is_long_lived),
                leader::LinkError::Slot { .. } => false,
                error => is_noisy || !error.is_protocol(),
            };
            assert!(is_fair, "leader {node}: {error}");
        }
        self.assert_counts(node);
    }

    fn follower_turn(&mut self, number: usize, lane: usize) {
        let is_noisy = self.scenario.noise_percent > 0;
        let node = &mut self.nodes[number];
        let (now, shard) = (node.now(), ShardIndex(u16::try_from(lane).unwrap()));
        let is_greeted = matches!(node.lanes()[lane].cell.phase(), Phase::Handshake | Phase::Queued);
        // A rewind may be noted in any turn before the scan.
        let is_settled = matches!(node.lanes()[lane].cell.phase(), Phase::CatchUp | Phase::Stream);
        let before = if is_settled { Vec::new() } else { node.slots(shard) };
        let noted_before = node.noted_fork(shard);
        let held = Holding::of(&node.store, shard);
        let Node { store, options, links, role, name, .. } = node;
        let Role::Follower { lanes, .. } = role else { return };
        let lane = &mut lanes[lane];
        let Some((link, connection)) = &mut lane.end else { return };
        let env = follower::Env { store, options, links, now };
        let applied_before = links.totals.records_applied.load(Relaxed);
        let heard_before = links.totals.heartbeats_received.load(Relaxed);
        let received = link.receive(&mut connection.end(false, &mut self.random), env).map(|_| ());
        let result = received.and_then(|()| link.send(&mut connection.end(false, &mut self.random), env));
        let (watermark, is_streaming) = (link.watermark(), link.is_streaming());
        connection.hold(watermark);
        if links.totals.heartbeats_received.load(Relaxed) > heard_before {
            lane.heard_at = Some(now.monotonic);
        }
        let is_emptied = connection.welcomed().is_some_and(|leader| held.is_emptied(&leader));
        let mut is_given_up = false;
        if let Err(error) = &result {
            let is_fair = match error {
                follower::LinkError::Refused(refuse) => is_fair_refusal(refuse.code, self.is_long_lived),
                follower::LinkError::OldEpoch { .. } => true,
                follower::LinkError::EmptiedStore { .. } => is_emptied,
                error => !error.is_refusal() && (is_noisy || !error.is_protocol()),
            };
            assert!(is_fair, "{name}: shard {shard}: {error}");
            connection.cut();
            lane.end = None;
            is_given_up = follower::is_given_up(error, env);
            lane.is_given_up = is_given_up;
            if error.is_unrelated() && self.is_calm && self.is_long_lived {
                options.accept_store = Some(store.store_id());
            }
        }
        let progress = store.progress(shard);
        assert_eq!(progress.seq, watermark, "{name}: the store keeps the link's watermark");
        let fork = match progress.step {
            Step::Rewind { fork, .. } if Some(fork) != noted_before => Some(fork),
            _ => None,
        };
        let may_go_back = is_greeted || fork.is_some();
        assert!(watermark >= lane.watermark || may_go_back, "{name}: watermark goes back to {watermark}");
        assert!(!is_streaming || progress.is_consistent(), "{name}: streaming inside a scan");
        let has_moved = watermark > lane.watermark;
        lane.watermark = watermark;
        if self.is_traced && (is_greeted || result.is_err()) {
            println!("{name} shard {shard}: {progress:?} {:?}", result.as_ref().err());
        }
        if matches!(progress.step, Step::Rewind { .. }) {
            lane.mirror.forget_slots();
        } else if links.totals.records_applied.load(Relaxed) > applied_before {
            lane.mirror.assert_no_slot_goes_back(store, shard, name);
        }
        if progress.is_consistent() && (has_moved || result.is_err()) {
            lane.mirror.assert_prefix(&self.histories, store, shard, watermark, name);
        }
        node.assert_epochs_rise();
        if is_greeted && is_emptied && node.options.accept_store.is_none() {
            assert_eq!(node.noted_fork(shard), noted_before, "{}: shard {shard} is emptied", node.name);
        }
        self.tally.given_up += u64::from(is_given_up);
        if let Some(fork) = fork {
            self.note_dropped(number, shard, fork, noted_before.unwrap_or(Seq::MAX), &before);
        }
    }

    /// What a rewind that has just begun drops: all that its leader does not share, and nothing else.
    fn note_dropped(
        &mut self,
        number: usize,
        shard: ShardIndex,
        fork: Seq,
        noted: Seq,
        before: &[(u32, Seq)],
    ) {
        let node = &mut self.nodes[number];
        let shared = node.lanes()[usize::from(shard.0)].shared;
        assert_eq!(fork, shared, "{}: fork of shard {shard}, and what is shared", node.name);
        for (slot, seq) in before.iter().filter(|(_, seq)| *seq > fork && *seq <= noted) {
            *node.dropped.entry((shard.0, *slot, seq.0)).or_default() += 1;
        }
    }

    // ---- the end

    /// One leads all others, in an epoch that nobody has seen a newer one than.
    fn agree_on_a_leader(&mut self) -> usize {
        let epoch_of = |node: &Node| {
            node.store.shards().map(|shard| node.store.epoch_seen(shard)).max().unwrap_or_default()
        };
        let epoch = self.nodes.iter().map(epoch_of).max().unwrap_or_default();
        let leaders = self.leaders();
        let leader = leaders.into_iter().max_by_key(|node| epoch_of(&self.nodes[*node])).unwrap();
        let store = &self.nodes[leader].store;
        let is_behind = store.shards().any(|shard| store.epoch_seen(shard) < epoch);
        // Nobody gives data up for a leader that shares nothing of it, unless that is promoted.
        // What a leader sent before a power cut may still be on its way to a follower.
        let is_cut = self.scenario.power_percent > 0;
        let is_held = |shard| is_cut || self.nodes.iter().any(|node| node.store.extent(shard).1 > 0);
        // Who was set back to nothing once, or followed one that was, shares nothing from before.
        let begins_anew =
            |node: &Node, shard| node.store.lineage(shard).iter().skip(1).any(|term| term.first_seq == 1);
        let is_new =
            |shard| store.head(shard) == Seq::ZERO || self.nodes.iter().any(|node| begins_anew(node, shard));
        let is_empty = store.shards().any(|shard| is_new(shard) && is_held(shard));
        if is_empty || is_behind || store.is_read_only() {
            self.nodes[leader].lead(&mut self.histories, |store| store.lead_past(epoch).unwrap());
        }
        for node in (0..self.nodes.len()).filter(|node| *node != leader) {
            let is_there =
                matches!(self.nodes[node].role, Role::Follower { leader: target, .. } if target == leader);
            if !is_there {
                self.nodes[node].follow(leader);
            }
        }
        leader
    }

    fn is_converged(&self, leader: usize) -> bool {
        let Node { store, links, .. } = &self.nodes[leader];
        self.nodes.iter().all(|node| match &node.role {
            Role::Leader(_) => true,
            Role::Follower { lanes, .. } => lanes.iter().all(|lane| {
                let head = store.head(lane.shard);
                let progress = node.store.progress(lane.shard);
                progress.seq == head
                    && progress.is_consistent()
                    && lane.cell.phase() == Phase::Stream
                    && links.acked(lane.shard, head) == self.nodes.len() - 1
            }),
        })
    }

    fn converge(&mut self) {
        self.is_calm = true;
        (0..self.nodes.len()).for_each(|node| self.end_regain(node));
        let leader = self.agree_on_a_leader();
        self.trace(|| format!("node {leader} leads all"));
        if let Some(leading) = self.nodes[leader].leading() {
            leading.ends.iter().for_each(|(_, connection)| connection.be_quiet());
        }
        for _ in 0..ROUNDS_TO_CONVERGE_MAX {
            if self.is_converged(leader) {
                return;
            }
            for node in 0..self.nodes.len() {
                for lane in 0..self.nodes[node].lanes().len() {
                    self.connect(node, lane);
                }
            }
            self.pump();
            self.pass_time(20);
        }
        for node in &self.nodes {
            for shard in node.store.shards() {
                let (progress, lineage) = (node.store.progress(shard), node.store.lineage(shard));
                println!("{} shard {shard}: {progress:?} {lineage:?} {}", node.name, node.store.head(shard));
            }
        }
        panic!("no convergence within {ROUNDS_TO_CONVERGE_MAX} rounds");
    }

    fn assert_equal(&mut self) {
        let leader = self.leaders()[0];
        let heads: Vec<_> = {
            let store = &self.nodes[leader].store;
            store.shards().map(|shard| store.head(shard)).collect()
        };
        for node in &mut self.nodes {
            node.store.check().unwrap_or_else(|error| panic!("{}: {error}", node.name));
            node.assert_reports();
            for (shard, head) in node.store.shards().zip(&heads) {
                let name = node.name.clone();
                assert_eq!(node.store.head(shard), *head, "{name}: head of shard {shard}");
                Mirror::default().assert_prefix(&self.histories, &node.store, shard, *head, &name);
            }
            let totals = &node.links.totals;
            self.tally.full_scans += totals.full_scans.load(Relaxed);
            self.tally.delta_scans_reconnect += totals.delta_scans_reconnect.load(Relaxed);
            self.tally.delta_scans_overflow += totals.delta_scans_overflow.load(Relaxed);
            self.tally.records_sent += totals.records_sent.load(Relaxed);
            self.tally.scans_resumed += totals.scans_resumed.load(Relaxed);
            self.tally.slots_regained += totals.slots_regained.load(Relaxed);
            self.tally.rewinds += totals.rewinds.load(Relaxed);
            self.tally.writes_dropped += totals.writes_dropped.load(Relaxed);
        }
        if self.scenario.skew_ms == 0 {
            for key in (0..self.scenario.key_count as u64).map(key_bytes) {
                let wanted = self.nodes[leader].store.get(&key).unwrap();
                for node in &self.nodes {
                    assert_eq!(node.store.get(&key).unwrap(), wanted, "{}: key {key:?}", node.name);
                }
            }
        }
        let Tally { full_scans, delta_scans_reconnect, .. } = self.tally;
        let scans = full_scans + delta_scans_reconnect;
        assert!(scans <= self.connects, "{scans} scans begun by {} connections", self.connects);
        let empty_hellos = self.empty_hellos;
        assert!(full_scans <= empty_hellos, "{full_scans} full scans for {empty_hellos} empty followers");
    }
}

fn is_fair_refusal(code: RefuseCode, is_long_lived: bool) -> bool {
    match code {
        RefuseCode::OldEpoch | RefuseCode::NotLeader | RefuseCode::Regaining => true,
        RefuseCode::Forgotten | RefuseCode::FollowerAhead => is_long_lived,
        _ => false,
    }
}

/// Keys of several lengths, each key always of the same.
fn key_bytes(key: u64) -> Vec<u8> {
    key.to_be_bytes()[7 - usize::try_from(key % 8).unwrap_or(0)..].to_vec()
}
