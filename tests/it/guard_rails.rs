//! A follower keeps its data from leaders that would take them away, says why, and gives in only when
//! somebody says so by hand.

use tempfile::TempDir;

use crate::harness::{Node, PATIENCE, Reply, assert_equal, run, stderr, stdout, wait_in_sync, wait_until};
use crate::rewind::copy_directory;
use crate::roles_at_run_time::{SIZES, info, replicaof, set};

/// How a follower refuses a leader that came back as what it once was.
const EMPTIED: &str = "epoch 1) has lived through nothing of what this follower holds";

/// Waits until every shard of the follower is refused, for this reason.
#[track_caller]
pub(crate) fn wait_refused(follower: &Node, words: &str) {
    let refused = |shard: &serde_json::Value| {
        shard["phase"] == "refused" && shard["reason"].as_str().is_some_and(|reason| reason.contains(words))
    };
    wait_until(&format!("the follower refuses: {words}"), PATIENCE, || {
        follower.status()["shards"].as_array().expect("shards").iter().all(refused)
    });
    assert!(follower.log().contains(words), "{}", follower.log());
    let (code, metrics) = follower.get("/metrics");
    assert_eq!(code, 200);
    let counted = |line: &&str| line.starts_with("slotstream_reconnects_total{reason=\"refused\"}");
    assert!(metrics.lines().any(|line| counted(&line) && !line.ends_with(" 0")), "{metrics}");
    assert_eq!(follower.get("/readyz").0, 503);
    assert_eq!(follower.client().call(&["GET", "key-1"]).text(), "precious");
}

/// All that is said of a leader that was replaced, and that it takes no writes.
#[track_caller]
pub(crate) fn assert_replaced(node: &Node, by_epoch: u64) {
    assert_eq!(node.status()["superseded_by_epoch"], by_epoch);
    assert_eq!(info(node, "slotstream_superseded_by_epoch"), by_epoch.to_string());
    assert_eq!(info(node, "role"), "master");
    let table = stdout(&run(&["status", &node.ports.http_listen.to_string()]));
    assert!(table.contains(&format!("leader, replaced by epoch {by_epoch}")), "{table}");
    let (code, metrics) = node.get("/metrics");
    assert_eq!(code, 200);
    assert!(metrics.contains(&format!("slotstream_superseded_by_epoch {by_epoch}\n")), "{metrics}");
    assert_eq!((node.get("/leader").0, node.get("/readyz").0), (503, 503));
    let wanted = format!(
        "READONLY You can't write against a read only replica. This leader was replaced: another one leads in epoch \
         {by_epoch}."
    );
    let mut client = node.client();
    for words in [&["SET", "key-1", "x"][..], &["DEL", "key-1"], &["SET", "key-1", "x", "EX", "9"]] {
        assert_eq!(client.call(words).text(), wanted);
    }
    assert_eq!(client.call(&["MULTI"]).text(), "OK");
    assert_eq!(client.call(&["SET", "key-1", "x"]).text(), wanted);
}

/// A leader in `a` and its follower in `b`, which hold the same.
pub(crate) fn precious_pair(root: &TempDir) -> (Node, Node) {
    let leader = Node::leader(&root.path().join("a"), SIZES);
    let follower = Node::follower(&root.path().join("b"), &leader, &[]);
    set(&leader, 0..20, "precious");
    wait_in_sync(&leader, &follower);
    (leader, follower)
}

fn promote(node: &Node, arguments: &[&str]) -> std::process::Output {
    run(&[&["promote", &node.ports.listen.to_string()], arguments].concat())
}

/// A leader that came back without its data once emptied every follower of other systems.
#[test]
fn an_emptied_leader_empties_nobody() {
    let root = tempfile::tempdir().expect("temp dir");
    let (mut leader, mut follower) = precious_pair(&root);
    let (a, b) = (leader.directory.clone(), follower.directory.clone());
    leader.kill();
    std::fs::remove_dir_all(&a).expect("the leader's data are gone");
    leader.restart();
    wait_refused(&follower, "follower holds data of store");
    wait_until("the leader counts it", PATIENCE, || {
        leader.get("/metrics").1.contains("slotstream_followers_refused_total{reason=\"foreign_store\"} ")
    });

    // By hand: another id is a mistake, the leader's own replaces the data.
    assert!(follower.terminate().0.success());
    let id = leader.status()["store_id"].as_str().expect("an id").to_owned();
    let replication = leader.replication().to_string();
    let start = |accepted: &str| {
        run(&[
            "follower",
            "--data-dir",
            b.to_str().expect("utf-8"),
            "--leader",
            &replication,
            "--listen",
            "127.0.0.1:0",
            "--http-listen",
            "127.0.0.1:0",
            "--accept-store",
            accepted,
        ])
    };
    let wrong = start("00000000-0000-0000-0000-000000000001");
    assert!(stderr(&wrong).contains(&format!("has store {id}")), "{}", stderr(&wrong));
    assert_eq!(start("king").status.code(), Some(2));
    set(&leader, 0..5, "new");
    let mut follower = Node::follower(&b, &leader, &["--accept-store", &id]);
    wait_in_sync(&leader, &follower);
    assert!(follower.log().contains("THE DATA OF THIS DIRECTORY ARE THROWN AWAY"));
    // The option may stay: nothing is thrown away that the leader does not refuse.
    assert!(follower.terminate().0.success());
    follower.restart();
    wait_in_sync(&leader, &follower);
    assert_eq!(follower.log().matches("THROWN AWAY").count(), 1);
    assert_eq!(leader.metric("slotstream_full_scans_total"), 2.0);
    assert!(follower.terminate().0.success());
    assert!(leader.terminate().0.success());
    assert_equal(&a, &b);
}

/// It came back as what it was before its first write: an early copy of its directory, or a power cut that took
/// all of it.
#[test]
fn a_leader_that_lost_all_that_it_held_empties_nobody() {
    let root = tempfile::tempdir().expect("temp dir");
    let [a, b, c, copy] = ["a", "b", "c", "copy"].map(|name| root.path().join(name));
    let mut leader = Node::leader(&a, SIZES);
    assert!(leader.terminate().0.success());
    copy_directory(&a, &copy);
    leader.restart();
    let mut yielding = Node::follower(&b, &leader, &[]);
    let mut keeping = Node::follower(&c, &leader, &[]);
    set(&leader, 0..20, "precious");
    wait_in_sync(&leader, &yielding);
    wait_in_sync(&leader, &keeping);
    leader.kill();
    std::fs::remove_dir_all(&a).expect("the leader's data are gone");
    copy_directory(&copy, &a);
    leader.restart();
    wait_refused(&yielding, EMPTIED);
    wait_refused(&keeping, EMPTIED);
    // Nor does what it writes from then on, more than there ever was, make it what it was.
    set(&leader, 0..200, "other");
    keeping.kill();
    keeping.restart();
    wait_refused(&keeping, EMPTIED);
    wait_refused(&yielding, EMPTIED);

    // By hand: one gives its data up, with a report, and the other one leads.
    let id = leader.status()["store_id"].as_str().expect("an id").to_owned();
    assert!(yielding.terminate().0.success());
    let yielding = Node::follower(&b, &leader, &["--accept-store", &id]);
    wait_in_sync(&leader, &yielding);
    assert_eq!(yielding.client().call(&["GET", "key-1"]).text(), "other");
    assert_eq!(yielding.metric("slotstream_writes_dropped_total"), 20.0);
    let log = yielding.log();
    assert!(log.contains("ARE THROWN AWAY") && log.contains("take the option away"), "{log}");
    assert!(keeping.terminate().0.success());
    keeping.restart();
    wait_refused(&keeping, EMPTIED);
    assert_eq!(keeping.client().call(&["REPLICAOF", "NO", "ONE"]).text(), "OK");
    assert_eq!(replicaof(&leader, &keeping), "OK");
    wait_in_sync(&keeping, &leader);
    wait_in_sync(&keeping, &yielding);
    assert_eq!(leader.client().call(&["GET", "key-1"]).text(), "precious");

    // To delete everything is no loss: seqs go on.
    assert_eq!(keeping.client().call(&["FLUSHALL"]).text(), "OK");
    wait_in_sync(&keeping, &leader);
    keeping.kill();
    keeping.restart();
    wait_in_sync(&keeping, &leader);
    assert_eq!(leader.client().call(&["DBSIZE"]), crate::harness::Reply::Integer(0));
}

#[test]
fn a_leader_of_an_older_epoch_is_refused() {
    let root = tempfile::tempdir().expect("temp dir");
    let [a, b, c] = ["a", "b", "c"].map(|name| root.path().join(name));
    let mut old = Node::leader(&a, SIZES);
    let new = Node::follower(&b, &old, &[]);
    let mut follower = Node::follower(&c, &old, &[]);
    set(&old, 0..20, "precious");
    wait_in_sync(&old, &new);
    wait_in_sync(&old, &follower);
    assert_eq!(new.client().call(&["REPLICAOF", "NO", "ONE"]).text(), "OK");
    assert_eq!(replicaof(&follower, &new), "OK");
    wait_in_sync(&new, &follower);
    // The old leader knows nothing of it, and hears of it by the order that is refused.
    assert_eq!(old.client().call(&["SET", "key-1", "precious"]).text(), "OK");
    let refused = replicaof(&follower, &old);
    assert!(refused.contains("is in epoch 1, this node has seen epoch 2"), "{refused}");
    assert!(refused.ends_with("was told so, and takes no writes any more"), "{refused}");
    assert_replaced(&old, 2);
    wait_in_sync(&new, &follower);
    // Nor does somebody who starts it at the old leader again.
    assert!(follower.terminate().0.success());
    std::fs::remove_file(c.join("role.json")).expect("the role given at run time");
    follower.restart();
    wait_refused(&follower, "another one leads in epoch 2");
    assert!(follower.terminate().0.success());
    assert!(old.client().call(&["FAILOVER"]).text().contains("another one leads in epoch 2"));
    // However it ends, it comes back as what it was.
    old.kill();
    old.restart();
    assert_replaced(&old, 2);
    assert!(old.terminate().0.success());
    old.restart();
    assert_replaced(&old, 2);
    assert!(old.log().contains("this leader was replaced before it was stopped"), "{}", old.log());
    let refused = promote(&old, &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("another node leads in epoch 2"), "{}", stderr(&refused));
    assert_replaced(&old, 2);
    // Other arguments are somebody's word that it leads, in the epoch that it was in; and it follows if somebody
    // says so.
    assert!(old.terminate().0.success());
    let old = Node::leader(&a, &["--promote"]);
    let id = old.status()["store_id"].as_str().expect("an id").to_owned();
    let adopted = Node::follower(&c, &old, &["--accept-store", &id]);
    wait_in_sync(&old, &adopted);
    assert!(adopted.log().contains("it was in epoch 2, the leader is in epoch 1"), "{}", adopted.log());
    assert_eq!(replicaof(&old, &new), "OK");
    wait_in_sync(&new, &old);
}

/// Somebody takes the lead away from a node and gives it to the one that had it before. That was once refused and
/// stopped the other one's writes all the same: nobody was left who took any.
#[test]
fn a_leader_that_may_not_follow_an_older_one_leaves_it_as_it_is() {
    let root = tempfile::tempdir().expect("temp dir");
    let (old, new) = precious_pair(&root);
    assert_eq!(new.client().call(&["REPLICAOF", "NO", "ONE"]).text(), "OK");
    let refused = replicaof(&new, &old);
    for words in
        ["is in epoch 1, this node has seen epoch 2", "nothing was changed", "REPLICAOF", "--accept-store"]
    {
        assert!(refused.contains(words), "{words:?} is not in: {refused}");
    }
    for node in [&old, &new] {
        assert_eq!(node.client().call(&["SET", "key-1", "x"]).text(), "OK");
        assert_eq!(info(node, "slotstream_superseded_by_epoch"), "0");
    }
    // What the answer names is done.
    assert_eq!(replicaof(&old, &new), "OK");
    wait_in_sync(&new, &old);
}

#[test]
fn a_leader_that_was_replaced_leads_again_when_told_to() {
    let root = tempfile::tempdir().expect("temp dir");
    let (mut old, mut new) = precious_pair(&root);
    assert_eq!(new.client().call(&["REPLICAOF", "NO", "ONE"]).text(), "OK");
    set(&new, 20..30, "in between");
    // Its successor comes back as its follower: that is how it hears of the newer epoch.
    assert!(new.terminate().0.success());
    std::fs::remove_file(new.directory.join("role.json")).expect("the role given at run time");
    new.restart();
    wait_refused(&new, "epoch");
    assert_replaced(&old, 2);
    let forced = promote(&old, &["--force"]);
    assert!(forced.status.success(), "{}", stderr(&forced));
    assert_eq!(
        stdout(&forced),
        format!("{} leads again, past epoch 2 that had replaced it\n", old.ports.listen)
    );
    assert_eq!(old.status()["superseded_by_epoch"], serde_json::Value::Null);
    // Also after a restart.
    old.kill();
    old.restart();
    set(&old, 30..40, "precious");
    wait_in_sync(&old, &new);
    assert_eq!(old.metric("slotstream_epoch"), 3.0);
    assert_eq!(new.client().call(&["EXISTS", "key-25"]), crate::harness::Reply::Integer(0));
}

/// A leader that was started again at another replication port is found by where it serves Redis clients.
#[test]
fn a_leader_that_takes_followers_at_another_port_is_found() {
    let root = tempfile::tempdir().expect("temp dir");
    let [a, b] = ["a", "b"].map(|name| root.path().join(name));
    let mut leader = Node::leader(&a, SIZES);
    let follower = Node::follower(&b, &leader, &[]);
    set(&leader, 0..20, "x");
    wait_in_sync(&leader, &follower);
    assert_eq!(replicaof(&follower, &leader), "OK", "now it knows the Redis port");
    wait_in_sync(&leader, &follower);
    assert!(leader.terminate().0.success());
    leader.ports.replication_listen = None;
    leader.restart();
    wait_in_sync(&leader, &follower);
    assert_eq!(leader.metric("slotstream_full_scans_total"), 0.0);
}

/// A leader must not serve damage, and nobody else has what it holds beyond its followers: somebody decides.
/// What is asked of them is the README's: promote, follow, switch back.
#[test]
fn a_damaged_leader_is_healed_by_the_follower_that_took_over() {
    let root = tempfile::tempdir().expect("temp dir");
    let (a, b) = (root.path().join("a"), root.path().join("b"));
    let mut leader = Node::leader(&a, SIZES);
    let mut other = Node::follower(&b, &leader, &[]);
    set(&leader, 0..100, "precious");
    wait_in_sync(&leader, &other);
    assert!(leader.terminate().0.success());
    let file = a.join("shards").join("0001.slots");
    let mut bytes = std::fs::read(&file).expect("a shard file");
    // Not the redo record, which comes first, and not the last write, which that would heal.
    let values = bytes.windows(8).enumerate().filter(|(_, window)| *window == b"precious");
    let in_a_value = values.map(|(position, _)| position).nth(10).expect("a record");
    bytes[in_a_value] ^= 1;
    std::fs::write(&file, &bytes).expect("written");
    drop(leader);
    let verify = run(&["verify", &a.to_string_lossy()]);
    assert_eq!(verify.status.code(), Some(1));
    assert!(stdout(&verify).contains("damaged slots: 1"), "{}", stdout(&verify));
    // As a leader it serves all but that one.
    let mut damaged = Node::leader(&a, SIZES);
    wait_until("the damaged slot is found", PATIENCE, || damaged.metric("slotstream_slots_damaged") == 1.0);
    let mut client = damaged.client();
    let replies = (0..100).map(|key| client.call(&["GET", &format!("key-{key}")]));
    let errors = replies.filter(|reply| matches!(reply, Reply::Error(_))).count();
    assert_eq!((errors, client.call(&["GET", "none"])), (1, Reply::Nil));
    assert!(damaged.terminate().0.success());
    drop(damaged);

    assert!(promote(&other, &[]).status.success());
    set(&other, 100..110, "precious");
    let mut back = Node::follower(&a, &other, &[]);
    wait_in_sync(&other, &back);
    wait_until("the damaged slot is healed", PATIENCE, || back.metric("slotstream_slots_damaged") == 0.0);
    let sent = other.metric("slotstream_scan_slots_sent_total");
    assert!(sent > 0.0 && sent < 100.0, "{sent} slots were sent, wanted what is damaged or new");
    let (from, to) = (other.ports.listen.to_string(), back.ports.listen.to_string());
    let switched = run(&["switchover", &from, "--to", &to]);
    assert!(switched.status.success(), "{}", stderr(&switched));
    wait_in_sync(&back, &other);
    for key in 0..110 {
        assert_eq!(back.client().call(&["GET", &format!("key-{key}")]).text(), "precious");
    }
    for node in [&mut other, &mut back] {
        assert!(node.terminate().0.success());
    }
    assert_equal(&a, &b);
}
