//! Measures slotstream and its peers in one run and prints one table of ratios.
//!
//! See `scripts/bench` for how to call it. The table goes to standard output, progress to standard error, all
//! samples to `target/results.json`. Nothing here asserts on a clock: a target that is missed is a "NO" in the
//! table, not a failure.

mod armdb_engine;
mod clocks;
mod durable;
mod engine;
mod follower_process;
mod idle;
mod in_process;
mod replication;
mod report;
mod resp_client;
mod restart;
mod rows;
mod server;
mod slotstream_engine;
mod storage;
mod through_resp;
mod workload;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use armdb_engine::Armdb;
use engine::EngineName;
use report::{Report, Side};
use server::Launcher;
use slotstream_engine::Slotstream;

const USAGE: &str = "usage: scripts/bench [inprocess|redis|idle|replication|restart|storage|all] [--quick] [--only ours|peer] [--binary PATH]";

fn main() -> ExitCode {
    match run_words() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("slotstream-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_words() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["follow", engine, directory, leader, record_count] => {
            let (directory, leader) = (Path::new(directory), leader.parse()?);
            follow(EngineName::parse(engine)?, directory, leader, record_count.parse()?)
        }
        words => measure(&Arguments::parse(words)?),
    }
}

fn follow(engine: EngineName, directory: &Path, leader: SocketAddr, record_count: u64) -> Result<()> {
    match engine {
        EngineName::Slotstream => follower_process::run::<Slotstream>(directory, leader, record_count),
        EngineName::Armdb => follower_process::run::<Armdb<true>>(directory, leader, record_count),
        EngineName::ArmdbUnsynced => follower_process::run::<Armdb<false>>(directory, leader, record_count),
    }
}

struct Arguments {
    suite: String,
    is_quick: bool,
    only: Option<Side>,
    binary: PathBuf,
}

impl Arguments {
    fn parse(words: &[&str]) -> Result<Self> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut arguments = Self {
            suite: "all".to_owned(),
            is_quick: false,
            only: None,
            binary: package.join("../../target/release/slotstream"),
        };
        let mut words = words.iter().copied();
        while let Some(word) = words.next() {
            match word {
                "inprocess" | "redis" | "idle" | "replication" | "restart" | "storage" | "all" => {
                    arguments.suite = word.to_owned()
                }
                "--quick" => arguments.is_quick = true,
                "--only" => {
                    arguments.only = match words.next() {
                        Some("ours") => Some(Side::Ours),
                        Some("peer") => Some(Side::Peer),
                        other => bail!("--only is {other:?}, wanted ours or peer\n{USAGE}"),
                    }
                }
                "--binary" => arguments.binary = words.next().context(USAGE)?.into(),
                _ => bail!("argument is {word:?}\n{USAGE}"),
            }
        }
        Ok(arguments)
    }

    fn runs(&self, suite: &str) -> bool {
        self.suite == suite || self.suite == "all"
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    // Beside the build, so that both sides' files lie on the disk that holds the repository.
    let data = DataFolder(target.join(format!("data-{}", std::process::id())));
    let mut report = Report::default();
    let result = run(arguments, &mut report, &data.0);
    // What was measured before a failure is worth as much as without it.
    println!("{}", report.markdown());
    report.write_json(&target.join("results.json"), &environment(arguments))?;
    result
}

/// Where stores and servers keep their files; gone when dropped, whatever happened.
struct DataFolder(PathBuf);

impl Drop for DataFolder {
    fn drop(&mut self) {
        // It may never have been made.
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn run(arguments: &Arguments, report: &mut Report, data: &Path) -> Result<()> {
    if arguments.runs("inprocess") {
        let size = if arguments.is_quick { in_process::Size::QUICK } else { in_process::Size::FULL };
        in_process::run(report, size, data, arguments.only)?;
    }
    let launcher = Launcher { binary: arguments.binary.clone(), folder: data.to_owned() };
    if arguments.runs("redis") {
        let size = if arguments.is_quick { through_resp::Size::QUICK } else { through_resp::Size::FULL };
        through_resp::run(report, size, &launcher, arguments.only)?;
        durable::run(report, size, &launcher, arguments.only)?;
    }
    if arguments.runs("replication") {
        let size = if arguments.is_quick { replication::Size::QUICK } else { replication::Size::FULL };
        replication::run(report, size, &launcher, arguments.only)?;
    }
    if arguments.runs("restart") {
        let size = if arguments.is_quick { restart::Size::QUICK } else { restart::Size::FULL };
        restart::run(report, size, &arguments.binary, &data.join("restart"), arguments.only)?;
    }
    if arguments.runs("storage") {
        let size = if arguments.is_quick { storage::Size::QUICK } else { storage::Size::FULL };
        storage::run(report, size, &arguments.binary, &data.join("storage"), arguments.only)?;
        if arguments.only != Some(Side::Peer) {
            rows::run(report, size.rounds, 1_000_000, &arguments.binary, &data.join("rows"))?;
        }
    }
    if arguments.runs("idle") && arguments.only != Some(Side::Peer) {
        let rounds = if arguments.is_quick { 1 } else { 5 };
        idle::run(report, rounds, &launcher)?;
    }
    Ok(())
}

fn environment(arguments: &Arguments) -> serde_json::Value {
    let line = |program: &str, words: &[&str]| {
        let output = Command::new(program).args(words).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    serde_json::json!({
        "suite": arguments.suite,
        "quick": arguments.is_quick,
        "commit": line("git", &["rev-parse", "HEAD"]),
        "date": line("date", &["--utc", "--iso-8601=seconds"]),
        "kernel": line("uname", &["-r"]),
        "cpu": cpu.trim_start_matches([' ', '\t', ':']),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "redis": line("redis-server", &["--version"]),
    })
}
