//! Import and export: what one node exports another imports, and Redis in both directions; what cannot be taken is
//! named, and the rest is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::harness::{Client, Node, Reply, command, run_command, stderr, stdout, wait_in_sync};
use crate::resp_support::RedisServer;

const SIZES: [&str; 6] = ["--shard-count", "3", "--key-size", "64", "--value-size", "600"];
/// Imports and exports move thousands of rows, on a machine that may be busy.
const LONG: Duration = Duration::from_secs(120);
/// A time that no test lives to see.
const LATER: &str = "4102444800123";

fn import(node: &Node, file: &Path) -> Output {
    run_command(command(&["import", &node.ports.listen.to_string()]).arg(file), LONG)
}

fn export(node: &Node, file: &Path) -> Output {
    run_command(command(&["export", &node.ports.listen.to_string()]).arg(file), LONG)
}

#[track_caller]
fn assert_good(output: &Output) -> String {
    assert!(output.status.success(), "{}{}", stdout(output), stderr(output));
    stdout(output)
}

#[track_caller]
fn assert_bad(output: &Output, why: &str) {
    assert_eq!(output.status.code(), Some(1), "{}", stdout(output));
    assert!(stderr(output).contains(why), "{why:?} is not in {}", stderr(output));
}

/// The lines of an export by their keys.
fn contents(node: &Node) -> BTreeMap<String, String> {
    let output =
        run_command(&mut command(&["export", &node.ports.listen.to_string(), "-", "--format", "json"]), LONG);
    let text = assert_good(&output);
    let lines = text.lines().map(|line| {
        let row: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let key = if row["key"].is_null() { &row["key_hex"] } else { &row["key"] };
        (key.as_str().expect("a key").to_owned(), line.to_owned())
    });
    let lines: Vec<_> = lines.collect();
    let contents: BTreeMap<_, _> = lines.iter().cloned().collect();
    assert_eq!(contents.len(), lines.len(), "a key is there twice");
    contents
}

/// Texts, bytes that are none, all lengths, and some that expire.
fn fill(node: &Node) {
    let mut client = node.client();
    for number in 0..3_000_u32 {
        let value = format!("v{number},\"").repeat(usize::try_from(number % 80).expect("small"));
        assert_eq!(client.call(&["SET", &format!("key:{number}"), &value]).text(), "OK");
    }
    for number in 0..100 {
        assert_eq!(client.call(&["SET", &format!("later:{number}"), "v", "PXAT", LATER]).text(), "OK");
    }
    let raw: [&[u8]; 3] = [b"SET", b"\x00\xFF\r\n", b"\xC3\x28"];
    assert_eq!(client.try_call(&raw).expect("a reply").text(), "OK");
}

#[test]
fn what_is_exported_is_imported_again_in_every_format() {
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let source = Node::leader(&at("source"), &SIZES);
    fill(&source);
    let wanted = contents(&source);
    assert_eq!(wanted.len(), 3_101);
    for extension in ["jsonl", "csv", "rdb"] {
        let file = at("rows").with_extension(extension);
        let said = assert_good(&export(&source, &file));
        assert!(said.contains("exported 3,101 rows"), "{said}");
        // Another number of shards, other sizes, and a file from standard input.
        let target = Node::leader(&at(extension), &["--shard-count", "1", "--value-size", "700"]);
        let said = assert_good(&import(&target, &file));
        assert!(said.contains("imported 3,101 rows"), "{said}");
        assert!(contents(&target) == wanted, "{extension}");
        assert_eq!(target.client().call(&["FLUSHALL"]).text(), "OK");
        let format = if extension == "jsonl" { "JSON" } else { extension };
        let mut from_stdin = command(&["import", &target.ports.listen.to_string(), "-", "--format", format]);
        let input = File::open(&file).expect("the file");
        let output = from_stdin.stdin(Stdio::from(input)).output().expect("runs");
        assert_good(&output);
        assert!(contents(&target) == wanted, "{extension} from standard input");
    }
    // A follower is exported as its leader is, and takes no import.
    let follower = Node::follower(&at("follower"), &source, &[]);
    wait_in_sync(&source, &follower);
    assert!(contents(&follower) == wanted, "the follower's");
    let refused = import(&follower, &at("rows.csv"));
    assert_bad(&refused, &format!("its leader is at {}", source.ports.listen));
}

#[test]
fn rows_that_do_not_fit_are_named_and_the_rest_is_imported() {
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let node = Node::leader(&at("node"), &["--key-size", "8", "--value-size", "8"]);
    let mut text = String::from("key,value,expire_at_unix_ms\n");
    for number in 0..2_000 {
        text += &format!("k{number},v,\n");
        if number % 100 == 0 {
            text += &format!("long-key-{number},v,\nv{number},a long value,\nx{number},v,1000\n,empty,\n");
        }
    }
    text += &format!("k1,late,{LATER}\n");
    std::fs::write(at("rows.csv"), text).expect("writes");
    let output = import(&node, &at("rows.csv"));
    assert_bad(&output, "refused \"long-key-0\": ERR key is 10 bytes, this store holds keys of at most 8");
    let said = stdout(&output);
    let wanted = "imported 2,001 rows, 10.6 KiB; 20 had expired; refused: 20 empty key, \
                  20 key too large for this store, 20 value too large for this store";
    assert!(said.contains(wanted), "{said}");
    assert_eq!(stderr(&output).lines().filter(|line| line.contains("refused \"")).count(), 10);
    let mut client = node.client();
    assert_eq!(client.call(&["DBSIZE"]), Reply::Integer(2_000));
    assert_eq!(client.call(&["GET", "k1"]).text(), "late");
    let Reply::Integer(left) = client.call(&["PTTL", "k1"]) else { panic!("no number") };
    assert!(left > 1_000_000_000, "{left}");
}

#[test]
fn what_is_no_such_file_is_said_with_its_place() {
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let node = Node::leader(&at("node"), &SIZES);
    fill(&node);
    assert_good(&export(&node, &at("good.rdb")));
    assert_eq!(node.client().call(&["FLUSHALL"]).text(), "OK");
    // Damage at the end of a dump is found before its first row is taken.
    let mut bytes = std::fs::read(at("good.rdb")).expect("reads");
    let last = bytes.len() - 20;
    bytes[last] ^= 1;
    std::fs::write(at("bad.rdb"), bytes).expect("writes");
    assert_bad(&import(&node, &at("bad.rdb")), "0 rows are imported");
    assert_eq!(node.client().call(&["DBSIZE"]), Reply::Integer(0));
    // A bad line ends an import of lines; those before it are in.
    let mut text: String =
        (0..700).map(|number| format!("{{\"key\":\"k{number}\",\"value\":\"v\"}}\n")).collect();
    text += "{\"key\":\"k\"}\n{\"key\":\"after\",\"value\":\"v\"}\n";
    std::fs::write(at("rows.json"), text).expect("writes");
    let wanted = "rows.json: line 701: has no value and no value_hex; 700 rows are imported";
    assert_bad(&import(&node, &at("rows.json")), wanted);
    assert_eq!(node.client().call(&["DBSIZE"]), Reply::Integer(700));
    let unnamed = import(&node, &at("rows"));
    assert_eq!(unnamed.status.code(), Some(2));
    assert!(stderr(&unnamed).contains("wanted --format json, csv or rdb"), "{}", stderr(&unnamed));
    assert_bad(&import(&node, &at("none.csv")), "none.csv: cannot open it");
    let nowhere = at("no/such/place.csv");
    assert_bad(&export(&node, &nowhere), "place.csv.unfinished: cannot create it");
    let other = run_command(command(&["export", &node.replication().to_string()]).arg(at("x.csv")), LONG);
    assert_bad(&other, "where a slotstream node takes followers");
    assert!(!at("x.csv").exists());
}

#[test]
fn a_leader_that_takes_no_more_ends_the_import_with_its_words() {
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let node = Node::leader(&at("node"), &["--min-followers-to-write", "1"]);
    std::fs::write(at("rows.csv"), "key,value\nk,v\nl,v\n").expect("writes");
    assert_bad(&import(&node, &at("rows.csv")), "answers: NOREPLICAS");
    assert_eq!(node.client().call(&["DBSIZE"]), Reply::Integer(0));
}

/// A reply as the bytes that Redis gives.
fn raw(client: &mut crate::resp_support::Client<std::os::unix::net::UnixStream>, words: &str) -> Vec<u8> {
    client.call(&words.split(' ').collect::<Vec<_>>())
}

#[test]
fn a_dump_of_redis_is_imported_and_redis_loads_ours() {
    let Some(redis) = RedisServer::start() else { return };
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let mut client = redis.connect();
    let mut strings: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let numbers =
        ["0", "-1", "127", "-128", "128", "32767", "-32769", "2147483647", "-2147483649", "01", "1.5"];
    for number in numbers {
        strings.insert(format!("number{number}"), number.into());
    }
    for len in [0_usize, 1, 20, 63, 64, 500, 16_383, 16_384, 65_535] {
        strings.insert(format!("same{len}"), vec![b'x'; len]);
        let mixed = (0..len).map(|at| u8::try_from(at * at % 251).expect("a byte"));
        strings.insert(format!("mixed{len}"), mixed.collect());
    }
    strings.insert("k".repeat(200), b"long key".to_vec());
    for (key, value) in &strings {
        assert_eq!(client.call(&[&b"SET"[..], key.as_bytes(), value]), b"+OK\r\n");
    }
    assert_eq!(raw(&mut client, &format!("PEXPIREAT same20 {LATER}")), b":1\r\n");
    assert_eq!(client.call(&[&b"SET"[..], b"toolarge", &vec![b'y'; 70_000]]), b"+OK\r\n");
    for words in [
        "RPUSH list a b c",
        "SADD set 1 2 3",
        "SADD words a b",
        "ZADD zset 1.5 a -inf b",
        "HSET hash f v",
        "XADD stream 1-1 f v",
        "XGROUP CREATE stream g 0",
        "XREADGROUP GROUP g me STREAMS stream >",
        "PFADD hyperloglog a",
        "CONFIG SET hash-max-listpack-entries 1 set-max-intset-entries 1 zset-max-listpack-entries 1",
        "HSET bighash f v g w",
        "SADD bigset 1 2 3",
        "ZADD bigzset 1 a 2 b",
        "EXPIRE hash 10000",
    ] {
        let reply = raw(&mut client, words);
        assert_ne!(reply[0], b'-', "{words}: {}", reply.escape_ascii());
    }
    assert_ne!(client.call(&[&b"RPUSH"[..], b"biglist", &vec![b'z'; 20_000], b"small"])[0], b'-');
    assert_eq!(raw(&mut client, "SELECT 3"), b"+OK\r\n");
    assert_eq!(raw(&mut client, "SET other v"), b"+OK\r\n");
    assert_eq!(raw(&mut client, "SELECT 0"), b"+OK\r\n");
    assert_eq!(raw(&mut client, "SAVE"), b"+OK\r\n");
    // A HyperLogLog is a string of Redis's.
    let reply = raw(&mut client, "GET hyperloglog");
    let start = reply.iter().position(|byte| *byte == b'\n').expect("a length") + 1;
    strings.insert("hyperloglog".into(), reply[start..reply.len() - 2].to_vec());

    let sizes = ["--shard-count", "2", "--key-size", "256", "--value-size", "65535"];
    let node = Node::leader(&at("node"), &sizes);
    let output = import(&node, &redis.dump());
    // Redis has no order; the first ones are named one by one.
    assert_bad(&output, "slotstream: refused \"");
    let said = stdout(&output);
    let count = strings.len();
    let wanted = "refused: 2 hash, 2 list, 1 of database 3, 3 set, 2 sorted set, 1 stream, 1 value larger than any store's";
    assert!(said.contains(&format!("imported {count} rows")) && said.contains(wanted), "{said}");
    let mut ours = node.client();
    for (key, value) in &strings {
        let found = ours.try_call(&[b"GET", key.as_bytes()]).expect("a reply");
        assert!(found == Reply::Bulk(value.clone()), "{key}");
    }
    let Reply::Integer(left) = ours.call(&["PTTL", "same20"]) else { panic!("no number") };
    assert!(left > 1_000_000_000, "{left}");
    assert_eq!(ours.call(&["PTTL", "same1"]), Reply::Integer(-1));

    let raw_set: [&[u8]; 3] = [b"SET", b"\x00\xFF", b"\r\n\xFE"];
    assert_eq!(ours.try_call(&raw_set).expect("a reply").text(), "OK");
    strings.insert("raw".into(), b"\r\n\xFE".to_vec());
    assert_good(&export(&node, &at("ours.rdb")));
    let again = RedisServer::start_from(Some(&at("ours.rdb"))).expect("it started before");
    let mut client = again.connect();
    assert_eq!(raw(&mut client, "DBSIZE"), format!(":{}\r\n", strings.len()).into_bytes());
    for (key, value) in &strings {
        let key: &[u8] = if key == "raw" { b"\x00\xFF" } else { key.as_bytes() };
        let bulk = [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat();
        assert!(client.call(&[b"GET", key]) == bulk, "{}", key.escape_ascii());
    }
    assert_eq!(raw(&mut client, "PEXPIRETIME same20"), format!(":{LATER}\r\n").into_bytes());
    assert_eq!(raw(&mut client, "PEXPIRETIME same1"), b":-1\r\n");
}

/// A node that a key comes from twice, as it does when it is deleted and set again behind the walk.
fn moving_node(listener: &TcpListener) {
    let (stream, _) = listener.accept().expect("export connects");
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut writer = stream;
    let mut lines = |count: usize| {
        let mut line = String::new();
        for _ in 0..count {
            line.clear();
            reader.read_line(&mut line).expect("a line");
        }
        line.trim().to_owned()
    };
    let info = "redis_version:7.2.4\r\nrole:master\r\nrun_id:ab\r\nmaster_failover_state:no-failover\r\n\
                slotstream_node_id:n\r\nslotstream_replication_port:7\r\n";
    loop {
        // *N, then $len and a word each.
        let count: usize = lines(1).trim_start_matches('*').parse().unwrap_or(0);
        if count == 0 {
            return;
        }
        let words: Vec<String> = (0..count).map(|_| lines(2)).collect();
        let answer = match (words[0].as_str(), words.get(1).map(String::as_str)) {
            ("INFO", _) => format!("${}\r\n{info}\r\n", info.len()),
            ("DBSIZE", _) => ":1\r\n".to_owned(),
            ("SLOTSTREAM.EXPORT", cursor) => {
                let (next, value) = if cursor == Some("0") { ("7", "1") } else { ("0", "2") };
                let row = format!("*3\r\n$1\r\na\r\n$1\r\n{value}\r\n$1\r\n0\r\n");
                format!("*3\r\n$1\r\n{next}\r\n$1\r\n0\r\n{row}")
            }
            _ => "-ERR unknown command\r\n".to_owned(),
        };
        writer.write_all(answer.as_bytes()).expect("export reads");
    }
}

#[test]
fn a_key_that_comes_twice_is_exported_once() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("a port").to_string();
    let node = std::thread::spawn(move || moving_node(&listener));
    let output = run_command(&mut command(&["export", &address, "-", "--format", "json"]), LONG);
    assert_eq!(assert_good(&output), "{\"key\":\"a\",\"value\":\"1\"}\n");
    node.join().expect("the node ends with the connection");
}

#[test]
fn an_export_under_load_holds_every_key_once_as_it_was_at_some_time() {
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let node = Node::leader(&at("node"), &SIZES);
    let mut client = node.client();
    for number in 0..2_000 {
        assert_eq!(client.call(&["SET", &format!("stays:{number}"), "0"]).text(), "OK");
    }
    let stop = std::sync::atomic::AtomicBool::new(false);
    let address = node.ports.listen;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut client = Client::connect(address);
            let mut round = 0_u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                round += 1;
                let (key, other) = (format!("stays:{}", round % 2_000), format!("moves:{}", round % 50));
                // Value and expiry belong together: an odd value expires, an even one does not.
                let value = round.to_string();
                let mut words = vec!["SET", &key, &value];
                if round % 2 == 1 {
                    words.extend(["PXAT", LATER]);
                }
                assert_eq!(client.call(&words).text(), "OK");
                client.call(&["DEL", &other]);
                assert_eq!(client.call(&["SET", &other, "0"]).text(), "OK");
            }
        });
        let found: Vec<_> = (0..5).map(|_| contents(&node)).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().expect("the writer ends");
        for found in found {
            let stays = found.keys().filter(|key| key.starts_with("stays:")).count();
            assert_eq!(stays, 2_000);
            for line in found.values() {
                let row: serde_json::Value = serde_json::from_str(line).expect("JSON");
                let value: u64 = row["value"].as_str().and_then(|text| text.parse().ok()).expect("a number");
                assert_eq!(value % 2 == 1, row["expire_at_unix_ms"].is_u64(), "{line}");
            }
        }
    });
}
