//! `slotstream inspect`: what lies in a data directory, read from the files alone.
//!
//! No lock is taken, so it works while a node runs; the figures are then those of slots read one after
//! another, and a slot that is being written may be counted as damaged.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{ToolError, Verdict};
use crate::shard::REDO_OFFSET;
use crate::shard::header::{Role, slots_offset};
use crate::slot::image::{RECORD_HEADER_SIZE, read_u32};
use crate::slot::{Geometry, ShardIndex, SlotIndex, SlotView, Status};
use crate::store::directory::{self, Inspection, file_error};
use crate::store::host::host;
use crate::store::{Progress, Term};
use crate::units;

/// A data directory.
#[derive(Debug, Serialize)]
struct Report {
    directory: PathBuf,
    /// The process that has it open.
    in_use_by: Option<u32>,
    shards: Vec<ShardReport>,
}

/// A shard's file.
#[derive(Debug, Serialize)]
struct ShardReport {
    shard: u16,
    file: PathBuf,
    file_bytes: u64,
    store_id: uuid::Uuid,
    shard_count: u16,
    key_size: u16,
    value_size: u16,
    shard_prefix_bits: u16,
    hash_tags: bool,
    slot_stride: usize,
    slots_formatted: u32,
    /// Last seq at an orderly close; none while open, or after a crash.
    clean_seq: Option<u64>,
    boot_id: uuid::Uuid,
    place_id: u64,
    lineage: Vec<Term>,
    role: Role,
    /// A follower's watermark; all zero on a leader.
    progress: Progress,
    slots: Counts,
}

#[derive(Debug, Default, Serialize)]
struct Counts {
    occupied: u64,
    deleted: u64,
    free: u64,
    damaged: u64,
    expiring: u64,
    /// Highest seq of any slot.
    seq_max: u64,
}

/// Prints what `directory` holds, or one shard of it; bad if a slot is damaged and nobody is writing.
pub fn print(
    directory: &Path,
    only: Option<u16>,
    json: bool,
    out: &mut impl Write,
) -> Result<Verdict, ToolError> {
    let report = read(directory, only)?;
    if json {
        serde_json::to_writer_pretty(&mut *out, &report).map_err(io::Error::other)?;
        writeln!(out)?;
    } else {
        print_text(&report, out)?;
    }
    let damaged = report.shards.iter().any(|shard| shard.slots.damaged > 0);
    Ok(if damaged && report.in_use_by.is_none() { Verdict::Bad } else { Verdict::Good })
}

fn read(directory: &Path, only: Option<u16>) -> Result<Report, ToolError> {
    let shards = directory::shards_path(directory);
    let path = |shard: u16| shards.join(directory::shard_file(ShardIndex(shard)));
    std::fs::read_dir(directory).map_err(file_error(directory, "read the directory"))?;
    if !path(0).exists() {
        return Err(ToolError::NoStore { directory: directory.to_owned() });
    }
    let shard_count = header(&path(0))?.identity.geometry.shard_count;
    if let Some(wanted) = only.filter(|wanted| *wanted >= shard_count) {
        return Err(ToolError::NoShard { directory: directory.to_owned(), wanted, shard_count });
    }
    let indexes = only.map_or(0..shard_count, |shard| shard..shard + 1);
    let shards = indexes.map(|shard| shard_report(path(shard))).collect::<Result<_, _>>()?;
    Ok(Report { directory: directory.to_owned(), in_use_by: in_use_by(directory), shards })
}

fn header(path: &Path) -> Result<Inspection, ToolError> {
    Ok(directory::inspect(path).map_err(file_error(path, "read"))??)
}

fn shard_report(file: PathBuf) -> Result<ShardReport, ToolError> {
    let found = header(&file)?;
    let here = host(file.parent().unwrap_or(&file));
    let slots = here.and_then(|here| count(&file, &found, found.state.is_cut_off(here)));
    let slots = slots.map_err(file_error(&file, "read"))?;
    let (identity, state) = (found.identity, found.state);
    Ok(ShardReport {
        shard: identity.shard.0,
        file,
        file_bytes: found.file_size,
        store_id: identity.store_id,
        shard_count: identity.geometry.shard_count,
        key_size: identity.geometry.key_size_max,
        value_size: identity.geometry.value_size_max,
        shard_prefix_bits: identity.geometry.prefix_bits(),
        hash_tags: identity.geometry.has_hash_tags(),
        slot_stride: identity.geometry.slot_stride(),
        slots_formatted: state.slots_formatted,
        clean_seq: state.clean_seq.map(|seq| seq.0),
        boot_id: uuid::Uuid::from_bytes(state.boot_id),
        place_id: state.place_id,
        role: if state.leads(&found.progress) { Role::Leads } else { Role::Follows },
        lineage: state.lineage,
        progress: found.progress,
        slots,
    })
}

/// Reads every formatted slot as opening the file would: a slot whose write was cut off has what the redo
/// place holds for it, and after a power cut one that was never durable is free if it is not whole. Else a file that
/// ends early has its missing slots counted as damaged.
fn count(path: &Path, found: &Inspection, is_cut_off: bool) -> io::Result<Counts> {
    const CHUNK_SLOTS: u32 = 1024;
    let (geometry, shard) = (found.identity.geometry, found.identity.shard);
    let (stride, formatted) = (geometry.slot_stride(), found.state.slots_formatted);
    let mut file = File::open(path)?;
    let mut redo = vec![0; slots_offset(&geometry) - REDO_OFFSET];
    file.seek(SeekFrom::Start(REDO_OFFSET as u64))?;
    file.read_exact(&mut redo)?;
    let redo = redo_record(&geometry, shard, &redo);
    let mut counts = Counts::default();
    let mut chunk = Vec::new();
    let mut first = 0;
    while first < formatted {
        let wanted = CHUNK_SLOTS.min(formatted - first);
        chunk.clear();
        (&mut file).take(u64::from(wanted) * stride as u64).read_to_end(&mut chunk)?;
        let mut slots = chunk.chunks_exact(stride);
        for slot in first..first + wanted {
            let view =
                slots.next().and_then(|bytes| SlotView::check(&geometry, shard, SlotIndex(slot), bytes).ok());
            let redo = redo.filter(|(cut, _)| cut.0 == slot).map(|(_, redo)| redo);
            let newer = redo.filter(|redo| view.is_none_or(|view| view.seq() < redo.seq()));
            let Some(view) = newer.or(view) else {
                let was_durable = !is_cut_off || slot < found.state.slots_durable;
                *(if was_durable { &mut counts.damaged } else { &mut counts.free }) += 1;
                continue;
            };
            counts.seq_max = counts.seq_max.max(view.seq().0);
            match view.status() {
                Status::Free => counts.free += 1,
                Status::Deleted => counts.deleted += 1,
                Status::Occupied => {
                    counts.occupied += 1;
                    counts.expiring += u64::from(view.expire_at() != 0);
                }
            }
        }
        first += wanted;
    }
    Ok(counts)
}

/// The record in the redo place, if it is whole.
fn redo_record<'a>(
    geometry: &Geometry,
    shard: ShardIndex,
    place: &'a [u8],
) -> Option<(SlotIndex, SlotView<'a>)> {
    let (header, rest) = place.split_at_checked(RECORD_HEADER_SIZE)?;
    let image = rest.get(..read_u32(header, 4) as usize)?;
    let slot = SlotIndex(read_u32(header, 0));
    Some((slot, SlotView::check(geometry, shard, slot, image).ok()?))
}

/// Who holds the directory's lock, without taking it: a node that starts now must not find it taken.
fn in_use_by(directory: &Path) -> Option<u32> {
    let inode = std::fs::metadata(directory.join("LOCK")).ok()?.st_ino().to_string();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (kind, _, _, pid, file) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        (kind == "FLOCK" && file.rsplit(':').next() == Some(inode.as_str())).then(|| pid.parse().ok())?
    })
}

fn print_text(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let Some(first) = report.shards.first() else { return Ok(()) };
    writeln!(out, "{}", report.directory.display())?;
    match report.in_use_by {
        Some(pid) => writeln!(out, "  in use by process {pid}: figures change while they are read")?,
        None => writeln!(out, "  not in use")?,
    }
    writeln!(out, "  store {}, {} shards", first.store_id, first.shard_count)?;
    writeln!(
        out,
        "  keys to {} bytes, values to {}, slots of {}, shards by {}",
        first.key_size,
        first.value_size,
        first.slot_stride,
        match (first.hash_tags, first.shard_prefix_bits) {
            (true, _) => "hash tag".to_owned(),
            (false, 0) => "whole key".to_owned(),
            (false, bits) => format!("the first {bits} bits"),
        }
    )?;
    for shard in &report.shards {
        let slots = &shard.slots;
        writeln!(out, "shard {}  {}", shard.shard, shard.file.display())?;
        writeln!(
            out,
            "  {} in {} slots: {} occupied ({} expiring), {} deleted, {} free, {} damaged",
            units::bytes(shard.file_bytes),
            units::count(shard.slots_formatted.into()),
            units::count(slots.occupied),
            units::count(slots.expiring),
            units::count(slots.deleted),
            units::count(slots.free),
            units::count(slots.damaged)
        )?;
        let close = shard.clean_seq.map_or("not closed in an orderly way (or open)".to_owned(), |seq| {
            format!("closed in an orderly way at seq {seq}")
        });
        writeln!(out, "  seq {}, {close}", slots.seq_max)?;
        let terms: Vec<String> =
            shard.lineage.iter().map(|term| format!("{} from seq {}", term.epoch, term.first_seq)).collect();
        writeln!(out, "  epochs: {}", terms.join(", "))?;
        writeln!(out, "  last opened on boot {}, place {:#x}", shard.boot_id, shard.place_id)?;
        if shard.role == Role::Follows {
            let state =
                if shard.progress.is_consistent() { "consistent" } else { "inside a scan, not consistent" };
            writeln!(
                out,
                "  follows: epoch {}, watermark {}, {state}",
                shard.progress.epoch, shard.progress.seq
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::inspect::verify;
    use crate::store::{Options, Store};

    #[test]
    fn inspect_and_verify_count_the_same_slots_as_damaged() {
        let directory = tempfile::tempdir().expect("temp dir");
        let geometry =
            Geometry { shard_count: 1, key_size_max: 16, value_size_max: 16, shard_prefix_bits: 0 };
        let store = Store::open(directory.path(), Options::create(geometry)).expect("opens");
        for key in [b"a", b"b", b"c"] {
            store.put(key, b"value").expect("put");
        }
        store.close().expect("closes");
        drop(store);
        let path = directory::shards_path(directory.path()).join(directory::shard_file(ShardIndex(0)));
        let file = File::options().read(true).write(true).open(path).expect("opens");
        let mut last = [0; 4];
        file.read_exact_at(&mut last, REDO_OFFSET as u64).expect("read");
        let damage = |slot: u32| {
            let offset = slots_offset(&geometry) + slot as usize * geometry.slot_stride();
            file.write_all_at(&[0; 8], offset as u64 + 4).expect("written");
        };
        let counted = || {
            let report = read(directory.path(), None).expect("read");
            let mut text = Vec::new();
            let verdict = verify::check(directory.path(), true, &mut text).expect("checked");
            let check: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
            let found = report.shards[0].slots.damaged;
            assert_eq!(check["damaged_count"], found);
            assert_eq!(check["records"], report.shards[0].slots.occupied);
            assert_eq!(verdict == Verdict::Good, found == 0);
            found
        };
        assert_eq!(counted(), 0);
        // The last write, cut off: the redo place has it whole.
        let last = u32::from_le_bytes(last);
        damage(last);
        assert_eq!(counted(), 0);
        damage((last + 1) % 3);
        assert_eq!(counted(), 1);
    }
}
