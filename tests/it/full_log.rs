//! A log on a full disk: writes are refused by name, reads go on, also over restarts and changes of role; nothing is lost,
//! and writes are taken again once there is space. On a small ext4 image.

use std::path::PathBuf;
use std::process::Command;

use crate::disk::{Kind, Mount};
use crate::harness::{Client, Node, PATIENCE, Reply, encode, poll, wait_in_sync, wait_until};

const SIZES: &[&str] = &["--shard-count", "1", "--key-size", "16", "--value-size", "60000"];
const LOG: &[&str] = &["--wal-segment-size", "128KiB", "--wal-size-max", "8MiB"];
const KEYS: u64 = 50;

fn value(number: u64) -> String {
    format!("{number:0>60000}")
}

fn set(client: &mut Client, number: u64) -> Reply {
    client.call(&["SET", &format!("key:{number}"), &value(number)])
}

/// What WAITAOF says of a node without followers.
fn durable() -> Reply {
    Reply::Array(vec![Reply::Integer(1), Reply::Integer(0)])
}

/// A leader on a small disk, with all keys set.
struct Stage {
    mount: Mount,
    leader: Node,
    level: &'static str,
}

impl Stage {
    fn new(level: &'static str) -> Option<Self> {
        let mount = Mount::new(Kind::Ext4, 24)?;
        let leader = Node::leader(&mount.directory, &[SIZES, LOG, &["--durability", level]].concat());
        let mut client = leader.client();
        (0..KEYS).for_each(|number| assert_eq!(set(&mut client, number).text(), "OK"));
        Some(Self { mount, leader, level })
    }

    fn filler(&self) -> PathBuf {
        self.mount.directory.join("filler")
    }

    /// Takes all that is left of the disk, but for less than the log's next file; with nothing on its way there.
    fn fill_disk(&self) {
        if self.leader.metric("slotstream_wal_takes_changes") > 0.0 {
            let mut client = self.leader.client();
            assert_eq!(set(&mut client, 0).text(), "OK");
            let Reply::Array(found) = client.call(&["WAITAOF", "1", "0", "60000"]) else {
                panic!("no array")
            };
            assert_eq!(found[0], Reply::Integer(1));
        }
        let words = ["if=/dev/zero".to_owned(), format!("of={}", self.filler().display()), "bs=64K".into()];
        let filled = Command::new("dd").args(words).output().expect("dd");
        assert!(!filled.status.success(), "the disk is not full");
    }

    fn free_disk(&self) {
        std::fs::remove_file(self.filler()).expect("the filler goes");
    }

    /// Writes what all keys have already, until a write is refused; says how.
    ///
    /// Two files go round for as long as a checkpoint frees one; so many writes at once need more of them. Where the log
    /// comes first a client has one write at a time under way.
    fn write_until_refused(&self) -> String {
        let writers = if self.level == "always" { 100 } else { 1 };
        let mut pipeline = Vec::new();
        for number in (0..200 / writers).map(|number| number % KEYS) {
            let (key, value) = (format!("key:{number}"), value(number));
            encode(&mut pipeline, &[b"SET", key.as_bytes(), value.as_bytes()]);
        }
        let mut clients: Vec<_> = (0..writers).map(|_| self.leader.client()).collect();
        let mut refused = None;
        wait_until("a full disk refuses writes", PATIENCE, || {
            clients.iter_mut().for_each(|client| client.send(&pipeline).expect("writes are sent"));
            for client in &mut clients {
                for _ in 0..200 / writers {
                    match client.reply().expect("every write is answered") {
                        Reply::Simple(_) => {}
                        Reply::Error(error) => refused = Some(error),
                        other => panic!("{other:?}"),
                    }
                }
            }
            refused.is_some()
        });
        refused.expect("a refusal")
    }

    fn assert_held(&self) {
        let mut client = self.leader.client();
        for number in 0..KEYS {
            assert_eq!(client.call(&["GET", &format!("key:{number}")]).text(), value(number), "key:{number}");
        }
    }

    fn wait_for_writes(&self) {
        let mut client = self.leader.client();
        wait_until("writes are taken again", PATIENCE, || matches!(set(&mut client, 0), Reply::Simple(_)));
        let Reply::Array(found) = client.call(&["WAITAOF", "1", "0", "0"]) else { panic!("no array") };
        assert_eq!(found[0], Reply::Integer(1));
    }
}

fn assert_refusal(refused: &str) {
    assert!(
        refused.starts_with("MISCONF") && refused.contains("log") && refused.contains("space"),
        "{refused}"
    );
    assert!(!refused.contains("slot"), "slots there are: {refused}");
}

fn full_disk(level: &'static str) {
    let Some(mut stage) = Stage::new(level) else { return };
    stage.fill_disk();
    assert_refusal(&stage.write_until_refused());
    stage.assert_held();
    // While there is no space at all: it may go round with what it has after that.
    let is_told = poll(PATIENCE, || {
        let (ready, lines) = stage.leader.get("/readyz?verbose");
        let (leads, why) = stage.leader.get("/leader");
        assert_eq!((ready, stage.leader.get("/livez").0), (200, 200), "reads are served");
        stage.write_until_refused();
        lines.contains("[!]log has no space") && leads == 503 && why.contains("no space")
    });
    assert!(is_told, "{:?} {:?}", stage.leader.get("/readyz?verbose"), stage.leader.get("/leader"));
    let (_, metrics) = stage.leader.get("/metrics");
    let refused =
        metrics.lines().find(|line| line.starts_with("slotstream_write_rejected_total{reason=\"log\"}"));
    assert!(refused.is_some_and(|line| level == "always" || !line.ends_with(" 0")), "{refused:?}");
    assert!(
        stage.leader.log().contains("the log has no space: writes are refused"),
        "{}",
        stage.leader.log()
    );
    // Killed and started again on the full disk: for reads at least.
    stage.leader.kill();
    stage.leader.restart();
    stage.assert_held();
    assert_refusal(&stage.write_until_refused());
    stage.assert_held();
    // Stopped in order there: nothing that was answered is lost, and it says what else is.
    let (status, _) = stage.leader.terminate();
    let was_given_up = stage.leader.log().contains("given up");
    assert_eq!(status.code(), Some(i32::from(was_given_up)), "{}", stage.leader.log());
    assert!(level == "always" || !was_given_up, "{}", stage.leader.log());
    stage.leader.restart();
    stage.assert_held();
    stage.free_disk();
    stage.wait_for_writes();
    assert_eq!(stage.leader.get("/leader").0, 200);
    stage.leader.kill();
    stage.leader.restart();
    stage.assert_held();
    assert!(stage.leader.terminate().0.success());
}

#[test]
fn a_log_on_a_full_disk_refuses_writes_until_there_is_space_also_over_restarts() {
    full_disk("interval");
}

#[test]
fn a_log_that_comes_first_refuses_writes_on_a_full_disk_until_there_is_space_also_over_restarts() {
    full_disk("always");
}

#[test]
fn a_checkpoint_on_a_full_disk_frees_what_the_log_needs() {
    let Some(mut stage) = Stage::new("interval") else { return };
    stage.fill_disk();
    let before = stage.leader.metric("slotstream_wal_checkpoints_total");
    let mut client = stage.leader.client();
    for number in 0..4 * KEYS {
        // One after another: the log's two files are enough.
        assert_eq!(set(&mut client, number % KEYS).text(), "OK", "write {number}");
        assert_eq!(client.call(&["WAITAOF", "1", "0", "60000"]), durable(), "write {number}");
    }
    assert!(stage.leader.metric("slotstream_wal_checkpoints_total") > before);
    stage.leader.kill();
    stage.leader.restart();
    stage.assert_held();
}

#[test]
fn a_store_without_a_log_starts_on_a_full_disk_and_gets_one_when_there_is_space() {
    let Some(mut stage) = Stage::new("none") else { return };
    stage.fill_disk();
    assert!(stage.leader.terminate().0.success());
    stage.leader = Node::leader(&stage.mount.directory, &[SIZES, LOG].concat());
    stage.assert_held();
    let mut client = stage.leader.client();
    assert_refusal(&set(&mut client, 0).text());
    assert_eq!(stage.leader.status()["log"]["state"], "no_space");
    stage.free_disk();
    stage.wait_for_writes();
    stage.leader.kill();
    stage.leader.restart();
    stage.assert_held();
    assert!(stage.leader.terminate().0.success());
}

#[test]
fn a_leader_without_space_hands_over_or_refuses_to_and_serves_on() {
    for level in ["interval", "always"] {
        let Some(mut stage) = Stage::new(level) else { return };
        let directory = tempfile::tempdir().expect("temp dir");
        let follower = Node::follower(&directory.path().join("follower"), &stage.leader, &[]);
        wait_in_sync(&stage.leader, &follower);
        stage.fill_disk();
        assert_refusal(&stage.write_until_refused());
        let [ours, theirs] = [&stage.leader, &follower].map(|node| node.ports.listen.port().to_string());
        let asked = stage.leader.client().call(&["FAILOVER", "TO", "127.0.0.1", &theirs]);
        wait_until("the hand-over is over", PATIENCE, || {
            let info = stage.leader.client().call(&["INFO", "replication"]).text();
            info.contains("master_failover_state:no-failover")
        });
        stage.assert_held();
        let is_handed_over = stage.leader.status()["role"] == "follower";
        assert_eq!(is_handed_over, follower.status()["role"] == "leader", "{level}: {asked:?}");
        if !is_handed_over {
            // Nor does it follow by order what it cannot keep: it goes on as it is.
            let told = stage.leader.client().call(&["REPLICAOF", "127.0.0.1", &theirs]);
            assert!(matches!(&told, Reply::Error(_)), "{told:?}");
            assert_eq!(stage.leader.get("/livez").0, 200, "{ours}");
            stage.free_disk();
            stage.wait_for_writes();
            wait_in_sync(&stage.leader, &follower);
            let asked = stage.leader.client().call(&["FAILOVER", "TO", "127.0.0.1", &theirs]);
            assert_eq!(asked.text(), "OK");
            wait_until("it is handed over", PATIENCE, || stage.leader.status()["role"] == "follower");
        } else {
            stage.free_disk();
        }
        let mut client = follower.client();
        wait_until("the new leader takes writes", PATIENCE, || set(&mut client, 1).text() == "OK");
        wait_in_sync(&follower, &stage.leader);
        stage.leader.kill();
        stage.leader.restart();
        wait_in_sync(&follower, &stage.leader);
        stage.assert_held();
    }
}
