//! A node that holds what its leader never had: it drops it, says so in a report, and ends up equal.

use std::collections::BTreeMap;
use std::path::Path;

use crate::harness::{Node, assert_equal, wait_in_sync};
use crate::roles_at_run_time::{SIZES, set};

pub(crate) fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("lists").map(|entry| entry.expect("lists")) {
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copies");
        }
    }
}

/// What the reports in a data directory hold: each key's dropped value, `None` for a deletion.
#[track_caller]
pub(crate) fn dropped(directory: &Path) -> BTreeMap<String, Option<String>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).expect("lists").map(|entry| entry.expect("lists")) {
        let name = entry.file_name().into_string().expect("text");
        assert!(!name.ends_with(".unfinished"), "{name}");
        if !name.starts_with("dropped-") {
            continue;
        }
        for line in std::fs::read_to_string(entry.path()).expect("reads").lines() {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            if line.get("about").is_some() {
                continue;
            }
            let key = line["key"].as_str().expect("text").to_owned();
            let value = line["value"].as_str().map(ToOwned::to_owned);
            assert!(found.insert(key, value).is_none(), "{line} is there twice");
        }
    }
    found
}

/// A leader that was started from a copy once gave out the same seqs again, with other bytes, and its
/// follower took both for the same.
#[test]
fn a_leader_restored_from_a_copy_of_its_directory_is_told_from_what_it_was() {
    let root = tempfile::tempdir().expect("temp dir");
    let [a, b, copy] = ["a", "b", "copy"].map(|name| root.path().join(name));
    let mut leader = Node::leader(&a, SIZES);
    let mut follower = Node::follower(&b, &leader, &[]);
    set(&leader, 0..50, "both");
    wait_in_sync(&leader, &follower);
    assert!(leader.terminate().0.success());
    copy_directory(&a, &copy);
    leader.restart();
    set(&leader, 40..60, "after the copy");
    leader.client().call(&["DEL", "key-0"]);
    wait_in_sync(&leader, &follower);
    leader.kill();
    std::fs::remove_dir_all(&a).expect("the directory is lost");
    copy_directory(&copy, &a);
    leader.restart();
    // As many changes as there were, of other keys.
    set(&leader, 0..21, "restored");
    wait_in_sync(&leader, &follower);
    for (key, value) in [("key-0", "restored"), ("key-20", "restored"), ("key-45", "both")] {
        assert_eq!(follower.client().call(&["GET", key]).text(), value);
    }
    assert_eq!(leader.metric("slotstream_full_scans_total"), 0.0);
    assert_eq!(follower.metric("slotstream_writes_dropped_total"), 21.0);
    assert!(follower.log().contains("they are dropped"), "{}", follower.log());
    let mut wanted: BTreeMap<_, _> =
        (40..60).map(|key| (format!("key-{key}"), Some("after the copy".to_owned()))).collect();
    wanted.insert("key-0".to_owned(), None);
    assert_eq!(dropped(&b), wanted);
    assert!(follower.terminate().0.success());
    assert!(leader.terminate().0.success());
    assert_equal(&a, &b);
}

#[test]
fn a_rewind_that_is_killed_over_and_over_ends_up_equal_with_one_report() {
    let root = tempfile::tempdir().expect("temp dir");
    let [a, b] = ["a", "b"].map(|name| root.path().join(name));
    let mut old = Node::leader(&a, SIZES);
    let mut new = Node::follower(&b, &old, &[]);
    set(&old, 0..2_000, "both");
    wait_in_sync(&old, &new);
    assert!(new.terminate().0.success());
    set(&old, 1_000..3_000, "only the old leader has this");
    old.kill();
    new.restart();
    assert_eq!(new.client().call(&["REPLICAOF", "NO", "ONE"]).text(), "OK");
    set(&new, 0..1_500, "new");
    let mut rewound = Node::follower(&a, &new, &[]);
    for _ in 0..10 {
        rewound.kill();
        rewound.restart();
    }
    wait_in_sync(&new, &rewound);
    let wanted =
        (1_000..3_000).map(|key| (format!("key-{key}"), Some("only the old leader has this".to_owned())));
    assert_eq!(dropped(&a), wanted.collect());
    assert!(rewound.terminate().0.success());
    assert!(new.terminate().0.success());
    assert_equal(&a, &b);
}
