//! Garbage, half frames and oversized lengths on the replication and Redis ports, from either side:
//! the node lives on, allocates nothing for it, and serves others meanwhile.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use crate::harness::{
    Client, Node, PATIENCE, Reply, command, connect, poll, run_command, stderr, wait_in_sync, wait_until,
};

const SIZES: &[&str] = &["--shard-count", "1", "--key-size", "16", "--value-size", "64"];

/// The same bytes at every run: xorshift from a fixed seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// Sends bytes and the end; the other side may close at any point of it.
fn throw(address: std::net::SocketAddr, bytes: &[u8]) {
    let mut stream = connect(address);
    stream.set_read_timeout(Some(Duration::from_millis(200))).expect("socket option");
    if stream.write_all(bytes).is_ok() && stream.shutdown(Shutdown::Write).is_ok() {
        // An answer, a close, a reset or silence: all are fine.
        drop(stream.read(&mut [0; 4096]));
    }
}

/// What a follower says first: taken from a real one by pretending to be its leader.
fn real_hello() -> Vec<u8> {
    let directory = tempfile::tempdir().expect("temp dir");
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    let mut follower = command(&["follower", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]);
    follower.arg("--data-dir").arg(directory.path().join("data")).args(["--leader", &address]);
    let mut child = follower.stderr(Stdio::null()).spawn().expect("starts");
    let (mut stream, _) = listener.accept().expect("the follower connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("socket option");
    let mut hello = vec![0; 4096];
    let len = stream.read(&mut hello).expect("the follower says hello");
    child.kill().expect("kill");
    child.wait().expect("wait");
    hello.truncate(len);
    assert!(len > 16, "hello is {len} bytes");
    hello
}

#[test]
fn the_replication_port_survives_everything_but_a_follower() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("leader"), SIZES);
    let port = leader.ports.replication_listen.expect("a leader has one");
    assert_eq!(leader.client().call(&["SET", "k", "v"]).text(), "OK");
    let before = leader.resident_bytes();
    let hello = real_hello();
    for len in [1, 7, 8, 100, 70_000] {
        throw(port, &noise(len as u64, len));
    }
    throw(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    throw(port, b"*1\r\n$4\r\nPING\r\n");
    // Cut at every byte, then every byte set to all ones: lengths among them.
    for cut in 0..hello.len() {
        throw(port, &hello[..cut]);
    }
    for position in 0..hello.len() {
        let mut bytes = hello.clone();
        bytes[position] = !bytes[position];
        throw(port, &bytes);
    }
    throw(port, &[hello.clone(), noise(3, 10_000)].concat());
    throw(port, &[hello.clone(), hello.clone()].concat());
    assert!(leader.resident_bytes() < before + (32 << 20), "garbage made the leader grow");
    let follower = Node::follower(&directory.path().join("follower"), &leader, &[]);
    wait_in_sync(&leader, &follower);
    assert_eq!(follower.client().call(&["GET", "k"]).text(), "v");
}

#[test]
fn connections_that_say_nothing_do_not_keep_followers_out() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("leader"), SIZES);
    let port = leader.ports.replication_listen.expect("a leader has one");
    let silent: Vec<TcpStream> = (0..200).map(|_| connect(port)).collect();
    let follower = Node::follower(&directory.path().join("follower"), &leader, &[]);
    wait_in_sync(&leader, &follower);
    drop(silent);
}

#[test]
fn a_follower_survives_a_leader_that_talks_garbage() {
    let directory = tempfile::tempdir().expect("temp dir");
    let mut leader = Node::leader(&directory.path().join("leader"), SIZES);
    assert_eq!(leader.client().call(&["SET", "k", "v"]).text(), "OK");
    let port = leader.ports.replication_listen.expect("a leader has one");
    let follower = Node::follower(
        &directory.path().join("follower"),
        &leader,
        &["--dead-after", "1s", "--heartbeat-interval", "200ms"],
    );
    wait_in_sync(&leader, &follower);
    leader.kill();
    // In the leader's place.
    let mut listener = None;
    assert!(poll(PATIENCE, || {
        listener = TcpListener::bind(port).ok();
        listener.is_some()
    }));
    let listener = listener.expect("bound");
    let before = follower.resident_bytes();
    let answers: [&[u8]; 4] = [&[0xFF; 4096], b"HTTP/1.1 400 Bad Request\r\n\r\n", &[], &noise(9, 100_000)];
    for answer in answers {
        let (mut stream, _) = listener.accept().expect("the follower tries again");
        drop(stream.write_all(answer));
    }
    drop(listener);
    assert!(follower.resident_bytes() < before + (32 << 20));
    assert_eq!(follower.client().call(&["GET", "k"]).text(), "v");
    leader.restart();
    wait_in_sync(&leader, &follower);
    assert_eq!(leader.metric("slotstream_full_scans_total"), 0.0, "what it held was thrown away");
}

#[test]
fn a_new_follower_refuses_what_is_no_leader_with_one_line() {
    let directory = tempfile::tempdir().expect("temp dir");
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    let impostor = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the follower connects");
        drop(stream.write_all(&[0xFF; 1024]));
    });
    let mut follower = command(&["follower", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]);
    follower.arg("--data-dir").arg(directory.path().join("data")).args(["--leader", &address]);
    let output = run_command(&mut follower, PATIENCE);
    impostor.join().expect("impostor");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).lines().any(|line| line.starts_with("slotstream: ") && line.contains(&address)));
}

#[test]
fn the_redis_port_survives_garbage_and_oversized_lengths() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("leader"), SIZES);
    let port = leader.ports.listen;
    assert_eq!(leader.client().call(&["SET", "k", "v"]).text(), "OK");
    let before = leader.resident_bytes();
    let mut held = Vec::new();
    for bytes in [
        &b"*1\r\n$99999999999\r\n"[..],
        b"*1\r\n$-2\r\n",
        b"*-7\r\n",
        b"*1000000000\r\n",
        b"*1048576\r\n$1\r\n",
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870912\r\nhalf",
        b"$5\r\n",
        b"\0\0\0\0\r\n",
        b"GET \"unbalanced\r\n",
    ] {
        let mut client = Client::connect(port);
        client.send(bytes).expect("sent");
        held.push(client);
    }
    for seed in 1..50 {
        throw(port, &noise(seed, 2_000));
    }
    throw(port, &vec![b'a'; 1 << 20]);
    assert!(leader.resident_bytes() < before + (32 << 20), "garbage made the leader grow");
    assert_eq!(leader.client().call(&["GET", "k"]).text(), "v");
    assert_eq!(leader.client().call(&["DBSIZE"]), Reply::Integer(1));
    drop(held);
    wait_until("closed connections are gone", PATIENCE, || {
        leader.metric("slotstream_connected_clients") <= 1.0
    });
}

#[test]
fn keys_and_values_that_do_not_fit_are_refused_by_size() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("leader"), SIZES);
    let mut client = leader.client();
    let (long_key, long_value) = ("k".repeat(17), "v".repeat(65));
    let error = client.call(&["SET", &long_key, "v"]).text();
    assert!(error.contains("key is 17 bytes") && error.contains("16"), "{error}");
    let error = client.call(&["SET", "k", &long_value]).text();
    assert!(error.contains("value is 65 bytes") && error.contains("64"), "{error}");
    assert_eq!(client.call(&["DBSIZE"]), Reply::Integer(0));
    assert_eq!(client.call(&["SET", "k", &"v".repeat(64)]).text(), "OK");
}
