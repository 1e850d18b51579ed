//! MULTI, EXEC, DISCARD, WATCH, UNWATCH: the same commands on two connections here and in a redis-server, and the same
//! replies, byte for byte, in both protocols.

use std::io::{Read, Write};
use std::time::Duration;

use crate::resp_support::{Client, RedisServer, TestServer};

/// Commands of connections `a` and `b`, a line each; what a script is about before the first.
const SCRIPTS: &[(&str, &str)] = &[
    ("a plain transaction", "a MULTI\na SET k 1\nb GET k\na INCR k\na EXEC\nb GET k"),
    ("nothing queued", "a MULTI\na EXEC\na EXEC"),
    ("not begun", "a EXEC\na DISCARD\na MULTI\na DISCARD\na DISCARD"),
    ("nested", "a MULTI\na SET k 1\na MULTI\na EXEC"),
    ("an unknown command", "a MULTI\na SET k 1\na NOSUCH x\na SET k 2\na EXEC\na GET k\na EXEC"),
    ("arity", "a MULTI\na SET k\na EXEC\na GET k\na MULTI\na EXEC more\na EXEC"),
    ("a syntax error is one of its command", "a MULTI\na SET k 1 NX XX\na SET k 2\na EXEC\na GET k"),
    ("an error inside", "a MULTI\na SET k x\na INCR k\na SET j 1\na EXEC\na MGET k j"),
    ("discarded", "a MULTI\na SET k 1\na DISCARD\na GET k\na EXEC"),
    ("an inner reply of several", "a MULTI\na MSET x 1 y 2\na MGET x y z\na DEL x y z\na EXISTS x\na EXEC"),
    ("watch inside", "a MULTI\na WATCH k\na SET k 1\na EXEC\na GET k"),
    ("unwatch inside", "a WATCH k\nb SET k 1\na MULTI\na UNWATCH\na SET k 2\na EXEC\na GET k"),
    ("untouched", "a SET k 1\na WATCH k\nb GET k\nb SET other 1\na MULTI\na SET k 2\na EXEC\na GET k"),
    ("touched", "a SET k 1\na WATCH k\nb SET k 1\na MULTI\na SET k 2\na EXEC\na GET k"),
    ("touched inside MULTI", "a WATCH k\na MULTI\na SET k 2\nb SET k 1\na EXEC\na GET k"),
    ("touched by oneself", "a WATCH k\na SET k 1\na MULTI\na SET k 2\na EXEC\na GET k"),
    ("one of several", "a WATCH x y z\nb SET y 1\na MULTI\na SET x 2\na EXEC\na GET x"),
    ("twice", "a WATCH k\nb SET k 1\na WATCH k\na MULTI\na SET k 2\na EXEC\na GET k"),
    ("deleted", "a SET k 1\na WATCH k\nb DEL k\na MULTI\na SET k 2\na EXEC\na GET k"),
    ("a deletion of nothing", "a WATCH k\nb DEL k\na MULTI\na SET k 2\na EXEC\na GET k"),
    ("put and deleted", "a WATCH k\nb SET k 1\nb DEL k\na MULTI\na SET k 2\na EXEC\na GET k"),
    ("deleted and put", "a SET k 1\na WATCH k\nb DEL k\nb SET k 1\na MULTI\na SET k 2\na EXEC\na GET k"),
    ("another expiry", "a SET k 1\na WATCH k\nb EXPIRE k 1000\na MULTI\na SET k 2\na EXEC\na TTL k"),
    ("no expiry to remove", "a SET k 1\na WATCH k\nb PERSIST k\na MULTI\na SET k 2\na EXEC\na GET k"),
    ("emptied", "a SET k 1\na WATCH k\nb FLUSHALL\na MULTI\na SET k 2\na EXEC\na GET k"),
    ("emptied without it", "b SET other 1\na WATCH k\nb FLUSHALL\na MULTI\na SET k 2\na EXEC\na GET k"),
    ("unwatched", "a WATCH k\nb SET k 1\na UNWATCH\na MULTI\na SET k 2\na EXEC\na GET k"),
    ("discard unwatches", "a WATCH k\nb SET k 1\na MULTI\na DISCARD\na MULTI\na SET k 2\na EXEC\na GET k"),
    ("exec unwatches", "a WATCH k\nb SET k 1\na MULTI\na EXEC\na MULTI\na SET k 2\na EXEC\na GET k"),
    ("a broken one unwatches", "a WATCH k\na MULTI\na NOSUCH\nb SET k 1\na EXEC\na MULTI\na SET k 2\na EXEC"),
    ("broken and touched", "a WATCH k\na MULTI\na NOSUCH\nb SET k 1\na EXEC"),
    (
        "reset ends it",
        "a WATCH k\nb SET k 1\na MULTI\na SET k 2\na RESET\na EXEC\na MULTI\na SET k 3\na EXEC",
    ),
    ("expired before", "a SET k 1 PX 1\n~\na WATCH k\n~\na MULTI\na SET k 2\na EXEC\na GET k"),
    (
        "expired before, and put",
        "a SET k 1 PX 1\n~\na WATCH k\nb SET k 3\na MULTI\na SET k 2\na EXEC\na GET k",
    ),
    ("arity of the family", "a MULTI 1\na DISCARD 1\na WATCH\na UNWATCH 1\na EXEC 1"),
    ("others in between", "a MULTI\na PING\na ECHO x\na SELECT 0\na TYPE k\na STRLEN k\na EXEC"),
    ("conditions", "a MSETNX x 1 y 2\na MSETNX y 3 z 4\na MGET x y z\na MSETNX z 1 z 2\na GET z"),
    ("renamed under watch", "a SET k 1\na WATCH k\nb RENAME k j\na MULTI\na SET k 2\na EXEC\na MGET j k"),
];

fn transcript<S: Read + Write>(mut clients: [Client<S>; 2], protocol: &str, script: &str) -> String {
    let mut text = String::new();
    for client in &mut clients {
        client.ask(&format!("HELLO {protocol}"));
    }
    clients[0].ask("FLUSHALL");
    for line in script.lines() {
        let Some((who, command)) = line.split_once(' ') else {
            // For what expires in a millisecond to have done so.
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let reply = clients[usize::from(who == "b")].ask(command);
        text += &format!("{line} -> {reply:?}\n");
    }
    text
}

#[test]
fn transactions_answer_as_in_redis() {
    let Some(redis) = RedisServer::start() else { return };
    let server = TestServer::start();
    for (about, script) in SCRIPTS {
        for protocol in ["2", "3"] {
            let wanted = transcript([redis.connect(), redis.connect()], protocol, script);
            let found = transcript([server.connect(), server.connect()], protocol, script);
            assert_eq!(found, wanted, "{about}, RESP{protocol}");
        }
    }
}

#[test]
fn an_exec_whose_replies_are_too_large_is_done_and_its_client_let_go() {
    let server = TestServer::start();
    let mut client = server.connect();
    let value = "v".repeat(60_000);
    client.call(&["SET", "large", &value]);
    client.ask("MULTI");
    for _ in 0..1_300 {
        client.ask("GET large");
    }
    client.ask("SET done yes");
    client.send(b"*1\r\n$4\r\nEXEC\r\n");
    assert!(client.is_closed());
    assert_eq!(server.connect().ask("GET done"), "$3\r\nyes\r\n");
}
