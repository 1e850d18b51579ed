//! `--durability always` with real processes: a reply means that the write is durable, whoever reads sees nothing
//! else, and writes that come together share a sync.

use crate::harness::{Client, Node, Reply, encode, wait_in_sync};

const ARGUMENTS: &[&str] =
    &["--shard-count", "4", "--key-size", "16", "--value-size", "64", "--durability", "always"];

fn syncs(node: &Node) -> f64 {
    node.metric("slotstream_wal_syncs_total")
}

/// Sends all at once and returns all replies.
fn pipeline(client: &mut Client, commands: &[&[&str]]) -> Vec<Reply> {
    let mut bytes = Vec::new();
    for command in commands {
        encode(&mut bytes, &command.iter().map(|word| word.as_bytes()).collect::<Vec<_>>());
    }
    client.send(&bytes).expect("commands are sent");
    commands.iter().map(|_| client.reply().expect("a reply")).collect()
}

fn ok() -> Reply {
    Reply::Simple("OK".to_owned())
}

fn bulk(text: &str) -> Reply {
    Reply::Bulk(text.as_bytes().to_vec())
}

#[test]
fn a_pipeline_sees_what_it_has_written_and_a_reply_means_durable() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("leader"), ARGUMENTS);
    let mut client = leader.client();
    let found = pipeline(
        &mut client,
        &[
            &["SET", "a", "1"],
            &["GET", "a"],
            &["INCR", "a"],
            &["INCR", "a"],
            &["APPEND", "a", "!"],
            &["MGET", "a", "b"],
            &["SET", "b", "2", "NX"],
            &["SET", "b", "3", "NX"],
            &["GETEX", "b"],
            &["GETDEL", "b"],
            &["EXISTS", "a", "b"],
            &["DBSIZE"],
            &["WAITAOF", "1", "0", "0"],
            &["FLUSHALL"],
            &["DBSIZE"],
        ],
    );
    let wanted = [
        ok(),
        bulk("1"),
        Reply::Integer(2),
        Reply::Integer(3),
        Reply::Integer(2),
        Reply::Array(vec![bulk("3!"), Reply::Nil]),
        ok(),
        Reply::Nil,
        bulk("2"),
        bulk("2"),
        Reply::Integer(1),
        Reply::Integer(1),
        Reply::Array(vec![Reply::Integer(1), Reply::Integer(0)]),
        ok(),
        Reply::Integer(0),
    ];
    assert_eq!(found, wanted);
    // In a transaction, and inline.
    let found = pipeline(
        &mut client,
        &[&["MULTI"], &["SET", "c", "1"], &["GET", "c"], &["INCR", "c"], &["DBSIZE"], &["EXEC"]],
    );
    assert_eq!(
        found.last(),
        Some(&Reply::Array(vec![ok(), bulk("1"), Reply::Integer(2), Reply::Integer(1)]))
    );
    client.send(b"SET d 1\r\nGET d\r\nSET d 2\r\nGET d\r\n").expect("inline commands");
    for wanted in [ok(), bulk("1"), ok(), bulk("2")] {
        assert_eq!(client.reply().expect("a reply"), wanted);
    }
    // Whoever has a reply has told the others.
    for number in 0..200 {
        let value = number.to_string();
        assert_eq!(client.call(&["SET", "seen", &value]), ok());
        assert_eq!(leader.client().call(&["GET", "seen"]), bulk(&value));
    }
    let status = leader.status();
    assert_eq!(status["log"]["state"], "going");
}

#[test]
fn writes_that_come_together_share_a_sync() {
    const CLIENTS: usize = 20;
    const ROUNDS: usize = 10;
    const DEPTH: usize = 16;
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("leader"), ARGUMENTS);
    let before = syncs(&leader);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| leader.client()).collect();
    for round in 0..ROUNDS {
        let mut bytes = Vec::new();
        for number in 0..DEPTH {
            encode(&mut bytes, &[b"SET", format!("key:{number}").as_bytes(), round.to_string().as_bytes()]);
        }
        clients.iter_mut().for_each(|client| client.send(&bytes).expect("writes are sent"));
        for client in &mut clients {
            (0..DEPTH).for_each(|_| assert_eq!(client.reply().expect("a reply"), ok()));
        }
    }
    // A pipeline may come in two parts, a tick may sync, too: but no write has a sync of its own.
    let (found, writes) = (syncs(&leader) - before, (CLIENTS * ROUNDS * DEPTH) as f64);
    assert!(found >= 1.0 && found <= writes / 4.0, "{found} syncs for {writes} writes");
}

#[test]
fn nothing_that_was_answered_is_lost_to_a_kill_and_followers_have_no_more_than_that() {
    let directory = tempfile::tempdir().expect("temp dir");
    let mut leader = Node::leader(&directory.path().join("leader"), ARGUMENTS);
    let follower = Node::follower(&directory.path().join("follower"), &leader, &["--durability", "always"]);
    wait_in_sync(&leader, &follower);
    let mut next = 0_u64;
    for _ in 0..4 {
        let mut client = leader.client();
        for number in next..next + 300 {
            let key = format!("key:{}", number % 100);
            assert_eq!(client.call(&["SET", &key, &number.to_string()]), ok());
        }
        assert_eq!(
            client.call(&["WAITAOF", "1", "1", "0"]),
            Reply::Array(vec![Reply::Integer(1), Reply::Integer(1)])
        );
        next += 300;
        // More, of which nobody waits for the replies.
        let mut bytes = Vec::new();
        for number in 0..500_u64 {
            let key = format!("more:{}", number % 50);
            encode(&mut bytes, &[b"SET", key.as_bytes(), number.to_string().as_bytes()]);
        }
        client.send(&bytes).expect("writes are sent");
        leader.kill();
        leader.restart();
        let mut client = leader.client();
        for number in next - 100..next {
            assert_eq!(client.call(&["GET", &format!("key:{}", number % 100)]), bulk(&number.to_string()));
        }
        wait_in_sync(&leader, &follower);
        let mut reader = follower.client();
        for key in 0..50 {
            let key = format!("more:{key}");
            assert_eq!(client.call(&["GET", &key]), reader.call(&["GET", &key]), "{key}");
        }
    }
    // Terminated under way: what waits is answered or not, and all that was is there.
    let mut client = leader.client();
    let bytes = {
        let mut bytes = Vec::new();
        for number in 0..2_000_u64 {
            encode(&mut bytes, &[b"SET", format!("late:{number}").as_bytes(), b"x"]);
        }
        bytes
    };
    client.send(&bytes).expect("writes are sent");
    let answered = {
        assert_eq!(client.reply().expect("a first reply"), ok());
        assert!(leader.terminate().0.success());
        1 + std::iter::from_fn(|| client.reply().ok()).filter(|reply| *reply == ok()).count()
    };
    leader.restart();
    let mut client = leader.client();
    for number in 0..answered {
        assert_eq!(
            client.call(&["GET", &format!("late:{number}")]),
            bulk("x"),
            "late:{number} of {answered}"
        );
    }
    assert!(leader.terminate().0.success());
}
