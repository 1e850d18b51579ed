//! Server processes, started on free ports in folders of their own, ended by their id when dropped.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::report::Side;
use crate::resp_client::RespClient;

/// Shards of our leaders.
#[derive(Debug, Clone, Copy)]
pub struct ShardCount(pub u16);

/// What of that which was answered survives a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// What the system has written back.
    None,
    /// All but the last moment.
    Interval,
    /// All.
    Always,
}

impl Promise {
    /// Our name, and Redis's `appendonly` and `appendfsync`.
    pub fn names(self) -> [&'static str; 3] {
        match self {
            Self::None => ["none", "no", "no"],
            Self::Interval => ["interval", "yes", "everysec"],
            Self::Always => ["always", "yes", "always"],
        }
    }
}

/// A server that answers on its RESP port.
#[derive(Debug)]
pub struct Server {
    child: Child,
    folder: PathBuf,
    /// Where Redis clients connect.
    pub resp: SocketAddr,
    replication: SocketAddr,
}

/// How to start servers.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// Our binary.
    pub binary: PathBuf,
    /// Servers' folders go here.
    pub folder: PathBuf,
}

impl Launcher {
    /// Starts a leader: ours, or a redis-server with persistence off and all else as it comes.
    pub fn leader(&self, side: Side, shards: ShardCount) -> Result<Server> {
        self.leader_that(side, shards, Promise::None)
    }

    /// Starts a leader that promises this.
    pub fn leader_that(&self, side: Side, shards: ShardCount, promise: Promise) -> Result<Server> {
        let [durability, appendonly, appendfsync] = promise.names();
        match side {
            Side::Ours => self.start("leader", |command, folder, ports| {
                command.arg("leader").arg("--data-dir").arg(folder).args(["--durability", durability]);
                command.args([
                    "--shard-count",
                    &shards.0.to_string(),
                    "--key-size",
                    "16",
                    "--value-size",
                    "64",
                ]);
                command.args(["--replication-listen", &ports[1].to_string()]);
                command.args(["--listen", &ports[0].to_string(), "--http-listen", &ports[2].to_string()]);
            }),
            Side::Peer => self.start("redis", |command, folder, ports| {
                redis(command, folder, ports);
                command.args(["--appendonly", appendonly, "--appendfsync", appendfsync]);
            }),
        }
    }

    /// Starts a follower of `leader` and waits until it holds what the leader holds.
    pub fn follower(&self, side: Side, leader: &Server) -> Result<Server> {
        let follower = match side {
            Side::Ours => self.start("follower", |command, folder, ports| {
                command.arg("follower").arg("--data-dir").arg(folder).args(["--durability", "none"]);
                command.args(["--leader", &leader.replication.to_string()]);
                command.args(["--replication-listen", &ports[1].to_string()]);
                command.args(["--listen", &ports[0].to_string(), "--http-listen", &ports[2].to_string()]);
            })?,
            Side::Peer => self.start("redis-replica", |command, folder, ports| {
                redis(command, folder, ports);
                let ip = leader.resp.ip().to_string();
                command.args(["--replicaof", &ip, &leader.resp.port().to_string()]);
            })?,
        };
        let wanted = RespClient::connect(leader.resp)?.integer(&["DBSIZE"])?;
        let mut client = RespClient::connect(follower.resp)?;
        let what = format!("a follower in {}", follower.folder.display());
        wait_until(&what, || {
            let is_up = client.text(&["INFO", "replication"])?.contains("master_link_status:up");
            Ok(is_up && client.integer(&["DBSIZE"])? == wanted)
        })?;
        leader.settle(1)?;
        Ok(follower)
    }

    fn start(&self, name: &str, arguments: impl Fn(&mut Command, &Path, &[SocketAddr; 3])) -> Result<Server> {
        let mut last = None;
        // A port that is free now may be taken a moment later, so one failure says little.
        for attempt in 0..5 {
            let folder = self.folder.join(format!("{name}-{attempt}"));
            std::fs::create_dir_all(&folder)?;
            let ports = free_ports()?;
            let log = File::create(self.folder.join(format!("{name}.log")))?;
            let program = if name.starts_with("redis") { Path::new("redis-server") } else { &self.binary };
            let mut command = Command::new(program);
            arguments(&mut command, &folder, &ports);
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
            let mut server = Server { child, folder, resp: ports[0], replication: ports[1] };
            match server.wait_until_ready() {
                Ok(()) => return Ok(server),
                Err(error) => last = Some(error),
            }
        }
        let log = std::fs::read_to_string(self.folder.join(format!("{name}.log"))).unwrap_or_default();
        bail!("{name} did not start: {last:?}\n{log}")
    }
}

fn redis(command: &mut Command, folder: &Path, ports: &[SocketAddr; 3]) {
    command.args(["--bind", "127.0.0.1", "--port", &ports[0].port().to_string()]);
    command.args(["--save", "", "--appendonly", "no", "--dir"]).arg(folder);
}

/// Three ports that are free now.
pub fn free_ports() -> Result<[SocketAddr; 3]> {
    // All three are held at once, so that they differ.
    let listeners = [(); 3].map(|()| TcpListener::bind(("127.0.0.1", 0)));
    let [a, b, c] = listeners;
    Ok([a?.local_addr()?, b?.local_addr()?, c?.local_addr()?])
}

fn wait_until(what: &str, mut is_done: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is_done()? {
        ensure!(start.elapsed() < Duration::from_secs(60), "{what} is not ready after a minute");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

impl Server {
    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `follower_count` followers have all that was written so far.
    pub fn settle(&self, follower_count: i64) -> Result<()> {
        if follower_count == 0 {
            return Ok(());
        }
        let mut client = RespClient::connect(self.resp)?;
        // WAIT is about the writes of its own connection, so there has to be one.
        client.text(&["SET", "key:000000000000", &"x".repeat(64)])?;
        let count = client.integer(&["WAIT", &follower_count.to_string(), "60000"])?;
        ensure!(count >= follower_count, "{count} of {follower_count} followers caught up within a minute");
        Ok(())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let what = format!("the server in {}", self.folder.display());
        wait_until(&what, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended with {status}");
            }
            let Ok(mut client) = RespClient::connect(self.resp) else { return Ok(false) };
            // Redis answers LOADING for a moment.
            Ok(client.text(&["PING"]).is_ok_and(|reply| reply == "PONG"))
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        std::fs::remove_dir_all(&self.folder).ok();
    }
}
