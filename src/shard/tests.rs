//! The shard file's format, byte for byte, against a file that is never changed.

use std::fmt::Write as _;
use std::path::Path;

use uuid::Uuid;

use super::header::Identity;
use super::recover::{Files, Host};
use super::*;
use crate::region::Region;

const GOLDEN: &str = include_str!("../../tests/data/shard_v2_durable.hex");
/// Of a release whose headers did not say which slots are durable.
const GOLDEN_WITHOUT_MARK: &str = include_str!("../../tests/data/shard_v2_role.hex");
/// Of a release whose headers did not say who leads.
const GOLDEN_WITHOUT_ROLE: &str = include_str!("../../tests/data/shard_v2.hex");
const GEOMETRY: Geometry =
    Geometry { shard_count: 4, key_size_max: 16, value_size_max: 40, shard_prefix_bits: 0 };
const HOST: Host = Host { boot_id: [0xB0; 16], place_id: 0x1234 };

/// A key that belongs to shard 2.
fn key(number: u32) -> Vec<u8> {
    let candidates = (0..).map(|suffix| format!("key-{number}-{suffix}").into_bytes());
    candidates.into_iter().find(|key| GEOMETRY.place(key).shard == ShardIndex(2)).unwrap()
}

/// Opens a shard from its slots alone.
fn open(path: &Path, region: Region, identity: Identity) -> Result<Shard, recover::RecoverError> {
    Shard::open(path, Files::without_digest(region, &identity.geometry), identity, HOST, |_| {})
}

fn put(shard: &mut Shard, key: &[u8], value: &[u8], expire_at: u64) {
    let hash = GEOMETRY.place(key).hash;
    let slot = shard.find(hash, key);
    shard.put(hash, slot, key, value, expire_at).unwrap();
}

/// Everything that a file can hold: values, an overwrite, an expiry, a tombstone, a reused slot,
/// a lineage, progress.
fn example() -> Shard {
    let identity =
        Identity { store_id: Uuid::from_u128(0x5107_57EA), shard: ShardIndex(2), geometry: GEOMETRY };
    let size = Shard::initial_size(&GEOMETRY);
    let mut shard = Shard::create(Region::heap(size, size), identity, HOST).unwrap();
    shard.take_over(HOST, 0xA1, false).unwrap();
    put(&mut shard, &key(0), b"first", 0);
    put(&mut shard, &key(1), b"a value of forty bytes, as many as fit..", 0);
    put(&mut shard, &key(2), b"gone soon", 0);
    put(&mut shard, &key(0), b"overwritten", 1_900_000_000_000);
    for gone in [key(1), key(2)] {
        let hash = GEOMETRY.place(&gone).hash;
        let slot = shard.find(hash, &gone).unwrap();
        shard.delete(hash, slot, &gone);
    }
    put(&mut shard, &key(3), b"in a slot used before", 0);
    shard.demote(true).unwrap();
    shard
        .set_lineage(&[Term { epoch: 1, id: 0xE1, first_seq: 1 }, Term { epoch: 3, id: 0xE3, first_seq: 5 }]);
    shard.set_progress(Progress { epoch: 3, seq: Seq(7), consistent_at: Seq(6), step: Step::None });
    shard.close().unwrap();
    shard
}

/// As a promotion does, but for the term.
fn lead(shard: &mut Shard) {
    shard.state.role = Some(Role::Leads);
    shard.write_progress(Progress::default());
    shard.write_state();
}

/// The bytes as lines of 16, zero lines left out; long runs of free slots differ in their CRC only
/// and are covered by the first of them.
fn dump(bytes: &[u8]) -> String {
    let shown = header::slots_offset(&GEOMETRY) + 6 * GEOMETRY.slot_stride();
    let mut text = String::new();
    for (line, bytes) in
        bytes[..shown].chunks(16).enumerate().filter(|(_, bytes)| bytes.iter().any(|b| *b != 0))
    {
        write!(text, "{:06x}", line * 16).unwrap();
        bytes.iter().for_each(|byte| write!(text, " {byte:02x}").unwrap());
        text.push('\n');
    }
    text
}

#[test]
fn the_format_is_the_golden_file_s() {
    let dump = dump(example().region_bytes());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/shard_v2_durable.hex");
        return std::fs::write(path, dump).unwrap();
    }
    assert!(dump == GOLDEN, "the shard file's bytes have changed: a new format version is due\n{dump}");
}

/// Opens the golden lines over freshly formatted slots.
fn open_golden(lines: &str) -> Shard {
    let mut region = Region::heap(Shard::initial_size(&GEOMETRY), Shard::initial_size(&GEOMETRY));
    let formatted = example();
    let start = header::slots_offset(&GEOMETRY) + 6 * GEOMETRY.slot_stride();
    let rest = formatted.region_bytes()[start..].to_vec();
    region.bytes_mut(start, rest.len()).copy_from_slice(&rest);
    for line in lines.lines() {
        let (offset, bytes) = line.split_once(' ').unwrap();
        let offset = usize::from_str_radix(offset, 16).unwrap();
        let bytes: Vec<u8> = bytes.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        region.bytes_mut(offset, bytes.len()).copy_from_slice(&bytes);
    }
    let page = region.bytes(0, header::HEADER_PAGE_SIZE).to_vec();
    let identity = Identity::read(Path::new("golden"), &page).unwrap();
    open(Path::new("golden"), region, identity).unwrap()
}

#[test]
fn the_golden_files_open() {
    for lines in [GOLDEN, GOLDEN_WITHOUT_MARK, GOLDEN_WITHOUT_ROLE] {
        let mut shard = open_golden(lines);
        assert!(!shard.leads(), "it has followed");
        assert_eq!(shard.take_over(HOST, 0xA1, false).unwrap(), recover::Ending::Clean);
        let other = Host { place_id: 1, ..HOST };
        assert_eq!(shard.take_over(other, 0xA2, false).unwrap(), recover::Ending::OsCrash);
        assert_eq!((shard.seq(), shard.epoch()), (Seq(7), 3));
        assert_eq!(shard.counts(), Counts { occupied: 2, deleted: 1, expiring: 1 });
        let slot = shard.find(GEOMETRY.place(&key(0)).hash, &key(0)).unwrap();
        let view = shard.view(slot).unwrap();
        assert_eq!(
            (view.value(), view.expire_at(), view.seq()),
            (&b"overwritten"[..], 1_900_000_000_000, Seq(4))
        );
        shard.check().unwrap();
    }
}

/// What an older release wrote says by its progress alone who leads; from the first opening on the header does.
#[test]
fn a_header_without_a_role_gets_one() {
    for leads in [true, false] {
        let mut shard = example();
        if leads {
            lead(&mut shard);
        }
        let identity = shard.slots.identity;
        (0..2).for_each(|_| {
            shard.state.role = None;
            shard.write_state();
        });
        let mut shard = open(Path::new("older"), shard.into_region(), identity).unwrap();
        assert_eq!(shard.leads(), leads);
        shard.take_over(HOST, 0xA1, false).unwrap();
        let page = &shard.region_bytes()[..header::HEADER_PAGE_SIZE];
        let role = if leads { Role::Leads } else { Role::Follows };
        assert_eq!(State::read(Path::new("newer"), page).unwrap().role, Some(role));
    }
}

#[test]
fn a_leader_s_shard_takes_a_new_term_after_an_os_crash_and_a_follower_s_forgets_its_watermark() {
    let reopen = |mut shard: Shard| {
        let identity = shard.slots.identity;
        // In use, not closed.
        shard.take_over(HOST, 0xA1, false).unwrap();
        let mut shard = open(Path::new("memory"), shard.into_region(), identity).unwrap();
        let ending = shard.take_over(Host { boot_id: [1; 16], ..HOST }, 0xA3, false).unwrap();
        (shard, ending)
    };
    let (follower, ending) = reopen(example());
    assert_eq!((ending, follower.epoch()), (recover::Ending::OsCrash, 3));
    assert_eq!(
        follower.progress(),
        Progress { epoch: 3, seq: Seq::ZERO, consistent_at: Seq::MAX, step: Step::None }
    );
    // In its first scan a follower has no watermark yet, but it is a follower.
    let mut scanning = example();
    scanning.set_progress(Progress { consistent_at: Seq::MAX, ..Progress::default() });
    let (scanning, _) = reopen(scanning);
    assert_eq!((scanning.epoch(), scanning.progress().is_consistent()), (3, false));
    let mut leader = example();
    lead(&mut leader);
    let (leader, _) = reopen(leader);
    // Any slot may be older than it was, but not older than at the last orderly close, with seq 7.
    assert_eq!(leader.lineage().last(), Some(&Term { epoch: 3, id: 0xA3, first_seq: 8 }));
    let mut never_closed = example();
    never_closed.state.durable_seq = Seq::ZERO;
    lead(&mut never_closed);
    let (never_closed, _) = reopen(never_closed);
    assert_eq!(never_closed.lineage().last(), Some(&Term { epoch: 3, id: 0xA3, first_seq: 1 }));
    assert!(lineage::is_ordered(never_closed.lineage()));
}

/// A power cut may take back the reuse of a slot and keep the key's newer one. The older value must not
/// come back when the key is deleted, and nothing must stumble over it.
#[test]
fn a_leader_s_key_is_in_one_slot_after_a_lost_reuse() {
    let reopen = |mut shard: Shard, boot: u8| {
        let identity = shard.slots.identity;
        shard = open(Path::new("memory"), shard.into_region(), identity).unwrap();
        shard.take_over(Host { boot_id: [boot; 16], ..HOST }, boot.into(), false).unwrap();
        shard
    };
    let mut shard = example();
    lead(&mut shard);
    let mut shard = reopen(shard, 1);
    let (twice, other) = (key(10), key(11));
    let find = |shard: &Shard, key: &[u8]| shard.find(GEOMETRY.place(key).hash, key);
    put(&mut shard, &twice, b"old", 0);
    let first = find(&shard, &twice).unwrap();
    let old = shard.slots.bytes(first).to_vec();
    shard.delete(GEOMETRY.place(&twice).hash, first, &twice);
    put(&mut shard, &other, b"x", 0);
    assert_eq!(find(&shard, &other), Some(first), "the slot is used again");
    put(&mut shard, &twice, b"new", 0);
    let offset = shard.slots.offset(first);
    let mut region = shard.into_region();
    region.bytes_mut(offset, old.len()).copy_from_slice(&old);
    let page = region.bytes(0, header::HEADER_PAGE_SIZE).to_vec();
    let identity = Identity::read(Path::new("memory"), &page).unwrap();
    let mut shard = open(Path::new("memory"), region, identity).unwrap();
    assert_eq!(
        shard.take_over(Host { boot_id: [2; 16], ..HOST }, 2, false).unwrap(),
        recover::Ending::OsCrash
    );
    shard.check().unwrap();
    let slot = find(&shard, &twice).unwrap();
    assert_eq!(shard.view(slot).unwrap().value(), b"new");
    shard.delete(GEOMETRY.place(&twice).hash, slot, &twice);
    let shard = reopen(shard, 2);
    assert_eq!(find(&shard, &twice), None, "what was deleted stays so");
    shard.check().unwrap();
}

/// The count of slots is in the state, of which there are two copies. The older one knows fewer slots.
#[test]
fn a_damaged_copy_of_the_state_loses_no_slots() {
    let keys: Vec<_> = (0..3_000).map(key).collect();
    let size = Shard::initial_size(&GEOMETRY);
    let identity =
        Identity { store_id: Uuid::from_u128(0x5107_57EA), shard: ShardIndex(2), geometry: GEOMETRY };
    let mut shard = Shard::create(Region::heap(size, 1 << 20), identity, HOST).unwrap();
    shard.take_over(HOST, 0xA1, false).unwrap();
    keys.iter().for_each(|key| put(&mut shard, key, b"kept", 0));
    let (formatted, page) =
        (shard.slots_formatted(), shard.region_bytes()[..header::HEADER_PAGE_SIZE].to_vec());
    let bytes = shard.region_bytes().to_vec();
    let mut refused = 0;
    // Every 64th byte of the header, one bit each: what opens holds everything.
    for at in (0..page.len()).step_by(64) {
        let mut region = Region::heap(bytes.len(), 1 << 20);
        region.bytes_mut(0, bytes.len()).copy_from_slice(&bytes);
        region.bytes_mut(at + 16, 1)[0] ^= 1;
        let page = region.bytes(0, header::HEADER_PAGE_SIZE).to_vec();
        let opened = Identity::read(Path::new("flipped"), &page)
            .map_err(recover::RecoverError::from)
            .and_then(|identity| open(Path::new("flipped"), region, identity));
        let Ok(shard) = opened else {
            refused += 1;
            continue;
        };
        assert_eq!(shard.slots_formatted(), formatted, "a bit of byte {}", at + 16);
        assert!(keys.iter().all(|key| shard.find(GEOMETRY.place(key).hash, key).is_some()));
    }
    assert!(refused < 4, "{refused} of {} flips were refused", page.len() / 64);
}
