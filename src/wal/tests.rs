//! The formats byte by byte; every flipped bit, every cut. What a power cut leaves is in `tests/sim/log.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::codec::{CHECKPOINT_SIZE, Found, SEGMENT_HEADER_SIZE, read_segment_header};
use super::simulated::SimulatedDisk;
use super::*;
use crate::chance::Chance;
use crate::slot::image::push_record;
use crate::slot::{Seq, SlotIndex, Status};

const GOLDEN: &str = include_str!("../../tests/data/wal_v1.hex");
const STORE: Uuid = Uuid::from_u128(0x51_0757);

/// Numbers without a pattern.
struct Steps(AtomicU64);

impl Chance for Steps {
    fn next(&self) -> u64 {
        let step = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        let mixed = (step ^ (step >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 16
    }
}

fn disk() -> SimulatedDisk {
    SimulatedDisk::new(Arc::new(Steps(AtomicU64::new(1))))
}

fn options() -> LogOptions {
    LogOptions { store_id: STORE, segment_size: SEGMENT_SIZE_MIN, segments_max: 8 }
}

/// A log on this disk, begun.
fn begin(disk: &SimulatedDisk) -> Log {
    begin_with(disk, options())
}

fn begin_with(disk: &SimulatedDisk, options: LogOptions) -> Log {
    let mut log = open_with(disk, &mut Vec::new(), options).unwrap();
    log.begin_anew().unwrap();
    log
}

type Seen = Vec<(Position, ShardIndex, Kind, Vec<u8>)>;

fn open(disk: &SimulatedDisk, seen: &mut Seen) -> Result<Log, LogError> {
    open_with(disk, seen, options())
}

fn open_with(disk: &SimulatedDisk, seen: &mut Seen, options: LogOptions) -> Result<Log, LogError> {
    let log = Log::open(Arc::new(disk.clone()), options)?;
    log.replay(|frames| {
        let all = frames.iter();
        seen.extend(all.map(|frame| (frame.position, frame.shard, frame.kind, frame.payload.to_vec())));
        Ok::<_, LogError>(())
    })?;
    Ok(log)
}

/// Groups of frames, each made durable but the last one; positions of all, and the last durable mark.
fn fill(log: &mut Log, groups: usize, frames: usize, payload: impl Fn(usize) -> Vec<u8>) -> (Seen, Position) {
    let (mut seen, mut marked) = (Seen::new(), log.durable());
    for group in 0..groups {
        marked = log.sync().unwrap();
        for frame in 0..frames {
            let payload = payload(group * frames + frame);
            let shard = ShardIndex(u16::try_from(frame).unwrap());
            log.append(shard, 7, Kind::Records, &payload).unwrap();
            let position = Position(log.end().0 - Frame::size(payload.len()) as u64);
            seen.push((position, shard, Kind::Records, payload));
        }
        log.write().unwrap();
    }
    (seen, marked)
}

fn bytes_of_length(number: usize) -> Vec<u8> {
    (0..number % 61 * 3).map(|byte| (byte * 7 + number).to_le_bytes()[0]).collect()
}

#[test]
fn the_format_is_the_one_in_the_golden_file() {
    let disk = disk();
    let mut log = begin(&disk);
    let mut records = Vec::new();
    let image = crate::slot::image::Image {
        seq: Seq(9),
        status: Status::Occupied,
        expire_at: 77,
        key: b"key",
        value: b"the value",
    };
    let mut bytes = vec![0; image.size()];
    image.write(ShardIndex(3), SlotIndex(5), &mut bytes);
    push_record(&mut records, SlotIndex(5), &bytes);
    log.append(ShardIndex(3), 2, Kind::Records, &records).unwrap();
    log.sync().unwrap();
    log.append(ShardIndex(1), 2, Kind::State, b"of a shard").unwrap();
    log.sync().unwrap();
    let mut dump = String::new();
    for (name, file, wanted) in [("checkpoint", 0, 0..64), ("segment", 1, 0..48), ("frames", 1, 4096..4288)] {
        dump += &format!("{name}\n");
        for (line, bytes) in disk.bytes(file)[wanted.clone()].chunks(16).enumerate() {
            let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            dump += &format!("{:06x} {}\n", wanted.start + line * 16, hex.join(" "));
        }
    }
    assert_eq!(dump, GOLDEN, "the format differs from tests/data/wal_v1.hex:\n{dump}");
}

#[test]
fn what_was_appended_is_visited_again_over_many_segments_and_openings() {
    let disk = disk();
    let mut log = begin(&disk);
    let (mut all, _) = fill(&mut log, 40, 50, |number| vec![number.to_le_bytes()[0]; number % 500]);
    for round in 0..4 {
        log.sync().unwrap();
        drop(log);
        let mut seen = Seen::new();
        log = open(&disk, &mut seen).unwrap();
        assert_eq!(seen, all, "round {round}");
        log.begin_anew().unwrap();
        log.keep_a_spare().unwrap();
        all = fill(&mut log, 40, 50, |number| vec![number.to_le_bytes()[0]; number % 400]).0;
    }
    assert!(log.end().segment() > 12, "{log:?}");
}

/// Large payloads go to the disk without a copy, between small ones that wait in the buffer.
#[test]
fn large_payloads_are_visited_again_and_after_a_power_cut_up_to_a_torn_one() {
    let size = |number: usize| match number % 3 {
        0 => number % 50,
        _ => DIRECT_SIZE_MIN - 10 + number * 7 % 20,
    };
    let payload = |number: usize| vec![number.to_le_bytes()[0]; size(number)];
    let options = LogOptions { segment_size: 8 * SEGMENT_SIZE_MIN, ..options() };
    let mut torn = 0;
    for seed in 1..40 {
        let disk = SimulatedDisk::new(Arc::new(Steps(AtomicU64::new(seed))));
        let mut log = begin_with(&disk, options);
        let (mut all, marked) = fill(&mut log, 3, 4, payload);
        // The largest that there may be takes all the room.
        let (largest, segment) = (vec![9; log.payload_size_max()], log.end().segment());
        log.append(ShardIndex(9), 7, Kind::Records, &largest).expect("room");
        assert!(largest.len() > SEGMENT_SIZE_MIN as usize && log.end().segment() == segment, "{log:?}");
        all.push((Position::default(), ShardIndex(9), Kind::Records, largest));
        let mut seen = Seen::new();
        open_with(&disk.after_power_cut(), &mut seen, options).unwrap();
        assert!(
            seen.iter().zip(&all).all(|(seen, made)| (seen.1, &seen.3) == (made.1, &made.3)),
            "seed {seed}"
        );
        let durable = all.iter().filter(|frame| frame.0 < marked && frame.0 != Position::default()).count();
        assert!((durable..=all.len()).contains(&seen.len()), "seed {seed}: {} of {durable}", seen.len());
        torn += usize::from(seen.len() < all.len());
        log.sync().unwrap();
        let mut seen = Seen::new();
        open_with(&disk.after_power_cut(), &mut seen, options).unwrap();
        assert_eq!(seen.len(), all.len(), "seed {seed}");
        assert_eq!(seen[..all.len() - 1], all[..all.len() - 1], "seed {seed}");
    }
    assert!(torn > 0, "no power cut tore a frame");
}

#[test]
fn a_cut_log_is_read_from_its_cut_and_its_files_are_used_again() {
    let disk = disk();
    let mut log = begin(&disk);
    for _ in 0..30 {
        let (_, _) = fill(&mut log, 2, 100, |_| vec![1; 400]);
        let cut = log.sync().unwrap();
        log.cut(cut).unwrap();
        log.keep_a_spare().unwrap();
    }
    assert!(log.end().segment() > 15, "{log:?}");
    assert!(disk.bytes(5).is_empty(), "more files than are needed");
    let (wanted, _) = fill(&mut log, 2, 10, bytes_of_length);
    drop(log);
    let mut seen = Seen::new();
    open(&disk, &mut seen).unwrap();
    assert_eq!(seen, wanted, "old frames in files that are used again are none");
}

#[test]
fn a_log_that_is_not_cut_is_full_and_goes_on_after_a_cut() {
    let disk = disk();
    let mut log = begin(&disk);
    let refused = loop {
        if let Err(error) = log.append(ShardIndex(0), 1, Kind::Records, &[5; 60_000]) {
            break error;
        }
    };
    assert!(matches!(refused, LogError::Full { segments_max: 8 }), "{refused}");
    let end = log.sync().unwrap();
    log.cut(end).unwrap();
    log.append(ShardIndex(0), 1, Kind::Records, &[6; 60_000]).unwrap();
    log.sync().unwrap();
    let mut seen = Seen::new();
    open(&disk, &mut seen).unwrap();
    assert_eq!(seen.len(), 1);
}

#[test]
fn a_full_disk_is_an_error_that_passes() {
    let disk = disk();
    let mut log = begin(&disk);
    disk.set_capacity(Some(u64::from(2 * SEGMENT_SIZE_MIN)));
    let refused = loop {
        if let Err(error) = log.append(ShardIndex(0), 1, Kind::Records, &[5; 60_000]) {
            break error;
        }
    };
    assert!(matches!(refused, LogError::NoSpace { .. }), "{refused}");
    log.sync().unwrap();
    disk.set_capacity(None);
    log.append(ShardIndex(0), 1, Kind::Records, &[6; 60_000]).unwrap();
    log.sync().unwrap();
    let mut seen = Seen::new();
    open(&disk, &mut seen).unwrap();
    assert_eq!(seen.iter().filter(|frame| frame.3[0] == 5).count() + 1, seen.len());
}

#[test]
fn every_flipped_bit_is_damage_or_the_torn_end() {
    let disk = disk();
    let mut log = begin(&disk);
    let (all, marked) = fill(&mut log, 4, 4, |number| bytes_of_length(number + 1));
    let (start, end) = (u64::from(FRAMES_OFFSET) * 8, u64::from(log.end().offset()) * 8);
    for bit in start..end {
        let flip = |bytes: &mut [u8]| bytes[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8);
        disk.corrupt(1, flip);
        let mut seen = Seen::new();
        let found = open(&disk, &mut seen);
        let at = Position::new(1, u32::try_from(bit / 8).unwrap());
        let before = all.iter().filter(|frame| frame.0 <= at).count() - 1;
        assert_eq!(seen, all[..before], "bit {bit}");
        match found {
            Ok(_) => assert!(at >= marked, "bit {bit} lies before the durable mark"),
            Err(LogError::Damaged { segment: 1, offset }) => {
                assert!(at < marked && offset <= at.offset(), "bit {bit}: {offset}");
            }
            Err(error) => panic!("bit {bit}: {error}"),
        }
        disk.corrupt(1, flip);
    }
}

#[test]
fn every_flipped_bit_of_a_header_is_found() {
    let disk = disk();
    let mut log = begin(&disk);
    fill(&mut log, 3, 3, bytes_of_length);
    let header = codec::segment_header(STORE, 5);
    assert_eq!(read_segment_header(STORE, &header), Found::Good(5));
    assert!(matches!(read_segment_header(Uuid::from_u128(1), &header), Found::Store(_)));
    for bit in 0..SEGMENT_HEADER_SIZE * 8 {
        let mut copy = header;
        copy[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(read_segment_header(STORE, &copy), Found::Bad, "bit {bit}");
        let flip = |bytes: &mut [u8]| bytes[bit / 8] ^= 1 << (bit % 8);
        disk.corrupt(1, flip);
        let found = open(&disk, &mut Seen::new()).unwrap_err();
        assert!(matches!(found, LogError::Damaged { segment: 1, offset: 0 }), "bit {bit}: {found}");
        disk.corrupt(1, flip);
    }
    // Of the checkpoint's two copies one counts; without it the older one does.
    log.sync().unwrap();
    for _ in 0..2 {
        let durable = log.durable();
        log.cut(durable).unwrap();
    }
    for bit in 0..CHECKPOINT_SIZE * 8 {
        let flip = |bytes: &mut [u8]| bytes[bit / 8] ^= 1 << (bit % 8);
        disk.corrupt(CHECKPOINT_FILE, flip);
        open(&disk, &mut Seen::new()).unwrap();
        disk.corrupt(CHECKPOINT_FILE, |bytes| bytes[4096 + bit / 8] ^= 1 << (bit % 8));
        assert!(matches!(open(&disk, &mut Seen::new()), Err(LogError::Checkpoint)), "bit {bit}");
        disk.corrupt(CHECKPOINT_FILE, |bytes| bytes[4096 + bit / 8] ^= 1 << (bit % 8));
        disk.corrupt(CHECKPOINT_FILE, flip);
    }
}

#[test]
fn a_missing_segment_is_named() {
    let disk = disk();
    let mut log = begin(&disk);
    fill(&mut log, 4, 2, |_| vec![1; 60_000]);
    assert!(log.end().segment() > 3);
    disk.remove(2).unwrap();
    let found = open(&disk, &mut Seen::new()).unwrap_err();
    assert!(matches!(found, LogError::Missing { segment: 2 }), "{found}");
}

#[test]
fn a_log_of_another_store_or_release_is_refused_by_name() {
    let disk = disk();
    drop(begin(&disk));
    let other = LogOptions { store_id: Uuid::from_u128(2), ..options() };
    let refused = Log::open(Arc::new(disk.clone()), other).unwrap_err().to_string();
    assert!(refused.contains(&STORE.to_string()), "{refused}");
    disk.corrupt(1, |bytes| {
        bytes[4] = 9;
        let crc = crate::checksum::crc32c(9, &bytes[8..SEGMENT_HEADER_SIZE]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
    });
    assert!(matches!(open(&disk, &mut Seen::new()), Err(LogError::Version { file: 1, found: 9 })));
}

/// The log's last 64 KiB, cut at every byte: what lies behind it is zeros, or what an earlier use left there.
#[test]
fn a_log_cut_at_any_byte_ends_there_or_is_damaged() {
    const LAST: usize = 64 << 10;
    let disk = disk();
    let mut log = begin(&disk);
    let (all, marked) = fill(&mut log, 13, 12, |number| bytes_of_length(number + 40).repeat(6));
    assert_eq!(log.end().segment(), 1, "all in one segment");
    let (whole, end) = (disk.bytes(1), log.end().offset() as usize);
    assert!(end - FRAMES_OFFSET as usize > LAST, "only {end} bytes");
    for (name, behind, step) in [("zeros", 0, 1), ("old bytes", 0xA5, 7)] {
        for cut in (end - LAST..end).step_by(step) {
            // Reading all of it for each cut would take minutes: a frame before the cut is where it begins.
            let from = all.iter().rfind(|frame| (frame.0.offset() as usize) + 600 < cut).unwrap().0;
            let cut_disk = Prefix { bytes: &whole, cut, behind, len: end + 64 };
            let segment = Segment { number: 1, file: 1, size: cut_disk.len as u64 };
            let mut seen = Vec::new();
            let found = walk::<LogError>(&cut_disk, &[segment], from, |frames| {
                seen.extend(frames.iter().map(|frame| frame.position));
                Ok(())
            });
            let at = Position::new(1, u32::try_from(cut).unwrap());
            let ends: Vec<_> = all.iter().map(|frame| frame.0).skip(1).chain([log.end()]).collect();
            let kept = all.iter().zip(ends).filter(|(frame, end)| frame.0 >= from && *end <= at);
            // A payload's end may look like what lies behind it: then one frame more is whole.
            let kept = kept.count();
            assert!(seen.len() == kept || seen.len() == kept + 1, "{name}, cut at {cut}");
            assert!(seen.iter().zip(all.iter().filter(|frame| frame.0 >= from)).all(|(a, b)| *a == b.0));
            match found {
                Ok(end) => assert!(end >= from),
                // Nothing is left behind the cut that could say what was durable.
                Err(error) => panic!("{name}, cut at {cut}: {error}"),
            }
        }
    }
    // A hole of any place in what was durable is damage: a frame behind it says so.
    for hole in (end - LAST..marked.offset() as usize - 8).step_by(67) {
        let found = {
            disk.corrupt(1, |bytes| bytes[hole..hole + 8].fill(0xA5));
            let found = open(&disk, &mut Seen::new());
            disk.corrupt(1, |bytes| bytes.copy_from_slice(&whole));
            found
        };
        assert!(matches!(found, Err(LogError::Damaged { segment: 1, .. })), "hole at {hole}: {found:?}");
    }
}

/// A segment of which only the bytes before the cut were written.
struct Prefix<'a> {
    bytes: &'a [u8],
    cut: usize,
    behind: u8,
    len: usize,
}

impl Disk for Prefix<'_> {
    fn files(&self) -> io::Result<Vec<(u32, u64)>> {
        Ok(vec![(1, self.len as u64)])
    }

    fn read(&self, _: u32, offset: u64, target: &mut [u8]) -> io::Result<()> {
        assert_eq!((offset, target.len()), (0, self.len));
        target[..self.cut].copy_from_slice(&self.bytes[..self.cut]);
        target[self.cut..].fill(self.behind);
        Ok(())
    }

    fn create(&self, _: u32, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn remove(&self, _: u32) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write(&self, _: u32, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync(&self, _: u32) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
