//! The Redis port's start, its workers and clients, and its end.

use std::sync::Arc;

use slotstream::Store;
use slotstream::resp::{Context, Options, Server};
use slotstream::stop::Stop;

use crate::resp_support::{GEOMETRY, TestServer, encode, wait_until};

#[test]
fn workers_share_port_store_and_client_list() {
    let options = Options { workers: 3, ..Options::default() };
    let server = TestServer::start_with(GEOMETRY, options);
    let mut clients: Vec<_> = (0..12).map(|_| server.connect()).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.ask(&format!("set key{index} {index}")), "+OK\r\n");
        assert_eq!(client.ask(&format!("client setname client{index}")), "+OK\r\n");
    }
    let list = clients[3].ask("client list");
    for index in 0..12 {
        assert!(list.contains(&format!(" name=client{index} ")), "{list}");
    }
    assert_eq!(clients[5].ask("dbsize"), ":12\r\n");
    let totals = server.server.counters().totals();
    assert_eq!(totals.connected_clients, 12);
    assert_eq!(totals.commands_processed, 26);
    let id = clients[0].ask("client id").trim_start_matches(':').trim().to_owned();
    let one = clients[1].ask(&format!("client list id {id}"));
    assert!(one.contains(" name=client0 ") && one.matches("id=").count() == 1, "{one}");
}

#[test]
fn too_many_clients_are_turned_away() {
    let options = Options { clients_max: 2, ..Options::default() };
    let server = TestServer::start_with(GEOMETRY, options);
    let (mut first, second) = (server.connect(), server.connect());
    assert_eq!(first.ask("ping"), "+PONG\r\n");
    wait_until("both being known", || server.server.counters().totals().connected_clients == 2);
    let mut third = server.connect();
    assert_eq!(third.reply(), b"-ERR max number of clients reached\r\n");
    assert!(third.is_closed());
    drop(second);
    wait_until("one leaving", || server.server.counters().totals().connected_clients == 1);
    assert_eq!(server.connect().ask("ping"), "+PONG\r\n");
}

#[test]
fn a_port_in_use_is_an_error() {
    let server = TestServer::start();
    let store =
        Store::open(std::path::Path::new("unused"), slotstream::Options::memory(GEOMETRY, 64)).unwrap();
    let store = Arc::new(store);
    for workers in [1, 3] {
        let context = Context::standalone(Arc::clone(&store), Stop::new());
        let options = Options { workers, ..Options::default() };
        let error = Server::start(server.address(), options, context).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    }
}

#[test]
fn the_server_stops_with_clients_connected() {
    let options = Options { workers: 2, ..Options::default() };
    let server = TestServer::start_with(GEOMETRY, options);
    let mut clients: Vec<_> = (0..8).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.ask("ping"), "+PONG\r\n");
    }
    clients[0].send(&encode(&["wait", "1", "0"]));
    server.context.stop.set();
    // It would wait for the follower for ever.
    server.server.join();
    assert!(clients.iter_mut().all(|client| client.is_closed()));
}

#[test]
fn shutdown_ends_the_server() {
    let server = TestServer::start();
    let mut client = server.connect();
    assert_eq!(client.ask("shutdown sideways"), "-ERR syntax error\r\n");
    client.send(&[encode(&["set", "k", "v"]), encode(&["shutdown", "nosave"])].concat());
    assert!(client.try_reply().is_ok_and(|reply| reply == b"+OK\r\n") || server.context.stop.is_set());
    assert!(client.is_closed());
    server.server.join();
    assert!(server.context.stop.is_set());
    assert_eq!(server.context.store.get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
}
