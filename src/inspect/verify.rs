//! `slotstream verify`: every checksum and everything derived of one directory, or two slot by slot.
//!
//! The directories are locked while they are read, and their files are mapped privately: recovery that
//! opening implies happens in memory and leaves the files as they are.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{ToolError, Verdict};
use crate::slot::{ShardIndex, SlotIndex, Status};
use crate::store::{Fault, Options, Progress, Store};
use crate::units;

/// Differences reported in full per shard; the rest is counted.
const DIFFERENCES_SHOWN: usize = 5;
/// Damaged slots reported in full; the rest is counted.
const DAMAGED_SHOWN: usize = 20;

fn open(directory: &Path) -> Result<Store, ToolError> {
    let options = Options { private: true, ..Options::default() };
    Ok(Store::open(directory, options)?)
}

#[derive(Debug, Serialize)]
struct Check {
    directory: PathBuf,
    good: bool,
    records: u64,
    ending: String,
    /// Damaged slots, in words.
    damaged: Vec<String>,
    damaged_count: usize,
    /// What is derived from the slots and differs from a rebuild.
    derived: Option<String>,
}

/// Looks at every slot, also of shards whose index came from a digest; says what the first did not fit.
fn audit(store: &Store) -> Option<String> {
    const STEP_SLOTS: u32 = 4096;
    let mut misfit = None;
    for shard in store.shards() {
        let mut next = Some(SlotIndex(0));
        while let Some(from) = next {
            let audit = store.audit(shard, from, STEP_SLOTS);
            next = audit.next;
            let found = audit.faults.into_iter().find(|(_, fault)| *fault == Fault::Misfit);
            misfit = misfit.or(found.map(|(slot, fault)| format!("shard {shard} slot {slot}: {fault}")));
        }
    }
    misfit
}

/// Checks one directory.
pub fn check(directory: &Path, json: bool, out: &mut impl Write) -> Result<Verdict, ToolError> {
    let store = open(directory)?;
    let misfit = audit(&store);
    let damaged = store.damaged();
    let derived = misfit.or(store.check().err());
    let report = Check {
        directory: directory.to_owned(),
        good: damaged.is_empty() && derived.is_none(),
        records: store.len(),
        ending: store.ending().to_string(),
        damaged_count: damaged.len(),
        damaged: damaged
            .iter()
            .take(DAMAGED_SHOWN)
            .map(|(shard, slot, error)| format!("shard {shard} slot {slot}: {error}"))
            .collect(),
        derived,
    };
    if json {
        write_json(out, &report)?;
    } else {
        for line in &report.damaged {
            writeln!(out, "{line}")?;
        }
        if let Some(difference) = &report.derived {
            writeln!(out, "index, free list or counts differ from a rebuild: {difference}")?;
        }
        writeln!(
            out,
            "{}: {} shards, {} records, last ending: {}; {}",
            directory.display(),
            store.geometry().shard_count,
            units::count(report.records),
            report.ending,
            if report.good {
                "every checksum, index and free list is right".to_owned()
            } else {
                format!("NOT right (damaged slots: {})", report.damaged_count)
            }
        )?;
    }
    Ok(if report.good { Verdict::Good } else { Verdict::Bad })
}

#[derive(Debug, Serialize)]
struct Comparison {
    equal: bool,
    shards_compared: u64,
    shards: Vec<ShardComparison>,
}

#[derive(Debug, Serialize)]
struct ShardComparison {
    shard: u16,
    /// `equal`, `differs`, or `not held` by one side: a follower need not carry every shard.
    result: &'static str,
    slots: u64,
    seqs: [u64; 2],
    differences: u64,
    /// The first ones, in words.
    first: Vec<String>,
}

/// Compares two directories of one store, slot by slot.
pub fn compare(first: &Path, second: &Path, json: bool, out: &mut impl Write) -> Result<Verdict, ToolError> {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if real(first) == real(second) {
        return Err(ToolError::SameDirectory { directory: first.to_owned() });
    }
    let stores = [open(first)?, open(second)?];
    let [a, b] = &stores;
    if a.store_id() != b.store_id() || a.geometry() != b.geometry() {
        return Err(ToolError::OtherStore {
            first: format!("{} ({})", a.store_id(), a.geometry()),
            second: format!("{} ({})", b.store_id(), b.geometry()),
        });
    }
    let shards: Vec<_> = a.shards().map(|shard| compare_shard(a, b, shard)).collect();
    let compared = shards.iter().filter(|shard| shard.result != NOT_HELD).count();
    let report = Comparison {
        equal: compared > 0 && shards.iter().all(|shard| shard.result != DIFFERS),
        shards_compared: compared as u64,
        shards,
    };
    if json {
        write_json(out, &report)?;
    } else {
        print_comparison(&report, out)?;
    }
    Ok(if report.equal { Verdict::Good } else { Verdict::Bad })
}

const EQUAL: &str = "equal";
const DIFFERS: &str = "differs";
const NOT_HELD: &str = "not held";

fn compare_shard(a: &Store, b: &Store, shard: ShardIndex) -> ShardComparison {
    let extents = [a, b].map(|store| store.stats(shard));
    let slots = extents.iter().map(|stats| stats.slots_formatted).max().unwrap_or(0);
    let mut comparison = ShardComparison {
        shard: shard.0,
        result: EQUAL,
        slots,
        seqs: extents.map(|stats| stats.seq),
        differences: 0,
        first: Vec::new(),
    };
    if (is_untouched(a, shard) || is_untouched(b, shard)) && extents[0].seq != extents[1].seq {
        comparison.result = NOT_HELD;
        return comparison;
    }
    for slot in (0..slots).map_while(|slot| u32::try_from(slot).ok()).map(SlotIndex) {
        let sides = [(a, &extents[0]), (b, &extents[1])].map(|(store, stats)| {
            if u64::from(slot.0) < stats.slots_formatted { side(store, shard, slot) } else { Side::Free }
        });
        if sides[0] != sides[1] {
            comparison.result = DIFFERS;
            comparison.differences += 1;
            if comparison.first.len() < DIFFERENCES_SHOWN {
                let [left, right] = sides.map(|side| side.describe());
                comparison.first.push(format!("slot {slot}: {left} here, {right} there"));
            }
        }
    }
    comparison
}

/// Whether nothing ever happened in the shard, as in one that a follower does not carry.
fn is_untouched(store: &Store, shard: ShardIndex) -> bool {
    store.stats(shard).seq == 0 && store.progress(shard) == Progress::default()
}

/// What one side has in a slot.
#[derive(PartialEq, Eq)]
enum Side {
    /// Never used, or not even formatted: files grow in steps of their own.
    Free,
    Image(Vec<u8>, String),
    Damaged(String),
}

fn side(store: &Store, shard: ShardIndex, slot: SlotIndex) -> Side {
    store.with_slot(shard, slot, |view| match view {
        Err(error) => Side::Damaged(error.to_string()),
        Ok(view) if view.status() == Status::Free => Side::Free,
        Ok(view) => {
            let word = if view.status() == Status::Deleted { "deleted" } else { "occupied" };
            let words = format!("{word} seq {} key \"{}\"", view.seq(), view.key().escape_ascii());
            Side::Image(view.image().to_vec(), words)
        }
    })
}

impl Side {
    fn describe(&self) -> String {
        match self {
            Self::Free => "free".to_owned(),
            Self::Image(_, words) => words.clone(),
            Self::Damaged(error) => format!("damaged ({error})"),
        }
    }
}

fn print_comparison(report: &Comparison, out: &mut impl Write) -> io::Result<()> {
    for shard in &report.shards {
        let slots = units::count(shard.slots);
        match shard.result {
            EQUAL => writeln!(out, "shard {}: {slots} slots equal, seq {}", shard.shard, shard.seqs[0])?,
            NOT_HELD => {}
            _ => {
                writeln!(
                    out,
                    "shard {}: {} of {slots} slots DIFFER (seq {} here, {} there)",
                    shard.shard,
                    units::count(shard.differences),
                    shard.seqs[0],
                    shard.seqs[1]
                )?;
                for line in &shard.first {
                    writeln!(out, "  {line}")?;
                }
            }
        }
    }
    let not_held: Vec<u16> =
        report.shards.iter().filter(|shard| shard.result == NOT_HELD).map(|shard| shard.shard).collect();
    if !not_held.is_empty() {
        writeln!(out, "held by one side only, not compared: shards {}", ranges(&not_held))?;
    }
    writeln!(
        out,
        "{} of {} shards compared: {}",
        report.shards_compared,
        report.shards.len(),
        match (report.equal, report.shards_compared) {
            (true, _) => "equal",
            (false, 0) => "the sides have no shard in common",
            (false, _) => "NOT equal",
        }
    )
}

/// Rising indexes, written as `0,2-3`.
fn ranges(indexes: &[u16]) -> String {
    let runs = indexes.chunk_by(|one, next| *next == one + 1);
    let run = |run: &[u16]| match run {
        [first, .., last] => format!("{first}-{last}"),
        _ => run.iter().map(u16::to_string).collect(),
    };
    runs.map(run).collect::<Vec<_>>().join(",")
}

fn write_json(out: &mut impl Write, report: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, report).map_err(io::Error::other)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::Geometry;

    #[test]
    fn runs_of_shards_are_short() {
        assert_eq!(ranges(&[0, 2, 3, 4, 7]), "0,2-4,7");
        assert_eq!(ranges(&[]), "");
    }

    /// A closed store of one shard with these records.
    fn store(directory: &Path, store_id: uuid::Uuid, records: &[(&str, &str)]) {
        let geometry =
            Geometry { shard_count: 1, key_size_max: 16, value_size_max: 16, shard_prefix_bits: 0 };
        let options = Options { store_id: Some(store_id), ..Options::create(geometry) };
        let store = Store::open(directory, options).expect("opens");
        for (key, value) in records {
            store.put(key.as_bytes(), value.as_bytes()).expect("put");
        }
        store.close().expect("closes");
    }

    fn compared(first: &Path, second: &Path) -> (Verdict, String) {
        let mut text = Vec::new();
        let verdict = compare(first, second, false, &mut text).expect("both are stores");
        (verdict, String::from_utf8(text).expect("text"))
    }

    #[test]
    fn a_difference_is_shown_and_a_missing_shard_is_no_equality() {
        let directory = tempfile::tempdir().expect("temp dir");
        let at = |name: &str| directory.path().join(name);
        let id = uuid::Uuid::from_u128(7);
        store(&at("a"), id, &[("k", "v"), ("l", "w")]);
        store(&at("same"), id, &[("k", "v"), ("l", "w")]);
        store(&at("other"), id, &[("k", "v"), ("l", "x")]);
        store(&at("empty"), id, &[]);
        store(&at("foreign"), uuid::Uuid::from_u128(8), &[]);
        assert_eq!(compared(&at("a"), &at("same")).0, Verdict::Good);
        let (verdict, text) = compared(&at("a"), &at("other"));
        assert_eq!(verdict, Verdict::Bad);
        assert!(
            text.contains("1 of") && text.contains("DIFFER") && text.contains("seq 2 key \"l\""),
            "{text}"
        );
        let (verdict, text) = compared(&at("a"), &at("empty"));
        assert_eq!(verdict, Verdict::Bad);
        assert!(text.contains("not compared: shards 0"), "{text}");
        assert!(matches!(
            compare(&at("a"), &at("foreign"), false, &mut Vec::new()),
            Err(ToolError::OtherStore { .. })
        ));
    }
}
