//! What CONFIG SET can change: names, how each one reads, what it may be. An option has the same name, unit and bounds
//! here and as a flag.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::rules::Demands;
use crate::links::Level;
use crate::units;

/// A setting: its names, how it reads, how it is set.
struct Setting {
    /// The flag that gives it at the start has the first name.
    names: &'static [&'static str],
    /// Whether there is such a flag, or only another way to say what one says.
    is_flag: bool,
    get: fn(&Demands) -> String,
    /// What is wanted, where the value is none.
    set: fn(&mut Demands, &str) -> Result<(), &'static str>,
}

const SETTINGS: [Setting; 7] = [
    Setting {
        names: &["min-followers-to-write", "min-replicas-to-write", "min-slaves-to-write"],
        is_flag: true,
        get: |demands| demands.followers_min.to_string(),
        set: |demands, text| number(text, 0).map(|found| demands.followers_min = found),
    },
    Setting {
        names: &["min-replicas-max-lag", "min-slaves-max-lag"],
        is_flag: false,
        get: |demands| demands.followers_lag_max.as_secs().to_string(),
        set: |demands, text| {
            number(text, 1).map(|seconds| demands.followers_lag_max = Duration::from_secs(seconds as u64))
        },
    },
    // As the flag of this name has it: with a unit, and finer than Redis's whole seconds.
    Setting {
        names: &["min-followers-max-lag"],
        is_flag: true,
        get: |demands| format!("{}ms", demands.followers_lag_max.as_millis()),
        set: |demands, text| duration(text).map(|found| demands.followers_lag_max = found),
    },
    Setting {
        names: &["sync-level"],
        is_flag: true,
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
        is_flag: true,
        get: |demands| demands.sync_followers.to_string(),
        set: |demands, text| number(text, 1).map(|found| demands.sync_followers = found),
    },
    Setting {
        names: &["sync-timeout"],
        is_flag: true,
        get: |demands| format!("{}ms", demands.sync_timeout.as_millis()),
        set: |demands, text| duration(text).map(|found| demands.sync_timeout = found),
    },
    Setting {
        names: &["reads-while-syncing", "replica-serve-stale-data", "slave-serve-stale-data"],
        is_flag: true,
        get: |demands| if demands.reads_while_syncing { "yes" } else { "no" }.to_owned(),
        set: |demands, text| {
            let is = |words: [&str; 2]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
            if !is(["yes", "true"]) && !is(["no", "false"]) {
                return Err("argument must be 'yes' or 'no'");
            }
            demands.reads_while_syncing = is(["yes", "true"]);
            Ok(())
        },
    },
];

/// As the flags have it: at most what 16 bits hold.
fn number(text: &str, min: u16) -> Result<usize, &'static str> {
    let found = text.parse::<u64>().map_err(|_| "argument couldn't be parsed into an integer")?;
    match u16::try_from(found) {
        Ok(found) if found >= min => Ok(found.into()),
        _ if min == 0 => Err("argument must be between 0 and 65535 inclusive"),
        _ => Err("argument must be between 1 and 65535 inclusive"),
    }
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

/// Names and values, also in Redis's words.
pub(super) fn values(demands: &Demands) -> Vec<(String, String)> {
    let pairs = |setting: &Setting| {
        let value = (setting.get)(demands);
        setting.names.iter().map(move |name| ((*name).to_owned(), value.clone())).collect::<Vec<_>>()
    };
    SETTINGS.iter().flat_map(pairs).collect()
}

/// Why a setting was not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// There is none of this name.
    #[error("no such setting")]
    Unknown,
    /// It cannot be that.
    #[error("{0}")]
    Value(&'static str),
}

impl Demands {
    /// Names of flags, and what they would say.
    #[must_use]
    pub fn flags(&self) -> Vec<(&'static str, String)> {
        let flags = SETTINGS.iter().filter(|setting| setting.is_flag);
        flags.map(|setting| (setting.names[0], (setting.get)(self))).collect()
    }

    /// Changes one of them.
    pub fn change(&mut self, name: &str, value: &str) -> Result<(), SettingError> {
        let is_named = |known: &&str| known.eq_ignore_ascii_case(name);
        let setting = SETTINGS.iter().find(|setting| setting.names.iter().any(is_named));
        (setting.ok_or(SettingError::Unknown)?.set)(self, value).map_err(SettingError::Value)
    }
}

type Keep = dyn Fn(&Demands) -> io::Result<()> + Send + Sync;

/// Keeps settings for the next start.
#[derive(Clone)]
pub struct Keeper(Arc<Keep>);

impl Keeper {
    /// Calls `keep`, on a client's thread, with all that is to be as it is now.
    pub fn new(keep: impl Fn(&Demands) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(keep))
    }

    pub(super) fn keep(&self, demands: &Demands) -> io::Result<()> {
        (self.0)(demands)
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keeper(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_reads_as_it_was_set_under_each_of_its_names() {
        let mut demands = Demands::default();
        for (name, value) in [
            ("min-slaves-to-write", "2"),
            ("min-followers-max-lag", "2500ms"),
            ("SYNC-LEVEL", "Applied"),
            ("sync-followers", "65535"),
            ("sync-timeout", "2m"),
            ("replica-serve-stale-data", "FALSE"),
        ] {
            assert_eq!(demands.change(name, value), Ok(()), "{name}");
        }
        let flags = demands.flags();
        let again = flags.iter().try_fold(Demands::default(), |mut again, (name, value)| {
            again.change(name, value).map(|()| again)
        });
        assert_eq!(again, Ok(demands));
        assert_eq!(flags.len(), 6, "{flags:?}");
        for (name, value) in [
            ("sync-followers", "0"),
            ("sync-followers", "65536"),
            ("min-followers-to-write", "-1"),
            ("min-replicas-max-lag", "0"),
            ("min-followers-max-lag", "5"),
            ("sync-timeout", "0s"),
            ("sync-level", "durable"),
            ("reads-while-syncing", "maybe"),
        ] {
            assert!(matches!(demands.change(name, value), Err(SettingError::Value(_))), "{name} {value}");
        }
        assert_eq!(demands.change("port", "1"), Err(SettingError::Unknown));
        assert_eq!(again, Ok(demands), "a setting that is refused changes nothing");
    }
}
