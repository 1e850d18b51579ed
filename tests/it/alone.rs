//! A node that is left alone. A follower started while its leader is away, or is its leader no more, serves what it
//! holds, and says how it stands. Nor does a leader go on beside its successor.

use crate::guard_rails::{assert_replaced, precious_pair, wait_refused};
use crate::harness::{Node, PATIENCE, wait_in_sync, wait_until};
use crate::roles_at_run_time::{replicaof, set};

/// Every shard's lag in seconds.
fn lags(node: &Node) -> Vec<f64> {
    let status = node.status();
    let shards = status["shards"].as_array().expect("shards");
    shards.iter().map(|shard| shard["lag_seconds"].as_f64().expect("a number")).collect()
}

/// Its own head, looked at now and then, once counted as its leader's: it was never behind.
#[test]
fn a_follower_that_hears_of_no_leader_is_not_fresh() {
    let root = tempfile::tempdir().expect("temp dir");
    let (mut leader, mut follower) = precious_pair(&root);
    follower.kill();
    set(&leader, 20..40, "precious");
    leader.kill();
    follower.restart();
    wait_until("its state gets older", PATIENCE, || lags(&follower).iter().all(|lag| *lag > 3.0));
    assert_eq!(follower.client().call(&["GET", "key-1"]).text(), "precious");
    leader.restart();
    wait_until("it is fresh again", PATIENCE, || {
        let lags = lags(&follower);
        assert!(lags.iter().all(|lag| *lag < 1e6), "decades: {lags:?}");
        lags.iter().all(|lag| *lag == 0.0)
    });
    wait_in_sync(&leader, &follower);
}

/// To stop would take away what the data are kept for.
#[test]
fn a_follower_that_is_started_at_another_stores_leader_serves_what_it_holds() {
    let root = tempfile::tempdir().expect("temp dir");
    let (mut leader, mut follower) = precious_pair(&root);
    assert!(follower.terminate().0.success());
    leader.kill();
    std::fs::remove_dir_all(&leader.directory).expect("the leader's data are gone");
    leader.restart();
    follower.restart();
    wait_refused(&follower, "follower holds data of store");
    let id = leader.status()["store_id"].as_str().expect("an id").to_owned();
    assert!(follower.log().contains(&format!("--accept-store {id}")), "{}", follower.log());
    assert_eq!(follower.client().call(&["GET", "key-1"]).text(), "precious");
    assert!(follower.terminate().0.success());
}

/// It has just heard of its successor: that its own disk is full makes it no leader again.
#[test]
fn a_leader_that_cannot_write_down_its_new_role_takes_no_writes() {
    let root = tempfile::tempdir().expect("temp dir");
    let (old, new) = precious_pair(&root);
    assert_eq!(new.client().call(&["REPLICAOF", "NO", "ONE"]).text(), "OK");
    // A folder of its name: no file can take its place.
    let memory = old.directory.join("role.json");
    std::fs::create_dir(&memory).expect("a folder");
    std::fs::write(memory.join("full"), "").expect("written");
    let refused = replicaof(&old, &new);
    assert!(refused.starts_with("ERR role.json: "), "{refused}");
    assert_replaced(&old, 2);
    assert!(!old.directory.join("role.json.new").exists(), "nothing unfinished is left");
    // As soon as it can, it follows.
    std::fs::remove_dir_all(&memory).expect("removed");
    assert_eq!(replicaof(&old, &new), "OK");
    wait_in_sync(&new, &old);
    assert_eq!(old.client().call(&["GET", "key-1"]).text(), "precious");
}
