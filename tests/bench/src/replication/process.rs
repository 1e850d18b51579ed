//! A leader or follower of either side that can be stopped in order and started again on its data.
//!
//! Redis runs with its own defaults here: it saves on shutdown and now and then, and a replica that comes
//! back loads what it saved and asks for what it missed.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::report::Side;
use crate::resp_client::RespClient;
use crate::server::free_ports;

/// How long any one step may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// A server process; killed when dropped, its data stays.
#[derive(Debug)]
pub struct Process {
    child: Child,
    side: Side,
    /// Where Redis clients connect.
    pub resp: SocketAddr,
    /// Where followers connect.
    pub replication: SocketAddr,
    http: SocketAddr,
    /// From its start until it answered.
    pub opening: Duration,
    /// When it was started.
    pub started: Instant,
}

impl Process {
    /// Starts a leader on `folder`; `more` are options of ours.
    pub fn leader(binary: &Path, side: Side, folder: &Path, more: &[&str]) -> Result<Self> {
        Self::start(binary, side, folder, |command| match side {
            Side::Ours => {
                command
                    .arg("leader")
                    .args(["--shard-count", "4", "--key-size", "16", "--value-size", "64"])
                    .args(more);
            }
            Side::Peer => {}
        })
    }

    /// Starts a follower of `leader` on `folder`.
    pub fn follower(binary: &Path, folder: &Path, leader: &Self) -> Result<Self> {
        Self::start(binary, leader.side, folder, |command| match leader.side {
            Side::Ours => {
                command.arg("follower").args(["--leader", &leader.replication.to_string()]);
            }
            Side::Peer => {
                command.args(["--replicaof", "127.0.0.1", &leader.resp.port().to_string()]);
            }
        })
    }

    fn start(binary: &Path, side: Side, folder: &Path, role: impl FnOnce(&mut Command)) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let ports = free_ports()?;
        let log_path = folder.with_extension("log");
        let log = File::create(&log_path)?;
        let mut command = Command::new(if side == Side::Ours { binary } else { Path::new("redis-server") });
        match side {
            Side::Ours => {
                role(&mut command);
                command.arg("--data-dir").arg(folder);
                command.args([
                    "--listen",
                    &ports[0].to_string(),
                    "--replication-listen",
                    &ports[1].to_string(),
                ]);
                command.args(["--http-listen", &ports[2].to_string()]);
            }
            Side::Peer => {
                command
                    .args(["--bind", "127.0.0.1", "--port", &ports[0].port().to_string(), "--dir"])
                    .arg(folder);
                role(&mut command);
            }
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let started = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let [resp, replication, http] = ports;
        let mut process = Self { child, side, resp, replication, http, opening: Duration::ZERO, started };
        while !process.answers() {
            if let Some(status) = process.child.try_wait()? {
                bail!("it ended with {status}:\n{}", std::fs::read_to_string(&log_path)?);
            }
            ensure!(started.elapsed() < PATIENCE, "{command:?} does not answer");
            thread::sleep(Duration::from_millis(2));
        }
        process.opening = started.elapsed();
        Ok(process)
    }

    /// Whether it serves; Redis answers an error while it loads.
    fn answers(&self) -> bool {
        let pong = RespClient::connect(self.resp).and_then(|mut client| client.text(&["PING"]));
        pong.is_ok_and(|pong| pong == "PONG")
    }

    /// Stops it in order and waits for its end.
    pub fn stop(mut self) -> Result<()> {
        // The answer is the end of the connection.
        RespClient::connect(self.resp)?.text(&["SHUTDOWN"]).ok();
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(start.elapsed() < PATIENCE, "it does not stop");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Returns once a follower has everything that this leader holds now.
    pub fn wait_for_follower(&self) -> Result<()> {
        ensure!(self.gets_a_follower_within(PATIENCE)?, "no follower catches up");
        Ok(())
    }

    /// The same; says whether it came to that.
    pub fn gets_a_follower_within(&self, patience: Duration) -> Result<bool> {
        let mut client = RespClient::connect(self.resp)?;
        // WAIT is about the writes of its own connection: some in every shard.
        for marker in 0..64 {
            client.text(&["SET", &format!("mark:{marker:011}"), "x"])?;
        }
        let start = Instant::now();
        while client.integer(&["WAIT", "1", "10000"])? < 1 {
            if start.elapsed() >= patience {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Bytes sent to followers since the start.
    pub fn replication_bytes(&self) -> Result<f64> {
        let (text, name) = match self.side {
            Side::Ours => (self.metrics()?, "slotstream_replication_sent_bytes_total "),
            Side::Peer => {
                (RespClient::connect(self.resp)?.text(&["INFO", "stats"])?, "total_net_repl_output_bytes:")
            }
        };
        let figure = text.lines().find_map(|line| line.strip_prefix(name));
        Ok(figure.with_context(|| format!("no {name}in {text}"))?.trim().parse()?)
    }

    /// Scans or snapshots of everything since the start.
    pub fn full_syncs(&self) -> Result<u64> {
        let text = RespClient::connect(self.resp)?.text(&["INFO", "stats"])?;
        let figure = text.lines().find_map(|line| line.strip_prefix("sync_full:"));
        Ok(figure.context("INFO has no sync_full")?.trim().parse()?)
    }

    fn metrics(&self) -> Result<String> {
        let mut stream = TcpStream::connect(self.http)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Resident bytes of the process and its children, each page counted once.
    pub fn memory(&self) -> Result<u64> {
        memory_with_children(self.child.id())
    }

    /// Highest resident memory since the start, mapped files included.
    pub fn memory_peak(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        kib_of(&std::fs::read_to_string(path)?, "VmHWM:").context("no VmHWM")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Proportional set size: a page that a fork shares counts for half in each.
pub fn memory_with_children(pid: u32) -> Result<u64> {
    let mut pids: Vec<u32> = Vec::from([pid]);
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    pids.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    let mut bytes = 0;
    for pid in pids {
        let path = PathBuf::from(format!("/proc/{pid}/smaps_rollup"));
        // A child may have ended since.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        bytes += kib_of(&text, "Pss:").unwrap_or(0);
    }
    Ok(bytes)
}

fn kib_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
