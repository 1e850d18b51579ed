//! Backups in a bucket are what backups in a directory are: equal, chained, whole or none.

use std::process::{Child, Stdio};
use std::time::Duration;

use crate::door::{Door, Rule};
use crate::harness::{Node, assert_equal, run_command, stderr, wait_until};
use crate::moto::Moto;
use crate::steps::{
    LARGE, LONG, MANY, assert_good, assert_refused, backup, backup_command, fill, restore, s3,
};

/// Longer than a leader waits for a follower that says nothing.
const LONGER_THAN_A_LINK: Duration = Duration::from_secs(12);
const PART_SIZE: u64 = 16 << 20;

/// Waits until so many bytes of a backup went out.
#[track_caller]
fn wait_sent(door: &Door, bytes: u64, child: &mut Child) {
    let mut has_ended = false;
    wait_until("a part of the backup went out", LONG, || {
        has_ended = child.try_wait().expect("a child of ours").is_some();
        has_ended || door.sent() >= bytes
    });
    if has_ended {
        panic!("the backup has ended: {:?}", child.stderr.take().map(std::io::read_to_string));
    }
}

#[test]
fn a_chain_over_buckets_and_directories_equals_the_leader() {
    let Some(moto) = Moto::start() else { return };
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let text = |name: &str| at(name).display().to_string();
    let sizes = ["--shard-count", "2", "--key-size", "16", "--value-size", "64"];
    let mut leader = Node::leader(&at("leader"), &sizes);
    let mut client = leader.client();
    fill(&mut client, 0..3_000, 0, 64);
    let said = assert_good(&backup(&leader, &moto, &s3("chain/full"), None));
    assert!(said.contains("full backup") && said.contains("3,000 records"), "{said}");
    for number in 100..200 {
        client.call(&["DEL", &format!("key:{number}")]);
    }
    assert_good(&backup(&leader, &moto, &text("second"), Some(&s3("chain/full"))));
    fill(&mut client, 2_900..3_100, 1, 64);
    assert_good(&backup(&leader, &moto, &s3("chain/third"), Some(&text("second"))));
    // What lies in a bucket can be copied to a directory, and is a backup there.
    std::fs::create_dir(at("copied")).expect("creates");
    for name in ["0000.backup", "0001.backup", "manifest.json"] {
        let bytes = moto.object(&format!("chain/full/{name}")).expect("it is there");
        std::fs::write(at("copied").join(name), bytes).expect("writes");
    }
    let second = text("second");
    let said =
        assert_good(&restore(&moto, &[&s3("chain/full"), &second, &s3("chain/third")], &at("restored")));
    assert!(said.contains("restored 3,000 records"), "{said}");
    assert_good(&restore(&moto, &[&text("copied"), &second, &s3("chain/third")], &at("again")));
    assert!(leader.terminate().0.success());
    assert_equal(&leader.directory, &at("restored"));
    assert_equal(&leader.directory, &at("again"));

    // What does not belong together, what is there already, what is not there.
    let to = at("to");
    assert_refused(&restore(&moto, &[&s3("chain/full"), &s3("chain/third")], &to), "a backup is missing");
    assert_refused(
        &restore(&moto, &[&s3("chain/none")], &to),
        "s3://backups/chain/none: has no manifest.json",
    );
    leader.restart();
    assert_refused(&backup(&leader, &moto, &s3("chain/full"), None), "holds a backup already");
    assert!(!to.exists(), "a refused restore made the directory");

    // What is missing, cut off or damaged in the bucket.
    let (shard, manifest) = ("chain/full/0001.backup", "chain/full/manifest.json");
    for key in [shard, manifest] {
        let good = moto.object(key).expect("it is there");
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 0x20;
        moto.replace(key, &bad);
        assert_refused(&restore(&moto, &[&s3("chain/full")], &to), &format!("s3://backups/{key}"));
        moto.replace(key, &good[..good.len() - 1]);
        assert_refused(&restore(&moto, &[&s3("chain/full")], &to), &format!("s3://backups/{key}"));
        moto.delete(key);
        assert_refused(&restore(&moto, &[&s3("chain/full")], &to), "s3://backups/chain/full");
        moto.replace(key, &good);
        assert!(!to.join("shards").exists(), "a refused restore left a store");
    }
    assert_good(&restore(&moto, &[&s3("chain/full")], &to));
}

#[test]
fn a_large_object_that_is_interrupted_is_no_backup_and_the_next_one_is() {
    let Some(moto) = Moto::start() else { return };
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let mut leader = Node::leader(&at("leader"), LARGE);
    fill(&mut leader.client(), 0..MANY, 0, 1_000);
    let to = s3("large");

    // The server goes away in the middle of the second part, and does not come back.
    let door = Door::new(moto.address, Rule::CutAfter(PART_SIZE + PART_SIZE / 2));
    let output = run_command(&mut backup_command(&leader, (&moto, door.address), &to, None), LONG);
    assert_refused(&output, "s3://backups/large/0000.backup");
    assert_eq!((moto.object("large/manifest.json"), moto.object("large/0000.backup")), (None, None));
    assert_refused(&restore(&moto, &[&to], &at("restored")), "no manifest.json");

    // The backup is killed there.
    let door = Door::new(moto.address, Rule::HoldAfter(PART_SIZE + PART_SIZE / 2));
    let mut command = backup_command(&leader, (&moto, door.address), &to, None);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    wait_sent(&door, PART_SIZE + PART_SIZE / 2, &mut child);
    child.kill().expect("a child of ours can be killed");
    child.wait().expect("a killed child ends");
    drop(door);
    assert_eq!(moto.object("large/manifest.json"), None);
    assert_refused(&restore(&moto, &[&to], &at("restored")), "no manifest.json");

    // A server that is busy at first, and then slower than a link may be silent.
    let door = Door::new(moto.address, Rule::Busy(3, PART_SIZE / 2));
    let mut command = backup_command(&leader, (&moto, door.address), &to, None);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
    wait_sent(&door, PART_SIZE / 2, &mut child);
    std::thread::sleep(LONGER_THAN_A_LINK);
    door.set(Rule::Open);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!leader.log().contains("silent"), "{}", leader.log());
    assert_good(&restore(&moto, &[&to], &at("restored")));
    assert!(leader.terminate().0.success());
    assert_equal(&leader.directory, &at("restored"));
}

#[test]
fn two_backups_to_one_prefix_at_a_time_are_never_both_called_whole() {
    let Some(moto) = Moto::start() else { return };
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let leader = Node::leader(&at("leader"), LARGE);
    let mut client = leader.client();
    fill(&mut client, 0..MANY / 2, 0, 1_000);
    let to = s3("shared");
    let door = Door::new(moto.address, Rule::HoldAfter(PART_SIZE / 2));
    let mut command = backup_command(&leader, (&moto, door.address), &to, None);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
    wait_sent(&door, PART_SIZE / 2, &mut child);
    fill(&mut client, 0..1_000, 1, 1_000);
    assert_good(&backup(&leader, &moto, &to, None));
    door.set(Rule::Open);
    let output = child.wait_with_output().expect("it ends");
    assert_refused(&output, "another process has written a backup there at the same time");
    // The manifest is that of the second one, the object that of the first one.
    assert_refused(&restore(&moto, &[&to], &at("restored")), "s3://backups/shared/0000.backup");
}
