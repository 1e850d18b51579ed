//! BGSAVE, SAVE, LASTSAVE: whole backups or none, one at a time, whatever ends one too early.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::disk::{Kind, Mount};
use crate::harness::{
    ANY_PORTS, Client, Node, PATIENCE, Reply, assert_equal, command, encode, poll, run_command, stderr,
    wait_in_sync, wait_until,
};

const SIZES: [&str; 6] = ["--shard-count", "2", "--key-size", "16", "--value-size", "64"];
/// A restore moves megabytes, on a machine that may be busy.
const LONG: Duration = Duration::from_secs(120);

fn leader(at: &Path, backups: &Path, more: &[&str]) -> Node {
    let mut arguments = SIZES.to_vec();
    arguments.extend(["--backup-directory", backups.to_str().expect("a UTF-8 path")]);
    arguments.extend(more);
    Node::leader(at, &arguments)
}

fn fill(client: &mut Client, count: u64) {
    for from in (0..count).step_by(500) {
        let numbers = from..(from + 500).min(count);
        let mut request = Vec::new();
        for number in numbers.clone() {
            let value = format!("{:x}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            encode(&mut request, &[b"SET", format!("key:{number}").as_bytes(), value.as_bytes()]);
        }
        client.send(&request).expect("sends");
        for _ in numbers {
            assert_eq!(client.reply().expect("a reply").text(), "OK");
        }
    }
}

fn info(client: &mut Client, field: &str) -> String {
    let text = client.call(&["INFO", "persistence"]).text();
    let found = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    found.unwrap_or_else(|| panic!("no {field} in {text}")).to_owned()
}

/// What lies in the backups' directory, by name.
fn listed(backups: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(backups).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.file_name().is_some_and(|name| name != "lost+found"));
    paths.sort();
    paths
}

#[track_caller]
fn restore(backup: &Path, to: &Path) {
    let output = run_command(command(&["restore"]).arg(backup).arg("--to").arg(to), LONG);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[track_caller]
fn wait_saved(client: &mut Client) {
    wait_until("the backup has ended", LONG, || info(client, "rdb_bgsave_in_progress") == "0");
}

#[test]
fn bgsave_makes_a_backup_that_is_the_leaders_state() {
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let mut node = leader(&at("leader"), &at("backups"), &["--backups-kept", "2"]);
    let mut client = node.client();
    fill(&mut client, 3_000);
    let Reply::Integer(started) = client.call(&["LASTSAVE"]) else { panic!("no number") };
    assert_eq!(info(&mut client, "rdb_last_bgsave_time_sec"), "-1");
    assert_eq!(client.call(&["SAVE"]).text(), "OK");
    let first = listed(&at("backups"));
    assert_eq!(first.len(), 1, "{first:?}");
    assert_eq!(client.call(&["DEL", "key:7"]), Reply::Integer(1));
    assert_eq!(client.call(&["BGSAVE", "SCHEDULE"]).text(), "Background saving started");
    wait_saved(&mut client);
    fill(&mut client, 100);
    assert_eq!(client.call(&["SAVE"]).text(), "OK");
    let kept = listed(&at("backups"));
    assert_eq!(kept.len(), 2, "{kept:?}");
    assert!(!kept.contains(&first[0]), "the oldest one was kept");
    for (field, wanted) in [("rdb_last_bgsave_status", "ok"), ("rdb_saves", "3"), ("loading", "0")] {
        assert_eq!(info(&mut client, field), wanted, "{field}");
    }
    let Reply::Integer(last) = client.call(&["LASTSAVE"]) else { panic!("no number") };
    assert!(last >= started, "{last} is before {started}");
    assert_eq!(info(&mut client, "rdb_last_save_time"), last.to_string());
    assert_eq!(node.metric("slotstream_backups_total"), 3.0);
    assert_eq!(node.metric("slotstream_backup_last_success_timestamp_seconds").to_string(), last.to_string());
    assert!(node.metric("slotstream_backup_last_bytes") > 0.0);
    assert_eq!(node.status()["backups"]["done"], 3);
    restore(&kept[1], &at("restored"));
    assert!(node.terminate().0.success());
    assert_equal(&node.directory, &at("restored"));
    // A later process knows when the last one was.
    node.restart();
    assert_eq!(node.client().call(&["LASTSAVE"]), Reply::Integer(last));
}

#[test]
fn one_backup_at_a_time_and_an_orderly_stop_leaves_nothing_of_it() {
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let mut node = leader(&at("leader"), &at("backups"), &["--scan-rate-max", "64KiB"]);
    let mut client = node.client();
    fill(&mut client, 20_000);
    assert_eq!(client.call(&["BGSAVE"]).text(), "Background saving started");
    for command in ["BGSAVE", "SAVE"] {
        assert_eq!(client.call(&[command]).text(), "ERR Background save already in progress");
    }
    assert_eq!(info(&mut client, "rdb_bgsave_in_progress"), "1");
    assert_eq!(node.metric("slotstream_backup_in_progress"), 1.0);
    let slots = || node.status()["backups"]["running"]["slots"].as_u64();
    wait_until("/status tells how far it is", PATIENCE, || slots().is_some_and(|slots| slots > 0));
    assert_eq!(client.call(&["SET", "meanwhile", "written"]).text(), "OK");
    assert_eq!(client.call(&["BGSAVE", "x"]).text(), "ERR syntax error");
    assert!(node.terminate().0.success(), "{}", node.log());
    assert!(listed(&at("backups")).is_empty(), "{:?}", listed(&at("backups")));
    assert!(node.log().contains("backup given up"), "{}", node.log());
}

#[test]
fn what_a_kill_leaves_is_no_backup_and_goes_with_the_next_one() {
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let mut node = leader(&at("leader"), &at("backups"), &["--scan-rate-max", "1MiB"]);
    fill(&mut node.client(), 20_000);
    assert_eq!(node.client().call(&["BGSAVE"]).text(), "Background saving started");
    let unfinished = at("backups").join("unfinished");
    let killed_early = poll(PATIENCE, || unfinished.join("0000.backup").exists());
    assert!(killed_early, "no file of a backup in time");
    node.kill();
    let left = listed(&at("backups"));
    assert_eq!(left.len(), 1, "{left:?}");
    node.restart();
    assert_eq!(node.client().call(&["SAVE"]).text(), "OK");
    let whole: Vec<_> = listed(&at("backups")).into_iter().filter(|path| *path != unfinished).collect();
    assert!(!unfinished.exists() && !whole.is_empty(), "{whole:?}");
    // A kill between the last two steps leaves a whole one without its name.
    node.kill();
    let newest = whole.last().expect("a backup").clone();
    std::fs::rename(&newest, &unfinished).expect("renames");
    node.restart();
    assert_eq!(node.client().call(&["SAVE"]).text(), "OK");
    let after = listed(&at("backups"));
    assert_eq!(after.len(), whole.len() + 1, "{after:?}");
    assert!(after.contains(&newest), "{newest:?} is not in {after:?}");
    after.iter().enumerate().for_each(|(index, backup)| restore(backup, &at(&format!("restored-{index}"))));
}

#[test]
fn a_full_disk_fails_the_backup_and_nothing_else() {
    let Some(mount) = Mount::new(Kind::Tmpfs, 2) else { return };
    let directory = tempfile::tempdir().expect("temp dir");
    let backups = mount.directory.join("backups");
    let node = leader(&directory.path().join("leader"), &backups, &[]);
    let mut client = node.client();
    fill(&mut client, 2_000);
    let ballast = mount.directory.join("ballast");
    let filled = std::fs::write(&ballast, vec![0; 4 << 20]);
    assert!(filled.is_err(), "four MiB fit into two");
    let refused = client.call(&["SAVE"]).text();
    assert!(refused.contains("No space left"), "{refused}");
    assert_eq!(client.call(&["SET", "k", "v"]).text(), "OK");
    assert_eq!(info(&mut client, "rdb_last_bgsave_status"), "err");
    assert!(info(&mut client, "slotstream_last_bgsave_error").contains("No space left"));
    assert_eq!(node.status()["backups"]["failed"], 1);
    assert!(node.log().contains("backup failed"), "{}", node.log());
    assert!(listed(&backups).is_empty(), "{:?}", listed(&backups));
    std::fs::remove_file(&ballast).expect("removes");
    assert_eq!(client.call(&["SAVE"]).text(), "OK");
    assert_eq!(info(&mut client, "rdb_last_bgsave_status"), "ok");
    restore(&listed(&backups)[0], &directory.path().join("restored"));
}

#[test]
fn a_node_without_a_place_and_a_follower_say_so() {
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let node = Node::leader(&at("leader"), &SIZES);
    let mut client = node.client();
    assert!(client.call(&["BGSAVE"]).text().contains("--backup-directory"));
    assert_eq!(info(&mut client, "rdb_last_bgsave_status"), "ok");
    assert!(node.status()["backups"].is_null());
    let place = at("backups");
    let arguments = ["--backup-directory", place.to_str().expect("a UTF-8 path")];
    let follower = Node::follower(&at("follower"), &node, &arguments);
    let mut client = follower.client();
    assert!(client.call(&["SAVE"]).text().contains("this node follows"));
    // It can once it leads, which it may once it has what its leader has.
    wait_in_sync(&node, &follower);
    assert_eq!(client.call(&["REPLICAOF", "NO", "ONE"]).text(), "OK");
    assert_eq!(client.call(&["SAVE"]).text(), "OK");
    assert_eq!(client.call(&["MULTI"]).text(), "OK");
    assert_eq!(client.call(&["SAVE"]).text(), "QUEUED");
    let Reply::Array(replies) = client.call(&["EXEC"]) else { panic!("no replies") };
    assert!(replies[0].text().contains("use BGSAVE"), "{replies:?}");
}

#[test]
fn a_backup_directory_that_cannot_be_used_is_refused_at_start() {
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("file"), "x").expect("writes");
    let start = |backups: &Path| {
        let mut command = command(&["leader", "--data-dir"]);
        command.arg(at("leader")).args(SIZES).args(ANY_PORTS).arg("--backup-directory").arg(backups);
        run_command(&mut command, PATIENCE)
    };
    let refused = start(&at("file").join("backups"));
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("--backup-directory: "), "{}", stderr(&refused));
    let refused = start(Path::new("s3://bucket/backups"));
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("wanted a directory of this machine"), "{}", stderr(&refused));
    assert!(!at("leader").exists(), "a store was made all the same");
}
