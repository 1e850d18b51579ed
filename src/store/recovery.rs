//! What a store's log does when the store is opened: after a power cut it puts the slots back, before anybody looks.
//!
//! What the last process left is told by the shards' headers and the log together. A log that was cut at its end
//! has nothing to say. One that was not, where this machine has been up since, was a killed process's: the page cache
//! has kept the slots, and they are made durable. Anything else is a power cut: every shard is put back to what the log
//! knows, and made durable. Only then the log begins anew: killed before, the next opening does the same again.

use std::io;
use std::path::Path;
use std::time::Instant;

use crate::region::Region;
use crate::shard::header::Identity;
use crate::shard::recover::Host;
use crate::shard::replay::{Healing, Logged};
use crate::slot::{Records, ShardIndex};
use crate::wal::{Frame, Kind, Log, LogError, Position};

use super::ApplyError;
use super::open::OpenError;
use super::parallel::{Pulse, each};

/// Why a log was not replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The log itself.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A frame with a good checksum that makes no sense.
    #[error("the log at {position} has a frame of shard {shard} that no store has written")]
    Senseless {
        /// Its place, as segment and offset.
        position: String,
        /// The shard it names.
        shard: ShardIndex,
    },
    /// A record could not be put back.
    #[error("shard {shard}: {error}")]
    Record {
        /// Its shard.
        shard: ShardIndex,
        /// Why.
        error: ApplyError,
    },
}

/// How the last opener of a shard left it, as its header says; none if that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) is_closed: bool,
    pub(super) is_same_host: bool,
}

impl Left {
    pub(super) fn new(state: &crate::shard::header::State, host: Host) -> Self {
        let is_same_host = (state.boot_id, state.place_id) == (host.boot_id, host.place_id);
        Self { is_closed: state.clean_seq.is_some(), is_same_host }
    }
}

/// What a log says, in short.
struct Digest {
    /// First word on each shard.
    first: Vec<Option<Logged>>,
    frames: u64,
    /// The last frame that is whole without what was to follow it.
    whole: Option<Position>,
}

fn senseless(frame: &Frame<'_>) -> ReplayError {
    ReplayError::Senseless { position: frame.position.to_string(), shard: frame.shard }
}

fn digest(log: &Log, shard_count: usize) -> Result<Digest, ReplayError> {
    let mut digest = Digest { first: vec![None; shard_count], frames: 0, whole: None };
    let mut pulse = Pulse::default();
    log.replay(|frames| {
        digest.frames += frames.len() as u64;
        for frame in frames {
            if !frame.continues {
                digest.whole = Some(frame.position);
            }
            let first = digest.first.get_mut(usize::from(frame.shard.0)).ok_or_else(|| senseless(frame))?;
            if frame.kind == Kind::State && first.is_none() {
                *first = Some(Logged::decode(frame.payload).ok_or_else(|| senseless(frame))?);
            }
        }
        if pulse.is_due() {
            tracing::info!(frames = digest.frames, "reading the log");
        }
        Ok::<_, ReplayError>(())
    })?;
    Ok(digest)
}

/// Where a store's bytes lie.
pub(super) trait Ground: Sync {
    /// For messages.
    fn path(&self, shard: ShardIndex) -> std::path::PathBuf;
    /// How each shard was left.
    fn left(&self, shard: ShardIndex) -> Option<Left>;
    /// A shard's memory.
    fn map(&mut self, shard: ShardIndex) -> Result<Region, OpenError>;
    /// A shard's memory back, as it is to be opened.
    fn unmap(&mut self, shard: ShardIndex, region: Region);
    /// Makes a shard's memory durable as it is.
    fn sync(&self, shard: ShardIndex) -> Result<(), OpenError>;
    /// Threads to work on shards with. A simulator has one: what it does is in an order that its seed gives.
    fn threads(&self) -> usize;
}

/// Puts a store's slots back to what its log knows, where they may be older. The log begins anew.
pub(super) fn recover(ground: &mut dyn Ground, identity: Identity, mut log: Log) -> Result<Log, OpenError> {
    let path = ground.path(ShardIndex(0)).parent().unwrap_or(Path::new("")).to_path_buf();
    let wrap = |error: ReplayError| OpenError::Log { path: path.clone(), error };
    let shards = || (0..identity.geometry.shard_count).map(ShardIndex);
    let left: Vec<_> = shards().map(|shard| ground.left(shard)).collect();
    if left.iter().all(|left| left.is_some_and(|left| left.is_same_host)) {
        if left.iter().any(|left| left.is_some_and(|left| !left.is_closed)) {
            // A killed process: the slots have everything, the log perhaps not. From here on they are durable.
            let sync = |shard| ground.sync(shard);
            let said = |done| tracing::info!(done, of = left.len(), "syncing what a killed process has left");
            each(ground.threads(), shards(), sync, said).into_iter().collect::<Result<(), _>>()?;
        }
    } else {
        let digest = digest(&log, left.len()).map_err(wrap)?;
        if digest.frames > 0 {
            heal(ground, identity, &log, digest).map_err(|error| match error {
                HealError::Open(error) => error,
                HealError::Replay(error) => wrap(error),
            })?;
        }
    }
    match log.begin_anew() {
        // It begins when there is space; until then nothing is written.
        Err(LogError::NoSpace { .. }) => Ok(log),
        begun => begun.map(|()| log).map_err(|error| wrap(error.into())),
    }
}

/// Records whose slots are asked for ahead.
const AHEAD: usize = 16;

enum HealError {
    Open(OpenError),
    Replay(ReplayError),
}

impl From<ReplayError> for HealError {
    fn from(error: ReplayError) -> Self {
        Self::Replay(error)
    }
}

impl From<OpenError> for HealError {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

impl From<LogError> for HealError {
    fn from(error: LogError) -> Self {
        Self::Replay(error.into())
    }
}

fn heal(ground: &mut dyn Ground, identity: Identity, log: &Log, digest: Digest) -> Result<(), HealError> {
    let start = Instant::now();
    let threads = ground.threads();
    let mut healings = Vec::new();
    let whole = digest.whole;
    for (shard, first) in (0..identity.geometry.shard_count).map(ShardIndex).zip(digest.first) {
        let Some(first) = first else {
            healings.push(None);
            continue;
        };
        let region = ground.map(shard)?;
        let path = ground.path(shard);
        let healing = Healing::begin(&path, region, Identity { shard, ..identity }, first);
        healings.push(Some(healing.map_err(OpenError::from)?));
    }
    each(threads, healings.iter().flatten(), Healing::read_ahead, |done| {
        tracing::info!(done, of = healings.len(), "reading shards");
    });
    let (mut records, mut bytes, mut pulse) = (0_u64, 0, Pulse::default());
    log.replay(|frames| {
        // The first half of a change that was never durable as a whole is none.
        let frames = &frames[..frames.partition_point(|frame| Some(frame.position) <= whole)];
        bytes += frames.iter().map(|frame| frame.payload.len()).sum::<usize>();
        records += replay_segment(&mut healings, threads, &identity, frames)?;
        if let Some(frame) = frames.last().filter(|_| pulse.is_due()) {
            tracing::info!(records, bytes, position = %frame.position, "replaying the log");
        }
        Ok::<_, ReplayError>(())
    })?;
    let replayed = start.elapsed();
    let healed: u64 = healings.iter().flatten().map(|healing| healing.healed).sum();
    let (shards, of): (Vec<_>, _) =
        ((0..).map(ShardIndex).zip(healings).collect(), identity.geometry.shard_count);
    let finish = |(shard, healing): (ShardIndex, Option<Healing>)| Some((shard, healing?.finish()));
    let said = |done| tracing::info!(done, of, "syncing what was replayed");
    for (shard, region) in each(threads, shards, finish, said).into_iter().flatten() {
        let path = ground.path(shard);
        let io = |error: io::Error| OpenError::Io { path, action: "sync the file", error };
        ground.unmap(shard, region.map_err(io)?);
    }
    tracing::warn!(
        records,
        bytes,
        healed,
        replayed_ms = u64::try_from(replayed.as_millis()).unwrap_or(u64::MAX),
        took = ?start.elapsed(),
        "the machine went down: what the log held is in its slots again"
    );
    Ok(())
}

/// Puts the records of a segment back, several shards at a time and each one's in their order; says how many they were.
fn replay_segment(
    healings: &mut [Option<Healing>],
    threads: usize,
    identity: &Identity,
    frames: &[Frame<'_>],
) -> Result<u64, ReplayError> {
    let mut of_shards = vec![Vec::new(); healings.len()];
    for frame in frames {
        of_shards.get_mut(usize::from(frame.shard.0)).ok_or_else(|| senseless(frame))?.push(frame);
    }
    let busy = healings.iter_mut().zip(of_shards).filter(|(_, frames)| !frames.is_empty());
    let work = |(healing, frames): (&mut Option<Healing>, Vec<&Frame<'_>>)| {
        let mut count = 0;
        for frame in frames {
            count += replay(healing.as_mut().ok_or_else(|| senseless(frame))?, identity, frame)?;
        }
        Ok(count)
    };
    each(threads, busy, work, |_| {}).into_iter().sum()
}

/// Puts one frame's records back; says how many they were.
fn replay(healing: &mut Healing, identity: &Identity, frame: &Frame<'_>) -> Result<u64, ReplayError> {
    let is_forced = match frame.kind {
        Kind::State => {
            healing.note(Logged::decode(frame.payload).ok_or_else(|| senseless(frame))?);
            return Ok(0);
        }
        Kind::Records => false,
        Kind::Forced => true,
        Kind::End => return Ok(0),
    };
    let mut count = 0;
    let records = || Records::new(&identity.geometry, frame.payload);
    // Slots are anywhere: some records ahead they are on their way from memory.
    let mut ahead = records().flatten();
    ahead.by_ref().take(AHEAD).for_each(|record| healing.prefetch(record.slot));
    for record in records() {
        let record = record.map_err(|_| senseless(frame))?;
        if let Some(next) = ahead.next() {
            healing.prefetch(next.slot);
        }
        let failed = |error| ReplayError::Record { shard: frame.shard, error };
        healing.apply(record, is_forced).map_err(failed)?;
        count += 1;
    }
    Ok(count)
}
