//! What a kill between any two stores of a change leaves in slots and digest, and what becomes of digests
//! that are damaged or not of these slots.

use std::path::Path;

use uuid::Uuid;

use super::header::Identity;
use super::recover::{Files, Host};
use super::*;
use crate::region::Region;
use crate::slot::Record;

const GEOMETRY: Geometry =
    Geometry { shard_count: 1, key_size_max: 8, value_size_max: 1000, shard_prefix_bits: 0 };
const HOST: Host = Host { boot_id: [0xB0; 16], place_id: 0x1234 };
const IDENTITY: Identity =
    Identity { store_id: Uuid::from_u128(7), shard: ShardIndex(0), geometry: GEOMETRY };

fn hash(key: &[u8]) -> u32 {
    GEOMETRY.place(key).hash
}

/// A shard of some sixty slots that is in use and holds some records.
fn shard() -> Shard {
    let size = Shard::initial_size(&GEOMETRY);
    let mut shard = Shard::create(Region::heap(size, 4 * size), IDENTITY, HOST).unwrap();
    shard.take_over(HOST, 0xA1, false).unwrap();
    for number in 0..20_u8 {
        put(&mut shard, &[b'k', number], b"value", 0);
    }
    put(&mut shard, b"expires", b"x", 5);
    delete(&mut shard, &[b'k', 3]);
    shard
}

fn put(shard: &mut Shard, key: &[u8], value: &[u8], expire_at: u64) {
    shard.put_key(hash(key), key, value, expire_at).unwrap();
}

fn delete(shard: &mut Shard, key: &[u8]) {
    let slot = shard.find(hash(key), key).unwrap();
    shard.delete(hash(key), slot, key);
}

/// Applies an image that a leader has made of these.
fn apply<const FORCED: bool>(shard: &mut Shard, slot: u32, seq: u64, status: Status, key: &[u8]) {
    let image = Image { seq: Seq(seq), status, expire_at: 0, key, value: b"led" };
    let image = Image { value: if status == Status::Occupied { image.value } else { b"" }, ..image };
    let mut bytes = vec![0; image.size()];
    image.write(ShardIndex(0), SlotIndex(slot), &mut bytes);
    let record = Record { slot: SlotIndex(slot), image: &bytes };
    shard.apply_image::<FORCED>(record, hash(key)).unwrap();
}

/// Bytes of slots and digest.
type Bytes = [Vec<u8>; 2];

fn bytes_of(shard: &Shard) -> Bytes {
    [&shard.slots.region, shard.derived.digest.region()].map(|region| region.bytes(0, region.len()).to_vec())
}

fn resume(bytes: &Bytes, host: Host) -> Shard {
    let [slots, digest] = [0, 1].map(|file| {
        let mut region = Region::heap(bytes[file].len(), 1 << 20);
        region.bytes_mut(0, bytes[file].len()).copy_from_slice(&bytes[file]);
        region
    });
    Shard::open(Path::new("memory"), Files { slots, digest }, IDENTITY, host, |_| {}).unwrap()
}

type Images = Vec<Vec<u8>>;

/// The images of all slots, once everything derived fits them.
fn images(shard: &Shard) -> Images {
    shard.check().unwrap();
    let image = |slot| shard.view(SlotIndex(slot)).unwrap().image().to_vec();
    (0..shard.slots_formatted()).map(image).collect()
}

/// What a change writes, in the order of its stores: (file, first byte, one behind the last).
fn stores(slot: u32, image_size: usize) -> Vec<(usize, usize, usize)> {
    let (redo, slot) = (REDO_OFFSET, SlotIndex(slot));
    let offset = header::slots_offset(&GEOMETRY) + slot.0 as usize * GEOMETRY.slot_stride();
    vec![
        (0, redo, redo + 4),
        (0, redo + RECORD_HEADER_SIZE, redo + RECORD_HEADER_SIZE + image_size),
        (0, redo + 4, redo + 8),
        (0, offset, offset + image_size),
        (1, digest::word_offset(slot), digest::word_offset(slot) + 4),
        (1, digest::block_offset(slot), digest::block_offset(slot) + 8),
    ]
}

/// Both orders in which word and summary are written.
fn cut_everywhere(name: &str, change: impl Fn(&mut Shard)) {
    let mut shard = shard();
    let before = (bytes_of(&shard), images(&shard), shard.seq());
    change(&mut shard);
    let after = (bytes_of(&shard), images(&shard), shard.seq());
    let redo = &after.0[0][REDO_OFFSET..];
    let mut stores = stores(read_u32(redo, 0), read_u32(redo, 4) as usize);
    for _ in 0..2 {
        let mut killed = before.0.clone();
        // The redo record is void while the next one is made.
        killed[0][REDO_OFFSET + 4..REDO_OFFSET + 8].fill(0);
        let mut is_declared = false;
        for (step, (file, from, to)) in stores.iter().copied().enumerate() {
            for end in from..=to {
                killed[file][from..end].copy_from_slice(&after.0[file][from..end]);
                // The length is declared by one store.
                if step == 2 && end < to {
                    continue;
                }
                is_declared |= step == 2;
                let found = resume(&killed, HOST);
                assert_eq!(found.doubt(), None, "{name}: step {step}, byte {}", end - from);
                let (_, wanted, seq) = if is_declared { &after } else { &before };
                let images = images(&found);
                // An image that is not newer replaces its slot's only once that is torn.
                let is_right = &images == wanted || (after.2 == before.2 && images == before.1);
                assert!(is_right, "{name}: step {step}, byte {}", end - from);
                assert_eq!(found.seq(), *seq, "{name}: step {step}, byte {}", end - from);
            }
        }
        assert!(killed[1] == after.0[1], "{name}: a store is missing in this test");
        stores.swap(4, 5);
    }
}

#[test]
#[cfg_attr(miri, ignore = "opens thousands of shards")]
fn a_kill_between_any_two_stores_leaves_slots_and_digest_that_fit() {
    cut_everywhere("insert", |shard| put(shard, b"new", b"value", 0));
    cut_everywhere("insert with expiry", |shard| put(shard, b"new", b"value", 9));
    cut_everywhere("overwrite", |shard| put(shard, b"k\x05", b"longer", 0));
    cut_everywhere("expiry set", |shard| put(shard, b"k\x05", b"v", 9));
    cut_everywhere("expiry taken away", |shard| put(shard, b"expires", b"x", 0));
    cut_everywhere("delete", |shard| delete(shard, b"k\x07"));
    cut_everywhere("delete of what expires", |shard| delete(shard, b"expires"));
    cut_everywhere("apply over another key", |shard| {
        apply::<false>(shard, 6, 100, Status::Occupied, b"led");
    });
    cut_everywhere("apply of a tombstone", |shard| apply::<false>(shard, 6, 100, Status::Deleted, b"k\x06"));
    cut_everywhere("apply of an older image", |shard| {
        apply::<true>(shard, 6, 2, Status::Occupied, b"led");
    });
    cut_everywhere("a slot that goes back to none", |shard| apply::<true>(shard, 6, 0, Status::Free, b""));
}

/// Inside a scan a key may lie in two slots.
#[test]
fn a_key_in_two_slots_is_found_in_the_newer_one_after_a_kill() {
    let mut shard = shard();
    let old = shard.find(hash(b"k\x09"), b"k\x09").unwrap();
    for (slot, seq) in [(40, 100), (2, 101)] {
        apply::<false>(&mut shard, slot, seq, Status::Occupied, b"k\x09");
        let found = resume(&bytes_of(&shard), HOST);
        assert_eq!(found.doubt(), None);
        assert_eq!(found.find(hash(b"k\x09"), b"k\x09"), Some(SlotIndex(slot)));
        assert!(found.fault(old).is_none() && found.fault(SlotIndex(slot)).is_none());
    }
}

#[test]
fn a_digest_grows_with_its_slots() {
    let mut shard = shard();
    let (formatted, before) = (shard.slots_formatted(), bytes_of(&shard));
    for number in 0..formatted {
        put(&mut shard, &number.to_le_bytes(), b"v", 0);
    }
    assert!(shard.slots_formatted() > formatted);
    let grown = bytes_of(&shard);
    assert_eq!(resume(&grown, HOST).doubt(), None);
    // Killed before the count of slots was raised, behind the growth of either file.
    for digest in [&before[1], &grown[1]] {
        let mut slots = before[0].clone();
        slots.resize(grown[0].len(), 0);
        let mut digest = digest.clone();
        digest[..before[1].len()].copy_from_slice(&before[1]);
        let found = resume(&[slots, digest], HOST);
        assert_eq!((found.doubt(), found.slots_formatted()), (None, formatted));
        found.check().unwrap();
    }
}

#[test]
#[cfg_attr(miri, ignore = "opens thousands of shards")]
fn every_flipped_bit_of_a_closed_digest_is_found() {
    let mut shard = shard();
    shard.close().unwrap();
    let good = bytes_of(&shard);
    let wanted = images(&resume(&good, HOST));
    assert_eq!(resume(&good, HOST).doubt(), None);
    assert_eq!(resume(&good, Host { boot_id: [1; 16], ..HOST }).doubt(), None, "good on any machine");
    let chunk = digest::word_offset(SlotIndex(0))..digest::word_offset(SlotIndex(30)) + 4;
    let blocks = digest::block_offset(SlotIndex(0))..digest::block_offset(SlotIndex(40)) + 8;
    for byte in (0..digest::HEADER_SIZE).chain(blocks).chain(chunk) {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[1][byte] ^= 1 << bit;
            let found = resume(&bytes, HOST);
            assert!(found.doubt().is_some(), "bit {bit} of byte {byte}");
            assert!(images(&found) == wanted, "bit {bit} of byte {byte}");
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "opens thousands of shards")]
fn a_closed_digest_with_any_byte_changed_is_good_or_thrown_away() {
    let mut shard = shard();
    shard.close().unwrap();
    let good = bytes_of(&shard);
    let wanted = images(&resume(&good, HOST));
    let unused = digest::HEADER_SIZE..PAGE_SIZE;
    for byte in 0..good[1].len() {
        let mut bytes = good.clone();
        bytes[1][byte] ^= 1 << (byte % 8);
        let found = resume(&bytes, HOST);
        assert_eq!(found.doubt().is_none(), unused.contains(&byte), "byte {byte}: {:?}", found.doubt());
        assert!(images(&found) == wanted, "byte {byte}");
    }
}

/// While a shard is in use its digest has no checksum: what goes wrong with it meanwhile is found by an audit.
#[test]
#[cfg_attr(miri, ignore = "opens thousands of shards")]
fn every_flipped_bit_of_a_digest_in_use_is_found_by_opening_or_by_an_audit() {
    let shard = shard();
    let (good, wanted, seq) = (bytes_of(&shard), images(&shard), shard.seq());
    let words = digest::word_offset(SlotIndex(0))..digest::word_offset(SlotIndex(30)) + 4;
    let blocks = digest::block_offset(SlotIndex(0))..digest::block_offset(SlotIndex(30)) + 8;
    for byte in (0..digest::HEADER_SIZE).chain(words).chain(blocks.clone()) {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[1][byte] ^= 1 << bit;
            let mut found = resume(&bytes, HOST);
            for slot in (0..found.slots_formatted()).map(SlotIndex) {
                if let Some(fault) = found.fault(slot) {
                    found.mend(slot, &fault).unwrap();
                    assert_eq!(found.fault(slot), None, "bit {bit} of byte {byte}");
                }
            }
            // A summary that is too high costs a look at its block and is not put right.
            assert!(found.seq() >= seq);
            if !blocks.contains(&byte) {
                assert!(images(&found) == wanted, "bit {bit} of byte {byte}");
            }
            let reads = |number: u8| found.find(hash(&[b'k', number]), &[b'k', number]).is_some();
            assert!((0..20).all(|number| reads(number) == (number != 3)), "bit {bit} of byte {byte}");
        }
    }
}

#[test]
fn a_digest_of_other_slots_is_not_believed() {
    let mut first = shard();
    let live = bytes_of(&first);
    first.close().unwrap();
    let closed = bytes_of(&first);
    let doubt = |slots: &Bytes, digest: &Bytes, host| {
        let found = resume(&[slots[0].clone(), digest[1].clone()], host);
        found.check().unwrap();
        found.doubt()
    };
    // The next opening, and a change in it.
    let mut second = resume(&closed, HOST);
    second.take_over(HOST, 0xA2, false).unwrap();
    put(&mut second, b"later", b"x", 0);
    let later = bytes_of(&second);
    assert_eq!(doubt(&later, &later, HOST), None);
    for (slots, digest) in [(&later, &closed), (&later, &live), (&closed, &live), (&closed, &later)] {
        assert_eq!(doubt(slots, digest, HOST), Some(Doubt::Header));
    }
    assert_eq!(doubt(&later, &later, Host { boot_id: [1; 16], ..HOST }), Some(Doubt::OsCrash));
    assert_eq!(doubt(&later, &later, Host { place_id: 1, ..HOST }), Some(Doubt::OsCrash));
    // Another store's, another shard's, other sizes'.
    for identity in [
        Identity { store_id: Uuid::from_u128(8), ..IDENTITY },
        Identity { shard: ShardIndex(1), ..IDENTITY },
        Identity { geometry: Geometry { value_size_max: 9, ..GEOMETRY }, ..IDENTITY },
    ] {
        let mut other = later.clone();
        let mut region = Region::heap(other[1].len(), other[1].len());
        region.bytes_mut(0, other[1].len()).copy_from_slice(&other[1]);
        let mut digest = digest::Digest::new(region);
        digest.begin(0xA2, &identity);
        other[1] = digest.region().bytes(0, other[1].len()).to_vec();
        assert_eq!(doubt(&later, &other, HOST), Some(Doubt::Header));
    }
    for len in [4096, later[1].len() - 1] {
        let cut = [later[0].clone(), later[1][..len].to_vec()];
        assert_eq!(doubt(&later, &cut, HOST), Some(Doubt::Short));
    }
    let garbage = [later[0].clone(), vec![0xA5; later[1].len()]];
    assert_eq!(doubt(&later, &garbage, HOST), Some(Doubt::Header));
}

/// An image that changed on disk after an orderly close: found by the audit, kept from readers, not forgotten.
#[test]
fn a_damaged_slot_is_set_aside_until_it_is_replaced() {
    let mut shard = shard();
    shard.close().unwrap();
    let mut bytes = bytes_of(&shard);
    let slot = shard.find(hash(b"k\x05"), b"k\x05").unwrap();
    bytes[0][shard.slots.offset(slot) + 24] ^= 1;
    let mut found = resume(&bytes, HOST);
    found.take_over(HOST, 0xA2, false).unwrap();
    assert_eq!((found.doubt(), found.damaged().len(), found.counts().occupied), (None, 0, 20));
    let faults: Vec<_> =
        (0..found.slots_formatted()).filter_map(|slot| Some((slot, found.fault(SlotIndex(slot))?))).collect();
    assert!(matches!(faults[..], [(at, audit::Fault::Damaged(_))] if at == slot.0), "{faults:?}");
    found.mend(slot, &faults[0].1).unwrap();
    found.check().unwrap();
    assert_eq!((found.damaged().len(), found.counts().occupied), (1, 19));
    // A kill does not make it good again, and nothing takes its place but an image for this very slot.
    let mut found = resume(&bytes_of(&found), HOST);
    assert_eq!((found.doubt(), found.damaged().len()), (None, 1));
    found.check().unwrap();
    for number in 0..100_u8 {
        put(&mut found, &[b'm', number], b"more", 0);
    }
    assert_eq!(found.damaged().len(), 1);
    apply::<false>(&mut found, slot.0, 1000, Status::Occupied, b"k\x05");
    assert!(found.damaged().is_empty());
    found.check().unwrap();
}
