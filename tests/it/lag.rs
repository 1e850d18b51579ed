//! How far behind a follower is, as both sides tell it: with real processes.

use rustix::process::Signal;

use crate::harness::{Client, PATIENCE, Reply, wait_in_sync, wait_until};
use crate::levels::{assert_error, is_ok, links, pair, set};

#[test]
fn lag_is_told_in_records_bytes_and_seconds_and_is_gone_when_caught_up() {
    const RECORDS: u32 = 300;
    let directory = tempfile::tempdir().expect("temp dir");
    let (leader, follower) =
        pair(&directory, &["--heartbeat-interval", "100ms"], &["--heartbeat-interval", "100ms"]);
    let mut client = leader.client();
    // Keys and values of one size, so that bytes are known: the record's header, the slot's, key and value.
    let record_bytes = 8 + 24 + 8 + 16;
    let write = |client: &mut Client, keys: std::ops::Range<u32>| {
        keys.for_each(|key| assert!(is_ok(&set(client, key, &"v".repeat(16)))));
    };
    write(&mut client, 0..RECORDS);
    wait_in_sync(&leader, &follower);
    let sum =
        |name: &str| links(&leader).iter().map(|link| link[name].as_f64().expect("a number")).sum::<f64>();
    wait_until("there is no lag", PATIENCE, || {
        sum("lag_records") == 0.0 && sum("lag_bytes") == 0.0 && sum("lag_seconds") == 0.0
    });
    follower.signal(Signal::STOP);
    write(&mut client, 0..RECORDS);
    wait_until("all of it is lag", PATIENCE, || sum("lag_records") == f64::from(RECORDS));
    assert_eq!(sum("lag_bytes"), f64::from(RECORDS * record_bytes));
    let seconds = sum("lag_seconds");
    assert!(seconds > 0.0);
    wait_until("it grows", PATIENCE, || sum("lag_seconds") > seconds + 0.5);
    let (_, metrics) = leader.get("/metrics");
    let metric =
        |name: &str| crate::harness::sum_metric(&metrics, &format!("slotstream_follower_lag_{name}"));
    assert_eq!(metric("records"), f64::from(RECORDS));
    assert_eq!(metric("bytes"), f64::from(RECORDS * record_bytes));
    assert!(metric("seconds") > seconds, "{metrics}");
    let info = client.call(&["INFO", "replication"]).text();
    let line = info.lines().find(|line| line.starts_with("slave0:")).expect("a line").to_owned();
    assert!(line.contains(",phase=stream,lagms="), "{line}");
    assert!(line.contains(&format!(",lagrecords={RECORDS},")), "{line}");
    follower.signal(Signal::CONT);
    wait_until("there is no lag", PATIENCE, || {
        sum("lag_records") == 0.0 && sum("lag_bytes") == 0.0 && sum("lag_seconds") == 0.0
    });
}

#[test]
fn a_follower_grows_old_while_its_leader_says_nothing() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader_options = ["--heartbeat-interval", "100ms"];
    let (leader, follower) = pair(&directory, &leader_options, &["--heartbeat-interval", "100ms"]);
    let mut client = leader.client();
    assert!(is_ok(&set(&mut client, 1, "v")));
    wait_in_sync(&leader, &follower);
    let oldest = || {
        let status = follower.status();
        let shards = status["shards"].as_array().expect("shards").clone();
        shards.iter().map(|shard| shard["lag_seconds"].as_f64().expect("a number")).fold(0.0, f64::max)
    };
    wait_until("it is caught up", PATIENCE, || oldest() == 0.0);
    // Stopped, not dead: the link stands, and nothing is heard.
    leader.signal(Signal::STOP);
    wait_until("silence is age", PATIENCE, || oldest() > 0.6);
    assert_eq!(follower.get("/follower?max_lag=500ms").0, 503);
    leader.signal(Signal::CONT);
    wait_until("it is caught up again", PATIENCE, || oldest() == 0.0);
    let mut leader = leader;
    leader.kill();
    wait_until("a dead link is age", PATIENCE, || oldest() > 0.6);
}

/// Writes to shards that a follower does not carry are nothing that it lacks.
#[test]
fn a_follower_of_some_shards_is_behind_in_those_only() {
    let directory = tempfile::tempdir().expect("temp dir");
    let (leader, follower) =
        pair(&directory, &["--sync-level", "applied", "--sync-timeout", "300ms"], &["--shards", "0"]);
    let mut client = leader.client();
    let (mut confirmed, mut unconfirmed) = (0, 0);
    follower.signal(Signal::CONT);
    for key in 0..20 {
        let shard = {
            let reply = set(&mut client, key, "v");
            let Reply::Array(change) = client.call(&["SLOTSTREAM.LASTSEQ", &format!("key-{key:04}")]) else {
                panic!("an array")
            };
            (change[0].clone(), reply)
        };
        match shard {
            (Reply::Integer(0), reply) => {
                assert!(is_ok(&reply), "{reply:?}");
                confirmed += 1;
            }
            (_, reply) => {
                assert_error(&reply, "NOREPLICAS the write is applied here");
                unconfirmed += 1;
            }
        }
    }
    assert!(confirmed > 0 && unconfirmed > 0);
    wait_until("it is behind in nothing", PATIENCE, || {
        links(&leader).iter().all(|link| link["lag_records"] == 0 && link["shard"] == 0)
    });
    assert_error(
        &follower.client().call(&["SLOTSTREAM.WAITSEQ", "10", "1", "1", "1"]),
        "ERR this follower does not carry",
    );
    assert_eq!(
        leader.client().call(&["WAIT", "1", "0"]),
        Reply::Integer(1),
        "who wrote nothing waits for nothing"
    );
}
