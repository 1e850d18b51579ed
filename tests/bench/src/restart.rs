//! How long until a server with many records answers its first read: from the start of the process, after an
//! orderly stop, after a kill under load and after a power cut, beside Redis that loads its snapshot or its log.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::replication::load::Load;
use crate::report::{Report, Side, Target, Unit};
use crate::resp_client::RespClient;
use crate::server::free_ports;

const STOPPED: &str = "first read after an orderly stop";
const KILLED: &str = "first read after kill -9";
const KILLED_UNLOGGED: &str = "first read after kill -9, no log";
const REBUILT: &str = "first read, index made from the slots";
const RATE: &str = "slots read by that, per second";
const REPLAYED: &str = "first read after a power cut";
const REPLAY_RATE: &str = "log put back by that, in a second";
const VALUE: &str = "a value of sixty-four bytes, as long as the others are in here..";
const WRITERS: u64 = 2;
const PATIENCE: Duration = Duration::from_secs(300);

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    records: u64,
    rounds: usize,
}

impl Size {
    /// What is reported.
    pub const FULL: Self = Self { records: 10_000_000, rounds: 3 };
    /// A look.
    pub const QUICK: Self = Self { records: 1_000_000, rounds: 1 };
}

/// A server process over a folder that outlives it.
struct Process {
    child: Child,
    resp: SocketAddr,
    started: Instant,
}

impl Process {
    fn start(mut command: Command, resp: SocketAddr, log: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let started = Instant::now();
        Ok(Self { child: command.spawn().context("cannot start a server")?, resp, started })
    }

    /// Waits for the first read of a record that answers; says how long after the start that was.
    fn first_read(&mut self, key: &str) -> Result<Duration> {
        loop {
            let client = RespClient::connect(self.resp);
            let answer = client.and_then(|mut client| client.text(&["GET", key]));
            match answer {
                Ok(value) if value == VALUE => return Ok(self.started.elapsed()),
                Ok(value) => anyhow::bail!("{key} holds {value:?}"),
                // Not there yet, or loading.
                Err(error) => ensure!(self.started.elapsed() < PATIENCE, "no answer: {error}"),
            }
            ensure!(self.child.try_wait()?.is_none(), "the server has ended");
            thread::sleep(Duration::from_micros(500));
        }
    }

    /// A connection, as soon as it takes one.
    fn client(&self) -> Result<RespClient> {
        loop {
            match RespClient::connect(self.resp) {
                Ok(client) => return Ok(client),
                Err(error) => ensure!(self.started.elapsed() < PATIENCE, "no answer: {error}"),
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(pid, signal)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

struct Stage<'a> {
    binary: &'a Path,
    folder: PathBuf,
    records: u64,
}

impl Stage<'_> {
    fn last_key(&self) -> String {
        format!("key:{:012}", self.records - 1)
    }

    fn ours(&self, durability: &str) -> Result<Process> {
        let ports = free_ports()?;
        let mut command = Command::new(self.binary);
        command.arg("leader").arg("--data-dir").arg(self.folder.join("ours"));
        command.args(["--shard-count", "4", "--key-size", "16", "--value-size", "64"]);
        command.args(["--durability", durability, "--log-format", "json"]);
        for (option, port) in ["--listen", "--replication-listen", "--http-listen"].into_iter().zip(ports) {
            command.args([option, &port.to_string()]);
        }
        Process::start(command, ports[0], &self.folder.join("ours.log"))
    }

    fn redis(&self, has_log: bool) -> Result<Process> {
        let [resp, ..] = free_ports()?;
        let folder = self.folder.join(if has_log { "redis-aof" } else { "redis-rdb" });
        std::fs::create_dir_all(&folder)?;
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &resp.port().to_string(), "--save", ""]);
        command.args(["--appendonly", if has_log { "yes" } else { "no" }, "--dir"]).arg(folder);
        Process::start(command, resp, &self.folder.join("redis.log"))
    }

    fn fill(&self, server: &Process) -> Result<()> {
        server.client()?.fill(self.records, VALUE)
    }

    /// Writes so many random records, but for the last one, and kills the server in the midst of more.
    fn kill_under_load(&self, mut server: Process, writes: u64) -> Result<()> {
        drop(server.client()?);
        let load = Load::start(server.resp, WRITERS, self.records - 1)?;
        let start = Instant::now();
        while load.mark().0 < writes {
            ensure!(start.elapsed() < PATIENCE, "writes take too long");
            thread::sleep(Duration::from_millis(5));
        }
        server.end(Signal::KILL)?;
        // Their connections are gone.
        load.finish().ok();
        Ok(())
    }

    /// Lets the shards' files lie in another folder than they were opened in: the next opening takes that for a power
    /// cut, which has lost nothing.
    fn move_shards(&self) -> Result<()> {
        let (shards, moved) = (self.folder.join("ours/shards"), self.folder.join("ours/moved"));
        std::fs::rename(&shards, &moved)?;
        std::fs::create_dir(&shards)?;
        for entry in std::fs::read_dir(&moved)? {
            let entry = entry?;
            std::fs::rename(entry.path(), shards.join(entry.file_name()))?;
        }
        Ok(std::fs::remove_dir(&moved)?)
    }

    /// Bytes of the log that the last opening put back in a second, as it says itself.
    fn replay_rate(&self) -> Result<f64> {
        let log = std::fs::read_to_string(self.folder.join("ours.log"))?;
        let line = log.lines().rfind(|line| line.contains("replayed_ms")).context("no log was replayed")?;
        let line: serde_json::Value = serde_json::from_str(line)?;
        let figure = |name| line["fields"][name].as_f64().or_else(|| line[name].as_f64());
        let (bytes, took) = figure("bytes").zip(figure("replayed_ms")).context("no figures of a replay")?;
        Ok(bytes / took * 1e3)
    }
}

/// Runs this suite into `report`.
pub fn run(report: &mut Report, size: Size, binary: &Path, folder: &Path, only: Option<Side>) -> Result<()> {
    const INSTANT: &[Target] = &[Target::AtMost(0.25)];
    report.row(STOPPED, "redis 7.0, snapshot", Unit::Seconds, INSTANT);
    report.row(KILLED, "redis 7.0, log", Unit::Seconds, INSTANT);
    report.row(KILLED_UNLOGGED, "-", Unit::Seconds, INSTANT);
    report.row(REBUILT, "-", Unit::Seconds, &[]);
    report.row(RATE, "-", Unit::PerSecond, &[Target::AtLeast(8e6)]);
    report.row(REPLAYED, "-", Unit::Seconds, &[]);
    report.row(REPLAY_RATE, "-", Unit::Bytes, &[]);
    report.note(format!(
        "Restart: {} records of 16 and 64 bytes, 4 shards, page cache warm, durability interval but where it says no log. \
         kill -9: after a quarter of the records was written again, in the midst of more; power cut: the same, and files \
         that lie elsewhere, so that the log is replayed, slots are synced, and the index is made from them.",
        size.records
    ));
    std::fs::create_dir_all(folder)?;
    let stage = Stage { binary, folder: folder.to_owned(), records: size.records };
    if only != Some(Side::Peer) {
        ours(report, size, &stage)?;
    }
    if only != Some(Side::Ours) {
        redis(report, size, &stage)?;
    }
    Ok(())
}

fn ours(report: &mut Report, size: Size, stage: &Stage<'_>) -> Result<()> {
    let key = stage.last_key();
    let server = stage.ours("interval")?;
    stage.fill(&server)?;
    stage.kill_under_load(server, size.records / 4)?;
    for round in 0..size.rounds {
        report.begin_round("restart", round, size.rounds);
        let first_read = |durability: &str| -> Result<(Process, f64)> {
            let mut server = stage.ours(durability)?;
            let took = server.first_read(&key)?.as_secs_f64();
            Ok((server, took))
        };
        let (mut server, took) = first_read("interval")?;
        report.sample(KILLED, Side::Ours, took);
        server.end(Signal::TERM)?;
        let (server, took) = first_read("interval")?;
        report.sample(STOPPED, Side::Ours, took);
        stage.kill_under_load(server, size.records / 4)?;
        stage.move_shards()?;
        let (mut server, took) = first_read("interval")?;
        report.sample(REPLAYED, Side::Ours, took);
        report.sample(REPLAY_RATE, Side::Ours, stage.replay_rate()?);
        server.end(Signal::TERM)?;
        for shard in 0..4 {
            std::fs::remove_file(stage.folder.join(format!("ours/shards/{shard:04}.digest")))?;
        }
        let (server, took) = first_read("none")?;
        report.sample(REBUILT, Side::Ours, took);
        #[expect(clippy::cast_precision_loss, reason = "a few million")]
        report.sample(RATE, Side::Ours, size.records as f64 / took);
        stage.kill_under_load(server, size.records / 4)?;
        let (mut server, took) = first_read("none")?;
        report.sample(KILLED_UNLOGGED, Side::Ours, took);
        server.end(Signal::TERM)?;
        stage.kill_under_load(stage.ours("interval")?, size.records / 4)?;
    }
    Ok(())
}

fn redis(report: &mut Report, size: Size, stage: &Stage<'_>) -> Result<()> {
    let key = stage.last_key();
    for (row, has_log) in [(STOPPED, false), (KILLED, true)] {
        let mut server = stage.redis(has_log)?;
        stage.fill(&server)?;
        if !has_log {
            RespClient::connect(server.resp)?.text(&["SAVE"])?;
        }
        // Its log is on disk within a second or two.
        thread::sleep(Duration::from_secs(3));
        server.end(Signal::KILL)?;
        for round in 0..size.rounds {
            report.begin_round("restart of redis", round, size.rounds);
            let mut server = stage.redis(has_log)?;
            report.sample(row, Side::Peer, server.first_read(&key)?.as_secs_f64());
            server.end(Signal::KILL)?;
        }
    }
    Ok(())
}
