//! What a power cut leaves of a shard that was growing: any part of what it grew by, whatever its header counts.

use std::path::Path;

use uuid::Uuid;

use super::header::{HEADER_PAGE_SIZE, HeaderError, Identity, slots_offset};
use super::recover::{Files, Host, RecoverError};
use super::*;
use crate::region::Region;

/// Slots that lie across pages.
const GEOMETRY: Geometry =
    Geometry { shard_count: 1, key_size_max: 8, value_size_max: 3_000, shard_prefix_bits: 0 };
const HOST: Host = Host { boot_id: [0xB0; 16], place_id: 0x1234 };
const RESTARTED: Host = Host { boot_id: [0xB1; 16], ..HOST };
const IDENTITY: Identity =
    Identity { store_id: Uuid::from_u128(7), shard: ShardIndex(0), geometry: GEOMETRY };

fn key(number: u32) -> [u8; 4] {
    number.to_le_bytes()
}

fn put(shard: &mut Shard, number: u32) {
    let key = key(number);
    shard.put_key(GEOMETRY.place(&key).hash, &key, &[7; 2_900], 0).unwrap();
}

fn open(bytes: &[u8], host: Host) -> Result<Shard, RecoverError> {
    let mut region = Region::heap(bytes.len(), 1 << 20);
    region.bytes_mut(0, bytes.len()).copy_from_slice(bytes);
    Shard::open(Path::new("memory"), Files::without_digest(region, &GEOMETRY), IDENTITY, host, |_| {})
}

/// The bytes of a shard that was closed with all slots of its first size in use, and those after it has grown since.
fn grown() -> (Vec<u8>, Vec<u8>, u32) {
    let size = Shard::initial_size(&GEOMETRY);
    let mut shard = Shard::create(Region::heap(size, 1 << 20), IDENTITY, HOST).unwrap();
    shard.take_over(HOST, 0xA1, false).unwrap();
    let count = shard.slots_formatted();
    (0..count).for_each(|number| put(&mut shard, number));
    shard.close().unwrap();
    let mut shard = open(shard.region_bytes(), HOST).unwrap();
    shard.take_over(HOST, 0xA2, false).unwrap();
    let before = shard.region_bytes().to_vec();
    (count..2 * count + 3).for_each(|number| put(&mut shard, number));
    assert!(shard.slots_formatted() > 2 * count, "it has grown twice");
    (before, shard.region_bytes().to_vec(), count)
}

#[test]
#[cfg_attr(miri, ignore = "opens hundreds of shards")]
fn a_shard_that_grew_opens_after_a_power_cut_whatever_is_on_the_disk_of_it() {
    let (before, after, count) = grown();
    let pages = (after.len() - before.len()) / PAGE_SIZE;
    let is_written = |name, page: usize, length| match name {
        "none" => false,
        "the first" => page < length / 2,
        "the last" => page >= length / 2,
        "the even" => page.is_multiple_of(2),
        _ => !page.is_multiple_of(2),
    };
    for length in 0..=pages {
        for name in ["none", "the first", "the last", "the even", "the odd"] {
            let context = format!("{name} of {length} pages of {pages}");
            let mut disk = before.clone();
            disk[..HEADER_PAGE_SIZE].copy_from_slice(&after[..HEADER_PAGE_SIZE]);
            disk.resize(before.len() + length * PAGE_SIZE, 0);
            for page in (0..length).filter(|page| is_written(name, *page, length)) {
                let bytes = before.len() + page * PAGE_SIZE..before.len() + (page + 1) * PAGE_SIZE;
                disk[bytes.clone()].copy_from_slice(&after[bytes]);
            }
            let mut shard = open(&disk, RESTARTED).unwrap_or_else(|error| panic!("{context}: {error}"));
            shard.take_over(RESTARTED, 0xA3, false).unwrap();
            shard.check().unwrap_or_else(|error| panic!("{context}: {error}"));
            assert!(shard.damaged().is_empty(), "{context}");
            let holds = |number| shard.find(GEOMETRY.place(&key(number)).hash, &key(number)).is_some();
            assert!((0..count).all(holds), "{context}: what was durable is lost");
            let whole = (count..2 * count + 3).filter(|number| holds(*number)).count();
            assert!(whole > 0 || name != "the first" || length < 4, "{context}: all is lost");
            // And it grows again.
            (0..3 * count).for_each(|number| put(&mut shard, number));
            shard.check().unwrap_or_else(|error| panic!("{context}: {error}"));
        }
    }
}

#[test]
fn what_was_durable_and_is_missing_or_damaged_is_not_taken_for_new() {
    let (before, after, count) = grown();
    // Below the mark: too short a file is refused, a bad slot is set aside.
    let refused = open(&before[..before.len() - 2 * PAGE_SIZE], RESTARTED);
    assert!(matches!(refused, Err(RecoverError::Header(HeaderError::Truncated { .. }))), "{refused:?}");
    let mut torn = after.clone();
    torn[slots_offset(&GEOMETRY)..][..8].fill(0);
    let shard = open(&torn, RESTARTED).unwrap();
    assert_eq!(shard.damaged().len(), 1);
    // Without a power cut nothing is missing, and nothing was half-written.
    let refused = open(&after[..before.len()], HOST);
    assert!(matches!(refused, Err(RecoverError::Header(HeaderError::Truncated { .. }))), "{refused:?}");
    let mut torn = after.clone();
    torn[slots_offset(&GEOMETRY) + count as usize * GEOMETRY.slot_stride()..][..8].fill(0);
    let shard = open(&torn, HOST).unwrap();
    assert_eq!(shard.damaged().len(), 1);
    let shard = open(&torn, RESTARTED).unwrap();
    assert_eq!(shard.damaged().len(), 0, "it was never durable");
}

/// A slot of six sectors that is written over everything it may have held: every byte's prefix and suffix, and every set
/// of sectors.
#[test]
#[cfg_attr(miri, ignore = "opens thousands of shards")]
fn a_slot_write_torn_anywhere_leaves_the_old_image_or_the_new_one_or_is_known() {
    const SLOT: SlotIndex = SlotIndex(0);
    let hash = GEOMETRY.place(&key(0)).hash;
    let change = |shard: &mut Shard, value_size: Option<usize>| match (value_size, shard.find(hash, &key(0)))
    {
        (Some(size), _) => drop(shard.put_key(hash, &key(0), &vec![7; size], 0).unwrap().len()),
        (None, Some(slot)) => drop(shard.delete(hash, slot, &key(0)).len()),
        (None, None) => {}
    };
    let befores: [&[Option<usize>]; 5] =
        [&[], &[Some(2_900)], &[Some(300)], &[Some(2_900), None], &[Some(300), Some(5)]];
    for (before, after) in
        befores.into_iter().flat_map(|before| [Some(2_900), Some(300), None].map(|after| (before, after)))
    {
        let size = Shard::initial_size(&GEOMETRY);
        let mut shard = Shard::create(Region::heap(size, size), IDENTITY, HOST).unwrap();
        shard.take_over(HOST, 0xA1, false).unwrap();
        before.iter().for_each(|size| change(&mut shard, *size));
        let (mut old, old_image) =
            (shard.region_bytes().to_vec(), shard.view(SLOT).unwrap().image().to_vec());
        change(&mut shard, after);
        let (new, new_image) = (shard.region_bytes(), shard.view(SLOT).unwrap().image().to_vec());
        // What the redo place holds is not to help.
        old[REDO_OFFSET + 4..REDO_OFFSET + 8].fill(0);
        let (start, stride) = (slots_offset(&GEOMETRY), GEOMETRY.slot_stride());
        let parts_written = |parts: &[std::ops::Range<usize>]| {
            let mut torn = old.clone();
            parts.iter().for_each(|part| torn[part.clone()].copy_from_slice(&new[part.clone()]));
            torn
        };
        let is_whole = |view: SlotView<'_>| view.image() == old_image || view.image() == new_image;
        for cut in start..=start + stride {
            for part in [start..cut, cut..start + stride] {
                let torn = parts_written(&[part]);
                let view = SlotView::check(&GEOMETRY, ShardIndex(0), SLOT, &torn[start..start + stride]);
                assert!(
                    view.is_err() || view.is_ok_and(is_whole),
                    "{before:?}, {after:?}, byte {}",
                    cut - start
                );
            }
        }
        let sectors: Vec<_> =
            (start..start + stride).step_by(512).map(|from| from..(from + 512).min(start + stride)).collect();
        for subset in 0..1_u32 << sectors.len() {
            let written: Vec<_> =
                (0..sectors.len()).filter(|at| subset & 1 << at != 0).map(|at| sectors[at].clone()).collect();
            let found = open(&parts_written(&written), RESTARTED).unwrap();
            found.check().unwrap();
            let is_known = found.damaged().len() == 1 && found.find(hash, &key(0)).is_none();
            assert!(
                found.view(SLOT).is_ok_and(is_whole) || is_known,
                "{before:?}, {after:?}, sectors {subset:b}"
            );
        }
    }
}
