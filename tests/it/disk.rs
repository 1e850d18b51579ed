//! A full disk, while a store is made and while it grows: an error for whoever asked, nothing lost,
//! nothing half-made. On a small tmpfs, and on a small ext4 image where loop devices are there.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{
    ANY_PORTS, Node, PATIENCE, Reply, assert_equal, command, run_command, stderr, wait_in_sync, wait_until,
};

/// A small file system, unmounted on drop. Its root is the data directory, so that what the harness
/// keeps beside that lies on another disk.
pub(crate) struct Mount {
    pub(crate) directory: PathBuf,
    _parent: tempfile::TempDir,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Tmpfs,
    Ext4,
}

impl Mount {
    /// `None` (said loudly) where mounting is not permitted.
    pub(crate) fn new(kind: Kind, mib: u32) -> Option<Self> {
        let parent = tempfile::tempdir().expect("temp dir");
        let directory = parent.path().join("mount");
        std::fs::create_dir(&directory).expect("mount point");
        let image = parent.path().join("image");
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let mut commands = match kind {
            Kind::Tmpfs => vec![vec![
                "mount".into(),
                "-t".into(),
                "tmpfs".into(),
                "-o".into(),
                format!("size={mib}m"),
                "slotstream-test".into(),
                path(&directory),
            ]],
            Kind::Ext4 => vec![
                vec!["truncate".into(), "-s".into(), format!("{mib}M"), path(&image)],
                vec!["mkfs.ext4".into(), "-q".into(), "-O".into(), "^has_journal".into(), path(&image)],
                vec!["mount".into(), "-o".into(), "loop".into(), path(&image), path(&directory)],
            ],
        };
        for words in &mut commands {
            let output = Command::new(&words[0]).args(&words[1..]).output();
            if !output.as_ref().is_ok_and(|output| output.status.success()) {
                eprintln!("SKIPPED: a small {kind:?} needs root and loop devices: {words:?}: {output:?}");
                return None;
            }
        }
        Some(Self { directory, _parent: parent })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.directory).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{:?} stays mounted", self.directory);
        }
    }
}

fn making_a_store_on_a_full_disk(kind: Kind) {
    let Some(mount) = Mount::new(kind, 4) else { return };
    let data = mount.directory.clone();
    let mut leader =
        command(&["leader", "--shard-count", "64", "--key-size", "1024", "--value-size", "65535"]);
    leader.args(ANY_PORTS);
    let output = run_command(leader.arg("--data-dir").arg(&data), PATIENCE);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("No space left"), "{}", stderr(&output));
    assert!(!data.join("shards").exists() && !data.join("shards.new").exists(), "half a store was left");
    // A smaller one fits.
    let node = Node::leader(&data, &["--shard-count", "2", "--key-size", "16", "--value-size", "64"]);
    assert_eq!(node.client().call(&["SET", "k", "v"]).text(), "OK");
}

fn growing_on_a_full_disk(kind: Kind) {
    let Some(mount) = Mount::new(kind, 6) else { return };
    let data = mount.directory.clone();
    // With a log, that would be the first to find no space.
    let sizes = ["--shard-count", "2", "--key-size", "16", "--value-size", "1000", "--durability", "none"];
    let mut node = Node::leader(&data, &sizes);
    let mut client = node.client();
    let value = "x".repeat(1000);
    let mut kept = 0;
    let refused = loop {
        match client.call(&["SET", &format!("key:{kept}"), &value]) {
            Reply::Simple(_) => kept += 1,
            Reply::Error(error) => break error,
            other => panic!("{other:?}"),
        }
        assert!(kept < 100_000, "a disk of 6 MiB took {kept} KB");
    };
    assert!(refused.starts_with("OOM"), "{refused}");
    assert!(kept > 100, "only {kept} records before: {refused}");
    assert!(node.metric("slotstream_write_rejected_total") >= 1.0);
    // Everything acknowledged is there; what exists can be changed, a freed slot can be used.
    assert_eq!(client.call(&["DBSIZE"]), Reply::Integer(kept));
    for number in [0, kept / 2, kept - 1] {
        assert_eq!(client.call(&["GET", &format!("key:{number}")]).text(), value);
    }
    assert_eq!(client.call(&["GET", &format!("key:{kept}")]), Reply::Nil);
    assert_eq!(client.call(&["SET", "key:0", "changed"]).text(), "OK");
    assert_eq!(client.call(&["DEL", "key:1"]), Reply::Integer(1));
    assert_eq!(client.call(&["SET", "key:1", "again"]).text(), "OK");
    assert_eq!(node.get("/livez").0, 200);
    node.kill();
    node.restart();
    let mut client = node.client();
    assert_eq!(client.call(&["DBSIZE"]), Reply::Integer(kept));
    assert_eq!(client.call(&["GET", "key:1"]).text(), "again");
    assert!(node.terminate().0.success());
    assert!(run_command(command(&["verify"]).arg(&data), PATIENCE).status.success());
}

fn a_follower_on_a_full_disk(kind: Kind) {
    let Some(mount) = Mount::new(kind, 6) else { return };
    let directory = tempfile::tempdir().expect("temp dir");
    let sizes = ["--shard-count", "2", "--key-size", "16", "--value-size", "1000"];
    let mut leader = Node::leader(&directory.path().join("leader"), &sizes);
    let mut follower = Node::follower(&mount.directory, &leader, &[]);
    let mut client = leader.client();
    let value = "x".repeat(1000);
    for number in 0..1_000 {
        assert_eq!(client.call(&["SET", &format!("key:{number}"), &value]).text(), "OK");
    }
    wait_in_sync(&leader, &follower);
    for number in 1_000..10_000 {
        assert_eq!(client.call(&["SET", &format!("key:{number}"), &value]).text(), "OK");
    }
    wait_until("the follower says why it is behind", PATIENCE, || {
        let status = follower.status();
        let stuck = |shard: &serde_json::Value| {
            shard["reason"]
                .as_str()
                .is_some_and(|reason| reason.contains("No space left") || reason.contains("no space"))
        };
        status["shards"].as_array().expect("shards").iter().any(stuck)
    });
    // It is alive, serves what it holds, and says that it is not fresh and will not be by itself.
    assert_eq!((follower.get("/livez").0, follower.get("/follower?max_lag=1s").0), (200, 503));
    wait_until("the follower is not ready", PATIENCE, || follower.get("/readyz").0 == 503);
    let (_, why) = follower.get("/readyz");
    assert!(why.contains("[-]shard") && why.contains("pace"), "{why}");
    assert!(follower.metric("slotstream_shard_ready") < 2.0);
    let warned =
        |line: &str| line.contains("WARN") && line.contains("does not catch up until that is mended");
    assert!(follower.log().lines().any(warned), "{}", follower.log());
    assert_eq!(follower.client().call(&["GET", "key:500"]).text(), value);
    // The leader gives the space back (slots stay, so the follower needs a larger disk to hold them).
    let more = Command::new("mount").args(["-o", "remount,size=64m"]).arg(&mount.directory).status();
    if matches!(kind, Kind::Tmpfs) && more.is_ok_and(|status| status.success()) {
        wait_in_sync(&leader, &follower);
        assert_eq!(follower.get("/readyz").0, 200);
        assert_eq!(follower.metric("slotstream_shard_ready"), 2.0);
        assert!(leader.terminate().0.success() && follower.terminate().0.success());
        assert_equal(&leader.directory, &follower.directory);
    }
}

#[test]
fn a_full_tmpfs_while_a_store_is_made() {
    making_a_store_on_a_full_disk(Kind::Tmpfs);
}

#[test]
fn a_full_ext4_while_a_store_is_made() {
    making_a_store_on_a_full_disk(Kind::Ext4);
}

#[test]
fn a_full_tmpfs_while_a_store_grows() {
    growing_on_a_full_disk(Kind::Tmpfs);
}

#[test]
fn a_full_ext4_while_a_store_grows() {
    growing_on_a_full_disk(Kind::Ext4);
}

#[test]
fn a_follower_on_a_full_tmpfs_waits_for_space() {
    a_follower_on_a_full_disk(Kind::Tmpfs);
}
