//! Where our replies differ from those of redis-server 7.0, and why: each with an example, which is tried on both.
//!
//! The same table stands in src/REDIS.md, so that users have it and nobody forgets to change it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::commands::command;
use super::compare::{integer, strings};
use super::random::Random;
use crate::resp_support::{Client, RedisServer, TestServer};
use std::io::{Read, Write};

/// One difference.
struct Explained {
    /// Commands that come before, for both.
    before: &'static [&'static str],
    /// The command, its words between blanks; `""` = an empty one, `K` and `V` = a key of 65 bytes, a value of 5,000.
    command: &'static str,
    /// How the reply here begins; without the type of a bulk string.
    here: &'static str,
    /// How that of Redis begins.
    redis: &'static str,
    reason: &'static str,
    /// Whether it is the one between these replies; for those that leave both sides with the same records.
    covers: fn(&[String], &[u8], &[u8]) -> bool,
}

const fn row(
    before: &'static [&'static str],
    command: &'static str,
    here: &'static str,
    redis: &'static str,
    reason: &'static str,
) -> Explained {
    Explained { before, command, here, redis, reason, covers: |_, _, _| false }
}

/// Both are there.
fn is_of(command: &[String], words: [&str; 2], ours: &[u8], theirs: &[u8]) -> bool {
    let is_value = |reply: &[u8]| reply.starts_with(b":") || (reply.starts_with(b"$") && reply != b"$-1\r\n");
    command.iter().take(2).eq(&words) && is_value(ours) && is_value(theirs)
}

const TABLE: &[Explained] = &[
    row(
        &[],
        "SET \"\" v",
        "-ERR key is 0 bytes, this store holds keys of at least 1",
        "+OK",
        "a key has one byte at least",
    ),
    row(
        &[],
        "SET K v",
        "-ERR key is 65 bytes, this store holds keys of at most 64",
        "+OK",
        "a key fits its slot (`K` is longer)",
    ),
    row(
        &["SET k v"],
        "SETRANGE k 65535 x",
        "-ERR value is 65536 bytes, this store holds values of at most 65535",
        ":65536",
        "a value fits its slot",
    ),
    row(&["SET k v"], "SET k w IFEQ v", "+OK", "-ERR syntax error", "of Valkey 8.1"),
    row(&["SET k v"], "DELIFEQ k v", ":1", "-ERR unknown command", "of Valkey 9"),
    Explained {
        covers: |command, ours, theirs| is_of(command, ["object", "encoding"], ours, theirs),
        ..row(
            &["SET k v", "APPEND k w"],
            "OBJECT ENCODING k",
            "embstr",
            "raw",
            "told from the value, not from its history",
        )
    },
    Explained {
        covers: |command, ours, theirs| is_of(command, ["object", "refcount"], ours, theirs),
        ..row(
            &["SET k 1", "INCRBYFLOAT k 1"],
            "OBJECT REFCOUNT k",
            ":2147483647",
            ":1",
            "as with the encoding",
        )
    },
    Explained {
        covers: |command, ours, theirs| {
            is_of(command, ["object", "idletime"], ours, theirs) && integer(ours) == Some(0)
        },
        ..row(
            &["SET k v", "RESTORE-IDLE"],
            "OBJECT IDLETIME k",
            ":0",
            ":1000",
            "nobody notes when a record was read; 0 is what no cleaner deletes",
        )
    },
    Explained {
        covers: |command, ours, theirs| is_of(command, ["memory", "usage"], ours, theirs),
        ..row(&["SET k v"], "MEMORY USAGE k", ":656", ":", "the bytes of a slot and of the index")
    },
    Explained {
        covers: |command, ours, _| command[0] == "lcs" && ours.starts_with(b"-ERR Insufficient memory"),
        ..row(
            &["SET a V", "SET b V"],
            "LCS a b LEN",
            "-ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len",
            ":5000",
            "the product of both lengths is at most 16 million (`V` has 5,000 bytes), so that others are served",
        )
    },
    row(&["SET k V"], "DUMP k", "\\x00S\\x88V", "\\x00\\xc3", "never packed; packed ones are restored"),
    row(
        &[],
        "RESTORE k 0 NEWER",
        "+OK",
        "-ERR DUMP payload version or checksum are wrong",
        "strings are the same in all versions up to 80, of Redis and of Valkey (`NEWER` is of version 11)",
    ),
    row(
        &[],
        "RESTORE k 0 LIST",
        "-ERR Bad data format: type 18, this store holds strings (type 0)",
        "+OK",
        "there are only strings (`LIST` is one)",
    ),
    row(&[], "LPUSH k v", "-ERR unknown command", ":1", "there are only strings"),
    row(&[], "SELECT 1", "-ERR DB index is out of range", "+OK", "there is one database"),
    row(
        &[],
        "DEBUG SLEEP 0",
        "+OK",
        "-ERR DEBUG command not allowed",
        "holds up nobody but the connection that asks",
    ),
];

/// Commands that are not compared, and why; all others are.
const NOT_COMPARED: [(&[&str], &str); 7] = [
    (&["watch", "unwatch"], "it takes two clients to tell"),
    (&["bgsave", "save", "lastsave", "shutdown", "failover", "replicaof", "slaveof"], "they act on the node"),
    (
        &["info", "role", "client", "command", "config", "debug", "hello", "time"],
        "they tell of the node: some forms are",
    ),
    (&["wait", "waitaof"], "they tell of followers and of the log: some forms are"),
    (&["xread", "xinfo"], "the feed of changes"),
    (&["slotstream.export", "slotstream.lastseq", "slotstream.waitseq"], "no command of Redis"),
    (&["quit", "reset"], "they end what is compared"),
];

/// The reason for a difference, if it is one that leaves both sides with the same records.
pub(super) fn find(command: &[Vec<u8>], ours: &[u8], theirs: &[u8]) -> Option<&'static str> {
    let words: Vec<_> =
        command.iter().map(|word| String::from_utf8_lossy(word).to_ascii_lowercase()).collect();
    TABLE.iter().find(|row| (row.covers)(&words, ours, theirs)).map(|row| row.reason)
}

/// What stands for what cannot be shown.
fn word(text: &str) -> Vec<u8> {
    match text {
        "\"\"" => Vec::new(),
        "K" => vec![b'k'; 65],
        "V" => vec![b'V'; 5000],
        "NEWER" => b"\x00\x05hello\x0b\x00\n\xadb\x05\x98\xab\xc9\x83".to_vec(),
        "LIST" => {
            b"\x12\x01\x02\n\n\x00\x00\x00\x01\x00\x81a\x02\xff\n\x00\t\xb9\xed\xf5\x94\xde\xd9\x95".to_vec()
        }
        text => text.as_bytes().to_vec(),
    }
}

fn ask<S: Read + Write>(client: &mut Client<S>, command: &str) -> String {
    let words: Vec<_> = command.split(' ').map(word).collect();
    let words = match command {
        // A record that was not used for a while.
        "RESTORE-IDLE" => ["restore", "k", "0", "HELLO", "replace", "idletime", "1000"]
            .map(
                |text| if text == "HELLO" { b"\x00\x05hello\n\x00cr\xdfve4 \n".to_vec() } else { word(text) },
            )
            .to_vec(),
        _ => words,
    };
    let reply = client.call(&words);
    let text = reply.escape_ascii().to_string();
    // A bulk string without its length.
    let bulk = text.strip_prefix('$').and_then(|rest| rest.split_once("\\r\\n")).map(|(_, rest)| rest);
    bulk.unwrap_or(&text).to_owned()
}

#[test]
fn each_difference_is_there_as_explained() {
    let Some(redis) = RedisServer::start() else { return };
    let server = TestServer::start();
    for row in TABLE {
        let (mut ours, mut theirs) = (server.connect(), redis.connect());
        for command in ["FLUSHALL"].iter().chain(row.before) {
            let (ours, theirs) = (ask(&mut ours, command), ask(&mut theirs, command));
            assert_eq!(ours, theirs, "{command}");
        }
        let reply = ask(&mut ours, row.command);
        assert!(reply.starts_with(row.here), "{}: {reply}", row.command);
        let reply = ask(&mut theirs, row.command);
        assert!(reply.starts_with(row.redis), "{} to Redis: {reply}", row.command);
        assert!(!row.redis.starts_with(row.here), "{}: no difference", row.command);
    }
}

#[test]
fn every_command_is_compared_or_said_not_to_be() {
    let server = TestServer::start();
    let reply = server.connect().call(&["command", "list"]);
    let names: BTreeSet<_> = strings(&reply).into_iter().map(<[u8]>::to_vec).collect();
    assert!(names.len() > 80, "{}", names.len());
    let random = &mut Random::from_environment(4);
    let transactions = ["multi", "exec", "discard"].map(|name| name.as_bytes().to_vec());
    let of_table = TABLE.iter().filter_map(|row| row.command.split(' ').next());
    let mut known: BTreeSet<_> =
        (0..20_000).map(|_| command(random, false)[0].to_ascii_lowercase()).collect();
    known.extend(transactions);
    known.extend(of_table.map(|name| name.to_ascii_lowercase().into_bytes()));
    known.extend(NOT_COMPARED.iter().flat_map(|(names, _)| *names).map(|name| name.as_bytes().to_vec()));
    let missing: Vec<_> = names.difference(&known).map(|name| name.escape_ascii().to_string()).collect();
    assert!(missing.is_empty(), "neither compared with Redis nor in NOT_COMPARED: {missing:?}");
}

#[test]
fn the_page_for_users_has_the_same_table() {
    let mut wanted = "| command | here | Redis 7.0 | why |\n|---|---|---|---|\n".to_owned();
    for Explained { before, command, here, redis, reason, .. } in TABLE {
        let before: Vec<_> =
            before.iter().map(|command| command.replace("RESTORE-IDLE", "after 1,000 s")).collect();
        let before = if before.is_empty() { String::new() } else { format!("{}; ", before.join("; ")) };
        let redis = if *redis == ":" { ":…" } else { *redis };
        writeln!(wanted, "| `{before}{command}` | `{here}` | `{redis}` | {reason} |").expect("a string");
    }
    let page = include_str!("../../../src/REDIS.md");
    assert!(page.contains(&wanted), "src/REDIS.md has not this table:\n{wanted}");
}
