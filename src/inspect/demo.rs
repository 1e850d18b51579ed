//! `slotstream demo`: a leader and a follower process per shard, in a temporary directory, told as a story.
//!
//! The processes are real ones of this very executable, at ports the kernel picks.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use super::process::{ports_file, start_process, terminate};
use super::redis::{Client, Reply};
use super::{Verdict, fetch, status, verify};
use crate::status::{Addresses, Status};
use crate::stop::Stop;
use crate::units;

const SHARD_COUNT: u16 = 4;
const RECORDS: u32 = 200_000;
const CHANGES: u32 = 20_000;
const PIPELINE: u32 = 500;
/// How long a process may take to serve, to catch up, to stop.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Why the demo did not end well.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A file, a process or a connection failed.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What went wrong.
        error: io::Error,
    },
    /// A node did not become what it should in time.
    #[error("waited {PATIENCE:?} in vain until {0}; logs are in {1}")]
    Patience(String, String),
    /// The other side answered something else.
    #[error("{what}: found {found}, wanted {wanted}")]
    Unexpected {
        /// What was asked.
        what: &'static str,
        /// What came.
        found: String,
        /// What should have come.
        wanted: String,
    },
    /// A node's HTTP port.
    #[error(transparent)]
    Fetch(#[from] fetch::FetchError),
    /// Interrupted.
    #[error("stopped")]
    Stopped,
}

trait What<T> {
    fn what(self, what: &'static str) -> Result<T, DemoError>;
}

impl<T> What<T> for io::Result<T> {
    fn what(self, what: &'static str) -> Result<T, DemoError> {
        self.map_err(|error| DemoError::Io { what, error })
    }
}

/// Runs the whole story. With `keep` the processes stay.
pub fn run(keep: bool, stop: &Stop) -> Result<Verdict, DemoError> {
    let start = Instant::now();
    let directory = std::env::temp_dir().join(format!("slotstream-demo-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir(&directory).what("make a temporary directory")?;
    let mut demo = Demo { directory, keep, stop: stop.clone(), nodes: Vec::new() };
    let verdict = demo.play()?;
    if keep {
        demo.how_to_connect();
    } else {
        say(format_args!("Done in {:.1} s.", start.elapsed().as_secs_f64()));
    }
    Ok(verdict)
}

fn say(text: std::fmt::Arguments<'_>) {
    // Whoever listened may be gone; the story still ends as it should.
    drop(writeln!(io::stdout(), "{text}"));
}

fn chapter(title: &str) {
    say(format_args!("\n== {title}"));
}

/// One process.
struct Node {
    name: String,
    arguments: Vec<String>,
    directory: PathBuf,
    child: Child,
    addresses: Addresses,
}

/// The stage. Dropping it ends the processes and removes the directory, whatever happened before.
struct Demo {
    directory: PathBuf,
    keep: bool,
    stop: Stop,
    nodes: Vec<Node>,
}

impl Drop for Demo {
    fn drop(&mut self) {
        if self.keep && !std::thread::panicking() && !self.nodes.is_empty() {
            return;
        }
        for node in &mut self.nodes {
            // Ended already, or ended now; there is nothing else to do about it here.
            drop(node.child.kill());
            drop(node.child.wait());
        }
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            eprintln!("slotstream: {} is left behind: {error}", self.directory.display());
        }
    }
}

impl Demo {
    fn play(&mut self) -> Result<Verdict, DemoError> {
        chapter(&format!("A leader with {SHARD_COUNT} shards, and a follower process for each shard"));
        self.start_all()?;
        chapter("Writes through the leader's Redis port");
        self.write("first", RECORDS, 0)?;
        self.converge("all followers")?;
        say(format_args!("{}", status::table(self.statuses()?.iter())));
        chapter("Lag under load");
        self.lag_under_load()?;
        chapter("Reading from a follower");
        self.read_from_followers()?;
        chapter("Some of the leader's metrics");
        self.metrics()?;
        chapter("kill -9 of a follower, writes while it is away, and its return");
        self.kill_and_return()?;
        if self.keep {
            return Ok(Verdict::Good);
        }
        chapter("An orderly stop, then every slot compared");
        self.stop_and_verify()
    }

    fn start_all(&mut self) -> Result<(), DemoError> {
        let sizes = ["--key-size", "32", "--value-size", "64"].map(str::to_owned);
        let mut arguments = vec!["leader".to_owned(), "--shard-count".to_owned(), SHARD_COUNT.to_string()];
        arguments.extend(sizes);
        arguments.extend(["--replication-listen".to_owned(), "127.0.0.1:0".to_owned()]);
        self.spawn("leader", arguments)?;
        let leader = self.nodes[0].addresses.clone();
        let replication = leader.replication_listen.ok_or_else(|| DemoError::Unexpected {
            what: "the leader's ports file",
            found: "no replication address".to_owned(),
            wanted: "one".to_owned(),
        })?;
        for shard in 0..SHARD_COUNT {
            let arguments =
                ["follower", "--leader", &replication.to_string(), "--shards", &shard.to_string()]
                    .map(str::to_owned);
            self.spawn(&format!("follower-{shard}"), arguments.to_vec())?;
        }
        for node in &self.nodes {
            say(format_args!(
                "{:<12} pid {:<7} redis {:<16} http {}",
                node.name,
                node.child.id(),
                node.addresses.listen,
                node.addresses.http_listen
            ));
        }
        Ok(())
    }

    fn spawn(&mut self, name: &str, arguments: Vec<String>) -> Result<(), DemoError> {
        let directory = self.directory.join(name);
        let child = start_process(&directory, &arguments).what("start a process")?;
        let none = SocketAddr::from(([127, 0, 0, 1], 0));
        let addresses = Addresses { listen: none, http_listen: none, replication_listen: None };
        // On the stage before it serves, so that a failure ends it too.
        self.nodes.push(Node { name: name.to_owned(), arguments, directory, child, addresses });
        let index = self.nodes.len() - 1;
        self.wait_until_it_serves(index)
    }

    fn wait_until_it_serves(&mut self, index: usize) -> Result<(), DemoError> {
        let ports = ports_file(&self.nodes[index].directory);
        let what = format!("{} serves", self.nodes[index].name);
        self.wait(&what, |_| Ok(ports.exists()))?;
        let text = std::fs::read_to_string(&ports).what("read a ports file")?;
        self.nodes[index].addresses =
            serde_json::from_str(&text).map_err(io::Error::other).what("read a ports file")?;
        Ok(())
    }

    /// Asks until the condition holds; gives up after a while, at once when interrupted.
    fn wait(
        &self,
        what: &str,
        mut condition: impl FnMut(&Self) -> Result<bool, DemoError>,
    ) -> Result<Duration, DemoError> {
        let start = Instant::now();
        loop {
            if condition(self)? {
                return Ok(start.elapsed());
            }
            if self.stop.is_set() {
                return Err(DemoError::Stopped);
            }
            if start.elapsed() > PATIENCE {
                return Err(DemoError::Patience(what.to_owned(), self.directory.display().to_string()));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    fn statuses(&self) -> Result<Vec<Status>, DemoError> {
        self.nodes.iter().map(|node| Ok(status::ask(&node.addresses.http_listen.to_string())?)).collect()
    }

    fn write(&self, word: &str, records: u32, first: u32) -> Result<(), DemoError> {
        let mut client = Client::connect(self.nodes[0].addresses.listen).what("connect to the leader")?;
        let start = Instant::now();
        let mut next = first;
        while next < first + records {
            let batch = PIPELINE.min(first + records - next);
            for number in next..next + batch {
                let (key, value) = (key(number), value(word, number));
                client.queue(&[b"SET", key.as_bytes(), value.as_bytes()]);
            }
            client.flush().what("write to the leader")?;
            for _ in 0..batch {
                expect(
                    "SET",
                    &client.reply().what("read the leader's reply")?,
                    &Reply::Simple("OK".to_owned()),
                )?;
            }
            next += batch;
        }
        let elapsed = start.elapsed().as_secs_f64();
        let rate = f64::from(records) / elapsed;
        say(format_args!(
            "{} SETs acknowledged in {elapsed:.2} s, {rate:.0} a second, one client, pipeline {PIPELINE}",
            units::count(u64::from(records))
        ));
        Ok(())
    }

    fn converge(&self, who: &str) -> Result<(), DemoError> {
        let elapsed = self.wait("followers hold what the leader holds", |demo| {
            let statuses = demo.statuses()?;
            let (leader, followers) = (&statuses[0], &statuses[1..]);
            Ok(followers.iter().flat_map(|follower| &follower.shards).all(|shard| {
                let head = leader.shards.iter().find(|head| head.shard == shard.shard).map(|head| head.seq);
                shard.phase == "stream" && Some(shard.applied_seq) == head
            }) && followers.iter().all(|follower| !follower.shards.is_empty()))
        })?;
        say(format_args!("{who} hold the leader's last seq {:.1} ms later", elapsed.as_secs_f64() * 1e3));
        Ok(())
    }

    fn lag_under_load(&self) -> Result<(), DemoError> {
        let mut worst_records = 0;
        let mut worst_seconds: f64 = 0.0;
        let mut samples = 0_u32;
        std::thread::scope(|scope| -> Result<(), DemoError> {
            let writer = scope.spawn(|| self.write("second", RECORDS, 0));
            while !writer.is_finished() {
                let leader = status::ask(&self.nodes[0].addresses.http_listen.to_string())?;
                for link in &leader.links {
                    let head = leader.shards.iter().find(|shard| shard.shard == link.shard);
                    let lag = head.map_or(0, |shard| shard.seq.saturating_sub(link.applied_seq));
                    worst_records = worst_records.max(lag);
                    worst_seconds = worst_seconds.max(link.lag_seconds);
                }
                samples += 1;
                std::thread::sleep(POLL_INTERVAL);
            }
            writer.join().map_err(|_| DemoError::Stopped)?
        })?;
        say(format_args!(
            "worst of {samples} samples at the leader, over all followers: {} records not yet acknowledged, {:.0} ms behind",
            units::count(worst_records),
            worst_seconds * 1e3
        ));
        self.converge("all followers")
    }

    fn read_from_followers(&self) -> Result<(), DemoError> {
        let (key, wanted) = (key(42), value("second", 42));
        for node in &self.nodes[1..] {
            let mut client = Client::connect(node.addresses.listen).what("connect to a follower")?;
            let reply = client.call(&[b"GET", key.as_bytes()]).what("read from a follower")?;
            if let Reply::Bulk(Some(found)) = reply {
                let found = String::from_utf8_lossy(&found).into_owned();
                if found != wanted {
                    return Err(DemoError::Unexpected { what: "GET from a follower", found, wanted });
                }
                say(format_args!("{} has its shard: GET {key} -> {found}", node.name));
                if let Reply::Error(error) =
                    client.call(&[b"SET", key.as_bytes(), b"x"]).what("write to a follower")?
                {
                    say(format_args!("{} takes no writes: SET {key} x -> {error}", node.name));
                    return Ok(());
                }
            }
        }
        Err(DemoError::Unexpected {
            what: "GET and SET on the followers",
            found: "no record, or a write was taken".to_owned(),
            wanted: "one has the record and is read-only".to_owned(),
        })
    }

    fn metrics(&self) -> Result<(), DemoError> {
        let address = self.nodes[0].addresses.http_listen.to_string();
        let text = fetch::fetch(&address, "/metrics")?;
        let wanted = [
            "slotstream_is_leader",
            "slotstream_connected_followers{state=\"stream\"}",
            "slotstream_full_scans_total",
            "slotstream_replication_records_sent_total",
            "slotstream_replication_sent_bytes_total",
            "slotstream_follower_lag_seconds{",
            "slotstream_slots_used{",
        ];
        let mut lines: Vec<&str> =
            text.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name))).collect();
        lines.sort_unstable();
        for line in lines {
            say(format_args!("  {line}"));
        }
        say(format_args!("  ... from http://{address}/metrics"));
        Ok(())
    }

    fn scans(&self) -> Result<(u64, u64), DemoError> {
        let text = fetch::fetch(&self.nodes[0].addresses.http_listen.to_string(), "/metrics")?;
        let value = |name: &str| {
            text.lines()
                .filter_map(|line| line.strip_prefix(name))
                .find_map(|rest| rest.trim().parse::<u64>().ok())
                .unwrap_or(0)
        };
        Ok((value("slotstream_full_scans_total "), value("slotstream_scan_slots_sent_total ")))
    }

    fn kill_and_return(&mut self) -> Result<(), DemoError> {
        let victim = 1;
        let (full_before, slots_before) = self.scans()?;
        let node = &mut self.nodes[victim];
        node.child.kill().what("kill a follower")?;
        node.child.wait().what("reap a follower")?;
        say(format_args!("{} (pid {}) is killed", node.name, node.child.id()));
        self.write("third", CHANGES, 0)?;
        let ports = ports_file(&self.nodes[victim].directory);
        std::fs::remove_file(&ports).what("remove a ports file")?;
        let start = Instant::now();
        let node = &mut self.nodes[victim];
        node.child = start_process(&node.directory, &node.arguments).what("start a process")?;
        self.wait_until_it_serves(victim)?;
        say(format_args!(
            "{} serves again {:.0} ms after its start",
            self.nodes[victim].name,
            start.elapsed().as_secs_f64() * 1e3
        ));
        self.converge("all followers")?;
        let (full_after, slots_after) = self.scans()?;
        say(format_args!(
            "the leader sent it {} slots, of about {} that changed in its shard; full scans: {full_before} before, {full_after} after",
            units::count(slots_after - slots_before),
            units::count(u64::from(CHANGES / u32::from(SHARD_COUNT)))
        ));
        if full_after != full_before {
            return Err(DemoError::Unexpected {
                what: "full scans after the return",
                found: full_after.to_string(),
                wanted: full_before.to_string(),
            });
        }
        Ok(())
    }

    fn stop_and_verify(&mut self) -> Result<Verdict, DemoError> {
        for node in &mut self.nodes {
            let start = Instant::now();
            terminate(&node.child).what("stop a process")?;
            while node.child.try_wait().what("wait for a process")?.is_none() {
                if start.elapsed() > PATIENCE {
                    let directory = self.directory.display().to_string();
                    return Err(DemoError::Patience(format!("{} stops", node.name), directory));
                }
                std::thread::sleep(POLL_INTERVAL);
            }
            say(format_args!("{} stopped in {:.0} ms", node.name, start.elapsed().as_secs_f64() * 1e3));
        }
        let mut verdict = Verdict::Good;
        for follower in &self.nodes[1..] {
            say(format_args!("slotstream verify leader {}", follower.name));
            let found =
                verify::compare(&self.nodes[0].directory, &follower.directory, false, &mut io::stdout())
                    .map_err(|error| DemoError::Unexpected {
                        what: "verify",
                        found: error.to_string(),
                        wanted: "two equal stores".to_owned(),
                    })?;
            if found == Verdict::Bad {
                verdict = Verdict::Bad;
            }
        }
        Ok(verdict)
    }

    fn how_to_connect(&self) {
        chapter("Left running");
        let leader = &self.nodes[0].addresses;
        say(format_args!("redis-cli -p {} SET hello world", leader.listen.port()));
        for node in &self.nodes[1..] {
            say(format_args!(
                "redis-cli -p {} DBSIZE          # {}",
                node.addresses.listen.port(),
                node.name
            ));
        }
        let http: Vec<String> =
            self.nodes.iter().map(|node| node.addresses.http_listen.to_string()).collect();
        say(format_args!("slotstream status {}", http.join(" ")));
        say(format_args!("curl http://{}/metrics", leader.http_listen));
        let pids: Vec<String> = self.nodes.iter().map(|node| node.child.id().to_string()).collect();
        say(format_args!("kill {}; rm -r {}     # the end", pids.join(" "), self.directory.display()));
    }
}

fn key(number: u32) -> String {
    format!("player:{number}")
}

fn value(word: &str, number: u32) -> String {
    format!("{word} value of {number}")
}

fn expect(what: &'static str, found: &Reply, wanted: &Reply) -> Result<(), DemoError> {
    if found == wanted {
        return Ok(());
    }
    Err(DemoError::Unexpected { what, found: found.to_string(), wanted: wanted.to_string() })
}
