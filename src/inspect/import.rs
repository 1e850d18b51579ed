//! `slotstream import`: rows of a file become records of a running leader, through its Redis port.
//!
//! What the leader refuses for its size, and what is no row, is told by name and the rest goes on; anything else that
//! goes wrong ends it, and says how many rows are in. To do it again is harmless: a row sets its key.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::Verdict;
use super::ask::{AskError, Asked};
use super::redis::{Client, Reply};
use crate::clock::{Clock, SystemClock};
use crate::rows::{self, Format, Item, Row, RowError, Source};
use crate::units;
use crate::watch::{Counts, Watch};

/// Standard input or output.
pub const DASH: &str = "-";
const TIMEOUT: Duration = Duration::from_secs(10);
/// A leader whose disk is slow lets writes wait.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Sent between two looks at replies. Two of these are under way; their replies fit into a socket's buffer, so that
/// neither side waits for the other for ever.
const BATCH_ROWS: usize = 512;
const BATCH_BYTES: usize = 256 << 10;
/// Refusals that are told one by one.
const NAMED_MAX: u64 = 10;

/// What to do.
#[derive(Debug, Clone)]
pub struct Import {
    /// The leader's Redis address.
    pub node: String,
    /// The file; `-` = standard input.
    pub path: PathBuf,
    /// `None`: what its name says.
    pub format: Option<Format>,
    /// Of a dump: the database whose rows are taken.
    pub database: u64,
}

/// Why not all of a file is in.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Nobody says what it is.
    #[error("{path}: its name does not say what it is; wanted --format json, csv or rdb")]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be opened.
    #[error("{path}: cannot open it: {error}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It is no such file, or damaged.
    #[error("{path}: {error}; {imported} rows are imported")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: RowError,
        /// Rows before that.
        imported: u64,
    },
    /// The node does not answer, or is none.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// It takes no writes.
    #[error("{node} follows; its leader is at {leader}")]
    Follower {
        /// The node.
        node: String,
        /// The Redis address of its leader.
        leader: String,
    },
    /// It went away.
    #[error("{node}: {error}; at least {imported} rows are imported")]
    Io {
        /// The node.
        node: String,
        /// What went wrong.
        error: io::Error,
        /// Rows that it has answered; what was under way may be in, too.
        imported: u64,
    },
    /// It takes no more.
    #[error("{node} answers: {text}; at least {imported} rows are imported")]
    Refused {
        /// The node.
        node: String,
        /// What it said.
        text: String,
        /// Rows that it took before it said so; what was under way may be in, too.
        imported: u64,
    },
    /// The figures cannot be written.
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
}

/// What became of a file's rows.
#[derive(Debug, Default)]
struct Figures {
    imported: u64,
    bytes: u64,
    expired: u64,
    /// By what they are.
    refused: BTreeMap<Cow<'static, str>, u64>,
}

impl Figures {
    /// Counts something that is not taken, and names the first ones.
    fn refuse(&mut self, key: &[u8], what: Cow<'static, str>, why: Option<&str>) {
        if self.refused.values().sum::<u64>() < NAMED_MAX {
            let shown = &key[..key.len().min(64)];
            let why = why.unwrap_or(&what);
            // Where nobody takes it, the counts at the end must do.
            drop(writeln!(io::stderr(), "slotstream: refused \"{}\": {why}", shown.escape_ascii()));
        }
        *self.refused.entry(what).or_default() += 1;
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "imported {} rows, {}", units::count(self.imported), units::bytes(self.bytes))?;
        if self.expired > 0 {
            write!(f, "; {} had expired", units::count(self.expired))?;
        }
        for (index, (what, count)) in self.refused.iter().enumerate() {
            write!(f, "{}{} {what}", if index == 0 { "; refused: " } else { ", " }, units::count(*count))?;
        }
        Ok(())
    }
}

/// Imports a file; bad if a part of it was refused.
pub fn run(import: &Import, out: &mut impl Write) -> Result<Verdict, ImportError> {
    let start = Instant::now();
    let path = &import.path;
    let is_stdin = path.as_os_str() == DASH;
    let format = import.format.or_else(|| Format::of(path));
    let format = format.ok_or_else(|| ImportError::Format { path: path.clone() })?;
    let asked = Asked::new(&import.node, TIMEOUT)?;
    if let Some(leader) = asked.info.follows {
        return Err(ImportError::Follower { node: import.node.clone(), leader });
    }
    let io_error = |error| ImportError::Io { node: import.node.clone(), error, imported: 0 };
    let client = Client::connect_within(asked.info.address, WRITE_TIMEOUT).map_err(io_error)?;
    let done = Arc::new(AtomicU64::new(0));
    let content = |error| ImportError::Content { path: path.clone(), error, imported: 0 };
    let (input, total): (Box<dyn Read>, u64) = if is_stdin {
        (Box::new(io::stdin().lock()), 0)
    } else {
        let (file, size, is_regular) = open(path)?;
        // A dump's checksum is at its end, and nothing of a damaged one is to be taken.
        if format == Format::Rdb && is_regular {
            rows::rdb::check(open(path)?.0).map_err(content)?;
        }
        (Box::new(file), size)
    };
    let input = Metered { input, done: Arc::clone(&done) };
    let source = rows::reader(format, input, import.database).map_err(content)?;
    let mut sender = Sender {
        import,
        client,
        figures: Figures::default(),
        batch: Batch::default(),
        under_way: Batch::default(),
    };
    let mut bar = Watch::new("import", "bytes");
    let sent = sender.send_all(source, |figures| {
        let (records, bytes) = (figures.imported, figures.bytes);
        bar.show(|| Counts { done: done.load(Relaxed), total, records, bytes });
    });
    bar.end();
    sent?;
    writeln!(out, "{}, in {:.1} s", sender.figures, start.elapsed().as_secs_f64())?;
    Ok(if sender.figures.refused.is_empty() { Verdict::Good } else { Verdict::Bad })
}

/// The file, its size, and whether it can be read twice.
fn open(path: &Path) -> Result<(File, u64, bool), ImportError> {
    let opened = File::open(path).and_then(|file| {
        let metadata = file.metadata()?;
        Ok((file, metadata.len(), metadata.is_file()))
    });
    opened.map_err(|error| ImportError::Open { path: path.to_owned(), error })
}

/// Counts what is read.
struct Metered<R> {
    input: R,
    done: Arc<AtomicU64>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(target)?;
        self.done.fetch_add(read as u64, Relaxed);
        Ok(read)
    }
}

/// Rows whose replies are due.
#[derive(Default)]
struct Batch {
    /// Their keys, one behind the other.
    keys: Vec<u8>,
    /// Where each key and each row ends: in `keys`, and in bytes of the batch.
    ends: Vec<(usize, usize)>,
    bytes: usize,
}

struct Sender<'a> {
    import: &'a Import,
    client: Client,
    figures: Figures,
    /// Being filled.
    batch: Batch,
    /// Sent before that.
    under_way: Batch,
}

impl Sender<'_> {
    fn send_all(
        &mut self,
        mut source: Box<dyn Source + '_>,
        mut show: impl FnMut(&Figures),
    ) -> Result<(), ImportError> {
        let clock = SystemClock::new();
        let mut now_ms = clock.unix_ms();
        loop {
            match source.next() {
                Ok(None) => break,
                Ok(Some(Item::Refused { key, what })) => self.figures.refuse(key, what, None),
                Ok(Some(Item::Row(row))) if row.expire_at_ms != 0 && row.expire_at_ms <= now_ms => {
                    self.figures.expired += 1;
                }
                Ok(Some(Item::Row(row))) => self.queue(row),
                Err(error) => {
                    // What was read before is good, and is counted when it is in.
                    self.flush()?;
                    self.flush()?;
                    let (path, imported) = (self.import.path.clone(), self.figures.imported);
                    return Err(ImportError::Content { path, error, imported });
                }
            }
            if self.batch.ends.len() >= BATCH_ROWS || self.batch.bytes >= BATCH_BYTES {
                self.flush()?;
                now_ms = clock.unix_ms();
                show(&self.figures);
            }
        }
        self.flush()?;
        self.flush()
    }

    fn queue(&mut self, row: Row<'_>) {
        let Row { key, value, expire_at_ms } = row;
        if expire_at_ms == 0 {
            self.client.queue(&[b"SET", key, value]);
        } else {
            self.client.queue(&[b"SET", key, value, b"PXAT", expire_at_ms.to_string().as_bytes()]);
        }
        let Batch { keys, ends, bytes } = &mut self.batch;
        keys.extend_from_slice(key);
        *bytes += key.len() + value.len();
        ends.push((keys.len(), *bytes));
    }

    /// Sends what is queued, and reads the replies to what was sent before that.
    fn flush(&mut self) -> Result<(), ImportError> {
        let sent = self.client.flush();
        sent.map_err(|error| self.io_error(error))?;
        let mut due = std::mem::replace(&mut self.under_way, std::mem::take(&mut self.batch));
        let mut start = (0, 0);
        for end in due.ends.drain(..) {
            let (key, bytes) = (&due.keys[start.0..end.0], end.1 - start.1);
            start = end;
            match self.client.reply().map_err(|error| self.io_error(error))? {
                Reply::Simple(_) => {
                    self.figures.imported += 1;
                    self.figures.bytes += bytes as u64;
                }
                Reply::Error(text) => match refusal(&text) {
                    Some(what) => self.figures.refuse(key, what.into(), Some(&text)),
                    None => return Err(self.refused(text)),
                },
                other => return Err(self.refused(other.to_string())),
            }
        }
        // Its memory is used again.
        due.keys.clear();
        due.bytes = 0;
        self.batch = due;
        Ok(())
    }

    fn io_error(&self, error: io::Error) -> ImportError {
        let error = match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(error.kind(), "closed the connection"),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
            }
            _ => error,
        };
        ImportError::Io { node: self.import.node.clone(), error, imported: self.figures.imported }
    }

    fn refused(&self, text: String) -> ImportError {
        ImportError::Refused { node: self.import.node.clone(), text, imported: self.figures.imported }
    }
}

/// What a row is that this store cannot hold; `None`: it is not the row's fault.
fn refusal(text: &str) -> Option<&'static str> {
    match text {
        _ if text.starts_with("ERR key is 0 bytes") => Some("empty key"),
        _ if text.starts_with("ERR key is ") => Some("key too large for this store"),
        _ if text.starts_with("ERR value is ") && text.contains("this store holds") => {
            Some("value too large for this store")
        }
        _ if text.starts_with("ERR invalid expire time") => Some("expiry out of range"),
        _ => None,
    }
}
