//! The same commands to our server and to Redis: the replies are equal byte for byte.
//!
//! Times to live are compared with a tolerance, since the two answer at different moments; commands are
//! chosen so that no other reply depends on when exactly it is given. To replay a run, set
//! `SLOTSTREAM_TEST_SEED` to the seed that it printed.

use std::collections::BTreeSet;

use crate::harness::{Node, connect};
use crate::resp_support::{Client, GEOMETRY, RedisServer, TestServer, encode};
use std::io::{Read, Write};

/// xorshift64*: enough to pick commands.
struct Random(u64);

impl Random {
    fn from_environment(default: u64) -> Self {
        let seed = std::env::var("SLOTSTREAM_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            u64::from(now.subsec_nanos()) * 2 + default
        });
        eprintln!("seed {seed}; replay: SLOTSTREAM_TEST_SEED={seed} cargo test --test it resp_differential");
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, chance: u64) -> bool {
        self.below(chance) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).expect("an index")]
    }
}

const KEYS: [&str; 10] =
    ["a", "b", "c", "counter", "counter2", "key:1", "key:2", "text", "\u{e9}", "with blank"];

const INTEGERS: [&str; 20] = [
    "0",
    "1",
    "-1",
    "5",
    "100",
    "-100",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775806",
    "9223372036854775808",
    "-0",
    "+1",
    "01",
    " 1",
    "1 ",
    "",
    "abc",
    "1.5",
    "922337203685477580",
    "99999999999999999999",
];

fn word(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn key(random: &mut Random) -> Vec<u8> {
    word(random.pick(&KEYS))
}

fn value(random: &mut Random) -> Vec<u8> {
    match random.below(6) {
        0 | 1 => word(random.pick(&INTEGERS)),
        2 => (0..random.below(40)).map(|_| random.next().to_le_bytes()[0]).collect(),
        3 => vec![b'x'; usize::try_from(random.below(3000)).expect("a length")],
        4 => word("hello\r\nworld"),
        _ => word("value"),
    }
}

/// A relative time: no two are near each other, so that GT and LT do not hang on a millisecond.
fn time(random: &mut Random, seconds: bool) -> Vec<u8> {
    match random.below(12) {
        0 => word(random.pick(&INTEGERS[6..])),
        1 => word(random.pick(&[
            "0",
            "-1",
            "-1000",
            "9223372036854775",
            "9223372036854776",
            "-9223372036854775",
            "-9223372036854776",
        ])),
        _ => {
            let time = 1_000 + random.below(1_000_000_000);
            word(&(if seconds { time } else { time * 1000 }).to_string())
        }
    }
}

/// An absolute time, far ahead or long ago.
fn moment(random: &mut Random, seconds: bool) -> Vec<u8> {
    match random.below(8) {
        0 => word(random.pick(&INTEGERS[6..])),
        1 => word(random.pick(&["1", "0", "-5", "1000"])),
        _ => {
            let time = 4_000_000_000 + random.below(1_000_000_000);
            word(&(if seconds { time } else { time * 1000 }).to_string())
        }
    }
}

fn any_case(random: &mut Random, text: &str) -> Vec<u8> {
    if random.one_in(4) { word(&text.to_uppercase()) } else { word(text) }
}

fn expiry_options(random: &mut Random, command: &mut Vec<Vec<u8>>) {
    match random.below(6) {
        0 => command.extend([any_case(random, "ex"), time(random, true)]),
        1 => command.extend([any_case(random, "px"), time(random, false)]),
        2 => command.extend([any_case(random, "exat"), moment(random, true)]),
        3 => command.extend([any_case(random, "pxat"), moment(random, false)]),
        4 => command.push(any_case(random, "ex")),
        _ => {}
    }
}

/// One command; `in_multi` leaves out what depends on the moment.
fn command(random: &mut Random, in_multi: bool) -> Vec<Vec<u8>> {
    let mut command: Vec<Vec<u8>> = Vec::new();
    match random.below(40) {
        0..=3 => command.extend([any_case(random, "get"), key(random)]),
        4 | 5 => command.extend([any_case(random, "set"), key(random), value(random)]),
        6..=10 => {
            command.extend([any_case(random, "set"), key(random), value(random)]);
            for _ in 0..random.below(4) {
                match random.below(7) {
                    0 => command.push(any_case(random, "nx")),
                    1 => command.push(any_case(random, "xx")),
                    2 => command.push(any_case(random, "get")),
                    3 => command.push(any_case(random, "keepttl")),
                    4 if random.one_in(10) => command.push(word("nonsense")),
                    _ => expiry_options(random, &mut command),
                }
            }
        }
        11 => command.extend([any_case(random, "setnx"), key(random), value(random)]),
        12 => {
            let seconds = random.one_in(2);
            let name = any_case(random, if seconds { "setex" } else { "psetex" });
            command.extend([name, key(random), time(random, seconds), value(random)]);
        }
        13 => command.extend([any_case(random, "getdel"), key(random)]),
        14 | 15 => {
            command.extend([any_case(random, "getex"), key(random)]);
            for _ in 0..random.below(3) {
                if random.one_in(4) {
                    command.push(any_case(random, "persist"));
                } else {
                    expiry_options(random, &mut command);
                }
            }
        }
        16 => command.extend([any_case(random, "getset"), key(random), value(random)]),
        17 => {
            command.push(any_case(random, "mget"));
            (0..=random.below(5)).for_each(|_| command.push(key(random)));
        }
        18 => {
            command.push(any_case(random, "mset"));
            (0..=random.below(3)).for_each(|_| command.extend([key(random), value(random)]));
            if random.one_in(8) {
                command.push(key(random));
            }
        }
        19 | 20 => {
            let name = random.pick(&["del", "unlink", "exists"]);
            command.push(any_case(random, name));
            (0..=random.below(3)).for_each(|_| command.push(key(random)));
        }
        21 => command.extend([any_case(random, "type"), key(random)]),
        22 => command.extend([any_case(random, "strlen"), key(random)]),
        23 | 24 => {
            let name = random.pick(&["incr", "decr"]);
            command.extend([any_case(random, name), key(random)]);
        }
        25..=27 => {
            let name = random.pick(&["incrby", "decrby"]);
            command.extend([any_case(random, name), key(random), word(random.pick(&INTEGERS))]);
        }
        28 => command.extend([any_case(random, "append"), key(random), value(random)]),
        29..=32 => {
            let name = random.pick(&["expire", "pexpire", "expireat", "pexpireat"]);
            let seconds = !name.starts_with('p');
            let when = if name.ends_with("at") { moment(random, seconds) } else { time(random, seconds) };
            command.extend([any_case(random, name), key(random), when]);
            for _ in 0..random.below(3) {
                let option = random.pick(&["nx", "xx", "gt", "lt", "gt", "lt", "bad\r\n"]);
                command.push(any_case(random, option));
            }
        }
        33 if !in_multi => {
            let name = random.pick(&["ttl", "pttl"]);
            command.extend([any_case(random, name), key(random)]);
        }
        34 => command.extend([any_case(random, "persist"), key(random)]),
        35 => command.extend([any_case(random, "echo"), value(random)]),
        36 => {
            command.push(any_case(random, "ping"));
            (0..random.below(3)).for_each(|_| command.push(value(random)));
        }
        37 => command.extend([
            any_case(random, "select"),
            word(random.pick(&["0", "0", "99", "-1", "x", "99999999999"])),
        ]),
        38 => {
            // A command that is not one, or has the wrong arguments.
            let name = random.pick(&[
                "nosuch",
                "get",
                "set",
                "mset",
                "mget",
                "incrby",
                "ttl",
                "getex",
                "expire",
                "wait",
                "echo",
                "hello\r\n",
                "dbsize",
            ]);
            command.push(any_case(random, name));
            (0..random.below(2)).for_each(|_| command.push(value(random)));
            if name == "nosuch" || name.starts_with("hello") {
                (0..random.below(6)).for_each(|_| command.push(value(random)));
            } else if command.len() == 1 && name == "dbsize" {
                command.push(word("x"));
            }
        }
        // Redis looks at subcommands before it queues, we when they are done.
        _ if in_multi => command.push(word("ping")),
        _ => {
            let words: &[&str] = random.pick(&[
                &["wait", "0", "10"][..],
                &["wait", "x", "10"],
                &["wait", "0", "-1"],
                &["wait", "0", "x"],
                &["client", "getname"],
                &["client", "setname", "a b"],
                &["client", "setname", "name"],
                &["client", "setname", ""],
                &["client", "nosuch"],
                &["client", "getname", "x"],
                &["client"],
                &["client", "no-evict", "on"],
                &["client", "no-evict", "maybe"],
                &["config", "get", "databases2"],
                &["config", "get"],
                &["config", "get", "maxmemory-policy"],
                &["config", "get", "save"],
                &["command", "docs", "nosuchcommand"],
                &["command", "count", "x"],
                &["command", "info", "nosuchcommand"],
                &["auth", "x"],
                &["auth", "default", "x"],
                &["auth", "nobody", "x"],
                &["auth", "a", "b", "c"],
                &["hello", "4"],
                &["hello", "x"],
                &["hello", "2", "nonsense"],
                &["hello", "2", "auth", "x"],
                &["hello", "2", "setname", "a b"],
                &["flushall", "now"],
                &["flushall", "async", "sync"],
                &["flushdb", "sync"],
                &["role", "x"],
                &["time", "x"],
                &["scan"],
                &["scan", "x"],
                &["scan", "0", "count", "0"],
                &["scan", "0", "count", "x"],
                &["scan", "0", "count"],
                &["scan", "0", "nonsense", "1"],
                &["readonly"],
            ]);
            command.extend(words.iter().map(|text| word(text)));
        }
    }
    command
}

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

fn show(command: &[Vec<u8>]) -> String {
    command.iter().map(|arg| format!("{:?} ", arg.escape_ascii().to_string())).collect()
}

fn integer(reply: &[u8]) -> Option<i64> {
    std::str::from_utf8(reply.strip_prefix(b":")?).ok()?.trim_end().parse().ok()
}

fn check(command: &[Vec<u8>], ours: &[u8], theirs: &[u8]) {
    let is_time_to_live = command[0].eq_ignore_ascii_case(b"ttl") || command[0].eq_ignore_ascii_case(b"pttl");
    if is_time_to_live && let (Some(ours), Some(theirs)) = (integer(ours), integer(theirs)) {
        let tolerance = if command[0].len() == 3 { 2 } else { 2000 };
        assert!(
            ours == theirs || (ours.min(theirs) >= 0 && ours.abs_diff(theirs) <= tolerance),
            "{}: ours {ours}, Redis {theirs}",
            show(command)
        );
        return;
    }
    assert_eq!(
        ours.escape_ascii().to_string(),
        theirs.escape_ascii().to_string(),
        "ours (left) and Redis (right) to {}",
        show(command)
    );
}

fn run<A: Read + Write, B: Read + Write>(
    random: &mut Random,
    ours: &mut Client<A>,
    theirs: &mut Client<B>,
    count: usize,
) {
    let mut in_multi = false;
    for _ in 0..count {
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
        let bytes = if random.one_in(8) { inline(&command) } else { encode(&command) };
        ours.send(&bytes);
        theirs.send(&bytes);
        check(&command, &ours.reply(), &theirs.reply());
    }
    ours.call(&["discard"]);
    theirs.call(&["discard"]);
    for key in KEYS {
        for name in ["get", "exists", "ttl"] {
            let command = [word(name), word(key)];
            check(&command, &ours.call(&command), &theirs.call(&command));
        }
    }
}

const COMMANDS: usize = 12_000;

#[test]
fn replies_equal_redis_in_resp2() {
    let Some(redis) = RedisServer::start() else { return };
    let server = TestServer::start();
    run(&mut Random::from_environment(0), &mut server.connect(), &mut redis.connect(), COMMANDS);
}

#[test]
fn replies_equal_redis_in_resp3() {
    let Some(redis) = RedisServer::start() else { return };
    let server = TestServer::start();
    let (mut ours, mut theirs) = (server.connect(), redis.connect());
    ours.call(&["hello", "3"]);
    theirs.call(&["hello", "3"]);
    run(&mut Random::from_environment(1), &mut ours, &mut theirs, COMMANDS);
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
