//! Floor 5: what a user can set, and where from: flag > `SLOTSTREAM_*` variable > TOML file > default.
//!
//! An option has one name everywhere: the field `replication_listen` is the flag `--replication-listen`,
//! the variable `SLOTSTREAM_REPLICATION_LISTEN` and the key `replication_listen`. clap knows them all, so
//! there is no second list: what a file says is handed to clap as flags that the user did not give.

mod args;
mod durability;
mod overlay;
mod replication;
mod rows;
mod saves;
mod value;

pub use args::{
    BackupArgs, BenchArgs, Cli, Command, Common, DemoArgs, Follower, InspectArgs, Lead, Leader, LogFormat,
    PromoteArgs, RestoreArgs, StatusArgs, SwitchoverArgs, TailArgs, VerifyArgs,
};
pub use durability::Durability;
pub use overlay::{ParseError, parse};
pub use replication::{Replication, SyncLevel, YesNo};
pub use rows::{ExportArgs, ImportArgs};
pub use saves::Saves;
pub use value::ShardSet;
