//! What a shard's header says of role and history when the power goes in any sync of a change of them, with any
//! sectors of what was on its way on the disk.
//!
//! After every cut: a shard leads in a term of its own or follows; and it has taken over a lineage that its slots do
//! not fit only if it says that it is being rewound. What was done before the cut is done after it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use slotstream::store::{Simulated, SimulatedShards, Term};
use slotstream::wal::simulated::{SECTOR_SIZE, SimulatedDisk};
use slotstream::{Geometry, Options, Seq, ShardIndex, Store};

use crate::log::Dice;

const SHARD: ShardIndex = ShardIndex(0);
const GEOMETRY: Geometry =
    Geometry { shard_count: 1, key_size_max: 8, value_size_max: 8, shard_prefix_bits: 0 };
/// Up to where the shard shares its new leader's history.
const FORK: Seq = Seq(3);

/// The sync in which the power goes, counted from the plan on, and a bit for each sector on its way: written.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Cut {
    call: u64,
    written: u64,
}

#[derive(Default)]
struct Power {
    cut: Option<Cut>,
    calls: u64,
    is_gone: bool,
    /// Sectors that were on their way when it went.
    sectors: u32,
}

/// The shards' files of a machine: what is durable.
#[derive(Default)]
struct Files {
    images: Mutex<BTreeMap<u16, Vec<u8>>>,
    power: Mutex<Power>,
}

impl SimulatedShards for Files {
    fn load(&self, shard: ShardIndex) -> Option<Vec<u8>> {
        self.images.lock().get(&shard.0).cloned()
    }

    fn sync(&self, shard: ShardIndex, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let (mut images, power) = (self.images.lock(), &mut *self.power.lock());
        if power.is_gone {
            return Err(io::Error::other("no power"));
        }
        let image = images.entry(shard.0).or_default();
        image.resize(image.len().max(offset + bytes.len()), 0);
        let durable = &mut image[offset..offset + bytes.len()];
        let cut = power.cut.filter(|cut| cut.call == power.calls);
        power.calls += 1;
        let Some(cut) = cut else {
            durable.copy_from_slice(bytes);
            return Ok(());
        };
        for (durable, seen) in durable.chunks_mut(SECTOR_SIZE).zip(bytes.chunks(SECTOR_SIZE)) {
            if durable != seen {
                if cut.written & 1 << power.sectors != 0 {
                    durable.copy_from_slice(seen);
                }
                power.sectors += 1;
            }
        }
        power.is_gone = true;
        Err(io::Error::other("the power goes"))
    }
}

fn open(files: &Arc<Files>, boot: u8) -> Store {
    let chance = Dice::new(7);
    let disk = Arc::new(SimulatedDisk::new(chance.clone()));
    let simulated = Simulated { disk, shards: files.clone(), boot };
    let options = Options {
        store_id: Some(uuid::Uuid::from_u128(9)),
        chance,
        regain: true,
        simulated: Some(simulated),
        ..Options::memory(GEOMETRY, 40)
    };
    Store::open(Path::new("memory"), options).expect("a store whose header is whole")
}

/// A leader that has led through so many terms.
fn leading(files: &Arc<Files>, term_count: u64) -> Store {
    let store = open(files, 1);
    for epoch in 1..term_count {
        store.lead_past(epoch).expect("nothing fails");
    }
    for key in 0..6_u8 {
        store.put(&[key], b"value").expect("put");
    }
    store
}

/// A change of role or leader, the shard before it, and what holds after it, done or cut off.
struct Change {
    prepare: fn(&Store),
    change: fn(&Store) -> Result<(), String>,
    check: fn(&Store, Before, is_done: bool),
}

#[derive(Clone, Copy)]
struct Before {
    epoch: u64,
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

fn leads(store: &Store) -> bool {
    !store.is_follower()
}

/// Another leader took over behind the fork.
fn follow_successor(store: &Store) -> Result<(), String> {
    let mut rewinding = store.begin_rewind(SHARD, FORK, false).map_err(text)?;
    while store.step_rewind(&mut rewinding, 1_000).map_err(text)?.is_none() {}
    let mut lineage = store.lineage(SHARD);
    lineage.push(Term { epoch: store.epoch_seen(SHARD) + 1, id: 77, first_seq: FORK.0 + 1 });
    store.follow_lineage(SHARD, &lineage).map_err(text)
}

const CHANGES: [Change; 3] = [
    // A leader follows.
    Change {
        prepare: |_| {},
        change: |store| store.demote().map_err(text),
        check: |store, before, is_done| {
            assert!(!is_done || !leads(store), "it leads after it was made to follow");
            assert_eq!((store.is_regaining(), store.epoch_seen(SHARD)), (leads(store), before.epoch));
        },
    },
    // A follower hears of a leader that has only a part of what it holds.
    Change {
        prepare: |store| store.demote().expect("nothing fails"),
        change: follow_successor,
        check: |store, before, is_done| {
            let has_heard = store.epoch_seen(SHARD) > before.epoch;
            assert!(!is_done || has_heard, "it has forgotten its leader");
            let is_known = store.is_astray(SHARD);
            assert!(!has_heard || is_known, "nobody knows that it holds what its leader never had");
            assert!(!leads(store) && store.check_promote().is_err());
        },
    },
    // A follower leads.
    Change {
        prepare: |store| store.demote().expect("nothing fails"),
        change: |store| store.promote().map_err(text),
        check: |store, before, is_done| {
            assert!(!is_done || leads(store), "it follows after it was made to lead");
            assert_eq!(
                leads(store),
                store.epoch_seen(SHARD) > before.epoch,
                "it leads in its leader's epoch"
            );
        },
    },
];

/// One change with the power cut there; says how many sectors were on their way, none if it was done before.
fn life(change: &Change, term_count: u64, cut: Option<Cut>) -> Option<u32> {
    let files = Arc::new(Files::default());
    let store = leading(&files, term_count);
    (change.prepare)(&store);
    let before = Before { epoch: store.epoch_seen(SHARD) };
    *files.power.lock() = Power { cut, ..Power::default() };
    let done = (change.change)(&store);
    let Power { is_gone, sectors, .. } = *files.power.lock();
    assert_eq!(done.is_err(), is_gone, "{done:?}");
    if is_gone {
        assert!((change.change)(&store).is_err(), "what failed once is not tried again");
    }
    drop(store);
    *files.power.lock() = Power::default();
    let store = open(&files, 2);
    (change.check)(&store, before, !is_gone);
    is_gone.then_some(sectors)
}

/// All changes, all syncs, all sectors.
pub(crate) fn all_cuts() {
    let mut cuts = 0;
    for change in &CHANGES {
        for term_count in [1, 9, 30, 127] {
            assert_eq!(life(change, term_count, None), None);
            for call in 0.. {
                let Some(sectors) = life(change, term_count, Some(Cut { call, written: 0 })) else { break };
                for written in 1..1 << sectors {
                    life(change, term_count, Some(Cut { call, written }));
                    cuts += 1;
                }
            }
        }
    }
    assert!(cuts > 50, "{cuts} cuts");
}

#[test]
fn role_and_history_are_whole_whatever_sync_of_them_the_power_goes_in() {
    all_cuts();
}
