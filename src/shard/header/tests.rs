//! The header's copies, cut and torn at every place.

use super::*;

const GEOMETRY: Geometry =
    Geometry { shard_count: 4, key_size_max: 16, value_size_max: 64, shard_prefix_bits: 0 };

fn identity() -> Identity {
    Identity { store_id: Uuid::from_u128(7), shard: ShardIndex(3), geometry: GEOMETRY }
}

fn state(slots_formatted: u32) -> State {
    State {
        slots_formatted,
        slots_durable: slots_formatted / 2,
        seq_reserved: 0,
        boot_id: [9; 16],
        place_id: 5,
        clean_seq: None,
        durable_seq: Seq(50),
        session: 0x5E,
        role: Some(Role::Follows),
        lineage: vec![Term { epoch: 1, id: 11, first_seq: 1 }, Term { epoch: 4, id: 12, first_seq: 77 }],
    }
}

#[test]
fn identity_is_read_as_written_and_every_flipped_bit_is_found() {
    let mut page = vec![0; HEADER_PAGE_SIZE];
    identity().write(&mut page);
    let path = Path::new("shard");
    assert_eq!(Identity::read(path, &page), Ok(identity()));
    for bit in 0..IDENTITY_SIZE * 8 {
        page[bit / 8] ^= 1 << (bit % 8);
        assert!(Identity::read(path, &page).is_err(), "bit {bit}");
        page[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(matches!(Identity::read(path, &page[..100]), Err(HeaderError::Truncated { .. })));
    assert!(matches!(Identity::read(path, b"+PONG\r\n"), Err(HeaderError::Foreign { .. })));
}

#[test]
fn a_state_write_cut_at_any_byte_leaves_the_old_state_or_the_new_one() {
    let path = Path::new("shard");
    let mut before = vec![0; HEADER_PAGE_SIZE];
    state(10).write(&mut before);
    state(20).write(&mut before);
    let mut after = before.clone();
    state(30).write(&mut after);
    for cut in 0..HEADER_PAGE_SIZE {
        let mut page = after[..cut].to_vec();
        page.extend_from_slice(&before[cut..]);
        let found = State::read(path, &page).unwrap().slots_formatted;
        assert!(found == 20 || found == 30, "cut at {cut}: {found}");
    }
    assert_eq!(State::read(path, &after), Ok(state(30)));
}

#[test]
fn a_progress_write_cut_at_any_byte_leaves_the_old_progress_or_the_new_one() {
    let step = |seq| Step::Scan { next: SlotIndex(5), through: Seq(seq * 3) };
    let progress = |seq| Progress { epoch: 1, seq: Seq(seq), consistent_at: Seq(seq / 2), step: step(seq) };
    let path = Path::new("shard");
    let mut before = vec![0; HEADER_PAGE_SIZE];
    assert!(Progress::read(path, &before).is_err(), "zeroes are no progress");
    progress(8).write(&mut before);
    let mut after = before.clone();
    progress(9).write(&mut after);
    for cut in 0..HEADER_PAGE_SIZE {
        let mut page = after[..cut].to_vec();
        page.extend_from_slice(&before[cut..]);
        let found = Progress::read(path, &page).unwrap();
        assert!(found == progress(8) || found == progress(9), "cut at {cut}");
    }
}

/// All that a power cut may leave of a page that was `before` on its disk and `after` in memory.
fn torn(before: &[u8], after: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    const SECTOR_SIZE: usize = 512;
    let sectors = |at: usize| at * SECTOR_SIZE..(at + 1) * SECTOR_SIZE;
    let differs = |at: &usize| before[sectors(*at)] != after[sectors(*at)];
    let changed: Vec<_> = (0..HEADER_PAGE_SIZE / SECTOR_SIZE).filter(differs).collect();
    (0..1_u32 << changed.len()).map(move |subset| {
        let mut page = before.to_vec();
        for (_, at) in changed.iter().enumerate().filter(|(bit, _)| subset & 1 << bit != 0) {
            page[sectors(*at)].copy_from_slice(&after[sectors(*at)]);
        }
        page
    })
}

/// A power cut while both copies were on their way once brought back the one before the last.
#[test]
fn a_new_role_and_lineage_are_there_at_once_and_stay_whatever_is_torn_later() {
    let path = Path::new("shard");
    let terms = |count: u64| (1..=count).map(|id| Term { epoch: id, id, first_seq: id * 10 }).collect();
    let write = |page: &[u8], state: &State| {
        let mut page = page.to_vec();
        state.write(&mut page);
        page
    };
    for count in [1, 7, 8, 18, 19, 60, 127] {
        let old = State { role: Some(Role::Leads), lineage: terms(count), ..state(10) };
        let new = State { role: Some(Role::Follows), lineage: terms(count + 1), ..state(10) };
        let start = write(&write(&vec![0; HEADER_PAGE_SIZE], &old), &old);
        let (first, mut cuts) = (write(&start, &new), 0);
        for page in torn(&start, &first) {
            let found = State::read(path, &page).unwrap();
            assert!(found == old || found == new, "{count} terms");
            cuts += 1;
        }
        let second = write(&first, &new);
        assert!(torn(&first, &second).all(|page| State::read(path, &page).as_ref() == Ok(&new)));
        // Changes that nobody makes durable: of slots, seqs and the session.
        let mut page = second.clone();
        for grown in 11..15 {
            page = write(&page, &State { slots_formatted: grown, ..new.clone() });
            for page in torn(&second, &page) {
                let found = State::read(path, &page).unwrap();
                assert_eq!((found.role, &found.lineage), (new.role, &new.lineage), "{count} terms");
            }
        }
        assert!(cuts >= 2, "{cuts} cuts");
    }
}

#[test]
fn a_role_of_a_later_release_is_refused_by_its_number() {
    let mut page = vec![0; HEADER_PAGE_SIZE];
    state(1).write(&mut page);
    let copy = &mut page[STATE_OFFSETS[0]..];
    copy[58] = 3;
    let crc = crc32fast::hash(&copy[4..STATE_FIXED_SIZE + 2 * TERM_SIZE]);
    put(copy, 0, &crc.to_le_bytes());
    let wanted = HeaderError::Role { path: "shard".into(), found: 3 };
    assert_eq!(State::read(Path::new("shard"), &page), Err(wanted));
}

#[test]
fn a_state_whose_copies_are_both_damaged_is_refused() {
    let mut page = vec![0; HEADER_PAGE_SIZE];
    let refused = State::read(Path::new("shard"), &page);
    assert!(matches!(refused, Err(HeaderError::Checksum { part: "the state", .. })));
    state(1).write(&mut page);
    page[STATE_OFFSETS[0] + 16] ^= 1;
    assert!(State::read(Path::new("shard"), &page).is_err());
}

/// A store whose keys have hash tags is none that older releases may open; one without is written as they wrote it.
#[test]
fn hash_tags_are_a_format_of_their_own() {
    const GOLDEN: &str = include_str!("../../../tests/data/identity_v3.hex");
    let path = Path::new("shard");
    let tagged = Identity {
        geometry: Geometry { shard_prefix_bits: crate::slot::HASH_TAGS, ..GEOMETRY },
        ..identity()
    };
    let mut page = vec![0; HEADER_PAGE_SIZE];
    tagged.write(&mut page);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/identity_v3.hex");
        return std::fs::write(path, hex(&page[..IDENTITY_SIZE]) + "\n").unwrap();
    }
    assert_eq!(hex(&page[..IDENTITY_SIZE]), GOLDEN.trim_end(), "a new format version is due");
    assert_eq!(Identity::read(path, &page), Ok(tagged));
    let reseal = |page: &mut [u8], version: u32| {
        page[8..12].copy_from_slice(&version.to_le_bytes());
        let crc = crc32fast::hash(&page[..48]);
        page[48..52].copy_from_slice(&crc.to_le_bytes());
    };
    for version in [0, 1, 4] {
        reseal(&mut page, version);
        let found = Identity::read(path, &page);
        assert!(matches!(found, Err(HeaderError::Version { found, .. }) if found == version), "{found:?}");
    }
    // The version and what is said of routing belong together.
    reseal(&mut page, 2);
    assert!(matches!(Identity::read(path, &page), Err(HeaderError::Checksum { .. })));
    identity().write(&mut page);
    assert_eq!((page[8], Identity::read(path, &page)), (2, Ok(identity())));
    reseal(&mut page, 3);
    assert!(matches!(Identity::read(path, &page), Err(HeaderError::Checksum { .. })));
}
