//! Options of import and export.

use std::path::PathBuf;

use clap::Args;

use super::value;
use crate::rows::Format;

const FORMATS: &str = "\
json: an object per line, {\"key\":\"k\",\"value\":\"v\",\"expire_at_unix_ms\":1767225600000}; bytes that are no UTF-8 are in \
key_hex and value_hex instead.\n\
csv: the first line names columns of these names, in any order.\n\
rdb: a dump of Redis.\n\
An expiry is a time, never a span.";

/// `slotstream import`.
#[derive(Debug, Args)]
#[command(after_help = FORMATS, after_long_help = format!("{FORMATS}
A row sets its key: others stay as they are, and to import a file twice is harmless. Rows that have expired are left \
out. Keys and values that are too large for the store, and what a dump holds besides strings (lists, hashes, other \
databases), are refused, counted by name at the end, and make the exit code 1; the rest is imported. A dump in a file \
is checked to its end before its first row is imported."))]
pub struct ImportArgs {
    /// Redis address of the leader
    #[arg(value_name = "ADDR", value_parser = value::host_port)]
    pub node: String,
    /// The file; - is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// What it is [default: what its name ends in: .json, .jsonl, .csv, .rdb]
    #[arg(long, value_name = "FORMAT", ignore_case = true)]
    pub format: Option<Format>,
    /// Of a dump: the database whose strings are imported
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub database: u64,
}

/// `slotstream export`.
#[derive(Debug, Args)]
#[command(after_help = FORMATS, after_long_help = format!("{FORMATS}
A key is in the file once, with a value that it had while the export ran; what is written meanwhile may be in it or \
not. A backup is a state that the leader had at one moment."))]
pub struct ExportArgs {
    /// Redis address of a node, a leader or a follower
    #[arg(value_name = "ADDR", value_parser = value::host_port)]
    pub node: String,
    /// The file, which is replaced once the new one is whole; - is standard output
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// What it is to be [default: what its name ends in: .json, .jsonl, .csv, .rdb]
    #[arg(long, value_name = "FORMAT", ignore_case = true)]
    pub format: Option<Format>,
}
