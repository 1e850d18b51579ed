//! Real input, end to end: UnicodeData.txt goes in through `redis-cli --pipe`, comes out of followers
//! through a Redis client, and all directories are equal.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::harness::{Node, PATIENCE, assert_equal_in, encode, wait_in_sync, wait_until};

const DATA: &str = "/usr/share/unicode/UnicodeData.txt";

/// Code point -> its line, as Debian's `unicode-data` has them.
fn records() -> Option<BTreeMap<String, String>> {
    let text = fs::read_to_string(DATA).ok()?;
    let record = |line: &str| {
        let (code, _) = line.split_once(';').expect("a code point");
        (code.to_owned(), line.to_owned())
    };
    Some(text.lines().map(record).collect())
}

#[test]
fn unicode_data_goes_through_redis_cli_to_every_follower() {
    let Some(records) = records() else {
        eprintln!("SKIPPED: {DATA} is missing (Debian: unicode-data)");
        return;
    };
    if Command::new("redis-cli").arg("--version").output().is_err() {
        eprintln!("SKIPPED: redis-cli is missing (Debian: redis-tools)");
        return;
    }
    assert!(records.len() > 30_000, "{DATA} has {} records", records.len());
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let mut leader =
        Node::leader(&at("leader"), &["--shard-count", "4", "--key-size", "16", "--value-size", "512"]);
    let mut followers: Vec<Node> = (0..4)
        .map(|shard: u16| {
            Node::follower(&at(&format!("shard-{shard}")), &leader, &["--shards", &shard.to_string()])
        })
        .collect();

    let mut pipe = Command::new("redis-cli")
        .args(["-p", &leader.ports.listen.port().to_string(), "--pipe"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("redis-cli starts");
    let mut stdin = pipe.stdin.take().expect("piped");
    let mut send = |part: &mut dyn Iterator<Item = (&String, &String)>| {
        let mut bytes = Vec::new();
        for (code, line) in part {
            encode(&mut bytes, &[b"SET", code.as_bytes(), line.as_bytes()]);
        }
        stdin.write_all(&bytes).expect("redis-cli reads");
    };
    let half = records.len() / 2;
    send(&mut records.iter().take(half));
    wait_until("the first half is in", PATIENCE, || leader.metric("slotstream_slots_used") > 10_000.0);
    // It joins while the second half comes in.
    followers.push(Node::follower(&at("all"), &leader, &[]));
    send(&mut records.iter().skip(half));
    drop(stdin);
    let output = pipe.wait_with_output().expect("redis-cli ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains(&format!("errors: 0, replies: {}", records.len())), "{said}");

    let mut found_on_one_shard_followers = 0;
    for follower in &followers {
        wait_in_sync(&leader, follower);
        let found = read_back(follower, &records);
        if follower.directory == at("all") {
            assert_eq!(found, records.len());
        } else {
            assert!(found > 0 && found < records.len());
            found_on_one_shard_followers += found;
        }
    }
    assert_eq!(found_on_one_shard_followers, records.len());

    assert!(leader.terminate().0.success());
    for follower in &mut followers {
        assert!(follower.terminate().0.success());
        let shard_count = if follower.directory == at("all") { 4 } else { 1 };
        assert_equal_in(&leader.directory, &follower.directory, shard_count);
    }
}

/// Reads every record from a node; what is there must be right. Returns how many there are.
fn read_back(node: &Node, records: &BTreeMap<String, String>) -> usize {
    let client = redis::Client::open(format!("redis://{}/", node.ports.listen)).expect("an address");
    let mut connection = client.get_connection().expect("redis-rs connects");
    let codes: Vec<&String> = records.keys().collect();
    let mut found = 0;
    for codes in codes.chunks(1_000) {
        let lines: Vec<Option<String>> =
            redis::cmd("MGET").arg(codes).query(&mut connection).expect("MGET answers");
        for (code, line) in codes.iter().zip(lines) {
            if let Some(line) = line {
                assert_eq!(&line, &records[*code]);
                found += 1;
            }
        }
    }
    found
}
