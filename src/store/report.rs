//! Reports of dropped writes: JSON lines in the data directory, one file per rewind and shard.
//!
//! A report tells what slots held. So a dropped deletion is in it as long as the slot still tells of it, and not
//! if the slot was used again since: then the key is back, and only the newer write is said to be dropped.
//!
//! A report is written and made durable under a name of its own before the rewind is noted, and takes
//! its final name after that; so a rewind that is cut off anywhere leaves one report, and never two.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::Serialize;

use crate::slot::{KeyValueText, ShardIndex, SlotIndex, SlotView, Status};

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

fn unfinished(shard: ShardIndex) -> String {
    format!("dropped-{:04}.unfinished", shard.0)
}

impl Reports {
    /// Writes an unfinished report and makes it durable; `fill` writes the lines.
    pub(super) fn write(
        &self,
        shard: ShardIndex,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let name = unfinished(shard);
        match self {
            Self::Directory(path) => {
                let mut file = BufWriter::new(File::create(path.join(name))?);
                fill(&mut file)?;
                file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
                directory::sync(path)
            }
            Self::Memory(reports) => {
                let mut bytes = Vec::new();
                fill(&mut bytes)?;
                reports.lock().insert(name, bytes);
                Ok(())
            }
        }
    }

    /// Of a store in memory: its reports, to go on separately.
    pub(super) fn copy(&self) -> Self {
        match self {
            Self::Directory(path) => Self::Directory(path.clone()),
            Self::Memory(reports) => Self::Memory(Mutex::new(reports.lock().clone())),
        }
    }

    /// Forgets the shard's unfinished report.
    pub(super) fn discard(&self, shard: ShardIndex) -> io::Result<()> {
        let name = unfinished(shard);
        match self {
            Self::Directory(path) => match fs::remove_file(path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            },
            Self::Memory(reports) => {
                reports.lock().remove(&name);
            }
        }
        Ok(())
    }

    /// Gives the shard's unfinished report, if there is one, its final name: `stem`, and a number if
    /// that is taken.
    pub(super) fn publish(&self, shard: ShardIndex, stem: &str) -> io::Result<Option<String>> {
        let unfinished = unfinished(shard);
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
