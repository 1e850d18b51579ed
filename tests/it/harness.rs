//! Real `slotstream` processes for tests: temporary directories, port 0, signals by pid.
//!
//! A node tells its ports by `--ports-file`, which it writes only once it serves. Every wait here has
//! a condition and a deadline. A node that goes out of scope is killed and reaped, so that a failed
//! test leaves nothing behind.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

pub(crate) use crate::client::{Client, Reply, connect, encode};

/// How long a node may take to serve, a follower to catch up, and so on: generous, since machines are shared.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The binary under test.
pub(crate) fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_slotstream")
}

/// A command that does not see this process's `SLOTSTREAM_*` variables.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SLOTSTREAM_") {
            command.env_remove(name);
        }
    }
    command.args(arguments);
    command
}

/// Runs the binary to its end; panics if that takes longer than [`PATIENCE`].
pub(crate) fn run(arguments: &[&str]) -> Output {
    run_command(&mut command(arguments), PATIENCE)
}

/// A node's arguments for ports that the kernel picks.
pub(crate) const ANY_PORTS: [&str; 6] =
    ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--replication-listen", "127.0.0.1:0"];

/// Runs a command to its end and kills it at the deadline.
pub(crate) fn run_command(command: &mut Command, deadline: Duration) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let stdout = drain(child.stdout.take().expect("piped"));
    let stderr = drain(child.stderr.take().expect("piped"));
    let status = wait_child(&mut child, deadline)
        .unwrap_or_else(|| panic!("{command:?} did not end within {deadline:?}"));
    Output {
        status,
        stdout: stdout.join().expect("reader thread"),
        stderr: stderr.join().expect("reader thread"),
    }
}

fn drain(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).expect("pipe is readable");
        bytes
    })
}

/// The exit status, or `None` after the deadline; the child is killed then.
fn wait_child(child: &mut Child, deadline: Duration) -> Option<ExitStatus> {
    let mut status = None;
    let ended = poll(deadline, || {
        status = child.try_wait().expect("a child of ours can be waited for");
        status.is_some()
    });
    if !ended {
        child.kill().expect("a child of ours can be killed");
        child.wait().expect("a killed child ends");
    }
    status
}

/// Asks `condition` until it holds or the deadline has passed; says which.
pub(crate) fn poll(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until `condition` holds; panics with `what` after the deadline.
#[track_caller]
pub(crate) fn wait_until(what: &str, deadline: Duration, condition: impl FnMut() -> bool) {
    assert!(poll(deadline, condition), "waited {deadline:?} in vain until {what}");
}

/// Standard error as text, for messages.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Standard output as text.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a node writes to its `--ports-file`.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
pub(crate) struct Ports {
    pub(crate) listen: SocketAddr,
    pub(crate) http_listen: SocketAddr,
    #[serde(default)]
    pub(crate) replication_listen: Option<SocketAddr>,
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Where a node is to listen.
#[derive(Debug, Clone, Copy)]
enum Listen {
    /// At ports that the kernel picks.
    AnyPort(IpAddr),
    /// Where it did before.
    Again(Ports),
}

impl Listen {
    fn ports(self) -> Ports {
        match self {
            Self::AnyPort(host) => {
                let any = SocketAddr::new(host, 0);
                Ports { listen: any, http_listen: any, replication_listen: Some(any) }
            }
            Self::Again(ports) => ports,
        }
    }
}

/// A running (or stopped, or killed) node and what is needed to start it again at the same ports.
pub(crate) struct Node {
    pub(crate) directory: PathBuf,
    pub(crate) ports: Ports,
    role: &'static str,
    arguments: Vec<String>,
    child: Child,
}

impl Node {
    /// A leader on `directory`; waits until it serves.
    pub(crate) fn leader(directory: &Path, arguments: &[&str]) -> Self {
        Self::leader_at(LOOPBACK, directory, arguments)
    }

    /// A leader that listens at `host`.
    pub(crate) fn leader_at(host: IpAddr, directory: &Path, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        Self::start("leader", directory, arguments, Listen::AnyPort(host))
    }

    /// A follower of `leader` on `directory`; waits until it serves, not until it has caught up.
    pub(crate) fn follower(directory: &Path, leader: &Self, arguments: &[&str]) -> Self {
        Self::follower_of(directory, leader.replication(), arguments)
    }

    /// Where it takes followers, while it leads.
    pub(crate) fn replication(&self) -> SocketAddr {
        self.ports.replication_listen.expect("every node has a replication port")
    }

    /// A follower of whatever is at `replication` (a proxy, say).
    pub(crate) fn follower_of(directory: &Path, replication: SocketAddr, arguments: &[&str]) -> Self {
        Self::follower_at(LOOPBACK, directory, replication, arguments)
    }

    /// A follower that listens at `host`.
    pub(crate) fn follower_at(
        host: IpAddr,
        directory: &Path,
        replication: SocketAddr,
        arguments: &[&str],
    ) -> Self {
        let mut all = vec!["--leader".to_owned(), replication.to_string()];
        all.extend(arguments.iter().map(ToString::to_string));
        Self::start("follower", directory, all, Listen::AnyPort(host))
    }

    fn start(role: &'static str, directory: &Path, arguments: Vec<String>, listen: Listen) -> Self {
        Self::try_start(role, directory, arguments, listen).unwrap_or_else(|problem| panic!("{problem}"))
    }

    fn try_start(
        role: &'static str,
        directory: &Path,
        arguments: Vec<String>,
        listen: Listen,
    ) -> Result<Self, String> {
        let ports_file = beside(directory, "ports");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(beside(directory, "log"))
            .expect("a log file beside the data directory");
        if ports_file.exists() {
            std::fs::remove_file(&ports_file).expect("the last run's ports file goes away");
        }
        let Ports { listen, http_listen, replication_listen } = listen.ports();
        let mut command = command(&[role]);
        command.arg("--data-dir").arg(directory).arg("--ports-file").arg(&ports_file);
        let replication_listen = replication_listen.unwrap_or(SocketAddr::new(listen.ip(), 0));
        command.arg("--listen").arg(listen.to_string());
        command.arg("--http-listen").arg(http_listen.to_string());
        command.arg("--replication-listen").arg(replication_listen.to_string());
        let mut child = command
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("slotstream starts");
        let mut ended = None;
        let serves = poll(PATIENCE, || {
            ended = child.try_wait().expect("a child of ours can be waited for");
            ended.is_some() || ports_file.exists()
        });
        if !serves || ended.is_some() {
            // Not dropped on the panic below, so it has to be ended here.
            if ended.is_none() {
                child.kill().expect("a child of ours can be killed");
                child.wait().expect("a killed child ends");
            }
            return Err(format!(
                "{role} on {directory:?} did not serve ({ended:?}); its log:\n{}",
                log_of(directory)
            ));
        }
        let text = std::fs::read_to_string(&ports_file).expect("ports file is readable");
        let ports = serde_json::from_str(&text).expect("ports file is JSON");
        Ok(Self { directory: directory.to_owned(), ports, role, arguments, child })
    }

    /// Starts the node again with the same arguments, directory and ports. It must have ended.
    pub(crate) fn restart(&mut self) {
        assert!(self.child.try_wait().expect("a child of ours").is_some(), "{} still runs", self.role);
        // Meanwhile the kernel may have lent one of our ports to a connection of another test.
        let mut next = Err(String::new());
        let started = poll(PATIENCE, || {
            next = Self::try_start(
                self.role,
                &self.directory,
                self.arguments.clone(),
                Listen::Again(self.ports),
            );
            !matches!(&next, Err(problem) if problem.trim_end().ends_with("(os error 98)"))
        });
        assert!(started, "a port stays in use");
        drop(std::mem::replace(self, next.unwrap_or_else(|problem| panic!("{problem}"))));
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to this process only.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid fits")).expect("a pid is not 0");
        kill_process(pid, signal).expect("a child of ours can be signalled");
        if signal == Signal::STOP {
            // Each of its threads goes on until it looks; on a busy machine that takes a while.
            wait_until("every thread is stopped", PATIENCE, || self.is_stopped());
        }
    }

    fn is_stopped(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("a child of ours");
        tasks.flatten().all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        })
    }

    /// `kill -9`, and waits for the end.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a child of ours can be killed");
        self.child.wait().expect("a killed child ends");
    }

    /// SIGTERM; returns the exit status and how long it took. Panics after [`PATIENCE`].
    pub(crate) fn terminate(&mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        self.signal(Signal::TERM);
        let status = self.wait(PATIENCE);
        (status, start.elapsed())
    }

    /// Waits for the end by itself.
    pub(crate) fn wait(&mut self, deadline: Duration) -> ExitStatus {
        wait_child(&mut self.child, deadline).unwrap_or_else(|| {
            panic!("{} did not end within {deadline:?}; its log:\n{}", self.role, self.log())
        })
    }

    /// Everything this node has logged since the directory was made, over all restarts.
    pub(crate) fn log(&self) -> String {
        log_of(&self.directory)
    }

    /// A connection to the RESP port.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.ports.listen)
    }

    /// `GET path` on the HTTP port.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        http_get(self.ports.http_listen, path)
    }

    /// `/status`, parsed.
    pub(crate) fn status(&self) -> serde_json::Value {
        let (code, body) = self.get("/status");
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).expect("/status is JSON")
    }

    /// The value of one metric, summed over its series; 0 if there is none.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let (code, body) = self.get("/metrics");
        assert_eq!(code, 200, "{body}");
        sum_metric(&body, name)
    }

    /// Resident memory in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("/proc");
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("RssAnon line");
        let kib: u64 =
            line.split_whitespace().nth(1).expect("a figure").parse().expect("RssAnon is a number");
        kib * 1024
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A stopped process does not die of SIGTERM; SIGKILL ends it in any state.
        if matches!(self.child.try_wait(), Ok(None)) && self.child.kill().is_ok() {
            drop(self.child.wait());
        }
        if std::thread::panicking() {
            eprintln!("--- log of {} {:?}\n{}", self.role, self.directory, self.log());
        }
    }
}

fn beside(directory: &Path, extension: &str) -> PathBuf {
    let mut name = directory.file_name().expect("a named directory").to_owned();
    name.push(".");
    name.push(extension);
    directory.with_file_name(name)
}

fn log_of(directory: &Path) -> String {
    std::fs::read_to_string(beside(directory, "log")).unwrap_or_default()
}

/// Sums the series of one metric in Prometheus text.
pub(crate) fn sum_metric(text: &str, name: &str) -> f64 {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(series, _)| series.split('{').next() == Some(name))
        .filter_map(|(_, value)| value.parse::<f64>().ok())
        .sum()
}

/// One `GET`, on a connection of its own.
pub(crate) fn http_get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = connect(address);
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("request is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer in UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP answer: {answer:?}"));
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    (code, body.to_owned())
}

/// Waits until every shard that `follower` carries is streaming and has applied the leader's head.
#[track_caller]
pub(crate) fn wait_in_sync(leader: &Node, follower: &Node) {
    wait_until("the follower has applied the leader's head", PATIENCE, || is_in_sync(leader, follower));
}

/// Whether every shard that `follower` carries is streaming at the leader's present head.
pub(crate) fn is_in_sync(leader: &Node, follower: &Node) -> bool {
    let (leader, follower) = (leader.status(), follower.status());
    let head = |shard: &serde_json::Value| {
        leader["shards"]
            .as_array()
            .expect("shards")
            .iter()
            .find(|s| s["shard"] == shard["shard"])
            .expect("a shard")["seq"]
            .clone()
    };
    let carried = follower["shards"].as_array().expect("shards");
    !carried.is_empty()
        && carried.iter().all(|shard| shard["phase"] == "stream" && shard["applied_seq"] == head(shard))
}

/// Asserts that two stopped nodes' directories hold the same in every shard.
#[track_caller]
pub(crate) fn assert_equal(first: &Path, second: &Path) {
    let (compared, all) = shards_equal(first, second);
    assert_eq!(compared, all, "shards of {first:?} and {second:?} that were compared");
}

/// Asserts that two stopped nodes' directories hold the same in as many shards as one of them carries.
#[track_caller]
pub(crate) fn assert_equal_in(first: &Path, second: &Path, shard_count: u64) {
    assert_eq!(
        shards_equal(first, second).0,
        shard_count,
        "shards of {first:?} and {second:?} that were compared"
    );
}

/// How many shards `verify` compared and found equal, and how many there are.
#[track_caller]
fn shards_equal(first: &Path, second: &Path) -> (u64, u64) {
    let output = run_command(command(&["verify", "--json"]).arg(first).arg(second), PATIENCE);
    let text = stdout(&output);
    assert!(output.status.success(), "{first:?} and {second:?} differ:\n{text}{}", stderr(&output));
    let found: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let shards = found["shards"].as_array().expect("a list of shards").len();
    (found["shards_compared"].as_u64().expect("a number"), shards as u64)
}
