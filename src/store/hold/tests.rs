//! Changes of several shards as others see them, and what ends them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::super::pending::tests::{Shards, deferred, open_at};
use super::super::tests::{geometry, memory};
use super::*;
use crate::chance::Chance;
use crate::clock::ManualClock;
use crate::slot::SlotIndex;
use crate::store::{Change, Entry, Options, SyncError};
use crate::wal::simulated::{Fault, SimulatedDisk};

const KEYS: [&[u8]; 6] = [b"a", b"b", b"c", b"d", b"e", b"f"];

fn shards(store: &Store) -> Vec<ShardIndex> {
    KEYS.iter().map(|key| store.shard_of(key)).collect()
}

fn put_all(store: &Store, value: &[u8]) {
    let put = |key: &&[u8]| {
        store.put(key, value).unwrap();
    };
    store.transact(shards(store), Intent::Write, || KEYS.iter().for_each(put)).unwrap();
}

fn read(store: &Store) -> Vec<Option<Vec<u8>>> {
    KEYS.iter().map(|key| store.get(key).unwrap()).collect()
}

/// All keys as they are at one moment, and whether that took holding their shards.
fn read_together(store: &Store) -> (Vec<Option<Vec<u8>>>, bool) {
    if let Some(moment) = store.moment(shards(store)) {
        let found = read(store);
        if store.is_still(&moment) {
            return (found, false);
        }
    }
    (store.transact(shards(store), Intent::Read, || read(store)).unwrap(), true)
}

/// Writers change all keys as one, others change single keys of the same shards; readers see whole changes only.
fn check_readers(store: &Store, rounds: u32) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut was_free = false;
                    while !is_over.load(Ordering::Relaxed) || !was_free {
                        let (found, was_held) = read_together(store);
                        assert!(found.iter().all(|value| *value == found[0]), "{found:?}");
                        was_free |= !was_held;
                    }
                })
            })
            .collect();
        let writers: Vec<_> = (0..2_u32)
            .map(|writer| {
                scope.spawn(move || {
                    for round in 0..rounds {
                        put_all(store, &(round * 2 + writer).to_le_bytes());
                        store.put(&[b'x', (round % 8) as u8], b"other").unwrap();
                    }
                })
            })
            .collect();
        let ended: Vec<_> = writers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        // Where the log comes first, what waits lands now.
        store.settle().unwrap();
        is_over.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|ended| ended.unwrap());
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

#[test]
fn readers_see_all_of_a_transaction_or_nothing() {
    let rounds = if cfg!(miri) { 20 } else { 3_000 };
    check_readers(&memory(4, 100), rounds);
    check_readers(&memory(1, 100), rounds);
}

/// Rounds are made by a thread of their own, as in a node.
fn check_landing(rounds: u32, before: impl Fn() + Send + Sync) {
    let store = deferred(4);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let logger = scope.spawn(|| {
            before();
            while !is_over.load(Ordering::Relaxed) {
                store.sync_log().unwrap();
            }
        });
        let checked =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check_readers(&store, rounds)));
        is_over.store(true, Ordering::Relaxed);
        logger.join().unwrap();
        checked.unwrap();
    });
}

#[test]
fn what_was_made_as_one_lands_as_one() {
    check_landing(if cfg!(miri) { 5 } else { 500 }, || ());
}

#[cfg(feature = "planted-bugs")]
#[test]
fn changes_that_land_apart_are_found() {
    use crate::planted::{Bug, plant};
    let found = (0..20).any(|_| {
        let check = || check_landing(500, || plant(Some(Bug::GroupLandedApart)));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err()
    });
    assert!(found, "no reader saw a part of a change");
}

#[test]
fn a_transaction_that_has_begun_is_done_before_writes_stop() {
    let store = Arc::new(memory(4, 100));
    let (begun, has_begun) = std::sync::mpsc::channel();
    let stopper = Arc::clone(&store);
    let stopping = std::thread::spawn(move || {
        has_begun.recv().unwrap();
        stopper.stop_writes();
        // Nothing is under way when this is said.
        read(&stopper)
    });
    let changes = || {
        store.put(KEYS[0], b"1").unwrap();
        begun.send(()).unwrap();
        while !store.is_read_only() {
            std::thread::yield_now();
        }
        for key in &KEYS[1..] {
            let one = |_: Option<Entry<'_>>, buffer: &mut Vec<u8>| {
                buffer.push(b'1');
                (Change::Put { expire_at: 0 }, ())
            };
            store.update(key, one).unwrap();
        }
        assert_eq!(store.transact(shards(&store), Intent::Write, || 7).unwrap(), 7, "a part of it");
    };
    store.transact(shards(&store), Intent::Write, changes).unwrap();
    assert_eq!(stopping.join().unwrap(), vec![Some(b"1".to_vec()); KEYS.len()]);
    let refused = store.transact(shards(&store), Intent::Write, || panic!("not done"));
    assert_eq!(refused, Err(WriteError::ReadOnly));
    store
        .transact(shards(&store), Intent::Read, || {
            assert_eq!(store.put(KEYS[0], b"2"), Err(WriteError::ReadOnly));
        })
        .unwrap();
}

#[test]
fn who_holds_shards_sees_what_it_made_and_waits_for_no_log() {
    let store = deferred(4);
    let all = || store.shards();
    store.put(b"old", b"0").unwrap();
    store
        .transact(all(), Intent::Write, || {
            put_all(&store, b"1");
            assert_eq!(read(&store), vec![Some(b"1".to_vec()); KEYS.len()]);
            assert!(store.delete(b"a").unwrap());
            assert_eq!((store.get(b"a").unwrap(), store.len()), (None, KEYS.len() as u64));
            assert!(matches!(store.settle(), Err(SyncError::Held)));
            assert_eq!(store.clear().unwrap(), KEYS.len() as u64);
            assert_eq!((store.get(b"old").unwrap(), store.len()), (None, 0));
            store.put(b"a", b"2").unwrap();
        })
        .unwrap();
    assert_eq!(read(&store), vec![None; KEYS.len()], "none of it is durable");
    store.settle().unwrap();
    assert_eq!((store.get(b"a").unwrap(), store.len()), (Some(b"2".to_vec()), 1));
    store.check().unwrap();
}

#[test]
fn a_mark_knows_what_was_touched() {
    let marked = |store: &Store, mark: &super::super::Mark| store.is_marked(b"k", mark).unwrap();
    for store in [memory(1, 100), deferred(1)] {
        let settle = || store.settle().unwrap();
        // Absent, put, deleted, put again with the same value: each is a touch, another key's change is none.
        let absent = store.mark(b"k").unwrap();
        store.put(b"other", b"1").unwrap();
        store.delete(b"other").unwrap();
        assert!(marked(&store, &absent));
        store.put(b"k", b"1").unwrap();
        assert!(!marked(&store, &absent), "also while it waits for the log");
        settle();
        let present = store.mark(b"k").unwrap();
        assert!(marked(&store, &present) && !marked(&store, &absent));
        store.delete(b"k").unwrap();
        assert!(!marked(&store, &present) && !marked(&store, &absent), "absent again is not untouched");
        settle();
        store.put(b"k", b"1").unwrap();
        settle();
        assert!(!marked(&store, &present), "the same value is another record");
        // A role in between: seqs may not mean the same.
        let mark = store.mark(b"k").unwrap();
        store.demotions.fetch_add(1, Ordering::Relaxed);
        assert!(!marked(&store, &mark));
    }
    let store = memory(1, 100);
    let none = store.mark(&[0; 5000]).unwrap();
    assert!(store.is_marked(&[0; 5000], &none).unwrap(), "no slot can hold it");
}

#[test]
fn an_expired_record_is_touched_by_its_end_and_not_by_its_removal() {
    let clock = Arc::new(ManualClock::new(1_000_000));
    let options = Options { clock: clock.clone(), ..Options::memory(geometry(1), 100) };
    let store = Store::open("memory".as_ref(), options).unwrap();
    let now = store.clock().unix_ms();
    store.put_expiring(b"k", b"1", now + 1000).unwrap();
    let live = store.mark(b"k").unwrap();
    assert!(store.is_marked(b"k", &live).unwrap());
    clock.advance(std::time::Duration::from_secs(2));
    assert!(!store.is_marked(b"k", &live).unwrap(), "it has expired");
    let expired = store.mark(b"k").unwrap();
    assert_eq!(store.sweep(ShardIndex(0), SlotIndex(0), u32::MAX).0, 1);
    assert!(store.is_marked(b"k", &expired).unwrap(), "it was absent before");
    assert!(!store.is_marked(b"k", &live).unwrap());
}

/// The same numbers for the same seed.
struct Dice(AtomicU64);

impl Chance for Dice {
    fn next(&self) -> u64 {
        let state = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

/// A power cut at a call of the disk, which does some of it. What was answered is there, and whole; what was not is there as
/// a whole or not at all.
fn cut_at(call: u64, seed: u64) -> bool {
    let disk = SimulatedDisk::new(Arc::new(Dice(AtomicU64::new(seed))));
    let shards = Arc::new(Shards::default());
    let store = open_at(4, Arc::new(disk.clone()), Arc::clone(&shards), 1, true).unwrap();
    disk.plan(disk.calls() + call, Fault::PowerCut);
    let put = |value: u8| {
        let put = |key: &&[u8]| store.put(key, &[value; 24]).map(drop);
        let done = store.transact(self::shards(&store), Intent::Write, || KEYS.iter().try_for_each(put));
        done.and_then(|done| done)
    };
    let answered = (1..=4).take_while(|value| put(*value).is_ok()).last().unwrap_or(0);
    if disk.has_power() {
        return false;
    }
    drop(store);
    let store = open_at(4, Arc::new(disk.after_power_cut()), shards, 2, true).unwrap();
    let found = read(&store);
    assert!(found.iter().all(|value| *value == found[0]), "call {call}, seed {seed}: {found:?}");
    let value = found[0].as_ref().map_or(0, |value| value[0]);
    assert!(value >= answered, "call {call}, seed {seed}: {answered} was answered, {value} is there");
    true
}

fn cut_everywhere(seeds: u64) {
    for seed in 0..seeds {
        assert!(cut_at(0, seed) && (1..1000).any(|call| !cut_at(call, seed)), "the calls come to an end");
    }
}

#[test]
#[cfg_attr(miri, ignore = "opens hundreds of stores")]
fn a_power_cut_leaves_all_of_a_transaction_or_nothing() {
    cut_everywhere(30);
}

#[cfg(feature = "planted-bugs")]
#[test]
fn a_transaction_that_is_none_in_the_log_is_found() {
    use crate::planted::{Bug, plant};
    plant(Some(Bug::GroupUnmarked));
    let found = std::panic::catch_unwind(|| cut_everywhere(30)).is_err();
    plant(None);
    assert!(found, "no power cut left a part of a transaction");
}
