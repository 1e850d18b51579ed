//! Options about what survives a power cut, and what that may cost.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::store::{self, Options};
use crate::units;
use crate::wal::SEGMENT_SIZE_MIN;

const SEGMENT_SIZE_MAX: usize = 1 << 30;
const SEGMENTS_MIN: usize = 4;

/// When a write is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// When the system writes it back: a kill of the process loses nothing, a power cut what is recent.
    None,
    /// At most --durability-interval after it was answered.
    Interval,
    /// Before it is answered: writes that come together share one sync.
    Always,
}

/// What is made durable, and when.
#[derive(Debug, Clone, Args)]
pub struct Durability {
    /// What a power cut may take: what the system had not written back, the writes of one --durability-interval, or nothing that was answered
    #[arg(
        long,
        env = "SLOTSTREAM_DURABILITY",
        value_name = "LEVEL",
        default_value = "interval",
        ignore_case = true
    )]
    pub durability: Level,
    /// With --durability interval: how long after its reply a write may still be lost to a power cut
    #[arg(long, env = "SLOTSTREAM_DURABILITY_INTERVAL", value_name = "TIME", default_value = "100ms", value_parser = units::parse_duration)]
    pub durability_interval: Duration,
    /// What the write-ahead log may take on the disk; writes wait where it is full
    #[arg(long, env = "SLOTSTREAM_WAL_SIZE_MAX", value_name = "SIZE", default_value = "1GiB", value_parser = units::parse_size)]
    pub wal_size_max: usize,
    /// What checkpoints may write in a second, for slots to be durable without the log; more where the log is filling, and writes are slowed in its last quarter; 0 = all at once
    #[arg(long, env = "SLOTSTREAM_CHECKPOINT_RATE", value_name = "SIZE", default_value = "64MiB", value_parser = units::parse_size)]
    pub checkpoint_rate: usize,
    /// Size of one of the log's files; a log that has little to hold has smaller ones
    #[arg(long, env = "SLOTSTREAM_WAL_SEGMENT_SIZE", value_name = "SIZE", default_value = "16MiB", value_parser = units::parse_size)]
    pub wal_segment_size: usize,
}

impl Durability {
    /// What one option alone cannot know.
    pub(super) fn check(&self) -> Result<(), String> {
        let (segment, least) = (self.wal_segment_size, SEGMENT_SIZE_MIN as usize);
        if !(least..=SEGMENT_SIZE_MAX).contains(&segment) {
            return Err(format!(
                "--wal-segment-size is {segment} bytes, wanted {least} to {SEGMENT_SIZE_MAX}"
            ));
        }
        if self.wal_size_max < SEGMENTS_MIN * segment {
            return Err(format!(
                "--wal-size-max is {} bytes, wanted at least {SEGMENTS_MIN} files of --wal-segment-size ({segment})",
                self.wal_size_max
            ));
        }
        if self.durability_interval.is_zero() {
            return Err("--durability-interval is 0, wanted more".to_owned());
        }
        Ok(())
    }

    /// Options of a store with these.
    #[must_use]
    pub fn apply(&self, options: Options) -> Options {
        Options {
            durability: match self.durability {
                Level::None => store::Durability::None,
                Level::Interval => store::Durability::Interval(self.durability_interval),
                Level::Always => store::Durability::Always,
            },
            // The replies of a node's clients wait, and not its threads.
            calls_wait: false,
            log_size_max: self.wal_size_max as u64,
            log_segment_size: u32::try_from(self.wal_segment_size).unwrap_or(u32::MAX),
            ..options
        }
    }
}
