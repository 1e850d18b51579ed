//! Changes that wait: what writers, readers and followers see of them, and what a sync is shared by.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc;
use std::time::Duration;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::chance::SystemChance;
use crate::store::tests::{assert_equal, contents, drain, geometry, memory};
use crate::store::{Change, Durability, OpenError, Options, Simulated, SimulatedShards};
use crate::wal::SEGMENT_SIZE_MIN;
use crate::wal::disk::Disk;
use crate::wal::simulated::{Fault, SimulatedDisk};

const SHARD: ShardIndex = ShardIndex(0);

/// Shards that lie nowhere but in the store's memory.
#[derive(Default)]
pub(in crate::store) struct Shards(Mutex<BTreeMap<ShardIndex, Vec<u8>>>);

impl SimulatedShards for Shards {
    fn load(&self, shard: ShardIndex) -> Option<Vec<u8>> {
        self.0.lock().get(&shard).cloned()
    }

    fn sync(&self, shard: ShardIndex, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let mut shards = self.0.lock();
        let file = shards.entry(shard).or_default();
        file.resize(file.len().max(offset + bytes.len()), 0);
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

fn open(shard_count: u16, disk: Arc<dyn Disk>, calls_wait: bool) -> Store {
    open_at(shard_count, disk, Arc::new(Shards::default()), 1, calls_wait).unwrap()
}

pub(in crate::store) fn open_at(
    shard_count: u16,
    disk: Arc<dyn Disk>,
    shards: Arc<Shards>,
    boot: u8,
    calls_wait: bool,
) -> Result<Store, OpenError> {
    let options = Options {
        durability: Durability::Always,
        calls_wait,
        log_segment_size: SEGMENT_SIZE_MIN,
        log_size_max: 4 * u64::from(SEGMENT_SIZE_MIN),
        store_id: Some(uuid::Uuid::from_u128(1)),
        simulated: Some(Simulated { disk, shards, boot }),
        ..Options::memory(geometry(shard_count), 100)
    };
    Store::open("memory".as_ref(), options)
}

/// A store whose calls do not wait.
pub(in crate::store) fn deferred(shard_count: u16) -> Store {
    open(shard_count, Arc::new(SimulatedDisk::new(Arc::new(SystemChance))), false)
}

#[test]
fn what_waits_is_seen_by_the_next_write_and_by_nobody_else() {
    let store = deferred(1);
    let follower = memory(1, 100);
    let (mut ring, _) = store.attach(SHARD, 1 << 16, Sleeper::new(|| {}));
    store.put(b"old", b"1").unwrap();
    store.settle().unwrap();
    assert_eq!((store.head(SHARD), store.durable(SHARD)), (Seq(1), Seq(1)));
    follower.apply(SHARD, &drain(&mut ring)).unwrap();

    // A key that is there, a new one, one that goes and comes back, and one that comes and goes.
    assert_eq!(store.increment(b"old", 1), Ok(Ok(2)));
    assert_eq!(store.increment(b"old", 1), Ok(Ok(3)));
    assert_eq!(store.compare_and_set(b"new", None, b"x"), Ok(true));
    assert_eq!(store.compare_and_set(b"new", None, b"y"), Ok(false));
    assert_eq!(store.compare_and_set(b"new", Some(b"x"), b"y"), Ok(true));
    assert_eq!(store.delete(b"new"), Ok(true));
    assert_eq!(store.delete(b"new"), Ok(false));
    assert_eq!(store.compare_and_set(b"new", None, b"z"), Ok(true));
    store.put(b"short", b"").unwrap();
    assert_eq!(store.delete(b"short"), Ok(true));

    assert_eq!(store.get(b"old").unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!((store.get(b"new").unwrap(), store.len()), (None, 1));
    assert_eq!((store.head(SHARD), store.made(SHARD)), (Seq(1), Seq(9)));
    assert!(store.is_pending(b"old") && !store.is_pending(b"other") && ring.is_empty());
    assert!(!store.scan_next(SHARD, &mut store.scan(SHARD, Seq(1)), &mut Vec::new(), 999).unwrap());
    assert_eq!(store.audit(SHARD, SlotIndex(0), u32::MAX).faults, []);

    let round = store.ask_for_a_round();
    assert!(store.is_asked_for_a_round() && !store.is_round_over(round));
    store.sync_log().unwrap();
    assert!(!store.is_asked_for_a_round() && store.is_round_over(round));
    assert_eq!((store.head(SHARD), store.made(SHARD), store.durable(SHARD)), (Seq(9), Seq(9), Seq(9)));
    assert!(!store.has_pending());
    assert_eq!(store.get(b"old").unwrap().as_deref(), Some(&b"3"[..]));
    assert_eq!(store.get(b"new").unwrap().as_deref(), Some(&b"z"[..]));
    follower.apply(SHARD, &drain(&mut ring)).unwrap();
    assert_equal(&store, &follower);
    store.check().unwrap();
}

#[test]
fn what_waits_has_landed_when_writes_are_stopped_and_a_new_term_begins_behind_it() {
    let store = deferred(2);
    for key in 0..20_u8 {
        store.put(&[key], b"value").unwrap();
    }
    let made: Vec<_> = store.shards().map(|shard| store.made(shard)).collect();
    store.lead_past(7).unwrap();
    for (shard, made) in store.shards().zip(&made) {
        assert_eq!(store.lineage(shard).last().unwrap().first_seq, made.next().0, "shard {shard}");
    }
    store.put(b"last", b"value").unwrap();
    store.stop_writes();
    assert!(!store.has_pending() && store.put(b"late", b"value").is_err());
    assert_eq!(store.len(), 21);
    store.demote().unwrap();
    store.close().unwrap();
}

#[test]
fn a_store_whose_log_fails_with_changes_waiting_neither_follows_nor_closes() {
    let disk = SimulatedDisk::new(Arc::new(SystemChance));
    let store = open(1, Arc::new(disk.clone()), false);
    store.put(b"a", b"1").unwrap();
    disk.plan(disk.calls(), Fault::Failure);
    assert!(store.demote().is_err() && store.close().is_err());
    assert_eq!((store.get(b"a").unwrap(), store.head(SHARD)), (None, Seq::ZERO));
    assert!(store.settle().is_err() && store.put(b"b", b"1").is_err());
}

#[test]
fn clearing_a_store_counts_what_waits() {
    let store = deferred(1);
    store.put(b"a", b"1").unwrap();
    assert_eq!(store.clear(), Ok(1), "it has landed first");
    store.put(b"a", b"2").unwrap();
    store.settle().unwrap();
    assert_eq!(store.get(b"a").unwrap().as_deref(), Some(&b"2"[..]));
    store.check().unwrap();
}

#[test]
fn an_expired_record_that_waits_is_absent_to_the_next_write() {
    let store = deferred(1);
    store.put_expiring(b"a", b"1", 1).unwrap();
    assert_eq!(store.compare_and_set(b"a", None, b"2"), Ok(true));
    store.put_expiring(b"b", b"1", 1).unwrap();
    assert_eq!(store.delete(b"b"), Ok(false));
    store.settle().unwrap();
    assert_eq!((store.get(b"a").unwrap().as_deref(), store.len()), (Some(&b"2"[..]), 1));
    store.check().unwrap();
}

/// A disk whose next sync of a log's file waits for the test.
struct Gate {
    disk: SimulatedDisk,
    is_shut: Mutex<bool>,
    reached: mpsc::Sender<()>,
    open: Mutex<mpsc::Receiver<()>>,
}

impl Disk for Gate {
    fn files(&self) -> io::Result<Vec<(u32, u64)>> {
        self.disk.files()
    }

    fn create(&self, file: u32, size: u64) -> io::Result<()> {
        self.disk.create(file, size)
    }

    fn remove(&self, file: u32) -> io::Result<()> {
        self.disk.remove(file)
    }

    fn read(&self, file: u32, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.disk.read(file, offset, target)
    }

    fn write(&self, file: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write(file, offset, bytes)
    }

    fn sync(&self, file: u32) -> io::Result<()> {
        if std::mem::take(&mut *self.is_shut.lock()) {
            self.reached.send(()).unwrap();
            self.open.lock().recv().unwrap();
        }
        self.disk.sync(file)
    }
}

#[test]
fn writers_that_come_together_share_a_sync() {
    const WRITERS: u8 = 16;
    const PATIENCE: Duration = Duration::from_secs(60);
    let ((reached, is_reached), (let_go, open_gate)) = (mpsc::channel(), mpsc::channel());
    let disk = SimulatedDisk::new(Arc::new(SystemChance));
    let gate = Gate { disk, is_shut: Mutex::new(false), reached, open: Mutex::new(open_gate) };
    let gate = Arc::new(gate);
    let store = open(1, Arc::<Gate>::clone(&gate), true);
    let syncs = || store.log_stats().unwrap().syncs;
    let before = syncs();
    std::thread::scope(|scope| {
        *gate.is_shut.lock() = true;
        let store = &store;
        let write = move |key: u8| assert!(store.put(&[key], b"value").is_ok());
        scope.spawn(move || write(0));
        is_reached.recv_timeout(PATIENCE).unwrap();
        // The first one's sync is under way; all the others come now.
        (1..=WRITERS).for_each(|key| drop(scope.spawn(move || write(key))));
        let deadline = std::time::Instant::now() + PATIENCE;
        while store.made(SHARD) < Seq(u64::from(WRITERS) + 1) {
            assert!(std::time::Instant::now() < deadline, "writers are held up by a sync under way");
            std::thread::yield_now();
        }
        assert_eq!((store.len(), store.head(SHARD)), (0, Seq::ZERO));
        let_go.send(()).unwrap();
    });
    assert_eq!((store.len(), store.head(SHARD)), (u64::from(WRITERS) + 1, Seq(u64::from(WRITERS) + 1)));
    assert_eq!(syncs() - before, 2, "one for the first, one for all the others");
    store.check().unwrap();
}

#[derive(Debug, Clone)]
enum Op {
    Put(u8, u8),
    PutExpired(u8),
    Delete(u8),
    Increment(u8),
    CompareAndSet(u8, u8),
    Append(u8),
    Clear,
    Settle,
    Checkpoint,
    Sweep,
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0_u8..24;
    prop_oneof![
        8 => (key(), 0_u8..24).prop_map(|(key, len)| Op::Put(key, len)),
        1 => key().prop_map(Op::PutExpired),
        5 => key().prop_map(Op::Delete),
        3 => key().prop_map(Op::Increment),
        3 => (key(), 0_u8..24).prop_map(|(key, len)| Op::CompareAndSet(key, len)),
        3 => key().prop_map(Op::Append),
        1 => Just(Op::Clear),
        3 => Just(Op::Settle),
        1 => Just(Op::Checkpoint),
        1 => Just(Op::Sweep),
    ]
}

/// Does it and says what came of it.
fn run(store: &Store, op: &Op) -> String {
    match op {
        Op::Put(key, len) => format!("{:?}", store.put(&[*key], &vec![*key; usize::from(*len)]).map(drop)),
        Op::PutExpired(key) => format!("{:?}", store.put_expiring(&[*key], b"gone", 1).map(drop)),
        Op::Delete(key) => format!("{:?}", store.delete(&[*key])),
        Op::Increment(key) => format!("{:?}", store.increment(&[*key], 1)),
        Op::CompareAndSet(key, len) => {
            let set = |expected| store.compare_and_set(&[*key], expected, &vec![b'1'; usize::from(*len)]);
            format!("{:?} {:?}", set(None), set(Some(b"1")))
        }
        Op::Append(key) => {
            let appended = store.update(&[*key], |old, buffer| {
                let old = old.map_or(&b""[..], |entry| entry.value);
                buffer.extend_from_slice(&old[..old.len().min(20)]);
                buffer.push(b'1');
                (Change::Put { expire_at: 0 }, buffer.clone())
            });
            format!("{appended:?}")
        }
        Op::Clear => {
            // How many records there were, expired ones included, depends on who was swept or met when.
            store.clear().map(drop).unwrap();
            String::new()
        }
        Op::Settle => {
            store.settle().unwrap();
            String::new()
        }
        Op::Checkpoint => {
            store.checkpoint().unwrap();
            String::new()
        }
        Op::Sweep => {
            for shard in store.shards() {
                store.sweep(shard, SlotIndex(0), u32::MAX);
            }
            String::new()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn every_write_answers_as_if_nothing_waited(ops in prop::collection::vec(op(), 1..200)) {
        let (store, plain, follower) = (deferred(2), memory(2, 100), memory(2, 100));
        let mut rings: Vec<_> =
            store.shards().map(|shard| store.attach(shard, 1 << 16, Sleeper::new(|| {})).0).collect();
        for op in ops {
            prop_assert_eq!(run(&store, &op), run(&plain, &op), "{:?}", op);
            if matches!(op, Op::Settle | Op::Checkpoint) {
                prop_assert!(!store.has_pending());
                prop_assert_eq!(contents(&store), contents(&plain));
                store.check().unwrap();
                for (shard, ring) in store.shards().zip(&mut rings) {
                    follower.apply(shard, &drain(ring)).unwrap();
                    prop_assert_eq!(store.head(shard), store.durable(shard));
                }
                assert_equal(&store, &follower);
            }
        }
        store.settle().unwrap();
        prop_assert_eq!(contents(&store), contents(&plain));
        store.check().unwrap();
    }
}
