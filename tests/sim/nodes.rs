//! A node of the simulated world: a store, and the ends of its links as a leader or as a follower.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use slotstream::clock::{Clock as _, ManualClock};
use slotstream::links::{LinkCell, Links};
use slotstream::store::{Sleeper, Step};
use slotstream::{Seq, ShardIndex, SlotIndex, Store, follower, leader};
use uuid::Uuid;

use crate::history::{Held, Histories, Mirror, Recorder};
use crate::network::Connection;

/// What writes were dropped, by shard, slot and seq: how often, and which image.
pub(crate) type Dropped = BTreeMap<(u16, u32, u64), u64>;

pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) links: Arc<Links>,
    pub(crate) role: Role,
    pub(crate) options: follower::Options,
    /// What its reports must hold.
    pub(crate) dropped: Dropped,
    /// Each shard's newest epoch; it never falls.
    pub(crate) epochs: Vec<u64>,
}

pub(crate) enum Role {
    Leader(Leading),
    /// Follows the node with this number.
    Follower {
        leader: usize,
        lanes: Vec<Lane>,
    },
}

pub(crate) struct Leading {
    pub(crate) registry: leader::Registry,
    pub(crate) sleeper: Arc<Sleeper>,
    pub(crate) ends: Vec<(leader::Link, Connection)>,
    pub(crate) recorder: Recorder,
    /// After a power cut, until the new term begins.
    pub(crate) lost: Option<Lost>,
}

/// What a power cut may have taken.
#[derive(Debug, Clone)]
pub(crate) struct Lost {
    /// What the shards went through.
    pub(crate) whole: Held,
    /// Up to where each shard must hold everything when its new term begins.
    pub(crate) wanted: Vec<Seq>,
}

pub(crate) struct Lane {
    pub(crate) shard: ShardIndex,
    pub(crate) end: Option<(follower::Link, Connection)>,
    pub(crate) cell: Arc<LinkCell>,
    pub(crate) mirror: Mirror,
    pub(crate) watermark: Seq,
    /// When its leader's last heartbeat came.
    pub(crate) heard_at: Option<Duration>,
    /// Up to where it shares its leader's history, when the link began.
    pub(crate) shared: Seq,
    /// The next link gives up what is held.
    pub(crate) is_given_up: bool,
}

impl Node {
    /// A node that neither leads nor follows yet.
    pub(crate) fn new(number: usize, store: Store, clock: Arc<ManualClock>) -> Self {
        let options = follower::Options {
            follower_id: Uuid::from_u128(number as u128 + 1),
            receive_buffer_bytes: 72 * 1024,
            ..follower::Options::default()
        };
        store.keep_disks();
        let epochs = vec![0; usize::from(store.geometry().shard_count)];
        Self {
            name: format!("node {number}"),
            store,
            clock,
            links: Links::new(),
            role: Role::Follower { leader: 0, lanes: Vec::new() },
            options,
            dropped: Dropped::new(),
            epochs,
        }
    }

    pub(crate) fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    pub(crate) fn leading(&mut self) -> Option<&mut Leading> {
        match &mut self.role {
            Role::Leader(leading) => Some(leading),
            Role::Follower { .. } => None,
        }
    }

    pub(crate) fn lanes(&mut self) -> &mut [Lane] {
        match &mut self.role {
            Role::Leader(_) => &mut [],
            Role::Follower { lanes, .. } => lanes,
        }
    }

    /// Cuts all of its connections, as the end of its process or of its role does.
    pub(crate) fn cut(&mut self) {
        match &mut self.role {
            Role::Leader(leading) => leading.ends.drain(..).for_each(|(_, connection)| connection.cut()),
            Role::Follower { lanes, .. } => {
                for lane in lanes {
                    if let Some((_, connection)) = lane.end.take() {
                        connection.cut();
                    }
                }
            }
        }
    }

    /// Follows another node from now on.
    pub(crate) fn follow(&mut self, leader: usize) {
        self.cut();
        self.store.demote().unwrap();
        self.links.heads.clear();
        // As long as no leader has said how often it is heard.
        let silence_ms_max = u64::try_from(2 * self.options.heartbeat_interval.as_millis()).unwrap();
        let new_cell = |shard: ShardIndex| {
            let cell = LinkCell::new(self.options.follower_id, ([127, 0, 0, 1], 2).into(), 0, shard.0);
            cell.silence_ms_max.store(silence_ms_max, std::sync::atomic::Ordering::Relaxed);
            cell
        };
        let lane = |shard| Lane {
            shard,
            end: None,
            cell: new_cell(shard),
            mirror: Mirror::default(),
            watermark: self.store.progress(shard).seq,
            heard_at: None,
            shared: Seq::ZERO,
            is_given_up: false,
        };
        let lanes = self.store.shards().map(lane).collect();
        self.role = Role::Follower { leader, lanes };
    }

    /// Leads from now on; `take` lets the store take its new term.
    pub(crate) fn lead(&mut self, histories: &mut Histories, take: impl FnOnce(&mut Store)) {
        let before = Recorder::before(histories, &self.store);
        self.lead_from(histories, before, take);
    }

    /// Leads from now on, with a store that has lived through `before`.
    pub(crate) fn lead_from(
        &mut self,
        histories: &mut Histories,
        before: Held,
        take: impl FnOnce(&mut Store),
    ) {
        self.cut();
        take(&mut self.store);
        self.store.set_read_only(false);
        self.links.forget_superseded();
        self.links.heads.clear();
        let recorder = Recorder::begin(histories, &self.store, before);
        let registry = leader::Registry::new(self.store.geometry().shard_count, 1000, 1000);
        let (sleeper, ends) = (Sleeper::new(|| {}), Vec::new());
        self.role = Role::Leader(Leading { registry, sleeper, ends, recorder, lost: None });
        self.store.keep_disks();
    }

    /// The machine of a follower loses power: it follows on, and must not lead before it has caught up.
    pub(crate) fn lose_power_following(&mut self, choose: impl FnMut() -> bool) {
        self.cut();
        self.start_after_power_cut(choose);
        let Self { name, store, role, .. } = &mut *self;
        assert!(!store.is_regaining(), "{name}: a follower leads after a power cut");
        assert!(store.check_promote().is_err(), "{name}: a follower may lead after a power cut");
        store.set_read_only(true);
        if let Role::Follower { lanes, .. } = role {
            for lane in lanes {
                (lane.watermark, lane.mirror) = (store.progress(lane.shard).seq, Mirror::default());
                assert!(!store.was_in_sync(lane.shard), "{name}: shard {} passes for a state", lane.shard);
            }
        }
        self.assert_epochs_rise();
        self.assert_sound();
    }

    fn start_after_power_cut(&mut self, choose: impl FnMut() -> bool) {
        self.store.write_back(choose);
        let spare = self.store.copy_in_memory().expect("a copy");
        let store = std::mem::replace(&mut self.store, spare);
        self.store = store.reopen_after_power_cut().expect("a store opens again");
    }

    /// The machine of a leader loses power: what was not durable is gone in part.
    pub(crate) fn lose_power(&mut self, histories: &mut Histories, choose: impl FnMut() -> bool) {
        let whole = match self.leading().and_then(|leading| leading.lost.take()) {
            Some(lost) => lost.whole,
            None => histories.whole(&self.store),
        };
        self.cut();
        self.start_after_power_cut(choose);
        self.regain(histories, whole);
    }

    /// Waits for what followers give back.
    fn regain(&mut self, histories: &mut Histories, whole: Held) {
        self.links.forget_superseded();
        self.links.heads.clear();
        let wanted = self.store.shards().map(|shard| self.store.tail(shard).unwrap_or(Seq::ZERO)).collect();
        let registry = leader::Registry::new(self.store.geometry().shard_count, 1000, 1000);
        let (sleeper, ends, recorder) = (Sleeper::new(|| {}), Vec::new(), Recorder::default());
        let lost = Some(Lost { whole, wanted });
        self.role = Role::Leader(Leading { registry, sleeper, ends, recorder, lost });
        if !self.store.is_regaining() {
            self.store.set_read_only(false);
            self.has_regained(histories);
        }
    }

    /// The wait is over: the store holds what it must, and a new term begins.
    pub(crate) fn has_regained(&mut self, histories: &mut Histories) {
        let (name, store) = (self.name.clone(), &self.store);
        let Role::Leader(leading) = &mut self.role else { return };
        let Some(Lost { whole, wanted }) = leading.lost.take() else { return };
        store.check().unwrap_or_else(|error| panic!("{name}: {error}"));
        let left = Histories::left(&whole, store, &name);
        for (shard, wanted) in store.shards().zip(wanted) {
            let through = Seq(store.lineage(shard).last().unwrap().first_seq - 1);
            assert!(through >= wanted, "{name}: shard {shard} holds all up to {through}, was given {wanted}");
        }
        leading.recorder = Recorder::begin(histories, store, left);
    }

    /// An audit finds nothing to mend, whatever the node is in the middle of.
    fn assert_sound(&self) {
        for shard in self.store.shards() {
            let faults = self.store.audit(shard, SlotIndex(0), u32::MAX).faults;
            assert!(faults.is_empty(), "{}: shard {shard}: {faults:?}", self.name);
        }
    }

    /// The process is killed and starts again in the same role.
    pub(crate) fn restart(&mut self, histories: &mut Histories, is_orderly: bool) {
        self.assert_sound();
        self.cut();
        if is_orderly {
            self.store.close().unwrap();
        }
        let reopen = |store: &mut Store| {
            let spare = store.copy_in_memory().expect("a copy");
            *store = std::mem::replace(store, spare).reopen_in_memory().expect("a store opens again");
        };
        if let Some(lost) = self.leading().and_then(|leading| leading.lost.take()) {
            reopen(&mut self.store);
            self.regain(histories, lost.whole);
        } else if self.is_leader() {
            if let Some(leading) = self.leading() {
                leading.recorder = Recorder::default();
            }
            self.lead(histories, reopen);
        } else {
            reopen(&mut self.store);
            self.store.set_read_only(true);
        }
        self.assert_sound();
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    pub(crate) fn now(&self) -> slotstream::clock::Now {
        self.clock.now()
    }

    /// The seqs of a shard's slots.
    pub(crate) fn slots(&self, shard: ShardIndex) -> Vec<(u32, Seq)> {
        let slot = |slot| {
            self.store
                .with_slot(shard, SlotIndex(slot), |view| (slot, view.expect("no slot is damaged").seq()))
        };
        (0..self.store.extent(shard).0).map(slot).collect()
    }

    /// Up to where slots hold what their leader has, or may have.
    pub(crate) fn noted_fork(&self, shard: ShardIndex) -> Option<Seq> {
        match self.store.progress(shard).step {
            Step::Rewind { fork, .. } => Some(fork),
            Step::None | Step::Scan { .. } => None,
        }
    }

    /// Fails if a shard's newest epoch fell: a node that has heard of one takes no older one.
    pub(crate) fn assert_epochs_rise(&mut self) {
        for shard in self.store.shards() {
            let epoch = self.store.lineage(shard).last().unwrap().epoch;
            let seen = &mut self.epochs[usize::from(shard.0)];
            assert!(epoch >= *seen, "{}: shard {shard} goes back from epoch {seen} to {epoch}", self.name);
            *seen = epoch;
        }
    }

    /// Fails unless its reports hold each dropped write once.
    pub(crate) fn assert_reports(&self) {
        let mut found = Dropped::new();
        for (_, bytes) in self.store.reports().unwrap() {
            for line in String::from_utf8(bytes).unwrap().lines() {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                if line.get("about").is_some() {
                    continue;
                }
                let number = |field: &str| line[field].as_u64().unwrap();
                let place = (
                    u16::try_from(number("shard")).unwrap(),
                    u32::try_from(number("slot")).unwrap(),
                    number("seq"),
                );
                assert!(line["key"].is_string() || line["key_hex"].is_string(), "{line}");
                *found.entry(place).or_default() += 1;
            }
        }
        assert_eq!(found, self.dropped, "{}: writes in its reports, writes dropped", self.name);
    }
}
