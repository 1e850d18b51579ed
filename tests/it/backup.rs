//! Backups of running leaders, and data directories made of them: equal to the leader's, a prefix under load,
//! small where little changed, refused where anything is missing or damaged.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use slotstream::backup::Place;

use crate::disk::{Kind, Mount};
use crate::harness::{
    Client, Node, PATIENCE, Reply, assert_equal, command, encode, run_command, stderr, stdout, wait_in_sync,
    wait_until,
};

const SIZES: &[&str] = &["--shard-count", "2", "--key-size", "16", "--value-size", "64"];

/// A backup or a restore moves megabytes, on a machine that may be busy.
const LONG: Duration = Duration::from_secs(120);

fn backup(leader: &Node, to: &Path, since: Option<&Path>) -> Output {
    let mut command = command(&["backup"]);
    command.arg(leader.replication().to_string()).arg("--to").arg(to);
    if let Some(since) = since {
        command.arg("--since").arg(since);
    }
    run_command(&mut command, LONG)
}

fn restore(backups: &[&Path], to: &Path) -> Output {
    run_command(command(&["restore"]).args(backups).arg("--to").arg(to), LONG)
}

#[track_caller]
fn assert_good(output: &Output) -> String {
    assert!(output.status.success(), "{}{}", stdout(output), stderr(output));
    stdout(output)
}

#[track_caller]
fn assert_refused(output: &Output, why: &str) {
    assert_eq!(output.status.code(), Some(1), "{}", stdout(output));
    assert!(stderr(output).contains(why), "{why:?} is not in {}", stderr(output));
}

/// Bytes that do not pack well, other ones for each number.
fn value(number: u64) -> String {
    let mut word = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = |_| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        format!("{word:016x}")
    };
    (0..4).map(next).collect()
}

/// Sets `key:N` for each number, to a value of `version`, in pipelines.
fn fill(client: &mut Client, numbers: impl Iterator<Item = u64>, version: u64) {
    let numbers: Vec<u64> = numbers.collect();
    for chunk in numbers.chunks(500) {
        let mut request = Vec::new();
        for number in chunk {
            let (key, value) = (format!("key:{number}"), value(number + (version << 32)));
            encode(&mut request, &[b"SET", key.as_bytes(), value.as_bytes()]);
        }
        client.send(&request).expect("sends");
        for _ in chunk {
            assert_eq!(client.reply().expect("a reply").text(), "OK");
        }
    }
}

fn manifest(backup: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(backup.join("manifest.json")).expect("a manifest");
    serde_json::from_str(&text).expect("JSON")
}

fn file_bytes(backup: &Path) -> u64 {
    let shards = manifest(backup)["shards"].as_array().expect("a list").clone();
    shards.iter().map(|shard| shard["contents"]["file_bytes"].as_u64().expect("a number")).sum()
}

#[test]
fn a_restored_directory_equals_the_leaders_follows_with_a_delta_and_leads() {
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let mut leader = Node::leader(&at("leader"), SIZES);
    let mut client = leader.client();
    fill(&mut client, 0..3_000, 0);
    fill(&mut client, 0..1_000, 1);
    for number in 500..600 {
        assert_eq!(client.call(&["DEL", &format!("key:{number}")]), Reply::Integer(1));
    }
    assert_eq!(client.call(&["PEXPIRE", "key:0", "3600000"]), Reply::Integer(1));
    let said = assert_good(&backup(&leader, &at("full"), None));
    assert!(said.contains("full backup") && said.contains("2 shards"), "{said}");
    // Deletions and new writes since, which the second one carries; the third one carries nothing.
    for number in 600..700 {
        assert_eq!(client.call(&["DEL", &format!("key:{number}")]), Reply::Integer(1));
    }
    fill(&mut client, 2_900..3_100, 2);
    assert_good(&backup(&leader, &at("second"), Some(&at("full"))));
    assert_good(&backup(&leader, &at("third"), Some(&at("second"))));
    assert_eq!(file_bytes(&at("third")), 0);
    assert_good(&restore(&[&at("full")], &at("old")));
    let said = assert_good(&restore(&[&at("full"), &at("second"), &at("third")], &at("restored")));
    assert!(said.contains("restored 2,900 records"), "{said}");
    assert_good(&restore(&[&at("full"), &at("second")], &at("promoted")));
    assert!(leader.terminate().0.success());
    assert_equal(&leader.directory, &at("restored"));
    let differs = run_command(command(&["verify"]).arg(&leader.directory).arg(at("old")), PATIENCE);
    assert_eq!(differs.status.code(), Some(1), "{}", stdout(&differs));

    // As a follower it gets what changed since, and nothing else.
    leader.restart();
    fill(&mut leader.client(), 0..10, 3);
    let mut follower = Node::follower(&at("restored"), &leader, &[]);
    wait_in_sync(&leader, &follower);
    assert_eq!(leader.metric("slotstream_full_scans_total"), 0.0);
    let records = follower.metric("slotstream_records_applied_total");
    assert!(records < 100.0, "{records} records came");
    assert!(leader.terminate().0.success() && follower.terminate().0.success());
    assert_equal(&leader.directory, &at("restored"));

    // As a leader it takes a new epoch, and its own followers.
    let promoted = Node::leader(&at("promoted"), &["--promote"]);
    let mut client = promoted.client();
    assert_eq!(client.call(&["DBSIZE"]), Reply::Integer(2_900));
    assert_eq!(client.call(&["GET", "key:3050"]).text(), value(3050 + (2 << 32)));
    assert_eq!(client.call(&["GET", "key:650"]), Reply::Nil);
    let Reply::Integer(ttl) = client.call(&["PTTL", "key:0"]) else { panic!("no number") };
    assert!((1..=3_600_000).contains(&ttl), "{ttl}");
    assert_eq!(client.call(&["SET", "key:0", "new"]).text(), "OK");
    let follower = Node::follower(&at("again"), &promoted, &[]);
    wait_in_sync(&promoted, &follower);
    assert_eq!(follower.client().call(&["GET", "key:0"]).text(), "new");
}

/// One client that increments two counters, one after the other, until told to stop.
fn count_both(address: std::net::SocketAddr, stop: &AtomicBool) {
    let mut client = Client::connect(address);
    let mut request = Vec::new();
    for _ in 0..50 {
        encode(&mut request, &[b"INCR", b"first"]);
        encode(&mut request, &[b"INCR", b"second"]);
    }
    while !stop.load(Relaxed) {
        client.send(&request).expect("sends");
        for _ in 0..100 {
            assert!(matches!(client.reply().expect("a reply"), Reply::Integer(_)));
        }
    }
}

#[test]
fn heavy_a_backup_under_load_is_a_state_that_the_leader_had() {
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: String| directory.path().join(name);
    // A ring that overflows, so that the stream is cut by scans too.
    let sizes = ["--shard-count", "1", "--key-size", "16", "--value-size", "64", "--ring-size", "4KiB"];
    let leader = Node::leader(&at("leader".into()), &sizes);
    let mut client = leader.client();
    // The counters' slots lie far apart: the scan passes one long before the other.
    assert_eq!(client.call(&["SET", "first", "0"]).text(), "OK");
    fill(&mut client, 0..20_000, 0);
    assert_eq!(client.call(&["SET", "second", "0"]).text(), "OK");
    let stop = AtomicBool::new(false);
    let mut chain: Vec<PathBuf> = Vec::new();
    let mut before = 0;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| count_both(leader.ports.listen, &stop));
        for round in 0..4 {
            let to = at(format!("backup-{round}"));
            let output = backup(&leader, &to, chain.last().map(PathBuf::as_path));
            chain.push(to);
            let names: Vec<&Path> = chain.iter().map(PathBuf::as_path).collect();
            let restored = at(format!("restored-{round}"));
            let restored_output = restore(&names, &restored);
            if round == 3 || !output.status.success() || !restored_output.status.success() {
                stop.store(true, Relaxed);
            }
            assert_good(&output);
            assert_good(&restored_output);
            let node = Node::leader(&restored, &["--promote"]);
            let mut client = node.client();
            let mut counter = |key| -> u64 { client.call(&["GET", key]).text().parse().expect("a number") };
            let (first, second) = (counter("first"), counter("second"));
            let is_prefix = first == second || first == second + 1;
            if !is_prefix || second < before {
                stop.store(true, Relaxed);
            }
            assert!(is_prefix, "round {round}: {first} and {second} never were at one time");
            assert!(second >= before, "round {round}: {second} is older than {before}");
            before = second;
        }
        writer.join().expect("the writer ends");
    });
    assert!(before > 0, "nothing was counted");
}

#[test]
fn an_incremental_of_one_percent_is_a_fiftieth_of_the_full_one_at_most() {
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let mut leader = Node::leader(&at("leader"), SIZES);
    let mut client = leader.client();
    fill(&mut client, 0..20_000, 0);
    assert_good(&backup(&leader, &at("full"), None));
    fill(&mut client, (0..200).map(|number| number * 97), 1);
    assert_good(&backup(&leader, &at("more"), Some(&at("full"))));
    let (full, more) = (file_bytes(&at("full")), file_bytes(&at("more")));
    assert!(more > 0 && more * 50 <= full, "{more} of {full} bytes");
    assert_good(&restore(&[&at("full"), &at("more")], &at("restored")));
    assert!(leader.terminate().0.success());
    assert_equal(&leader.directory, &at("restored"));
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let leader = Node::leader(&at("leader"), SIZES);
    let mut client = leader.client();
    fill(&mut client, 0..100, 0);
    assert_good(&backup(&leader, &at("full"), None));
    for (version, name, since) in [(1, "one", "full"), (2, "two", "one"), (3, "other", "full")] {
        fill(&mut client, 0..100, version);
        assert_good(&backup(&leader, &at(name), Some(&at(since))));
    }
    let to = at("to");
    assert_refused(&restore(&[&at("full"), &at("two")], &to), "a backup is missing");
    assert_refused(&restore(&[&at("full"), &at("one"), &at("other")], &to), "a backup is missing");
    assert_refused(&restore(&[&at("full"), &at("full")], &to), "none (it is a full one)");
    assert_refused(&restore(&[&at("one")], &to), "name the full one first");
    assert_refused(&restore(&[&leader.directory], &to), "no manifest.json");
    assert!(!to.exists(), "a refused restore made the directory");
    assert_refused(&restore(&[&at("full")], &at("one")), "wants an empty directory");
    assert_refused(&backup(&leader, &at("one"), None), "holds a backup already");
    assert_refused(&backup(&leader, &leader.directory, None), "a directory of its own");
    // Another store, and nobody at all.
    let mut stranger = Node::leader(&at("stranger"), SIZES);
    assert_refused(&backup(&stranger, &at("x"), Some(&at("full"))), "is a backup of store");
    assert!(stranger.terminate().0.success());
    assert_refused(&backup(&stranger, &at("x"), None), "refused");
    // A follower's stream has no order: it says who has.
    let follower = Node::follower(&at("follower"), &leader, &[]);
    wait_in_sync(&leader, &follower);
    let wanted = format!("its leader is at {}", leader.replication());
    assert_refused(&backup(&follower, &at("x"), None), &wanted);
    // A shard's file is gone, or is another one.
    let damaged = at("full");
    std::fs::rename(damaged.join("0000.backup"), damaged.join("gone")).expect("renames");
    assert_refused(&restore(&[&damaged], &to), "0000.backup");
    std::fs::copy(damaged.join("0001.backup"), damaged.join("0000.backup")).expect("copies");
    assert_refused(&restore(&[&damaged], &to), "0000.backup");
    assert!(!to.join("shards").exists(), "a refused restore left a store");
    std::fs::rename(damaged.join("gone"), damaged.join("0000.backup")).expect("renames");
    assert_good(&restore(&[&damaged], &to));
}

/// A backup that silently lacks a record is worse than none.
#[test]
fn a_damaged_slot_ends_a_backup_with_its_place_and_what_helps() {
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let mut leader = Node::leader(&at("leader"), SIZES);
    for number in 0..100 {
        let key = format!("key:{number}");
        assert_eq!(leader.client().call(&["SET", &key, "precious"]).text(), "OK");
    }
    assert!(leader.terminate().0.success());
    let file = leader.directory.join("shards/0001.slots");
    let mut bytes = std::fs::read(&file).expect("a shard file");
    // Not the redo record, which comes first, and not the last write, which that would heal.
    let values = bytes.windows(8).enumerate().filter(|(_, window)| *window == b"precious");
    let in_a_value = values.map(|(position, _)| position).nth(10).expect("a record");
    bytes[in_a_value] ^= 1;
    std::fs::write(&file, &bytes).expect("written");
    leader.restart();
    let to = at("to");
    let output = backup(&leader, &to, None);
    assert_refused(&output, "shard 1: leader refuses: shard 1: slot ");
    assert!(stderr(&output).contains("heals when its key is written or deleted"), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(&to).expect("lists").count(), 0);
    // A follower is told, too.
    let follower = Node::follower(&at("follower"), &leader, &[]);
    wait_until("the follower knows why", PATIENCE, || {
        follower.status()["shards"].to_string().contains("heals when its key is written or deleted")
    });
    let mut client = leader.client();
    let keys = (0..100).map(|number| format!("key:{number}"));
    let is_bad = |key: &String| matches!(client.call(&["GET", key]), Reply::Error(_));
    let bad: Vec<String> = keys.filter(is_bad).collect();
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert_eq!(leader.client().call(&["SET", &bad[0], "again"]).text(), "OK");
    assert_good(&backup(&leader, &to, None));
    wait_in_sync(&leader, &follower);
    assert_good(&restore(&[&to], &at("restored")));
    assert!(leader.terminate().0.success());
    assert_equal(&leader.directory, &at("restored"));
}

#[test]
fn object_storage_is_refused_where_it_is_not_built_in_or_has_no_place() {
    let directory = tempfile::tempdir().expect("temp dir");
    let s3 = Path::new("s3://bucket/place");
    let output = restore(&[directory.path()], s3);
    assert_refused(&output, "wanted a directory of this machine");
    if !cfg!(feature = "s3") {
        for output in [
            run_command(command(&["backup", "127.0.0.1:1", "--to"]).arg(s3), PATIENCE),
            restore(&[s3], &directory.path().join("to")),
        ] {
            assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
            assert!(stderr(&output).contains("build it with `--features s3`"), "{}", stderr(&output));
        }
    }
}

#[test]
fn what_is_no_leader_is_told_once_and_in_words_of_the_command() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("leader"), SIZES);
    let to = directory.path().join("to");
    for (port, wanted) in [(leader.ports.listen, "RESP port"), (leader.ports.http_listen, "metrics port")] {
        let mut command = command(&["backup", &port.to_string(), "--to"]);
        let output = run_command(command.arg(&to), PATIENCE);
        assert_refused(&output, wanted);
        let text = stderr(&output);
        assert_eq!(text.matches(wanted).count(), 1, "{text}");
        assert!(!text.contains("--leader"), "{text}");
    }
    assert!(!to.exists(), "a refused backup made the directory");
}

#[test]
fn a_base_with_writes_that_the_leader_never_had_is_refused() {
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let mut leader = Node::leader(&at("leader"), SIZES);
    let mut follower = Node::follower(&at("follower"), &leader, &[]);
    fill(&mut leader.client(), 0..100, 0);
    wait_in_sync(&leader, &follower);
    assert_good(&backup(&leader, &at("shared"), None));
    assert!(follower.terminate().0.success());
    fill(&mut leader.client(), 0..100, 1);
    assert_good(&backup(&leader, &at("ahead"), None));
    leader.kill();
    let promoted = Node::leader(&follower.directory, &["--promote"]);
    assert_refused(&backup(&promoted, &at("x"), Some(&at("ahead"))), "take a full backup");
    assert_good(&backup(&promoted, &at("x"), Some(&at("shared"))));
    // The old leader is not told of the newer epoch: that is for followers to do.
    leader.restart();
    assert_refused(&backup(&leader, &at("y"), Some(&at("x"))), "another one has replaced it");
    assert_eq!(leader.client().call(&["SET", "k", "v"]).text(), "OK");
}

#[test]
fn a_backup_is_no_follower_to_those_who_wait_for_one() {
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let mut arguments = SIZES.to_vec();
    arguments.extend(["--scan-rate-max", "64KiB"]);
    let leader = Node::leader(&at("leader"), &arguments);
    let mut client = leader.client();
    fill(&mut client, 0..10_000, 0);
    let mut command = command(&["backup"]);
    command.arg(leader.replication().to_string()).arg("--to").arg(at("to"));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    let links = || leader.status()["links"].as_array().map_or(0, Vec::len);
    wait_until("the backup is attached", PATIENCE, || links() == 2);
    assert_eq!(client.call(&["SET", "k", "v"]).text(), "OK");
    assert_eq!(client.call(&["WAIT", "1", "300"]), Reply::Integer(0));
    assert!(child.try_wait().expect("a child of ours").is_none(), "the backup was too fast for this test");
    child.kill().expect("a child of ours can be killed");
    child.wait().expect("a killed child ends");
}

#[test]
fn heavy_a_killed_backup_leaves_no_manifest_and_is_begun_again() {
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let leader = Node::leader(&at("leader"), SIZES);
    fill(&mut leader.client(), 0..30_000, 0);
    let (mut killed, mut whole) = (0, 0);
    for round in 0..20_u64 {
        let to = at("to");
        let mut command = command(&["backup"]);
        command.arg(leader.replication().to_string()).arg("--to").arg(&to);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
        // Each round comes a little further; how far is the machine's to say, and any point will do.
        let pause = Duration::from_millis(round * 8);
        std::thread::sleep(pause);
        child.kill().expect("a child of ours can be killed");
        let was_done = child.wait().expect("a killed child ends").success();
        if was_done || to.join("manifest.json").exists() {
            whole += 1;
        } else {
            killed += 1;
            let refused = restore(&[&to], &at("restored"));
            assert_eq!(refused.status.code(), Some(1), "an unfinished backup was restored");
            assert_good(&backup(&leader, &to, None));
        }
        assert_good(&restore(&[&to], &at("restored")));
        std::fs::remove_dir_all(at("restored")).expect("removes");
        std::fs::remove_dir_all(&to).expect("removes");
    }
    eprintln!("{killed} killed, {whole} were whole before that");
    assert!(killed > 0, "no backup was killed before it was whole");
}

fn a_backup_and_a_restore_on_a_full_disk(kind: Kind) {
    let Some(mount) = Mount::new(kind, 2) else { return };
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("leader"), SIZES);
    fill(&mut leader.client(), 0..50_000, 0);
    // What a full disk holds of a backup is nothing: its space is given back.
    let (to, small) = (directory.path().join("to"), mount.directory.join("small"));
    assert_refused(&backup(&leader, &small, None), "No space left");
    assert_eq!(std::fs::read_dir(&small).expect("lists").count(), 0);
    assert_good(&backup(&leader, &to, None));
    assert_refused(&restore(&[&to], &small), "o space");
    assert!(!small.join("shards").exists() && !small.join("restoring").exists(), "half a store is left");
    assert_good(&restore(&[&to], &directory.path().join("restored")));
    assert_eq!(leader.client().call(&["DBSIZE"]), Reply::Integer(50_000));
}

#[test]
fn a_backup_and_a_restore_on_a_full_tmpfs() {
    a_backup_and_a_restore_on_a_full_disk(Kind::Tmpfs);
}

#[test]
fn a_backup_and_a_restore_on_a_full_ext4() {
    a_backup_and_a_restore_on_a_full_disk(Kind::Ext4);
}

#[test]
fn every_damaged_byte_of_a_backup_is_found_before_there_is_a_store() {
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let leader =
        Node::leader(&at("leader"), &["--shard-count", "1", "--key-size", "16", "--value-size", "64"]);
    assert_eq!(leader.client().call(&["SET", "k", "value"]).text(), "OK");
    let good = at("good");
    assert_good(&backup(&leader, &good, None));
    let to = at("to");
    for name in ["0000.backup", "manifest.json"] {
        let path = good.join(name);
        let bytes = std::fs::read(&path).expect("reads");
        for place in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[place] ^= 0x20;
            std::fs::write(&path, &bad).expect("writes");
            let found = slotstream::backup::restore(&[Place::from(&*good)], &to);
            let error = found.expect_err("damage is found").to_string();
            assert!(error.contains(name), "byte {place} of {name}: {error}");
            assert!(!to.join("shards").exists() && !to.join("restoring").exists(), "half a store is left");
        }
        std::fs::write(&path, &bytes).expect("writes");
    }
    slotstream::backup::restore(&[Place::from(&*good)], &to).expect("what is whole is restored");
}
