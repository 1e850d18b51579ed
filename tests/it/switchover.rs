//! A leader hands over to a follower under load, and is killed at every step of it: no acknowledged write is
//! lost, and nobody waits for ever.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{
    Client, Node, PATIENCE, Reply, assert_equal, command, run_command, stderr, stdout, wait_in_sync,
    wait_until,
};
use crate::roles_at_run_time::{SIZES, assert_leads, info, replicaof, set};

/// Writers, each with keys of its own: `w-k` counts up. What was acknowledged by the leader and a follower
/// (WAIT 1) must never be missing again.
struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Vec<u64>>>,
    acknowledged: Arc<AtomicU64>,
    longest: Arc<Mutex<Duration>>,
}

const KEYS: u64 = 20;

impl Load {
    /// Writes to whichever of the nodes leads.
    fn start(nodes: &[&Node], writers: usize) -> Self {
        let addresses: Vec<_> = nodes.iter().map(|node| node.ports.listen).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let longest = Arc::new(Mutex::new(Duration::ZERO));
        let write = |writer: usize| {
            let (addresses, stop, acknowledged, longest) =
                (addresses.clone(), Arc::clone(&stop), Arc::clone(&acknowledged), Arc::clone(&longest));
            move || {
                let mut held = vec![0; usize::try_from(KEYS).expect("small")];
                let (mut at, mut client, mut value) = (0, None, 0_u64);
                let mut good_at = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    value += 1;
                    let key = value % KEYS;
                    if client.is_none() {
                        client = Client::try_connect(addresses[at]).ok();
                    }
                    let is_held = client.as_mut().is_some_and(|client| put(client, writer, key, value));
                    if is_held {
                        held[usize::try_from(key).expect("small")] = value;
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                        let mut longest = longest.lock().expect("no panic");
                        *longest = longest.max(good_at.elapsed());
                        good_at = Instant::now();
                    } else {
                        // Not the leader, or not reachable: the next one.
                        client = None;
                        at = (at + 1) % addresses.len();
                        std::thread::sleep(Duration::from_millis(2));
                    }
                }
                held
            }
        };
        let writers = (0..writers).map(|writer| std::thread::spawn(write(writer))).collect();
        Self { stop, writers, acknowledged, longest }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more writes were acknowledged.
    fn wait_for(&self, more: u64) {
        let start = self.acknowledged();
        wait_until("writes are acknowledged", PATIENCE, || self.acknowledged() >= start + more);
    }

    /// Stops, and checks that `leader` has everything that was acknowledged, or something newer.
    #[track_caller]
    fn check(self, leader: &Node) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let mut client = leader.client();
        for (writer, thread) in self.writers.into_iter().enumerate() {
            for (key, value) in thread.join().expect("a writer").into_iter().enumerate() {
                let found = client.call(&["GET", &format!("{writer}-{key}")]);
                let found = match &found {
                    Reply::Bulk(bytes) => {
                        std::str::from_utf8(bytes).expect("digits").parse().expect("a number")
                    }
                    _ => 0_u64,
                };
                assert!(
                    found >= value,
                    "writer {writer}, key {key}: {value} was acknowledged, {found} is there"
                );
            }
        }
        *self.longest.lock().expect("no panic")
    }
}

/// Whether the write is on the leader and on a follower.
fn put(client: &mut Client, writer: usize, key: u64, value: u64) -> bool {
    let (key, value) = (format!("{writer}-{key}"), value.to_string());
    let set = client.try_call(&[b"SET", key.as_bytes(), value.as_bytes()]);
    if !matches!(set, Ok(Reply::Simple(_))) {
        return false;
    }
    matches!(client.try_call(&[b"WAIT", b"1", b"1000"]), Ok(Reply::Integer(1..)))
}

fn switch(from: &Node, to: &Node) -> std::process::Output {
    let (from, to) = (from.ports.listen.to_string(), to.ports.listen.to_string());
    run_command(&mut command(&["switchover", &from, "--to", &to]), PATIENCE)
}

fn directories(root: &Path) -> [PathBuf; 3] {
    ["a", "b", "c"].map(|name| root.join(name))
}

#[test]
fn ten_switchovers_under_load_lose_nothing() {
    let root = tempfile::tempdir().expect("temp dir");
    let [a, b, c] = directories(root.path());
    let first = Node::leader(&a, SIZES);
    let second = Node::follower(&b, &first, &[]);
    let third = Node::follower(&c, &first, &[]);
    wait_in_sync(&first, &second);
    wait_in_sync(&first, &third);
    let load = Load::start(&[&first, &second], 4);
    let mut pair = [&first, &second];
    for _ in 0..10 {
        load.wait_for(100);
        let output = switch(pair[0], pair[1]);
        assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
        assert!(stdout(&output).contains("leads, "), "{}", stdout(&output));
        print!("{}", stdout(&output));
        pair.reverse();
    }
    load.wait_for(100);
    let longest = load.check(&first);
    println!("longest time without an acknowledged write, over 4 writers: {longest:?}");
    assert_leads(&first, true);
    assert_leads(&second, false);
    assert_eq!(first.metric("slotstream_switchovers_total"), 5.0);
    assert!(first.metric("slotstream_switchover_pause_seconds") > 0.0);
    assert_eq!(first.metric("slotstream_epoch"), 11.0);
    wait_until("the third node follows whoever leads", PATIENCE, || {
        info(&third, "master_port") == first.ports.listen.port().to_string()
    });
    wait_in_sync(&first, &second);
    wait_in_sync(&first, &third);
    for mut node in [third, second, first] {
        assert!(node.terminate().0.success());
    }
    assert_equal(&a, &b);
    assert_equal(&a, &c);
}

#[test]
fn a_promotion_under_load_keeps_what_the_follower_had() {
    let root = tempfile::tempdir().expect("temp dir");
    let [a, b, _] = directories(root.path());
    let mut first = Node::leader(&a, SIZES);
    let second = Node::follower(&b, &first, &[]);
    wait_in_sync(&first, &second);
    let load = Load::start(&[&first], 2);
    load.wait_for(100);
    let refused = run_command(&mut command(&["promote", &second.ports.listen.to_string()]), PATIENCE);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("still leads, and two leaders lose writes"), "{}", stderr(&refused));
    // The leader is gone; every acknowledged write was on the follower, too.
    first.kill();
    let output = run_command(&mut command(&["promote", &second.ports.listen.to_string()]), PATIENCE);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("leads; it followed"), "{}", stdout(&output));
    load.check(&second);
    assert_leads(&second, true);
    let again = run_command(&mut command(&["promote", &second.ports.listen.to_string()]), PATIENCE);
    assert!(again.status.success() && stdout(&again).contains("it did so before"), "{}", stdout(&again));
}

/// A follower that does not run cannot catch up: writes wait for the whole time, then go on.
#[test]
fn a_switchover_that_fails_lets_writes_go_on() {
    let root = tempfile::tempdir().expect("temp dir");
    let [a, b, _] = directories(root.path());
    let first = Node::leader(&a, &[SIZES, &["--dead-after", "30s"]].concat());
    let second = Node::follower(&b, &first, &["--dead-after", "30s"]);
    set(&first, 0..10, "x");
    wait_in_sync(&first, &second);
    let port = second.ports.listen.port().to_string();
    let mut admin = first.client();
    assert_eq!(admin.call(&["FAILOVER", "TO", "127.0.0.1", &port, "TIMEOUT", "60000"]).text(), "OK");
    wait_until("it is done", PATIENCE, || info(&first, "master_failover_state") == "no-failover");
    assert_leads(&second, true);

    // Now back, but the target is stopped as soon as it was asked who it is.
    wait_in_sync(&second, &first);
    first.signal(Signal::STOP);
    set(&second, 20..21, "not yet on the other");
    let refused =
        second.client().call(&["FAILOVER", "TO", "127.0.0.1", &first.ports.listen.port().to_string()]);
    assert!(refused.text().contains("no answer in time"), "{}", refused.text());
    first.signal(Signal::CONT);
    wait_in_sync(&second, &first);
    set(&second, 21..30, "goes on");
    assert_leads(&second, true);
    assert_eq!(info(&second, "master_failover_state"), "no-failover");
}

/// Kills one of the two some way into a switchover; whoever leads in the end has every acknowledged write.
fn killed(victim: usize, after: Duration) {
    let root = tempfile::tempdir().expect("temp dir");
    let [a, b, _] = directories(root.path());
    let first = Node::leader(&a, SIZES);
    let second = Node::follower(&b, &first, &[]);
    wait_in_sync(&first, &second);
    let load = Load::start(&[&first, &second], 2);
    load.wait_for(50);
    let mut nodes = [first, second];
    let port = nodes[1].ports.listen.port().to_string();
    let asked = nodes[0].client().call(&["FAILOVER", "TO", "127.0.0.1", &port]).text();
    assert_eq!(asked, "OK");
    std::thread::sleep(after);
    nodes[victim].kill();
    nodes[victim].restart();
    // The other one may still be asking how it ended.
    let state = |node: &Node| info(node, "master_failover_state");
    wait_until("nobody hands over", PATIENCE, || nodes.iter().all(|node| state(node) == "no-failover"));
    let leads = |node: &Node| info(node, "role") == "master";
    let leaders: Vec<usize> = (0..2).filter(|index| leads(&nodes[*index])).collect();
    let leader = match leaders[..] {
        [leader] => leader,
        // Between the old leader's word that it follows and the new one's that it leads: somebody must say.
        [] => {
            let output =
                run_command(&mut command(&["promote", &nodes[0].ports.listen.to_string()]), PATIENCE);
            assert!(output.status.success(), "{}", stderr(&output));
            assert_eq!(replicaof(&nodes[1], &nodes[0]), "OK");
            0
        }
        _ => panic!("both lead, killed {victim} after {after:?}"),
    };
    load.wait_for(20);
    load.check(&nodes[leader]);
    wait_in_sync(&nodes[leader], &nodes[1 - leader]);
    for node in &mut nodes {
        assert!(node.terminate().0.success());
    }
    assert_equal(&a, &b);
}

#[test]
fn heavy_a_leader_killed_during_a_switchover_loses_nothing() {
    for after_us in [0, 500, 1_000, 2_000, 4_000, 8_000, 20_000] {
        killed(0, Duration::from_micros(after_us));
    }
}

#[test]
fn heavy_a_follower_killed_during_a_switchover_loses_nothing() {
    for after_us in [0, 500, 1_000, 2_000, 4_000, 8_000, 20_000] {
        killed(1, Duration::from_micros(after_us));
    }
}
