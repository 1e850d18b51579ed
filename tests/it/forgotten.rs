//! A follower that was away for so many terms of leadership that its leader remembers none which both have lived
//! through: it keeps its data, says so everywhere, and gives them up when somebody says so by hand.

use std::path::Path;

use slotstream::{Options, Store};

use crate::guard_rails::wait_refused;
use crate::harness::{Node, PATIENCE, assert_equal, wait_in_sync, wait_until};
use crate::rewind::dropped;
use crate::roles_at_run_time::{SIZES, info, set};

/// Terms that a lineage holds.
const REMEMBERED: u64 = 128;

/// Lets the store in `directory` begin so many terms, with a write to each shard in each. The next start of its
/// node begins another one.
fn begin_terms(directory: &Path, count: u64) {
    let store = Store::open(directory, Options::default()).expect("opens");
    let keys = store.shards().map(|shard| {
        (0..).map(|n| format!("key-{n}")).find(|key| store.shard_of(key.as_bytes()) == shard).expect("a key")
    });
    let keys: Vec<_> = keys.collect();
    for term in 0..count {
        // Opening it has begun the first one.
        if term > 0 {
            store.lead_past(0).expect("a new epoch");
        }
        keys.iter().for_each(|key| assert!(store.put(key.as_bytes(), b"since").is_ok()));
    }
    store.close().expect("closes");
}

/// A leader and a follower in sync, then so many terms without the follower.
fn after_terms(root: &Path, count: u64) -> (Node, Node) {
    let [a, b] = ["a", "b"].map(|name| root.join(name));
    let mut leader = Node::leader(&a, SIZES);
    let mut follower = Node::follower(&b, &leader, &[]);
    set(&leader, 0..20, "precious");
    wait_in_sync(&leader, &follower);
    assert!(follower.terminate().0.success());
    assert!(leader.terminate().0.success());
    begin_terms(&a, count - 1);
    leader.restart();
    follower.restart();
    (leader, follower)
}

#[test]
fn a_follower_comes_back_after_as_many_terms_as_are_remembered() {
    let root = tempfile::tempdir().expect("temp dir");
    let (mut leader, mut follower) = after_terms(root.path(), REMEMBERED - 1);
    wait_in_sync(&leader, &follower);
    assert_eq!(leader.metric("slotstream_full_scans_total"), 0.0);
    assert_eq!(follower.metric("slotstream_writes_dropped_total"), 0.0);
    assert!(follower.terminate().0.success());
    assert!(leader.terminate().0.success());
    assert_equal(&root.path().join("a"), &root.path().join("b"));
}

#[test]
fn a_follower_that_is_forgotten_keeps_its_data_until_somebody_says_otherwise() {
    let root = tempfile::tempdir().expect("temp dir");
    let (mut leader, mut follower) = after_terms(root.path(), REMEMBERED);
    set(&leader, 1..2, "new");
    wait_refused(&follower, "it was away for longer than the 128 terms");
    for shard in follower.status()["shards"].as_array().expect("shards") {
        assert!(shard["lag_records"].as_u64().is_some_and(|records| records > 0), "{shard}");
        assert!(shard["lag_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{shard}");
        assert!(shard["lag_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{shard}");
        assert_eq!(shard["ready"], false);
    }
    // It asks again now and then, and is in another phase for a moment.
    let metrics = follower.get("/metrics").1;
    let lags: Vec<_> = metrics.lines().filter(|line| line.starts_with("slotstream_follower_lag_")).collect();
    assert!(lags.len() == 6 && lags.iter().all(|line| !line.ends_with(" 0")), "{metrics}");
    assert!(metrics.contains("slotstream_shard_ready{shard=\"0\"} 0\n"), "{metrics}");
    wait_until("INFO says why", PATIENCE, || {
        info(&follower, "slotstream_link_refused").contains("--accept-store")
    });
    assert_eq!(info(&follower, "master_link_status"), "down");
    wait_until("the leader counts it", PATIENCE, || {
        leader.get("/metrics").1.contains("slotstream_followers_refused_total{reason=\"forgotten\"} ")
    });

    // By hand: all that was held goes into the report, and the leader's data take its place.
    assert!(follower.terminate().0.success());
    let id = leader.status()["store_id"].as_str().expect("an id").to_owned();
    let b = root.path().join("b");
    let mut follower = Node::follower(&b, &leader, &["--accept-store", &id]);
    wait_in_sync(&leader, &follower);
    assert_eq!(follower.client().call(&["GET", "key-1"]).text(), "new");
    assert_eq!(info(&follower, "slotstream_link_refused"), "");
    assert_eq!(follower.metric("slotstream_writes_dropped_total"), 20.0);
    assert!(follower.log().contains("ARE THROWN AWAY"), "{}", follower.log());
    let held = (0..20).map(|key| (format!("key-{key}"), Some("precious".to_owned())));
    assert_eq!(dropped(&b), held.collect());
    // The option may stay: the leader refuses nothing any more.
    follower.kill();
    follower.restart();
    wait_in_sync(&leader, &follower);
    assert_eq!(follower.log().matches("THROWN AWAY").count(), 2, "once for each shard");
    assert!(follower.terminate().0.success());
    assert!(leader.terminate().0.success());
    assert_equal(&root.path().join("a"), &b);
}
