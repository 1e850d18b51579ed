//! `slotstream tail`: prints what changes on a node, through XREAD on its Redis port.
//!
//! A position is the id of the last change of each shard. It is kept in a file after the lines are out, so that
//! whoever is killed prints some lines again and leaves none out. When the node goes away, it is asked again.
//! [`listen`] and [`push`] give the same lines to other programs over TCP.

pub mod listen;
mod peer;
pub mod push;
pub mod token;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::ask::{AskError, Asked};
use super::redis::Reply;
use crate::slot::KeyValueText;
use crate::stop::Stop;
use crate::store::ChangeId;
use crate::store::directory::{FileError, file_error};
use crate::store::feed::NoChangeId;

const TIMEOUT: Duration = Duration::from_secs(10);
/// How long one question waits at the node: how late a stop signal may be heard.
const BLOCK_MS: &str = "500";
const COUNT: &str = "1000";
/// Between attempts to reach a node that went away.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// What to print.
#[derive(Debug, Clone)]
pub struct Tail {
    /// Redis address.
    pub node: String,
    /// `None`: all.
    pub shards: Option<Vec<u16>>,
    /// Where to begin.
    pub from: Start,
    /// Where the position is kept.
    pub position_file: Option<PathBuf>,
    /// JSON lines.
    pub json: bool,
}

/// Where to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// With everything that is there.
    Start,
    /// With what changes from now on.
    Now,
    /// After these; shards that are not named from their start.
    After(Places),
}

/// The last change of each shard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Places(BTreeMap<u16, ChangeId>);

impl fmt::Display for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (shard, id)) in self.0.iter().enumerate() {
            write!(f, "{}{shard}:{id}", if index > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// The text is no position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no position; wanted start, now, or SHARD:TERM-SEQ of each shard, separated by commas")]
pub struct NoPosition {
    /// The part that is none.
    pub found: String,
}

impl FromStr for Start {
    type Err = NoPosition;

    fn from_str(text: &str) -> Result<Self, NoPosition> {
        let place = |part: &str| {
            let (shard, id) = part.split_once(':')?;
            Some((shard.parse().ok()?, id.parse().ok()?))
        };
        match text.trim() {
            "start" => Ok(Self::Start),
            "now" => Ok(Self::Now),
            text => {
                let wrong = |part: &str| NoPosition { found: part.chars().take(64).collect() };
                let places = text.split(',').map(|part| place(part).ok_or_else(|| wrong(part)));
                Ok(Self::After(Places(places.collect::<Result<_, _>>()?)))
            }
        }
    }
}

/// Why nothing more is printed.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// No position.
    #[error(transparent)]
    Position(#[from] NoPosition),
    /// The node does not answer, or refuses.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// What it answers is no reply to what it was asked.
    #[error("{node}: wanted {wanted}, found {found}")]
    Answer {
        /// The node.
        node: String,
        /// What a node answers.
        wanted: &'static str,
        /// What came.
        found: String,
    },
    /// The position file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The position file holds something else.
    #[error("{path}: {error}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: NoPosition,
    },
    /// Readers cannot be served there.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The lines cannot be written.
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
}

/// Prints changes until `stop` is set.
pub fn run(tail: &Tail, stop: &Stop, out: &mut impl Write) -> Result<(), TailError> {
    let mut out = BufWriter::with_capacity(64 << 10, out);
    let from = match &tail.position_file {
        Some(path) => read_position(path)?.unwrap_or_else(|| tail.from.clone()),
        None => tail.from.clone(),
    };
    let mut node = Asked::new(&tail.node, TIMEOUT)?;
    let mut places = begin(tail, &mut node, from)?;
    if let Some(path) = &tail.position_file {
        write_position(path, &places)?;
    }
    while !stop.is_set() {
        match read(tail, &mut node, &mut places, &mut out) {
            Ok(()) => {}
            Err(TailError::Ask(AskError::Io { address, error })) => {
                complain(&format!("{address}: {error}; trying again"));
                match connect(tail, stop) {
                    Some(again) => node = again,
                    None => break,
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(out.flush()?)
}

/// Where nobody takes it, the lines on standard output must do.
fn complain(line: &str) {
    drop(writeln!(io::stderr(), "slotstream: {line}"));
}

/// Connects again, however long that takes; `None` = told to stop.
fn connect(tail: &Tail, stop: &Stop) -> Option<Asked> {
    while !stop.is_set() {
        match Asked::new(&tail.node, TIMEOUT) {
            Ok(node) => return Some(node),
            Err(_) => {
                let until = Instant::now() + RETRY_INTERVAL;
                while !stop.is_set() && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }
    None
}

fn begin(tail: &Tail, node: &mut Asked, from: Start) -> Result<Places, TailError> {
    let shards = match (&tail.shards, node.info.shard_count) {
        (Some(shards), _) => shards.clone(),
        (None, Some(shard_count)) => (0..shard_count).collect(),
        (None, None) => return Err(odd(tail, "slotstream_shard_count in INFO", &"none")),
    };
    let mut places = match from {
        Start::Start => Places::default(),
        Start::After(places) => places,
        Start::Now => Places(
            shards
                .iter()
                .map(|shard| Ok((*shard, now(tail, node, *shard)?)))
                .collect::<Result<_, TailError>>()?,
        ),
    };
    places.0.retain(|shard, _| shards.contains(shard));
    for shard in shards {
        places.0.entry(shard).or_insert(ChangeId::START);
    }
    Ok(places)
}

fn odd(tail: &Tail, wanted: &'static str, found: &impl ToString) -> TailError {
    TailError::Answer { node: tail.node.clone(), wanted, found: found.to_string() }
}

/// The place behind all that a shard holds.
fn now(tail: &Tail, node: &mut Asked, shard: u16) -> Result<ChangeId, TailError> {
    let reply = node.call(&["XINFO", "STREAM", &format!("changes:{shard}")])?;
    let fields = fields(&reply).unwrap_or_default();
    let last = fields.get(b"last-generated-id".as_slice()).and_then(|id| parse_id(id).ok());
    last.ok_or_else(|| odd(tail, "last-generated-id of a stream", &reply))
}

fn parse_id(text: &[u8]) -> Result<ChangeId, NoChangeId> {
    String::from_utf8_lossy(text).parse()
}

/// Pairs of names and strings; others are left out.
fn fields(reply: &Reply) -> Option<BTreeMap<&[u8], &[u8]>> {
    let Reply::Array(Some(items)) = reply else { return None };
    let bulk = |reply| match reply {
        &Reply::Bulk(Some(ref bytes)) => Some(bytes.as_slice()),
        _ => None,
    };
    let pairs = items.as_chunks::<2>().0.iter();
    Some(pairs.filter_map(|[name, value]| Some((bulk(name)?, bulk(value)?))).collect())
}

/// Asks once, prints what comes, keeps the position.
fn read(tail: &Tail, node: &mut Asked, places: &mut Places, out: &mut impl Write) -> Result<(), TailError> {
    let names: Vec<String> = places.0.keys().map(|shard| format!("changes:{shard}")).collect();
    let ids: Vec<String> = places.0.values().map(ChangeId::to_string).collect();
    let mut words = vec!["XREAD", "COUNT", COUNT, "BLOCK", BLOCK_MS, "STREAMS"];
    words.extend(names.iter().chain(&ids).map(String::as_str));
    let reply = match node.call(&words) {
        Err(AskError::Refused { text, .. }) if let Some((shard, first_seq)) = lost(&text) => {
            push_reset(out, tail.json, shard, first_seq)?;
            places.0.insert(shard, ChangeId::START);
            return keep(tail, places, out);
        }
        reply => reply?,
    };
    let streams = match &reply {
        Reply::Array(Some(streams)) => streams,
        Reply::Array(None) => return Ok(()),
        _ => return Err(odd(tail, "streams", &reply)),
    };
    for stream in streams {
        print_stream(tail, stream, places, out).ok_or_else(|| odd(tail, "a stream of changes", stream))??;
    }
    keep(tail, places, out)
}

/// The lines first: what is printed twice is seen, what is left out is not.
fn keep(tail: &Tail, places: &Places, out: &mut impl Write) -> Result<(), TailError> {
    out.flush()?;
    match &tail.position_file {
        Some(path) => write_position(path, places),
        None => Ok(()),
    }
}

/// Shard and seq of `LOSTSEQ shard 2: a leader of epoch 3 took over at seq 91 without ...`.
fn lost(text: &str) -> Option<(u16, u64)> {
    let (shard, rest) = text.strip_prefix("LOSTSEQ shard ")?.split_once(':')?;
    let first_seq = rest.split_once("took over at seq ")?.1.split(' ').next()?;
    Some((shard.parse().ok()?, first_seq.parse().ok()?))
}

/// `None`: it is no stream of changes.
fn print_stream(
    tail: &Tail,
    stream: &Reply,
    places: &mut Places,
    out: &mut impl Write,
) -> Option<io::Result<()>> {
    let Reply::Array(Some(stream)) = stream else { return None };
    let [Reply::Bulk(Some(name)), Reply::Array(Some(entries))] = stream.as_slice() else { return None };
    let shard = String::from_utf8_lossy(name).strip_prefix("changes:")?.parse().ok()?;
    for entry in entries {
        let Reply::Array(Some(entry)) = entry else { return None };
        let [Reply::Bulk(Some(id)), entry] = entry.as_slice() else { return None };
        let id = parse_id(id).ok()?;
        let line = Line::new(shard, id, &fields(entry)?)?;
        if let Err(error) = line.push(out, tail.json) {
            return Some(Err(error));
        }
        places.0.insert(shard, id);
    }
    Some(Ok(()))
}

/// A change.
struct Line<'a> {
    shard: u16,
    id: ChangeId,
    slot: u32,
    key: &'a [u8],
    /// `None`: deleted.
    value: Option<&'a [u8]>,
    expire_at: Option<u64>,
}

/// A change as JSON.
#[derive(Serialize)]
struct JsonLine<'a> {
    shard: u16,
    id: String,
    slot: u32,
    op: &'static str,
    #[serde(flatten)]
    text: KeyValueText<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expire_at_unix_ms: Option<u64>,
}

impl<'a> Line<'a> {
    fn new(shard: u16, id: ChangeId, fields: &BTreeMap<&[u8], &'a [u8]>) -> Option<Self> {
        let number = |name: &[u8]| std::str::from_utf8(fields.get(name)?).ok()?.parse::<u64>().ok();
        let value = match *fields.get(b"op".as_slice())? {
            b"set" => Some(*fields.get(b"value".as_slice())?),
            b"delete" => None,
            _ => return None,
        };
        Some(Self {
            shard,
            id,
            slot: number(b"slot")?.try_into().ok()?,
            key: fields.get(b"key".as_slice())?,
            value,
            expire_at: number(b"expire_at"),
        })
    }

    fn op(&self) -> &'static str {
        if self.value.is_some() { "set" } else { "delete" }
    }

    fn push(&self, out: &mut impl Write, json: bool) -> io::Result<()> {
        let Self { shard, id, slot, key, value, expire_at } = self;
        if json {
            let line = JsonLine {
                shard: *shard,
                id: id.to_string(),
                slot: *slot,
                op: self.op(),
                text: KeyValueText::new(key, *value),
                expire_at_unix_ms: *expire_at,
            };
            serde_json::to_writer(&mut *out, &line)?;
        } else {
            write!(out, "{shard}:{id} slot {slot} {} \"{}\"", self.op(), key.escape_ascii())?;
            if let Some(value) = value {
                write!(out, " \"{}\"", value.escape_ascii())?;
            }
            if let Some(expire_at) = expire_at {
                write!(out, " expires at {expire_at}")?;
            }
        }
        out.write_all(b"\n")
    }
}

fn push_reset(out: &mut impl Write, json: bool, shard: u16, first_seq: u64) -> io::Result<()> {
    if json {
        writeln!(out, "{{\"shard\":{shard},\"op\":\"reset\",\"lost_from_seq\":{first_seq}}}")
    } else {
        writeln!(
            out,
            "{shard}: reset, what was read from seq {first_seq} on is lost; all of the shard comes again"
        )
    }
}

/// Where the lines that follow begin, for programs that get them over TCP.
fn push_begin(out: &mut impl Write, places: &Places) -> io::Result<()> {
    writeln!(out, "{{\"op\":\"begin\",\"position\":\"{places}\"}}")
}

fn read_position(path: &Path) -> Result<Option<Start>, TailError> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let position = text.parse().map_err(|error| TailError::Content { path: path.into(), error });
            position.map(Some)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_error(path, "read the position")(error).into()),
    }
}

/// A kill leaves the old position or the new one. A power cut may leave none: then `--from` decides.
fn write_position(path: &Path, places: &Places) -> Result<(), TailError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let written = fs::write(&new, format!("{places}\n")).and_then(|()| fs::rename(&new, path));
    Ok(written.map_err(file_error(path, "write the position"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_reads_as_it_is_written() {
        let text = "0:4294967297-12,3:0-0,7:8589934592-1";
        let Ok(Start::After(places)) = text.parse() else { panic!("no position") };
        assert_eq!(places.to_string(), text);
        assert_eq!("now\n".parse(), Ok(Start::Now));
        for wrong in
            ["", "0", "0:12", "0:0-12", "x:1-1", "0:1-1,", "0:1-1;1:1-1", "0:+1-1", "0:1-9223372036854775807"]
        {
            assert!(wrong.parse::<Start>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_lost_place_is_read_out_of_the_error() {
        let text = "LOSTSEQ shard 2: a leader of epoch 3 took over at seq 91 without seq 100 of epoch 1";
        assert_eq!(lost(text), Some((2, 91)));
        assert_eq!(lost("ERR shard 2: slot 3: damaged"), None);
    }
}
