//! Options about the backups that Redis clients ask for with BGSAVE.

use std::path::PathBuf;

use clap::Args;

/// Where these backups go, and how many stay.
#[derive(Debug, Clone, Args)]
pub struct Saves {
    /// Directory for the backups that Redis clients ask for with BGSAVE or SAVE: each gets one of its own in it, backup-MILLISECONDS (Unix time), for `slotstream restore`; made if it does not exist. They are read no faster than --scan-rate-max and --scan-rate-busy say [default: no backups]
    #[arg(long, env = "SLOTSTREAM_BACKUP_DIRECTORY", value_name = "DIR")]
    pub backup_directory: Option<PathBuf>,
    /// Newest backups of this store to keep there; once another one is whole, older ones are deleted [default: all]
    #[arg(long, env = "SLOTSTREAM_BACKUPS_KEPT", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub backups_kept: Option<u16>,
}
