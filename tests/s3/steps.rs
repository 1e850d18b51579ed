//! What the tests do again and again: fill a leader, take and restore backups, look at what was said.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use crate::harness::{Client, Node, command, encode, run_command, stderr, stdout};
use crate::moto::{BUCKET, Moto};

/// A backup or a restore moves megabytes, on a machine that may be busy, and may try again for a minute.
pub(crate) const LONG: Duration = Duration::from_secs(240);
/// Sizes of a leader whose one shard makes an object of several parts with [`MANY`] records.
pub(crate) const LARGE: &[&str] = &["--shard-count", "1", "--key-size", "16", "--value-size", "1024"];
/// Records that make some 38 MB that do not pack.
pub(crate) const MANY: u64 = 40_000;

/// Bytes that do not pack, other ones for each number.
fn value(number: u64, size: usize) -> Vec<u8> {
    let mut word = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Sets `key:N` for each number, to a value of `version`, in pipelines.
pub(crate) fn fill(client: &mut Client, numbers: std::ops::Range<u64>, version: u64, size: usize) {
    let numbers: Vec<u64> = numbers.collect();
    for chunk in numbers.chunks(500) {
        let mut request = Vec::new();
        for number in chunk {
            let (key, value) = (format!("key:{number}"), value(number + (version << 32), size));
            encode(&mut request, &[b"SET", key.as_bytes(), &value]);
        }
        client.send(&request).expect("sends");
        for _ in chunk {
            assert_eq!(client.reply().expect("a reply").text(), "OK");
        }
    }
}

/// A place in the bucket.
pub(crate) fn s3(name: &str) -> String {
    format!("s3://{BUCKET}/{name}")
}

/// `slotstream`, without what the environment says about object storage.
pub(crate) fn clean(arguments: &[&str]) -> Command {
    let mut command = command(arguments);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    command
}

/// `slotstream backup`, not started yet.
pub(crate) fn backup_command(
    leader: &Node,
    (moto, endpoint): (&Moto, SocketAddr),
    to: &str,
    since: Option<&str>,
) -> Command {
    let mut command = clean(&["backup", &leader.replication().to_string(), "--to", to]);
    if let Some(since) = since {
        command.args(["--since", since]);
    }
    moto.introduce(&mut command, endpoint);
    command
}

/// Takes a backup, through no door.
pub(crate) fn backup(leader: &Node, moto: &Moto, to: &str, since: Option<&str>) -> Output {
    run_command(&mut backup_command(leader, (moto, moto.address), to, since), LONG)
}

/// Restores a chain of backups.
pub(crate) fn restore(moto: &Moto, backups: &[&str], to: &Path) -> Output {
    let mut command = clean(&["restore"]);
    command.args(backups).arg("--to").arg(to);
    moto.introduce(&mut command, moto.address);
    run_command(&mut command, LONG)
}

#[track_caller]
pub(crate) fn assert_good(output: &Output) -> String {
    assert!(output.status.success(), "{}{}", stdout(output), stderr(output));
    stdout(output)
}

#[track_caller]
pub(crate) fn assert_refused(output: &Output, why: &str) {
    assert_eq!(output.status.code(), Some(1), "{}{}", stdout(output), stderr(output));
    assert!(stderr(output).contains(why), "{why:?} is not in {}", stderr(output));
}
