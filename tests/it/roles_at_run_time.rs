//! Nodes that become leaders and followers while they run, as Redis clients ask, and what they remember of
//! it when they are started again.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{
    ANY_PORTS, Node, PATIENCE, Reply, assert_equal, command, run, run_command, stderr, stdout, wait_in_sync,
    wait_until,
};

pub(crate) const SIZES: &[&str] = &["--shard-count", "2", "--key-size", "16", "--value-size", "32"];

pub(crate) fn set(node: &Node, keys: std::ops::Range<u32>, value: &str) {
    let mut client = node.client();
    for key in keys {
        assert_eq!(client.call(&["SET", &format!("key-{key}"), value]).text(), "OK");
    }
}

/// One field of INFO replication.
pub(crate) fn info(node: &Node, field: &str) -> String {
    let text = node.client().call(&["INFO", "replication"]).text();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {text}")).to_owned()
}

/// Orders `node` to follow `leader`; the reply.
pub(crate) fn replicaof(node: &Node, leader: &Node) -> String {
    let port = leader.ports.listen.port().to_string();
    node.client().call(&["REPLICAOF", "127.0.0.1", &port]).text()
}

/// What ROLE, INFO, /status, /leader, /follower and the metric say must agree.
#[track_caller]
pub(crate) fn assert_leads(node: &Node, leads: bool) {
    let Reply::Array(role) = node.client().call(&["ROLE"]) else { panic!("ROLE is an array") };
    assert_eq!(role[0].text(), if leads { "master" } else { "slave" });
    assert_eq!(info(node, "role"), role[0].text());
    assert_eq!(node.status()["role"], if leads { "leader" } else { "follower" });
    assert_eq!(node.metric("slotstream_is_leader"), f64::from(u8::from(leads)));
    assert_eq!(node.get("/leader").0, if leads { 200 } else { 503 });
    let written = node.client().call(&["SET", "who-leads", "x"]).text();
    if leads {
        assert_eq!(written, "OK");
    } else {
        assert_eq!(written, "READONLY You can't write against a read only replica.");
    }
}

#[test]
fn roles_go_round_and_every_node_ends_up_equal() {
    let directory = tempfile::tempdir().expect("temp dir");
    let [a, b, c] = ["a", "b", "c"].map(|name| directory.path().join(name));
    let mut first = Node::leader(&a, SIZES);
    let mut second = Node::follower(&b, &first, &[]);
    let mut third = Node::follower(&c, &first, &[]);
    set(&first, 0..50, "one");
    wait_in_sync(&first, &second);
    wait_in_sync(&first, &third);

    // A leader's links are named as the nodes they lead to.
    let table = run(&["status", &first.ports.http_listen.to_string()]);
    assert!(stdout(&table).contains(&format!("to {}", second.ports.listen)), "{}", stdout(&table));

    // A -> B: the follower is promoted, the old leader follows it, the other follower is sent there.
    assert_eq!(second.client().call(&["REPLICAOF", "NO", "ONE"]).text(), "OK");
    assert_leads(&second, true);
    assert_eq!(replicaof(&first, &second), "OK");
    assert_eq!(replicaof(&first, &second), "OK Already connected to specified master");
    assert_leads(&first, false);
    assert_eq!(info(&first, "master_port"), second.ports.listen.port().to_string());
    set(&second, 50..100, "two");
    wait_in_sync(&second, &first);
    wait_until("the other follower follows the new leader", PATIENCE, || {
        info(&third, "master_port") == second.ports.listen.port().to_string()
    });
    wait_in_sync(&second, &third);

    // B -> A.
    assert_eq!(first.client().call(&["SLAVEOF", "no", "one"]).text(), "OK");
    assert_eq!(first.client().call(&["REPLICAOF", "NO", "ONE"]).text(), "OK", "it leads already");
    assert_eq!(replicaof(&second, &first), "OK");
    set(&first, 100..150, "three");
    wait_in_sync(&first, &second);
    wait_until("the other follower is back", PATIENCE, || {
        info(&third, "master_port") == first.ports.listen.port().to_string()
    });
    wait_in_sync(&first, &third);
    assert_leads(&first, true);
    assert_leads(&second, false);
    assert_eq!(first.metric("slotstream_epoch"), 3.0);
    assert_eq!(first.metric("slotstream_role_changes_total"), 2.0);
    for node in [&first, &second, &third] {
        assert_eq!(
            node.metric("slotstream_full_scans_total"),
            if node.pid() == first.pid() { 4.0 } else { 0.0 }
        );
    }
    wait_in_sync(&first, &second);
    wait_in_sync(&first, &third);
    for node in [&mut third, &mut second, &mut first] {
        assert!(node.terminate().0.success());
    }
    assert_equal(&a, &b);
    assert_equal(&a, &c);
}

/// A leader that is told to follow drops what its new leader never had, and keeps a report of it.
#[test]
fn a_leader_told_to_follow_keeps_no_write_of_its_own() {
    let directory = tempfile::tempdir().expect("temp dir");
    let [a, b] = ["a", "b"].map(|name| directory.path().join(name));
    let mut old = Node::leader(&a, SIZES);
    let mut next = Node::follower(&b, &old, &[]);
    set(&old, 0..50, "both");
    wait_in_sync(&old, &next);
    assert!(next.terminate().0.success());
    set(&old, 40..60, "only the old leader has this");
    let mut next = Node::leader(&b, &["--promote"]);
    set(&next, 70..80, "the new leader");
    assert_eq!(replicaof(&old, &next), "OK");
    wait_in_sync(&next, &old);
    assert_leads(&old, false);
    for (key, wanted) in [("key-45", "both"), ("key-75", "the new leader")] {
        assert_eq!(old.client().call(&["GET", key]).text(), wanted);
    }
    assert_eq!(old.client().call(&["EXISTS", "key-55"]), Reply::Integer(0));
    assert_eq!(old.metric("slotstream_writes_dropped_total"), 20.0);
    assert!(next.terminate().0.success() && old.terminate().0.success());
    assert_equal(&a, &b);
}

#[test]
fn a_role_given_at_run_time_outlives_a_restart_until_the_arguments_change() {
    let directory = tempfile::tempdir().expect("temp dir");
    let [a, b] = ["a", "b"].map(|name| directory.path().join(name));
    let mut first = Node::leader(&a, SIZES);
    let mut second = Node::follower(&b, &first, &[]);
    set(&first, 0..20, "x");
    wait_in_sync(&first, &second);
    assert_eq!(second.client().call(&["REPLICAOF", "NO", "ONE"]).text(), "OK");
    assert_eq!(replicaof(&first, &second), "OK");
    wait_in_sync(&second, &first);
    // Both as machines that come back with the arguments they always had; one by a kill.
    first.kill();
    assert!(second.terminate().0.success());
    first.restart();
    second.restart();
    assert_leads(&second, true);
    wait_in_sync(&second, &first);
    assert_leads(&first, false);
    // Somebody changes the arguments: they count again.
    assert!(first.terminate().0.success());
    assert!(second.terminate().0.success());
    let refused = run_command(
        command(&["leader", "--data-dir"]).arg(&a).args(ANY_PORTS).args(["--promote", "--shard-count", "3"]),
        PATIENCE,
    );
    assert!(stderr(&refused).contains("--shard-count"), "{}", stderr(&refused));
    let first = Node::leader(&a, &["--promote"]);
    assert_leads(&first, true);
    assert_eq!(first.client().call(&["GET", "key-7"]).text(), "x");
}

#[test]
fn a_node_that_cannot_be_followed_changes_nothing() {
    let directory = tempfile::tempdir().expect("temp dir");
    let [a, b, c] = ["a", "b", "c"].map(|name| directory.path().join(name));
    let leader = Node::leader(&a, SIZES);
    let follower = Node::follower(&b, &leader, &[]);
    let stranger = Node::leader(&c, SIZES);
    set(&leader, 0..10, "x");
    wait_in_sync(&leader, &follower);
    let order = |port: u16| leader.client().call(&["REPLICAOF", "127.0.0.1", &port.to_string()]).text();

    let other_protocol = TcpListener::bind("127.0.0.1:0").expect("binds");
    let other_port = other_protocol.local_addr().expect("address").port();
    let http = std::thread::spawn(move || {
        let (mut stream, _) = other_protocol.accept().expect("accepts");
        stream.read_exact(&mut [0; 10]).expect("reads");
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").expect("writes");
    });
    let closed = TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("address").port();
    for (port, wanted) in [
        (other_port, "does not speak RESP"),
        (closed, "refused"),
        (leader.ports.listen.port(), "is this node itself"),
        (follower.ports.listen.port(), "let it lead first"),
        (
            leader.replication().port(),
            "takes followers; wanted the address where it serves Redis clients, port",
        ),
        (follower.replication().port(), "takes followers; wanted the address where it serves Redis clients"),
        (leader.ports.http_listen.port(), "does not speak RESP"),
        (stranger.ports.listen.port(), "this directory holds store"),
    ] {
        let reply = order(port);
        assert!(reply.starts_with("ERR ") && reply.contains(wanted), "{wanted}: {reply}");
        assert_leads(&leader, true);
    }
    http.join().expect("no panic");
    for (words, wanted) in [
        (&["REPLICAOF", "127.0.0.1", "70000"][..], "ERR Invalid master port"),
        (&["REPLICAOF", "127.0.0.1", "x"], "ERR value is not an integer or out of range"),
        (&["REPLICAOF", "no"], "ERR wrong number of arguments for 'replicaof' command"),
        (&["FAILOVER", "ABORT"], "ERR No failover in progress."),
        (&["FAILOVER", "TO", "127.0.0.1"], "ERR syntax error"),
        (&["FAILOVER", "TIMEOUT", "0"], "ERR FAILOVER timeout must be greater than 0"),
    ] {
        assert_eq!(leader.client().call(words).text(), wanted);
    }
    let reply = follower.client().call(&["FAILOVER"]).text();
    assert_eq!(reply, "ERR FAILOVER is not valid when server is a replica.");
    assert_eq!(stranger.client().call(&["FAILOVER"]).text(), "ERR FAILOVER requires connected replicas.");
    wait_in_sync(&leader, &follower);
}

#[test]
fn a_follower_that_lacks_a_shard_does_not_lead() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("a"), SIZES);
    let follower = Node::follower(&directory.path().join("b"), &leader, &["--shards", "1"]);
    set(&leader, 0..20, "x");
    wait_in_sync(&leader, &follower);
    let reply = follower.client().call(&["REPLICAOF", "NO", "ONE"]).text();
    assert_eq!(reply, "ERR this node cannot lead: shard 0 was never in sync with a leader");
    wait_in_sync(&leader, &follower);
    let port = follower.ports.listen.port().to_string();
    assert_eq!(leader.client().call(&["FAILOVER", "TO", "127.0.0.1", &port, "TIMEOUT", "300"]).text(), "OK");
    wait_until("the hand-over is given up", PATIENCE, || {
        info(&leader, "master_failover_state") == "no-failover"
    });
    let ended = info(&leader, "slotstream_last_failover");
    assert!(ended.contains("no link for shard 0"), "{ended}");
    assert_leads(&leader, true);
}

/// A way to `leader` that lets only so many bytes of each connection through to the follower, until it is opened.
fn narrow_way(leader: SocketAddr, bytes: usize) -> (SocketAddr, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("address");
    let is_open = Arc::new(AtomicBool::new(false));
    let opened = Arc::clone(&is_open);
    // Ends with the test's process.
    std::thread::spawn(move || {
        for mut follower in listener.incoming().flatten() {
            let mut leader = TcpStream::connect(leader).expect("the leader accepts");
            let (mut from, mut to) =
                (follower.try_clone().expect("a handle"), leader.try_clone().expect("a handle"));
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            let opened = Arc::clone(&opened);
            std::thread::spawn(move || {
                std::io::copy(&mut (&mut leader).take(bytes as u64), &mut follower)?;
                while !opened.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                std::io::copy(&mut leader, &mut follower)
            });
        }
    });
    (address, is_open)
}

/// Half of a scan is a state that no leader ever had.
#[test]
fn a_follower_inside_a_scan_does_not_lead() {
    let directory = tempfile::tempdir().expect("temp dir");
    let mut leader = Node::leader(&directory.path().join("a"), SIZES);
    // Of several batches per shard the first ones come.
    set(&leader, 0..12_000, "0123456789");
    let (way, is_open) = narrow_way(leader.replication(), 100_000);
    let follower = Node::follower_of(&directory.path().join("b"), way, &["--dead-after", "60s"]);
    wait_until("a scan is under way", PATIENCE, || {
        let status = follower.status();
        let shards = status["shards"].as_array().expect("shards");
        shards.iter().all(|shard| shard["phase"] == "scan" && shard["slots_used"].as_u64() > Some(0))
    });
    let reply = follower.client().call(&["REPLICAOF", "NO", "ONE"]).text();
    assert!(reply.starts_with("ERR this node cannot lead: shard 0 is inside a scan"), "{reply}");
    let output = run(&["promote", "--force", &follower.ports.listen.to_string()]);
    assert_eq!(output.status.code(), Some(1));
    let words = "inside a scan: it holds seq 0, and its state is its leader's not before its scan is through";
    assert!(stderr(&output).contains(words), "{}", stderr(&output));
    assert_eq!(info(&follower, "role"), "slave");
    is_open.store(true, Ordering::Relaxed);
    wait_in_sync(&leader, &follower);
    leader.kill();
    assert_eq!(follower.client().call(&["REPLICAOF", "NO", "ONE"]).text(), "OK");
    assert_leads(&follower, true);
}

/// What Redis Sentinel sends to the follower that it promotes, and to the others.
#[test]
fn a_sentinels_transaction_changes_the_role() {
    let directory = tempfile::tempdir().expect("temp dir");
    let [a, b] = ["a", "b"].map(|name| directory.path().join(name));
    let first = Node::leader(&a, SIZES);
    let second = Node::follower(&b, &first, &[]);
    set(&first, 0..10, "x");
    wait_in_sync(&first, &second);
    let transaction = |node: &Node, order: &[&str]| {
        let mut client = node.client();
        assert_eq!(client.call(&["MULTI"]).text(), "OK");
        let kill = |kind| ["CLIENT", "KILL", "TYPE", kind];
        for words in [order, &["CONFIG", "REWRITE"], &kill("normal"), &kill("pubsub")] {
            assert_eq!(client.call(words).text(), "QUEUED");
        }
        let Reply::Array(replies) = client.call(&["EXEC"]) else { panic!("EXEC is an array") };
        assert!(matches!(replies[2..], [Reply::Integer(_), Reply::Integer(0)]), "{replies:?}");
        replies[..2].iter().map(Reply::text).collect::<Vec<_>>()
    };
    let mut others = second.client();
    assert_eq!(others.call(&["GET", "key-1"]).text(), "x");
    assert_eq!(transaction(&second, &["SLAVEOF", "NO", "ONE"]), ["OK", "OK"]);
    assert!(others.try_call(&[b"PING"]).is_err(), "other clients are sent away");
    assert_leads(&second, true);
    let port = second.ports.listen.port().to_string();
    assert_eq!(transaction(&first, &["SLAVEOF", "127.0.0.1", &port]), ["OK", "OK"]);
    wait_in_sync(&second, &first);
    assert_leads(&first, false);
}
