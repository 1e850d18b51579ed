//! `slotstream export`: a running node's records as rows of a file, through its Redis port.
//!
//! Always true: a key is in a file once, with a value and an expiry that it had together while the export ran; a key
//! that was there all the time is in it, unless its slot is damaged: then the slot is named, and the verdict is bad. A
//! file takes its name when it is whole.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_128;

use super::Verdict;
use super::ask::{AskError, Asked};
use super::import::DASH;
use super::redis::Reply;
use crate::rows::{self, Format, Row, Target};
use crate::store::directory::{FileError, file_error};
use crate::units;
use crate::watch::{Counts, Watch};

const TIMEOUT: Duration = Duration::from_secs(60);
/// Records per question.
const COUNT: &str = "5000";

/// What to do.
#[derive(Debug, Clone)]
pub struct Export {
    /// A Redis address.
    pub node: String,
    /// The file; `-` = standard output.
    pub path: PathBuf,
    /// `None`: what its name says.
    pub format: Option<Format>,
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Nobody says what it is to be.
    #[error("{path}: its name does not say what it is to be; wanted --format json, csv or rdb")]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// The node does not answer, or refuses.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// What it answers is no reply to what it was asked.
    #[error("{node}: wanted rows, found {found}")]
    Answer {
        /// The node.
        node: String,
        /// What came.
        found: String,
    },
    /// The file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Nobody takes the rows, or the figures.
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
}

/// Damaged slots that are named one by one.
const NAMED_MAX: u64 = 10;

/// Exports a node's records; bad if some cannot be read.
pub fn run(export: &Export, out: &mut impl Write) -> Result<Verdict, ExportError> {
    let path = &export.path;
    let format = export.format.or_else(|| Format::of(path));
    let format = format.ok_or_else(|| ExportError::Format { path: path.clone() })?;
    let mut node = Asked::new(&export.node, TIMEOUT)?;
    if path.as_os_str() == DASH {
        let figures = walk(export, &mut node, &mut *rows::writer(format, &mut *out)?, ExportError::Write)?;
        // Standard output holds the rows.
        complain(&figures.to_string());
        return Ok(figures.verdict());
    }
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    let written = write_file(export, &mut node, format, &unfinished).and_then(|figures| {
        fs::rename(&unfinished, path).map_err(file_error(path, "move it into place"))?;
        Ok(figures)
    });
    if written.is_err() {
        // Give the space back; the first error is the one to report.
        drop(fs::remove_file(&unfinished));
    }
    let figures = written?;
    writeln!(out, "{figures}")?;
    Ok(figures.verdict())
}

/// Where nobody takes it, the exit code must do.
fn complain(line: &str) {
    drop(writeln!(io::stderr(), "{line}"));
}

/// What an export came to.
struct Figures {
    records: u64,
    bytes: u64,
    damaged: u64,
    took: Duration,
}

impl Figures {
    fn verdict(&self) -> Verdict {
        if self.damaged == 0 { Verdict::Good } else { Verdict::Bad }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (records, bytes) = (units::count(self.records), units::bytes(self.bytes));
        write!(f, "exported {records} rows, {bytes}, in {:.1} s", self.took.as_secs_f64())?;
        match self.damaged {
            0 => Ok(()),
            slots => write!(f, "; damaged slots, whose records are not among them: {}", units::count(slots)),
        }
    }
}

fn write_file(
    export: &Export,
    node: &mut Asked,
    format: Format,
    path: &Path,
) -> Result<Figures, ExportError> {
    let file = File::create(path).map_err(file_error(path, "create it"))?;
    let target = rows::writer(format, &file).map_err(file_error(path, "write to it"));
    let figures = walk(export, node, &mut *target?, |error| file_error(path, "write to it")(error).into())?;
    file.sync_all().map_err(file_error(path, "sync it"))?;
    Ok(figures)
}

/// Writes all rows.
fn walk(
    export: &Export,
    node: &mut Asked,
    target: &mut dyn Target,
    failed: impl Fn(io::Error) -> ExportError,
) -> Result<Figures, ExportError> {
    let start = Instant::now();
    let mut bar = Watch::new("export", "records");
    let total = match node.call(&["DBSIZE"])? {
        Reply::Integer(records) => u64::try_from(records).unwrap_or(0),
        _ => 0,
    };
    let mut cursor = "0".to_owned();
    let (mut records, mut bytes, mut damaged) = (0, 0, 0);
    // A key that is deleted and set again while the export runs may come twice, and a dump must not hold it twice. It
    // stays in its shard, so that one shard's keys are all there is to remember.
    let (mut seen, mut shard) = (HashSet::new(), String::new());
    loop {
        let reply = node.call(&["SLOTSTREAM.EXPORT", &cursor, "COUNT", COUNT])?;
        let answer = || ExportError::Answer { node: export.node.clone(), found: reply.to_string() };
        let page = Page::read(&reply).ok_or_else(answer)?;
        if page.shard != shard {
            seen.clear();
            page.shard.clone_into(&mut shard);
        }
        for row in page.rows() {
            let row = row.ok_or_else(answer)?;
            if seen.insert(xxh3_128(row.key)) {
                target.push(row).map_err(&failed)?;
                records += 1;
                bytes += (row.key.len() + row.value.len()) as u64;
            }
        }
        for slot in page.damaged() {
            damaged += 1;
            if damaged <= NAMED_MAX {
                let slot = slot.ok_or_else(answer)?;
                complain(&format!("slotstream: shard {shard}: slot {slot} is damaged, and left out"));
            }
        }
        bar.show(|| Counts { done: records, total, records, bytes });
        if page.next == "0" {
            break;
        }
        cursor = page.next.to_owned();
    }
    target.finish().map_err(failed)?;
    bar.end();
    Ok(Figures { records, bytes, damaged, took: start.elapsed() })
}

/// A reply: where to go on, the shard that the rows are of, rows (key, value, expiry, key...), and damaged slots.
struct Page<'a> {
    next: &'a str,
    shard: &'a str,
    fields: &'a [Reply],
    damaged: &'a [Reply],
}

impl<'a> Page<'a> {
    fn read(reply: &'a Reply) -> Option<Self> {
        let Reply::Array(Some(parts)) = reply else { return None };
        let [Reply::Bulk(Some(next)), Reply::Bulk(Some(shard)), Reply::Array(Some(fields)), rest @ ..] =
            parts.as_slice()
        else {
            return None;
        };
        // An earlier version ends at a damaged slot, and names none.
        let damaged = match rest {
            [] => &[][..],
            [Reply::Array(Some(damaged))] => damaged,
            _ => return None,
        };
        let is_whole = fields.len().is_multiple_of(3);
        let text = |bytes: &'a [u8]| std::str::from_utf8(bytes).ok();
        is_whole.then_some(Self { next: text(next)?, shard: text(shard)?, fields, damaged })
    }

    fn damaged(&self) -> impl Iterator<Item = Option<&'a str>> {
        self.damaged.iter().map(|slot| match slot {
            Reply::Bulk(Some(slot)) => std::str::from_utf8(slot).ok(),
            _ => None,
        })
    }

    fn rows(&self) -> impl Iterator<Item = Option<Row<'a>>> {
        let rows = self.fields.as_chunks::<3>().0.iter();
        rows.map(|fields| match fields {
            [Reply::Bulk(Some(key)), Reply::Bulk(Some(value)), Reply::Bulk(Some(expiry))] => {
                let expire_at_ms = std::str::from_utf8(expiry).ok()?.parse().ok()?;
                Some(Row { key, value, expire_at_ms })
            }
            _ => None,
        })
    }
}
