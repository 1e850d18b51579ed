//! One command at random, of those that deal with keys: other names, walks, dumps, what a record is made of.

use super::random::{INTEGERS, Random, any_case, key, moment, time, value, word};

pub(super) const PATTERNS: [&str; 16] = [
    "*",
    "k*",
    "key:?",
    "[ac]*",
    "[^a]*",
    "\\a",
    "*e*",
    "c[a-p]unter",
    "nosuch",
    "",
    "[",
    "with*",
    "counter[2-3]",
    "[]",
    "a\\",
    "**[\\:-z]?",
];

/// What DUMP of redis-server 7.0 gives, whole and not.
const PAYLOADS: [&[u8]; 9] = [
    b"\x00\x05hello\n\x00cr\xdfve4 \n",
    b"\x00\xc0\x05\n\x00c/_f\x83/\xb3Q",
    b"\x00\xc1\x7f\xff\n\x00\x17`\x82(T\x80\x84\x80",
    b"\x00\xc2\xa0\x86\x01\x00\n\x00\xf1$\x03Po/\xa6t",
    b"\x00\xc3\x05\n\x01ab\xc0\x01\n\x00J&\xef\xfd\xdap\xe5\x04",
    b"\x00\xc3\x05\x0b\x01ab\xc0\x01\n\x00\x0eb\x804\xcfp\xf8<",
    b"\x00\x05hello\n\x00cr\xdfve4 \x0b",
    b"\x00\x05hello",
    b"",
];

fn restore(random: &mut Random) -> Vec<Vec<u8>> {
    let is_absolute = random.one_in(3);
    let when = match random.below(4) {
        0 if is_absolute => moment(random, false),
        0 => time(random, false),
        1 => word(random.pick(&INTEGERS[6..])),
        _ => word("0"),
    };
    let mut command = vec![any_case(random, "restore"), key(random), when, random.pick(&PAYLOADS).to_vec()];
    if random.one_in(2) {
        command.push(any_case(random, "replace"));
    }
    if is_absolute {
        command.push(any_case(random, "absttl"));
    }
    for _ in 0..random.below(2) {
        let options: [&[&str]; 8] = [
            &["idletime", "5"],
            &["idletime", "-1"],
            &["freq", "255"],
            &["freq", "256"],
            &["freq", "x"],
            &["freq", "1", "idletime", "1"],
            &["idletime"],
            &["nonsense"],
        ];
        command.extend(random.pick(&options).iter().map(|text| word(text)));
    }
    command
}

/// A pattern of few letters, most of which mean something.
fn pattern(random: &mut Random) -> Vec<u8> {
    if random.one_in(2) {
        return word(random.pick(&PATTERNS));
    }
    (0..random.below(8)).map(|_| random.pick(b"*?[]^-\\abck:2e")).collect()
}

/// A command with arguments that others have, as many as there happen to be. Not DBSIZE, which counts expired records
/// until they are deleted.
pub(super) fn mistaken(random: &mut Random) -> Vec<Vec<u8>> {
    const NAMES: [&str; 57] = [
        "append",
        "bitcount",
        "bitfield",
        "bitfield_ro",
        "bitop",
        "bitpos",
        "copy",
        "decr",
        "decrby",
        "del",
        "dump",
        "echo",
        "exists",
        "expire",
        "expireat",
        "expiretime",
        "get",
        "getbit",
        "getdel",
        "getex",
        "getrange",
        "getset",
        "incr",
        "incrby",
        "incrbyfloat",
        "lcs",
        "memory",
        "mget",
        "move",
        "mset",
        "msetnx",
        "object",
        "persist",
        "pexpire",
        "pexpireat",
        "pexpiretime",
        "ping",
        "psetex",
        "pttl",
        "rename",
        "renamenx",
        "restore",
        "set",
        "setbit",
        "setex",
        "setnx",
        "setrange",
        "strlen",
        "substr",
        "swapdb",
        "touch",
        "ttl",
        "type",
        "unlink",
        "randomkey",
        "flushall",
        "select",
    ];
    const WORDS: [&str; 24] = [
        "nx", "xx", "gt", "lt", "get", "set", "incrby", "u8", "i5", "ex", "px", "exat", "keepttl", "persist",
        "replace", "absttl", "db", "idx", "len", "usage", "encoding", "and", "not", "samples",
    ];
    let name = random.pick(&NAMES);
    let mut command = vec![any_case(random, name)];
    for _ in 0..random.below(6) {
        command.push(match random.below(8) {
            0..=2 => key(random),
            3 => word(random.pick(&INTEGERS[6..])),
            4 => word(random.pick(&["0", "-1"])),
            5 => word("value"),
            _ => word(random.pick(&WORDS)),
        });
    }
    // No key is empty here.
    if command.iter().any(Vec::is_empty) { vec![word("ping")] } else { command }
}

fn expire_time(random: &mut Random) -> Vec<Vec<u8>> {
    let name = random.pick(&["expiretime", "pexpiretime"]);
    vec![any_case(random, name), key(random)]
}

/// Answers to these hang on the moment or on the order of keys, and stand alone.
fn alone(random: &mut Random) -> Vec<Vec<u8>> {
    match random.below(6) {
        0 => expire_time(random),
        1 => vec![any_case(random, "keys"), pattern(random)],
        2 => vec![any_case(random, "randomkey")],
        3 => {
            let mut command = vec![any_case(random, "scan"), word("0"), word("count"), word("1000")];
            if random.one_in(2) {
                command.extend([any_case(random, "match"), pattern(random)]);
            }
            if random.one_in(4) {
                command.extend([any_case(random, "type"), word(random.pick(&["string", "STRING", "list"]))]);
            }
            command
        }
        4 => {
            let name = random.pick(&["encoding", "refcount", "idletime", "freq", "nosuch", "help"]);
            let mut command = vec![any_case(random, "object"), any_case(random, name)];
            if !random.one_in(10) {
                command.push(key(random));
            }
            command
        }
        _ => {
            let mut command = vec![any_case(random, "memory"), any_case(random, "usage"), key(random)];
            let options: [&[&str]; 5] =
                [&[], &["samples", "0"], &["samples", "-1"], &["samples", "x"], &["samples"]];
            command.extend(random.pick(&options).iter().map(|text| word(text)));
            command
        }
    }
}

pub(super) fn command(random: &mut Random, in_multi: bool) -> Vec<Vec<u8>> {
    let mut command: Vec<Vec<u8>> = Vec::new();
    match random.below(16) {
        0..=2 => {
            let name = random.pick(&["rename", "renamenx"]);
            command.extend([any_case(random, name), key(random), key(random)]);
        }
        3 | 4 => {
            command.extend([any_case(random, "copy"), key(random), key(random)]);
            let options: [&[&str]; 8] = [
                &[],
                &["replace"],
                &["db", "0", "replace"],
                &["REPLACE", "DB", "0"],
                &["db", "99"],
                &["db", "x"],
                &["db", "99999999999"],
                &["db"],
            ];
            command.extend(random.pick(&options).iter().map(|text| word(text)));
        }
        5 => {
            command.push(any_case(random, "touch"));
            (0..=random.below(3)).for_each(|_| command.push(key(random)));
        }
        6 | 7 => {
            command.push(any_case(random, "msetnx"));
            (0..=random.below(3)).for_each(|_| command.extend([key(random), value(random)]));
            if random.one_in(8) {
                command.push(key(random));
            }
        }
        8 | 9 => command.extend([any_case(random, "dump"), key(random)]),
        10 | 11 => command = restore(random),
        12 => {
            let words: &[&str] = random.pick(&[
                &["move", "a", "0"][..],
                &["move", "a", "99"],
                &["move", "a", "x"],
                &["swapdb", "0", "0"],
                &["swapdb", "x", "0"],
                &["swapdb", "0", "x"],
                &["swapdb", "0", "99"],
                &["swapdb", "-1", "0"],
            ]);
            command.extend(words.iter().map(|text| word(text)));
        }
        _ if in_multi => command.push(word("ping")),
        13 => command = mistaken(random),
        _ => command = alone(random),
    }
    command
}
