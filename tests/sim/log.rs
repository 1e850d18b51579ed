//! The write-ahead log on a disk that loses its power: in every call, with any write-back of what was not synced.
//!
//! What was called durable is there, in order; what is found is what was appended; an opening that is cut off itself
//! changes nothing; after a failed sync nothing is called durable any more.

use std::sync::Arc;

use parking_lot::Mutex;
use slotstream::ShardIndex;
use slotstream::chance::Chance;
use slotstream::wal::simulated::{Fault, SimulatedDisk};
use slotstream::wal::{Kind, Log, LogError, LogOptions, Position, SEGMENT_SIZE_MIN};

use crate::random::Random;

const SEEDS: u64 = 5;

/// A simulation's chance as the library asks for it.
pub(crate) struct Dice(Mutex<Random>);

impl Dice {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Random::new(seed))))
    }
}

impl Chance for Dice {
    fn next(&self) -> u64 {
        self.0.lock().next()
    }
}

type Found = Vec<(Position, Vec<u8>)>;

/// Segments are of one size, or grow to so many times the smallest.
#[derive(Clone, Copy)]
struct Growth(u32);

impl Growth {
    fn of(seed: u64) -> Self {
        Self(if seed.is_multiple_of(2) { 1 } else { 4 })
    }

    fn options(self) -> LogOptions {
        LogOptions {
            store_id: uuid::Uuid::from_u128(7),
            segment_size: SEGMENT_SIZE_MIN * self.0,
            segments_max: 4,
        }
    }
}

/// What was appended to a log, frame by frame, and how much of that counts.
#[derive(Default)]
struct Book {
    frames: Found,
    /// Frames that were called durable.
    durable: usize,
    /// Frames that a checkpoint gave up, at most.
    given_up: usize,
}

fn open(disk: &SimulatedDisk, growth: Growth) -> Result<(Log, Found), LogError> {
    let mut found = Vec::new();
    let log = Log::open(Arc::new(disk.clone()), growth.options())?;
    log.replay(|frames| {
        found.extend(frames.iter().map(|frame| (frame.position, frame.payload.to_vec())));
        Ok::<_, LogError>(())
    })?;
    Ok((log, found))
}

/// Appends, writes, syncs and cuts as chance says, until the disk fails.
fn work(
    log: &mut Log,
    book: &mut Book,
    random: &mut Random,
    steps: usize,
    Growth(growth): Growth,
) -> Result<(), LogError> {
    let payload_max = 9_000 * growth as usize;
    for _ in 0..steps {
        match random.below(100) {
            0..70 => {
                let payload = vec![random.next().to_le_bytes()[0]; random.between(0, payload_max)];
                let appended = log.append(ShardIndex(1), 3, Kind::Records, &payload);
                match appended {
                    Ok(()) => {
                        let size = 40 + payload.len().next_multiple_of(8);
                        book.frames.push((Position(log.end().0 - size as u64), payload));
                    }
                    Err(LogError::Full { .. }) => {
                        log.sync()?;
                        book.durable = book.frames.len();
                        book.given_up = book.frames.len();
                        log.cut(log.end())?;
                    }
                    Err(error) => return Err(error),
                }
            }
            70..80 => log.write()?,
            80..93 => {
                log.sync()?;
                book.durable = book.frames.len();
            }
            93..97 => log.keep_a_spare()?,
            _ => {
                let durable = book.durable.max(book.given_up);
                let cut = random.between(book.given_up, durable);
                let position = book.frames.get(cut).map_or(log.durable(), |frame| frame.0);
                book.given_up = cut;
                log.cut(position)?;
            }
        }
    }
    Ok(())
}

/// What an opening found is a run of what was appended, from a cut that was made up to what was durable at least.
fn check(book: &Book, found: &[(Position, Vec<u8>)], context: &str) {
    let Some(first) = found.first() else {
        assert!(book.given_up >= book.durable, "{context}: {} durable frames are lost", book.durable);
        return;
    };
    let from = book.frames.iter().position(|frame| frame.0 == first.0);
    let Some(from) = from else { panic!("{context}: a frame that nobody appended") };
    assert!(from <= book.given_up, "{context}: it begins behind the cut");
    assert!(from + found.len() <= book.frames.len(), "{context}: more than was appended");
    assert!(found == &book.frames[from..from + found.len()], "{context}: other frames than were appended");
    assert!(from + found.len() >= book.durable, "{context}: a durable frame is lost");
}

/// One life of a log, with a fault in this call; says how many calls there were.
fn life(seed: u64, fault: Option<(u64, Fault)>, steps: usize) -> u64 {
    let context = format!("seed {seed}, {fault:?}");
    let disk = SimulatedDisk::new(Dice::new(seed));
    let mut random = Random::new(seed);
    let growth = Growth::of(seed);
    let mut book = Book::default();
    if let Some((call, fault)) = fault {
        disk.plan(call, fault);
    }
    let lived = open(&disk, growth).and_then(|(mut log, _)| {
        log.begin_anew()?;
        let worked = work(&mut log, &mut book, &mut random, steps, growth);
        if worked.is_err() && disk.has_power() {
            // A log that has failed stays so: or the second sync would lie about what the first one lost.
            let again = log.append(ShardIndex(0), 1, Kind::Records, b"more").and_then(|()| log.sync());
            assert!(matches!(again, Err(LogError::Failed)), "{context}: it goes on after {worked:?}");
        }
        worked
    });
    assert!(fault.is_some() || lived.is_ok(), "{context}: {lived:?}");
    let calls = disk.calls();
    // Opened again, with the power cut in every call of that in turn; the last time nothing goes wrong.
    let mut disk = disk.after_power_cut();
    for cut in 0.. {
        disk.plan(cut, Fault::PowerCut);
        let opened = open(&disk, growth);
        if let Ok((mut log, found)) = opened {
            check(&book, &found, &format!("{context}, opening cut at call {cut}"));
            if log.begin_anew().is_ok() {
                disk.plan_nothing();
                go_on(&disk, log, &mut random, growth, &context);
                break;
            }
        } else if disk.has_power() {
            panic!("{context}, opening cut at call {cut}: {:?}", opened.map(|_| ()));
        }
        let after = disk.after_power_cut();
        // The cut may have come behind the new checkpoint: then what there was is given up, and rightly.
        let (_, found) = open(&after, growth).unwrap_or_else(|error| panic!("{context}: {error}"));
        if found.is_empty() {
            book.given_up = book.frames.len();
        }
        disk = after;
    }
    calls
}

/// A log that was begun anew holds what it gets from then on, and nothing else.
fn go_on(disk: &SimulatedDisk, mut log: Log, random: &mut Random, growth: Growth, context: &str) {
    let mut book = Book::default();
    work(&mut log, &mut book, random, 20, growth).unwrap_or_else(|error| panic!("{context}: {error}"));
    log.write().unwrap();
    drop(log);
    // Killed, not cut off: everything written is there.
    let (mut log, found) = open(disk, growth).unwrap_or_else(|error| panic!("{context}: {error}"));
    check(&book, &found, context);
    assert!(book.given_up + found.len() >= book.frames.len(), "{context}: a kill lost a frame");
    log.begin_anew().unwrap();
    let mut book = Book::default();
    work(&mut log, &mut book, random, 20, growth).unwrap();
    drop(log);
    let (_, found) = open(&disk.after_power_cut(), growth).unwrap();
    check(&book, &found, context);
}

/// All seeds, all calls, both kinds of fault.
pub(crate) fn all_lives() {
    for seed in 0..SEEDS {
        let calls = life(seed, None, 60);
        for call in 0..calls {
            life(seed, Some((call, Fault::PowerCut)), 60);
            life(seed, Some((call, Fault::Failure)), 60);
        }
    }
}

#[test]
fn a_log_keeps_what_it_called_durable_whatever_call_the_power_goes_in() {
    all_lives();
}
