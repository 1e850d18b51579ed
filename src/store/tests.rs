//! The store against a model, through reopening, kills at every byte, and a follower's eyes.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::clock::ManualClock;
use crate::ring::Sleeper;
use crate::slot::Seq;

pub(super) fn geometry(shard_count: u16) -> Geometry {
    Geometry { shard_count, key_size_max: 8, value_size_max: 24, shard_prefix_bits: 0 }
}

pub(super) fn memory(shard_count: u16, slots: u32) -> Store {
    Store::open("unused".as_ref(), Options::memory(geometry(shard_count), slots)).unwrap()
}

pub(super) fn contents(store: &Store) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut all = BTreeMap::new();
    for shard in store.shards() {
        store
            .visit(shard, SlotIndex(0), u32::MAX, |entry| {
                assert!(
                    all.insert(entry.key.to_vec(), entry.value.to_vec()).is_none(),
                    "a key is visited once"
                );
            })
            .unwrap();
    }
    all
}

/// Full scan of `leader` applied to `follower`.
pub(super) fn sync(leader: &Store, follower: &Store, shard: ShardIndex, since: Seq) {
    let mut scan = leader.scan(shard, since);
    loop {
        let mut batch = Vec::new();
        let more = leader.scan_next(shard, &mut scan, &mut batch, 500).unwrap();
        follower.apply(shard, &batch).unwrap();
        if !more {
            return;
        }
    }
}

pub(super) fn assert_equal(left: &Store, right: &Store) {
    for shard in left.shards() {
        let slots = left.extent(shard).0.min(right.extent(shard).0);
        for slot in (0..slots).map(SlotIndex) {
            let image = |store: &Store| store.with_slot(shard, slot, |view| view.unwrap().image().to_vec());
            assert_eq!(image(left), image(right), "shard {shard} slot {slot}");
        }
    }
    assert_eq!(contents(left), contents(right));
}

#[derive(Debug, Clone)]
enum Op {
    Put(u8, u8),
    Delete(u8),
    Increment(u8),
    CompareAndSet(u8, u8),
    Clear,
    Reopen,
    Delta,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (any::<u8>(), 0_u8..24).prop_map(|(key, len)| Op::Put(key % 48, len)),
        5 => any::<u8>().prop_map(|key| Op::Delete(key % 48)),
        2 => any::<u8>().prop_map(|key| Op::Increment(key % 48)),
        2 => (any::<u8>(), 0_u8..24).prop_map(|(key, len)| Op::CompareAndSet(key % 48, len)),
        1 => Just(Op::Clear),
        2 => Just(Op::Reopen),
        2 => Just(Op::Delta),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn behaves_as_a_map_through_kills_and_deltas(ops in prop::collection::vec(op(), 1..200)) {
        let mut store = memory(2, 100);
        let follower = memory(2, 100);
        let mut synced = [Seq::ZERO; 2];
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Put(key, len) => {
                    store.put(&[key], &vec![key; usize::from(len)]).unwrap();
                    model.insert(vec![key], vec![key; usize::from(len)]);
                }
                Op::Delete(key) => {
                    prop_assert_eq!(store.delete(&[key]).unwrap(), model.remove(&[key][..]).is_some());
                }
                Op::Increment(key) => {
                    let old = model.get(&[key][..]).map_or(Some(0), |value| records::parse_integer(value));
                    let got = store.increment(&[key], 1).unwrap();
                    prop_assert_eq!(got.ok(), old.map(|old| old + 1));
                    if let Some(old) = old {
                        model.insert(vec![key], (old + 1).to_string().into_bytes());
                    }
                }
                Op::CompareAndSet(key, len) => {
                    let expected = model.get(&[key][..]).cloned();
                    prop_assert!(!store.compare_and_set(&[key], Some(b"never a value"), b"x").unwrap());
                    prop_assert!(store.compare_and_set(&[key], expected.as_deref(), &vec![1; usize::from(len)]).unwrap());
                    model.insert(vec![key], vec![1; usize::from(len)]);
                }
                Op::Clear => {
                    prop_assert_eq!(store.clear().unwrap(), model.len() as u64);
                    model.clear();
                }
                Op::Reopen => store = store.reopen_in_memory().unwrap(),
                Op::Delta => {
                    for shard in store.shards() {
                        sync(&store, &follower, shard, synced[usize::from(shard.0)]);
                        synced[usize::from(shard.0)] = store.head(shard);
                    }
                    follower.check().unwrap();
                    assert_equal(&store, &follower);
                }
            }
            store.check().unwrap();
            prop_assert_eq!(store.len(), model.len() as u64);
            for key in 0..48 {
                prop_assert_eq!(store.get(&[key]).unwrap(), model.get(&[key][..]).cloned());
            }
        }
        prop_assert_eq!(contents(&store), model);
    }
}

/// Builds the region of a process killed in the middle of a change: `before` with the first
/// `redo` bytes of the redo write and then the first `slot` bytes of the slot write.
fn killed(before: &[u8], after: &[u8], redo: (usize, usize), slot: (usize, usize)) -> Store {
    let mut region = crate::region::Region::heap(before.len(), before.len());
    let bytes = region.bytes_mut(0, before.len());
    bytes.copy_from_slice(before);
    let length = crate::shard::REDO_OFFSET + 4;
    // The write's order: length to zero, slot index, image, length, copy to the slot.
    if redo.0 > 0 {
        bytes[length..length + 4].fill(0);
        bytes[crate::shard::REDO_OFFSET..length].copy_from_slice(&after[crate::shard::REDO_OFFSET..length]);
        bytes[length + 4..length + 4 + redo.0].copy_from_slice(&after[length + 4..length + 4 + redo.0]);
    }
    if redo.0 == redo.1 {
        bytes[length..length + 4].copy_from_slice(&after[length..length + 4]);
        bytes[slot.0..slot.0 + slot.1].copy_from_slice(&after[slot.0..slot.0 + slot.1]);
    }
    reopened(region, None)
}

/// A store of one shard that lies in this memory.
pub(super) fn reopened(region: crate::region::Region, digest: Option<crate::region::Region>) -> Store {
    let geometry = geometry(1);
    let page = region.bytes(0, crate::shard::header::HEADER_PAGE_SIZE).to_vec();
    let identity = crate::shard::header::Identity::read("memory".as_ref(), &page).unwrap();
    assert_eq!(identity.geometry, geometry);
    let mut files = crate::shard::recover::Files::without_digest(region, &geometry);
    files.digest = digest.unwrap_or(files.digest);
    let opened = Shard::open("memory".as_ref(), files, identity, Host::default(), |_| {}).unwrap();
    let assembly = open::Assembly {
        clock: Arc::new(ManualClock::new(1)),
        chance: Arc::new(crate::chance::SystemChance),
        host: Host::default(),
        regains: false,
        lock: None,
        reports: Reports::Memory(Mutex::default()),
    };
    Store::assemble(identity, vec![opened], assembly).unwrap()
}

fn image_of(store: &Store) -> Vec<u8> {
    let locked = store.shared(ShardIndex(0));
    locked.shard.region_bytes().to_vec()
}

/// A kill in the middle of an overwrite once meant that both the old and the new value were gone:
/// the slot was neither.
#[test]
fn a_kill_at_any_byte_of_a_write_leaves_the_old_value_or_the_new_one() {
    for (old, new) in
        [(&b"older and longer"[..], &b"new"[..]), (b"old", b"newer and longer"), (b"", b"first")]
    {
        let store = memory(1, 100);
        store.put(b"other", b"value").unwrap();
        if !old.is_empty() {
            store.put(b"key", old).unwrap();
        }
        let before = image_of(&store);
        store.put(b"key", new).unwrap();
        let after = image_of(&store);
        let (slot, size) = (
            crate::shard::header::slots_offset(&geometry(1)) + geometry(1).slot_stride(),
            24 + 3 + new.len(),
        );
        for redo in 0..=size {
            let found = killed(&before, &after, (redo, size + 1), (slot, 0));
            let wanted = (!old.is_empty()).then(|| old.to_vec());
            assert_eq!(found.get(b"key").unwrap(), wanted, "redo cut at {redo}");
            assert!(found.damaged().is_empty());
            found.check().unwrap();
        }
        for copied in 0..=size {
            let found = killed(&before, &after, (size, size), (slot, copied));
            assert_eq!(found.get(b"key").unwrap().as_deref(), Some(new), "copy cut at {copied}");
            assert_eq!(found.get(b"other").unwrap().as_deref(), Some(&b"value"[..]));
            assert!(found.damaged().is_empty());
            found.check().unwrap();
        }
    }
}

#[test]
fn every_flipped_bit_of_a_slot_is_found_and_never_served() {
    let store = memory(1, 100);
    store.put(b"key", b"a value").unwrap();
    let before = image_of(&store);
    let start = crate::shard::header::slots_offset(&geometry(1));
    for bit in 0..(24 + 3 + 7) * 8 {
        let mut damaged = before.clone();
        damaged[start + bit / 8] ^= 1 << (bit % 8);
        // Void the redo record: it would heal the slot.
        damaged[crate::shard::REDO_OFFSET + 4..crate::shard::REDO_OFFSET + 8].fill(0);
        let found = killed(&damaged, &damaged, (0, 1), (start, 0));
        assert_eq!(found.damaged().len(), 1, "bit {bit}");
        assert_ne!(found.get(b"key"), Ok(Some(b"another".to_vec())));
        assert_eq!(found.get(b"key").ok().flatten(), None, "bit {bit}");
        let mut scan = found.scan(ShardIndex(0), Seq::ZERO);
        assert!(
            found.scan_next(ShardIndex(0), &mut scan, &mut Vec::new(), 1000).is_err(),
            "bit {bit} is not sent"
        );
    }
}

#[test]
fn a_damaged_slot_is_healed_by_its_leader_s_image() {
    let store = memory(1, 100);
    store.put(b"key", b"a value").unwrap();
    let mut batch = Vec::new();
    store.scan_next(ShardIndex(0), &mut store.scan(ShardIndex(0), Seq::ZERO), &mut batch, 1000).unwrap();
    let mut damaged = image_of(&store);
    let start = crate::shard::header::slots_offset(&geometry(1));
    damaged[start + 30] ^= 4;
    damaged[crate::shard::REDO_OFFSET + 4..crate::shard::REDO_OFFSET + 8].fill(0);
    let found = killed(&damaged, &damaged, (0, 1), (start, 0));
    assert_eq!(found.apply(ShardIndex(0), &batch).unwrap().applied, 1);
    assert_eq!(found.get(b"key").unwrap().as_deref(), Some(&b"a value"[..]));
    assert!(found.damaged().is_empty());
    found.check().unwrap();
}

#[test]
fn a_key_that_moved_slots_is_found_whatever_order_its_images_come_in() {
    let leader = memory(1, 100);
    let shard = ShardIndex(0);
    for key in [b"a", b"b", b"c"] {
        leader.put(key, b"first").unwrap();
    }
    let follower = memory(1, 100);
    sync(&leader, &follower, shard, Seq::ZERO);
    // Slot 0 held "a"; now it holds "c", and slot 2, which held "c", holds "a".
    leader.delete(b"a").unwrap();
    leader.delete(b"c").unwrap();
    leader.put(b"c", b"second").unwrap();
    leader.put(b"a", b"second").unwrap();
    let mut batch = Vec::new();
    leader.scan_next(shard, &mut leader.scan(shard, Seq(3)), &mut batch, 10_000).unwrap();
    let records: Vec<_> = crate::slot::Records::new(&geometry(1), &batch).map(Result::unwrap).collect();
    assert_eq!(records.len(), 2, "two slots changed");
    for order in [[0, 1], [1, 0]] {
        let follower = follower_copy(&follower);
        for place in order {
            let mut one = Vec::new();
            crate::slot::image::push_record(&mut one, records[place].slot, records[place].image);
            follower.apply(shard, &one).unwrap();
            // Twice, as after a reconnect.
            assert_eq!(follower.apply(shard, &one).unwrap().skipped, 1);
        }
        follower.check().unwrap();
        assert_equal(&leader, &follower);
    }
}

fn follower_copy(store: &Store) -> Store {
    let image = image_of(store);
    killed(&image, &image, (0, 1), (0, 0))
}

#[test]
fn expired_records_are_absent_and_swept_as_changes() {
    let clock = Arc::new(ManualClock::new(1000));
    let options = Options { clock: clock.clone(), ..Options::memory(geometry(1), 100) };
    let store = Store::open("unused".as_ref(), options).unwrap();
    store.put_expiring(b"soon", b"value", 2000).unwrap();
    store.put(b"never", b"value").unwrap();
    assert!(store.contains(b"soon").unwrap());
    clock.advance(Duration::from_secs(1));
    assert!(!store.contains(b"soon").unwrap());
    assert_eq!(store.len(), 2);
    assert_eq!(store.sweep(ShardIndex(0), SlotIndex(0), 1), (1, Some(SlotIndex(1))));
    assert_eq!((store.len(), store.head(ShardIndex(0))), (1, Seq(3)));
    assert!(!store.delete(b"soon").unwrap());
    store.check().unwrap();
}

pub(super) fn drain(ring: &mut crate::ring::RingReader) -> Vec<u8> {
    let chunk = ring.chunk(usize::MAX);
    // A record may lie across the ring's end.
    let bytes = [chunk.as_slices().0, chunk.as_slices().1].concat();
    chunk.commit_all();
    bytes
}

#[test]
fn a_full_ring_latches_and_a_scan_from_the_last_record_closes_the_gap() {
    let (leader, follower) = (memory(1, 100), memory(1, 100));
    let shard = ShardIndex(0);
    let (mut ring, attached_at) = leader.attach(shard, 150, Sleeper::new(|| {}));
    assert_eq!(attached_at, Seq::ZERO);
    for key in 0..20_u8 {
        leader.put(&[key], b"value").unwrap();
    }
    assert!(ring.is_latched());
    assert_eq!(leader.stats(shard).ring_overflows, 1);
    let applied = follower.apply(shard, &drain(&mut ring)).unwrap().applied;
    assert!(applied > 0 && applied < 20);
    let through = leader.rearm(shard, &ring);
    assert_eq!(through, Seq(20));
    sync(&leader, &follower, shard, Seq(applied));
    leader.put(b"after", b"the scan").unwrap();
    follower.apply(shard, &drain(&mut ring)).unwrap();
    assert_equal(&leader, &follower);
    drop(ring);
    leader.release(shard);
    assert_eq!((leader.stats(shard).rings, leader.stats(shard).ring_overflows), (0, 1));
}

#[test]
fn a_store_without_room_refuses_and_changes_nothing() {
    let store = memory(1, 10);
    let room = store.extent(ShardIndex(0)).0;
    for key in 0..room {
        store.put(&key.to_le_bytes(), b"value").unwrap();
    }
    let refused = store.put(b"one more", b"value");
    assert!(matches!(refused, Err(WriteError::Full { .. })), "{refused:?}");
    store.check().unwrap();
    assert_eq!((store.len(), store.head(ShardIndex(0)).0), (room.into(), room.into()));
    store.delete(&0_u32.to_le_bytes()).unwrap();
    store.put(b"one more", b"value").unwrap();
    store.check().unwrap();
}

#[test]
fn keys_and_values_that_do_not_fit_are_refused() {
    let store = memory(1, 10);
    assert_eq!(store.put(b"", b""), Err(WriteError::KeySize { found: 0, wanted: 8 }));
    assert_eq!(store.put(b"ninebytes", b""), Err(WriteError::KeySize { found: 9, wanted: 8 }));
    assert_eq!(store.put(b"key", &[0; 25]), Err(WriteError::ValueSize { found: 25, wanted: 24 }));
    let grow = |_: Option<Entry<'_>>, value: &mut Vec<u8>| {
        value.resize(25, 0);
        (Change::Put { expire_at: 0 }, ())
    };
    assert_eq!(store.update(b"key", grow), Err(WriteError::ValueSize { found: 25, wanted: 24 }));
    store.set_read_only(true);
    assert_eq!(store.put(b"key", b""), Err(WriteError::ReadOnly));
    assert_eq!(store.len(), 0);
}

#[test]
#[cfg_attr(miri, ignore = "maps files")]
fn a_store_on_disk_is_found_again_and_guards_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let count = 20_000_u32;
    let store = Store::open(path, Options::create(geometry(3))).unwrap();
    assert_eq!(store.ending(), Ending::Clean);
    assert!(matches!(Store::open(path, Options::default()), Err(OpenError::InUse { .. })));
    let records: Vec<_> = (0..count).map(|key| (key.to_le_bytes(), key.to_be_bytes())).collect();
    store.put_batch(&records).unwrap();
    // Dropped without close: as killed.
    drop(store);
    let store = Store::open(path, Options::default()).unwrap();
    assert_eq!((store.ending(), store.len()), (Ending::ProcessCrash, u64::from(count)));
    store.check().unwrap();
    let mut seen = 0;
    let keys: Vec<_> = records.iter().map(|(key, _)| key).collect();
    store
        .get_batch(&keys, |position, entry| {
            assert_eq!(entry.unwrap().value, records[position].1);
            seen += 1;
        })
        .unwrap();
    assert_eq!(seen, count);
    store.close().unwrap();
    assert_eq!(store.put(b"late", b""), Err(WriteError::ReadOnly));
    drop(store);
    let wanted = Geometry { key_size_max: 9, ..geometry(3) };
    let refused = Store::open(path, Options::create(wanted)).unwrap_err().to_string();
    assert!(refused.ends_with("the store's key size is 8, wanted 9"), "{refused}");
    assert_eq!(Store::open(path, Options::create(geometry(3))).unwrap().ending(), Ending::Clean);
    let private = Store::open(path, Options { private: true, ..Options::default() }).unwrap();
    private.put(b"private", b"").unwrap();
    drop(private);
    assert!(!Store::open(path, Options::default()).unwrap().contains(b"private").unwrap());
}

#[test]
#[cfg_attr(miri, ignore = "maps files")]
fn damaged_truncated_foreign_and_newer_files_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let store = Store::open(path, Options::create(geometry(1))).unwrap();
    store.put(b"key", b"value").unwrap();
    drop(store);
    let file = directory::shards_path(path).join("0000.slots");
    let good = std::fs::read(&file).unwrap();
    let refused = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let error = Store::open(path, Options::default()).unwrap_err();
        assert!(std::fs::read(&file).unwrap() == bytes, "a refused file is left as it is");
        error.to_string()
    };
    assert!(refused(b"GIF89a and more").contains("not a slotstream shard file"));
    assert!(refused(&good[..good.len() - 4096]).contains("it was truncated"));
    assert!(refused(&good[..2000]).contains("it was truncated"));
    let mut newer = good.clone();
    newer[8] = 4;
    assert!(refused(&newer).contains("format version is 4, this build reads 2 and 3"));
    let mut damaged = good.clone();
    let start = crate::shard::header::slots_offset(&geometry(1));
    damaged[start + 25] ^= 1;
    damaged[crate::shard::REDO_OFFSET + 4..crate::shard::REDO_OFFSET + 8].fill(0);
    std::fs::write(&file, &damaged).unwrap();
    let store = Store::open(path, Options::default()).unwrap();
    assert_eq!(store.damaged().len(), 1);
    assert!(matches!(store.get(b"key"), Err(ReadError::Damaged { slot: SlotIndex(0), .. })));
    drop(store);
    std::fs::write(&file, &good).unwrap();
    assert_eq!(
        Store::open(path, Options::default()).unwrap().get(b"key").unwrap().as_deref(),
        Some(&b"value"[..])
    );
}

/// Readers that take no lock must never see a half-written record, nor miss one that is there,
/// while its slot is overwritten, other keys come and go, and the index grows under them.
#[test]
fn readers_beside_a_writer_see_whole_records_only() {
    let store = memory(1, 40_000);
    for key in 0..8_u32 {
        store.put(&key.to_le_bytes(), &[0; 24]).unwrap();
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut value = Vec::new();
                let mut reads = 0_u32;
                while !done.load(Ordering::Relaxed) || reads < 100 {
                    let key = (reads % 8).to_le_bytes();
                    assert!(store.get_into(&key, &mut value).unwrap(), "a record that is there is found");
                    assert!(value.iter().all(|byte| *byte == value[0]), "half a record: {value:?}");
                    assert!(!store.contains(b"never").unwrap());
                    reads += 1;
                }
            });
        }
        for round in 0..30_000_u32 {
            let byte = u8::try_from(round % 251).unwrap();
            store.put(&(round % 8).to_le_bytes(), &vec![byte; 1 + (round % 24) as usize]).unwrap();
            store.put(&(1000 + round).to_le_bytes(), b"grows the index").unwrap();
            if round % 3 == 0 {
                store.delete(&(1000 + round / 2).to_le_bytes()).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    store.check().unwrap();
}

/// A store opened on a directory whose LOCK was removed once served beside the one that had it.
#[test]
#[cfg_attr(miri, ignore = "maps files")]
fn a_removed_lock_file_does_not_let_a_second_process_in() {
    let directory = tempfile::tempdir().unwrap();
    let _first = Store::open(directory.path(), Options::create(geometry(2))).unwrap();
    std::fs::remove_file(directory.path().join("LOCK")).unwrap();
    let second = Store::open(directory.path(), Options::default());
    assert!(matches!(second, Err(OpenError::InUse { .. })), "{second:?}");
}

/// A file copied with holes once killed the process with SIGBUS when a hole was written on a full disk.
#[test]
#[cfg_attr(miri, ignore = "maps files")]
fn a_file_with_holes_is_allocated_before_it_is_used() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    let sizes = Geometry { value_size_max: u16::MAX, ..geometry(1) };
    let store = Store::open(directory.path(), Options::create(sizes)).unwrap();
    for key in 0..20_u32 {
        store.put(&key.to_le_bytes(), b"short").unwrap();
    }
    store.close().unwrap();
    drop(store);
    let file = directory::shards_path(directory.path()).join("0000.slots");
    let whole = std::fs::read(&file).unwrap();
    let sparse = File::create(&file).unwrap();
    sparse.set_len(whole.len() as u64).unwrap();
    for (page, bytes) in
        whole.chunks(4096).enumerate().filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0))
    {
        std::os::unix::fs::FileExt::write_all_at(&sparse, bytes, page as u64 * 4096).unwrap();
    }
    sparse.sync_all().unwrap();
    assert!(sparse.metadata().unwrap().blocks() * 512 < whole.len() as u64 / 2, "the copy has holes");
    drop(sparse);
    let store = Store::open(directory.path(), Options::default()).unwrap();
    assert!(std::fs::metadata(&file).unwrap().blocks() * 512 >= whole.len() as u64, "the holes are filled");
    assert_eq!(store.get(&7_u32.to_le_bytes()).unwrap().as_deref(), Some(&b"short"[..]));
}

/// A follower once kept its watermark beside a damaged slot, so that no delta ever brought the slot again.
#[test]
#[cfg_attr(miri, ignore = "maps files")]
fn a_follower_with_a_damaged_slot_is_inconsistent_until_the_slot_has_come_again() {
    let directory = tempfile::tempdir().unwrap();
    let leader = memory(1, 100);
    let shard = ShardIndex(0);
    for key in 0..9_u8 {
        leader.put(&[key], b"value").unwrap();
    }
    let follower = Store::open(directory.path(), Options::create(geometry(1))).unwrap();
    follower.demote().unwrap();
    sync(&leader, &follower, shard, Seq::ZERO);
    follower.set_progress(
        shard,
        Progress { epoch: 1, seq: Seq(9), consistent_at: Seq(9), ..Progress::default() },
    );
    follower.close().unwrap();
    drop(follower);
    let file = directory::shards_path(directory.path()).join("0000.slots");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[crate::shard::header::slots_offset(&geometry(1)) + 3 * geometry(1).slot_stride() + 25] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let follower = Store::open(directory.path(), Options::default()).unwrap();
    assert_eq!((follower.doubt(shard), follower.damaged().len()), (None, 0));
    let faults = follower.audit(shard, SlotIndex(0), u32::MAX).faults;
    assert!(matches!(faults[..], [(SlotIndex(3), Fault::Damaged(_))]), "{faults:?}");
    drop(follower);
    // A kill does not make it good again.
    let follower = Store::open(directory.path(), Options::default()).unwrap();
    assert_eq!((follower.doubt(shard), follower.damaged().len()), (None, 1));
    let held = Progress { epoch: 1, seq: Seq(9), consistent_at: Seq::MAX, step: Step::None };
    assert_eq!(follower.progress(shard), held);
    assert!(follower.is_astray(shard));
    rewind::run(&follower, follower.begin_rewind(shard, Seq(9), false).unwrap());
    let slots = follower.slots_to_ask_for(shard, 10);
    assert_eq!(slots, [SlotIndex(3)]);
    let mut records = Vec::new();
    leader.push_slot(shard, slots[0], &mut records).unwrap();
    follower.apply_forced(shard, &records, SlotIndex(4)).unwrap();
    assert!(follower.slots_to_ask_for(shard, 10).is_empty());
    rewind::run(&follower, Rewinding::end(shard));
    assert!(follower.reports().unwrap().is_empty() && follower.damaged().is_empty(), "nothing was dropped");
    follower.check().unwrap();
    assert_equal(&leader, &follower);
}

#[test]
fn a_follower_s_store_leads_only_when_promoted_and_only_when_consistent() {
    let (leader, follower) = (memory(2, 100), memory(2, 100));
    for key in 0..20_u8 {
        leader.put(&[key], b"value").unwrap();
    }
    assert!(!leader.is_follower() && !follower.is_follower());
    follower.demote().unwrap();
    assert!(follower.is_follower(), "before it has got anything");
    assert!(!follower.was_in_sync(ShardIndex(0)));
    assert_eq!(follower.promote(), Err(PromoteError::Missing { shard: ShardIndex(0) }));
    let follow = |shard| {
        sync(&leader, &follower, shard, Seq::ZERO);
        let seq = leader.head(shard);
        follower.set_progress(shard, Progress { epoch: 1, seq, consistent_at: seq, step: Step::None });
    };
    follow(ShardIndex(0));
    assert_eq!(follower.promote(), Err(PromoteError::Missing { shard: ShardIndex(1) }));
    follow(ShardIndex(1));
    let progress = follower.progress(ShardIndex(0));
    follower.set_progress(ShardIndex(0), Progress { consistent_at: Seq::MAX, ..progress });
    assert!(matches!(follower.promote(), Err(PromoteError::Inconsistent { .. })));
    follower.set_progress(ShardIndex(0), progress);
    follower.promote().unwrap();
    assert!(!follower.is_follower());
    let first_seq = leader.head(ShardIndex(0)).next().0;
    let term = follower.lineage(ShardIndex(0)).last().copied().unwrap();
    assert_eq!((term.epoch, term.first_seq), (2, first_seq));
}

#[test]
fn no_write_comes_after_writes_were_stopped() {
    let store = std::sync::Arc::new(memory(4, 100_000));
    let writers: Vec<_> = (0..3_u8)
        .map(|writer| {
            let store = std::sync::Arc::clone(&store);
            std::thread::spawn(move || {
                let mut written = 0_u64;
                while store.put(&[writer, (written % 200) as u8], b"value").is_ok() {
                    written += 1;
                }
                written
            })
        })
        .collect();
    while store.shards().any(|shard| store.head(shard) < Seq(100)) {
        std::thread::yield_now();
    }
    store.stop_writes();
    let heads: Vec<_> = store.shards().map(|shard| store.head(shard)).collect();
    let written: u64 = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
    assert_eq!(heads, store.shards().map(|shard| store.head(shard)).collect::<Vec<_>>());
    assert_eq!(written, heads.iter().map(|head| head.0).sum::<u64>());
}

/// However the end of a wait for what a crash took, and an order to follow, come between each other.
#[test]
fn no_write_comes_after_writes_were_stopped_while_the_store_regained() {
    for round in 0..500 {
        let store = memory(1, 100);
        store.set_read_only(true);
        let start = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                store.begin_writes();
            });
            scope.spawn(|| {
                start.wait();
                drop(store.put(b"key", b"value"));
            });
            start.wait();
            store.stop_writes();
            let head = store.head(ShardIndex(0));
            store.begin_writes();
            assert_eq!(store.put(b"key", b"later"), Err(WriteError::ReadOnly), "round {round}");
            assert_eq!(store.head(ShardIndex(0)), head, "round {round}");
        });
        assert!(store.is_read_only(), "round {round}");
    }
    let store = memory(1, 100);
    store.set_read_only(true);
    store.begin_writes();
    assert!(store.put(b"key", b"value").is_ok());
}
