//! The demo and the small load, as a user runs them.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Node, PATIENCE, command, poll, run_command, stderr, stdout};

/// On an idle machine it takes some seconds.
const DEMO_TIME_MAX: Duration = Duration::from_secs(240);

#[test]
fn heavy_the_demo_shows_what_it_says_and_cleans_up() {
    let temp = tempfile::tempdir().expect("temp dir");
    let output = run_command(command(&["demo"]).env("TMPDIR", temp.path()), DEMO_TIME_MAX);
    let text = stdout(&output);
    assert!(output.status.success(), "{text}\n{}", stderr(&output));
    for words in [
        "hold the leader's last seq",
        "READONLY",
        "is killed",
        "serves again",
        "1 of 4 shards compared: equal",
    ] {
        assert!(text.contains(words), "{words:?} is missing:\n{text}");
    }
    assert!(std::fs::read_dir(temp.path()).expect("temp dir").next().is_none(), "the demo left files behind");
}

#[test]
fn heavy_a_kept_demo_goes_on_and_says_how_to_connect_and_end() {
    let temp = tempfile::tempdir().expect("temp dir");
    let output = run_command(command(&["demo", "--keep"]).env("TMPDIR", temp.path()), DEMO_TIME_MAX);
    let text = stdout(&output);
    assert!(output.status.success(), "{text}\n{}", stderr(&output));
    let word_after = |marker: &str| text.split(marker).nth(1).and_then(|rest| rest.split_whitespace().next());
    let port = word_after("redis-cli -p ").and_then(|port| port.parse().ok()).expect("a port");
    let answers = crate::harness::Client::connect(([127, 0, 0, 1], port).into()).call(&["PING"]);
    // The processes it names are the ones it started and left to us.
    let line = text.lines().find(|line| line.starts_with("kill ")).expect("how to end it");
    let pids: Vec<Pid> = line["kill ".len()..line.find(';').expect("a list of processes")]
        .split_whitespace()
        .map(|pid| pid.parse().ok().and_then(Pid::from_raw).expect("a process id"))
        .collect();
    for pid in &pids {
        kill_process(*pid, Signal::TERM).expect("it runs");
    }
    assert_eq!(answers.text(), "PONG");
    assert_eq!(pids.len(), 5);
    let gone = |pid: &Pid| !std::path::Path::new(&format!("/proc/{}/exe", pid.as_raw_nonzero())).exists();
    assert!(poll(PATIENCE, || pids.iter().all(gone)), "the demo's processes did not stop");
}

#[test]
fn the_small_load_reports_both_commands() {
    let directory = tempfile::tempdir().expect("temp dir");
    let node = Node::leader(&directory.path().join("leader"), &["--shard-count", "1"]);
    let address = node.ports.listen.to_string();
    let mut bench = command(&["bench", &address, "--duration", "300ms", "--clients", "2", "--keys", "100"]);
    let output = run_command(&mut bench, PATIENCE);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("\nSET ") && stdout(&output).contains("\nGET "), "{}", stdout(&output));
    // Values larger than the store's are refused, and the load says so.
    let mut bench = command(&["bench", &address, "--value-size", "1000"]);
    let output = run_command(&mut bench, PATIENCE);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("value is 1000 bytes"), "{}", stderr(&output));
}
