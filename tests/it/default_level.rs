//! The level of durability that a node has where nobody says: that it is kept, shown, and small for a small store.

use std::path::Path;

use crate::harness::{Client, Node, PATIENCE, Reply, poll, wait_in_sync, wait_until};

const SIZES: &[&str] = &["--shard-count", "2", "--key-size", "16", "--value-size", "100"];
const UNLOGGED: &[&str] = &["--durability", "none"];

fn bulk(text: &str) -> Reply {
    Reply::Bulk(text.as_bytes().to_vec())
}

fn setting(client: &mut Client, name: &str) -> String {
    match client.call(&["CONFIG", "GET", name]) {
        Reply::Array(pair) if pair.len() == 2 => pair[1].text(),
        other => panic!("{name}: {other:?}"),
    }
}

/// Names of its threads.
fn threads(node: &Node) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", node.pid())).expect("a child of ours");
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
    tasks.flatten().filter_map(name).map(|name| name.trim().to_owned()).collect()
}

fn log_size(data: &Path) -> u64 {
    let files = std::fs::read_dir(data.join("wal")).expect("a log");
    files.flatten().filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
}

fn assert_shown(node: &Node, level: &str, redis: [&str; 2], threads_of_log: usize) {
    let mut client = node.client();
    assert_eq!(node.status()["durability"]["level"], level);
    let (_, metrics) = node.get("/metrics");
    let interval = if level == "interval" { "100ms" } else { "" };
    let series = format!("slotstream_durability_info{{level=\"{level}\",interval=\"{interval}\"}} 1");
    assert!(metrics.contains(&series), "{series} is missing:\n{metrics}");
    let info = client.call(&["INFO", "persistence"]).text();
    assert!(info.contains(&format!("\r\nslotstream_durability:{level}\r\n")), "{info}");
    assert!(info.contains(&format!("\r\naof_enabled:{}\r\n", u8::from(threads_of_log > 0))), "{info}");
    assert_eq!(["appendonly", "appendfsync"].map(|name| setting(&mut client, name)), redis);
    assert_eq!(setting(&mut client, "durability"), level);
    assert!(node.log().contains("a power cut may take"), "{}", node.log());
    let found = threads(node).into_iter().filter(|name| name == "wal" || name == "checkpoint").count();
    assert_eq!(found, threads_of_log, "{:?}", threads(node));
}

#[test]
fn a_node_that_nobody_told_otherwise_keeps_a_small_log_and_says_what_it_promises() {
    let directory = tempfile::tempdir().expect("temp dir");
    let mut leader = Node::leader(&directory.path().join("leader"), SIZES);
    let follower = Node::follower(&directory.path().join("follower"), &leader, &[]);
    let mut client = leader.client();
    for number in 0..100 {
        assert_eq!(client.call(&["SET", &format!("key:{number}"), "value"]).text(), "OK");
    }
    wait_in_sync(&leader, &follower);
    // By itself: nobody asks for it.
    let durable = Reply::Array(vec![Reply::Integer(1), Reply::Integer(1)]);
    assert_eq!(client.call(&["WAITAOF", "1", "1", "0"]), durable);
    for node in [&leader, &follower] {
        assert_shown(node, "interval", ["yes", "everysec"], 2);
        assert!(log_size(&node.directory) <= 4 << 20, "{} bytes", log_size(&node.directory));
    }
    for _ in 0..3 {
        leader.kill();
        leader.restart();
        assert_eq!(leader.client().call(&["GET", "key:99"]), bulk("value"));
    }
    assert!(leader.terminate().0.success());
    leader.restart();
    assert!(log_size(&leader.directory) <= 6 << 20, "{} bytes", log_size(&leader.directory));
    assert_eq!(leader.client().call(&["DBSIZE"]), Reply::Integer(100));
}

#[test]
fn no_log_is_no_file_and_no_thread_and_a_later_start_may_begin_or_end_one() {
    let directory = tempfile::tempdir().expect("temp dir");
    let data = directory.path().join("leader");
    let unlogged = [SIZES, UNLOGGED].concat();
    let begun = "this store had no log until now";
    {
        let mut leader = Node::leader(&data, &unlogged);
        assert_eq!(leader.client().call(&["SET", "a", "1"]).text(), "OK");
        assert_shown(&leader, "none", ["no", "no"], 0);
        assert!(!data.join("wal").exists());
        assert!(leader.terminate().0.success());
    }
    {
        let mut leader = Node::leader(&data, SIZES);
        assert!(leader.log().contains(begun), "{}", leader.log());
        assert_shown(&leader, "interval", ["yes", "everysec"], 2);
        assert_eq!(leader.client().call(&["GET", "a"]), bulk("1"));
        assert_eq!(leader.client().call(&["SET", "b", "2"]).text(), "OK");
        leader.kill();
    }
    let leader = Node::leader(&data, &unlogged);
    assert!(leader.log().contains("durability is none"), "{}", leader.log());
    assert_shown(&leader, "none", ["no", "no"], 0);
    assert!(!data.join("wal").exists());
    assert_eq!(leader.client().call(&["MGET", "a", "b"]), Reply::Array(vec![bulk("1"), bulk("2")]));
    assert_eq!(leader.log().matches(begun).count(), 1, "{}", leader.log());
}

#[test]
fn a_log_that_is_written_much_gets_files_of_their_full_size_and_stays_within_its_bound() {
    let directory = tempfile::tempdir().expect("temp dir");
    let data = directory.path().join("leader");
    let sizes = ["--shard-count", "1", "--key-size", "16", "--value-size", "60000"];
    let bound = ["--wal-segment-size", "4MiB", "--wal-size-max", "16MiB"];
    let leader = Node::leader(&data, &[&sizes[..], &bound].concat());
    let mut client = leader.client();
    let value = "x".repeat(60_000);
    let largest = || {
        let files = std::fs::read_dir(data.join("wal")).expect("a log");
        files.flatten().filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).max()
    };
    wait_until("the log's files have their full size", PATIENCE, || {
        for number in 0..100 {
            assert_eq!(client.call(&["SET", &format!("key:{}", number % 20), &value]).text(), "OK");
            // Checkpoints must append whatever there is: one file more.
            assert!(log_size(&data) <= 24 << 20, "{} bytes", log_size(&data));
        }
        largest() == Some(4 << 20)
    });
    assert!(poll(PATIENCE, || leader.metric("slotstream_wal_checkpoints_total") > 0.0));
}
