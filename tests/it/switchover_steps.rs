//! A hand-over that goes wrong at one step: between leader and follower stands a proxy that loses, delays or
//! cuts off the order to lead.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use crate::harness::{Client, Node, PATIENCE, Reply, wait_in_sync, wait_until};
use crate::roles_at_run_time::{SIZES, assert_leads, info, replicaof, set};

/// What becomes of `REPLICAOF NO ONE` on its way.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Order {
    /// The connection closes, and the order is gone.
    Lost,
    /// The follower does it, and its answer is gone.
    Unanswered,
    /// It is done when the test says so.
    Late,
}

/// Forwards to a follower's Redis port until the order comes.
struct Proxy {
    address: SocketAddr,
    /// Says that the order has come; the way back lets it go on.
    arrived: mpsc::Receiver<mpsc::Sender<()>>,
    /// Refuses connections from then on.
    is_closed: Arc<AtomicBool>,
}

impl Proxy {
    fn start(follower: SocketAddr, order: Order) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = listener.local_addr().expect("address");
        let (arrive, arrived) = mpsc::channel();
        let is_closed = Arc::new(AtomicBool::new(false));
        let closed = Arc::clone(&is_closed);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if closed.load(Ordering::Relaxed) {
                    continue;
                }
                let arrive = arrive.clone();
                std::thread::spawn(move || forward(stream, follower, order, &arrive));
            }
        });
        Self { address, arrived, is_closed }
    }

    /// `FAILOVER TO` the follower by way of the proxy.
    fn fail_over(&self, leader: &Node) {
        let port = self.address.port().to_string();
        let reply = leader.client().call(&["FAILOVER", "TO", "127.0.0.1", &port, "TIMEOUT", "20000"]);
        assert_eq!(reply.text(), "OK");
    }

    /// Waits until the order is on its way.
    fn wait(&self) -> mpsc::Sender<()> {
        self.arrived.recv_timeout(PATIENCE).expect("the order comes")
    }
}

fn forward(
    mut client: TcpStream,
    follower: SocketAddr,
    order: Order,
    arrive: &mpsc::Sender<mpsc::Sender<()>>,
) -> Option<()> {
    let mut server = TcpStream::connect(follower).ok()?;
    let mut buffer = [0; 65536];
    // Each side waits for the other's answer, so one turn each.
    loop {
        let received = client.read(&mut buffer).ok().filter(|received| *received > 0)?;
        let is_order = buffer[..received].windows(9).any(|word| word == b"REPLICAOF");
        if is_order {
            let (go_on, goes_on) = mpsc::channel();
            arrive.send(go_on).ok()?;
            // Whoever drops the way back lets it go on, too.
            let _dropped_or_late = goes_on.recv_timeout(PATIENCE);
            if order == Order::Lost {
                return None;
            }
        }
        server.write_all(&buffer[..received]).ok()?;
        let answered = server.read(&mut buffer).ok().filter(|answered| *answered > 0)?;
        if is_order && order == Order::Unanswered {
            return None;
        }
        client.write_all(&buffer[..answered]).ok()?;
    }
}

fn pair(root: &tempfile::TempDir) -> (Node, Node) {
    let first = Node::leader(&root.path().join("a"), SIZES);
    let second = Node::follower(&root.path().join("b"), &first, &[]);
    set(&first, 0..20, "before");
    wait_in_sync(&first, &second);
    (first, second)
}

/// A write that is sent now and answered later.
fn write_later(node: &Node) -> Client {
    let mut client = node.client();
    client.send(b"*3\r\n$3\r\nSET\r\n$5\r\nlater\r\n$1\r\nx\r\n").expect("sent");
    client
}

fn wait_for_end(node: &Node) -> String {
    wait_until("the hand-over ends", PATIENCE, || info(node, "master_failover_state") == "no-failover");
    info(node, "slotstream_last_failover")
}

#[test]
fn writes_wait_for_a_slow_order_and_are_then_refused() {
    let root = tempfile::tempdir().expect("temp dir");
    let (first, second) = pair(&root);
    let proxy = Proxy::start(second.ports.listen, Order::Late);
    proxy.fail_over(&first);
    let go_on = proxy.wait();
    assert_eq!(info(&first, "master_failover_state"), "failover-in-progress");
    let busy = first.client().call(&["FAILOVER"]).text();
    assert_eq!(busy, "ERR FAILOVER already in progress.");
    let late = first.client().call(&["FAILOVER", "ABORT"]).text();
    assert_eq!(late, "ERR FAILOVER is past the point where it can be aborted.");
    assert_eq!(replicaof(&first, &second), "ERR REPLICAOF not allowed while failing over.");
    let mut writer = write_later(&first);
    assert_eq!(first.client().call(&["GET", "key-1"]).text(), "before", "reads do not wait");
    drop(go_on);
    assert!(writer.reply().expect("a reply").text().starts_with("READONLY"));
    let ended = wait_for_end(&first);
    assert!(ended.starts_with("done, "), "{ended}");
    assert_leads(&second, true);
    assert_leads(&first, false);
    wait_in_sync(&second, &first);
}

#[test]
fn an_order_whose_answer_is_lost_is_asked_after() {
    let root = tempfile::tempdir().expect("temp dir");
    let (first, second) = pair(&root);
    let proxy = Proxy::start(second.ports.listen, Order::Unanswered);
    proxy.fail_over(&first);
    drop(proxy.wait());
    let ended = wait_for_end(&first);
    assert!(ended.starts_with("done, "), "{ended}");
    assert_leads(&second, true);
    wait_in_sync(&second, &first);
}

/// The follower dies before the order, and comes back: it cannot have been told, so the leader goes on.
#[test]
fn a_follower_that_was_started_anew_was_not_told() {
    let root = tempfile::tempdir().expect("temp dir");
    let (first, mut second) = pair(&root);
    let proxy = Proxy::start(second.ports.listen, Order::Lost);
    proxy.fail_over(&first);
    let go_on = proxy.wait();
    let mut writer = write_later(&first);
    second.kill();
    second.restart();
    drop(go_on);
    assert_eq!(writer.reply().expect("a reply"), Reply::Simple("OK".to_owned()), "the write was only late");
    let ended = wait_for_end(&first);
    assert!(ended.contains("was started anew and follows"), "{ended}");
    assert_leads(&first, true);
    wait_in_sync(&first, &second);
    assert_leads(&second, false);
    assert_eq!(first.metric("slotstream_switchovers_total"), 1.0);
    assert!(first.metric("slotstream_switchover_pause_seconds") > 0.0);
}

/// Nobody can say whether the follower leads: the leader must not, or both would.
#[test]
fn a_leader_that_hears_nothing_does_not_lead() {
    let root = tempfile::tempdir().expect("temp dir");
    let (first, second) = pair(&root);
    let proxy = Proxy::start(second.ports.listen, Order::Lost);
    proxy.fail_over(&first);
    let go_on = proxy.wait();
    proxy.is_closed.store(true, Ordering::Relaxed);
    drop(go_on);
    let ended = wait_for_end(&first);
    assert!(ended.contains("promote one of the two"), "{ended}");
    assert_leads(&first, false);
    assert_leads(&second, false);
    proxy.is_closed.store(false, Ordering::Relaxed);
    wait_until("it is said", PATIENCE, || first.log().contains("nobody leads"));
    // Either may be promoted.
    let promoted = second.client().call(&["REPLICAOF", "NO", "ONE"]).text();
    assert_eq!(promoted, "OK");
    wait_in_sync(&second, &first);
    assert_leads(&second, true);
    set(&second, 20..30, "after");
    wait_in_sync(&second, &first);
}

#[test]
fn a_client_may_give_up_a_hand_over_that_waits() {
    let root = tempfile::tempdir().expect("temp dir");
    let first = Node::leader(&root.path().join("a"), SIZES);
    let second = Node::follower(&root.path().join("b"), &first, &["--shards", "0"]);
    wait_in_sync(&first, &second);
    assert_eq!(
        first.client().call(&["FAILOVER"]).text(),
        "ERR FAILOVER requires a replica that streams every shard."
    );
    let port = second.ports.listen.port().to_string();
    let mut admin = first.client();
    assert_eq!(admin.call(&["FAILOVER", "TO", "127.0.0.1", &port, "TIMEOUT", "60000"]).text(), "OK");
    assert_eq!(info(&first, "master_failover_state"), "waiting-for-sync");
    set(&first, 0..5, "writes do not wait yet");
    assert_eq!(admin.call(&["FAILOVER", "ABORT"]).text(), "OK");
    let ended = wait_for_end(&first);
    assert!(ended.ends_with("a client sent FAILOVER ABORT"), "{ended}");
    assert_leads(&first, true);
}

/// Without TO the leader picks one that is fit.
#[test]
fn a_leader_finds_its_successor() {
    let root = tempfile::tempdir().expect("temp dir");
    let (first, second) = pair(&root);
    let partial = Node::follower(&root.path().join("c"), &first, &["--shards", "1"]);
    wait_in_sync(&first, &partial);
    assert_eq!(first.client().call(&["FAILOVER"]).text(), "OK");
    wait_for_end(&first);
    assert_leads(&second, true);
    assert_leads(&partial, false);
    wait_in_sync(&second, &first);
    wait_until("the partial follower moves, too", PATIENCE, || {
        info(&partial, "master_port") == second.ports.listen.port().to_string()
    });
}
