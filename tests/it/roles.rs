//! What becomes of a directory when its node's role changes, and of a node nobody listens to.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{
    Client, Node, PATIENCE, Reply, assert_equal, command, poll, run, stderr, wait_in_sync, wait_until,
};

const SIZES: &[&str] = &["--shard-count", "2", "--key-size", "16", "--value-size", "32"];

fn set(node: &Node, keys: std::ops::Range<u32>, value: &str) {
    let mut client = node.client();
    for key in keys {
        assert_eq!(client.call(&["SET", &format!("key-{key}"), value]).text(), "OK");
    }
}

/// Starts a node that must fail, with these words.
fn assert_refused(role: &str, directory: &Path, arguments: &[&str], words: &str) {
    let path = directory.to_str().expect("utf-8");
    let ports = ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    let refused = run(&[&[role, "--data-dir", path], &ports[..], arguments].concat());
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains(words), "{}", stderr(&refused));
}

#[test]
fn a_promoted_follower_leads_in_a_new_epoch_and_the_old_leader_is_rewound() {
    let directory = tempfile::tempdir().expect("temp dir");
    let [a, b, c] = ["a", "b", "c"].map(|name| directory.path().join(name));
    let mut old = Node::leader(&a, SIZES);
    let mut behind = Node::follower(&c, &old, &[]);
    set(&old, 0..50, "both");
    wait_in_sync(&old, &behind);
    assert!(behind.terminate().0.success());
    let mut next = Node::follower(&b, &old, &[]);
    set(&old, 50..100, "both");
    wait_in_sync(&old, &next);
    assert!(next.terminate().0.success());
    set(&old, 0..10, "only the old leader has this");
    assert!(old.terminate().0.success());

    let replication = ["--replication-listen", "127.0.0.1:0"];
    assert_refused("leader", &b, &replication, "this store follows a leader; give --promote");

    let mut promoted = Node::leader(&b, &["--promote"]);
    set(&promoted, 100..120, "the new leader");
    assert_eq!(promoted.client().call(&["GET", "key-0"]).text(), "both");

    // One that was behind takes a delta into the new epoch.
    let mut behind = Node::follower(&c, &promoted, &[]);
    wait_in_sync(&promoted, &behind);
    assert_eq!(behind.client().call(&["GET", "key-119"]).text(), "the new leader");
    assert_eq!(promoted.metric("slotstream_full_scans_total"), 0.0);

    // The old leader has changes of its own: they go to a report, and only those slots come anew.
    let mut rewound = Node::follower(&a, &promoted, &[]);
    wait_in_sync(&promoted, &rewound);
    assert_eq!(rewound.client().call(&["GET", "key-0"]).text(), "both");
    assert_eq!(promoted.metric("slotstream_full_scans_total"), 0.0);
    let mut dropped = BTreeSet::new();
    for entry in std::fs::read_dir(&a).expect("lists").map(|entry| entry.expect("lists")) {
        if entry.file_name().to_string_lossy().starts_with("dropped-") {
            // The first line says what the report is.
            for line in std::fs::read_to_string(entry.path()).expect("reads").lines().skip(1) {
                let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
                assert_eq!(line["value"], "only the old leader has this");
                assert!(dropped.insert(line["key"].as_str().expect("text").to_owned()), "{line} twice");
            }
        }
    }
    assert_eq!(dropped, (0..10).map(|key| format!("key-{key}")).collect());

    for node in [&mut behind, &mut rewound, &mut promoted] {
        assert!(node.terminate().0.success());
    }
    assert_equal(&b, &c);
    assert_equal(&a, &b);
}

/// A log pipe whose reader had gone once ended one thread after another, and the rest went on half-dead.
#[test]
fn a_node_whose_log_nobody_takes_goes_on() {
    let directory = tempfile::tempdir().expect("temp dir");
    let ports = directory.path().join("ports.json");
    let mut leader = command(&[
        "leader",
        "--listen",
        "127.0.0.1:0",
        "--replication-listen",
        "127.0.0.1:0",
        "--http-listen",
        "127.0.0.1:0",
        "--log-level",
        "debug",
    ]);
    leader.args(SIZES).arg("--data-dir").arg(directory.path().join("a")).arg("--ports-file").arg(&ports);
    let mut child = leader.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("spawns");
    drop(child.stderr.take());
    wait_until("the node serves", PATIENCE, || ports.exists());
    let bound: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&ports).expect("ports file")).expect("JSON");
    let address = |name: &str| bound[name].as_str().expect("an address").parse().expect("HOST:PORT");
    let mut client = Client::connect(address("listen"));
    assert_eq!(client.call(&["SET", "key", "value"]).text(), "OK");
    // Each connection and its end is a log line.
    for round in 0..3 {
        let mut follower = Node::follower_of(
            &directory.path().join(format!("f{round}")),
            address("replication_listen"),
            &[],
        );
        wait_until("the follower has it", PATIENCE, || {
            follower.client().call(&["GET", "key"]) == Reply::Bulk(b"value".to_vec())
        });
        follower.kill();
    }
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::TERM).expect("signal");
    let ended = poll(PATIENCE, || child.try_wait().expect("waits").is_some());
    if !ended {
        child.kill().expect("kills");
    }
    assert!(ended && child.wait().expect("waits").success(), "SIGTERM ends it in order");
}
