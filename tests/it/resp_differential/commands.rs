//! One command at random, of those that deal with whole values, times and the connection.

use super::random::{INTEGERS, Random, any_case, expiry_options, key, moment, time, value, word};
use super::{keyspace, parts};

/// One command; `in_multi` leaves out what depends on the moment.
pub(super) fn command(random: &mut Random, in_multi: bool) -> Vec<Vec<u8>> {
    let mut command: Vec<Vec<u8>> = Vec::new();
    match random.below(80) {
        40..=64 => command = parts::command(random, in_multi),
        65..=79 => command = keyspace::command(random, in_multi),
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
                &["flushall", "async"],
            ]);
            command.extend(words.iter().map(|text| word(text)));
        }
    }
    command
}
