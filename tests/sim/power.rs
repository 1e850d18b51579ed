//! A store on a machine that loses its power, in every call that changes a disk, with any write-back of log and slots,
//! also while the store is opened again. What a file has grown by since its last sync is there, in part, or not at all.
//!
//! At each level of durability. After every power cut: each change that was called durable is there, or what replaced it; so is all that the
//! lineage says is shared with followers; no seq stands for two changes; index and slots agree. A slot that was caught
//! half-written by a change that was not durable may be damaged, and is then known to be; where the log comes first
//! there is no such slot, and each change that was answered is there. Without a log a store still opens, with nothing in
//! it but what was written, and all that an opening or an orderly end left there.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use slotstream::store::{Durability, OpenError, Simulated, Term, WriteError};
use slotstream::wal::SEGMENT_SIZE_MIN;
use slotstream::wal::simulated::{Fault, SimulatedDisk};
use slotstream::{Geometry, Options, Seq, Store};

use crate::log::Dice;
use crate::random::Random;
use crate::shards::Shards;

/// Slots so large that a shard has fourteen at first, and grows by as many.
const GEOMETRY: Geometry =
    Geometry { shard_count: 2, key_size_max: 8, value_size_max: VALUE_SIZE_MAX, shard_prefix_bits: 0 };
const VALUE_SIZE_MAX: u16 = 4_500;
const SLOTS: u32 = 42;
const SEEDS: u64 = 6;
/// Without a log there are few calls, and it is chance alone that tells one life from the next.
const SEEDS_WITHOUT_LOG: u64 = 60;
const STEPS: usize = 55;

/// When a change of a machine's store is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// Never before the store is closed.
    None,
    Interval,
    /// Before its call returns.
    Always,
    /// Before it is in its slot; who makes it waits for others, and makes more meanwhile.
    AlwaysTogether,
}

impl Level {
    fn comes_first(self) -> bool {
        matches!(self, Self::Always | Self::AlwaysTogether)
    }
}

/// A change that a store has answered.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Change {
    seq: u64,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

/// A machine with a store, and all that was ever written to it.
struct Machine {
    disk: SimulatedDisk,
    shards: Arc<Shards>,
    boot: u8,
    chance: Arc<Dice>,
    changes: Vec<Vec<Change>>,
    given_out: BTreeSet<(u16, u64)>,
    /// The terms that followers know, by shard.
    lineages: Vec<Vec<Term>>,
    /// What was called durable, by shard.
    durable: Vec<u64>,
    level: Level,
    context: String,
}

impl Machine {
    fn new(seed: u64, level: Level, context: String) -> Self {
        let chance = Dice::new(seed);
        let disk = SimulatedDisk::new(chance.clone());
        let shards = Shards::new(&disk, chance.clone(), level == Level::None);
        let count = usize::from(GEOMETRY.shard_count);
        Self {
            disk,
            shards,
            boot: 1,
            chance,
            changes: vec![Vec::new(); count],
            given_out: BTreeSet::new(),
            lineages: vec![Vec::new(); count],
            durable: vec![0; count],
            level,
            context,
        }
    }

    fn open(&self) -> Result<Store, OpenError> {
        let simulated =
            Simulated { disk: Arc::new(self.disk.clone()), shards: self.shards.clone(), boot: self.boot };
        let options = Options {
            store_id: Some(uuid::Uuid::from_u128(5)),
            chance: self.chance.clone(),
            durability: match self.level {
                Level::None => Durability::None,
                Level::Interval => Durability::Interval(Duration::from_millis(100)),
                Level::Always | Level::AlwaysTogether => Durability::Always,
            },
            calls_wait: self.level == Level::Always,
            log_segment_size: SEGMENT_SIZE_MIN,
            log_size_max: 3 * u64::from(SEGMENT_SIZE_MIN),
            simulated: Some(simulated),
            ..Options::memory(GEOMETRY, SLOTS)
        };
        Store::open(Path::new("memory"), options)
    }

    /// The power is gone, and comes back.
    fn cut_power(&mut self, store: Option<Store>) {
        if let Some(store) = store {
            self.shards.keep(&store);
        }
        self.disk = self.shards.cut_power();
        self.boot += 1;
    }

    fn note(&mut self, store: &Store, key: &[u8], value: Option<Vec<u8>>) {
        let shard = store.shard_of(key);
        let change = Change { seq: store.made(shard).0, key: key.to_vec(), value };
        if self.level == Level::Always {
            assert!(store.durable(shard).0 >= change.seq, "{}: it was answered too early", self.context);
            self.durable[usize::from(shard.0)] = change.seq;
        }
        let is_new = self.given_out.insert((shard.0, change.seq));
        assert!(is_new, "{}: seq {} was given out twice", self.context, change.seq);
        self.changes[usize::from(shard.0)].push(change);
    }

    /// A change whose call failed: it may be there.
    fn note_unanswered(&mut self, store: &Store, key: &[u8], value: Option<Vec<u8>>) {
        let shard = store.shard_of(key);
        let change = Change { seq: store.made(shard).0, key: key.to_vec(), value };
        if self.level.comes_first() && self.given_out.insert((shard.0, change.seq)) {
            self.changes[usize::from(shard.0)].push(change);
        }
    }

    /// Works as chance says until the disk fails.
    fn work(&mut self, store: &Store, random: &mut Random, steps: usize) -> Result<(), ()> {
        self.lineages = store.shards().map(|shard| store.lineage(shard)).collect();
        for _ in 0..steps {
            let done = match random.below(100) {
                0..72 => {
                    let key = format!("key{}", random.below(40)).into_bytes();
                    let value = (!random.percent(15)).then(|| {
                        vec![random.next().to_le_bytes()[0]; random.between(0, VALUE_SIZE_MAX.into())]
                    });
                    let changed = match &value {
                        None => store.delete(&key),
                        Some(value) => store.put(&key, value).map(|_| true),
                    };
                    match changed {
                        Ok(true) => self.note(store, &key, value.clone()),
                        Ok(false) => {}
                        Err(_) => self.note_unanswered(store, &key, value.clone()),
                    }
                    changed.map(drop).or_else(|error| match error {
                        WriteError::LogFailed => Err(()),
                        // Its slot may be a damaged one.
                        WriteError::Read(_) => Ok(()),
                        error => panic!("{}: {error}", self.context),
                    })
                }
                72..84 => store.write_log().map_err(drop),
                84..96 => store.sync_log().map_err(drop),
                _ => store.checkpoint().map_err(drop),
            };
            for shard in store.shards() {
                let durable = store.durable(shard).0;
                let known = &mut self.durable[usize::from(shard.0)];
                assert!(durable >= *known, "{}: what is durable goes back", self.context);
                *known = durable;
            }
            done?;
        }
        Ok(())
    }

    /// Whether the store holds all that was called durable, and all that its lineage calls shared.
    fn check(&self, store: &Store) {
        let context = &self.context;
        store.check().unwrap_or_else(|error| panic!("{context}: {error}"));
        if self.level.comes_first() {
            assert_eq!(store.damaged(), [], "{context}: a slot was caught half-written");
        }
        let is_damaged = |shard| store.damaged().iter().any(|(damaged, _, _)| *damaged == shard);
        for shard in store.shards() {
            let changes = &self.changes[usize::from(shard.0)];
            let known = &self.lineages[usize::from(shard.0)];
            let is_known =
                |term: &Term| known.iter().any(|known| (known.epoch, known.id) == (term.epoch, term.id));
            let lineage = store.lineage(shard);
            let shared =
                lineage.iter().find(|term| !is_known(term)).map_or(u64::MAX, |term| term.first_seq - 1);
            let durable = self.durable[usize::from(shard.0)];
            let upper = changes.iter().map(|change| change.seq).max().unwrap_or(0);
            assert!(shared >= durable.min(upper), "{context}: {durable} is durable, {shared} is shared");
            let keys: BTreeSet<_> = changes.iter().map(|change| &change.key).collect();
            for key in keys {
                let all: Vec<_> = changes.iter().filter(|change| change.key == *key).collect();
                let safe = all.iter().rposition(|change| change.seq <= shared.max(durable));
                let found = read(store, key);
                let is_one_of = |changes: &[&Change]| changes.iter().any(|change| change.value == found);
                let good = match safe {
                    None => found.is_none() || is_one_of(&all),
                    Some(safe) => is_one_of(&all[safe..]),
                };
                let is_caught = safe.is_none_or(|safe| safe + 1 < all.len()) && is_damaged(shard);
                assert!(
                    good || (found.is_none() && is_caught),
                    "{context}: shard {shard}, shared {shared}, durable {durable}, {key:?} is {}, of {:?}",
                    found.map_or("missing", |_| "another"),
                    all.iter().map(|change| (change.seq, change.value.is_some())).collect::<Vec<_>>()
                );
            }
        }
    }

    /// What waits when the process is killed was never told to anybody.
    fn forget_unanswered(&mut self, store: &Store) {
        for shard in store.shards() {
            let durable = store.durable(shard).0;
            self.changes[usize::from(shard.0)].retain(|change| change.seq <= durable);
            self.given_out.retain(|(other, seq)| *other != shard.0 || *seq <= durable);
        }
    }

    /// What the store holds now is what counts from here on: opening it made that durable.
    fn settle(&mut self, store: &Store) {
        self.check(store);
        if self.level == Level::None {
            // A seq is one change's within a term.
            self.given_out.clear();
        }
        for changes in &mut self.changes {
            let keys: BTreeSet<_> = changes.iter().map(|change| change.key.clone()).collect();
            let held = |key: Vec<u8>| Change { seq: 0, value: read(store, &key), key };
            *changes = keys.into_iter().map(held).collect();
        }
    }
}

/// The value of a key; none, too, if a damaged slot may be its own.
fn read(store: &Store, key: &[u8]) -> Option<Vec<u8>> {
    store.get(key).unwrap_or(None)
}

/// One life of a machine with a fault in this call; says how many calls there were.
fn life(seed: u64, level: Level, fault: Option<(u64, Fault)>) -> u64 {
    let mut random = Random::new(seed);
    let mut machine = Machine::new(seed, level, format!("seed {seed}, {level:?}, {fault:?}"));
    if let Some((call, fault)) = fault {
        machine.disk.plan(call, fault);
    }
    let opened = machine.open();
    let mut store = None;
    if let Ok(opened) = opened {
        let worked = machine.work(&opened, &mut random, STEPS);
        assert!(fault.is_some() || worked.is_ok(), "{}: failed without a fault", machine.context);
        if worked.is_err() && machine.disk.has_power() {
            // A disk that failed once: nothing more is taken, nothing more is called durable.
            let durable: Vec<_> = opened.shards().map(|shard| opened.durable(shard)).collect();
            assert_eq!(opened.put(b"more", b"x"), Err(WriteError::LogFailed), "{}", machine.context);
            assert!(opened.sync_log().is_err() && opened.checkpoint().is_err() && opened.close().is_err());
            let after: Vec<_> = opened.shards().map(|shard| opened.durable(shard)).collect();
            assert_eq!(durable, after, "{}: more is durable after a failed sync", machine.context);
        }
        store = Some(opened);
    }
    let calls = machine.disk.calls();
    machine.cut_power(store);
    // Opened again, with a kill or a power cut in every call of that in turn; the last time nothing goes wrong.
    for cut in 0.. {
        let is_kill = random.percent(30);
        machine.disk.plan(cut, if is_kill { Fault::Kill } else { Fault::PowerCut });
        match machine.open() {
            Ok(store) => {
                machine.disk.plan_nothing();
                go_on(machine, store, &mut random);
                return calls;
            }
            Err(error) => {
                assert!(!machine.disk.has_power(), "{}, opening cut at {cut}: {error}", machine.context);
                if is_kill {
                    machine.disk.outlive();
                } else {
                    machine.cut_power(None);
                }
            }
        }
    }
    calls
}

/// After a power cut: work, a kill, work, a power cut.
fn go_on(mut machine: Machine, store: Store, random: &mut Random) {
    machine.settle(&store);
    // A damaged slot is healed by whoever writes there; until then its shard knows of it.
    machine.work(&store, random, 15).expect("nothing fails");
    if machine.level == Level::AlwaysTogether {
        machine.forget_unanswered(&store);
    }
    machine.shards.keep(&store);
    drop(store);
    let store = machine.open().unwrap_or_else(|error| panic!("{}: {error}", machine.context));
    for shard in store.shards() {
        let changes = &machine.changes[usize::from(shard.0)];
        let keys: BTreeSet<_> = changes.iter().map(|change| &change.key).collect();
        for key in keys {
            let last = changes.iter().rfind(|change| change.key == *key).unwrap();
            assert_eq!(read(&store, key), last.value, "{}: a kill lost {key:?}", machine.context);
        }
        // What a killed process had not logged is durable since the store was opened again.
        let index = usize::from(shard.0);
        if machine.level == Level::None {
            continue;
        }
        machine.durable[index] = changes.iter().map(|change| change.seq).max().unwrap_or(0);
    }
    machine.work(&store, random, 15).expect("nothing fails");
    machine.cut_power(Some(store));
    let store = machine.open().unwrap_or_else(|error| panic!("{}: {error}", machine.context));
    machine.check(&store);
    // And an orderly end, after which nothing is replayed and nothing is lost.
    store.close().expect("nothing fails");
    let all: Vec<_> = store.shards().map(|shard| store.head(shard)).collect();
    machine.cut_power(Some(store));
    let store = machine.open().unwrap_or_else(|error| panic!("{}: {error}", machine.context));
    let found: Vec<Seq> = store.shards().map(|shard| store.head(shard)).collect();
    assert_eq!(found, all, "{}: after an orderly end", machine.context);
}

/// All seeds, all calls, both kinds of fault.
pub(crate) fn all_lives() {
    lives(Level::Interval, SEEDS);
}

/// The same without a log.
pub(crate) fn all_lives_without_log() {
    lives(Level::None, SEEDS_WITHOUT_LOG);
}

/// The same where the log comes first.
pub(crate) fn all_lives_log_first() {
    lives(Level::AlwaysTogether, SEEDS);
    // A sync for each change has many more calls.
    lives(Level::Always, SEEDS / 2);
}

fn lives(level: Level, seeds: u64) {
    for seed in 0..seeds {
        let calls = life(seed, level, None);
        for call in 0..calls {
            life(seed, level, Some((call, Fault::PowerCut)));
            life(seed, level, Some((call, Fault::Failure)));
        }
    }
}

#[test]
fn a_store_without_a_log_opens_after_a_power_cut_with_what_was_there_at_its_last_opening() {
    all_lives_without_log();
}

#[test]
fn a_store_keeps_what_it_called_durable_whatever_call_the_power_goes_in() {
    all_lives();
}

#[test]
fn a_store_whose_log_comes_first_loses_nothing_that_it_answered_and_tears_no_slot() {
    all_lives_log_first();
}
