//! Coming back without a look at the slots, after an orderly stop and after kill -9; and with a look at them
//! where the digest is not beyond doubt.

use std::path::PathBuf;

use crate::harness::{Node, PATIENCE, Reply, command, run_command, stdout, wait_until};
use crate::load::Load;

const SIZES: &[&str] = &["--shard-count", "2", "--key-size", "16", "--value-size", "64"];
const KILLS: u64 = 5;

/// Waits until every slot was looked at in the background, and asserts that all was well.
#[track_caller]
fn assert_audited(node: &Node) {
    wait_until("every slot was looked at", PATIENCE, || {
        node.metric("slotstream_slots_audited_total") >= node.metric("slotstream_slots_capacity")
    });
    assert_eq!(node.metric("slotstream_misfits_mended_total"), 0.0);
    assert_eq!(node.metric("slotstream_slots_damaged"), 0.0);
}

fn assert_verified(node: &Node) {
    let output = run_command(command(&["verify"]).arg(&node.directory), PATIENCE);
    assert!(output.status.success(), "{}", stdout(&output));
}

#[test]
fn a_leader_killed_under_load_comes_back_from_its_digest() {
    let directory = tempfile::tempdir().expect("temp dir");
    let mut node = Node::leader(&directory.path().join("data"), SIZES);
    let load = Load::start(node.ports.listen, 2);
    for round in 0..KILLS {
        load.wait_for(2_000 + 300 * round);
        node.kill();
        assert_verified(&node);
        node.restart();
        wait_until("the audit begins", PATIENCE, || node.metric("slotstream_slots_audited_total") > 0.0);
        assert_eq!(node.metric("slotstream_misfits_mended_total"), 0.0);
    }
    let writers = load.finish();
    node.kill();
    node.restart();
    assert_audited(&node);
    for writer in &writers {
        writer.assert_held_by(node.ports.listen);
    }
    assert!(node.terminate().0.success());
    assert_verified(&node);
}

fn digest_files(node: &Node) -> [PathBuf; 2] {
    [0, 1].map(|shard| node.directory.join(format!("shards/{shard:04}.digest")))
}

type Digests = [Vec<u8>; 2];

/// What can become of digests; the second argument is those of an earlier opening.
const SPOILERS: &[fn(Digests, Digests) -> Digests] = &[
    |_, _| [vec![], vec![]],
    |good, _| good.map(|bytes| bytes[..5000].to_vec()),
    |good, _| {
        good.map(|mut bytes| {
            bytes[4096 + 4096 + 40] ^= 1;
            bytes
        })
    },
    |_, first| first,
    |[first, second], _| [second, first],
];

#[test]
fn a_stopped_leader_comes_back_from_its_digest_and_without_a_good_one_from_its_slots() {
    let directory = tempfile::tempdir().expect("temp dir");
    let mut node = Node::leader(&directory.path().join("data"), SIZES);
    let mut client = node.client();
    for number in 0..3_000 {
        assert_eq!(client.call(&["SET", &format!("key:{number}"), "value"]).text(), "OK");
    }
    for number in 0..500 {
        assert_eq!(client.call(&["DEL", &format!("key:{number}")]), Reply::Integer(1));
    }
    let assert_whole = |node: &Node, number: u32| {
        let mut client = node.client();
        assert_eq!(client.call(&["DBSIZE"]), Reply::Integer(2_500));
        assert_eq!(client.call(&["GET", &format!("key:{number}")]).text(), "value");
        assert_eq!(client.call(&["GET", &format!("key:{}", number - 500)]), Reply::Nil);
    };
    assert!(node.terminate().0.success());
    let first = digest_files(&node).map(|file| std::fs::read(file).expect("a digest"));
    node.restart();
    assert_audited(&node);
    assert_whole(&node, 500);
    assert!(node.terminate().0.success());
    for (spoil, number) in SPOILERS.iter().zip(600..) {
        let good = digest_files(&node).map(|file| std::fs::read(file).expect("a digest"));
        let spoilt = spoil(good, first.clone());
        for (file, bytes) in digest_files(&node).into_iter().zip(spoilt) {
            std::fs::write(file, bytes).expect("write");
        }
        assert_verified(&node);
        node.restart();
        assert_whole(&node, number);
        assert_eq!(node.metric("slotstream_slots_audited_total"), 0.0, "every slot was read at opening");
        assert!(node.terminate().0.success());
        assert_verified(&node);
    }
}
