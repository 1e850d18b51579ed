//! How sure a write is, and who waits for whom: with real processes.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Client, Node, PATIENCE, Reply, encode, wait_in_sync, wait_until};
use crate::rewind::copy_directory;

const SIZES: &[&str] = &["--shard-count", "2", "--key-size", "16", "--value-size", "32"];
/// A follower that is stopped stays connected for as long as a test takes.
const PATIENT: &[&str] = &["--dead-after", "60s"];

/// A leader and a follower of it, in sync, with more options for each.
pub(crate) fn pair(directory: &tempfile::TempDir, leader: &[&str], follower: &[&str]) -> (Node, Node) {
    let leader = Node::leader(&directory.path().join("leader"), &[SIZES, PATIENT, leader].concat());
    let follower = Node::follower(&directory.path().join("follower"), &leader, &[PATIENT, follower].concat());
    wait_in_sync(&leader, &follower);
    wait_until("the leader knows that", PATIENCE, || {
        links(&leader).iter().all(|link| link["phase"] == "stream")
    });
    (leader, follower)
}

pub(crate) fn links(leader: &Node) -> Vec<serde_json::Value> {
    leader.status()["links"].as_array().expect("links").clone()
}

pub(crate) fn set(client: &mut Client, key: u32, value: &str) -> Reply {
    client.call(&["SET", &format!("key-{key:04}"), value])
}

fn get(client: &mut Client, key: u32) -> Reply {
    client.call(&["GET", &format!("key-{key:04}")])
}

pub(crate) fn is_ok(reply: &Reply) -> bool {
    *reply == Reply::Simple("OK".to_owned())
}

#[track_caller]
pub(crate) fn assert_error(reply: &Reply, words: &str) {
    assert!(matches!(reply, Reply::Error(text) if text.starts_with(words)), "{reply:?}, wanted {words}");
}

#[test]
fn a_write_that_too_few_followers_would_get_is_refused_and_changes_nothing() {
    const REFUSED: &str = "NOREPLICAS Not enough good replicas to write.";
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(
        &directory.path().join("leader"),
        &[SIZES, PATIENT, &["--min-followers-to-write", "1", "--min-followers-max-lag", "1s"]].concat(),
    );
    let mut client = leader.client();
    assert_eq!(set(&mut client, 1, "alone"), Reply::Error(REFUSED.to_owned()));
    assert_error(&client.call(&["MSET", "a", "1", "b", "2"]), REFUSED);
    assert_error(&client.call(&["FLUSHALL"]), REFUSED);
    assert_eq!(client.call(&["DBSIZE"]), Reply::Integer(0));
    assert_eq!(get(&mut client, 1), Reply::Nil);

    let mut follower = Node::follower(&directory.path().join("follower"), &leader, PATIENT);
    wait_until("a write is taken", PATIENCE, || is_ok(&set(&mut client, 1, "together")));
    wait_in_sync(&leader, &follower);
    // Queued while there was a follower, and done when there is none.
    assert!(is_ok(&client.call(&["MULTI"])));
    assert_eq!(set(&mut client, 2, "queued"), Reply::Simple("QUEUED".to_owned()));
    follower.kill();
    let mut other = leader.client();
    wait_until("it is noticed", PATIENCE, || !is_ok(&set(&mut other, 3, "x")));
    let refused = format!("EXECABORT Transaction discarded because of: {REFUSED}");
    assert_error(&client.call(&["EXEC"]), &refused);
    assert_eq!(get(&mut client, 2), Reply::Nil);
    assert!(leader.metric("slotstream_write_rejected_total") >= 4.0);

    assert!(is_ok(&client.call(&["CONFIG", "SET", "min-replicas-to-write", "0"])));
    assert!(is_ok(&set(&mut client, 2, "nothing is demanded")));
}

#[test]
fn a_follower_that_falls_behind_does_not_count() {
    let directory = tempfile::tempdir().expect("temp dir");
    let (leader, follower) =
        pair(&directory, &["--min-followers-to-write", "1", "--min-followers-max-lag", "200ms"], &[]);
    let mut client = leader.client();
    wait_until("a write is taken", PATIENCE, || is_ok(&set(&mut client, 1, "a")));
    follower.signal(Signal::STOP);
    wait_until("its age is noticed", PATIENCE, || !is_ok(&set(&mut client, 1, "b")));
    follower.signal(Signal::CONT);
    wait_until("a write is taken again", PATIENCE, || is_ok(&set(&mut client, 1, "c")));
}

#[test]
fn a_synchronous_write_is_on_its_follower_when_it_is_answered() {
    let directory = tempfile::tempdir().expect("temp dir");
    let (leader, follower) = pair(&directory, &["--sync-level", "applied", "--sync-timeout", "20s"], &[]);
    let (mut writer, mut reader) = (leader.client(), follower.client());
    for round in 0..100 {
        let value = round.to_string();
        assert!(is_ok(&set(&mut writer, round % 7, &value)));
        assert_eq!(get(&mut reader, round % 7).text(), value);
    }
    // Replies of a pipeline stay in order, and those to writes wait.
    let mut pipeline = Vec::new();
    for words in [&["GET", "key-0001"][..], &["SET", "p", "1"], &["GET", "p"], &["INCR", "p"]] {
        encode(&mut pipeline, &words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>());
    }
    writer.send(&pipeline).expect("sent");
    let replies: Vec<_> = (0..4).map(|_| writer.reply().expect("a reply")).collect();
    let bulk = |text: &str| Reply::Bulk(text.into());
    assert_eq!(replies, [bulk("99"), Reply::Simple("OK".into()), bulk("1"), Reply::Integer(2)]);
    assert_eq!(reader.call(&["GET", "p"]).text(), "2");
}

#[test]
fn an_unconfirmed_write_is_said_to_be_one_and_stays() {
    // One after another they would wait for longer than any test may take.
    const WRITES: u32 = 400;
    let directory = tempfile::tempdir().expect("temp dir");
    let (leader, follower) = pair(&directory, &["--sync-level", "received", "--sync-timeout", "1s"], &[]);
    let mut client = leader.client();
    wait_until("a write is confirmed", PATIENCE, || is_ok(&set(&mut client, 0, "both")));
    let unconfirmed = leader.metric("slotstream_writes_unconfirmed_total");
    follower.signal(Signal::STOP);
    let mut pipeline = Vec::new();
    for key in 0..WRITES {
        encode(&mut pipeline, &[b"SET", format!("key-{key:04}").as_bytes(), b"here"]);
        encode(&mut pipeline, &[b"GET", format!("key-{key:04}").as_bytes()]);
    }
    client.send(&pipeline).expect("sent");
    for _ in 0..WRITES {
        let write = client.reply().expect("a reply");
        assert_error(&write, "NOREPLICAS the write is applied here, but 0 of 1 followers confirmed it");
        assert_eq!(client.reply().expect("a reply").text(), "here");
    }
    let found = leader.metric("slotstream_writes_unconfirmed_total") - unconfirmed;
    assert_eq!(found, f64::from(WRITES));

    // A transaction's reply is one reply.
    for words in [&["MULTI"][..], &["SET", "t", "1"], &["GET", "t"]] {
        client.call(words);
    }
    assert_error(&client.call(&["EXEC"]), "NOREPLICAS the write is applied here");
    // Who only reads waits for nobody, nor does a write where nothing is demanded any more.
    assert_eq!(client.call(&["GET", "t"]).text(), "1");
    assert!(is_ok(&client.call(&["CONFIG", "SET", "sync-level", "none"])));
    assert!(is_ok(&set(&mut client, 1, "alone")));
    assert!(is_ok(&client.call(&["CONFIG", "SET", "sync-level", "applied", "sync-timeout", "20s"])));
    follower.signal(Signal::CONT);
    assert!(is_ok(&set(&mut client, 1, "together")));
    assert_eq!(get(&mut follower.client(), 1).text(), "together");
}

#[test]
fn a_client_reads_its_writes_on_a_follower() {
    let directory = tempfile::tempdir().expect("temp dir");
    let (leader, follower) = pair(&directory, &[], &[]);
    let (mut writer, mut reader) = (leader.client(), follower.client());
    assert_eq!(writer.call(&["SLOTSTREAM.LASTSEQ"]), Reply::Array(Vec::new()));
    let wait = |reader: &mut Client, timeout: &str, changes: &[String]| {
        let mut words = vec!["SLOTSTREAM.WAITSEQ", timeout];
        words.extend(changes.iter().map(String::as_str));
        reader.call(&words)
    };
    let last = |writer: &mut Client, key: &[&str]| -> Vec<String> {
        let Reply::Array(numbers) = writer.call(&[&["SLOTSTREAM.LASTSEQ"], key].concat()) else {
            panic!("an array")
        };
        let number = |reply: Reply| match reply {
            Reply::Integer(number) => number.to_string(),
            other => panic!("{other:?}"),
        };
        numbers.into_iter().map(number).collect()
    };
    for round in 0..50 {
        for key in 0..4 {
            assert!(is_ok(&set(&mut writer, key, &round.to_string())));
        }
        let changes = last(&mut writer, &[]);
        assert!(is_ok(&wait(&mut reader, "20000", &changes)));
        for key in 0..4 {
            assert_eq!(get(&mut reader, key).text(), round.to_string());
        }
    }
    let one = last(&mut writer, &["key-0001"]);
    assert_eq!(one.len(), 3);
    assert!(is_ok(&wait(&mut writer, "0", &one)), "a leader holds what it gave out");
    // What will not come in time is no error; what makes no sense is one.
    let later = [one[0].clone(), one[1].clone(), "1000000".to_owned()];
    assert_eq!(wait(&mut reader, "30", &later), Reply::Nil);
    assert_eq!(wait(&mut writer, "0", &later), Reply::Nil, "a leader answers at once");
    assert_error(&wait(&mut reader, "30", &["7".into(), "1".into(), "1".into()]), "ERR no shard 7");
    assert_error(&wait(&mut reader, "30", &["0".into(), "1".into()]), "ERR wrong number of arguments");

    // A wait that is under way ends with the write.
    let mut third = follower.client();
    third
        .send(&{
            let mut bytes = Vec::new();
            let seq: u64 = one[2].parse().expect("a number");
            let next = (seq + 1).to_string();
            encode(
                &mut bytes,
                &[b"slotstream.waitseq", b"0", one[0].as_bytes(), one[1].as_bytes(), next.as_bytes()],
            );
            encode(&mut bytes, &[b"GET", b"key-0001"]);
            bytes
        })
        .expect("sent");
    assert!(is_ok(&set(&mut writer, 1, "the last")));
    assert!(is_ok(&third.reply().expect("a reply")));
    assert_eq!(third.reply().expect("a reply").text(), "the last");
}

/// A seq alone would say that a write is there which was lost with its leader.
#[test]
fn a_write_that_a_new_leader_never_had_is_called_lost() {
    let directory = tempfile::tempdir().expect("temp dir");
    let (mut old, mut follower) = pair(&directory, &[], &[]);
    let mut writer = old.client();
    assert!(is_ok(&set(&mut writer, 1, "both")));
    wait_in_sync(&old, &follower);
    let kept = writer.call(&["SLOTSTREAM.LASTSEQ", "key-0001"]);
    assert!(follower.terminate().0.success());
    assert!(is_ok(&set(&mut writer, 1, "only here")));
    let lost = writer.call(&["SLOTSTREAM.LASTSEQ", "key-0001"]);
    old.kill();
    let new = Node::leader(&follower.directory, &["--promote"]);
    let mut reader = new.client();
    for round in 0..3 {
        assert!(is_ok(&set(&mut reader, 1, &format!("another {round}"))));
    }
    let mut wait = |changes: &Reply| {
        let Reply::Array(numbers) = changes else { panic!("{changes:?}") };
        let words: Vec<String> = numbers
            .iter()
            .map(|number| match number {
                Reply::Integer(number) => number.to_string(),
                other => panic!("{other:?}"),
            })
            .collect();
        reader.call(
            &[&["SLOTSTREAM.WAITSEQ", "100"], &words.iter().map(String::as_str).collect::<Vec<_>>()[..]]
                .concat(),
        )
    };
    assert!(is_ok(&wait(&kept)));
    assert_error(&wait(&lost), "LOSTSEQ shard ");
}

/// Nor would an epoch and a seq: the leader comes back without its last writes, in the same epoch.
#[test]
fn a_write_that_its_own_leader_lost_is_called_lost() {
    let directory = tempfile::tempdir().expect("temp dir");
    let (mut leader, _follower) = pair(&directory, &[], &[]);
    let change = |leader: &Node, value: &str| -> Vec<String> {
        let mut writer = leader.client();
        assert!(is_ok(&set(&mut writer, 1, value)));
        let Reply::Array(numbers) = writer.call(&["SLOTSTREAM.LASTSEQ", "key-0001"]) else {
            panic!("an array")
        };
        let number = |reply: &Reply| match reply {
            Reply::Integer(number) => number.to_string(),
            other => panic!("{other:?}"),
        };
        numbers.iter().map(number).collect()
    };
    let wait = |leader: &Node, change: &[String]| {
        let words: Vec<&str> = change.iter().map(String::as_str).collect();
        leader.client().call(&[&["SLOTSTREAM.WAITSEQ", "100"], &words[..]].concat())
    };
    let kept = change(&leader, "kept");
    assert!(leader.terminate().0.success());
    let copy = directory.path().join("copy");
    copy_directory(&leader.directory, &copy);
    leader.restart();
    let lost = change(&leader, "lost");
    leader.kill();
    std::fs::remove_dir_all(&leader.directory).expect("the directory is lost");
    copy_directory(&copy, &leader.directory);
    leader.restart();
    assert_error(&wait(&leader, &lost), "LOSTSEQ shard ");
    let other = change(&leader, "other");
    assert_eq!((&other[0], &other[2]), (&lost[0], &lost[2]), "the same seq once more");
    assert_error(&wait(&leader, &lost), "LOSTSEQ shard ");
    assert!(is_ok(&wait(&leader, &kept)) && is_ok(&wait(&leader, &other)));
    // A kill loses nothing.
    leader.kill();
    leader.restart();
    assert!(is_ok(&wait(&leader, &kept)) && is_ok(&wait(&leader, &other)));
}

#[test]
fn scans_wait_for_their_turn_and_keep_their_rate_and_readers_can_wait_for_them() {
    const RECORDS: u32 = 8_000;
    let directory = tempfile::tempdir().expect("temp dir");
    let sizes = ["--shard-count", "4", "--key-size", "16", "--value-size", "200"];
    let leader = Node::leader(
        &directory.path().join("leader"),
        &[&sizes[..], PATIENT, &["--scans-max", "1", "--scan-rate-max", "1MiB"]].concat(),
    );
    let mut client = leader.client();
    let mut pipeline = Vec::new();
    for key in 0..RECORDS {
        encode(&mut pipeline, &[b"SET", format!("key-{key:04}").as_bytes(), "v".repeat(200).as_bytes()]);
    }
    client.send(&pipeline).expect("sent");
    (0..RECORDS).for_each(|_| assert!(is_ok(&client.reply().expect("a reply"))));

    let started = Instant::now();
    let follower = Node::follower(
        &directory.path().join("follower"),
        &leader,
        &[PATIENT, &["--reads-while-syncing", "no"]].concat(),
    );
    let mut reader = follower.client();
    let mut were_queued = false;
    let (mut refused, mut inconsistent) = (0, 0);
    let mut had_place = Vec::new();
    wait_until("all shards stream", PATIENCE, || {
        let links = links(&leader);
        let count = |phase: &str| links.iter().filter(|link| link["phase"] == phase).count();
        // The links are looked at one after the other, and a place may be handed on between two looks:
        // two links hold one each if two answers in a row say so.
        let has_place = |link: &&serde_json::Value| link["phase"] == "scan" || link["phase"] == "catch_up";
        let have_place: Vec<_> = links.iter().filter(has_place).map(|link| link["shard"].clone()).collect();
        let both = have_place.iter().filter(|shard| had_place.contains(*shard)).count();
        assert!(both <= 1, "{had_place:?}, then {links:?}");
        had_place = have_place;
        were_queued |= count("queued") >= 2;
        if let Reply::Error(text) = get(&mut reader, 7) {
            let wanted = "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.";
            assert_eq!(text, wanted);
            refused += 1;
        }
        if follower.get("/readyz?verbose").1.contains("inconsistent") {
            inconsistent += 1;
        }
        count("stream") == 4
    });
    assert!(were_queued && refused > 0 && inconsistent > 0, "{were_queued} {refused} {inconsistent}");
    // Of two megabytes at one a second, what was saved up is a fifth of a second's.
    assert!(started.elapsed() > Duration::from_secs(1), "{:?}", started.elapsed());
    wait_in_sync(&leader, &follower);
    assert_eq!(get(&mut reader, 7).text(), "v".repeat(200));
    assert_eq!(follower.metric("slotstream_shard_inconsistent"), 0.0);
    assert!(is_ok(&set(&mut client, 7, "streams at once")));
    assert_eq!(client.call(&["WAIT", "1", "20000"]), Reply::Integer(1));
    assert_eq!(get(&mut reader, 7).text(), "streams at once");
}
