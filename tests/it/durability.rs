//! What survives: kill -9 with a log, and I/O errors.

use std::process::Command;

use crate::harness::{Client, Node, PATIENCE, Reply, command, run_command, wait_in_sync};

const SIZES: &[&str] = &["--shard-count", "2", "--key-size", "16", "--value-size", "200"];
const LOGGED: &[&str] = &[
    "--durability",
    "interval",
    "--durability-interval",
    "20ms",
    "--wal-segment-size",
    "128KiB",
    "--wal-size-max",
    "512KiB",
];

fn arguments() -> Vec<&'static str> {
    [SIZES, LOGGED].concat()
}

fn value(number: u64) -> String {
    format!("{number:0>100}")
}

/// Sets so many keys, each to its number; returns when all are durable.
fn write(client: &mut Client, numbers: std::ops::Range<u64>) {
    for number in numbers {
        assert_eq!(client.call(&["SET", &format!("key:{number}"), &value(number)]).text(), "OK");
    }
    assert_eq!(client.call(&["WAITAOF", "1", "0", "0"]), durable(1, 0));
}

fn durable(here: i64, followers: i64) -> Reply {
    Reply::Array(vec![Reply::Integer(here), Reply::Integer(followers)])
}

fn assert_held(client: &mut Client, numbers: std::ops::Range<u64>) {
    for number in numbers {
        assert_eq!(client.call(&["GET", &format!("key:{number}")]).text(), value(number), "key:{number}");
    }
}

#[test]
fn a_node_with_a_log_says_what_is_durable_and_keeps_all_of_it_over_kills() {
    let directory = tempfile::tempdir().expect("temp dir");
    let mut leader = Node::leader(&directory.path().join("leader"), &arguments());
    let follower = Node::follower(&directory.path().join("follower"), &leader, LOGGED);
    wait_in_sync(&leader, &follower);
    // More than the log may hold at once, so that it is cut while this goes on.
    write(&mut leader.client(), 0..8_000);
    let mut client = leader.client();
    assert_eq!(client.call(&["SET", "key:0", &value(0)]).text(), "OK");
    assert_eq!(client.call(&["WAITAOF", "1", "1", "0"]), durable(1, 1));
    assert!(leader.metric("slotstream_wal_checkpoints_total") > 0.0);
    assert_eq!(leader.metric("slotstream_wal_takes_changes"), 1.0);
    assert_eq!(leader.status()["log"]["state"], "going");
    for round in 1..4 {
        write(&mut leader.client(), round * 8_000..round * 8_000 + 100);
        leader.kill();
        leader.restart();
        assert_held(&mut leader.client(), round * 8_000..round * 8_000 + 100);
    }
    assert_held(&mut leader.client(), 0..8_000);
    wait_in_sync(&leader, &follower);
    assert!(leader.terminate().0.success());
    assert!(run_command(command(&["verify"]).arg(&leader.directory), PATIENCE).status.success());
}

#[test]
fn a_store_begins_and_ends_to_keep_a_log_as_its_options_say() {
    let directory = tempfile::tempdir().expect("temp dir");
    let data = directory.path().join("leader");
    let log = data.join("wal");
    for (round, logged) in [false, true, false, true].into_iter().enumerate() {
        let arguments = if logged { arguments() } else { [SIZES, &["--durability", "none"]].concat() };
        let mut leader = Node::leader(&data, &arguments);
        let mut client = leader.client();
        if logged {
            write(&mut client, 0..100);
        } else {
            let refused = client.call(&["WAITAOF", "1", "0", "0"]);
            assert!(matches!(&refused, Reply::Error(text) if text.contains("--durability")), "{refused:?}");
            for number in 0..100 {
                assert_eq!(client.call(&["SET", &format!("key:{number}"), &value(number)]).text(), "OK");
            }
        }
        assert_eq!(log.is_dir(), logged, "round {round}");
        if round % 2 == 0 {
            leader.kill();
        } else {
            assert!(leader.terminate().0.success());
        }
        assert_eq!(log.is_dir(), logged, "round {round}");
    }
    let mut leader = Node::leader(&data, &[SIZES, &["--durability", "none"]].concat());
    assert_held(&mut leader.client(), 0..100);
    assert!(!log.exists());
    assert!(leader.terminate().0.success());
}

#[test]
fn a_sync_that_fails_ends_the_process() {
    failing_call("fdatasync");
}

#[test]
fn a_write_of_the_log_that_fails_ends_the_process() {
    failing_call("pwrite64");
}

/// From some time on each such call is an I/O error.
fn failing_call(call: &str) {
    let is_there =
        Command::new("strace").arg("--version").output().is_ok_and(|output| output.status.success());
    if !is_there {
        eprintln!("SKIPPED: an I/O error needs strace");
        return;
    }
    let directory = tempfile::tempdir().expect("temp dir");
    let data = directory.path().join("leader");
    let mut leader = Node::leader(&data, &arguments());
    write(&mut leader.client(), 0..100);
    let mut strace = Command::new("strace");
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:error=EIO"));
    strace.args(["-f", "-qq", "-e", &trace, "-e", &inject, "-o", "/dev/null"]);
    let mut strace = strace.args(["-p", &leader.pid().to_string()]).spawn().expect("strace");
    let mut client = leader.client();
    let mut number = 0;
    let ended = crate::harness::poll(PATIENCE, || {
        number += 1;
        let value = value(number);
        client.try_call(&[b"SET".as_slice(), b"more", value.as_bytes()]).is_err()
    });
    let status = ended.then(|| leader.wait(PATIENCE));
    drop(strace.wait());
    let Some(status) = status else {
        eprintln!("SKIPPED: strace has no effect here: {}", leader.log());
        return;
    };
    assert_eq!(status.code(), Some(1), "{}", leader.log());
    assert!(leader.log().contains("can not be made durable"), "{}", leader.log());
    leader.restart();
    assert_held(&mut leader.client(), 0..100);
    assert!(leader.terminate().0.success());
}
