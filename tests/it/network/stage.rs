//! A leader with records, a follower behind a link that can be broken, and a load: brought to a moment of
//! the protocol, hurt there, healed, and compared.
//!
//! Whatever happened to the link, at the end the load has lost nothing, all directories are byte-equal,
//! a follower that held something was sent what it lacked and no more, the leader's memory has stayed
//! within its rings, and nobody has hammered on a closed door.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use slotstream::{Geometry, Options, Store};

use super::netns::{Fault, Net};
use super::relay::{Cut, Relay, Rules, Which};
use crate::harness::{Node, PATIENCE, Reply, assert_equal, wait_in_sync, wait_until};
use crate::load::Load;

const RING: u64 = 256 << 10;
const LEADER: &[&str] = &["--ring-size", "256KiB", "--ack-window", "128KiB"];
const BOTH: &[&str] = &["--heartbeat-interval", "100ms", "--workers", "1", "--allow-remote-clients"];
/// Records before the first follower comes: some thirty batches of scan per shard.
const RECORDS: u32 = 40_000;
/// A rate at which the first scan takes two seconds.
const SLOW: u32 = 2 << 20;

/// When a link is hurt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Some batches of the first scan are through.
    FirstScan,
    /// All batches of the first scan are through, and the word that it is done is not.
    ScanEnd,
    /// The scan is through; the stream has not begun, or has not reached what the scan carried.
    Seam,
    /// Everything was in sync once, and is written to.
    Stream,
    /// The first scan waits for Acks that do not come.
    AckStall,
    /// The follower was killed, and starts while the fault lasts.
    FollowerRestarts,
    /// The leader was killed, and starts while the fault lasts.
    LeaderRestarts,
    /// The follower was killed in its first scan.
    FollowerRestartsInScan,
    /// The leader was killed in its follower's first scan.
    LeaderRestartsInScan,
}

/// What is done to a link.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cause {
    /// A fault of the network, until the leader has given its links up.
    Lasting(Fault),
    /// The same, on and off at so many Hz.
    Flapping(Fault, u32),
    /// Connections end.
    Cutting(Cut),
    /// Connections are reset at so many Hz, and refused half the time.
    CuttingAtHz(u32),
    /// A link that is bad until it has had this effect.
    Bad(fn(&mut Rules), fn(&Stage) -> bool),
    /// Connections end at every byte in turn.
    Sweeping,
    /// Nothing but the moment itself.
    Nothing,
}

/// What is between the two.
#[derive(Debug)]
enum Link {
    Relay(Relay),
    Net(Net),
}

/// What a stage is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) shards: u16,
    pub(crate) dead_after: &'static str,
    /// Between batches of the load.
    pub(crate) pause: Duration,
}

impl Setting {
    /// What suits most scenarios.
    pub(crate) const USUAL: Self = Self { shards: 2, dead_after: "1s", pause: Duration::ZERO };

    fn arguments(&self, more: &[&'static str]) -> Vec<&'static str> {
        [BOTH, &["--dead-after", self.dead_after], more].concat()
    }
}

/// All that plays a part.
pub(crate) struct Stage {
    setting: Setting,
    // In this order: processes end before their network and their directory.
    follower: Option<Node>,
    leader: Node,
    load: Load,
    link: Link,
    directory: tempfile::TempDir,
    memory: u64,
    /// Full scans that the leader now running may have begun.
    full_scans_max: f64,
    /// Times that links may have been lost.
    losses_max: u32,
}

impl Stage {
    /// Behind a relay.
    pub(crate) fn relayed(setting: Setting) -> Self {
        let directory = tempfile::tempdir().expect("temp dir");
        let leader = Node::leader(&prefilled(directory.path(), setting.shards), &setting.arguments(LEADER));
        let relay = Relay::start(leader.replication());
        Self::new(setting, leader, Link::Relay(relay), directory)
    }

    /// In namespaces; `None` if these are not wanted.
    pub(crate) fn in_namespaces(setting: Setting) -> Option<Self> {
        let net = Net::start(1)?;
        let directory = tempfile::tempdir().expect("temp dir");
        let path = prefilled(directory.path(), setting.shards);
        let leader = Node::leader_at(net.leader_host(0), &path, &setting.arguments(LEADER));
        Some(Self::new(setting, leader, Link::Net(net), directory))
    }

    fn new(setting: Setting, leader: Node, link: Link, directory: tempfile::TempDir) -> Self {
        let load = Load::paced(leader.ports.listen, 1, setting.pause);
        load.wait_for(1_000);
        Self {
            setting,
            follower: None,
            memory: leader.resident_bytes(),
            leader,
            load,
            link,
            directory,
            full_scans_max: setting.shards.into(),
            losses_max: 0,
        }
    }

    /// Plays one scenario.
    pub(crate) fn play(mut self, moment: Moment, cause: Cause) {
        self.reach(moment);
        self.hurt(moment, cause);
        self.finish();
    }

    fn follower(&mut self) -> &mut Node {
        self.follower.as_mut().expect("the follower was started")
    }

    fn shards(&self) -> usize {
        self.setting.shards.into()
    }

    fn start_follower(&mut self) {
        let path = self.directory.path().join("follower");
        let arguments = self.setting.arguments(&[]);
        self.follower = Some(match &self.link {
            Link::Relay(relay) => Node::follower_of(&path, relay.address(), &arguments),
            Link::Net(net) => {
                let leader = self.leader.replication();
                net.inside(0, || Node::follower_at(net.follower_host(0), &path, leader, &arguments))
            }
        });
    }

    /// Brings everything to the moment.
    fn reach(&mut self, moment: Moment) {
        match moment {
            Moment::FirstScan | Moment::FollowerRestartsInScan | Moment::LeaderRestartsInScan => {
                self.reach_on_the_way(Which::ScanBatch(4), "scan")
            }
            Moment::AckStall => {
                self.reach_on_the_way(Which::Acks, "scan");
                // An Ack may be of a Welcome: a shard that has taken no slot yet is owed a full scan again.
                wait_until("every shard has taken slots", PATIENCE, || self.has_scanned(1));
            }
            Moment::ScanEnd => self.reach_on_the_way(Which::ScanDone, "catch_up"),
            Moment::Seam => self.reach_on_the_way(Which::BehindScanDone, "catch_up"),
            Moment::Stream | Moment::FollowerRestarts | Moment::LeaderRestarts => {
                self.start_follower();
                wait_until("all shards stream", PATIENCE, || self.has_phase("stream"));
                self.load.wait_for(1_000);
            }
        }
    }

    /// Lets the first scan come so far and no farther, or, through a network, so slowly that it is there
    /// for long.
    fn reach_on_the_way(&mut self, which: Which, phase: &str) {
        if let Link::Relay(relay) = &self.link {
            relay.set(|rules| rules.hold = Some(which));
        }
        if let Link::Net(net) = &self.link {
            net.slow_down(0, SLOW);
        }
        self.start_follower();
        match &self.link {
            Link::Relay(relay) => wait_until("the link holds a frame of every shard", PATIENCE, || {
                relay.seen().held.load(Relaxed) >= self.setting.shards.into() && self.has_phase(phase)
            }),
            Link::Net(_) if phase == "scan" => {
                wait_until("every shard has taken a part of its scan", PATIENCE, || self.has_scanned(1_000));
            }
            // Shards of a slow network do not come to it together.
            Link::Net(_) => wait_until(phase, PATIENCE, || self.count_in(phase) > 0),
        }
    }

    /// Whether a ring of the leader was full, and the scan that answers it has begun.
    pub(crate) fn has_overflowed(&self) -> bool {
        let (_, metrics) = self.leader.get("/metrics");
        metrics.lines().any(|line| {
            line.starts_with("slotstream_delta_scans_total{reason=\"overflow\"}") && !line.ends_with(" 0")
        })
    }

    /// Whether the follower has taken so many slots of a scan in every shard.
    fn has_scanned(&self, slots: u64) -> bool {
        let status = self.follower.as_ref().expect("the follower was started").status();
        let shards = status["shards"].as_array().expect("shards");
        shards.iter().all(|shard| shard["scan"]["slots"].as_u64() >= Some(slots))
    }

    /// Whether the follower lacks so many changes that were sent.
    pub(crate) fn lags_by(&self, records: u64) -> bool {
        let status = self.leader.status();
        let links = status["links"].as_array().expect("links");
        links.iter().any(|link| link["lag_records"].as_u64() >= Some(records))
    }

    /// Whether the relay has carried so many batches of the stream.
    pub(crate) fn has_streamed(&self, batches: u64) -> bool {
        matches!(&self.link, Link::Relay(relay) if relay.seen().stream_batches.load(Relaxed) >= batches)
    }

    /// Whether the leader has a link in this phase for every shard.
    pub(crate) fn has_phase(&self, phase: &str) -> bool {
        self.count_in(phase) == self.shards()
    }

    /// The leader's links in this phase that have carried something.
    fn count_in(&self, phase: &str) -> usize {
        let status = self.leader.status();
        let links = status["links"].as_array().expect("links");
        links.iter().filter(|link| link["phase"] == phase && link["bytes"] != 0).count()
    }

    fn link_count(&self) -> usize {
        self.leader.status()["links"].as_array().expect("links").len()
    }

    fn hurt(&mut self, moment: Moment, cause: Cause) {
        if matches!(moment, Moment::FollowerRestarts | Moment::FollowerRestartsInScan) {
            self.follower().kill();
        }
        self.begin(cause);
        match moment {
            Moment::FollowerRestarts | Moment::FollowerRestartsInScan => self.restart_follower(),
            Moment::LeaderRestarts | Moment::LeaderRestartsInScan => {
                self.leader.kill();
                self.leader.restart();
                self.memory = self.leader.resident_bytes();
                // Whoever was served by the one before is owed a delta, or what is left of the scan.
                self.full_scans_max = 0.0;
                self.losses_max += 8;
                let follower = self.follower.as_ref().expect("the follower was started");
                wait_until("the follower has missed its leader", PATIENCE, || {
                    follower.metric("slotstream_reconnects_total") > 0.0
                });
            }
            _ => {}
        }
        self.wait_for_effect(cause);
        self.load.wait_for(1_000);
        self.heal(cause);
    }

    fn restart_follower(&mut self) {
        let follower = self.follower.as_mut().expect("the follower was started");
        match &self.link {
            Link::Relay(_) => follower.restart(),
            Link::Net(net) => net.inside(0, || follower.restart()),
        }
    }

    fn replication_port(&self) -> u16 {
        self.leader.replication().port()
    }

    fn begin(&mut self, cause: Cause) {
        let port = self.replication_port();
        match (&self.link, cause) {
            (Link::Relay(relay), Cause::Nothing) => relay.set(|rules| rules.hold = None),
            (Link::Net(net), Cause::Lasting(fault)) => {
                net.lay(0, fault, port);
                self.losses_max += 8;
            }
            (Link::Net(net), Cause::Flapping(fault, hz)) => {
                flap(hz, |is_on| if is_on { net.lay(0, fault, port) } else { net.lift(0, fault) });
                self.losses_max += 8 * hz;
            }
            (Link::Relay(relay), Cause::Cutting(cut)) => {
                relay.cut(cut);
                relay.set(|rules| rules.hold = None);
                self.losses_max += 4;
            }
            (Link::Relay(relay), Cause::CuttingAtHz(hz)) => {
                relay.set(|rules| rules.rate = Some(SLOW.into()));
                flap(hz, |is_on| {
                    relay.set(|rules| rules.refuse = is_on);
                    relay.cut(Cut::Reset);
                });
                self.losses_max += 8 * hz;
            }
            (Link::Relay(relay), Cause::Bad(change, _)) => {
                relay.set(|rules| {
                    rules.hold = None;
                    change(rules);
                    // Some seconds of it: pauses grow, so there are not many.
                    self.losses_max += if rules.cut.is_some() { 16 } else { 0 };
                });
            }
            (Link::Relay(relay), Cause::Sweeping) => {
                relay.set(|rules| rules.sweep = true);
                relay.cut(Cut::Reset);
                self.losses_max += 1_000;
            }
            (link, cause) => panic!("{cause:?} cannot be done to {link:?}"),
        }
    }

    /// Waits until the fault has done what it is there for.
    fn wait_for_effect(&mut self, cause: Cause) {
        match (&self.link, cause) {
            (Link::Net(_), Cause::Lasting(Fault::Reset)) => {
                let follower = self.follower.as_ref().expect("started");
                wait_until("both ends were reset", PATIENCE, || {
                    follower.metric("slotstream_reconnects_total") >= f64::from(self.setting.shards)
                });
            }
            (Link::Net(_), Cause::Lasting(_)) => {
                wait_until("the leader has given its links up", PATIENCE, || self.link_count() == 0);
            }
            (Link::Relay(_), Cause::Bad(_, has_effect)) => {
                wait_until("the bad link has had its effect", PATIENCE, || has_effect(self));
            }
            (Link::Relay(relay), Cause::Cutting(_)) => {
                let shards = u64::from(self.setting.shards);
                wait_until("the follower has come back", PATIENCE, || {
                    relay.seen().connections.load(Relaxed) > 2 * shards
                });
                wait_until("each shard has one link", PATIENCE, || self.link_count() == self.shards());
            }
            (Link::Relay(relay), Cause::Sweeping) => {
                wait_until("many connections were cut", PATIENCE, || relay.seen().cuts.load(Relaxed) > 120);
            }
            _ => {}
        }
    }

    fn heal(&mut self, cause: Cause) {
        match &self.link {
            Link::Relay(relay) => relay.set(|rules| *rules = Rules::default()),
            Link::Net(net) => {
                net.speed_up(0);
                if let Cause::Lasting(fault) = cause {
                    net.lift(0, fault);
                }
            }
        }
    }

    fn finish(mut self) {
        self.load.wait_for(1_000);
        drop(self.load.finish());
        let mut follower = self.follower.take().expect("the follower was started");
        wait_in_sync(&self.leader, &follower);
        let size = |node: &Node| node.client().call(&["DBSIZE"]);
        assert_eq!(size(&self.leader), size(&follower));
        assert!(matches!(size(&follower), Reply::Integer(records) if records >= RECORDS.into()));

        let full_scans = self.leader.metric("slotstream_full_scans_total");
        assert!(full_scans <= self.full_scans_max, "{full_scans} full scans, owed {}", self.full_scans_max);
        let (memory, allowed) =
            (self.leader.resident_bytes(), self.memory + u64::from(self.setting.shards) * RING + (12 << 20));
        assert!(memory <= allowed, "the leader grew from {} to {memory} bytes", self.memory);
        let losses = follower.metric("slotstream_reconnects_total");
        let allowed = f64::from(self.setting.shards) * f64::from(self.losses_max);
        assert!(losses <= allowed, "the follower has tried {losses} times, {allowed} would do");

        assert!(self.leader.terminate().0.success());
        assert!(follower.terminate().0.success());
        assert_equal(&self.leader.directory, &follower.directory);
    }
}

/// On and off, two seconds of it: here the time itself is the fault.
fn flap(hz: u32, mut switch: impl FnMut(bool)) {
    let half = Duration::from_secs(1) / hz / 2;
    for _ in 0..2 * hz {
        for is_on in [true, false] {
            let next = Instant::now() + half;
            switch(is_on);
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
}

/// A leader's directory with records in it.
fn prefilled(directory: &Path, shards: u16) -> std::path::PathBuf {
    let path = directory.join("leader");
    let geometry =
        Geometry { shard_count: shards, key_size_max: 16, value_size_max: 64, shard_prefix_bits: 0 };
    let store = Store::open(&path, Options::create(geometry)).expect("a new store");
    for record in 0..RECORDS {
        store.put(format!("before:{record}").as_bytes(), &[b'x'; 64]).expect("it fits");
    }
    store.close().expect("closes");
    path
}
