//! What survives: kill -9 with a log, a log on a full disk, I/O errors, and the power cut of a real file system.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::disk::{Kind, Mount};
use crate::harness::{Client, Node, PATIENCE, Reply, command, encode, run_command, wait_in_sync, wait_until};

const SIZES: &[&str] = &["--shard-count", "2", "--key-size", "16", "--value-size", "200"];
const LOGGED: &[&str] = &[
    "--durability",
    "interval",
    "--durability-interval",
    "20ms",
    "--wal-segment-size",
    "128KiB",
    "--wal-size-max",
    "512KiB",
];

fn arguments() -> Vec<&'static str> {
    [SIZES, LOGGED].concat()
}

/// The same where a reply means that its write is durable.
fn always() -> Vec<&'static str> {
    arguments().into_iter().map(|word| if word == "interval" { "always" } else { word }).collect()
}

fn value(number: u64) -> String {
    format!("{number:0>100}")
}

/// Sets so many keys, each to its number; returns when all are durable.
fn write(client: &mut Client, numbers: std::ops::Range<u64>) {
    for number in numbers {
        assert_eq!(client.call(&["SET", &format!("key:{number}"), &value(number)]).text(), "OK");
    }
    assert_eq!(client.call(&["WAITAOF", "1", "0", "0"]), durable(1, 0));
}

fn durable(here: i64, followers: i64) -> Reply {
    Reply::Array(vec![Reply::Integer(here), Reply::Integer(followers)])
}

fn assert_held(client: &mut Client, numbers: std::ops::Range<u64>) {
    for number in numbers {
        assert_eq!(client.call(&["GET", &format!("key:{number}")]).text(), value(number), "key:{number}");
    }
}

#[test]
fn a_node_with_a_log_says_what_is_durable_and_keeps_all_of_it_over_kills() {
    let directory = tempfile::tempdir().expect("temp dir");
    let mut leader = Node::leader(&directory.path().join("leader"), &arguments());
    let follower = Node::follower(&directory.path().join("follower"), &leader, LOGGED);
    wait_in_sync(&leader, &follower);
    // More than the log may hold at once, so that it is cut while this goes on.
    write(&mut leader.client(), 0..8_000);
    let mut client = leader.client();
    assert_eq!(client.call(&["SET", "key:0", &value(0)]).text(), "OK");
    assert_eq!(client.call(&["WAITAOF", "1", "1", "0"]), durable(1, 1));
    assert!(leader.metric("slotstream_wal_checkpoints_total") > 0.0);
    assert_eq!(leader.metric("slotstream_wal_takes_changes"), 1.0);
    assert_eq!(leader.status()["log"]["state"], "going");
    for round in 1..4 {
        write(&mut leader.client(), round * 8_000..round * 8_000 + 100);
        leader.kill();
        leader.restart();
        assert_held(&mut leader.client(), round * 8_000..round * 8_000 + 100);
    }
    assert_held(&mut leader.client(), 0..8_000);
    wait_in_sync(&leader, &follower);
    assert!(leader.terminate().0.success());
    assert!(run_command(command(&["verify"]).arg(&leader.directory), PATIENCE).status.success());
}

#[test]
fn a_store_begins_and_ends_to_keep_a_log_as_its_options_say() {
    let directory = tempfile::tempdir().expect("temp dir");
    let data = directory.path().join("leader");
    let log = data.join("wal");
    for (round, logged) in [false, true, false, true].into_iter().enumerate() {
        let arguments = if logged { arguments() } else { [SIZES, &["--durability", "none"]].concat() };
        let mut leader = Node::leader(&data, &arguments);
        let mut client = leader.client();
        if logged {
            write(&mut client, 0..100);
        } else {
            let refused = client.call(&["WAITAOF", "1", "0", "0"]);
            assert!(matches!(&refused, Reply::Error(text) if text.contains("--durability")), "{refused:?}");
            for number in 0..100 {
                assert_eq!(client.call(&["SET", &format!("key:{number}"), &value(number)]).text(), "OK");
            }
        }
        assert_eq!(log.is_dir(), logged, "round {round}");
        if round % 2 == 0 {
            leader.kill();
        } else {
            assert!(leader.terminate().0.success());
        }
        assert_eq!(log.is_dir(), logged, "round {round}");
    }
    let mut leader = Node::leader(&data, &[SIZES, &["--durability", "none"]].concat());
    assert_held(&mut leader.client(), 0..100);
    assert!(!log.exists());
    assert!(leader.terminate().0.success());
}

#[test]
fn a_log_on_a_full_disk_refuses_writes_until_there_is_space() {
    full_disk("interval", 1);
}

#[test]
fn a_log_that_comes_first_refuses_writes_on_a_full_disk_until_there_is_space() {
    // Of a client that waits for its replies there is one write at a time.
    full_disk("always", 100);
}

fn full_disk(level: &str, writers: usize) {
    let Some(mount) = Mount::new(Kind::Ext4, 24) else { return };
    let data = mount.directory.clone();
    let sizes = ["--shard-count", "1", "--key-size", "16", "--value-size", "60000"];
    let log = ["--durability", level, "--wal-segment-size", "128KiB", "--wal-size-max", "8MiB"];
    let mut leader = Node::leader(&data, &[sizes, log].concat());
    let mut client = leader.client();
    let value = |number: u64| format!("{number:0>60000}");
    let set =
        |client: &mut Client, number: u64| client.call(&["SET", &format!("key:{number}"), &value(number)]);
    for number in 0..50 {
        assert_eq!(set(&mut client, number).text(), "OK");
    }
    // All that is left of the disk, but for less than the log's next file.
    let filler = mount.directory.join("filler");
    let words = ["if=/dev/zero".to_owned(), format!("of={}", filler.display()), "bs=64K".into()];
    let filled = Command::new("dd").args(words).output().expect("dd");
    assert!(!filled.status.success(), "the disk is not full");
    // Two files go round for as long as a checkpoint frees one; so many writes at once need more of them.
    let mut pipeline = Vec::new();
    for number in 0..200 / writers as u64 {
        encode(
            &mut pipeline,
            &[b"SET", format!("key:{}", number % 50).as_bytes(), value(number % 50).as_bytes()],
        );
    }
    let mut clients: Vec<_> = (0..writers).map(|_| leader.client()).collect();
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
    let refused = refused.expect("a refusal");
    assert!(refused.starts_with("OOM") || refused.starts_with("MISCONF"), "{refused}");
    assert!(refused.contains("log"), "{refused}");
    assert_eq!(client.call(&["GET", "key:7"]).text(), value(7), "reads go on");
    assert_eq!(leader.get("/livez").0, 200);
    std::fs::remove_file(&filler).expect("the filler goes");
    wait_until("writes are taken again", PATIENCE, || matches!(set(&mut client, 0), Reply::Simple(_)));
    assert_eq!(client.call(&["WAITAOF", "1", "0", "0"]), durable(1, 0));
    leader.kill();
    leader.restart();
    let mut client = leader.client();
    for number in 0..50 {
        assert_eq!(client.call(&["GET", &format!("key:{number}")]).text(), value(number), "key:{number}");
    }
    assert!(leader.terminate().0.success());
}

/// Runs python3, which has the one system call that no package wraps; false (said loudly) without it.
pub(crate) fn shut_down(mount: &Path) -> bool {
    // EXT4_IOC_SHUTDOWN, without a flush of the journal.
    let program = "import fcntl,os,struct,sys; fd=os.open(sys.argv[1],os.O_RDONLY); \
                   fcntl.ioctl(fd,0x8004587d,struct.pack('I',2))";
    let output = Command::new("python3").args(["-c", program]).arg(mount).output();
    let is_done = output.as_ref().is_ok_and(|output| output.status.success());
    if !is_done {
        eprintln!("SKIPPED: a power cut needs python3 and the shutdown of ext4: {output:?}");
    }
    is_done
}

fn durable_seq(node: &Node, shard: usize) -> Option<u64> {
    let (_, text) = node.get("/metrics");
    let name = format!("slotstream_durable_seq{{shard=\"{shard}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)).and_then(|seq| seq.parse().ok())
}

/// An image of a disk, attached to one loop device after another, as after a power cut it is another machine's.
struct Disk {
    image: PathBuf,
    mount: PathBuf,
    device: Option<String>,
}

fn system(words: &[&str]) -> Option<String> {
    let output = Command::new(words[0]).args(&words[1..]).output().ok()?;
    if !output.status.success() {
        eprintln!("{words:?}: {output:?}");
        return None;
    }
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Disk {
    fn new(parent: &Path) -> Option<Self> {
        let (image, mount) = (parent.join("image"), parent.join("mount"));
        std::fs::create_dir(&mount).expect("mount point");
        let path = image.to_string_lossy().into_owned();
        system(&["truncate", "-s", "64M", &path])?;
        system(&["mkfs.ext4", "-q", &path])?;
        let mut disk = Self { image, mount, device: None };
        disk.attach().then_some(disk)
    }

    /// Mounts the image through a device that it was not on before.
    fn attach(&mut self) -> bool {
        let image = self.image.to_string_lossy().into_owned();
        let Some(device) = system(&["losetup", "--find", "--show", &image]) else { return false };
        self.detach();
        let is_mounted = system(&["mount", &device, &self.mount.to_string_lossy()]).is_some();
        self.device = Some(device);
        is_mounted
    }

    fn detach(&mut self) {
        if let Some(device) = self.device.take() {
            let detached = system(&["losetup", "--detach", &device]);
            assert!(detached.is_some(), "{device} stays attached");
        }
    }

    fn unmount(&self) -> bool {
        system(&["umount", &self.mount.to_string_lossy()]).is_some()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
        self.detach();
    }
}

#[test]
fn heavy_power_cuts_of_a_real_file_system_take_nothing_that_was_called_durable() {
    power_cuts(&arguments(), false);
}

#[test]
fn heavy_power_cuts_of_a_real_file_system_take_nothing_that_was_answered_at_level_always() {
    power_cuts(&always(), true);
}

/// By key: what is durable, and what may be in its place.
type Known = Vec<(Option<u64>, Vec<u64>)>;

fn key_of(number: u64) -> usize {
    usize::try_from(number * 7 % 300).expect("small")
}

/// All of it is durable.
fn settle(known: &mut Known) {
    for (durable, since) in known {
        *durable = since.last().copied().or(*durable);
        since.clear();
    }
}

fn power_cuts(arguments: &[&str], is_durable_when_answered: bool) {
    let cuts =
        std::env::var("SLOTSTREAM_POWER_CUTS").ok().and_then(|cuts| cuts.parse().ok()).unwrap_or(5_u64);
    let parent = tempfile::tempdir().expect("temp dir");
    let Some(mut disk) = Disk::new(parent.path()) else {
        eprintln!("SKIPPED: a power cut needs root and loop devices");
        return;
    };
    // The root, so that what the node says goes to another disk.
    let data = disk.mount.clone();
    let mut next = 0;
    // No follower has what this one lost.
    let arguments = [arguments, &["--recover-from-followers", "0s"]].concat();
    let mut known: Known = vec![(None, Vec::new()); 300];
    for cut in 0..cuts {
        let mut leader = Node::leader(&data, &arguments);
        let mut client = leader.client();
        for (key, (durable, since)) in known.iter_mut().enumerate() {
            let found = client.call(&["GET", &format!("key:{key}")]);
            let mut all = durable.iter().chain(since.iter()).copied();
            let held = all.find(|number| found == Reply::Bulk(value(*number).into_bytes()));
            let is_none = durable.is_none() && found == Reply::Nil;
            assert!(
                held.is_some() || is_none,
                "cut {cut}: key:{key} is {found:?}, wanted {durable:?} or newer"
            );
            *durable = held;
            since.clear();
        }
        let mut write = |client: &mut Client, count: u64, known: &mut Known| {
            for number in next..next + count {
                let key = key_of(number);
                assert_eq!(client.call(&["SET", &format!("key:{key}"), &value(number)]).text(), "OK");
                known[key].1.push(number);
            }
            next += count;
        };
        write(&mut client, 50 + cut % 7 * 60, &mut known);
        if !is_durable_when_answered {
            assert_eq!(leader.client().call(&["SET", "last", "x"]).text(), "OK");
        }
        wait_until("all is durable", PATIENCE, || {
            is_durable_when_answered
                || (0..2).all(|shard| {
                    let seq = leader.status()["shards"][shard]["seq"].as_u64().expect("a seq");
                    durable_seq(&leader, shard).is_some_and(|durable| seq <= durable)
                })
        });
        settle(&mut known);
        write(&mut client, cut % 5 * 30, &mut known);
        if is_durable_when_answered {
            settle(&mut known);
        }
        // And some that are under way.
        let mut pipeline = Vec::new();
        let under_way = next..next + cut % 3 * 400;
        for number in under_way.clone() {
            let key = key_of(number);
            encode(&mut pipeline, &[b"SET", format!("key:{key}").as_bytes(), value(number).as_bytes()]);
            known[key].1.push(number);
        }
        next = under_way.end;
        client.send(&pipeline).expect("writes are sent");
        if !shut_down(&disk.mount) {
            return;
        }
        for number in under_way {
            match client.reply() {
                Ok(reply) if is_durable_when_answered => {
                    assert_eq!(reply.text(), "OK");
                    let (durable, since) = &mut known[key_of(number)];
                    since.retain(|other| *other > number);
                    *durable = Some(number);
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        // It finds out by itself as soon as it has something to write, and does not go on.
        let ended = crate::harness::poll(PATIENCE, || {
            let (key, number) = (key_of(next), next);
            let (name, value) = (format!("key:{key}"), value(number));
            next += 1;
            // Also one without an answer may be there.
            known[key].1.push(number);
            client.try_call(&[b"SET".as_slice(), name.as_bytes(), value.as_bytes()]).is_err()
        });
        assert!(ended, "cut {cut}: it takes writes without a disk: {}", leader.log());
        let status = leader.wait(PATIENCE);
        assert_eq!(status.code(), Some(1), "cut {cut}: {}", leader.log());
        assert!(leader.log().contains("can not be made durable"), "cut {cut}: {}", leader.log());
        drop(leader);
        assert!(disk.unmount() && disk.attach(), "cut {cut}: the disk does not come back");
    }
    let mut leader = Node::leader(&data, &arguments);
    assert!(leader.terminate().0.success());
    assert!(run_command(command(&["verify"]).arg(&data), PATIENCE).status.success());
}

#[test]
fn a_sync_that_fails_ends_the_process() {
    let is_there =
        Command::new("strace").arg("--version").output().is_ok_and(|output| output.status.success());
    if !is_there {
        eprintln!("SKIPPED: an I/O error needs strace");
        return;
    }
    let directory = tempfile::tempdir().expect("temp dir");
    let data = directory.path().join("leader");
    let mut leader = Node::leader(&data, &arguments());
    write(&mut leader.client(), 0..100);
    let mut strace = Command::new("strace");
    strace.args([
        "-f",
        "-qq",
        "-e",
        "trace=fdatasync",
        "-e",
        "inject=fdatasync:error=EIO",
        "-o",
        "/dev/null",
    ]);
    let mut strace = strace.args(["-p", &leader.pid().to_string()]).spawn().expect("strace");
    let mut client = leader.client();
    let mut number = 0;
    let ended = crate::harness::poll(PATIENCE, || {
        number += 1;
        let value = value(number);
        client.try_call(&[b"SET".as_slice(), b"more", value.as_bytes()]).is_err()
    });
    let status = ended.then(|| leader.wait(PATIENCE));
    drop(strace.wait());
    let Some(status) = status else {
        eprintln!("SKIPPED: strace has no effect here: {}", leader.log());
        return;
    };
    assert_eq!(status.code(), Some(1), "{}", leader.log());
    assert!(leader.log().contains("can not be made durable"), "{}", leader.log());
    leader.restart();
    assert_held(&mut leader.client(), 0..100);
    assert!(leader.terminate().0.success());
}
