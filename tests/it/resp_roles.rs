//! What Redis clients see while a node's role changes: writes that wait, orders to the node, clients sent away.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::mpsc;

use slotstream::resp::{Answer, FailoverState, Order, Role};

use crate::resp_support::{Client, TestServer, encode, wait_until};

const READ_ONLY: &str = "-READONLY You can't write against a read only replica.\r\n";

fn hold(server: &TestServer) {
    server.context.node.control.hold_writes();
    server.context.store.stop_writes();
}

/// The leader goes on.
fn resume(server: &TestServer) {
    server.context.store.set_read_only(false);
    server.context.node.control.release_writes();
}

fn follow(server: &TestServer) {
    server.context.node.set_role(Role::Follower { leader: "127.0.0.1:8379".into(), resp_port: 6379 });
    server.context.node.control.release_writes();
}

/// Sends a command that must not be answered yet: others are, on connections of every worker.
fn send_held(server: &TestServer, client: &mut Client<TcpStream>, command: &str) {
    client.send(&encode(&command.split(' ').collect::<Vec<_>>()));
    for _ in 0..8 {
        assert_eq!(server.connect().ask("ping"), "+PONG\r\n");
    }
    let stream = client.writer();
    stream.set_nonblocking(true).expect("a socket option");
    let early = stream.peek(&mut [0; 1]);
    stream.set_nonblocking(false).expect("a socket option");
    assert!(matches!(&early, Err(error) if error.kind() == ErrorKind::WouldBlock), "{command}: {early:?}");
}

#[test]
fn writes_wait_while_the_leader_hands_over_and_reads_do_not() {
    let server = TestServer::start();
    let mut client = server.connect();
    assert_eq!(client.ask("set k 1"), "+OK\r\n");
    for (command, reply) in
        [("set k 2", "+OK\r\n"), ("incr k", ":3\r\n"), ("mset k 4 l 5", "+OK\r\n"), ("del l", ":1\r\n")]
    {
        hold(&server);
        send_held(&server, &mut client, command);
        assert!(server.connect().ask("get k").starts_with('$'));
        resume(&server);
        assert_eq!(String::from_utf8(client.reply()).expect("text"), reply, "{command}");
    }
    // A pipeline keeps its order; what stands before the write is answered at once.
    hold(&server);
    client
        .send(b"*2\r\n$3\r\nget\r\n$1\r\nk\r\n*2\r\n$4\r\nincr\r\n$1\r\nk\r\n*2\r\n$3\r\nget\r\n$1\r\nk\r\n");
    assert_eq!(client.reply(), b"$1\r\n4\r\n");
    resume(&server);
    assert_eq!(client.reply(), b":5\r\n");
    assert_eq!(client.reply(), b"$1\r\n5\r\n");
    // A transaction waits as a whole, at EXEC or before.
    assert_eq!(client.ask("multi"), "+OK\r\n");
    assert_eq!(client.ask("incr k"), "+QUEUED\r\n");
    hold(&server);
    send_held(&server, &mut client, "exec");
    resume(&server);
    assert_eq!(client.reply(), b"*1\r\n:6\r\n");
}

#[test]
fn writes_that_waited_are_refused_when_another_node_leads() {
    let server = TestServer::start();
    let mut clients = [server.connect(), server.connect(), server.connect()];
    let wait = clients[2].ask("set w 1");
    assert_eq!(wait, "+OK\r\n");
    send_held(&server, &mut clients[2], "wait 1 0");
    hold(&server);
    send_held(&server, &mut clients[0], "set k 1");
    send_held(&server, &mut clients[1], "incr k");
    // An inline command is changed as it is parsed, and cannot be done later.
    let mut inline = server.connect();
    inline.send(b"set k 2\r\n");
    assert_eq!(inline.reply(), READ_ONLY.as_bytes());
    follow(&server);
    assert_eq!(clients[0].reply(), READ_ONLY.as_bytes());
    assert_eq!(clients[1].reply(), READ_ONLY.as_bytes());
    assert!(clients[2].reply().starts_with(b"-UNBLOCKED"), "nobody acknowledges anything to a follower");
    assert_eq!(clients[0].ask("get k"), "$-1\r\n");
    assert!(clients[0].ask("role").starts_with("*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:6379\r\n"));
}

#[test]
fn orders_are_answered_by_the_node_and_hold_up_nobody_else() {
    let server = TestServer::start();
    assert!(
        server.connect().ask("replicaof no one").starts_with("-ERR this server's role cannot be changed")
    );
    let (orders, received) = mpsc::channel::<(Order, Answer)>();
    let orders = Mutex::new(orders);
    server.context.node.control.listen(move |order, answer| {
        orders.lock().expect("no panic").send((order, answer)).expect("the test listens");
    });
    let mut client = server.connect();
    send_held(&server, &mut client, "slaveof example.org 7000");
    let (order, answer) = received.recv().expect("an order");
    assert_eq!(order, Order::Follow { host: "example.org".to_owned(), port: 7000 });
    answer(Err("ERR two\r\nlines".to_owned()));
    assert_eq!(client.reply(), b"-ERR two  lines\r\n");
    send_held(&server, &mut client, "failover to example.org 7000 timeout 50");
    let (order, answer) = received.recv().expect("an order");
    let timeout = Some(std::time::Duration::from_millis(50));
    assert_eq!(order, Order::Failover { to: Some(("example.org".to_owned(), 7000)), timeout });
    answer(Ok("OK".to_owned()));
    assert_eq!(client.reply(), b"+OK\r\n");
    // A node that ends answers nothing, and its client is told.
    send_held(&server, &mut client, "replicaof NO ONE");
    drop(received.recv().expect("an order"));
    assert_eq!(client.reply(), b"-ERR this node is stopping\r\n");
    server.context.node.control.set_failover(FailoverState::WaitingForSync);
    assert_eq!(client.ask("replicaof no one"), "-ERR REPLICAOF not allowed while failing over.\r\n");
    assert!(client.ask("info replication").contains("master_failover_state:waiting-for-sync\r\n"));
    server.context.node.control.set_failover(FailoverState::None);
    for bad in ["failover to a", "failover timeout", "failover abort now", "failover to a 1 to b 2"] {
        assert_eq!(client.ask(bad), "-ERR syntax error\r\n", "{bad}");
    }
    assert!(client.ask("failover to a 1 force timeout 1").starts_with("-ERR FAILOVER FORCE would lose"));
    assert_eq!(client.ask("replicaof h 0"), "-ERR Invalid master port\r\n");
}

#[test]
fn clients_are_killed_by_id_address_and_type() {
    let server = TestServer::start();
    let (mut admin, mut one, mut two, mut three) =
        (server.connect(), server.connect(), server.connect(), server.connect());
    let id = one.ask("client id").trim_start_matches(':').trim().to_owned();
    assert_eq!(two.ask("ping"), "+PONG\r\n");
    assert_eq!(admin.ask(&format!("client kill id {id}")), ":1\r\n");
    assert!(one.is_closed());
    let address = two.writer().local_addr().expect("an address");
    assert_eq!(admin.ask(&format!("client kill {address}")), "+OK\r\n");
    assert!(two.is_closed());
    wait_until("the two are gone", || {
        admin.ask(&format!("client kill {address}")) == "-ERR No such client\r\n"
    });
    assert_eq!(admin.ask("client kill type pubsub"), ":0\r\n");
    assert_eq!(admin.ask("client kill type king"), "-ERR Unknown client type 'king'\r\n");
    assert_eq!(admin.ask("client kill id 0"), "-ERR client-id should be greater than 0\r\n");
    assert_eq!(admin.ask("client kill type normal id"), "-ERR syntax error\r\n");
    // Also one that waits.
    assert_eq!(three.ask("set k v"), "+OK\r\n");
    send_held(&server, &mut three, "wait 1 0");
    assert_eq!(admin.ask("client kill type normal skipme no"), ":2\r\n");
    assert!(three.is_closed() && admin.is_closed());
}
