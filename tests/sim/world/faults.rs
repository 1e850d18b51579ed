//! What goes wrong: connections that end or hang, restarts, and power cuts. Of a leader, with what is lost
//! in them, who gives it back, and what the new term must hold; of a follower, which begins anew.

use slotstream::slot::lineage;
use slotstream::{Seq, ShardIndex, leader};

use super::World;
use crate::nodes::{Node, Role};

/// Terms that a lineage holds.
const TERMS_REMEMBERED: usize = 128;
/// A narrow connection takes many rounds for a batch.
const ROUNDS_TO_REGAIN_MAX: usize = 3_000;

impl World {
    pub(super) fn fault(&mut self, step: usize) {
        match self.random.below(8) {
            0..3 => {
                if let Some(connection) = self.a_connection() {
                    self.trace(|| format!("{step}: cut a connection"));
                    connection.cut();
                }
            }
            3 => {
                if let Some(connection) = self.a_connection() {
                    self.trace(|| format!("{step}: freeze a connection"));
                    connection.freeze();
                }
            }
            4 => {
                // The follower goes away and may come back before the leader notices.
                if let Some((node, lane)) = self.a_lane()
                    && let Some((_, connection)) = self.nodes[node].lanes()[lane].end.take()
                {
                    self.trace(|| format!("{step}: node {node} drops lane {lane} without a word"));
                    connection.freeze();
                }
            }
            _ => {
                let node = self.random.below(self.nodes.len());
                self.trace(|| format!("{step}: restart node {node}"));
                self.restart(node);
            }
        }
    }

    fn restart(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        let is_orderly = self.random.percent(20);
        node.restart(&mut self.histories, is_orderly);
        let Node { store, role, name, .. } = node;
        if let Role::Follower { lanes, .. } = role {
            for lane in lanes {
                let found = store.progress(lane.shard).seq;
                assert_eq!(found, lane.watermark, "{name}: watermark after a restart");
            }
        }
    }

    /// A node starts again with an older copy of its directory.
    pub(super) fn restore(&mut self, step: usize) {
        let Some(backup) = &self.backup else { return };
        let node = &mut self.nodes[backup.node];
        if node.is_leader() != backup.is_leader {
            return;
        }
        let copy = backup.store.copy_in_memory().expect("a copy");
        node.cut();
        (node.dropped, node.epochs) = (backup.dropped.clone(), backup.epochs.clone());
        let leader = match node.role {
            Role::Leader(_) => None,
            Role::Follower { leader, .. } => Some(leader),
        };
        match leader {
            None => {
                node.lead_from(&mut self.histories, backup.held.clone(), |store| *store = copy);
            }
            Some(leader) => {
                node.store = copy;
                node.store.keep_disks();
                node.follow(leader);
            }
        }
        let number = backup.node;
        self.tally.restored += 1;
        self.trace(|| format!("{step}: restore node {number} from its copy"));
    }

    /// A leader goes through so many terms that it remembers none of before.
    pub(super) fn live_long(&mut self, step: usize) {
        let number = self.a_leader();
        if self.is_long_lived || self.nodes[number].store.is_regaining() {
            return;
        }
        self.is_long_lived = true;
        self.trace(|| format!("{step}: node {number} lives through many terms"));
        for _ in 0..TERMS_REMEMBERED + 1 {
            self.nodes[number].lead(&mut self.histories, |store| store.lead_past(0).unwrap());
            self.write_to(number);
        }
    }

    /// A machine loses power, and starts again. After a leader's sometimes nothing goes wrong from there on: then
    /// all that its followers have comes back.
    pub(super) fn cut_power(&mut self, step: usize) {
        let followers = self.nodes.iter().filter(|node| !node.is_leader()).count();
        let number = if followers > 0 && self.random.percent(40) {
            let at = self.random.below(followers);
            (0..self.nodes.len()).filter(|node| !self.nodes[*node].is_leader()).nth(at).unwrap()
        } else {
            self.a_leader()
        };
        self.trace(|| format!("{step}: node {number} loses power"));
        let percent = *self.random.pick(&[0, 20, 50, 80]);
        let random = &mut self.random;
        if !self.nodes[number].is_leader() {
            self.nodes[number].lose_power_following(|| random.percent(percent));
            self.tally.follower_power_cuts += 1;
            return;
        }
        self.tally.power_cuts += 1;
        self.nodes[number].lose_power(&mut self.histories, || random.percent(percent));
        if self.random.percent(50) || self.scenario.noise_percent > 0 {
            return;
        }
        let owed = self.owed(number);
        let mut cuts_left = *self.random.pick(&[0, 1, 5]);
        for _ in 0..ROUNDS_TO_REGAIN_MAX {
            let store = &self.nodes[number].store;
            if owed.iter().all(|(shard, seq)| store.tail(*shard).is_none_or(|tail| tail >= *seq)) {
                break;
            }
            for node in 0..self.nodes.len() {
                for lane in 0..self.nodes[node].lanes().len() {
                    self.connect(node, lane);
                }
            }
            self.pump();
            // What came back before counts: each link goes on behind it.
            if cuts_left > 0
                && self.random.percent(20)
                && let Some(connection) = self.a_connection()
            {
                self.trace(|| format!("{step}: cut a connection while slots are given back"));
                connection.cut();
                cuts_left -= 1;
            }
        }
        self.pass_time(1);
        for (shard, seq) in owed {
            let store = &self.nodes[number].store;
            let through = store.tail(shard).unwrap_or_else(|| store.head(shard));
            assert!(
                through >= seq,
                "node {number}: shard {shard} got back all up to {through}, wanted {seq}"
            );
        }
    }

    /// What followers of a leader that has lost its power can give back.
    fn owed(&self, number: usize) -> Vec<(ShardIndex, Seq)> {
        let target = &self.nodes[number];
        let mut owed = Vec::new();
        for node in &self.nodes {
            let Role::Follower { leader, .. } = node.role else { continue };
            if leader != number || !target.store.is_regaining() || self.scenario.leader.regain_wait.is_zero()
            {
                continue;
            }
            for shard in node.store.shards() {
                let (ours, theirs) = (target.store.lineage(shard), node.store.lineage(shard));
                if !theirs.iter().any(|term| lineage::knows(&ours, term)) {
                    continue;
                }
                let is_whole = !node.store.is_astray(shard)
                    && node.store.epoch_seen(shard) <= target.store.epoch_seen(shard)
                    && self.histories.shared(&node.store, &target.store, shard) == node.store.head(shard);
                if is_whole {
                    owed.push((shard, node.store.progress(shard).seq));
                }
            }
        }
        owed
    }

    /// Leaders whose wait for what they lost is over take their new terms.
    pub(super) fn pass_regaining(&mut self) {
        for number in 0..self.nodes.len() {
            let now = self.nodes[number].now();
            let Node { store, role, links, .. } = &mut self.nodes[number];
            let Role::Leader(leading) = role else { continue };
            if leading.lost.is_none() {
                continue;
            }
            let env = leader::Env {
                store,
                options: &self.scenario.leader,
                links,
                registry: &leading.registry,
                sleeper: &leading.sleeper,
                now,
            };
            leader::regain::pass(env);
            if !store.is_regaining() {
                self.has_regained(number);
            }
        }
    }

    /// Ends a leader's wait, whoever was to come.
    pub(super) fn end_regain(&mut self, number: usize) {
        let Node { store, links, .. } = &self.nodes[number];
        if store.is_regaining() {
            store.end_regain().unwrap();
            store.set_read_only(links.superseded_by_epoch().is_some());
            self.has_regained(number);
        }
    }

    fn has_regained(&mut self, number: usize) {
        self.trace(|| format!("node {number} leads again"));
        self.nodes[number].has_regained(&mut self.histories);
        let store = &self.nodes[number].store;
        if store.shards().any(|shard| store.lineage(shard).last().unwrap().first_seq == 1) {
            // Nothing is shared with whom waits on a link, be the follower still there or not.
            let waiting = self.nodes[number].leading().map_or(0, |leading| leading.ends.len());
            self.empty_hellos += waiting as u64;
        }
        let leading = self.nodes[number].leading();
        let ends: Vec<_> = leading.map_or_else(Vec::new, |leading| {
            leading.ends.iter().map(|(_, connection)| connection.clone()).collect()
        });
        // Links that waited for this are answered now.
        for node in 0..self.nodes.len() {
            let shared: Vec<_> = match &self.nodes[node].role {
                Role::Follower { leader, lanes } if *leader == number => {
                    let (held, other) = (&self.nodes[node].store, &self.nodes[number].store);
                    lanes.iter().map(|lane| self.histories.shared(held, other, lane.shard)).collect()
                }
                _ => continue,
            };
            for (lane, shared) in self.nodes[node].lanes().iter_mut().zip(shared) {
                // What came before the crash on a link that ended with it is still to be read.
                if lane.end.as_ref().is_some_and(|(_, end)| ends.iter().any(|other| other.is_same(end))) {
                    lane.shared = shared;
                }
            }
        }
    }
}
