//! kill -9 and SIGSTOP under load: nothing acknowledged is missing, all sides end up equal, a stalled
//! follower costs its leader no memory and gets a delta afterwards.

use std::path::Path;

use rustix::process::Signal;

use crate::harness::{Node, PATIENCE, assert_equal, poll, wait_in_sync, wait_until};
use crate::load::{Load, Writer};

/// By `SLOTSTREAM_KILLS`, in each test; else so many.
const KILLS: u32 = 10;
const SIZES: &[&str] = &["--shard-count", "4", "--key-size", "16", "--value-size", "64"];

/// After the load: followers hold what the writers know, and every directory is byte-equal.
fn assert_all_equal(writers: &[Writer], mut leader: Node, followers: Vec<Node>) {
    for follower in &followers {
        wait_in_sync(&leader, follower);
        for writer in writers {
            writer.assert_held_by(follower.ports.listen);
        }
    }
    assert!(leader.terminate().0.success());
    for mut follower in followers {
        assert!(follower.terminate().0.success());
        assert_equal(&leader.directory, &follower.directory);
    }
}

fn wait_until_all_stream(follower: &Node) {
    wait_until("the follower's first scans are through", PATIENCE, || {
        let status = follower.status();
        status["shards"].as_array().expect("shards").iter().all(|shard| shard["phase"] == "stream")
    });
}

fn start(directory: &Path, followers: usize, arguments: &[&str]) -> (Node, Vec<Node>) {
    let mut all = SIZES.to_vec();
    all.extend(arguments);
    let leader = Node::leader(&directory.join("leader"), &all);
    let follower = |number| Node::follower(&directory.join(format!("follower-{number}")), &leader, &[]);
    let followers: Vec<Node> = (0..followers).map(follower).collect();
    (leader, followers)
}

fn kills() -> u32 {
    std::env::var("SLOTSTREAM_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS)
}

/// Kills a leader again and again, so many acknowledged writes apart.
fn kill_leader(arguments: &[&str], writes: u64) {
    let directory = tempfile::tempdir().expect("temp dir");
    let (mut leader, followers) = start(directory.path(), 2, arguments);
    let load = Load::start(leader.ports.listen, 2);
    for _ in 0..kills() {
        load.wait_for(writes);
        leader.kill();
        leader.restart();
    }
    load.wait_for(writes);
    let writers = load.finish();
    assert_all_equal(&writers, leader, followers);
}

#[test]
fn heavy_a_leader_without_a_log_killed_under_load_loses_nothing_acknowledged() {
    kill_leader(&["--durability", "none"], 5_000);
}

#[test]
fn heavy_a_leader_with_a_log_killed_under_load_loses_nothing_acknowledged() {
    kill_leader(
        &["--durability", "interval", "--wal-segment-size", "128KiB", "--wal-size-max", "512KiB"],
        5_000,
    );
}

#[test]
fn heavy_a_leader_whose_log_comes_first_killed_under_load_loses_nothing_acknowledged() {
    kill_leader(
        &["--durability", "always", "--wal-segment-size", "128KiB", "--wal-size-max", "512KiB"],
        1_000,
    );
}

#[test]
fn heavy_followers_killed_under_load_come_back_by_deltas() {
    let directory = tempfile::tempdir().expect("temp dir");
    let (leader, mut followers) = start(directory.path(), 2, &[]);
    let load = Load::start(leader.ports.listen, 2);
    load.wait_for(5_000);
    for follower in &followers {
        wait_until_all_stream(follower);
    }
    let full_scans = leader.metric("slotstream_full_scans_total");
    for round in 0..kills() {
        let follower = &mut followers[round as usize % 2];
        follower.kill();
        load.wait_for(5_000);
        follower.restart();
        load.wait_for(u64::from(round) * 500);
    }
    let writers = load.finish();
    assert_eq!(leader.metric("slotstream_full_scans_total"), full_scans, "a full scan after a kill");
    assert!(leader.metric("slotstream_delta_scans_total") > 0.0);
    assert_all_equal(&writers, leader, followers);
}

/// Stops a follower under load until `ended` says so of the leader, with rings that fill in no time.
fn stall(dead_after: &str, ended: impl Fn(&Node) -> bool) {
    let ring = 64 << 10;
    let directory = tempfile::tempdir().expect("temp dir");
    let arguments = ["--ring-size", "64KiB", "--heartbeat-interval", "300ms", "--dead-after", dead_after];
    let (leader, followers) = start(directory.path(), 2, &arguments);
    let load = Load::start(leader.ports.listen, 2);
    // Every key is there and every buffer has its size, so that what grows later is due to the stall.
    load.wait_for(50_000);
    for follower in &followers {
        wait_until_all_stream(follower);
    }
    let full_scans = leader.metric("slotstream_full_scans_total");
    let before = leader.resident_bytes();
    followers[0].signal(Signal::STOP);
    let mut highest = 0;
    let has_ended = poll(2 * PATIENCE, || {
        highest = highest.max(leader.resident_bytes());
        ended(&leader)
    });
    load.wait_for(10_000);
    followers[0].signal(Signal::CONT);
    assert!(has_ended, "the stall had no effect on the leader");
    let writers = load.finish();
    wait_in_sync(&leader, &followers[0]);
    assert_eq!(leader.metric("slotstream_full_scans_total"), full_scans, "a full scan after a stall");
    assert!(leader.metric("slotstream_delta_scans_total") > 0.0);
    let allowed = before + 2 * 4 * ring + (8 << 20);
    assert!(highest <= allowed, "the leader grew from {before} to {highest} bytes during the stall");
    assert_all_equal(&writers, leader, followers);
}

#[test]
fn heavy_a_follower_stopped_until_its_ring_overflows_catches_up_by_a_delta() {
    stall("60s", |leader| leader.metric("slotstream_ring_overflows_total") > 0.0);
}

#[test]
fn heavy_a_follower_stopped_until_its_link_is_dead_comes_back_by_a_delta() {
    stall("2s", |leader| {
        leader.get("/metrics").1.contains("slotstream_connected_followers{state=\"stream\"} 1")
    });
}

#[test]
fn followers_of_a_leader_that_came_back_empty_keep_their_data() {
    let directory = tempfile::tempdir().expect("temp dir");
    let (mut leader, followers) = start(directory.path(), 1, &[]);
    let mut client = leader.client();
    for number in 0..100 {
        assert_eq!(client.call(&["SET", &format!("key:{number}"), "value"]).text(), "OK");
    }
    let follower = &followers[0];
    wait_in_sync(&leader, follower);
    leader.kill();
    std::fs::remove_dir_all(&leader.directory).expect("the leader's directory goes away");
    leader.restart();
    assert_eq!(leader.client().call(&["SET", "key:0", "another"]).text(), "OK");
    wait_until("the follower has been refused", PATIENCE, || {
        let status = follower.status();
        status["shards"].as_array().expect("shards").iter().all(|shard| shard["phase"] == "refused")
    });
    assert!(follower.status()["shards"][0]["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
    let mut reader = follower.client();
    assert_eq!(reader.call(&["GET", "key:0"]).text(), "value");
    assert_eq!(reader.call(&["DBSIZE"]), crate::harness::Reply::Integer(100));
    assert_eq!(follower.get("/follower?max_lag=1s").0, 503);
}
