//! What several keys are changed by as one is seen as one: MSET, DEL, EXEC and WATCH over real connections, on a leader
//! with several workers, at every durability level, with a follower attached.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{Client, Node, PATIENCE, Reply, encode, wait_in_sync, wait_until};

/// Keys that every command of these tests touches: over four shards they lie in several.
const KEYS: usize = 8;
const ACCOUNT_START: i64 = 100;

fn names(prefix: &str) -> Vec<String> {
    (0..KEYS).map(|number| format!("{prefix}{number}")).collect()
}

fn call(client: &mut Client, words: &[String]) -> Reply {
    client.call(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

fn with_name(name: &str, words: impl IntoIterator<Item = String>) -> Vec<String> {
    std::iter::once(name.to_owned()).chain(words).collect()
}

/// Sends commands at once; the last one's reply.
fn together(client: &mut Client, commands: &[Vec<String>]) -> Reply {
    let mut bytes = Vec::new();
    for command in commands {
        encode(&mut bytes, &command.iter().map(String::as_bytes).collect::<Vec<_>>());
    }
    client.send(&bytes).expect("commands are sent");
    commands.iter().map(|_| client.reply().expect("a reply")).last().expect("some commands")
}

fn transaction(commands: impl IntoIterator<Item = Vec<String>>) -> Vec<Vec<String>> {
    let ends = |name: &str| vec![name.to_owned()];
    std::iter::once(ends("MULTI")).chain(commands).chain([ends("EXEC")]).collect()
}

fn elements(reply: Reply) -> Vec<Reply> {
    let Reply::Array(elements) = reply else { panic!("wanted an array, found {reply:?}") };
    elements
}

fn number(reply: &Reply) -> i64 {
    match reply {
        Reply::Integer(number) => *number,
        Reply::Bulk(text) => std::str::from_utf8(text).expect("text").parse().expect("a number"),
        other => panic!("wanted a number, found {other:?}"),
    }
}

/// Sets all keys to one value, by MSET, by EXEC, or deletes them all.
fn write_all(client: &mut Client, keys: &[String], round: usize) {
    let value = round.to_string();
    match round % 4 {
        0 | 1 => {
            let pairs = keys.iter().flat_map(|key| [key.clone(), value.clone()]);
            assert_eq!(call(client, &with_name("MSET", pairs)), Reply::Simple("OK".to_owned()));
        }
        2 => {
            let sets = keys.iter().map(|key| with_name("SET", [key.clone(), value.clone()]));
            assert_eq!(elements(together(client, &transaction(sets))).len(), KEYS);
        }
        _ => {
            number(&call(client, &with_name("DEL", keys.to_vec())));
        }
    }
}

/// All keys have one value, or none is there.
fn read_all(client: &mut Client, keys: &[String], round: usize) {
    let found = match round % 3 {
        0 => elements(call(client, &with_name("MGET", keys.to_vec()))),
        1 => elements(together(client, &transaction(keys.iter().map(|key| with_name("GET", [key.clone()]))))),
        _ => {
            let exist = number(&call(client, &with_name("EXISTS", keys.to_vec())));
            assert!(exist == 0 || exist == KEYS as i64, "{exist} of {KEYS} keys are there");
            return;
        }
    };
    assert!(found.iter().all(|value| *value == found[0]), "a part of a change was seen: {found:?}");
}

/// Moves an amount from one account to another.
fn transfer(client: &mut Client, keys: &[String], round: usize) {
    let (from, to) = (keys[round % KEYS].clone(), keys[(round * 5 + 3) % KEYS].clone());
    let amount = (round % 7).to_string();
    let moves = [with_name("DECRBY", [from, amount.clone()]), with_name("INCRBY", [to, amount])];
    assert_eq!(elements(together(client, &transaction(moves))).len(), 2);
}

fn check_sum(client: &mut Client, keys: &[String]) {
    let found = elements(call(client, &with_name("MGET", keys.to_vec())));
    let sum: i64 = found.iter().map(number).sum();
    assert_eq!(sum, ACCOUNT_START * KEYS as i64, "{found:?}");
}

/// Adds one to a counter that is watched meanwhile; false if somebody else was there first.
fn count_watched(client: &mut Client) -> bool {
    let counter = || "counter".to_owned();
    assert_eq!(call(client, &with_name("WATCH", [counter()])), Reply::Simple("OK".to_owned()));
    let value = match call(client, &with_name("GET", [counter()])) {
        Reply::Nil => 0,
        found => number(&found),
    };
    // The second key makes it a change of two shards, most likely.
    let sets = [counter(), "shadow".to_owned()].map(|key| with_name("SET", [key, (value + 1).to_string()]));
    match together(client, &transaction(sets)) {
        Reply::Nil => false,
        found => elements(found).len() == 2,
    }
}

fn check(durability: &str, rounds: usize) {
    let directory = tempfile::tempdir().expect("temp dir");
    let sizes = ["--shard-count", "4", "--key-size", "16", "--value-size", "64", "--workers", "3"];
    let arguments = [&sizes[..], &["--durability", durability]].concat();
    let leader = Node::leader(&directory.path().join("leader"), &arguments);
    let follower = Node::follower(&directory.path().join("follower"), &leader, &[]);
    let (keys, accounts) = (names("k"), names("a"));
    let pairs = accounts.iter().flat_map(|key| [key.clone(), ACCOUNT_START.to_string()]);
    call(&mut leader.client(), &with_name("MSET", pairs));
    let is_over = AtomicBool::new(false);
    let read = |what: &dyn Fn(&mut Client, usize)| {
        let mut client = leader.client();
        let mut round = 0;
        while !is_over.load(Ordering::Relaxed) {
            what(&mut client, round);
            round += 1;
        }
        assert!(round > 0);
    };
    let write = |what: &dyn Fn(&mut Client, usize)| {
        let mut client = leader.client();
        (0..rounds).for_each(|round| what(&mut client, round));
    };
    let count = || {
        let mut client = leader.client();
        (0..rounds).filter(|_| count_watched(&mut client)).count()
    };
    let counted: usize = std::thread::scope(|scope| {
        let readers = [
            scope.spawn(|| read(&|client, round| read_all(client, &keys, round))),
            scope.spawn(|| read(&|client, round| read_all(client, &keys, round + 1))),
            scope.spawn(|| read(&|client, _| check_sum(client, &accounts))),
        ];
        let writers = [
            scope.spawn(|| write(&|client, round| write_all(client, &keys, round * 2))),
            scope.spawn(|| write(&|client, round| write_all(client, &keys, round * 2 + 1))),
            scope.spawn(|| write(&|client, round| transfer(client, &accounts, round))),
            scope.spawn(|| write(&|client, round| transfer(client, &accounts, round + 3))),
        ];
        let counters = [scope.spawn(count), scope.spawn(count)];
        let ended = writers.map(std::thread::ScopedJoinHandle::join);
        let counted = counters.map(std::thread::ScopedJoinHandle::join);
        is_over.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().expect("a reader saw whole changes only"));
        ended.into_iter().for_each(|ended| ended.expect("a writer was answered"));
        counted.into_iter().map(|count| count.expect("a counter was answered")).sum()
    });
    assert!(counted > 0, "two that watch one key cannot both fail for ever");
    // A client that was told of an EXEC counts once, one that was told of none does not.
    let mut client = leader.client();
    for key in ["counter", "shadow"] {
        assert_eq!(number(&client.call(&["GET", key])), i64::try_from(counted).expect("a few"));
    }
    wait_in_sync(&leader, &follower);
    let mut reader = follower.client();
    wait_until("the follower has what the leader has", PATIENCE, || {
        let all: Vec<_> = keys.iter().chain(&accounts).cloned().collect();
        let ask = |client: &mut Client| call(client, &with_name("MGET", all.clone()));
        ask(&mut reader) == ask(&mut client)
    });
    check_sum(&mut reader, &accounts);
}

#[test]
fn heavy_changes_of_several_keys_are_seen_as_one_without_a_log() {
    check("none", 300);
}

#[test]
fn heavy_changes_of_several_keys_are_seen_as_one_with_a_log() {
    check("interval", 300);
}

#[test]
fn heavy_changes_of_several_keys_are_seen_as_one_with_a_log_that_comes_first() {
    check("always", 60);
}
