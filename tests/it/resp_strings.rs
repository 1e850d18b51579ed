//! String and keyspace commands where Redis cannot be asked: slots' limits, followers, writers beside each other.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use slotstream::resp::Options;
use slotstream::{Change, Entry, Geometry};

use crate::resp_support::{GEOMETRY, TestServer, wait_until};

const SMALL: Geometry =
    Geometry { shard_count: 3, key_size_max: 16, value_size_max: 20, shard_prefix_bits: 0 };

/// Says that it is over when its scope ends, also where that fails: other threads of the scope would go on for ever.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn value_error(found: u64) -> String {
    format!("-ERR value is {found} bytes, this store holds values of at most 20\r\n")
}

#[test]
fn a_value_that_would_outgrow_its_slot_is_refused_and_stays_as_it_is() {
    let server = TestServer::start_with(SMALL, Options::default());
    let mut client = server.connect();
    assert_eq!(client.ask("set k 12345"), "+OK\r\n");
    assert_eq!(client.ask("setrange k 20 x"), value_error(21));
    assert_eq!(client.ask("setrange k 536870911 x"), value_error(536_870_912));
    assert_eq!(client.ask("setbit k 160 1"), value_error(21));
    assert_eq!(client.ask("setbit k 4294967295 1"), value_error(536_870_912));
    assert_eq!(client.ask("bitfield k get u8 0 set u8 #20 1"), value_error(21));
    assert_eq!(client.ask("incrbyfloat k 1e30"), value_error(31));
    assert_eq!(client.ask("get k"), "$5\r\n12345\r\n");
    assert_eq!(client.ask("setrange k 19 x"), ":20\r\n");
    assert_eq!(client.ask("bitop not other k"), ":20\r\n");
    let key_error = "-ERR key is 17 bytes, this store holds keys of at most 16\r\n";
    for command in ["rename k", "copy k", "bitop and", "renamenx k"] {
        let last = if command == "bitop and" { " k" } else { "" };
        assert_eq!(client.ask(&format!("{command} {}{last}", "x".repeat(17))), key_error, "{command}");
    }
    assert_eq!(client.ask("exists k"), ":1\r\n");
}

#[test]
fn a_follower_reads_with_all_commands_and_writes_with_none() {
    let server = TestServer::start();
    let mut client = server.connect();
    assert_eq!(client.ask("set k 12345"), "+OK\r\n");
    server.context.store.set_read_only(true);
    let writes = [
        "setrange k 0 x",
        "setbit k 0 1",
        "bitfield k get u8 0",
        "bitop not k k",
        "incrbyfloat k 1",
        "msetnx a 1 b 2",
        "rename k l",
        "renamenx k l",
        "copy k l",
        "restore k 0 x",
        "delifeq k 12345",
        "move k 0",
        "swapdb 0 0",
    ];
    for command in writes {
        assert!(client.ask(command).starts_with("-READONLY "), "{command}");
    }
    let reads = [
        ("getrange k 1 2", "$2\r\n23\r\n"),
        ("getbit k 2", ":1\r\n"),
        ("bitcount k", ":17\r\n"),
        ("bitpos k 1", ":2\r\n"),
        ("bitfield_ro k get u8 0", "*1\r\n:49\r\n"),
        ("keys *", "*1\r\n$1\r\nk\r\n"),
        ("randomkey", "$1\r\nk\r\n"),
        ("lcs k k len", ":5\r\n"),
        ("touch k l", ":1\r\n"),
        ("object encoding k", "$3\r\nint\r\n"),
        ("expiretime k", ":-1\r\n"),
    ];
    for (command, reply) in reads {
        assert_eq!(client.ask(command), reply, "{command}");
    }
}

#[test]
fn set_ifeq_and_delifeq_look_at_the_value_as_valkey_does() {
    let server = TestServer::start();
    let mut client = server.connect();
    assert_eq!(client.ask("set k w ifeq v"), "$-1\r\n", "no key has no value");
    assert_eq!(client.ask("set k v"), "+OK\r\n");
    assert_eq!(client.ask("set k w ifeq x"), "$-1\r\n");
    assert_eq!(client.ask("set k w ifeq x get"), "$1\r\nv\r\n");
    assert_eq!(client.ask("get k"), "$1\r\nv\r\n");
    assert_eq!(client.ask("set k w IFEQ v GET EX 1000"), "$1\r\nv\r\n");
    assert_eq!(client.ask("get k"), "$1\r\nw\r\n");
    assert_eq!(client.ask("set k x ifeq w keepttl"), "+OK\r\n");
    assert_ne!(client.ask("ttl k"), ":-1\r\n");
    for options in ["ifeq", "nx ifeq x", "ifeq x xx", "ifeq x ifeq x"] {
        assert_eq!(client.ask(&format!("set k y {options}")), "-ERR syntax error\r\n", "{options}");
    }
    assert_eq!(client.ask("delifeq k y"), ":0\r\n");
    assert_eq!(client.ask("delifeq k x"), ":1\r\n");
    assert_eq!(client.ask("delifeq k x"), ":0\r\n");
}

#[test]
fn a_sleeping_connection_holds_up_no_other() {
    let server = TestServer::start_with(GEOMETRY, Options { workers: 1, ..Options::default() });
    let (mut sleeper, mut other) = (server.connect(), server.connect());
    assert_eq!(sleeper.ask("debug sleep 0.001"), "+OK\r\n");
    // As long as the test may take: nobody waits for its end.
    sleeper.send(b"debug sleep 1000\r\nset k late\r\n");
    for _ in 0..100 {
        assert_eq!(other.ask("set k v"), "+OK\r\n");
    }
    assert_eq!(other.ask("get k"), "$1\r\nv\r\n");
}

#[test]
fn keys_refuses_a_reply_that_is_too_large() {
    let geometry = Geometry { key_size_max: 1024, value_size_max: 8, ..SMALL };
    let server = TestServer::start_with(geometry, Options::default());
    let mut client = server.connect();
    let store = &server.context.store;
    for index in 0..33_000 {
        store.put(format!("{index:01024}").as_bytes(), b"").expect("room");
    }
    let reply = client.ask("keys *");
    assert_eq!(reply, "-ERR the reply is larger than 33554432 bytes; use SCAN\r\n");
    assert_eq!(client.ask("keys *x"), "*0\r\n");
}

#[test]
fn scan_returns_what_is_there_throughout_whatever_changes_meanwhile() {
    const STAY: usize = 500;
    let server = TestServer::start();
    let stop = AtomicBool::new(false);
    let mut client = server.connect();
    let stay: BTreeSet<String> = (0..STAY).map(|index| format!("stay:{index}")).collect();
    for key in &stay {
        assert_eq!(client.ask(&format!("set {key} 0")), "+OK\r\n");
    }
    std::thread::scope(|scope| {
        let _over = Over(&stop);
        let change = || {
            let mut client = server.connect();
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let key = format!("go:{}", round % 700);
                client.ask(&format!("set {key} {round}"));
                client.ask(&format!("rename {key} moved:{}", round % 300));
                client.ask(&format!("del go:{} moved:{}", (round + 13) % 700, (round + 7) % 300));
                client.ask(&format!("append stay:{} x", round % STAY));
            }
        };
        scope.spawn(change);
        for count in [1, 7, 10, 100, 1000] {
            let (mut found, mut cursor) = (BTreeSet::new(), "0".to_owned());
            loop {
                let text = client.ask(&format!("scan {cursor} match stay:* count {count}"));
                let lines: Vec<&str> = text.split("\r\n").collect();
                cursor = lines[2].to_owned();
                found.extend(
                    lines[4..].chunks(2).filter(|pair| pair.len() == 2).map(|pair| pair[1].to_owned()),
                );
                if cursor == "0" {
                    break;
                }
            }
            assert_eq!(found, stay, "count {count}");
        }
    });
}

/// A record is renamed to and fro while somebody writes to one of its names: what was written is never lost.
#[test]
fn renaming_loses_no_write() {
    const WRITES: u64 = 150;
    let server = TestServer::start();
    assert_eq!(server.connect().ask("set a begin"), "+OK\r\n");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = Over(&is_over);
        scope.spawn(|| {
            let mut client = server.connect();
            while !is_over.load(Ordering::Relaxed) {
                assert_eq!(client.ask("rename a b"), "+OK\r\n");
                assert_eq!(client.ask("rename b a"), "+OK\r\n");
            }
        });
        // Beside the server, so that it writes while a command is being done.
        let store = &server.context.store;
        for nth in 0..WRITES {
            let text = format!("write:{nth}");
            let write = |old: Option<Entry<'_>>, buffer: &mut Vec<u8>| match old {
                Some(_) => {
                    buffer.extend_from_slice(text.as_bytes());
                    (Change::Put { expire_at: 0 }, true)
                }
                None => (Change::Keep, false),
            };
            let is_at = |key: &[u8]| store.get(key).expect("a good slot").as_deref() == Some(text.as_bytes());
            // At any moment of a renaming: it takes about as long as the longest of these pauses.
            wait_until("a record at a", || (0..1000).any(|_| store.contains(b"a").expect("a good slot")));
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_micros(nth * 7 % 300) {}
            wait_until("a write", || (0..1000).any(|_| store.update(b"a", write).expect("room")));
            wait_until("the write under its other name", || (0..1000).any(|_| is_at(b"b")));
        }
    });
}
