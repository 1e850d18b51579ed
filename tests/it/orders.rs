//! Orders to change a node's role whose other side misbehaves, and what the node does meanwhile.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::harness::{Node, PATIENCE, encode, wait_until};
use crate::roles_at_run_time::{SIZES, assert_leads};

/// Answers every question with the beginning of a long reply and then a byte now and then: each one comes in time, and
/// the reply never ends. Its port, and how many have asked.
fn trickler() -> (u16, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("address").port();
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    // Ends with the test's process.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let count = Arc::clone(&count);
            std::thread::spawn(move || {
                stream.read_exact(&mut [0; 10]).expect("a question");
                count.fetch_add(1, Ordering::Relaxed);
                let mut bytes: &[u8] = b"$1000000\r\n";
                // Until the node hangs up.
                while stream.write_all(bytes).is_ok() {
                    bytes = b"x";
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
        }
    });
    (port, asked)
}

/// One such peer once held the thread that owns the role for ever, and with it all other orders and the node's end.
#[test]
fn a_peer_that_answers_in_drops_holds_neither_other_orders_nor_the_end() {
    let directory = tempfile::tempdir().expect("temp dir");
    let mut node = Node::leader(&directory.path().join("a"), SIZES);
    let (port, asked) = trickler();
    let port = port.to_string();
    let mut order = Vec::new();
    encode(&mut order, &[b"REPLICAOF", b"127.0.0.1", port.as_bytes()]);
    let mut waiting = node.client();
    waiting.send(&order).expect("sent");
    wait_until("the peer is asked", PATIENCE, || asked.load(Ordering::Relaxed) == 1);
    assert_eq!(node.client().call(&["REPLICAOF", "NO", "ONE"]).text(), "OK");
    let reply = waiting.reply().expect("a reply").text();
    assert!(reply.starts_with("ERR ") && reply.contains("no answer"), "{reply}");
    assert_leads(&node, true);

    waiting.send(&order).expect("sent");
    wait_until("the peer is asked again", PATIENCE, || asked.load(Ordering::Relaxed) == 2);
    // Else the guard that ends a node which hangs would have ended it, and the exit code would say so.
    assert!(node.terminate().0.success());
}
