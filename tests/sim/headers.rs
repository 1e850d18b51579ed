//! What a shard's header says of role and history when the power goes in any sync of a change of them, with any
//! sectors of what was on its way on the disk; and when the process is killed in any of these syncs, and the power goes
//! in any sync of the opening after that.
//!
//! After every cut: a shard leads in a term of its own or follows; and it has taken over a lineage that its slots do
//! not fit only if it says that it is being rewound. What was done before the cut is done after it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use slotstream::store::{OpenError, Simulated, SimulatedShards, Term};
use slotstream::wal::simulated::{SECTOR_SIZE, SimulatedDisk};
use slotstream::{Geometry, Options, Seq, ShardIndex, Store};

use crate::log::Dice;
use crate::random::Random;

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
    /// The sync in which the process is killed instead: nothing of it reaches the disk.
    kill: Option<u64>,
    calls: u64,
    is_gone: bool,
    /// Sectors that were on their way when it went.
    sectors: u32,
}

#[derive(Default)]
struct Image {
    seen: Vec<u8>,
    durable: Vec<u8>,
}

/// The shards' files of a machine.
#[derive(Default)]
struct Files {
    images: Mutex<BTreeMap<u16, Image>>,
    power: Mutex<Power>,
}

impl Files {
    /// The process is gone; files are as it left them.
    fn kill(&self, store: &Store) {
        self.images.lock().entry(SHARD.0).or_default().seen = store.shard_bytes(SHARD);
    }

    /// The power was gone, and is back.
    fn restart(&self) {
        for image in self.images.lock().values_mut() {
            image.seen.clone_from(&image.durable);
        }
    }
}

impl SimulatedShards for Files {
    fn load(&self, shard: ShardIndex) -> Option<Vec<u8>> {
        self.images.lock().get(&shard.0).map(|image| image.seen.clone())
    }

    fn sync(&self, shard: ShardIndex, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let (mut images, power) = (self.images.lock(), &mut *self.power.lock());
        if power.is_gone {
            return Err(io::Error::other("no power"));
        }
        let Image { seen, durable } = images.entry(shard.0).or_default();
        let end = offset + bytes.len();
        for image in [&mut *seen, &mut *durable] {
            image.resize(image.len().max(end), 0);
        }
        seen[offset..end].copy_from_slice(bytes);
        let durable = &mut durable[offset..end];
        let is_killed = power.kill == Some(power.calls);
        let cut = power.cut.filter(|cut| cut.call == power.calls);
        power.calls += 1;
        let Some(cut) = cut else {
            power.is_gone = is_killed;
            return match is_killed {
                true => Err(io::Error::other("the process is killed")),
                false => {
                    durable.copy_from_slice(bytes);
                    Ok(())
                }
            };
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
    try_open(files, boot).expect("a store whose header is whole")
}

fn try_open(files: &Arc<Files>, boot: u8) -> Result<Store, OpenError> {
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
    Store::open(Path::new("memory"), options)
}

/// The file of a leader that has led through so many terms, one less than it has when it is opened again.
fn leader(term_count: u64) -> Vec<u8> {
    let store = open(&Arc::default(), 1);
    for epoch in 1..term_count - 1 {
        store.lead_past(epoch).expect("nothing fails");
    }
    for key in 0..6_u8 {
        store.put(&[key], b"value").expect("put");
    }
    store.shard_bytes(SHARD)
}

/// That leader on a machine of its own.
fn lead(file: &[u8]) -> (Arc<Files>, Store) {
    let files = Arc::new(Files::default());
    files.images.lock().insert(SHARD.0, Image { seen: file.to_vec(), durable: file.to_vec() });
    let store = open(&files, 1);
    (files, store)
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
fn life(change: &Change, file: &[u8], cut: Option<Cut>) -> Option<u32> {
    let (files, store) = lead(file);
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
    files.restart();
    *files.power.lock() = Power::default();
    let store = open(&files, 2);
    (change.check)(&store, before, !is_gone);
    is_gone.then_some(sectors)
}

/// All changes, all syncs, all sectors.
pub(crate) fn all_cuts() {
    let mut cuts = 0;
    for change in &CHANGES {
        for file in [2, 9, 30, 127].map(leader) {
            assert_eq!(life(change, &file, None), None);
            for call in 0.. {
                let Some(sectors) = life(change, &file, Some(Cut { call, written: 0 })) else { break };
                for written in 1..1 << sectors {
                    life(change, &file, Some(Cut { call, written }));
                    cuts += 1;
                }
            }
        }
    }
    assert!(cuts > 50, "{cuts} cuts");
}

/// One change whose process is killed there, and the power cut there while the store is opened again; says how many
/// sectors were on their way, none if the opening was done before, or the change.
fn killed_life(change: &Change, file: &[u8], kill: u64, cut: Cut) -> Option<u32> {
    let (files, store) = lead(file);
    (change.prepare)(&store);
    let before = Before { epoch: store.epoch_seen(SHARD) };
    *files.power.lock() = Power { kill: Some(kill), ..Power::default() };
    (change.change)(&store).err()?;
    files.kill(&store);
    drop(store);
    *files.power.lock() = Power { cut: Some(cut), ..Power::default() };
    let reopened = try_open(&files, 1);
    let Power { is_gone, sectors, .. } = *files.power.lock();
    assert_eq!(reopened.is_err(), is_gone, "{:?}", reopened.err());
    drop(reopened);
    files.restart();
    *files.power.lock() = Power::default();
    (change.check)(&open(&files, 2), before, false);
    is_gone.then_some(sectors)
}

/// All changes, all kills, all syncs of the opening, many sets of sectors.
pub(crate) fn all_kills() {
    const SETS_MAX: u64 = 64;
    let (mut cuts, mut random) = (0, Random::new(3));
    for change in &CHANGES {
        for file in [2, 30, 127].map(leader) {
            for kill in 0..4 {
                for call in 0.. {
                    let cut = Cut { call, written: 0 };
                    let Some(sectors) = killed_life(change, &file, kill, cut) else { break };
                    let all = 1_u64 << sectors;
                    for at in 1..all.min(SETS_MAX) {
                        let written = if all <= SETS_MAX { at } else { random.next() % all };
                        killed_life(change, &file, kill, Cut { call, written });
                        cuts += 1;
                    }
                }
            }
        }
    }
    assert!(cuts > 100, "{cuts} cuts");
}

#[test]
fn role_and_history_are_whole_whatever_sync_of_them_the_power_goes_in() {
    all_cuts();
}

#[test]
fn role_and_history_are_whole_if_the_power_goes_after_a_kill_in_a_change_of_them() {
    all_kills();
}
