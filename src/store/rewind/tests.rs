//! A rewind that is cut off at any step, and what its reports hold.

use std::path::Path;

use super::*;
use crate::slot::Geometry;
use crate::store::Options;

const SHARD: ShardIndex = ShardIndex(0);

/// A store with five records above seq 5, one of them no text, and a deletion.
fn ahead() -> Store {
    let geometry = Geometry { shard_count: 1, key_size_max: 8, value_size_max: 8, shard_prefix_bits: 0 };
    let store = Store::open(Path::new("memory"), Options::memory(geometry, 100)).unwrap();
    for key in 0..5_u8 {
        store.put(&[b'a' + key], b"shared").unwrap();
    }
    for key in 3..6_u8 {
        store.put(&[b'a' + key], b"lost").unwrap();
    }
    store.put(b"\xff", b"\x00\xfe").unwrap();
    store.delete(b"a").unwrap();
    store.demote().unwrap();
    store
}

fn begin(store: &Store, fork: Seq, goes_on: bool) -> Rewound {
    run(store, store.begin_rewind(SHARD, fork, goes_on).unwrap())
}

fn reopen(store: Store) -> Store {
    let store = store.reopen_in_memory().unwrap();
    store.set_read_only(true);
    store
}

#[track_caller]
fn assert_reported(store: &Store) {
    let reports = store.reports().unwrap();
    assert_eq!(reports.len(), 1, "{reports:?}");
    let (name, bytes) = &reports[0];
    assert!(name.starts_with("dropped-0000-epoch-1-term-") && name.ends_with(".jsonl"), "{name}");
    let lines: Vec<serde_json::Value> =
        bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    assert_eq!((lines[0]["fork"].as_u64(), lines[0]["epoch"].as_u64()), (Some(5), Some(1)));
    assert!(lines[0]["about"].as_str().is_some_and(|about| about.contains("is not told")));
    let lines = &lines[1..];
    let seqs: Vec<_> = lines.iter().map(|line| line["seq"].as_u64().unwrap()).collect();
    // Slots in order: the deleted one, two that were overwritten, two that are new.
    assert_eq!(seqs, [10, 6, 7, 8, 9]);
    assert_eq!((&lines[0]["key"], lines[0]["deleted"].as_bool()), (&"a".into(), Some(true)));
    assert!(lines[0].get("value").is_none());
    assert_eq!((&lines[1]["key"], &lines[1]["value"]), (&"d".into(), &"lost".into()));
    assert_eq!((&lines[4]["key_hex"], &lines[4]["value_hex"]), (&"ff".into(), &"00fe".into()));
}

/// The next step after each of those that a kill may come between.
#[test]
fn a_rewind_that_is_cut_off_at_any_step_leaves_one_whole_report() {
    let fork = Seq(5);
    // Before anything.
    let store = reopen(ahead());
    assert_eq!(begin(&store, fork, false).dropped, 5);
    assert_reported(&store);
    // The report was written, or a part of it, and the rewind was not noted.
    for steps in 1..7 {
        let store = ahead();
        let mut rewinding = store.begin_rewind(SHARD, fork, false).unwrap();
        for _ in 0..steps {
            assert_eq!(store.step_rewind(&mut rewinding, 1).unwrap(), None);
        }
        assert_eq!(store.get(b"d").unwrap().unwrap(), b"lost", "nothing is given up yet");
        let store = reopen(store);
        assert!(store.reports().unwrap().is_empty());
        // One that shares less, and is never heard of again.
        let mut other = store.begin_rewind(SHARD, Seq(2), false).unwrap();
        assert_eq!(store.step_rewind(&mut other, 1).unwrap(), None);
        assert_eq!(begin(&store, fork, false).dropped, 5);
        assert_reported(&store);
    }
    // The rewind was noted, and the report has not got its name.
    let store = ahead();
    let mut rewinding = store.begin_rewind(SHARD, fork, false).unwrap();
    while !matches!(rewinding.stage, Stage::Note) {
        assert_eq!(store.step_rewind(&mut rewinding, 1).unwrap(), None);
    }
    let noted = Progress {
        epoch: 1,
        seq: fork,
        consistent_at: Seq::MAX,
        step: Step::Rewind { fork, next: SlotIndex(0) },
    };
    store.set_progress(SHARD, noted);
    let store = reopen(store);
    assert!(store.is_astray(SHARD));
    // A leader that shares less does not get it mixed up with its own, nor does a kill in the middle of that.
    let mut other = store.begin_rewind(SHARD, Seq(2), false).unwrap();
    assert_eq!(store.step_rewind(&mut other, 1).unwrap(), None);
    let store = reopen(store);
    let Rewound { dropped, .. } = begin(&store, fork, true);
    assert_eq!(dropped, 0);
    assert_reported(&store);
    // All of that was done; and again.
    let store = reopen(store);
    assert_eq!(begin(&store, fork, true), Rewound::default());
    assert_reported(&store);
    assert_eq!((store.progress(SHARD), store.head_shared(SHARD)), (noted, fork));
    // Another leader shares less: what lies between is dropped too, and nothing twice.
    let Rewound { dropped, report } = begin(&store, Seq(1), false);
    assert_eq!((dropped, report.is_some(), store.reports().unwrap().len()), (2, true, 2));
    // The slots below: what they held before was overwritten by what is dropped already.
    assert_eq!(store.slots_to_ask_for(SHARD, 100).len(), 7);
    assert!(store.check_promote().is_err(), "a shard inside a rewind does not lead");
}
