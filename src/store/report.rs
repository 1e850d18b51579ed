//! Reports of dropped writes: JSON lines in the data directory, one file per rewind and shard.
//!
//! A report tells what slots held. So a dropped deletion is in it as long as the slot still tells of it, and not
//! if the slot was used again since: then the key is back, and only the newer write is said to be dropped.
//!
//! A report is written in pieces and made durable under a name of its own, which says above which seq it lies; then
//! the rewind to that seq is noted; then the report takes its final name. So a rewind that is cut off anywhere
//! leaves one report, and never two, and a part of one is never taken for the whole. The first line says what it is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::Serialize;

use crate::planted::{Bug, is_planted};
use crate::slot::{KeyValueText, Seq, ShardIndex, SlotIndex, SlotView, Status};

use super::directory;

/// Where reports go.
pub(super) enum Reports {
    Directory(PathBuf),
    /// Of a store in memory, by name.
    Memory(Mutex<BTreeMap<String, Vec<u8>>>),
}

/// A write that was dropped: what a slot held.
#[derive(Debug, Serialize)]
struct Dropped<'a> {
    shard: u16,
    slot: u32,
    seq: u64,
    /// The write deleted the key.
    deleted: bool,
    #[serde(flatten)]
    text: KeyValueText<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expire_at_unix_ms: Option<u64>,
    /// When it was dropped.
    dropped_at_unix_ms: u64,
}

/// Appends one dropped write as a line.
pub(super) fn push_line(
    out: &mut Vec<u8>,
    shard: ShardIndex,
    slot: SlotIndex,
    view: &SlotView<'_>,
    now_unix_ms: u64,
) {
    let deleted = view.status() != Status::Occupied;
    let dropped = Dropped {
        shard: shard.0,
        slot: slot.0,
        seq: view.seq().0,
        deleted,
        text: KeyValueText::new(view.key(), (!deleted).then(|| view.value())),
        expire_at_unix_ms: (view.expire_at() != 0).then_some(view.expire_at()),
        dropped_at_unix_ms: now_unix_ms,
    };
    serde_json::to_writer(&mut *out, &dropped).expect("memory takes it, and every field is text or a number");
    out.push(b'\n');
}

/// The first line.
#[derive(Debug, Serialize)]
struct Head<'a> {
    about: &'a str,
    shard: u16,
    /// The last seq that the leader shares.
    fork: u64,
    /// The newest term that the writes belong to.
    epoch: u64,
}

const ABOUT: &str = "what slots held above seq `fork`, dropped since the leader had lived through something else; a deletion \
                     whose slot was used again since is not told";

/// A report while it is written.
#[derive(Debug)]
pub(super) struct Draft {
    name: String,
    /// Of a store in memory: none.
    file: Option<File>,
    unsynced: usize,
}

/// Synced in so large parts that the last sync is a short one.
const UNSYNCED_MAX: usize = 4 << 20;

fn unfinished(shard: ShardIndex, fork: Seq) -> String {
    format!("dropped-{:04}-above-{fork}.unfinished", shard.0)
}

fn is_unfinished(name: &str, shard: ShardIndex) -> bool {
    name.starts_with(&format!("dropped-{:04}-above-", shard.0)) && name.ends_with(".unfinished")
}

impl Reports {
    /// Begins an unfinished report; one that was begun before is void.
    pub(super) fn begin(&self, shard: ShardIndex, fork: Seq, epoch: u64) -> io::Result<Draft> {
        if !is_planted(Bug::HalfReportKept) {
            self.discard(shard)?;
        }
        let name = unfinished(shard, fork);
        let file = match self {
            Self::Directory(path) => Some(File::create(path.join(&name))?),
            Self::Memory(_) => None,
        };
        let mut draft = Draft { name, file, unsynced: 0 };
        let head = Head { about: ABOUT, shard: shard.0, fork: fork.0, epoch };
        let mut line = serde_json::to_vec(&head).expect("every field is text or a number");
        line.push(b'\n');
        self.add(&mut draft, &line)?;
        Ok(draft)
    }

    /// Writes some lines.
    pub(super) fn add(&self, draft: &mut Draft, lines: &[u8]) -> io::Result<()> {
        match (self, &mut draft.file) {
            (Self::Memory(reports), _) => {
                reports.lock().entry(draft.name.clone()).or_default().extend_from_slice(lines);
            }
            (Self::Directory(_), Some(file)) => {
                file.write_all(lines)?;
                draft.unsynced += lines.len();
                if draft.unsynced >= UNSYNCED_MAX {
                    file.sync_data()?;
                    draft.unsynced = 0;
                }
            }
            (Self::Directory(_), None) => unreachable!("a draft in a directory is a file"),
        }
        Ok(())
    }

    /// All lines are written: makes them durable.
    pub(super) fn end(&self, draft: &Draft) -> io::Result<()> {
        if let (Self::Directory(path), Some(file)) = (self, &draft.file) {
            file.sync_all()?;
            directory::sync(path)?;
        }
        Ok(())
    }

    /// Of a store in memory: its reports, to go on separately.
    pub(super) fn copy(&self) -> Self {
        match self {
            Self::Directory(path) => Self::Directory(path.clone()),
            Self::Memory(reports) => Self::Memory(Mutex::new(reports.lock().clone())),
        }
    }

    /// Forgets the shard's unfinished reports.
    pub(super) fn discard(&self, shard: ShardIndex) -> io::Result<()> {
        match self {
            Self::Directory(path) => {
                for entry in fs::read_dir(path)? {
                    let entry = entry?;
                    if entry.file_name().to_str().is_some_and(|name| is_unfinished(name, shard)) {
                        fs::remove_file(entry.path())?;
                    }
                }
            }
            Self::Memory(reports) => reports.lock().retain(|name, _| !is_unfinished(name, shard)),
        }
        Ok(())
    }

    /// Gives the shard's unfinished report of what lies above `fork`, if there is one, its final name: `stem`, and a
    /// number if that is taken. The rewind to that seq is noted, so the report is whole.
    pub(super) fn publish(&self, shard: ShardIndex, fork: Seq, stem: &str) -> io::Result<Option<String>> {
        let unfinished = unfinished(shard, fork);
        match self {
            Self::Directory(path) => {
                if !path.join(&unfinished).exists() {
                    return Ok(None);
                }
                let name = free_name(stem, |name| path.join(name).exists());
                fs::rename(path.join(unfinished), path.join(&name))?;
                directory::sync(path)?;
                Ok(Some(name))
            }
            Self::Memory(reports) => {
                let mut reports = reports.lock();
                let Some(bytes) = reports.remove(&unfinished) else { return Ok(None) };
                let name = free_name(stem, |name| reports.contains_key(name));
                reports.insert(name.clone(), bytes);
                Ok(Some(name))
            }
        }
    }

    /// All finished reports, in order of their names.
    pub(super) fn read(&self) -> io::Result<Vec<(String, Vec<u8>)>> {
        match self {
            Self::Directory(path) => read_directory(path),
            Self::Memory(reports) => {
                let reports = reports.lock();
                let finished = reports.iter().filter(|(name, _)| is_report(name));
                Ok(finished.map(|(name, bytes)| (name.clone(), bytes.clone())).collect())
            }
        }
    }
}

fn is_report(name: &str) -> bool {
    name.starts_with("dropped-") && name.ends_with(".jsonl")
}

fn read_directory(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if let Some(name) = entry.file_name().to_str().filter(|name| is_report(name)) {
            found.push((name.to_owned(), fs::read(entry.path())?));
        }
    }
    found.sort();
    Ok(found)
}

fn free_name(stem: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let first = format!("{stem}.jsonl");
    if !is_taken(&first) {
        return first;
    }
    let numbered = (2_u64..).map(|number| format!("{stem}-{number}.jsonl"));
    numbered.into_iter().find(|name| !is_taken(name)).unwrap_or(first)
}
