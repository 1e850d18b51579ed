//! Bad usage and bad surroundings: one clear line, the right exit code, and all data as it was.

use std::net::TcpListener;
use std::path::Path;
use std::process::Output;

use crate::harness::{
    ANY_PORTS, Node, PATIENCE, command, http_get, run, run_command, stderr, stdout, wait_until,
};

/// One line, with the exit code and every one of the words.
#[track_caller]
fn assert_fails(output: &Output, code: i32, words: &[&str]) {
    let text = stderr(output);
    // Log lines (JSON, since this is no terminal) may stand above the last line, which is the error.
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('{')).collect();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(lines.len(), 1, "one line, not:\n{text}");
    for word in words {
        assert!(lines[0].contains(word), "{word:?} is not in: {}", lines[0]);
    }
}

/// A leader that is expected to end by itself; ports are 0 unless given.
fn leader(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = command(&["leader", "--data-dir"]);
    command.arg(directory);
    for option in ["--listen", "--replication-listen", "--http-listen"] {
        if !arguments.contains(&option) {
            command.args([option, "127.0.0.1:0"]);
        }
    }
    run_command(command.args(arguments), PATIENCE)
}

fn follower(directory: &Path, leader: &str, arguments: &[&str]) -> Output {
    let mut command =
        command(&["follower", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--data-dir"]);
    command.arg(directory);
    run_command(command.args(["--leader", leader]).args(arguments), PATIENCE)
}

/// Every file below a directory with its bytes, to see that nothing was changed.
fn contents(directory: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if path.file_name().is_some_and(|name| name != "LOCK") {
            let bytes = std::fs::read(&path).expect("file");
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

#[test]
fn version_and_help_are_on_standard_output() {
    let version = run(&["--version"]);
    assert!(version.status.success());
    assert_eq!(stdout(&version), format!("slotstream {}\n", env!("CARGO_PKG_VERSION")));
    let help = run(&["leader", "--help"]);
    assert!(help.status.success());
    for word in ["--replication-listen", "127.0.0.1:8379", "SLOTSTREAM_RING_SIZE", "127.0.0.1:6379"] {
        assert!(stdout(&help).contains(word), "{word} is missing:\n{}", stdout(&help));
    }
}

#[test]
fn every_option_that_the_readme_names_is_there() {
    let commands = [
        "leader",
        "follower",
        "status",
        "promote",
        "switchover",
        "inspect",
        "verify",
        "backup",
        "restore",
        "tail",
        "demo",
        "bench",
    ];
    let help: String = commands.iter().map(|command| stdout(&run(&[command, "--help"]))).collect();
    let is_option = |c: char| c.is_ascii_lowercase() || c == '-';
    let named = include_str!("../../README.md").split(|c: char| !is_option(c)).filter(|word| {
        // Those of cargo are none of ours.
        word.starts_with("--")
            && word.len() > 4
            && !["--locked", "--release", "--example", "--path"].contains(word)
    });
    let unknown: Vec<&str> = named
        .clone()
        .filter(|option| !help.split(|c: char| !is_option(c)).any(|word| word == *option))
        .collect();
    assert!(unknown.is_empty() && named.count() > 10, "{unknown:?}");
}

#[test]
fn bad_usage_is_exit_code_2_and_one_line() {
    let directory = tempfile::tempdir().expect("temp dir");
    assert_fails(&run(&[]), 2, &["no command"]);
    assert_fails(&run(&["lead"]), 2, &["unrecognized subcommand 'lead'"]);
    assert_fails(&run(&["leader"]), 2, &["--data-dir DIR is required", "SLOTSTREAM_DATA_DIR"]);
    assert_fails(&leader(directory.path(), &["--frobnicate"]), 2, &["--frobnicate"]);
    assert_fails(&leader(directory.path(), &["--shard-count", "four"]), 2, &["four", "--shard-count"]);
    assert_fails(&leader(directory.path(), &["--listen", "0.0.0.0:0"]), 2, &["--allow-remote-clients"]);
    assert_fails(&leader(directory.path(), &["--log-level", "nonsense"]), 2, &["nonsense", "warn", "debug"]);
    assert_fails(&run(&["follower", "--data-dir", "x"]), 2, &["--leader HOST:PORT is required"]);
    assert_fails(&run(&["status"]), 2, &["HTTP_ADDR"]);
    let config = directory.path().join("node.toml");
    std::fs::write(&config, "shard_cuont = 4\n").expect("file");
    let config = config.to_string_lossy().into_owned();
    assert_fails(
        &leader(&directory.path().join("d"), &["--config", &config]),
        2,
        &["unknown key `shard_cuont`", &config],
    );
    assert!(!directory.path().join("d").exists(), "bad usage made a directory");
    // A file where a directory is wanted is no matter of usage.
    let file = directory.path().join("node.toml");
    assert_fails(&leader(&file, &[]), 1, &[&config, "wanted a directory"]);
    assert_fails(&follower(&file, "127.0.0.1:1", &[]), 1, &[&config, "wanted a directory"]);
    assert_fails(&run(&["verify", &config]), 1, &[&config, "wanted a directory"]);
    assert_fails(&run(&["inspect", &config]), 1, &[&config, "Not a directory"]);
}

#[test]
fn flags_win_over_environment_and_environment_over_file() {
    let directory = tempfile::tempdir().expect("temp dir");
    let config = directory.path().join("node.toml");
    std::fs::write(&config, "key_size = 11\nvalue_size = 22\nshard_count = 1\n").expect("file");
    let data = directory.path().join("data");
    let mut command = command(&["leader"]);
    command
        .args(ANY_PORTS)
        .args(["--shard-count", "3", "--log-level", "warn", "--data-dir"])
        .arg(&data)
        .arg("--config")
        .arg(&config);
    // It cannot write this, so it ends once it serves, having made its store.
    command
        .env("SLOTSTREAM_VALUE_SIZE", "33")
        .env("SLOTSTREAM_SHARD_COUNT", "2")
        .env("SLOTSTREAM_PORTS_FILE", "/does/not/exist");
    assert_fails(&run_command(&mut command, PATIENCE), 1, &["/does/not/exist", "--ports-file"]);
    let inspect = run_command(crate::harness::command(&["inspect", "--json"]).arg(&data), PATIENCE);
    let report: serde_json::Value = serde_json::from_slice(&inspect.stdout).expect("JSON");
    let shard = &report["shards"][0];
    assert_eq!(
        (&shard["shard_count"], &shard["key_size"], &shard["value_size"]),
        (&3.into(), &11.into(), &33.into())
    );
}

#[test]
fn geometry_is_checked_and_never_changes() {
    let directory = tempfile::tempdir().expect("temp dir");
    let data = directory.path().join("data");
    for (arguments, code, words) in [
        (&["--shard-count", "0"], 2, &["'0'", "1..=1024"]),
        (&["--shard-count", "1025"], 2, &["'1025'", "1..=1024"]),
        (&["--key-size", "0"], 2, &["'0'", "1..=1024"]),
        (&["--key-size", "1025"], 2, &["'1025'", "1..=1024"]),
        (&["--shard-prefix-bits", "513"], 2, &["513 bits", "512 bits"]),
    ] {
        assert_fails(&leader(&data, arguments), code, words);
        assert!(!data.join("shards").exists(), "{arguments:?} made a store");
    }
    let mut node = Node::leader(&data, &["--shard-count", "2", "--key-size", "16", "--value-size", "32"]);
    assert_eq!(node.client().call(&["SET", "k", "v"]).text(), "OK");
    assert!(node.terminate().0.success());
    let before = contents(&data);
    for (option, wanted, found) in [
        ("--shard-count", "4", "--shard-count 2"),
        ("--key-size", "17", "--key-size 16"),
        ("--value-size", "31", "--value-size 32"),
        ("--shard-prefix-bits", "8", "was made without"),
    ] {
        let output = leader(&data, &[option, wanted]);
        assert_fails(&output, 1, &[option, found, &format!("wanted {wanted}")]);
        assert!(contents(&data) == before, "{option} changed the store");
    }
    // Unspecified sizes are taken from the directory.
    node.restart();
    assert_eq!(node.client().call(&["GET", "k"]).text(), "v");
}

#[test]
fn a_directory_in_use_and_a_port_in_use_are_refused() {
    let directory = tempfile::tempdir().expect("temp dir");
    let data = directory.path().join("data");
    let node = Node::leader(&data, &[]);
    let pid = node.pid().to_string();
    assert_fails(&leader(&data, &[]), 1, &["in use", &pid]);
    assert_fails(&run_command(command(&["verify"]).arg(&data), PATIENCE), 1, &["in use", &pid]);
    let other = directory.path().join("other");
    for (option, address) in [
        ("--listen", node.ports.listen),
        ("--http-listen", node.ports.http_listen),
        ("--replication-listen", node.ports.replication_listen.expect("a leader has one")),
    ] {
        let address = address.to_string();
        assert_fails(&leader(&other, &[option, &address]), 1, &[&address, option, "in use"]);
        assert!(!other.exists(), "{option} in use, and yet a directory was made");
    }
    // Inspecting takes no lock.
    let inspect = run_command(command(&["inspect"]).arg(&data), PATIENCE);
    assert!(inspect.status.success() && stdout(&inspect).contains(&format!("in use by process {pid}")));
    assert_eq!(http_get(node.ports.http_listen, "/livez").0, 200);
}

#[test]
fn a_follower_pointed_at_something_else_says_what_it_found() {
    let directory = tempfile::tempdir().expect("temp dir");
    let data = directory.path().join("follower");
    let node = Node::leader(&directory.path().join("leader"), &["--shard-count", "2"]);
    let replication = node.ports.replication_listen.expect("a leader has one").to_string();
    assert_fails(&follower(&data, &node.ports.listen.to_string(), &[]), 1, &[&node.ports.listen.to_string()]);
    assert_fails(
        &follower(&data, &node.ports.http_listen.to_string(), &[]),
        1,
        &[&node.ports.http_listen.to_string()],
    );
    assert!(!data.join("shards").exists(), "a store was made without a leader");
    assert_fails(
        &follower(&data, &replication, &["--shards", "1,2"]),
        1,
        &["--shards names shard 2", "has 2"],
    );
}

#[test]
fn a_follower_of_another_store_is_refused_and_keeps_its_data() {
    let directory = tempfile::tempdir().expect("temp dir");
    let first = Node::leader(&directory.path().join("first"), &["--shard-count", "1"]);
    let second = Node::leader(&directory.path().join("second"), &["--shard-count", "1"]);
    assert_eq!(first.client().call(&["SET", "k", "first"]).text(), "OK");
    let data = directory.path().join("follower");
    let mut node = Node::follower(&data, &first, &[]);
    crate::harness::wait_in_sync(&first, &node);
    assert!(node.terminate().0.success());
    let store_id = |node: &Node| node.status()["store_id"].as_str().expect("an id").to_owned();
    let mut astray = Node::follower_of(&data, second.replication(), &[]);
    let refused = |status: &serde_json::Value| {
        let reason = status["shards"][0]["reason"].as_str().unwrap_or_default();
        reason.contains(&store_id(&first)) && reason.contains(&store_id(&second))
    };
    wait_until("it says why", PATIENCE, || refused(&astray.status()));
    assert_eq!(astray.client().call(&["GET", "k"]).text(), "first");
    assert!(astray.terminate().0.success());
    node.restart();
    crate::harness::wait_in_sync(&first, &node);
    assert_eq!(node.client().call(&["GET", "k"]).text(), "first");
}

#[test]
fn a_follower_waits_for_a_leader_that_is_not_there_yet() {
    let directory = tempfile::tempdir().expect("temp dir");
    let data = directory.path().join("follower");
    // A port that is free now, and most likely still is when the follower asks.
    let free = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
    let ports = directory.path().join("ports");
    let mut command = command(&["follower", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]);
    command
        .arg("--data-dir")
        .arg(&data)
        .arg("--ports-file")
        .arg(&ports)
        .args(["--leader", &free.to_string()]);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("starts");
    let lines = std::io::BufReader::new(child.stderr.take().expect("piped"));
    let mut lines = std::io::BufRead::lines(lines).map_while(Result::ok);
    let waits = lines.any(|line| line.contains("waiting for the leader"));
    // It also stops in order while it waits.
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal");
    // It does not ask again, but for the time that may have been under way.
    let asked_again = lines.filter(|line| line.contains("waiting for the leader")).count();
    let status = child.wait().expect("it ends");
    assert!(status.success() && asked_again <= 1, "{status}, asked {asked_again} times more");
    assert!(waits && !ports.exists() && !data.join("shards").exists());
}

#[test]
fn foreign_newer_and_truncated_shard_files_are_refused_untouched_and_a_damaged_slot_is_found() {
    let directory = tempfile::tempdir().expect("temp dir");
    let data = directory.path().join("data");
    let mut node = Node::leader(&data, &["--shard-count", "2", "--key-size", "16", "--value-size", "32"]);
    let mut client = node.client();
    for number in 0..500 {
        assert_eq!(client.call(&["SET", &format!("key:{number}"), "value"]).text(), "OK");
    }
    assert!(node.terminate().0.success());
    let file = data.join("shards").join("0001.slots");
    let good = std::fs::read(&file).expect("a shard file");
    let foreign = b"PNG and so on".to_vec();
    let mut newer = good.clone();
    newer[8..12].copy_from_slice(&4_u32.to_le_bytes());
    let truncated = good[..good.len() - 4096].to_vec();
    let short = good[..100].to_vec();
    let mut swapped = good.clone();
    swapped[12] = 0;
    let mut slot_flipped = good.clone();
    // Not the first, which is the redo record, and not the last, which the redo record heals.
    let values = good.windows(5).enumerate().filter(|(_, window)| *window == b"value");
    let in_a_value = values.map(|(position, _)| position).nth(100).expect("a record");
    slot_flipped[in_a_value] ^= 1;
    let name = file.to_string_lossy().into_owned();
    for (what, bytes, words) in [
        ("foreign", &foreign, &["not a slotstream shard file"][..]),
        ("newer", &newer, &["format version is 4", "reads 2 and 3"]),
        ("truncated", &truncated, &["wanted at least", "truncated"]),
        ("short", &short, &["100 bytes", "truncated"]),
        ("swapped", &swapped, &["damaged"]),
    ] {
        std::fs::write(&file, bytes).expect("write");
        let output = leader(&data, &[]);
        let mut all = vec![name.as_str()];
        all.extend(words);
        assert_fails(&output, 1, &all);
        assert!(std::fs::read(&file).expect("read") == *bytes, "{what}: the file was changed");
    }
    std::fs::write(&file, &slot_flipped).expect("write");
    // `verify` finds the flipped bit and says where it is; `inspect` counts it.
    let verify = run_command(command(&["verify"]).arg(&data), PATIENCE);
    assert_eq!(verify.status.code(), Some(1));
    assert!(stdout(&verify).contains("shard 1 slot"), "{}", stdout(&verify));
    let inspect = run_command(command(&["inspect"]).arg(&data), PATIENCE);
    assert_eq!(inspect.status.code(), Some(1));
    assert!(stdout(&inspect).contains(" 1 damaged"), "{}", stdout(&inspect));
    // A leader opens without a look at its slots, and finds it in the background.
    node.restart();
    wait_until("the audit finds the damaged slot", PATIENCE, || {
        node.metric("slotstream_slots_damaged") == 1.0
    });
    assert_eq!(node.client().call(&["DBSIZE"]), crate::harness::Reply::Integer(499));
    assert!(node.terminate().0.success());
    assert!(node.log().contains("damaged slot set aside"), "{}", node.log());
    std::fs::write(&file, &good).expect("write");
    node.restart();
    assert_eq!(node.client().call(&["DBSIZE"]), crate::harness::Reply::Integer(500));
}

#[test]
fn status_of_a_node_that_is_not_there_is_exit_code_1() {
    let free = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
    let directory = tempfile::tempdir().expect("temp dir");
    let node = Node::leader(&directory.path().join("data"), &["--shard-count", "1"]);
    let (good, bad) = (node.ports.http_listen.to_string(), free.to_string());
    let output = run(&["status", &good, &bad]);
    assert_fails(&output, 1, &[&bad, "refused"]);
    assert!(stdout(&output).contains(&node.ports.listen.to_string()));
    // A Redis port is no HTTP port.
    assert_fails(&run(&["status", &node.ports.listen.to_string()]), 1, &["does not speak HTTP"]);
    let json = run(&["status", "--json", &good]);
    assert!(json.status.success());
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(report[0]["status"]["shards"][0]["phase"], "leading");
}

#[test]
fn verify_and_inspect_say_what_they_were_pointed_at() {
    let directory = tempfile::tempdir().expect("temp dir");
    let empty = directory.path().to_string_lossy().into_owned();
    assert_fails(&run(&["inspect", &empty]), 1, &["holds no store", &empty]);
    assert_fails(&run(&["verify", &empty]), 1, &["holds no store", &empty]);
    assert_fails(&run(&["verify", "/does/not/exist"]), 1, &["/does/not/exist"]);
    assert_fails(&run(&["verify", &empty, &empty]), 2, &["named twice"]);
    let data = directory.path().join("data");
    let mut node = Node::leader(&data, &["--shard-count", "1"]);
    assert!(node.terminate().0.success());
    let data = data.to_string_lossy().into_owned();
    assert_fails(&run(&["inspect", &data, "--shard", "1"]), 1, &["shard 1", "the store has 1"]);
    assert!(run(&["verify", &data]).status.success());
}
