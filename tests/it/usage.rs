//! What every command has in common: exit codes, and signals.

use std::net::TcpListener;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Node, PATIENCE, command, poll, run, stderr, stdout};

/// `import`, `export` and `tail` once called some of it a failure.
#[test]
fn bad_usage_of_every_command_is_exit_code_2_and_one_line() {
    let directory = tempfile::tempdir().expect("temp dir");
    let here = directory.path().to_string_lossy().into_owned();
    let nobody = "127.0.0.1:1";
    let table: [(&[&str], &str); 22] = [
        (&["leader", "--data-dir", &here, "--scan-rate-max", "50"], "wanted at least 65536 (64KiB)"),
        (&["leader", "--data-dir", &here, "--promote=perhaps"], "--promote"),
        (&["follower", "--data-dir", &here, "--leader", "nonsense"], "no HOST:PORT"),
        (&["follower", "--data-dir", &here, "--leader", nobody, "--shards", "3-1"], "names no shards"),
        (&["status", "nonsense"], "no HOST:PORT"),
        (&["promote"], "<ADDR>"),
        (&["switchover", nobody], "--to"),
        (&["inspect", &here, "--shard", "x"], "--shard"),
        (&["verify"], "<DIR>"),
        (&["verify", &here, &here], "named twice"),
        (&["backup", nobody], "--to"),
        (&["restore", "--to", &here], "<BACKUP>"),
        (&["import", nobody, "rows.txt"], "--format json, csv or rdb"),
        (&["import", nobody, "rows.csv", "--format", "xml"], "xml"),
        (&["export", nobody, "rows.txt"], "--format json, csv or rdb"),
        (&["export", nobody], "<FILE>"),
        (&["tail", nobody, "--from", "yesterday"], "is no position; wanted start, now"),
        (&["tail", nobody, "--no-acks"], "--connect"),
        (&["tail", nobody, "--listen", "0.0.0.0:0"], "wanted a token"),
        (&["demo", "now"], "'now'"),
        (&["bench", "--clients", "0"], "--clients"),
        (&["help", "me"], "'me'"),
    ];
    let help = stdout(&run(&["--help"]));
    let commands =
        help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("a list");
    // What goes on from the line before is further in.
    let named = commands.lines().filter(|line| !line.starts_with("    "));
    for name in named.map(|line| line.split_whitespace().next().expect("a name")) {
        assert!(table.iter().any(|(words, _)| words[0] == name), "the table lacks {name}");
    }
    for (words, wanted) in table {
        let output = run(words);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {text}");
        assert!(
            text.lines().count() == 1 && text.contains(wanted),
            "{words:?}: wanted {wanted:?} in: {text}"
        );
    }
    assert_eq!(std::fs::read_dir(directory.path()).expect("readable").count(), 0, "something was made");
}

#[test]
fn the_help_names_every_exit_code() {
    let help = stdout(&run(&["--help"]));
    let codes = help.split("Exit codes:").nth(1).expect("exit codes");
    for code in [" 0 ", " 1 ", " 2 ", " 101 ", " 130 ", " 135 "] {
        assert!(codes.contains(code), "{code} is not in: {codes}");
    }
}

/// Supervisors signal a process and its group: the second of the two once ended it before it was in order.
#[test]
fn signals_that_come_together_are_one() {
    let directory = tempfile::tempdir().expect("temp dir");
    let mut node = Node::leader(&directory.path().join("a"), &[]);
    assert_eq!(node.client().call(&["SET", "key", "value"]).text(), "OK");
    node.signal(Signal::TERM);
    node.signal(Signal::INT);
    assert_eq!(node.wait(PATIENCE).code(), Some(0), "{}", node.log());
    node.restart();
    assert!(node.log().contains("\"last_ending\":\"clean\""), "{}", node.log());
}

#[test]
fn a_second_signal_ends_what_hangs() {
    // Nobody answers there.
    let silent = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = silent.local_addr().expect("address").to_string();
    let mut child = command(&["tail", &address])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let pid = Pid::from_child(&child);
    silent.accept().expect("it asks");
    let mut code = None;
    poll(PATIENCE, || {
        // Until a second has passed, each of them is the first one again.
        kill_process(pid, Signal::TERM).expect("a child of ours");
        code = child.try_wait().expect("a child of ours").map(|status| status.code());
        code.is_some()
    });
    if code.is_none() {
        child.kill().expect("a child of ours");
        child.wait().expect("it ends");
    }
    assert_eq!(code, Some(Some(130)));
}
