//! Changes over TCP: `slotstream tail --listen` and `--connect` as processes, with readers and sinks that are slow,
//! dead, wrong, and that come back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::changes::contents;
use crate::harness::{Node, PATIENCE, Reply, command, poll, run_command, stderr, wait_until};
use crate::load::Load;

const SIZES: &[&str] = &["--shard-count", "2", "--key-size", "16", "--value-size", "64"];
const TOKEN: &str = "open-sesame";

/// `slotstream tail` as an exporter, killed at its end.
struct Export {
    child: Child,
    log: PathBuf,
}

impl Export {
    fn start(directory: &Path, node: &Node, arguments: &[&str]) -> Self {
        let log = directory.join("export.log");
        let child = command(&["tail", &node.ports.listen.to_string()])
            .args(arguments)
            .env("SLOTSTREAM_TAIL_TOKEN", TOKEN)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("a file for complaints"))
            .spawn()
            .expect("tail starts");
        Self { child, log }
    }

    /// One that listens, and where.
    fn listening(directory: &Path, node: &Node, arguments: &[&str]) -> (Self, SocketAddr) {
        let export = Self::start(directory, node, &[&["--listen", "127.0.0.1:0"][..], arguments].concat());
        let mut address = None;
        wait_until("it listens", PATIENCE, || {
            let log = export.log();
            let line = log.lines().find_map(|line| line.split_once("listening on "));
            address = line.filter(|_| log.ends_with('\n')).and_then(|(_, address)| address.parse().ok());
            address.is_some()
        });
        (export, address.expect("an address"))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("/proc");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
        line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
    }

    fn kill(mut self) {
        self.child.kill().expect("a child of ours can be killed");
        self.child.wait().expect("a killed child ends");
    }

    fn terminate(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("a child of ours");
        let ended = poll(PATIENCE, || self.child.try_wait().expect("a child of ours").is_some());
        assert!(ended, "SIGTERM ends it: {}", self.log());
        assert!(self.child.wait().expect("it has ended").success(), "in order: {}", self.log());
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.child.kill().is_ok() {
            drop(self.child.wait());
        }
    }
}

/// What a program knows that was given these lines.
#[derive(Default)]
struct Model {
    slots: BTreeMap<(u64, u64), (String, Option<String>)>,
    places: BTreeMap<u64, String>,
    changes: usize,
}

impl Model {
    fn take(&mut self, line: &str) {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(line["error"].is_null(), "{line}");
        if line["op"] == "begin" {
            return;
        }
        let shard = line["shard"].as_u64().expect("a shard");
        let text = |name: &str| line[name].as_str().map(str::to_owned);
        self.places.insert(shard, text("id").expect("an id"));
        let slot = (shard, line["slot"].as_u64().expect("a slot"));
        self.slots.insert(slot, (text("key").expect("our keys are text"), text("value")));
        self.changes += 1;
    }

    fn records(&self) -> BTreeMap<String, String> {
        self.slots.values().filter_map(|(key, value)| Some((key.clone(), value.clone()?))).collect()
    }

    fn position(&self) -> String {
        let places: Vec<String> = self.places.iter().map(|(shard, id)| format!("{shard}:{id}")).collect();
        places.join(",")
    }
}

/// A connection with lines; reads give up after a while.
struct Lines {
    stream: BufReader<TcpStream>,
}

impl Lines {
    fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Self { stream: BufReader::new(stream) }
    }

    fn reader(address: SocketAddr, hello: &str) -> Self {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(hello.as_bytes()).expect("it takes lines");
        Self::new(stream)
    }

    fn say(&mut self, line: &str) {
        self.stream.get_mut().write_all(line.as_bytes()).expect("it takes lines");
    }

    /// `None` at the end.
    fn next(&mut self) -> Option<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a line in time");
        line.strip_suffix('\n').map(str::to_owned)
    }

    /// Reads until the model is what the node holds.
    fn follow(&mut self, model: &mut Model, wanted: &BTreeMap<String, String>) {
        // What has come already is taken before the model is looked at: to look takes longer than a line.
        while !self.stream.buffer().is_empty() || model.records() != *wanted {
            model.take(&self.next().expect("more lines"));
        }
    }
}

fn set(node: &Node, keys: std::ops::Range<u32>, value: &str) {
    let mut client = node.client();
    for key in keys {
        assert_eq!(client.call(&["SET", &format!("key-{key}"), value]).text(), "OK");
    }
}

fn hello(from: &str) -> String {
    format!("AUTH {TOKEN}\nFROM {from}\n")
}

#[test]
fn a_reader_that_comes_back_goes_on_where_it_was_over_restarts_of_all() {
    let directory = tempfile::tempdir().expect("temp dir");
    let mut leader = Node::leader(&directory.path().join("leader"), SIZES);
    set(&leader, 0..100, "first");
    let (export, address) = Export::listening(directory.path(), &leader, &[]);
    let mut model = Model::default();
    let mut lines = Lines::reader(address, &hello("start"));
    lines.follow(&mut model, &contents(&leader));
    assert_eq!(leader.client().call(&["DEL", "key-7"]), Reply::Integer(1));
    set(&leader, 0..5, "second");
    lines.follow(&mut model, &contents(&leader));
    drop(lines);
    // Both are away for a while.
    set(&leader, 90..120, "third");
    export.kill();
    let (export, address) = Export::listening(directory.path(), &leader, &[]);
    let before = model.changes;
    let mut lines = Lines::reader(address, &hello(&model.position()));
    let begin = lines.next().expect("a line");
    assert_eq!(begin, format!("{{\"op\":\"begin\",\"position\":\"{}\"}}", model.position()));
    lines.follow(&mut model, &contents(&leader));
    assert_eq!(model.changes - before, 30, "what it has does not come again");
    // The node goes away under a reader, and comes back.
    leader.kill();
    leader.restart();
    set(&leader, 200..210, "fourth");
    lines.follow(&mut model, &contents(&leader));
    // From now on: nothing of what is there.
    let mut late = Lines::reader(address, &hello("now"));
    assert!(late.next().expect("a line").contains("begin"));
    set(&leader, 300..301, "fifth");
    let line = late.next().expect("a line");
    assert!(line.contains("key-300"), "{line}");
    export.terminate();
}

#[test]
fn who_is_not_let_in_hears_why_and_nothing_else() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("leader"), SIZES);
    set(&leader, 0..10, "value");
    let (export, address) = Export::listening(directory.path(), &leader, &["--shards", "0"]);
    let long = "x".repeat(300_000);
    for (hello, wanted) in [
        ("AUTH open-sesam\nFROM start\n".to_owned(), "the token is not the one"),
        ("AUTH \nFROM start\n".into(), "wanted `AUTH token`"),
        ("FROM start\n".into(), "wanted `AUTH token`"),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".into(), "wanted `AUTH token`"),
        (long.clone(), "a line of more than 2048 bytes"),
        (format!("AUTH {TOKEN}\nFROM {long}\n"), "a line of more than 131072 bytes"),
        (format!("AUTH {TOKEN}\nREAD start\n"), "wanted `FROM start, now or the ids"),
        (hello("0:5"), "is no position"),
    ] {
        let mut stream = TcpStream::connect(address).expect("it listens");
        // It may hang up before it has read all of that.
        drop(stream.write_all(hello.as_bytes()));
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut answer = Vec::new();
        // A reset at the end is none of the answer.
        drop(stream.read_to_end(&mut answer));
        let answer = String::from_utf8_lossy(&answer);
        let reason = export.log();
        let said = if answer.is_empty() { &reason } else { &*answer };
        assert!(said.contains(wanted), "{wanted}: {said}");
        assert!(!answer.contains("key-") && !answer.contains(TOKEN), "{answer}");
    }
    let log = export.log();
    assert!(!log.contains(TOKEN) && !log.contains("open-sesam"), "{log}");
    // A place in a history that never was: told so, and all of the shard comes.
    let mut lines = Lines::reader(address, &hello("0:1-5"));
    let first = [lines.next(), lines.next(), lines.next()].map(|line| line.expect("a line"));
    assert!(first[1].contains("\"op\":\"reset\"") && first[2].contains("key-"), "{first:?}");
    // Words behind FROM are no part of this.
    let mut lines = Lines::reader(address, &hello("start"));
    assert!(lines.next().expect("a line").contains("begin"));
    lines.say("more\n");
    wait_until("the reader is told", PATIENCE, || {
        lines.next().is_some_and(|line| line.contains("nothing behind"))
    });
    export.terminate();
}

#[test]
fn without_a_token_nobody_from_elsewhere_is_served() {
    let directory = tempfile::tempdir().expect("temp dir");
    let token = directory.path().join("token");
    let tail = |arguments: &[&str]| {
        run_command(command(&["tail", "127.0.0.1:1", "--listen", "0.0.0.0:0"]).args(arguments), PATIENCE)
    };
    let output = tail(&[]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("--token-file"), "{}", stderr(&output));
    let file = token.to_str().expect("utf-8");
    for content in ["", "two words\n", "\n"] {
        std::fs::write(&token, content).expect("a file");
        let output = tail(&["--token-file", file]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains("holds no token"), "{}", stderr(&output));
    }
    // With one it goes on, to where no node is.
    std::fs::write(&token, "good\n").expect("a file");
    assert_eq!(tail(&["--token-file", file]).status.code(), Some(1));
}

#[test]
fn slow_and_dead_readers_cost_others_nothing() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("leader"), SIZES);
    let load = Load::start(leader.ports.listen, 1);
    load.wait_for(2_000);
    let (export, address) = Export::listening(directory.path(), &leader, &["--readers-max", "2"]);
    let mut slow = Lines::reader(address, &hello("start"));
    assert!(slow.next().expect("a line").contains("begin"));
    // The second one goes away without a word, and its place is free again.
    for _ in 0..3 {
        let mut brief = Lines::reader(address, &hello("start"));
        wait_until("it is served", PATIENCE, || match brief.next() {
            Some(line) if line.contains("too many readers") => {
                brief = Lines::reader(address, &hello("start"));
                false
            }
            Some(line) => line.contains("begin"),
            None => panic!("hung up: {}", export.log()),
        });
        let line = brief.next().expect("a line");
        assert!(line.contains("\"op\""), "{line}");
    }
    load.wait_for(5_000);
    let before = (leader.resident_bytes(), export.resident_bytes());
    load.wait_for(30_000);
    let after = (leader.resident_bytes(), export.resident_bytes());
    assert!(after.0.saturating_sub(before.0) < 8 << 20, "the leader: {before:?}, {after:?}");
    assert!(after.1.saturating_sub(before.1) < 8 << 20, "the exporter: {before:?}, {after:?}");
    assert_eq!(leader.metric("slotstream_ring_capacity_bytes"), 0.0, "nothing is attached for it");
    load.finish();
    let mut model = Model::default();
    slow.follow(&mut model, &contents(&leader));
    export.terminate();
}

/// A sink's next connection: the token was right, and where its lines begin.
fn accept(listener: &TcpListener) -> (Lines, String) {
    let (stream, _) = listener.accept().expect("a connection");
    let mut lines = Lines::new(stream);
    assert_eq!(lines.next().expect("a line"), format!("AUTH {TOKEN}"));
    let begin: Value = serde_json::from_str(&lines.next().expect("a line")).expect("JSON");
    (lines, begin["position"].as_str().expect("a position").to_owned())
}

#[test]
fn a_sink_gets_everything_again_that_it_has_not_acknowledged() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("leader"), SIZES);
    set(&leader, 0..100, "first");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let sink = listener.local_addr().expect("an address").to_string();
    let file = directory.path().join("position");
    let position = || std::fs::read_to_string(&file).unwrap_or_default().trim().to_owned();
    let arguments = ["--connect", &sink, "--from", "start", "--position-file", file.to_str().expect("utf-8")];
    let export = Export::start(directory.path(), &leader, &arguments);
    let all = contents(&leader);
    // Nothing is acknowledged: all of it comes again, on the next connection and after a kill.
    let (mut lines, first) = accept(&listener);
    lines.follow(&mut Model::default(), &all);
    drop(lines);
    let (mut lines, second) = accept(&listener);
    lines.follow(&mut Model::default(), &all);
    export.kill();
    let export = Export::start(directory.path(), &leader, &arguments);
    let (mut lines, third) = accept(&listener);
    assert_eq!((&first, &first), (&second, &third));
    let mut model = Model::default();
    lines.follow(&mut model, &all);
    lines.say(&format!("ACK {}\n", model.position()));
    wait_until("the position is kept", PATIENCE, || position() == model.position());
    set(&leader, 50..110, "second");
    lines.follow(&mut model, &contents(&leader));
    // Killed with sixty lines that nobody has acknowledged.
    export.kill();
    drop(lines);
    let export = Export::start(directory.path(), &leader, &arguments);
    let (mut lines, begin) = accept(&listener);
    assert_eq!(begin, position());
    let before = model.changes;
    set(&leader, 0..1, "third");
    lines.follow(&mut model, &contents(&leader));
    assert!((61..=62).contains(&(model.changes - before)), "{}", model.changes - before);
    // An answer that is none, and one that lies ahead: the connection ends, and another one begins where this did.
    for (answer, wanted) in [("what?\n", "wanted `ACK`"), ("ACK 0:1-999999\n", "the last that it was sent")] {
        lines.say(answer);
        let (next, begin) = accept(&listener);
        assert_eq!(begin, position());
        wait_until("it is said why", PATIENCE, || export.log().contains(wanted));
        lines = next;
    }
    export.terminate();
}

#[test]
fn a_sink_that_never_answers_is_sent_each_change_once_while_it_is_there() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("leader"), SIZES);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let sink = listener.local_addr().expect("an address").to_string();
    let file = directory.path().join("position");
    let path = file.to_str().expect("utf-8");
    let arguments = ["--connect", &sink, "--no-acks", "--from", "start", "--position-file", path];
    set(&leader, 0..100, "first");
    let export = Export::start(directory.path(), &leader, &arguments);
    let (mut lines, _) = accept(&listener);
    let mut model = Model::default();
    lines.follow(&mut model, &contents(&leader));
    let is_kept = || std::fs::read_to_string(&file).is_ok_and(|text| text.trim() == model.position());
    wait_until("the position is kept", PATIENCE, is_kept);
    drop(lines);
    let (mut lines, begin) = accept(&listener);
    assert_eq!(begin, model.position());
    let before = model.changes;
    set(&leader, 0..10, "second");
    lines.follow(&mut model, &contents(&leader));
    assert_eq!(model.changes - before, 10);
    // A sink that is not there is tried again, ever more seldom, for as long as it takes.
    drop(listener);
    drop(lines);
    wait_until("it is said", PATIENCE, || export.log().contains("refused"));
    export.terminate();
}
