//! What Redis clients set, and what of it a restart keeps.

use crate::harness::{Node, Reply};

fn setting(node: &Node, name: &str) -> String {
    let Reply::Array(pair) = node.client().call(&["CONFIG", "GET", name]) else { panic!("a map") };
    pair.get(1).map(Reply::text).unwrap_or_default()
}

#[track_caller]
fn is_ok(node: &Node, words: &[&str]) {
    assert_eq!(node.client().call(words).text(), "OK", "{words:?}");
}

/// CONFIG REWRITE once answered OK and kept nothing.
#[test]
fn what_config_rewrite_was_told_to_keep_outlives_restarts_until_the_arguments_change() {
    let directory = tempfile::tempdir().expect("temp dir");
    let data = directory.path().join("a");
    let file = data.join("settings.json");
    let mut node = Node::leader(&data, &["--sync-timeout", "2s"]);
    is_ok(&node, &["CONFIG", "REWRITE"]);
    assert!(!file.exists(), "nothing was set");
    is_ok(&node, &["CONFIG", "SET", "sync-timeout", "250ms", "min-replicas-max-lag", "7"]);
    is_ok(&node, &["CONFIG", "REWRITE"]);
    is_ok(&node, &["CONFIG", "SET", "sync-followers", "3"]);
    assert!(node.log().contains("CONFIG SET, until this node is started again"), "{}", node.log());
    node.kill();
    node.restart();
    let found = ["sync-timeout", "min-followers-max-lag", "sync-followers"].map(|name| setting(&node, name));
    assert_eq!(found, ["250ms", "7000ms", "1"]);
    // Set back to what the arguments say, there is nothing to keep.
    is_ok(&node, &["CONFIG", "SET", "sync-timeout", "2s", "min-followers-max-lag", "10s"]);
    is_ok(&node, &["CONFIG", "REWRITE"]);
    assert!(!file.exists(), "{}", std::fs::read_to_string(&file).unwrap_or_default());
    is_ok(&node, &["CONFIG", "SET", "sync-timeout", "250ms"]);
    is_ok(&node, &["CONFIG", "REWRITE"]);
    assert!(node.terminate().0.success());
    // Other arguments that have nothing to do with it change nothing; others of its kind are a newer word.
    let mut node = Node::leader(&data, &["--sync-timeout", "2s", "--workers", "2"]);
    assert_eq!(setting(&node, "sync-timeout"), "250ms");
    assert!(node.terminate().0.success());
    let node = Node::leader(&data, &["--sync-timeout", "3s"]);
    assert_eq!(setting(&node, "sync-timeout"), "3000ms");
    assert!(
        !file.exists() && node.log().contains("what CONFIG REWRITE has kept is forgotten"),
        "{}",
        node.log()
    );
}

/// Sentinel sends it behind each change of a role: what is not kept must not be called so.
#[test]
fn config_rewrite_that_cannot_write_says_so() {
    let directory = tempfile::tempdir().expect("temp dir");
    let data = directory.path().join("a");
    let node = Node::leader(&data, &[]);
    // A folder of its name: no file can take its place.
    let file = data.join("settings.json");
    std::fs::create_dir(&file).expect("a folder");
    std::fs::write(file.join("full"), "").expect("written");
    is_ok(&node, &["CONFIG", "SET", "sync-timeout", "250ms"]);
    let refused = node.client().call(&["CONFIG", "REWRITE"]).text();
    assert!(refused.starts_with("ERR Rewriting config file: "), "{refused}");
    assert!(!data.join("settings.json.new").exists(), "nothing unfinished is left");
}
