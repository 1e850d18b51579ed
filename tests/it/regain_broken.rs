//! Recoveries from followers that break in the middle: the follower dies, the connection is reset, the leader dies,
//! somebody changes its role. What came back before counts, and all of it is there in the end.

use std::sync::atomic::Ordering::Relaxed;

use tempfile::TempDir;

use crate::harness::{Node, PATIENCE, assert_equal, wait_in_sync, wait_until};
use crate::network::relay::{Cut, Relay, Which};
use crate::regain::{UNLOGGED, end_regain, fail_syncs, forget_boot};
use crate::rewind::copy_directory;
use crate::roles_at_run_time::{SIZES, set};

/// It waits for ever, and batches are small, so that a recovery has a middle and no test is late for it.
const PATIENT: &[&str] = &["--recover-from-followers", "60m", "--ack-window", "4KiB", "--dead-after", "60s"];
/// Those of each connection are held from this one on.
const HELD_FROM: u64 = 3;
const SHARDS: usize = 2;

/// A leader that lost its last writes, and its follower, which has given back some of them.
struct Broken {
    leader: Node,
    follower: Node,
    relay: Relay,
    _root: TempDir,
}

impl Broken {
    fn in_the_middle() -> Self {
        let root = tempfile::tempdir().expect("temp dir");
        let [a, b, older] = ["a", "b", "older"].map(|name| root.path().join(name));
        let mut leader = Node::leader(&a, &[SIZES, PATIENT].concat());
        let relay = Relay::start(leader.replication());
        let follower = Node::follower_of(&b, relay.address(), &["--dead-after", "60s"]);
        set(&leader, 0..50, "old");
        wait_in_sync(&leader, &follower);
        copy_directory(&a, &older);
        set(&leader, 0..1_000, "new");
        wait_in_sync(&leader, &follower);
        leader.kill();
        std::fs::remove_dir_all(&a).expect("what was not on the disk is lost");
        copy_directory(&older, &a);
        forget_boot(&a);
        relay.set(|rules| rules.hold = Some(Which::LentBatch(HELD_FROM)));
        leader.restart();
        let broken = Self { leader, follower, relay, _root: root };
        wait_until("each shard has got some batches back", PATIENCE, || {
            broken.relay.seen().held.load(Relaxed) == SHARDS as u64 && broken.places().len() == SHARDS
        });
        assert!(broken.regained() > 0.0 && broken.regained() < 1_000.0, "{}", broken.regained());
        assert_eq!(broken.places(), [0; SHARDS], "the first links begin with the first slot");
        broken
    }

    fn regained(&self) -> f64 {
        self.leader.metric("slotstream_slots_regained_total")
    }

    /// Where links began to give back, of all that the leader's log tells of.
    fn places(&self) -> Vec<u64> {
        let log = self.leader.log();
        let lines = log.lines().filter(|line| line.contains("a follower gives back what it has"));
        let place = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            line["next"].as_u64().expect("a slot")
        };
        lines.map(place).collect()
    }

    /// Nothing is held any more: the rest comes, and everything is as it was before the crash.
    fn goes_on(mut self) {
        self.relay.set(|rules| rules.hold = None);
        end_regain(&self.leader, SHARDS);
        for key in [0, 49, 50, 500, 999] {
            assert_eq!(self.leader.client().call(&["GET", &format!("key-{key}")]).text(), "new");
        }
        set(&self.leader, 1_000..1_010, "later");
        wait_in_sync(&self.leader, &self.follower);
        assert_eq!(self.follower.metric("slotstream_writes_dropped_total"), 0.0);
        assert!(self.follower.terminate().0.success());
        assert!(self.leader.terminate().0.success());
        assert_equal(&self.leader.directory, &self.follower.directory);
    }
}

/// Its next process is another follower to the leader, and begins anew.
#[test]
fn a_follower_killed_while_it_gives_back_gives_all_of_it_once_it_is_back() {
    let mut broken = Broken::in_the_middle();
    broken.follower.kill();
    broken.relay.cut(Cut::Reset);
    broken.follower.restart();
    broken.goes_on();
}

#[test]
fn a_connection_reset_while_slots_are_given_back_goes_on_where_it_was() {
    let broken = Broken::in_the_middle();
    broken.relay.cut(Cut::Reset);
    wait_until("new links give back", PATIENCE, || broken.places().len() >= 2 * SHARDS);
    let places = broken.places();
    assert!(places[SHARDS..].iter().all(|place| *place > 0), "{places:?}");
    broken.goes_on();
}

/// What came back is in its files, and nothing says yet that this was all.
#[test]
fn a_leader_killed_while_it_gets_back_what_it_lost_asks_again() {
    let mut broken = Broken::in_the_middle();
    broken.leader.kill();
    broken.relay.cut(Cut::Reset);
    broken.leader.restart();
    assert_eq!(broken.leader.metric("slotstream_regaining"), 1.0);
    broken.goes_on();
}

/// To follow it must end its wait, and what is left here is not durable: whoever goes on from there is told that all
/// is well.
#[test]
fn a_leader_told_to_follow_while_it_waits_ends_if_a_sync_fails() {
    let root = tempfile::tempdir().expect("temp dir");
    let [a, b] = ["a", "b"].map(|name| root.path().join(name));
    let arguments = [SIZES, PATIENT, UNLOGGED].concat();
    let mut old = Node::leader(&a, &arguments);
    let mut new = Node::follower(&b, &old, &[]);
    set(&old, 0..100, "precious");
    wait_in_sync(&old, &new);
    old.kill();
    forget_boot(&a);
    assert_eq!(new.client().call(&["REPLICAOF", "NO", "ONE"]).text(), "OK");
    old.restart();
    let Some(mut strace) = fail_syncs(&old, &a) else { return };
    let port = new.ports.listen.port().to_string();
    // It ends before it answers, or says that it cannot follow.
    drop(old.client().try_call(&[b"REPLICAOF", b"127.0.0.1", port.as_bytes()]));
    let status = old.wait(PATIENCE);
    let log = old.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(".slots") && log.contains("could not be made durable"), "{log}");
    drop(strace.wait());
    // Somebody's order to follow holds at the next start.
    old.restart();
    wait_in_sync(&new, &old);
    for key in [0, 99] {
        assert_eq!(old.client().call(&["GET", &format!("key-{key}")]).text(), "precious");
    }
    assert!(old.terminate().0.success() && new.terminate().0.success());
    assert_equal(&a, &b);
}
