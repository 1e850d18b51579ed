//! Bad input: each gets its error or its end, and other clients are served all the while.

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use slotstream::resp::Options;

use crate::resp_support::{Client, GEOMETRY, TestServer, encode, wait_until};

/// Another client writes and reads.
fn assert_alive(server: &TestServer) {
    let mut client = server.connect();
    assert_eq!(client.ask("set alive yes"), "+OK\r\n");
    assert_eq!(client.ask("get alive"), "$3\r\nyes\r\n");
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("proc is mounted");
    let pages = statm.split(' ').nth(1).expect("a second field");
    pages.parse::<usize>().expect("pages") * 4096
}

#[test]
fn malformed_requests_are_refused_and_closed() {
    let server = TestServer::start();
    let cases: [(&[u8], &str); 11] = [
        (b"*1048577\r\n", "invalid multibulk length"),
        (b"*99999999999999999999999999\r\n", "too big mbulk count string"),
        (b"*abc\r\n", "invalid multibulk length"),
        (b"*1\r\n$999999999\r\n", "invalid bulk length"),
        (b"*1\r\n$-5\r\n", "invalid bulk length"),
        (b"*1\r\n$x\r\n", "invalid bulk length"),
        (b"*2\r\n$4\r\nping\r\nhello\r\n", "expected '$', got 'h'"),
        (b"*1\r\n$4\r\npingpong\r\n", "expected CRLF after bulk string"),
        (b"set k \"v\r\n", "unbalanced quotes in request"),
        (&[b'x'; 70_000], "too big inline request"),
        (b"GET / HTTP/1.1\"\r\n", "unbalanced quotes in request"),
    ];
    for (request, wanted) in cases {
        let mut client = server.connect();
        // What was right before the damage is done.
        client.send(&[&encode(&["ping"])[..], request].concat());
        assert_eq!(client.reply(), b"+PONG\r\n");
        let reply = String::from_utf8(client.reply()).unwrap();
        assert_eq!(reply, format!("-ERR Protocol error: {wanted}\r\n"), "{}", request.escape_ascii());
        assert!(client.is_closed());
    }
    assert_alive(&server);
}

#[test]
fn garbage_never_stops_the_server() {
    let server = TestServer::start();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    eprintln!("seed {state}");
    for _ in 0..300 {
        let mut bytes = Vec::new();
        for _ in 0..200 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.push(state.to_le_bytes()[3]);
        }
        let mut client = server.connect();
        client.send(&bytes);
        client.writer().shutdown(Shutdown::Write).unwrap();
        assert!(client.is_closed());
    }
    assert_alive(&server);
}

#[test]
fn half_commands_wait_and_keep_their_bytes() {
    let server = TestServer::start();
    let mut client = server.connect();
    let command = encode(&["set", "key", "value"]);
    for byte in &command {
        client.send(std::slice::from_ref(byte));
        client.writer().flush().unwrap();
    }
    assert_eq!(client.reply(), b"+OK\r\n");
    client.send(&command[..command.len() - 3]);
    assert_alive(&server);
    drop(client);
    wait_until("the half command's client being gone", || {
        server.server.counters().totals().connected_clients == 0
    });
}

#[test]
fn announced_lengths_cost_nothing_until_bytes_come() {
    let server = TestServer::start();
    let before = resident_bytes();
    let mut clients: Vec<Client<_>> = Vec::new();
    for _ in 0..200 {
        let mut client = server.connect();
        client.send(b"*1048576\r\n$1048576\r\n");
        clients.push(client);
    }
    assert_alive(&server);
    let grown = resident_bytes().saturating_sub(before);
    // Two hundred announced megabytes; other tests run in this process too.
    assert!(grown < 150 << 20, "{grown} bytes");
}

#[test]
fn a_pipeline_of_a_hundred_thousand_commands_is_answered_in_order() {
    const COMMANDS: usize = 100_000;
    let server = TestServer::start();
    let mut client = server.connect();
    let mut other = server.connect();
    let mut bytes = Vec::new();
    for index in 0..COMMANDS {
        bytes.extend_from_slice(&encode(&["echo", &index.to_string()]));
    }
    let stream = client.writer().try_clone().unwrap();
    let sender = std::thread::spawn(move || (&stream).write_all(&bytes).unwrap());
    for index in 0..COMMANDS {
        let digits = index.to_string();
        assert_eq!(client.reply(), format!("${}\r\n{digits}\r\n", digits.len()).as_bytes());
        if index % 5000 == 0 {
            assert_eq!(other.ask("ping"), "+PONG\r\n");
        }
    }
    sender.join().unwrap();
}

#[test]
fn a_slow_reader_costs_bounded_memory_and_keeps_nobody_waiting() {
    let server = TestServer::start();
    let mut client = server.connect();
    let value = "v".repeat(60_000);
    assert_eq!(client.call(&["set", "big", &value]), b"+OK\r\n");
    let before = resident_bytes();
    // Replies of three gigabytes, none of them read: the server stops reading instead of buffering.
    let request = encode(&["get", "big"]).repeat(50_000);
    let stream = client.writer().try_clone().unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let written = (&stream).write_all(&request);
    eprintln!("wrote all: {}", written.is_ok());
    for _ in 0..20 {
        assert_alive(&server);
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 150 << 20, "{grown} bytes");
    // What it reads in the end is right.
    for _ in 0..50 {
        assert_eq!(client.reply().len(), value.len() + 10);
    }
}

#[test]
fn a_command_beyond_the_size_limit_is_cut_off() {
    let options = Options { command_size_max: 1 << 20, ..Options::default() };
    let server = TestServer::start_with(GEOMETRY, options);
    let mut client = server.connect();
    let arg = "x".repeat(60_000);
    let command: Vec<&str> = std::iter::once("mget").chain(std::iter::repeat_n(arg.as_str(), 40)).collect();
    let stream = client.writer().try_clone().unwrap();
    let bytes = encode(&command);
    let sender = std::thread::spawn(move || drop((&stream).write_all(&bytes)));
    assert!(client.is_closed());
    sender.join().unwrap();
    assert_alive(&server);
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let server = TestServer::start();
    for index in 0..200 {
        let mut client = server.connect();
        match index % 4 {
            0 => {}
            1 => client.send(b"*3\r\n$3\r\nset"),
            2 => client.send(&encode(&["get", "k"]).repeat(1000)),
            _ => client.send(&encode(&["multi"])),
        }
    }
    wait_until("all being gone", || {
        let totals = server.server.counters().totals();
        totals.connections_received == 200 && totals.connected_clients == 0
    });
    assert!(server.connect().ask("client list").matches("id=").count() == 1);
}
