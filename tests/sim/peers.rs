//! Peers of a leader or a follower that are not what they should be, over real sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::time::Duration;

use slotstream::follower::{self, ProbeError, probe};
use slotstream::leader;
use slotstream::links::Phase;
use slotstream::slot::Term;
use slotstream::wire::frame::{PREAMBLE, Side};
use slotstream::wire::{FrameDecoder, Hello, Refuse, RefuseCode};
use slotstream::{Geometry, Seq, ShardIndex, Store};
use uuid::Uuid;

use crate::sockets::{DEADLINE, geometry, put, start_follower, start_leader, store, wait_until};

fn hello(store: &Store) -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        shard: 0,
        resp_port: 0,
        geometry: Some(store.geometry()),
        store_id: store.store_id(),
        follower_id: Uuid::from_u128(5),
        epoch: 1,
        watermark: Seq::ZERO,
        head: Seq::ZERO,
        scan_place: None,
        asks: false,
        lineage: store.lineage(ShardIndex(0)),
    }
}

fn say(address: std::net::SocketAddr, hello: &Hello) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut bytes = PREAMBLE.to_vec();
    hello.push(&mut bytes);
    stream.write_all(&bytes).unwrap();
    stream
}

fn refusal(mut stream: TcpStream) -> Refuse {
    let mut decoder = FrameDecoder::new(Side::Follower, 4096);
    loop {
        if let Some(frame) = decoder.next().unwrap() {
            return Refuse::read(&frame).unwrap();
        }
        let received = stream.read(decoder.space()).unwrap();
        assert!(received > 0, "closed without a refusal");
        decoder.received(received);
    }
}

#[test]
fn a_probe_learns_the_leaders_sizes() {
    let store_l = store(geometry(3), None);
    let leader = start_leader(&store_l, leader::Options { resp_port: 6379, ..Default::default() });
    let info = probe(&leader.address().to_string(), DEADLINE).unwrap();
    assert_eq!(info.geometry, geometry(3));
    assert_eq!(info.store_id, store_l.store_id());
    assert_eq!(info.resp_port, 6379);
}

#[test]
fn a_probe_of_another_protocols_port_says_so() {
    for (answer, wanted) in [
        (&b"-ERR unknown command 'SLOTSTREAM', with args beginning with:\r\n"[..], "Redis protocol"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "speaks HTTP"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = [0; 12];
            stream.read_exact(&mut line).unwrap();
            stream.write_all(answer).unwrap();
            // Closing with unread bytes would reset the connection and lose the answer.
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            std::io::copy(&mut stream, &mut std::io::sink()).ok();
        });
        let error = probe(&address, DEADLINE).unwrap_err();
        assert!(error.is_permanent() && error.to_string().contains(wanted), "{error}");
        server.join().unwrap();
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let error = probe(&address, Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, ProbeError::Timeout { .. }) && !error.is_permanent(), "{error}");
    drop(listener);
    let error = probe(&address, DEADLINE).unwrap_err();
    assert!(matches!(error, ProbeError::Connect { .. }), "{error}");
}

#[test]
fn foreign_clients_are_closed_at_once_and_counted() {
    let store_l = store(geometry(1), None);
    // Only what they say can close them.
    let options = leader::Options { handshake_timeout: DEADLINE * 100, ..Default::default() };
    let leader = start_leader(&store_l, options);
    let clients = [
        &b"PING\r\n"[..],
        b"*1\r\n$4\r\nPING\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"\0\0\0",
    ];
    for bytes in clients {
        let mut stream = TcpStream::connect(leader.address()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(bytes).unwrap();
        let read = stream.read(&mut [0; 10]).map_err(|error| error.kind());
        assert!(matches!(read, Ok(0) | Err(ErrorKind::ConnectionReset)), "{read:?}");
    }
    let errors = leader.links.totals.protocol_errors.load(Ordering::Relaxed);
    assert_eq!(errors, clients.len() as u64);
}

#[test]
fn a_connection_that_says_half_a_hello_is_closed_at_its_deadline() {
    let store_l = store(geometry(1), None);
    let options = leader::Options { handshake_timeout: Duration::from_millis(100), ..Default::default() };
    let leader = start_leader(&store_l, options);
    let mut stream = TcpStream::connect(leader.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"SLOTSTREAM\r\n\x48\0\0\0\x01").unwrap();
    assert_eq!(stream.read(&mut [0; 10]).unwrap_or(0), 0);
}

#[test]
fn a_hello_that_cannot_be_served_is_refused_with_its_reason() {
    let store_l = store(geometry(2), None);
    put(&store_l, 1, 1);
    let leader = start_leader(&store_l, leader::Options { followers_per_shard_max: 1, ..Default::default() });
    let good = hello(&store_l);
    let other_sizes = Geometry { value_size_max: 63, ..store_l.geometry() };
    let strange = vec![Term { epoch: 1, id: 7, first_seq: 1 }];
    let strange = Hello { watermark: Seq(1), head: Seq(1), lineage: strange, ..good.clone() };
    let cases = [
        (Hello { version_min: 2, version_max: 9, ..good.clone() }, RefuseCode::Version),
        (Hello { store_id: Uuid::from_u128(9), ..good.clone() }, RefuseCode::ForeignStore),
        (Hello { store_id: Uuid::nil(), ..good.clone() }, RefuseCode::Malformed),
        (Hello { geometry: Some(other_sizes), ..good.clone() }, RefuseCode::Geometry),
        (Hello { shard: 2, ..good.clone() }, RefuseCode::Shard),
        (strange, RefuseCode::FollowerAhead),
    ];
    for (hello, wanted) in cases {
        let refuse = refusal(say(leader.address(), &hello));
        assert_eq!(refuse.code, wanted, "{}", refuse.text);
    }
    let _taken = say(leader.address(), &good);
    wait_until("the shard's only seat is taken", || store_l.stats(ShardIndex(0)).rings == 1);
    assert_eq!(refusal(say(leader.address(), &good)).code, RefuseCode::TooManyFollowers);
    wait_until("the refusal is counted", || {
        leader.links.totals.refusals.lock().get("too_many_followers") == Some(&1)
    });
    assert_eq!(leader.links.superseded_by_epoch(), None);
    let newer = Hello { epoch: 7, ..good.clone() };
    assert_eq!(refusal(say(leader.address(), &newer)).code, RefuseCode::OldEpoch);
    assert_eq!(leader.links.superseded_by_epoch(), Some(7));
    assert!(store_l.put(b"key", b"value").is_err(), "a superseded leader takes no writes");
    assert_eq!(refusal(say(leader.address(), &good)).code, RefuseCode::NotLeader);
}

#[test]
fn a_follower_that_takes_nothing_costs_a_latched_ring_and_is_dropped_when_silent() {
    let store_l = store(geometry(1), None);
    let options = leader::Options {
        ring_bytes: 16 << 10,
        dead_after: Duration::from_millis(700),
        ..Default::default()
    };
    let leader = start_leader(&store_l, options);
    let stalled = say(leader.address(), &hello(&store_l));
    wait_until("it is attached", || store_l.stats(ShardIndex(0)).rings == 1);
    // More than the kernel buffers for a socket, and the ring: a writer that waited for it would never end.
    for key in 0..300_000 {
        put(&store_l, key % 1_000, key);
    }
    assert!(store_l.stats(ShardIndex(0)).ring_overflows > 0, "the ring was full");
    wait_until("it is dropped", || store_l.stats(ShardIndex(0)).rings == 0);
    assert!(leader.links.all().is_empty(), "its figures go away");
    drop(stalled);
}

#[test]
fn a_shard_without_a_leader_keeps_trying_and_says_why() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let store_f = store(geometry(1), None);
    let options = follower::Options { back_off_min: Duration::from_millis(1), ..Default::default() };
    let follower = start_follower(&store_f, address, options);
    wait_until("it has tried three times", || {
        follower.links.totals.reconnects.lock().get("connect").is_some_and(|count| *count >= 3)
    });
    let cell = &follower.links.all()[0];
    assert!(cell.reason.lock().contains("refused"), "{}", cell.reason.lock());
    assert_eq!(cell.peer, address);
    assert_eq!(cell.phase(), Phase::Connecting);
}
