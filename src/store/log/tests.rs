//! A log without space: what is refused, what goes on, what is lost (nothing), and that it passes.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::chance::SystemChance;
use crate::store::tests::geometry;
use crate::store::{Options, Simulated, SimulatedShards};
use crate::wal::SEGMENT_SIZE_MIN;
use crate::wal::simulated::SimulatedDisk;

const SHARD: ShardIndex = ShardIndex(0);
const KEYS: u64 = 50;

/// What is durable of shards.
#[derive(Default)]
struct Shards(Mutex<BTreeMap<ShardIndex, Vec<u8>>>);

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

/// A machine with a disk of which the log may take so many bytes.
struct Machine {
    disk: SimulatedDisk,
    shards: Arc<Shards>,
    boot: u8,
}

impl Machine {
    fn new(capacity: Option<u64>) -> Self {
        let disk = SimulatedDisk::new(Arc::new(SystemChance));
        disk.set_capacity(capacity);
        Self { disk, shards: Arc::default(), boot: 1 }
    }

    fn open(&self, durability: Durability) -> Store {
        let (disk, shards) = (Arc::new(self.disk.clone()), Arc::clone(&self.shards));
        let options = Options {
            store_id: Some(uuid::Uuid::from_u128(7)),
            durability,
            calls_wait: false,
            log_segment_size: SEGMENT_SIZE_MIN,
            log_size_max: 8 * u64::from(SEGMENT_SIZE_MIN),
            simulated: Some(Simulated { disk, shards: shards as Arc<dyn SimulatedShards>, boot: self.boot }),
            ..Options::memory(geometry(1), 100)
        };
        Store::open("memory".as_ref(), options).unwrap()
    }

    fn after_power_cut(&self) -> Self {
        let shards = Shards(Mutex::new(self.shards.0.lock().clone()));
        Self { disk: self.disk.after_power_cut(), shards: Arc::new(shards), boot: self.boot + 1 }
    }
}

const INTERVAL: Durability = Durability::Interval(Duration::from_secs(1));

fn key(number: u64) -> [u8; 8] {
    (number % KEYS).to_be_bytes()
}

/// Makes more changes than two segments hold.
fn overfill(store: &Store) {
    for number in 0..8_000_u64 {
        store.put(&key(number), &number.to_be_bytes()).unwrap();
    }
}

fn assert_overfilled(store: &Store) {
    for number in 8_000 - KEYS..8_000 {
        assert_eq!(store.get(&key(number)).unwrap().as_deref(), Some(&number.to_be_bytes()[..]));
    }
}

fn is_refused(store: &Store) -> bool {
    matches!(store.put(b"more", b""), Err(WriteError::LogFull { .. }))
}

#[test]
fn a_store_without_any_space_for_a_log_opens_is_read_and_takes_changes_once_there_is_some() {
    // None at all; for the checkpoint alone; for one segment, and no other.
    for capacity in [0, 10_000, 10_000 + u64::from(SEGMENT_SIZE_MIN)] {
        for durability in [INTERVAL, Durability::Always] {
            let machine = Machine::new(Some(capacity));
            let store = machine.open(durability);
            assert!(is_refused(&store) && store.get(b"more").unwrap().is_none(), "{capacity} {durability:?}");
            assert_eq!(store.log_state(), LogState::NoSpace);
            // What each shard is fits into the one segment.
            assert_eq!(store.sync_log().is_err_and(|error| error.is_full()), capacity <= 10_000);
            drop(store.checkpoint());
            assert!(is_refused(&store) && store.log_stats().unwrap().writes_refused >= 2);
            assert!(!store.has_failed_sync());
            machine.disk.set_capacity(None);
            store.sync_log().unwrap();
            assert_eq!(store.log_state(), LogState::Going);
            store.put(b"more", b"x").unwrap();
            store.sync_log().unwrap();
            let store = machine.after_power_cut().open(durability);
            assert_eq!(store.get(b"more").unwrap().as_deref(), Some(&b"x"[..]), "{capacity} {durability:?}");
        }
    }
}

#[test]
fn a_store_whose_log_ran_out_of_space_opens_again_without_more() {
    let machine = Machine::new(None);
    let store = machine.open(INTERVAL);
    machine.disk.set_capacity(Some(0));
    overfill(&store);
    assert!(store.sync_log().is_err_and(|error| error.is_full()) && is_refused(&store));
    assert_overfilled(&store);
    store.close().unwrap();
    drop(store);
    // In the files that it has: they go round for as long as slots are made durable.
    let machine = machine.after_power_cut();
    machine.disk.set_capacity(Some(0));
    let store = machine.open(INTERVAL);
    assert_overfilled(&store);
    assert_eq!(store.log_state(), LogState::Going);
    for number in 0..8_000_u64 {
        store.put(&key(number), b"again").unwrap();
        if number % 500 == 0 {
            store.sync_log().unwrap();
        }
    }
    assert!(store.log_stats().unwrap().checkpoints > 0);
    store.sync_log().unwrap();
    let store = machine.after_power_cut().open(INTERVAL);
    (0..KEYS).for_each(|number| assert_eq!(store.get(&key(number)).unwrap().unwrap(), b"again"));
}

#[test]
fn a_store_that_is_closed_without_space_for_its_log_has_all_of_it_in_its_slots() {
    let machine = Machine::new(None);
    let store = machine.open(INTERVAL);
    machine.disk.set_capacity(Some(0));
    overfill(&store);
    store.close().unwrap();
    let machine = machine.after_power_cut();
    for durability in [INTERVAL, Durability::Always, Durability::None] {
        let store = machine.after_power_cut().open(durability);
        assert_overfilled(&store);
        store.check().unwrap();
    }
}

#[test]
fn changes_that_wait_for_a_log_without_space_go_on_waiting_and_nothing_is_done_behind_them() {
    let machine = Machine::new(None);
    let store = machine.open(Durability::Always);
    machine.disk.set_capacity(Some(0));
    overfill(&store);
    assert!(store.settle().is_err_and(|error| error.is_full()) && store.has_pending());
    assert!(is_refused(&store));
    store.stop_writes();
    assert!(store.has_pending(), "nobody was told that they are done");
    assert!(store.demote().is_err() && !store.has_failed_sync() && !store.is_follower());
    assert_eq!(store.log_state(), LogState::NoSpace, "that is no failure");
    machine.disk.set_capacity(None);
    store.settle().unwrap();
    assert!(!store.has_pending());
    assert_overfilled(&store);
    store.resume_writes(|| true);
    store.put(b"more", b"x").unwrap();
    store.settle().unwrap();
    store.close().unwrap();
}

#[test]
fn changes_that_wait_are_given_up_when_a_store_is_closed_and_whoever_closes_it_is_told() {
    let machine = Machine::new(None);
    let store = machine.open(Durability::Always);
    store.put(b"durable", b"x").unwrap();
    store.settle().unwrap();
    machine.disk.set_capacity(Some(0));
    overfill(&store);
    assert!(store.settle().is_err());
    let error = store.close().unwrap_err().to_string();
    assert!(error.contains("given up") && error.contains("space"), "{error}");
    let store = machine.after_power_cut().open(Durability::Always);
    assert_eq!(store.get(b"durable").unwrap().as_deref(), Some(&b"x"[..]));
    assert_eq!(store.durable(SHARD), store.head(SHARD));
    store.check().unwrap();
}
