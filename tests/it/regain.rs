//! A leader whose machine lost power gets its last writes back from its follower before it takes new ones.

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use crate::harness::{Node, PATIENCE, Reply, assert_equal, wait_in_sync, wait_until};
use crate::rewind::copy_directory;
use crate::roles_at_run_time::{SIZES, set};

const DEADLINE: Duration = Duration::from_secs(120);

/// Makes the headers of a directory's shards those of a machine that has started again since.
pub(crate) fn forget_boot(directory: &Path) {
    for entry in std::fs::read_dir(directory.join("shards")).expect("lists") {
        let path = entry.expect("lists").path();
        if path.extension().is_none_or(|extension| extension != "slots") {
            continue;
        }
        let mut bytes = std::fs::read(&path).expect("reads");
        for copy in [256, 3584].map(|offset| offset..offset + 3200) {
            let copy = &mut bytes[copy];
            let size = 80 + 24 * usize::from(u16::from_le_bytes([copy[56], copy[57]]));
            copy[24] ^= 0xFF;
            let crc = crc32fast::hash(&copy[4..size]);
            copy[..4].copy_from_slice(&crc.to_le_bytes());
        }
        std::fs::write(&path, bytes).expect("writes");
    }
}

#[test]
fn what_a_power_cut_took_comes_back_from_the_follower() {
    let root = tempfile::tempdir().expect("temp dir");
    let [a, b, older] = ["a", "b", "older"].map(|name| root.path().join(name));
    let mut leader = Node::leader(&a, &[SIZES, &["--recover-from-followers", "60m"]].concat());
    let mut follower = Node::follower(&b, &leader, &[]);
    set(&leader, 0..500, "old");
    wait_in_sync(&leader, &follower);
    copy_directory(&a, &older);
    set(&leader, 250..1_000, "new");
    leader.client().call(&["DEL", "key-0"]);
    wait_in_sync(&leader, &follower);
    leader.kill();
    std::fs::remove_dir_all(&a).expect("what was not on the disk is lost");
    copy_directory(&older, &a);
    forget_boot(&a);
    leader.restart();
    end_regain(&leader, 2);
    assert!(leader.metric("slotstream_slots_regained_total") >= 751.0, "{}", leader.log());
    for (key, value) in [("key-10", "old"), ("key-250", "new"), ("key-999", "new")] {
        assert_eq!(leader.client().call(&["GET", key]).text(), value);
    }
    assert_eq!(leader.client().call(&["EXISTS", "key-0"]), Reply::Integer(0));
    set(&leader, 1_000..1_010, "later");
    wait_in_sync(&leader, &follower);
    assert_eq!(follower.metric("slotstream_writes_dropped_total"), 0.0);
    assert!(follower.terminate().0.success());
    assert!(leader.terminate().0.success());
    assert_equal(&a, &b);
}

/// Ends the wait by hand once all shards have got back what a follower has.
#[track_caller]
pub(crate) fn end_regain(leader: &Node, shards: usize) {
    let has_all = || leader.log().matches("\"given back\"").count() == shards;
    wait_until("all has come back", PATIENCE, has_all);
    assert_eq!(leader.metric("slotstream_regaining"), 1.0, "it waits for others");
    assert_eq!(leader.client().call(&["REPLICAOF", "NO", "ONE"]).text(), "OK");
    assert_eq!(leader.metric("slotstream_regaining"), 0.0);
    wait_until("the leader is ready", PATIENCE, || leader.get("/readyz").0 == 200);
}

/// With a log what was written would come back from it, and not from followers.
pub(crate) const UNLOGGED: &[&str] = &["--durability", "none"];

/// From now on each sync of the first shard's file fails in this node; `None` where nothing may be traced.
pub(crate) fn fail_syncs(node: &Node, directory: &Path) -> Option<Child> {
    let probe = Command::new("strace").args(["-e", "trace=none", "true"]).output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        eprintln!("SKIPPED: no strace here that may trace");
        return None;
    }
    let mut strace = Command::new("strace");
    strace.args([
        "-f",
        "-qq",
        "-e",
        "trace=fdatasync",
        "-e",
        "inject=fdatasync:error=EIO",
        "-o",
        "/dev/null",
    ]);
    strace.arg("-P").arg(directory.join("shards").join("0000.slots")).arg("-p").arg(node.pid().to_string());
    let strace = strace.spawn().expect("strace");
    wait_until("every thread is traced", PATIENCE, || {
        let threads = std::fs::read_dir(format!("/proc/{}/task", node.pid())).expect("threads");
        threads.flatten().all(|thread| {
            let status = std::fs::read_to_string(thread.path().join("status"));
            status.is_ok_and(|status| status.contains(&format!("TracerPid:\t{}\n", strace.id())))
        })
    });
    Some(strace)
}

/// A store whose machine has started again since; with some records.
fn crashed(directory: &Path, level: &[&str]) {
    let mut leader = Node::leader(directory, &[SIZES, level].concat());
    set(&leader, 0..100, "old");
    leader.kill();
    forget_boot(directory);
}

#[test]
fn a_leader_takes_no_writes_while_it_waits_and_says_so() {
    let root = tempfile::tempdir().expect("temp dir");
    let directory = root.path().join("a");
    crashed(&directory, &[]);
    let mut leader = Node::leader(&directory, &[SIZES, &["--recover-from-followers", "60m"]].concat());
    let reply = leader.client().call(&["SET", "key-1", "too early"]).text();
    assert!(reply.starts_with("LOADING"), "{reply}");
    let info = leader.client().call(&["INFO", "persistence"]).text();
    assert!(info.contains("loading:1"), "{info}");
    assert_eq!(leader.metric("slotstream_regaining"), 1.0);
    assert_eq!(leader.get("/readyz").0, 503);
    // Whoever closes it leaves the question to the next start.
    assert!(leader.terminate().0.success());
    let leader = Node::leader(&directory, &[SIZES, &["--recover-from-followers", "1s"]].concat());
    wait_until("the leader takes writes", DEADLINE, || leader.get("/readyz").0 == 200);
    assert_eq!(leader.client().call(&["GET", "key-1"]).text(), "old");
    let info = leader.client().call(&["INFO", "persistence"]).text();
    assert!(info.contains("loading:0"), "{info}");
}

/// Whoever tries a failed sync again is told that all is well.
#[test]
fn a_failed_sync_at_the_end_of_the_wait_ends_the_process() {
    let root = tempfile::tempdir().expect("temp dir");
    let directory = root.path().join("a");
    crashed(&directory, UNLOGGED);
    let mut leader =
        Node::leader(&directory, &[SIZES, UNLOGGED, &["--recover-from-followers", "60m"]].concat());
    assert_eq!(leader.metric("slotstream_regaining"), 1.0);
    let Some(mut strace) = fail_syncs(&leader, &directory) else { return };
    // It ends before it answers, or says that it cannot lead.
    drop(leader.client().try_call(&[b"REPLICAOF", b"NO", b"ONE"]));
    let status = leader.wait(PATIENCE);
    let log = leader.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(".slots") && log.contains("ERROR"), "{log}");
    drop(strace.wait());
    // Nothing says that the shards were whole: the next start asks again.
    leader.restart();
    assert_eq!(leader.metric("slotstream_regaining"), 1.0, "{log}");
}
