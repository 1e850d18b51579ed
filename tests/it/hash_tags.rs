//! Keys with one hash tag share a shard: on the leader that made the store, after a restart, on its followers. A store that
//! was made without keeps its own way.

use crate::harness::{Node, PATIENCE, wait_in_sync, wait_until};

/// Highest seq of each shard.
fn seqs(node: &Node) -> Vec<u64> {
    let status = node.status();
    let shards = status["shards"].as_array().expect("shards");
    shards.iter().map(|shard| shard["seq"].as_u64().expect("a seq")).collect()
}

/// Writes keys with a tag; how many shards have changed.
fn shards_of(node: &Node, tag: &str) -> usize {
    let before = seqs(node);
    let mut client = node.client();
    for number in 0..40 {
        assert_eq!(client.call(&["SET", &format!("{number}{{{tag}}}"), "value"]).text(), "OK");
    }
    let mut changed = 0;
    wait_until("the writes are in the status", PATIENCE, || {
        let after = seqs(node);
        changed = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        after.iter().sum::<u64>() == before.iter().sum::<u64>() + 40
    });
    changed
}

#[test]
fn keys_with_one_hash_tag_share_a_shard_on_every_node() {
    let directory = tempfile::tempdir().expect("temp dir");
    let mut leader = Node::leader(&directory.path().join("leader"), &["--shard-count", "8"]);
    assert_eq!(leader.status()["sizes"]["hash_tags"], true);
    for tag in ["a", "user:7", "x y"] {
        assert_eq!(shards_of(&leader, tag), 1, "{tag}");
    }
    // Without a tag they are spread, and an empty one is none.
    assert!(shards_of(&leader, "") > 1);
    assert!(leader.terminate().0.success());
    leader.restart();
    assert_eq!(shards_of(&leader, "a"), 1);
    let mut follower = Node::follower(&directory.path().join("follower"), &leader, &[]);
    wait_in_sync(&leader, &follower);
    assert_eq!(seqs(&follower), seqs(&leader));
    assert!(follower.terminate().0.success());
    follower.restart();
    assert_eq!(follower.status()["sizes"]["hash_tags"], true);
    wait_in_sync(&leader, &follower);
    let mut client = follower.client();
    for number in 0..40 {
        assert_eq!(client.call(&["GET", &format!("{number}{{a}}")]).text(), "value");
    }
}

#[test]
fn a_store_that_was_made_without_hash_tags_keeps_its_routing() {
    let directory = tempfile::tempdir().expect("temp dir");
    for (name, bits) in [("whole", "0"), ("prefix", "16")] {
        let data = directory.path().join(name);
        let mut node = Node::leader(&data, &["--shard-count", "8", "--shard-prefix-bits", bits]);
        assert!(shards_of(&node, "a") > 1, "{name}");
        assert!(node.terminate().0.success());
        let node = Node::leader(&data, &[]);
        assert_eq!(node.status()["sizes"]["hash_tags"], false);
        let mut client = node.client();
        for number in 0..40 {
            assert_eq!(client.call(&["GET", &format!("{number}{{a}}")]).text(), "value");
        }
        assert!(shards_of(&node, "b") > 1, "{name}");
    }
}
