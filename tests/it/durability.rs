//! What survives: kill -9 with a log, a log on a full disk, and I/O errors.

use std::process::Command;

use crate::disk::{Kind, Mount};
use crate::harness::{Client, Node, PATIENCE, Reply, command, encode, run_command, wait_in_sync, wait_until};

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
fn a_log_on_a_full_disk_refuses_writes_until_there_is_space() {
    full_disk("interval", 1);
}

#[test]
fn a_log_that_comes_first_refuses_writes_on_a_full_disk_until_there_is_space() {
    // Of a client that waits for its replies there is one write at a time.
    full_disk("always", 100);
}

fn full_disk(level: &str, writers: usize) {
    let Some(mount) = Mount::new(Kind::Ext4, 24) else { return };
    let data = mount.directory.clone();
    let sizes = ["--shard-count", "1", "--key-size", "16", "--value-size", "60000"];
    let log = ["--durability", level, "--wal-segment-size", "128KiB", "--wal-size-max", "8MiB"];
    let mut leader = Node::leader(&data, &[sizes, log].concat());
    let mut client = leader.client();
    let value = |number: u64| format!("{number:0>60000}");
    let set =
        |client: &mut Client, number: u64| client.call(&["SET", &format!("key:{number}"), &value(number)]);
    for number in 0..50 {
        assert_eq!(set(&mut client, number).text(), "OK");
    }
    // All that is left of the disk, but for less than the log's next file.
    let filler = mount.directory.join("filler");
    let words = ["if=/dev/zero".to_owned(), format!("of={}", filler.display()), "bs=64K".into()];
    let filled = Command::new("dd").args(words).output().expect("dd");
    assert!(!filled.status.success(), "the disk is not full");
    // Two files go round for as long as a checkpoint frees one; so many writes at once need more of them.
    let mut pipeline = Vec::new();
    for number in 0..200 / writers as u64 {
        encode(
            &mut pipeline,
            &[b"SET", format!("key:{}", number % 50).as_bytes(), value(number % 50).as_bytes()],
        );
    }
    let mut clients: Vec<_> = (0..writers).map(|_| leader.client()).collect();
    let mut refused = None;
    wait_until("a full disk refuses writes", PATIENCE, || {
        clients.iter_mut().for_each(|client| client.send(&pipeline).expect("writes are sent"));
        for client in &mut clients {
            for _ in 0..200 / writers {
                match client.reply().expect("every write is answered") {
                    Reply::Simple(_) => {}
                    Reply::Error(error) => refused = Some(error),
                    other => panic!("{other:?}"),
                }
            }
        }
        refused.is_some()
    });
    let refused = refused.expect("a refusal");
    assert!(refused.starts_with("OOM") || refused.starts_with("MISCONF"), "{refused}");
    assert!(refused.contains("log"), "{refused}");
    assert_eq!(client.call(&["GET", "key:7"]).text(), value(7), "reads go on");
    assert_eq!(leader.get("/livez").0, 200);
    std::fs::remove_file(&filler).expect("the filler goes");
    wait_until("writes are taken again", PATIENCE, || matches!(set(&mut client, 0), Reply::Simple(_)));
    assert_eq!(client.call(&["WAITAOF", "1", "0", "0"]), durable(1, 0));
    leader.kill();
    leader.restart();
    let mut client = leader.client();
    for number in 0..50 {
        assert_eq!(client.call(&["GET", &format!("key:{number}")]).text(), value(number), "key:{number}");
    }
    assert!(leader.terminate().0.success());
}

#[test]
fn a_sync_that_fails_ends_the_process() {
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
