//! What a backup costs the writers and how large it is, and how many bytes a device writes for one update.
//!
//! Redis saves with BGSAVE, and keeps a log that it syncs every second.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::replication::load::Load;
use crate::replication::process::Process;
use crate::report::{Report, Side, Target, Unit};
use crate::resp_client::RespClient;
use crate::workload::Indexes;

const REDIS: &str = "redis 7.0, BGSAVE";
const LOGGED: &str = "redis 7.0, log";
const BEFORE: &str = "writes, no backup";
const KEPT: &str = "writes kept during a backup";
const TIME: &str = "backup under these writes";
const SIZE: &str = "backup, size";
const PART: &str = "incremental backup after 1 % change, part of it";
const UNLOGGED_BYTES: &str = "device bytes per random update, no log";
const LOGGED_BYTES: &str = "device bytes per random update, log";

const VALUE: &str = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
const WRITERS: u64 = 2;
const WHILE: Duration = Duration::from_secs(5);

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Times backups are repeated.
    pub rounds: usize,
    /// Records of the leader.
    pub record_count: u64,
    /// How long updates are written while the device is watched.
    pub watched: Duration,
}

impl Size {
    /// What the published figures are taken with.
    pub const FULL: Self = Self { rounds: 3, record_count: 10_000_000, watched: Duration::from_secs(30) };
    /// A look.
    pub const QUICK: Self = Self { rounds: 1, record_count: 1_000_000, watched: Duration::from_secs(5) };
}

/// Runs this suite into `report`.
pub fn run(report: &mut Report, size: Size, binary: &Path, folder: &Path, only: Option<Side>) -> Result<()> {
    report.row(BEFORE, REDIS, Unit::PerSecond, &[]);
    report.row(KEPT, REDIS, Unit::Core, &[Target::AtLeast(0.85)]);
    report.row(TIME, REDIS, Unit::Seconds, &[]);
    report.row(SIZE, REDIS, Unit::Bytes, &[]);
    report.row(PART, "-", Unit::Core, &[Target::AtMost(0.02)]);
    report.row(UNLOGGED_BYTES, "-", Unit::Count, &[]);
    report.row(LOGGED_BYTES, LOGGED, Unit::Count, &[]);
    report.note(format!(
        "Storage rows: {} records of 16-byte keys and 64-byte values, 4 shards; writers: two connections, pipeline 64, \
         random keys, all values alike. Device bytes: sectors that the kernel counts on the folder's device during {} s of updates and \
         a sync behind them, whoever wrote them; log: ours synced every 100 ms, that of Redis every second.",
        size.record_count,
        size.watched.as_secs()
    ));
    std::fs::create_dir_all(folder)?;
    for side in [Side::Peer, Side::Ours].into_iter().filter(|side| only.is_none_or(|only| only == *side)) {
        let stage = Stage { binary, folder: folder.to_owned(), side, size };
        stage.backups(report)?;
        stage.device_bytes(report)?;
    }
    Ok(())
}

struct Stage<'a> {
    binary: &'a Path,
    folder: PathBuf,
    side: Side,
    size: Size,
}

impl Stage<'_> {
    fn filled_leader(&self, more: &[&str]) -> Result<Process> {
        let leader = Process::leader(self.binary, self.side, &self.data(), more)?;
        let mut client = RespClient::connect(leader.resp)?;
        if self.side == Side::Peer {
            client.text(&["CONFIG", "SET", "save", ""])?;
            client.text(&["CONFIG", "SET", "appendonly", if more.is_empty() { "no" } else { "yes" }])?;
        }
        eprintln!("storage: filling a leader with {} records", self.size.record_count);
        client.fill(self.size.record_count, VALUE)?;
        Ok(leader)
    }

    fn data(&self) -> PathBuf {
        self.folder.join("leader")
    }

    fn tool(&self, words: &[&str], paths: &[&Path]) -> Result<()> {
        let output = Command::new(self.binary).args(words).args(paths).output()?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Saves all of it; returns its size in bytes.
    fn save(&self, leader: &Process, target: &Path) -> Result<u64> {
        match self.side {
            Side::Ours => {
                self.tool(&["backup", &leader.replication.to_string(), "--to"], &[target])?;
                bytes_in(target)
            }
            Side::Peer => {
                let mut client = RespClient::connect(leader.resp)?;
                client.text(&["BGSAVE"])?;
                while client.text(&["INFO", "persistence"])?.contains("rdb_bgsave_in_progress:1") {
                    thread::sleep(Duration::from_millis(20));
                }
                Ok(self.data().join("dump.rdb").metadata()?.len())
            }
        }
    }

    fn backups(&self, report: &mut Report) -> Result<()> {
        let leader = self.filled_leader(&[])?;
        for round in 0..self.size.rounds {
            report.begin_round("backup", round, self.size.rounds);
            let full = self.folder.join(format!("full-{round}"));
            let load = Load::start(leader.resp, WRITERS, self.size.record_count)?;
            // Every page that writers touch is there before they are counted.
            load.rate_over(WHILE);
            let before = load.rate_over(WHILE);
            let mark = load.mark();
            let bytes = self.save(&leader, &full)?;
            let (kept, took) = (load.rate_since(mark) / before, mark.1.elapsed().as_secs_f64());
            load.finish()?;
            #[expect(clippy::cast_precision_loss, reason = "gigabytes")]
            let bytes = bytes as f64;
            for (row, figure) in [(BEFORE, before), (KEPT, kept), (TIME, took), (SIZE, bytes)] {
                report.sample(row, self.side, figure);
            }
            if self.side == Side::Ours {
                self.incremental(report, &leader, &full)?;
            }
        }
        if self.side == Side::Ours {
            self.restored(leader)?;
        }
        std::fs::remove_dir_all(&self.folder)?;
        Ok(())
    }

    fn incremental(&self, report: &mut Report, leader: &Process, full: &Path) -> Result<()> {
        // What it is since: the writers went on behind the full one.
        let (base, part) = (self.folder.join("base"), self.folder.join("part"));
        let address = leader.replication.to_string();
        self.tool(&["backup", &address, "--to"], &[&base])?;
        let mut client = RespClient::connect(leader.resp)?;
        let mut indexes = Indexes::new(7, self.size.record_count);
        for _ in 0..self.size.record_count / 100 / 500 {
            client.set_all((0..500).map(|_| indexes.draw()), VALUE)?;
        }
        self.tool(&["backup", &address, "--since"], &[&base, Path::new("--to"), &part])?;
        #[expect(clippy::cast_precision_loss, reason = "gigabytes")]
        report.sample(PART, self.side, bytes_in(&part)? as f64 / bytes_in(&base)? as f64);
        for folder in [full, &base, &part] {
            std::fs::remove_dir_all(folder)?;
        }
        Ok(())
    }

    /// A full backup under load and an incremental one behind it make what the leader holds: slot by slot.
    fn restored(&self, leader: Process) -> Result<()> {
        let [full, part, restored] = ["full", "part", "restored"].map(|name| self.folder.join(name));
        let load = Load::start(leader.resp, WRITERS, self.size.record_count)?;
        self.save(&leader, &full)?;
        load.finish()?;
        let address = leader.replication.to_string();
        self.tool(&["backup", &address, "--since"], &[&full, Path::new("--to"), &part])?;
        self.tool(&["restore", "--to"], &[&restored, &full, &part])?;
        leader.stop()?;
        self.tool(&["verify"], &[&self.data(), &restored])
    }

    fn device_bytes(&self, report: &mut Report) -> Result<()> {
        let logged: &[&str] = &["--durability", "interval"];
        let rows: &[(&str, &[&str])] = match self.side {
            Side::Ours => &[(UNLOGGED_BYTES, &["--durability", "none"]), (LOGGED_BYTES, logged)],
            Side::Peer => &[(LOGGED_BYTES, logged)],
        };
        for (row, more) in rows {
            std::fs::create_dir_all(&self.folder)?;
            let device = Device::of(&self.folder)?;
            // Redis has its own words for this: see `filled_leader`.
            let leader = self.filled_leader(more)?;
            let before = device.synced_bytes()?;
            let load = Load::start(leader.resp, WRITERS, self.size.record_count)?;
            let mark = load.mark();
            thread::sleep(self.size.watched);
            let written = load.mark().0 - mark.0;
            load.finish()?;
            #[expect(clippy::cast_precision_loss, reason = "gigabytes")]
            report.sample(row, self.side, (device.synced_bytes()? - before) as f64 / written as f64);
            drop(leader);
            std::fs::remove_dir_all(&self.folder)?;
        }
        Ok(())
    }
}

/// The block device under a folder.
struct Device {
    folder: PathBuf,
    statistics: PathBuf,
}

impl Device {
    fn of(folder: &Path) -> Result<Self> {
        let number = folder.metadata()?.dev();
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        let statistics = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/stat"));
        Ok(Self { folder: folder.to_owned(), statistics })
    }

    /// Bytes written since the machine started, once all that waits has been.
    fn synced_bytes(&self) -> Result<u64> {
        rustix::fs::syncfs(std::fs::File::open(&self.folder)?)?;
        let text = std::fs::read_to_string(&self.statistics)
            .with_context(|| format!("{} is on no block device of its own", self.folder.display()))?;
        // The seventh figure counts sectors of 512 bytes, whatever the device's are.
        let sectors = text.split_ascii_whitespace().nth(6).context("no count of sectors")?;
        Ok(sectors.parse::<u64>()? * 512)
    }
}

fn bytes_in(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { bytes_in(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}
