//! Programs that follow what changes: `slotstream tail` as a process, through kills, stops and a failover, and
//! XREAD's replies byte by byte.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::{Node, PATIENCE, Reply, command, poll, wait_in_sync, wait_until};
use crate::load::Load;
use crate::resp_support::TestServer;

const SIZES: &[&str] = &["--shard-count", "2", "--key-size", "16", "--value-size", "64"];

/// `slotstream tail`, killed at its end; each run prints to a file of its own.
struct Tail {
    child: Child,
}

impl Tail {
    fn start(node: &Node, arguments: &[&str], out: &Path) -> Self {
        let log = out.with_extension("log");
        let child = command(&["tail", &node.ports.listen.to_string(), "--json"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(File::create(out).expect("a file for lines"))
            .stderr(File::create(log).expect("a file for complaints"))
            .spawn()
            .expect("tail starts");
        Self { child }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a child of ours can be signalled");
    }

    fn kill(mut self) {
        self.child.kill().expect("a child of ours can be killed");
        self.child.wait().expect("a killed child ends");
    }

    fn terminate(mut self) {
        self.signal(Signal::TERM);
        let ended = poll(PATIENCE, || self.child.try_wait().expect("a child of ours").is_some());
        assert!(ended, "SIGTERM ends it");
        assert!(self.child.wait().expect("it has ended").success(), "in order");
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.child.kill().is_ok() {
            drop(self.child.wait());
        }
    }
}

/// What a reader of all these lines knows: keys and values, kept by shard and slot; and how many resets there were.
fn model(runs: &[PathBuf]) -> (BTreeMap<String, String>, usize) {
    let mut slots: BTreeMap<(u64, u64), (String, Option<String>)> = BTreeMap::new();
    let mut resets = 0;
    for run in runs {
        let text = std::fs::read_to_string(run).expect("lines in UTF-8");
        // A killed one may have been cut off in its last line; that change comes again.
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            let shard = line["shard"].as_u64().expect("a shard");
            if line["op"] == "reset" {
                slots.retain(|(of, _), _| *of != shard);
                resets += 1;
                continue;
            }
            let key = line["key"].as_str().expect("our keys are text").to_owned();
            let value = line["value"].as_str().map(str::to_owned);
            assert_eq!(value.is_some(), line["op"] == "set", "{line}");
            slots.insert((shard, line["slot"].as_u64().expect("a slot")), (key, value));
        }
    }
    // While lines are on their way a key may be known in its old slot and its new one.
    let records = slots.into_values().filter_map(|(key, value)| Some((key, value?)));
    (records.collect(), resets)
}

pub(crate) fn contents(node: &Node) -> BTreeMap<String, String> {
    let mut client = node.client();
    let (mut keys, mut cursor) = (BTreeSet::new(), "0".to_owned());
    loop {
        let Reply::Array(reply) = client.call(&["SCAN", &cursor, "COUNT", "10000"]) else {
            panic!("no array")
        };
        cursor = reply[0].text();
        let Reply::Array(found) = &reply[1] else { panic!("no keys") };
        keys.extend(found.iter().map(Reply::text));
        if cursor == "0" {
            break;
        }
    }
    keys.into_iter().map(|key| (key.clone(), client.call(&["GET", &key]).text())).collect()
}

#[track_caller]
fn assert_comes_to(runs: &[PathBuf], wanted: &BTreeMap<String, String>) {
    let is_there = poll(PATIENCE * 2, || model(runs).0 == *wanted);
    let (found, _) = model(runs);
    assert!(is_there, "{} records known, the node has {}", found.len(), wanted.len());
}

fn has_lines(run: &Path) -> bool {
    std::fs::metadata(run).is_ok_and(|file| file.len() > 0)
}

#[test]
fn a_tail_killed_under_load_goes_on_from_its_position_and_misses_nothing() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("leader"), SIZES);
    let position = directory.path().join("position");
    let arguments = ["--from", "start", "--position-file", position.to_str().expect("utf-8")];
    let load = Load::paced(leader.ports.listen, 1, Duration::from_millis(2));
    let mut runs = Vec::new();
    let start = |runs: &mut Vec<PathBuf>| {
        runs.push(directory.path().join(format!("run-{}", runs.len())));
        Tail::start(&leader, &arguments, runs.last().expect("just pushed"))
    };
    for _ in 0..4 {
        let tail = start(&mut runs);
        let run = runs.last().expect("just pushed").clone();
        wait_until("the tail prints", PATIENCE, || has_lines(&run));
        load.wait_for(1_000);
        tail.kill();
        load.wait_for(200);
    }
    let tail = start(&mut runs);
    load.finish();
    assert_comes_to(&runs, &contents(&leader));
    let (all, last) = (model(&runs).0.len(), model(&runs[4..]).0.len());
    assert!(last < all, "the last run began where the one before it was, not at the start: {last} of {all}");
    tail.terminate();
}

#[test]
fn a_stopped_tail_costs_its_leader_nothing_and_comes_to_the_same_state() {
    let directory = tempfile::tempdir().expect("temp dir");
    // Without a log: its buffers grow with the load, and not with a tail.
    let arguments = [SIZES, &["--durability", "none"]].concat();
    let mut leader = Node::leader(&directory.path().join("leader"), &arguments);
    let runs = [directory.path().join("run")];
    let load = Load::start(leader.ports.listen, 1);
    load.wait_for(2_000);
    let tail = Tail::start(&leader, &["--from", "start"], &runs[0]);
    wait_until("the tail prints", PATIENCE, || has_lines(&runs[0]));
    tail.signal(Signal::STOP);
    load.wait_for(5_000);
    let before = leader.resident_bytes();
    load.wait_for(30_000);
    let grown = leader.resident_bytes().saturating_sub(before);
    // Index and summaries of some thousand new records, and buffers of connections.
    assert!(grown < 8 << 20, "{grown} bytes more");
    assert_eq!(leader.metric("slotstream_ring_overflows_total"), 0.0);
    assert_eq!(leader.metric("slotstream_ring_capacity_bytes"), 0.0, "nothing is attached for it");
    load.finish();
    tail.signal(Signal::CONT);
    assert_comes_to(&runs, &contents(&leader));
    // It connects again to a leader that comes back, and goes on.
    leader.kill();
    leader.restart();
    assert_eq!(leader.client().call(&["SET", "after", "restart"]).text(), "OK");
    assert_comes_to(&runs, &contents(&leader));
    tail.terminate();
}

#[test]
fn a_tail_behind_a_failover_is_reset_where_writes_were_dropped_and_nowhere_else() {
    let directory = tempfile::tempdir().expect("temp dir");
    let [a, b] = ["a", "b"].map(|name| directory.path().join(name));
    let mut old = Node::leader(&a, SIZES);
    let mut next = Node::follower(&b, &old, &[]);
    let set = |node: &Node, key: &str, value: &str| {
        assert_eq!(node.client().call(&["SET", key, value]).text(), "OK");
    };
    for key in 0..50 {
        set(&old, &format!("key-{key}"), "both");
    }
    wait_in_sync(&old, &next);
    assert!(next.terminate().0.success());
    let runs = [directory.path().join("run-0"), directory.path().join("run-1")];
    let position = directory.path().join("position");
    let arguments = ["--from", "start", "--position-file", position.to_str().expect("utf-8")];
    let tail = Tail::start(&old, &arguments, &runs[0]);
    set(&old, "only", "the old leader has this");
    assert_comes_to(&runs[..1], &contents(&old));
    tail.terminate();
    old.kill();

    let promoted = Node::leader(&b, &["--promote"]);
    set(&promoted, "new", "leader");
    let tail = Tail::start(&promoted, &arguments, &runs[1]);
    assert_comes_to(&runs, &contents(&promoted));
    assert_eq!(model(&runs).1, 1, "only one of the shards had a write of its own");
    tail.terminate();
}

#[test]
fn a_follower_s_changes_have_the_ids_of_its_leader_s() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("a"), SIZES);
    for key in 0..20 {
        assert_eq!(leader.client().call(&["SET", &format!("key-{key}"), "value"]).text(), "OK");
    }
    let follower = Node::follower(&directory.path().join("b"), &leader, &[]);
    wait_in_sync(&leader, &follower);
    let all = ["XREAD", "STREAMS", "changes:0", "changes:1", "0", "0"];
    wait_until("the follower answers as its leader", PATIENCE, || {
        follower.client().call(&all) == leader.client().call(&all)
    });
    assert!(matches!(leader.client().call(&all), Reply::Array(streams) if streams.len() == 2));
}

/// The ids in a reply to an XREAD of one stream.
fn ids(reply: &str) -> Vec<String> {
    let is_id = |line: &&str| line.contains('-') && line.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    reply.split("\r\n").filter(is_id).filter(|line| !line.starts_with('-')).map(str::to_owned).collect()
}

#[test]
fn xread_answers_as_a_stream_does_and_says_what_is_wrong() {
    let server = TestServer::start();
    let mut client = server.connect();
    let mut call = |words: &[&str]| {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        String::from_utf8(client.call(&words)).expect("text")
    };
    let streams = ["changes:0", "changes:1", "changes:2", "changes:3"];
    let empty = [&["XREAD", "BLOCK", "5", "STREAMS"][..], &streams, &["0", "0", "0", "0"]].concat();
    assert_eq!(call(&empty), "*-1\r\n");
    call(&["SET", "key", "value"]);
    let reply = call(&[&["XREAD", "STREAMS"][..], &streams, &["0", "0", "0", "0"]].concat());
    let [id] = &ids(&reply)[..] else { panic!("{reply}") };
    let stream = streams.iter().find(|stream| reply.contains(**stream)).expect("one of them");
    assert_eq!(
        reply,
        format!(
            "*1\r\n*2\r\n$9\r\n{stream}\r\n*1\r\n*2\r\n${}\r\n{id}\r\n*8\r\n$2\r\nop\r\n$3\r\nset\r\n$4\r\nslot\r\n\
             $1\r\n0\r\n$3\r\nkey\r\n$3\r\nkey\r\n$5\r\nvalue\r\n$5\r\nvalue\r\n",
            id.len()
        )
    );
    assert_eq!(call(&["XREAD", "STREAMS", stream, id]), "*-1\r\n");
    assert!(call(&["XINFO", "STREAM", stream]).contains(id.as_str()));
    call(&["DEL", "key"]);
    let reply = call(&["XREAD", "COUNT", "1", "STREAMS", stream, id]);
    assert!(reply.contains("delete") && !reply.contains("value") && reply.contains("key"), "{reply}");
    let [gone] = &ids(&reply)[..] else { panic!("{reply}") };
    call(&["MULTI"]);
    call(&["XREAD", "BLOCK", "0", "STREAMS", stream, gone]);
    assert_eq!(call(&["EXEC"]), "*1\r\n*-1\r\n", "nothing waits in a transaction");
    for (words, wanted) in [
        (&["XREAD", "STREAMS", "changes:4", "0"][..], "-ERR no shard 4, this store has shards 0 to 3"),
        (&["XREAD", "STREAMS", "events", "0"], "-ERR no stream 'events', wanted changes:0 to changes:3"),
        (&["XREAD", "STREAMS", "changes:0", "5"], "-ERR Invalid stream ID"),
        (&["XREAD", "STREAMS", "changes:0", ">"], "-ERR Invalid stream ID"),
        (&["XREAD", "STREAMS", "changes:0", "changes:1", "0"], "-ERR Unbalanced 'xread' list"),
        (&["XREAD", "STREAMS", "changes:0", "changes:0", "0", "0"], "-ERR stream changes:0 is named twice"),
        (&["XREAD", "COUNT", "x", "STREAMS", "changes:0", "0"], "-ERR value is not an integer"),
        (&["XREAD", "BLOCK", "-1", "STREAMS", "changes:0", "0"], "-ERR timeout is negative"),
        (&["XREAD", "changes:0", "0", "0"], "-ERR syntax error"),
        (&["XREAD", "STREAMS", "changes:0", "1-5"], "-LOSTSEQ shard 0: "),
        (&["XINFO", "GROUPS", "changes:0"], "-ERR unknown subcommand 'GROUPS'"),
    ] {
        let reply = call(words);
        assert!(reply.starts_with(wanted), "{words:?}: {reply}");
    }
}

#[test]
fn a_blocked_xread_is_answered_by_the_next_write_and_count_pages_through_all() {
    let server = TestServer::start();
    let store = &server.context.store;
    for key in 0..2_500_u32 {
        store.put(format!("key-{key}").as_bytes(), b"value").expect("room");
    }
    let mut client = server.connect();
    let (mut last, mut count) = ("0".to_owned(), 0);
    loop {
        let reply = client.call(&[&b"XREAD"[..], b"COUNT", b"70", b"STREAMS", b"changes:2", last.as_bytes()]);
        let ids = ids(&String::from_utf8(reply).expect("text"));
        let Some(id) = ids.last() else { break };
        assert!(ids.len() <= 70);
        count += ids.len() as u64;
        last = id.clone();
    }
    assert_eq!(count, store.stats(slotstream::ShardIndex(2)).slots_used);
    let key = (0..).map(|key| format!("later-{key}")).find(|key| store.shard_of(key.as_bytes()).0 == 2);
    let key = key.expect("some key lies there");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            client.call(&[&b"XREAD"[..], b"BLOCK", b"0", b"STREAMS", b"changes:2", last.as_bytes()])
        });
        std::thread::sleep(Duration::from_millis(30));
        store.put(key.as_bytes(), b"value").expect("room");
        let reply = String::from_utf8(reader.join().expect("a reply")).expect("text");
        assert!(reply.contains(&key), "{reply}");
    });
}

/// All strings of a reply, however deep.
fn texts(reply: &Reply) -> Vec<String> {
    match reply {
        Reply::Array(replies) => replies.iter().flat_map(texts).collect(),
        Reply::Bulk(_) | Reply::Simple(_) => vec![reply.text()],
        Reply::Error(text) => vec![text.clone()],
        Reply::Integer(_) | Reply::Nil => Vec::new(),
    }
}

#[test]
fn metrics_tell_how_far_readers_are_behind_and_what_they_were_spared() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("leader"), &["--shard-count", "1", "--key-size", "16"]);
    let mut writer = leader.client();
    let mut write = |times: u32| {
        for time in 0..times {
            assert_eq!(writer.call(&["SET", "key", &time.to_string()]).text(), "OK");
        }
    };
    let metric = |name: &str| leader.metric(&format!("slotstream_feed_{name}"));
    let is_behind = || leader.get("/metrics").1.contains("feed_behind_records{shard=\"0\"}");
    assert!(metric("readers") == 0.0 && !is_behind());
    write(3);
    let mut reader = leader.client();
    let mut read = |from: &str| texts(&reader.call(&["XREAD", "STREAMS", "changes:0", from]));
    let id = read("0").into_iter().find(|text| text.contains('-')).expect("an id");
    // What came before a reader's start was never on its way to it.
    assert_eq!(
        (metric("readers"), metric("changes_total"), metric("changes_replaced_total")),
        (1.0, 1.0, 0.0)
    );
    assert!(is_behind());
    assert_eq!(metric("behind_records"), 0.0);
    write(10);
    assert_eq!(metric("behind_records"), 10.0);
    assert!(read(&id).contains(&"9".to_owned()));
    assert_eq!((metric("changes_total"), metric("changes_replaced_total")), (2.0, 9.0));
    assert_eq!(metric("behind_records"), 0.0);
    assert!(read("1-5")[0].starts_with("LOSTSEQ"));
    assert_eq!(metric("resets_total"), 1.0);
    drop(reader);
    wait_until("the reader is gone", PATIENCE, || metric("readers") == 0.0 && !is_behind());
}
