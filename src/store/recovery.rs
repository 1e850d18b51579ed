//! What a store's log does when the store is opened: after a power cut it puts the slots back, before anybody looks.
//!
//! What the last process left is told by the shards' headers and the log together. A log that was cut at its end
//! has nothing to say. One that was not, where this machine has been up since, was a killed process's: the page cache
//! has kept the slots, and they are made durable. Anything else is a power cut: every shard is put back to what the log
//! knows, and made durable. Only then the log begins anew: killed before, the next opening does the same again.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::region::Region;
use crate::shard::header::Identity;
use crate::shard::recover::Host;
use crate::shard::replay::{Healing, Logged};
use crate::slot::{Records, ShardIndex};
use crate::wal::{Frame, Kind, Log, LogError};

use super::ApplyError;
use super::open::OpenError;

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
}

fn senseless(frame: &Frame<'_>) -> ReplayError {
    ReplayError::Senseless { position: frame.position.to_string(), shard: frame.shard }
}

fn digest(log: &Log, shard_count: usize) -> Result<Digest, ReplayError> {
    let mut digest = Digest { first: vec![None; shard_count], frames: 0 };
    log.replay(|frame| {
        digest.frames += 1;
        let first = digest.first.get_mut(usize::from(frame.shard.0)).ok_or_else(|| senseless(&frame))?;
        if frame.kind == Kind::State && first.is_none() {
            *first = Some(Logged::decode(frame.payload).ok_or_else(|| senseless(&frame))?);
        }
        Ok::<_, ReplayError>(())
    })?;
    Ok(digest)
}

/// Where a store's bytes lie.
pub(super) trait Ground {
    /// For messages.
    fn path(&self, shard: ShardIndex) -> std::path::PathBuf;
    /// How each shard was left.
    fn left(&self, shard: ShardIndex) -> Option<Left>;
    /// A shard's memory.
    fn map(&mut self, shard: ShardIndex) -> Result<Region, OpenError>;
    /// A shard's memory back, as it is to be opened.
    fn unmap(&mut self, shard: ShardIndex, region: Region);
    /// Makes a shard's memory durable as it is.
    fn sync(&mut self, shard: ShardIndex) -> Result<(), OpenError>;
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
            for shard in shards() {
                ground.sync(shard)?;
            }
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
    log.begin_anew().map_err(|error| wrap(error.into()))?;
    Ok(log)
}

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
    let mut healings = Vec::new();
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
    let (mut records, mut said) = (0_u64, start);
    log.replay(|frame| {
        let healing = healings.get_mut(usize::from(frame.shard.0)).and_then(Option::as_mut);
        let healing = healing.ok_or_else(|| senseless(&frame))?;
        records += replay(healing, &identity, &frame)?;
        if said.elapsed() >= Duration::from_secs(1) {
            said = Instant::now();
            tracing::info!(records, position = %frame.position, "replaying the log");
        }
        Ok::<_, ReplayError>(())
    })?;
    let mut healed = 0;
    for (shard, healing) in (0..).map(ShardIndex).zip(healings) {
        let Some(healing) = healing else { continue };
        healed += healing.healed;
        let path = ground.path(shard);
        let io = |error: io::Error| OpenError::Io { path, action: "sync the file", error };
        let region = healing.finish().map_err(io)?;
        ground.unmap(shard, region);
    }
    tracing::warn!(
        records,
        healed,
        took = ?start.elapsed(),
        "the machine went down: what the log held is in its slots again"
    );
    Ok(())
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
    for record in Records::new(&identity.geometry, frame.payload) {
        let record = record.map_err(|_| senseless(frame))?;
        let failed = |error| ReplayError::Record { shard: frame.shard, error };
        healing.apply(record, is_forced).map_err(failed)?;
        count += 1;
    }
    Ok(count)
}
