//! The same commands to our server and to Redis: the replies are equal byte for byte.
//!
//! Times to live are compared with a tolerance, since the two answer at different moments; commands are
//! chosen so that no other reply depends on when exactly it is given. To replay a run, set
//! `SLOTSTREAM_TEST_SEED` to the seed that it printed.

mod commands;
mod compare;
mod explained;
mod keyspace;
mod parts;
mod random;

use std::collections::{BTreeMap, BTreeSet};

use crate::harness::{Node, connect};
use crate::resp_support::{Client, GEOMETRY, RedisServer, TestServer, encode};
use commands::command;
use compare::check;
use random::{KEYS, Random, word};
use std::io::{Read, Write};

/// The command inside one line, in double quotes.
fn inline(command: &[Vec<u8>]) -> Vec<u8> {
    let mut line = Vec::new();
    for arg in command {
        line.push(b'"');
        for byte in arg {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => line.push(*byte),
                b'\n' => line.extend_from_slice(b"\\n"),
                b'"' => line.extend_from_slice(b"\\\""),
                other => line.extend_from_slice(format!("\\x{other:02x}").as_bytes()),
            }
        }
        line.extend_from_slice(b"\" ");
    }
    line.extend_from_slice(b"\r\n");
    line
}

/// What was done before a test failed, to be shown then.
struct Trail(Vec<String>);

impl Drop for Trail {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let start = self.0.len().saturating_sub(40);
            eprintln!("the last commands, and our replies:\n{}", self.0[start..].join("\n"));
        }
    }
}

/// Does that many commands on both servers, in batches of up to `batch_max`.
fn run<A: Read + Write, B: Read + Write>(
    random: &mut Random,
    ours: &mut Client<A>,
    theirs: &mut Client<B>,
    count: usize,
    batch_max: u64,
) {
    /// No batch is much larger: its replies must fit the sockets' buffers, since nobody reads meanwhile.
    const BATCH_BYTES_MAX: usize = 32 << 10;
    let (mut in_multi, mut done, mut explained) = (false, 0, BTreeMap::new());
    let mut trail = Trail(Vec::new());
    while done < count {
        let (mut commands, mut bytes) = (Vec::new(), Vec::new());
        for _ in 0..=random.below(batch_max) {
            let command = match random.below(60) {
                0 => vec![word(random.pick(&["multi", "multi", "exec", "discard"]))],
                1 if in_multi => vec![word("exec")],
                2 if in_multi => vec![word("exec")],
                _ => command(random, in_multi),
            };
            match command[0].as_slice() {
                b"multi" => in_multi = true,
                b"exec" | b"discard" => in_multi = false,
                _ => {}
            }
            bytes.extend(if random.one_in(8) { inline(&command) } else { encode(&command) });
            commands.push(command);
            if bytes.len() > BATCH_BYTES_MAX {
                break;
            }
        }
        ours.send(&bytes);
        theirs.send(&bytes);
        for command in &commands {
            let (ours, theirs) = (ours.reply(), theirs.reply());
            trail.0.push(format!(
                "{}-> {}",
                compare::show(command),
                ours[..ours.len().min(40)].escape_ascii()
            ));
            if let Some(reason) = check(command, &ours, &theirs) {
                *explained.entry(reason).or_insert(0) += 1;
            }
        }
        done += commands.len();
    }
    ours.call(&["discard"]);
    theirs.call(&["discard"]);
    for key in KEYS {
        for name in ["get", "exists", "ttl", "dump"] {
            let command = [word(name), word(key)];
            assert_eq!(check(&command, &ours.call(&command), &theirs.call(&command)), None);
        }
    }
    eprintln!("{done} commands; differences that are explained: {explained:?}");
}

/// Of all tests here together.
const COMMANDS: usize = 100_000;

/// Has Redis write strings as they are: packed ones may come out differently with equal right.
fn write_plainly<S: Read + Write>(redis: &mut Client<S>) {
    assert_eq!(redis.call(&["config", "set", "rdbcompression", "no"]), b"+OK\r\n");
}

fn run_in(protocol: &str, batch_max: u64, seed: u64) {
    let Some(redis) = RedisServer::start() else { return };
    let server = TestServer::start();
    let (mut ours, mut theirs) = (server.connect(), redis.connect());
    ours.call(&["hello", protocol]);
    theirs.call(&["hello", protocol]);
    write_plainly(&mut theirs);
    run(&mut Random::from_environment(seed), &mut ours, &mut theirs, COMMANDS / 2, batch_max);
}

#[test]
fn replies_equal_redis_in_resp2() {
    run_in("2", 200, 0);
}

#[test]
fn replies_equal_redis_in_resp3() {
    run_in("3", 200, 1);
}

#[test]
fn pipelines_equal_redis() {
    let Some(redis) = RedisServer::start() else { return };
    let server = TestServer::start();
    pipelines(&mut server.connect(), &mut redis.connect(), &mut Random::from_environment(2), 60);
}

#[test]
fn pipelines_equal_redis_where_every_reply_waits_for_the_log() {
    let Some(redis) = RedisServer::start() else { return };
    let directory = tempfile::tempdir().expect("temp dir");
    let (key_size, value_size) = (GEOMETRY.key_size_max.to_string(), GEOMETRY.value_size_max.to_string());
    let arguments = ["--key-size", &key_size, "--value-size", &value_size, "--durability", "always"];
    let node = Node::leader(&directory.path().join("leader"), &arguments);
    let stream = connect(node.ports.listen);
    let mut ours = Client::new(stream.try_clone().expect("a second handle"), stream);
    pipelines(&mut ours, &mut redis.connect(), &mut Random::from_environment(3), 15);
}

fn pipelines<A: Read + Write, B: Read + Write>(
    ours: &mut Client<A>,
    theirs: &mut Client<B>,
    random: &mut Random,
    count: usize,
) {
    write_plainly(theirs);
    for _ in 0..count {
        let commands: Vec<_> = (0..1 + random.below(300)).map(|_| command(random, false)).collect();
        let bytes: Vec<u8> =
            commands.iter().flat_map(|c| if random.one_in(8) { inline(c) } else { encode(c) }).collect();
        // In pieces that cut commands anywhere.
        for piece in bytes.chunks(usize::try_from(1 + random.below(20_000)).expect("small")) {
            ours.send(piece);
        }
        theirs.send(&bytes);
        for command in &commands {
            check(command, &ours.reply(), &theirs.reply());
        }
    }
}

fn scan_all<S: Read + Write>(client: &mut Client<S>, options: &[&str]) -> BTreeSet<String> {
    let (mut keys, mut cursor) = (BTreeSet::new(), "0".to_owned());
    loop {
        let reply = client.call(&[&["scan", &cursor], options].concat());
        let text = String::from_utf8(reply).expect("keys in text");
        // "*2", "$n", cursor, "*m", then "$n" and a key for each key.
        let lines: Vec<&str> = text.split("\r\n").collect();
        cursor = lines[2].to_owned();
        keys.extend(lines[4..].chunks(2).filter(|pair| pair.len() == 2).map(|pair| pair[1].to_owned()));
        if cursor == "0" {
            return keys;
        }
    }
}

#[test]
fn scan_finds_what_redis_finds() {
    let Some(redis) = RedisServer::start() else { return };
    let server = TestServer::start();
    let (mut ours, mut theirs) = (server.connect(), redis.connect());
    for index in 0..3000 {
        let command = ["set".to_owned(), format!("key:{}:{index}", index % 7), index.to_string()];
        assert_eq!(ours.call(&command), theirs.call(&command));
    }
    let options: [&[&str]; 7] = [
        &[],
        &["count", "1"],
        &["count", "1000000"],
        &["match", "key:[1-3]:*5"],
        &["match", "key:?:1?", "count", "77"],
        &["type", "string"],
        &["type", "hash"],
    ];
    for options in options {
        assert_eq!(scan_all(&mut ours, options), scan_all(&mut theirs, options), "{options:?}");
    }
    assert_eq!(ours.call(&["dbsize"]), theirs.call(&["dbsize"]));
    assert_eq!(ours.call(&["flushall"]), theirs.call(&["flushall"]));
    assert_eq!(scan_all(&mut ours, &[]), BTreeSet::new());
}

/// What a bulk string reply holds.
fn content(reply: &[u8]) -> &[u8] {
    let end = reply.windows(2).position(|pair| pair == b"\r\n").expect("a length's end");
    &reply[end + 2..reply.len() - 2]
}

#[test]
fn dumps_travel_both_ways() {
    let Some(redis) = RedisServer::start() else { return };
    let server = TestServer::start();
    let (mut ours, mut theirs) = (server.connect(), redis.connect());
    let mut random = Random::from_environment(5);
    let mut values: Vec<Vec<u8>> = [0, 1, 127, 128, -128, -129, 32_767, 32_768, -32_769, i64::MAX, i64::MIN]
        .map(|number: i64| number.to_string().into_bytes())
        .to_vec();
    values.extend([vec![], b"-0".to_vec(), b"00".to_vec(), vec![b'x'; 63], vec![0; 64], vec![b'a'; 65_535]]);
    for _ in 0..200 {
        // Packed and not: of few letters, and of all bytes.
        let (len, letters) = (random.below(40_000), 1 + random.below(256));
        let byte = |random: &mut Random| u8::try_from(random.below(letters)).expect("a byte");
        values.push((0..len).map(|_| byte(&mut random)).collect());
    }
    for value in values {
        for (client, other) in [(0, 1), (1, 0)] {
            let mut ask = |whom: i32, command: &[&[u8]]| {
                if whom == 0 { ours.call(command) } else { theirs.call(command) }
            };
            assert_eq!(ask(client, &[b"set", b"k", &value]), b"+OK\r\n");
            let dump = ask(client, &[b"dump", b"k"]);
            assert_eq!(ask(other, &[b"restore", b"k", b"0", content(&dump), b"replace"]), b"+OK\r\n");
            assert_eq!(content(&ask(other, &[b"get", b"k"])), value);
        }
    }
}
