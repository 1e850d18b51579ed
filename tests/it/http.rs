//! Metrics, health and status over HTTP, and what garbage gets there.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::harness::{
    Client, Node, PATIENCE, Reply, connect, encode, http_get, sum_metric, wait_in_sync, wait_until,
};

const SIZES: &[&str] = &["--shard-count", "2", "--key-size", "16", "--value-size", "32"];

fn some_writes(node: &Node, count: u32) {
    let mut client = node.client();
    for number in 0..count {
        let key = format!("key:{number}");
        assert_eq!(client.call(&["SET", &key, "value"]).text(), "OK");
    }
}

#[test]
fn promtool_accepts_the_metrics_of_both_roles() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("leader"), SIZES);
    let follower = Node::follower(&directory.path().join("follower"), &leader, &[]);
    some_writes(&leader, 100);
    wait_in_sync(&leader, &follower);
    for node in [&leader, &follower] {
        let (code, text) = node.get("/metrics");
        assert_eq!(code, 200);
        let Ok(mut promtool) = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
        else {
            eprintln!("SKIPPED: promtool is not installed (Debian: prometheus)");
            return;
        };
        promtool.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
        let output = promtool.wait_with_output().expect("promtool ends");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}\n{text}");
    }
}

#[test]
fn metrics_say_what_happened() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("leader"), SIZES);
    some_writes(&leader, 200);
    let mut follower = Node::follower(&directory.path().join("follower"), &leader, &[]);
    wait_in_sync(&leader, &follower);
    some_writes(&leader, 50);
    wait_in_sync(&leader, &follower);
    let mut client = leader.client();
    assert_eq!(client.call(&["GET", "key:0"]).text(), "value");
    assert_eq!(client.call(&["GET", "nothing"]), Reply::Nil);

    let (_, text) = leader.get("/metrics");
    let value = |name: &str| sum_metric(&text, &format!("slotstream_{name}"));
    assert_eq!(value("is_leader"), 1.0);
    assert_eq!(value("full_scans_total"), 2.0, "one per shard");
    assert_eq!(value("slots_used"), 200.0);
    assert_eq!(value("replication_seq"), 250.0);
    assert_eq!(value("keyspace_hits_total"), 1.0);
    assert_eq!(value("keyspace_misses_total"), 1.0);
    assert!(value("scan_slots_sent_total") >= 200.0 && value("replication_records_sent_total") >= 50.0);
    assert!(text.contains("# TYPE process_cpu_seconds_total counter\n"), "{text}");
    wait_until("parts of a second of CPU time are seen", PATIENCE, || {
        leader.metric("process_cpu_seconds_total").fract() > 0.0
    });
    assert!(text.contains("slotstream_connected_followers{state=\"stream\"} 1"), "{text}");
    assert!(text.contains("slotstream_commands_total{cmd=\"set\"} 250"), "{text}");
    wait_until("the leader has heard every Ack", PATIENCE, || {
        leader.metric("slotstream_follower_acked_seq") == 250.0
    });

    let (_, text) = follower.get("/metrics");
    let value = |name: &str| sum_metric(&text, &format!("slotstream_{name}"));
    assert_eq!(value("is_leader"), 0.0);
    assert_eq!(value("replication_applied_seq"), 250.0);
    assert_eq!(value("leader_link_up"), 2.0);
    assert_eq!(value("follower_lag_records"), 0.0);

    // The series of a follower that left go away.
    assert!(follower.terminate().0.success());
    wait_until("the follower's series are gone", PATIENCE, || {
        !leader.get("/metrics").1.contains("slotstream_follower_lag_seconds{")
    });
    assert!(!leader.get("/metrics").1.contains("slotstream_ring_used_bytes{"));
    assert!(leader.get("/metrics").1.contains("slotstream_connected_followers{state=\"stream\"} 0"));
}

#[test]
fn readiness_and_roles_follow_replication_and_liveness_does_not() {
    let directory = tempfile::tempdir().expect("temp dir");
    let mut leader = Node::leader(&directory.path().join("leader"), SIZES);
    let arguments = ["--dead-after", "1s", "--heartbeat-interval", "200ms"];
    let follower = Node::follower(&directory.path().join("follower"), &leader, &arguments);
    some_writes(&leader, 10);
    wait_in_sync(&leader, &follower);

    assert_eq!(leader.get("/readyz"), (200, "ready\n".to_owned()));
    let (code, text) = follower.get("/readyz?verbose");
    assert_eq!(code, 200);
    assert!(text.contains("[+]shard 0 streaming ok") && text.contains("[+]shard 1 streaming ok"), "{text}");
    assert_eq!((leader.get("/leader").0, leader.get("/follower").0), (200, 503));
    assert_eq!((follower.get("/leader").0, follower.get("/follower").0), (503, 200));
    assert_eq!(follower.get("/follower?max_lag=1s").0, 200);
    assert_eq!(follower.get("/follower?max_lag=soon").0, 400);

    leader.kill();
    wait_until("the follower has missed its leader", PATIENCE, || {
        follower.get("/follower?max_lag=1s").0 == 503
    });
    // It serves what it holds: live, ready, and a follower for whoever does not ask for freshness.
    assert_eq!(
        (follower.get("/livez").0, follower.get("/readyz").0, follower.get("/follower").0),
        (200, 200, 200)
    );
    assert_eq!(follower.client().call(&["GET", "key:3"]).text(), "value");
    leader.restart();
    wait_in_sync(&leader, &follower);
    wait_until("the follower is fresh again", PATIENCE, || follower.get("/follower?max_lag=1s").0 == 200);
}

#[test]
fn a_follower_without_its_first_sync_is_live_and_not_ready() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("leader"), SIZES);
    some_writes(&leader, 10);
    let data = directory.path().join("follower");
    // Stopped before it is asked, so that the follower's scan cannot end.
    let mut probe = Node::follower(&data, &leader, &[]);
    wait_in_sync(&leader, &probe);
    assert!(probe.terminate().0.success());
    leader.signal(Signal::STOP);
    let fresh = directory.path().join("fresh");
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
    let mut command = crate::harness::command(&["follower", "--listen", "127.0.0.1:0"]);
    command.arg("--data-dir").arg(&fresh).args(["--http-listen", &free.to_string()]);
    command.args(["--leader", &leader.ports.replication_listen.expect("a leader has one").to_string()]);
    let mut child = command.stderr(Stdio::null()).spawn().expect("starts");
    let answers = crate::harness::poll(PATIENCE, || std::net::TcpStream::connect(free).is_ok());
    let (live, ready) = if answers {
        (http_get(free, "/livez"), http_get(free, "/readyz?verbose"))
    } else {
        Default::default()
    };
    let metrics = if answers { http_get(free, "/metrics") } else { Default::default() };
    leader.signal(Signal::CONT);
    child.kill().expect("kill");
    child.wait().expect("wait");
    assert_eq!(live.0, 200);
    assert_eq!(ready.0, 503, "{}", ready.1);
    assert!(ready.1.contains("[-]store waiting"), "{}", ready.1);
    assert_eq!(metrics.0, 200);
}

#[test]
fn garbage_gets_400_and_slow_or_many_clients_do_not_block_others() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("leader"), SIZES);
    let exchange = |bytes: &[u8]| -> String {
        let mut stream = connect(leader.ports.http_listen);
        stream.write_all(bytes).expect("sent");
        let mut answer = Vec::new();
        // The server may close before it has read everything, which resets the connection.
        drop(stream.read_to_end(&mut answer));
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert!(exchange(b"\x00\x01\x02\x03 garbage\r\n\r\n").starts_with("HTTP/1.1 400"));
    let mut redis = Vec::new();
    encode(&mut redis, &[b"SET", b"a", b"b"]);
    assert!(exchange(&redis).starts_with("HTTP/1.1 400"));
    let long = format!("GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "a".repeat(64 << 10));
    assert!(exchange(long.as_bytes()).starts_with("HTTP/1.1 431"));
    assert!(
        exchange(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .starts_with("HTTP/1.1 405")
    );
    assert_eq!(leader.get("/no/such/path").0, 404);
    // Connections that say nothing take places, but not all of them.
    let idle: Vec<_> = (0..50).map(|_| connect(leader.ports.http_listen)).collect();
    assert_eq!(leader.get("/livez").0, 200);
    drop(idle);
    assert_eq!(leader.get("/livez").0, 200);
}

#[test]
fn sigterm_sigint_and_shutdown_end_a_node_that_waits_for_nothing() {
    let directory = tempfile::tempdir().expect("temp dir");
    // A thread that slept until the next heartbeat would be given up after ten seconds, as a failure.
    let silent = ["--heartbeat-interval", "60m", "--dead-after", "120m"];
    let mut leader = Node::leader(&directory.path().join("leader"), &[SIZES, &silent].concat());
    let mut follower = Node::follower(&directory.path().join("follower"), &leader, &silent);
    some_writes(&leader, 100);
    wait_in_sync(&leader, &follower);
    let _idle = (
        leader.client(),
        connect(leader.ports.http_listen),
        connect(leader.ports.replication_listen.expect("one")),
    );
    for node in [&mut follower, &mut leader] {
        let (status, took) = node.terminate();
        assert!(status.success(), "{status} after {took:?}\n{}", node.log());
        node.restart();
    }
    wait_in_sync(&leader, &follower);
    assert!(leader.log().contains("\"last_ending\":\"clean\""), "{}", leader.log());
    leader.signal(Signal::INT);
    assert!(leader.wait(PATIENCE).success());
    let mut client = Client::connect(follower.ports.listen);
    client.send(b"SHUTDOWN\r\n").expect("sent");
    assert!(follower.wait(PATIENCE).success());
    leader.restart();
    assert_eq!(leader.client().call(&["DBSIZE"]), Reply::Integer(100));
}
