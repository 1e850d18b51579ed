//! Every command and option, once. Help texts, environment names and defaults come from here.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::durability::Durability;
use super::replication::Replication;
use super::rows::{ExportArgs, ImportArgs};
use super::saves::Saves;
use super::value::{self, ShardSet};
use crate::units;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "slotstream",
    version,
    about = "A replicated key/value store for records of bounded size; a follower never falls off.",
    max_term_width = 100,
    after_help = "Options of leader and follower can also be set as SLOTSTREAM_<NAME> or, with --config, in a TOML file; a \
                  flag wins over the environment, and that over the file.\n\
                  A node that is sent SIGTERM or SIGINT ends in order; a second one, a second later or more, ends it at \
                  once.\n\
                  Exit codes: 0 done, 1 failure (or a difference found), 2 bad usage, 101 a panic, 130 told to stop twice, \
                  135 a file that cannot be read or written where it is mapped (disk error, file cut short)."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a store: Redis clients write to it, followers replicate it.
    Leader(Leader),
    /// Replicate a leader's shards and serve them read-only.
    Follower(Follower),
    /// Show what running nodes say of themselves.
    Status(StatusArgs),
    /// Let a running follower lead from what it holds; never while its old leader still takes writes.
    Promote(PromoteArgs),
    /// Let a running leader hand over to one of its followers, without losing an acknowledged write.
    Switchover(SwitchoverArgs),
    /// Show headers and counts of a data directory, also of one in use; changes nothing.
    Inspect(InspectArgs),
    /// Check all data of a stopped node, or compare a leader's directory with a follower's; changes nothing.
    Verify(VerifyArgs),
    /// Back up a running leader's store, without stopping its writers.
    Backup(BackupArgs),
    /// Make a data directory from a backup and the incremental ones after it.
    Restore(RestoreArgs),
    /// Set a running leader's keys from a file: JSON lines, CSV, a dump of Redis.
    Import(ImportArgs),
    /// Write a running node's records to a file: JSON lines, CSV, a dump of Redis.
    Export(ExportArgs),
    /// Print what changes on a running node, or has changed since a position, one line per change.
    Tail(TailArgs),
    /// Start a leader and followers in a temporary directory, write, cut them off and compare them.
    Demo(DemoArgs),
    /// Send SET and then GET commands to a running leader and print how many it answered, and how fast.
    Bench(BenchArgs),
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Text.
    Text,
    /// One JSON object per line.
    Json,
}

// Headings of the help of leader and follower, in the order in which they come.
const STORE: &str = "Store";
const ADDRESSES: &str = "Addresses";
const CLIENTS: &str = "Redis clients";
const DURABILITY: &str = "Durability";
const REPLICATION: &str = "Replication";
const BACKUPS: &str = "Backups";
const LOGS: &str = "Configuration and logs";

/// What leader and follower share.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Directory of the store (required); made if it does not exist
    #[arg(long, help_heading = STORE, env = "SLOTSTREAM_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where Redis clients connect
    #[arg(long, help_heading = ADDRESSES, env = "SLOTSTREAM_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:6379", value_parser = value::address)]
    pub listen: SocketAddr,
    /// Where followers connect, now or once this node leads [default: 127.0.0.1:8379; for a follower, where that is taken, a port that the kernel picks]
    #[arg(long, help_heading = ADDRESSES, env = "SLOTSTREAM_REPLICATION_LISTEN", value_name = "ADDR", value_parser = value::address)]
    pub replication_listen: Option<SocketAddr>,
    /// Where metrics, health and status are served
    #[arg(long, help_heading = ADDRESSES, env = "SLOTSTREAM_HTTP_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:9379", value_parser = value::address)]
    pub http_listen: SocketAddr,
    /// Let --listen be reachable from other machines; there is no password
    #[arg(long, help_heading = ADDRESSES, env = "SLOTSTREAM_ALLOW_REMOTE_CLIENTS", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, value_name = "BOOL", value_parser = BoolishValueParser::new(), hide_default_value = true)]
    pub allow_remote_clients: bool,
    /// Threads that serve Redis clients [default: all cores but one, at most 8]
    #[arg(long, help_heading = CLIENTS, env = "SLOTSTREAM_WORKERS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// Redis clients at one time; more are turned away
    #[arg(long, help_heading = CLIENTS, env = "SLOTSTREAM_MAX_CLIENTS", value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_clients: u32,
    /// What a power cut may take.
    #[command(flatten, next_help_heading = DURABILITY)]
    pub durability: Durability,
    /// What replication guarantees, and may cost.
    #[command(flatten, next_help_heading = REPLICATION)]
    pub replication: Replication,
    /// Time between heartbeats on a silent link
    #[arg(long, help_heading = REPLICATION, env = "SLOTSTREAM_HEARTBEAT_INTERVAL", value_name = "TIME", default_value = "1s", value_parser = units::parse_duration)]
    pub heartbeat_interval: Duration,
    /// Silence after which a link is given up; at least twice the heartbeat interval
    #[arg(long, help_heading = REPLICATION, env = "SLOTSTREAM_DEAD_AFTER", value_name = "TIME", default_value = "5s", value_parser = units::parse_duration)]
    pub dead_after: Duration,
    /// Backups that clients ask for.
    #[command(flatten, next_help_heading = BACKUPS)]
    pub saves: Saves,
    /// TOML file with any of these options, named as the flags with underscores
    #[arg(long, help_heading = LOGS, env = "SLOTSTREAM_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Least important level logged (off, error, warn, info, debug, trace), also by module: info,slotstream::leader=debug
    #[arg(long, help_heading = LOGS, env = "SLOTSTREAM_LOG_LEVEL", value_name = "LEVEL", default_value = "info", value_parser = value::log_level)]
    pub log_level: String,
    /// How log lines look
    #[arg(
        long,
        help_heading = LOGS,
        env = "SLOTSTREAM_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "auto",
        ignore_case = true
    )]
    pub log_format: LogFormat,
    /// Write the bound addresses to this file, as JSON, once the node serves (for port 0)
    #[arg(long, help_heading = LOGS, env = "SLOTSTREAM_PORTS_FILE", value_name = "FILE")]
    pub ports_file: Option<PathBuf>,
}

/// How a node serves followers while it leads; a follower may lead later.
#[derive(Debug, Clone, Args)]
pub struct Lead {
    /// Ring per attached follower and shard: what the leader buffers for it before it falls back to a scan [default: 64MiB shared by all shards, 256KiB to 4MiB each]
    #[arg(long, env = "SLOTSTREAM_RING_SIZE", value_name = "SIZE", value_parser = units::parse_size)]
    pub ring_size: Option<usize>,
    /// Bytes of a scan that may be on their way to a follower, per shard, before it has confirmed some
    #[arg(long, env = "SLOTSTREAM_ACK_WINDOW", value_name = "SIZE", default_value = "1MiB", value_parser = units::parse_size)]
    pub ack_window: usize,
}

/// `slotstream leader`.
#[derive(Debug, Clone, Args)]
pub struct Leader {
    /// What a follower has too.
    #[command(flatten)]
    pub common: Common,
    /// Shards of a new store, 1 to 1024 [default: 4, or what the directory holds]
    #[arg(long, help_heading = STORE, env = "SLOTSTREAM_SHARD_COUNT", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub shard_count: Option<u16>,
    /// Largest key of a new store, 1 to 1024 bytes [default: 64, or what the directory holds]
    #[arg(long, help_heading = STORE, env = "SLOTSTREAM_KEY_SIZE", value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub key_size: Option<u16>,
    /// Largest value of a new store, 0 to 65535 bytes [default: 256, or what the directory holds]
    #[arg(long, help_heading = STORE, env = "SLOTSTREAM_VALUE_SIZE", value_name = "BYTES")]
    pub value_size: Option<u16>,
    /// Keys that share so many leading bits share a shard, in a new store; 0 = the whole key chooses [default: keys with one hash tag `{...}` share a shard, or what the directory holds]
    #[arg(long, help_heading = STORE, env = "SLOTSTREAM_SHARD_PREFIX_BITS", value_name = "BITS")]
    pub shard_prefix_bits: Option<u16>,
    /// Lead from the data of a follower: it takes a new epoch; never while its old leader still runs
    #[arg(long, help_heading = STORE, env = "SLOTSTREAM_PROMOTE", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, value_name = "BOOL", value_parser = BoolishValueParser::new(), hide_default_value = true)]
    pub promote: bool,
    /// How followers are served.
    #[command(flatten, next_help_heading = REPLICATION)]
    pub lead: Lead,
}

/// `slotstream follower`.
#[derive(Debug, Clone, Args)]
pub struct Follower {
    /// The leader's replication address (required)
    #[arg(long, help_heading = STORE, env = "SLOTSTREAM_LEADER", value_name = "HOST:PORT", value_parser = value::host_port)]
    pub leader: Option<String>,
    /// What a leader has too.
    #[command(flatten)]
    pub common: Common,
    /// Shards to replicate, such as 0,2-3 [default: all]
    #[arg(long, help_heading = STORE, env = "SLOTSTREAM_SHARDS", value_name = "SHARDS")]
    pub shards: Option<ShardSet>,
    /// If the leader's store has this id and refuses what this directory holds, or came back empty: throw that away and take the leader's data
    #[arg(long, help_heading = STORE, env = "SLOTSTREAM_ACCEPT_STORE", value_name = "ID")]
    pub accept_store: Option<uuid::Uuid>,
    /// How followers are served, should this node lead.
    #[command(flatten, next_help_heading = REPLICATION)]
    pub lead: Lead,
}

/// `slotstream status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// HTTP addresses of nodes (their --http-listen), such as 127.0.0.1:9379
    #[arg(required = true, value_name = "HTTP_ADDR", value_parser = value::host_port)]
    pub nodes: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `slotstream promote`.
#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// Redis address of the follower, or of a leader that was replaced
    #[arg(value_name = "ADDR", value_parser = value::host_port)]
    pub node: String,
    /// Also while its leader still runs, and where it led and was replaced: writes that only the other one has
    /// will be dropped
    #[arg(long)]
    pub force: bool,
}

/// `slotstream switchover`.
#[derive(Debug, Args)]
pub struct SwitchoverArgs {
    /// Redis address of the leader now
    #[arg(value_name = "ADDR", value_parser = value::host_port)]
    pub leader: String,
    /// Redis address of the follower that is to lead
    #[arg(long, value_name = "ADDR", value_parser = value::host_port)]
    pub to: String,
    /// Give up, and let the leader go on, if the follower has not caught up within this
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = units::parse_duration)]
    pub timeout: Duration,
}

/// `slotstream inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Data directory
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Only this shard, counted from 0
    #[arg(long, value_name = "N")]
    pub shard: Option<u16>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `slotstream verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
One directory: checks every record's checksum, and what is derived from the records: index, free slots, counts.\n\
Two directories: both must belong to one store, such as a leader's and its follower's; they are equal if every \
slot of the shards that both hold has the same bytes. Let the follower catch up before you stop both.\n\
Damaged slots and differences are listed and make the exit code 1. A node that opens a damaged directory sets \
such slots aside: a follower takes them from its leader again, a leader serves the others.")]
pub struct VerifyArgs {
    /// Data directory of a stopped node
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Another stopped node's directory, to compare the first one with
    #[arg(value_name = "DIR")]
    pub other: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `slotstream backup`.
#[derive(Debug, Args)]
#[command(after_help = "\
Each shard is in the backup exactly as the leader had it at one moment; manifest.json tells its seq. A directory \
without manifest.json is an unfinished backup: the same command begins it again.\n\
\n\
s3://BUCKET/PREFIX is object storage that speaks S3 (where built with `--features s3`). The environment says how to \
reach it: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL for others than \
Amazon, AWS_ALLOW_HTTP=true for one without TLS; without a key, the role of the machine is asked for. Wanted are the \
rights to read, list, write and delete there. Two backups at a time want two prefixes.")]
pub struct BackupArgs {
    /// The leader's replication address (its --replication-listen)
    #[arg(value_name = "HOST:PORT", value_parser = value::host_port)]
    pub leader: String,
    /// Where the backup is to lie: a directory, made if it does not exist, or s3://BUCKET/PREFIX
    #[arg(long, value_name = "PLACE")]
    pub to: PathBuf,
    /// An earlier backup, anywhere: take only what changed since, which then needs that one to be restored
    #[arg(long, value_name = "PLACE")]
    pub since: Option<PathBuf>,
}

/// `slotstream restore`.
#[derive(Debug, Args)]
#[command(after_help = "\
All checksums are checked. The directory is that of a follower: started with `slotstream follower` it gets from \
its leader only what changed since the backup; `slotstream leader --promote` leads from it, in a new epoch.\n\
Backups in object storage are read as `slotstream backup --help` says; a chain may lie in several places.")]
pub struct RestoreArgs {
    /// A full backup, then the incremental ones after it in the order they were taken; directories or s3://BUCKET/PREFIX
    #[arg(required = true, value_name = "BACKUP")]
    pub backups: Vec<PathBuf>,
    /// The new data directory: empty, or not there yet
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
}

/// `slotstream tail`.
#[derive(Debug, Args)]
#[command(after_help = "\
Each line is the newest state of a slot: SHARD:TERM-SEQ, the slot, set or delete, key, value. Lines of a shard \
come in the order of seqs; what was overwritten before it was read is left out, and no changed slot ever is. A \
change of a slot replaces what the slot held, also another key, whose deletion may be left out: keep keys by \
shard and slot.\n\
A reset says that a failover dropped something already printed: forget the shard, all of it comes again.\n\
It connects again when the node goes away, and goes on where it was.\n\
With --listen each reader is sent {\"op\":\"begin\",\"position\":...}, then JSON lines; {\"error\":...} says why \
it is turned away.\n\
With --connect, what was not acknowledged comes again: {\"op\":\"begin\",...} says from where.")]
pub struct TailArgs {
    /// Redis address of the node, a leader or a follower
    #[arg(value_name = "ADDR", value_parser = value::host_port)]
    pub node: String,
    /// Where to begin: start, now, or what a position file holds, such as 0:4294967297-12,1:4294967297-9; shards that
    /// it does not name from their start
    #[arg(long, value_name = "POSITION", default_value = "now")]
    pub from: String,
    /// Shards to read, such as 0,2-3 [default: all]
    #[arg(long, value_name = "SHARDS")]
    pub shards: Option<ShardSet>,
    /// Keep the position in this file, and begin there if it exists: after a kill some lines are printed again, none
    /// is left out
    #[arg(long, value_name = "FILE")]
    pub position_file: Option<PathBuf>,
    /// Print JSON lines
    #[arg(long)]
    pub json: bool,
    /// Send JSON lines to a program that listens there, which answers `ACK` and the ids that it has
    #[arg(long, value_name = "HOST:PORT", value_parser = value::host_port, conflicts_with = "listen")]
    pub connect: Option<String>,
    /// With --connect, to a program that never answers: what is on its way when a connection breaks is lost
    #[arg(long, requires = "connect")]
    pub no_acks: bool,
    /// Serve JSON lines to programs that connect there, and say `AUTH TOKEN` and `FROM POSITION`, a line each
    #[arg(long, value_name = "ADDR", value_parser = value::address, conflicts_with_all = ["position_file", "from"])]
    pub listen: Option<SocketAddr>,
    /// Readers that --listen serves at one time; more are turned away
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024), requires = "listen")]
    pub readers_max: u16,
    /// The token that readers show, or that the program at --connect is shown [default: SLOTSTREAM_TAIL_TOKEN]; without one --listen is for this machine only
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// `slotstream demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Leave the processes running and print how to connect
    #[arg(long)]
    pub keep: bool,
}

/// `slotstream bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
It overwrites the keys bench:0000000000 and up, and leaves them there. A round trip is one pipeline: sent as a \
whole, then waited for. The figures are those of this client on this machine, not the most the leader can do.")]
pub struct BenchArgs {
    /// Redis address of a running leader
    #[arg(value_name = "ADDR", default_value = "127.0.0.1:6379", value_parser = value::address)]
    pub address: SocketAddr,
    /// Clients at one time, each with a connection and a thread of its own
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub clients: u16,
    /// Commands that a client sends before it waits for their replies; 1 = one at a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub pipeline: u16,
    /// How many different keys, chosen at random
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub keys: u32,
    /// Bytes of each value
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    pub value_size: u16,
    /// How long SET and GET each run
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = units::parse_duration)]
    pub duration: Duration,
}
