//! Options about what replication is asked to guarantee, and what it may cost.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::links::Level;
use crate::resp::Demands;
use crate::units;

/// How sure a write is to be before it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SyncLevel {
    /// Nothing: the leader's own memory is enough.
    None,
    /// Received it.
    Received,
    /// Applied it: they serve it to readers.
    Applied,
}

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum YesNo {
    /// Serve what is there.
    #[value(alias = "true")]
    Yes,
    /// Answer MASTERDOWN.
    #[value(alias = "false")]
    No,
}

/// What replication is asked for.
#[derive(Debug, Clone, Args)]
pub struct Replication {
    /// Refuse a write (NOREPLICAS) where fewer followers than this are near; 0 is none
    #[arg(long, env = "SLOTSTREAM_MIN_FOLLOWERS_TO_WRITE", value_name = "N", default_value_t = 0)]
    pub min_followers_to_write: u16,
    /// How far behind a follower may be that counts for --min-followers-to-write
    #[arg(long, env = "SLOTSTREAM_MIN_FOLLOWERS_MAX_LAG", value_name = "TIME", default_value = "10s", value_parser = units::parse_duration)]
    pub min_followers_max_lag: Duration,
    /// What followers must have done with a write before its reply is sent
    #[arg(
        long,
        env = "SLOTSTREAM_SYNC_LEVEL",
        value_name = "LEVEL",
        default_value = "none",
        ignore_case = true
    )]
    pub sync_level: SyncLevel,
    /// How many followers must have done that
    #[arg(long, env = "SLOTSTREAM_SYNC_FOLLOWERS", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub sync_followers: u16,
    /// If they have not by then, the reply is an error (NOREPLICAS) and the write stays
    #[arg(long, env = "SLOTSTREAM_SYNC_TIMEOUT", value_name = "TIME", default_value = "1s", value_parser = units::parse_duration)]
    pub sync_timeout: Duration,
    /// What a follower's readers get of a shard that a scan is still filling
    #[arg(
        long,
        env = "SLOTSTREAM_READS_WHILE_SYNCING",
        value_name = "YES_NO",
        default_value = "yes",
        ignore_case = true
    )]
    pub reads_while_syncing: YesNo,
    /// After an OS crash: how long a leader waits for followers that may have its last writes, before it takes new ones; up to ten times as long while they send; `off` = not at all
    #[arg(long, env = "SLOTSTREAM_RECOVER_FROM_FOLLOWERS", value_name = "TIME", default_value = "10s", value_parser = units::parse_duration_or_off)]
    pub recover_from_followers: Duration,
    /// What all scans to followers together may send in a second, such as 50MiB [default: no limit]
    #[arg(long, env = "SLOTSTREAM_SCAN_RATE_MAX", value_name = "SIZE", value_parser = units::parse_size)]
    pub scan_rate_max: Option<usize>,
    /// The same while clients write much (10,000 a second); scans may send 1.2 times what is written in any case; 0 = no limit
    #[arg(long, env = "SLOTSTREAM_SCAN_RATE_BUSY", value_name = "SIZE", default_value = "96MiB", value_parser = units::parse_size)]
    pub scan_rate_busy: usize,
    /// Shards scanned for followers at one time; others wait, those that stream do not [default: no limit]
    #[arg(long, env = "SLOTSTREAM_SCANS_MAX", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub scans_max: Option<u16>,
}

impl Replication {
    /// What Redis clients' reads and writes demand.
    #[must_use]
    pub fn demands(&self) -> Demands {
        Demands {
            followers_min: self.min_followers_to_write.into(),
            followers_lag_max: self.min_followers_max_lag,
            sync_level: match self.sync_level {
                SyncLevel::None => None,
                SyncLevel::Received => Some(Level::Received),
                SyncLevel::Applied => Some(Level::Applied),
            },
            sync_followers: self.sync_followers.into(),
            sync_timeout: self.sync_timeout,
            reads_while_syncing: self.reads_while_syncing == YesNo::Yes,
        }
    }
}
