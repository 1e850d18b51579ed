//! A page of a mapped file that cannot be had: a file cut short under a running node, and a disk with a hole in it.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Advice, fadvise};
use rustix::process::Signal;

use crate::disk::{Kind, Mount};
use crate::harness::{ANY_PORTS, Node, PATIENCE, command, run_command, stderr};

const EXIT_BUS_ERROR: i32 = 135;
const SIZES: &[&str] =
    &["--shard-count", "1", "--key-size", "16", "--value-size", "4000", "--durability", "none"];

fn fill(node: &Node, records: u32) {
    let (mut client, value) = (node.client(), "x".repeat(4_000));
    for number in 0..records {
        assert_eq!(client.call(&["SET", &format!("key:{number}"), &value]).text(), "OK");
    }
}

/// The one line of a log that says where it was.
fn line(log: &str) -> &str {
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("SIGBUS")).collect();
    let [line] = lines[..] else { panic!("not one line:\n{log}") };
    line
}

#[test]
fn a_shard_file_cut_short_ends_the_node_with_a_line_that_says_where() {
    let directory = tempfile::tempdir().expect("temp dir");
    let mut leader = Node::leader(&directory.path().join("leader"), SIZES);
    fill(&leader, 100);
    let path = leader.directory.join("shards/0000.slots");
    let file = File::options().write(true).open(&path).expect("the shard's file");
    let whole = file.metadata().expect("a file").len();
    file.set_len(whole / 8).expect("a file can be cut short");
    // Whoever touches the page first is ended: this, or whatever looks at slots in the background.
    let mut client = leader.client();
    for number in 0..100 {
        if client.send(format!("GET key:{number}\r\n").as_bytes()).is_err() || client.reply().is_err() {
            break;
        }
    }
    assert_eq!(leader.wait(PATIENCE).code(), Some(EXIT_BUS_ERROR), "{}", leader.log());
    let log = leader.log();
    let line = line(&log);
    assert!(
        line.starts_with(&format!("slotstream: {}: cannot read or write byte ", path.display())),
        "{line}"
    );
    let offset: u64 =
        line.split("byte ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).expect(line);
    assert!((whole / 8..whole).contains(&offset), "{offset} is not in the part cut off, {}", whole / 8);
    assert!(line.contains("cut short") && line.contains("slotstream verify"), "{line}");
    // It was not closed in order, and what is missing is not served as if it had never been.
    let mut again = command(&["leader"]);
    again.args(SIZES).args(ANY_PORTS).arg("--data-dir").arg(&leader.directory);
    let output = run_command(&mut again, PATIENCE);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("it was truncated"), "{}", stderr(&output));
}

#[test]
fn a_sigbus_that_somebody_sends_is_told_from_a_bad_page() {
    let directory = tempfile::tempdir().expect("temp dir");
    let mut leader = Node::leader(&directory.path().join("leader"), SIZES);
    leader.signal(Signal::BUS);
    assert_eq!(leader.wait(PATIENCE).code(), Some(EXIT_BUS_ERROR));
    assert!(line(&leader.log()).contains("some process has sent"), "{}", leader.log());
}

/// Copies over what the image holds, in place: the loop device goes on with it.
fn copy_in_place(from: &Path, to: &Path) {
    let words = [format!("if={}", from.display()), format!("of={}", to.display())];
    let output = Command::new("dd").args(words).args(["conv=notrunc", "bs=1M"]).output().expect("dd");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_disk_that_cannot_be_read_ends_the_node_and_loses_nothing_once_it_is_mended() {
    let Some(mount) = Mount::new(Kind::Ext4, 64) else { return };
    let image = mount.directory.with_file_name("image");
    let whole = image.with_file_name("whole");
    let mut leader = Node::leader(&mount.directory, SIZES);
    fill(&leader, 10_000);
    assert!(leader.terminate().0.success());
    for name in ["0000.slots", "0000.digest"] {
        let file = File::open(mount.directory.join("shards").join(name)).expect("a file of the store");
        file.sync_all().expect("a sync");
        fadvise(&file, 0, None, Advice::DontNeed).expect("its pages leave memory");
    }
    // The device is read past what the system keeps of it, once its own pages are gone.
    assert!(Command::new("sync").arg("-f").arg(&mount.directory).status().expect("sync").success());
    std::fs::copy(&image, &whole).expect("a copy of the disk");
    let disk = File::options().write(true).open(&image).expect("the disk");
    // What a loop device has no file for it cannot read.
    disk.set_len(32 << 20).expect("half of the disk goes");
    let mut broken = command(&["leader"]);
    broken.args(SIZES).args(ANY_PORTS).arg("--data-dir").arg(&mount.directory);
    let output = run_command(&mut broken, PATIENCE);
    assert_eq!(
        output.status.code(),
        Some(EXIT_BUS_ERROR),
        "{:?} {}",
        output.status.signal(),
        stderr(&output)
    );
    assert!(line(&stderr(&output)).contains("0000."), "{}", stderr(&output));
    disk.set_len(64 << 20).expect("the disk is whole");
    copy_in_place(&whole, &image);
    leader.restart();
    let mut client = leader.client();
    for number in (0..10_000).step_by(100) {
        assert_eq!(client.call(&["GET", &format!("key:{number}")]).text().len(), 4_000, "key:{number}");
    }
    assert!(leader.terminate().0.success());
    assert!(run_command(command(&["verify"]).arg(&mount.directory), PATIENCE).status.success());
}
