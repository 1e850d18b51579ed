//! Power cuts of a real file system, at every level of durability, under writes that overwrite and writes that make the
//! store grow. What was called durable is there after each, nothing else than what was written is, and the store opens.
//!
//! An ext4 in a file, whose shutdown drops everything that is not on the device: its journal, too. Before that some pages
//! are written back, in the order in which it hurts: the header without what it speaks of.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::harness::{Client, Node, PATIENCE, Reply, command, encode, poll, run_command, wait_until};

/// By `SLOTSTREAM_POWER_CUTS`, for each level; else so many as a quiet machine does in some seconds.
const CUTS: u64 = 12;
const SHARDS: usize = 2;
const SIZES: &[&str] = &["--shard-count", "2", "--key-size", "16", "--value-size", "200"];
const LOG: &[&str] =
    &["--durability-interval", "20ms", "--wal-segment-size", "128KiB", "--wal-size-max", "512KiB"];
/// Keys that are overwritten again and again; those above are written once.
const OVERWRITTEN: usize = 300;

/// What a reply promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    None,
    Interval,
    Always,
}

impl Level {
    fn arguments(self) -> Vec<&'static str> {
        let level = match self {
            Self::None => return [SIZES, &["--durability", "none"]].concat(),
            Self::Interval => "interval",
            Self::Always => "always",
        };
        [SIZES, &["--durability", level], LOG].concat()
    }
}

/// What is on its way to the disk when the power goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum WrittenBack {
    Nothing,
    /// The headers of the shards.
    Headers,
    /// All data that there is, and nothing of what the file system knows of it.
    Data,
    /// The headers and the last slots.
    Ends,
}

impl WrittenBack {
    fn of(cut: u64) -> Self {
        [Self::Headers, Self::Nothing, Self::Ends, Self::Data][usize::try_from(cut % 4).expect("small")]
    }

    /// As runs of bytes: where they begin, from the end if that is negative, and how many; zero is all that follow.
    fn runs(self) -> &'static str {
        match self {
            Self::Nothing => "[]",
            Self::Headers => "[(0,8192)]",
            Self::Data => "[(0,0)]",
            Self::Ends => "[(0,8192),(-65536,0)]",
        }
    }
}

/// Runs python3, which has the two system calls that no package wraps; false (said loudly) without it.
pub(crate) fn shut_down(mount: &Path, written_back: WrittenBack) -> bool {
    // sync_file_range, which waits for the data and leaves the journal alone. EXT4_IOC_SHUTDOWN, without a flush of it.
    let program = "import ctypes,fcntl,glob,os,struct,sys\n\
        libc=ctypes.CDLL(None,use_errno=True); at=ctypes.c_int64\n\
        for path in glob.glob(sys.argv[1]+'/shards/*'):\n \
          file=os.open(path,os.O_RDWR); size=os.fstat(file).st_size\n \
          for start,count in eval(sys.argv[2]):\n  \
            start=start if start>=0 else max(0,size+start)\n  \
            assert libc.sync_file_range(file,at(start),at(count),7)==0, os.strerror(ctypes.get_errno())\n\
        root=os.open(sys.argv[1],os.O_RDONLY)\n\
        fcntl.ioctl(root,0x8004587d,struct.pack('I',2))";
    let output = Command::new("python3").args(["-c", program]).arg(mount).arg(written_back.runs()).output();
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
        system(&["truncate", "-s", "512M", &path])?;
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
fn heavy_a_power_cut_without_a_log_leaves_a_store_that_opens_with_what_its_last_opening_found() {
    power_cuts(Level::None);
}

#[test]
fn heavy_a_power_cut_takes_nothing_that_was_called_durable() {
    power_cuts(Level::Interval);
}

#[test]
fn heavy_a_power_cut_takes_nothing_that_was_answered_at_level_always() {
    power_cuts(Level::Always);
}

/// Of a key.
#[derive(Debug, Clone, Default)]
struct Known {
    durable: Option<u64>,
    /// What may be in its place, in the order in which it was written.
    since: Vec<u64>,
}

fn value(number: u64) -> String {
    format!("{number:0>100}")
}

/// What was written of each key, by number.
struct Book {
    keys: Vec<Known>,
    next: u64,
}

impl Book {
    /// Takes a write down; says what to send.
    fn note(&mut self, key: usize) -> [String; 3] {
        if key >= self.keys.len() {
            self.keys.resize(key + 1, Known::default());
        }
        let number = self.next;
        self.next += 1;
        self.keys[key].since.push(number);
        ["SET".to_owned(), format!("key:{key}"), value(number)]
    }

    fn overwrite(&mut self, client: &mut Client, count: u64) {
        for _ in 0..count {
            let key = usize::try_from(self.next * 7 % OVERWRITTEN as u64).expect("small");
            let words = self.note(key);
            assert_eq!(client.call(&words.each_ref().map(String::as_str)).text(), "OK");
        }
    }

    /// All of it is durable.
    fn settle(&mut self) {
        for Known { durable, since } in &mut self.keys {
            *durable = since.last().copied().or(*durable);
            since.clear();
        }
    }

    /// Those that may differ from the last time, and some of all others.
    fn watched(&self, cut: u64) -> Vec<usize> {
        let is_watched = |key: &usize| {
            *key < OVERWRITTEN || !self.keys[*key].since.is_empty() || (*key as u64 + cut).is_multiple_of(50)
        };
        (0..self.keys.len()).filter(is_watched).collect()
    }

    /// What is there is as it was written; from here on it is durable.
    fn check(&mut self, client: &mut Client, level: Level, cut: u64) {
        let mut torn = Vec::new();
        for batch in self.watched(cut).chunks(500) {
            let mut pipeline = Vec::new();
            batch.iter().for_each(|key| encode(&mut pipeline, &[b"GET", format!("key:{key}").as_bytes()]));
            client.send(&pipeline).expect("reads are sent");
            for key in batch {
                let found = client.reply().expect("every read is answered");
                let Known { durable, since } = &mut self.keys[*key];
                let mut all = durable.iter().chain(since.iter()).copied();
                let held = all.find(|number| found == Reply::Bulk(value(*number).into_bytes()));
                let is_none = durable.is_none() && found == Reply::Nil;
                // Where nothing holds a second copy of it, a write may tear what it was to replace; and nobody knows
                // which key a torn slot held.
                let may_be_torn = level == Level::None && (durable.is_none() || !since.is_empty());
                let is_torn = may_be_torn && matches!(found, Reply::Error(_));
                torn.extend(is_torn.then_some(*key));
                assert!(
                    held.is_some() || is_none || is_torn,
                    "{level:?}, cut {cut}: key:{key} is {found:?}, wanted {durable:?} or newer: {since:?}"
                );
                *durable = held;
                since.clear();
            }
        }
        for key in torn {
            let words = self.note(key);
            assert_eq!(client.call(&words.each_ref().map(String::as_str)).text(), "OK");
        }
    }
}

/// Waits until all that was written is durable, where there is anything that makes it so.
fn wait_until_durable(leader: &Node, level: Level) {
    if level == Level::Interval {
        assert_eq!(leader.client().call(&["SET", "last", "x"]).text(), "OK");
        wait_until("all is durable", PATIENCE, || {
            (0..SHARDS)
                .all(|shard| leader.status()["shards"][shard]["seq"].as_u64() <= durable_seq(leader, shard))
        });
    }
}

/// Writes to a node that has no disk any more until it finds out; what it says of these writes counts for nothing.
fn end(mut leader: Node, client: &mut Client, level: Level, book: &mut Book, cut: u64) {
    if level == Level::None {
        leader.kill();
        return;
    }
    let has_ended = poll(PATIENCE, || {
        let words = book.note(usize::try_from(book.next * 7 % OVERWRITTEN as u64).expect("small"));
        client.try_call(&words.each_ref().map(|word| word.as_bytes())).is_err()
    });
    assert!(has_ended, "cut {cut}: it takes writes without a disk: {}", leader.log());
    // By a failed sync of its log, or by a page that it cannot have.
    let (status, log) = (leader.wait(PATIENCE), leader.log());
    let says = |code, text| status.code() == Some(code) && log.contains(text);
    assert!(says(1, "can not be made durable") || says(135, "SIGBUS"), "cut {cut}: {status}: {log}");
}

fn power_cuts(level: Level) {
    let cuts = std::env::var("SLOTSTREAM_POWER_CUTS").ok().and_then(|cuts| cuts.parse().ok()).unwrap_or(CUTS);
    let parent = tempfile::tempdir().expect("temp dir");
    let Some(mut disk) = Disk::new(parent.path()) else {
        eprintln!("SKIPPED: a power cut needs root and loop devices");
        return;
    };
    let start = Instant::now();
    // The root, so that what the node says goes to another disk.
    let data = disk.mount.clone();
    // No follower has what this one lost.
    let arguments = [level.arguments(), vec!["--recover-from-followers", "0s"]].concat();
    let mut book = Book { keys: vec![Known::default(); OVERWRITTEN], next: 0 };
    for cut in 0..cuts {
        let leader = Node::leader(&data, &arguments);
        let mut client = leader.client();
        book.check(&mut client, level, cut);
        book.overwrite(&mut client, 50 + cut % 7 * 60);
        wait_until_durable(&leader, level);
        if level != Level::None {
            book.settle();
        }
        book.overwrite(&mut client, cut % 5 * 30);
        if level == Level::Always {
            book.settle();
        }
        // And some that are under way, most of them to keys that make the store grow.
        let mut pipeline = Vec::new();
        let mut under_way = Vec::new();
        for at in 0..cut % 3 * 700 {
            let key = if at % 4 == 0 { usize::try_from(at % 300).expect("small") } else { book.keys.len() };
            under_way.push((key, book.next));
            encode(&mut pipeline, &book.note(key).each_ref().map(|word| word.as_bytes()));
        }
        client.send(&pipeline).expect("writes are sent");
        // Some are through: the last ones, should the store grow by then.
        let answered = under_way.len() / 3 * usize::try_from(cut % 4).expect("small");
        let mut replies = under_way.into_iter();
        let mut take = |book: &mut Book| {
            let Some((key, number)) = replies.next() else { return false };
            let reply = client.reply();
            if let (Level::Always, Ok(Reply::Simple(_))) = (level, &reply) {
                let Known { durable, since } = &mut book.keys[key];
                since.retain(|other| *other > number);
                *durable = Some(number);
            }
            reply.is_ok()
        };
        (0..answered).for_each(|_| assert!(take(&mut book), "cut {cut}: no reply"));
        if !shut_down(&disk.mount, WrittenBack::of(cut)) {
            return;
        }
        while take(&mut book) {}
        end(leader, &mut client, level, &mut book, cut);
        assert!(disk.unmount() && disk.attach(), "cut {cut}: the disk does not come back");
    }
    let mut leader = Node::leader(&data, &arguments);
    let mut client = leader.client();
    book.check(&mut client, level, cuts);
    assert!(leader.terminate().0.success());
    assert!(run_command(command(&["verify"]).arg(&data), PATIENCE).status.success());
    eprintln!("{cuts} power cuts at {level:?} in {:?}: {} keys", start.elapsed(), book.keys.len());
}
