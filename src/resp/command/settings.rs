//! CONFIG SET, and what CONFIG GET says of the same names.

use std::time::Duration;

use super::super::error::CommandError;
use super::super::rules::Demands;
use super::{Call, Flow};
use crate::links::Level;
use crate::units;

/// A setting: its names, how it reads, how it is set.
struct Setting {
    names: &'static [&'static str],
    get: fn(&Demands) -> String,
    /// What is wanted, where the value is none.
    set: fn(&mut Demands, &str) -> Result<(), &'static str>,
}

const SETTINGS: [Setting; 7] = [
    Setting {
        names: &["min-replicas-to-write", "min-slaves-to-write", "min-followers-to-write"],
        get: |demands| demands.followers_min.to_string(),
        set: |demands, text| number(text).map(|found| demands.followers_min = found),
    },
    Setting {
        names: &["min-replicas-max-lag", "min-slaves-max-lag"],
        get: |demands| demands.followers_lag_max.as_secs().to_string(),
        set: |demands, text| {
            number(text).map(|seconds| demands.followers_lag_max = Duration::from_secs(seconds as u64))
        },
    },
    // As the flag of this name has it: with a unit, and finer than Redis's whole seconds.
    Setting {
        names: &["min-followers-max-lag"],
        get: |demands| format!("{}ms", demands.followers_lag_max.as_millis()),
        set: |demands, text| duration(text).map(|found| demands.followers_lag_max = found),
    },
    Setting {
        names: &["sync-level"],
        get: |demands| level_name(demands.sync_level).to_owned(),
        set: |demands, text| {
            let levels = [None, Some(Level::Received), Some(Level::Applied)];
            let level = levels.into_iter().find(|level| level_name(*level).eq_ignore_ascii_case(text));
            demands.sync_level = level.ok_or("wanted none, received or applied")?;
            Ok(())
        },
    },
    Setting {
        names: &["sync-followers"],
        get: |demands| demands.sync_followers.to_string(),
        set: |demands, text| number(text).map(|found| demands.sync_followers = found),
    },
    Setting {
        names: &["sync-timeout"],
        get: |demands| format!("{}ms", demands.sync_timeout.as_millis()),
        set: |demands, text| duration(text).map(|found| demands.sync_timeout = found),
    },
    Setting {
        names: &["reads-while-syncing", "replica-serve-stale-data", "slave-serve-stale-data"],
        get: |demands| if demands.reads_while_syncing { "yes" } else { "no" }.to_owned(),
        set: |demands, text| {
            let yes = text.eq_ignore_ascii_case("yes");
            if !yes && !text.eq_ignore_ascii_case("no") {
                return Err("argument must be 'yes' or 'no'");
            }
            demands.reads_while_syncing = yes;
            Ok(())
        },
    },
];

fn number(text: &str) -> Result<usize, &'static str> {
    text.parse::<u32>().map(|found| found as usize).map_err(|_| "argument couldn't be parsed into an integer")
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    units::parse_duration(text).map_err(|_| "wanted a time such as 500ms")
}

fn level_name(level: Option<Level>) -> &'static str {
    match level {
        None => "none",
        Some(Level::Received) => "received",
        Some(Level::Applied) => "applied",
        Some(Level::Durable) => "durable",
    }
}

/// Names and values.
pub(super) fn values(demands: &Demands) -> Vec<(String, String)> {
    let pairs = |setting: &Setting| {
        let value = (setting.get)(demands);
        setting.names.iter().map(move |name| ((*name).to_owned(), value.clone())).collect::<Vec<_>>()
    };
    SETTINGS.iter().flat_map(pairs).collect()
}

/// `CONFIG SET name value [name value ...]`: all of them, or none.
pub(super) fn set(call: &mut Call<'_>) -> Result<Flow, CommandError> {
    if call.args.len() < 4 || !call.args.len().is_multiple_of(2) {
        return Err(call.subcommand_arity_error("set"));
    }
    let mut demands = call.worker.rules.demands();
    for at in (2..call.args.len()).step_by(2) {
        let (name, value) = (call.args.at(at), call.args.at(at + 1));
        let is_named = |known: &&str| known.as_bytes().eq_ignore_ascii_case(name);
        let Some(setting) = SETTINGS.iter().find(|setting| setting.names.iter().any(is_named)) else {
            let before = "ERR Unknown option or number of arguments for CONFIG SET - '";
            return Err(CommandError::repeating(before, name, "'"));
        };
        let result = std::str::from_utf8(value).map_err(|_| "it is no text");
        if let Err(wanted) = result.and_then(|value| (setting.set)(&mut demands, value)) {
            let before = "ERR CONFIG SET failed (possibly related to argument '";
            return Err(CommandError::repeating(before, name, &format!("') - {wanted}")));
        }
    }
    call.worker.rules.set(demands);
    call.reply.ok();
    Ok(Flow::Done)
}
