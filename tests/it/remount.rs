//! A killed leader that is started again over the same file system, mounted elsewhere or anew: whether what the kernel
//! had in memory is still there is told by the file system and not by where it is mounted, nor by its device's number.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Node, PATIENCE, Reply, command, run_command, stdout, wait_until};
use crate::power_cuts::{WrittenBack, shut_down};

const SIZES: &[&str] = &["--shard-count", "2", "--key-size", "16", "--value-size", "64"];
const KEYS: usize = 1_000;

/// A small ext4 on one loop device from beginning to end, and a second place to mount it.
struct Disk {
    device: String,
    mount: PathBuf,
    elsewhere: PathBuf,
    _parent: tempfile::TempDir,
}

fn system(words: &[&str]) -> Option<String> {
    let output = Command::new(words[0]).args(&words[1..]).output().ok()?;
    if !output.status.success() {
        eprintln!("SKIPPED: mounting needs root and loop devices: {words:?}: {output:?}");
        return None;
    }
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

impl Disk {
    /// `None` (said loudly) where mounting is not permitted.
    fn new() -> Option<Self> {
        let parent = tempfile::tempdir().expect("temp dir");
        let [image, mount, elsewhere] = ["image", "mount", "elsewhere"].map(|name| parent.path().join(name));
        std::fs::create_dir(&mount).expect("mount point");
        std::fs::create_dir(&elsewhere).expect("mount point");
        system(&["truncate", "-s", "64M", text(&image)])?;
        system(&["mkfs.ext4", "-q", text(&image)])?;
        let device = system(&["losetup", "--find", "--show", text(&image)])?;
        let disk = Self { device, mount, elsewhere, _parent: parent };
        disk.attach().then_some(disk)
    }

    fn attach(&self) -> bool {
        system(&["mount", &self.device, text(&self.mount)]).is_some()
    }

    fn attach_anew(&self) {
        let is_back = system(&["umount", text(&self.mount)]).is_some() && self.attach();
        assert!(is_back, "the disk does not come back");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for words in [
            ["umount", "-ql", text(&self.elsewhere)],
            ["umount", "-ql", text(&self.mount)],
            ["losetup", "-d", &self.device],
        ] {
            drop(Command::new(words[0]).args(&words[1..]).output());
        }
    }
}

fn fill(leader: &Node, value: &str) {
    let mut client = leader.client();
    for number in 0..KEYS {
        assert_eq!(client.call(&["SET", &format!("key:{number}"), value]).text(), "OK");
    }
}

fn assert_holds(leader: &Node, value: &str) {
    let mut client = leader.client();
    for number in 0..KEYS {
        assert_eq!(client.call(&["GET", &format!("key:{number}")]).text(), value, "key:{number}");
    }
}

/// Whether the last opening took it for a process that was killed, and looked at no slot.
fn came_back_at_once(leader: &Node) -> bool {
    let log = leader.log();
    let lines: Vec<_> = log.lines().collect();
    let last = lines.iter().rposition(|line| line.contains("store open"));
    let opening = lines[last.unwrap_or_else(|| panic!("it says nothing of its opening: {log}"))..].join(" ");
    opening.contains("process crash") && !opening.contains("every slot was read")
}

fn ends_well(mut leader: Node) {
    let data = leader.directory.clone();
    assert!(leader.terminate().0.success());
    let output = run_command(command(&["verify"]).arg(&data), PATIENCE);
    assert!(output.status.success(), "{}", stdout(&output));
}

#[test]
fn a_killed_leader_comes_back_at_once_through_another_mount_of_the_same_file_system() {
    let Some(disk) = Disk::new() else { return };
    let mut leader = Node::leader(&disk.mount.join("data"), SIZES);
    fill(&leader, "first");
    leader.kill();
    assert!(system(&["mount", "-o", "remount,noatime", text(&disk.mount)]).is_some());
    leader.restart();
    assert!(came_back_at_once(&leader), "{}", leader.log());
    assert_holds(&leader, "first");
    leader.kill();
    // As a container has it, or a service with mounts of its own.
    assert!(system(&["mount", "--bind", text(&disk.mount), text(&disk.elsewhere)]).is_some());
    let leader = Node::leader(&disk.elsewhere.join("data"), SIZES);
    assert!(came_back_at_once(&leader), "{}", leader.log());
    assert_holds(&leader, "first");
    ends_well(leader);
}

#[test]
fn a_file_system_that_went_down_and_came_back_on_its_device_is_taken_for_a_power_cut() {
    let Some(disk) = Disk::new() else { return };
    let alone = ["--durability", "interval", "--recover-from-followers", "0s"];
    let mut leader = Node::leader(&disk.mount.join("data"), &[SIZES, &alone].concat());
    fill(&leader, "first");
    // Slots and digests are on the disk as they are now, and only the log has what comes.
    assert!(system(&["sync", "-f", text(&disk.mount)]).is_some());
    fill(&leader, "later");
    let all = Reply::Array(vec![Reply::Integer(1), Reply::Integer(0)]);
    let mut client = leader.client();
    assert_eq!(client.call(&["SET", "last", "one"]).text(), "OK");
    wait_until("all is durable", PATIENCE, || client.call(&["WAITAOF", "1", "0", "1000"]) == all);
    if !shut_down(&disk.mount, WrittenBack::Nothing) {
        return;
    }
    leader.kill();
    disk.attach_anew();
    leader.restart();
    assert!(!came_back_at_once(&leader), "{}", leader.log());
    assert_holds(&leader, "later");
    ends_well(leader);
}

#[test]
fn a_copy_of_a_killed_leader_is_not_taken_for_the_original() {
    let parent = tempfile::tempdir().expect("temp dir");
    let mut leader = Node::leader(&parent.path().join("data"), SIZES);
    fill(&leader, "first");
    leader.kill();
    let copy = parent.path().join("copy");
    assert!(system(&["cp", "-a", text(&leader.directory), text(&copy)]).is_some());
    let alone = ["--recover-from-followers", "0s"];
    let copied = Node::leader(&copy, &[SIZES, &alone].concat());
    assert!(!came_back_at_once(&copied), "{}", copied.log());
    assert_holds(&copied, "first");
    ends_well(copied);
    std::fs::rename(&leader.directory, parent.path().join("moved")).expect("a directory can be moved");
    let moved = Node::leader(&parent.path().join("moved"), SIZES);
    assert!(came_back_at_once(&moved), "{}", moved.log());
    assert_holds(&moved, "first");
    ends_well(moved);
}
