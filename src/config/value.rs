//! Values that are more than a number: addresses and sets of shards.

use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

/// Parses an address to bind or to ask; a host name is looked up once.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let mut found = text.to_socket_addrs().map_err(|error| format!("{text:?} is no HOST:PORT: {error}"))?;
    found.next().ok_or_else(|| format!("{text:?} has no address"))
}

/// Checks the shape of `HOST:PORT` without looking the host up: it may not be known yet.
pub(super) fn host_port(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0) => {
            Ok(text.to_owned())
        }
        _ => Err(format!("{text:?} is no HOST:PORT")),
    }
}

/// Checks what is to be logged: levels, and levels of targets, as in `info,slotstream::leader=debug`. A word
/// that is no level would name a target, and so switch the log off for all others.
pub(super) fn log_level(text: &str) -> Result<String, String> {
    let is_level = |text: &str| {
        ["off", "error", "warn", "info", "debug", "trace"]
            .iter()
            .any(|level| level.eq_ignore_ascii_case(text))
    };
    let is_target = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-'))
    };
    let is_directive = |part: &str| match part.split_once('=') {
        Some((target, level)) => is_target(target) && is_level(level),
        None => is_level(part),
    };
    match text.split(',').find(|part| !is_directive(part)) {
        None => Ok(text.to_owned()),
        Some(part) => Err(format!(
            "{part:?} is no level; wanted off, error, warn, info, debug, trace, or TARGET=LEVEL, separated by commas"
        )),
    }
}

/// Shards named by a user: `0,2-3`. Sorted, without repeats, never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardSet(Vec<u16>);

impl ShardSet {
    /// The shards in rising order.
    #[must_use]
    pub fn indexes(&self) -> &[u16] {
        &self.0
    }
}

impl FromStr for ShardSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted =
            |part: &str| format!("{part:?} names no shards; wanted indexes and ranges such as 0,2-3");
        let mut shards = std::collections::BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: u16 = first.trim().parse().map_err(|_| wanted(part))?;
            let last: u16 = last.trim().parse().map_err(|_| wanted(part))?;
            if first > last || last >= crate::slot::layout::SHARD_COUNT_MAX {
                return Err(wanted(part));
            }
            shards.extend(first..=last);
        }
        Ok(Self(shards.into_iter().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_sets_are_sorted_and_bounded() {
        assert_eq!("2-3,0,2".parse::<ShardSet>().map(|set| set.0), Ok(vec![0, 2, 3]));
        for bad in ["", ",", "a", "3-2", "1-", "-1", "1024", "0-65535", "70000"] {
            assert!(bad.parse::<ShardSet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_logged_is_levels_and_levels_of_targets() {
        for good in ["info", "WARN", "off", "info,slotstream::leader=debug", "slotstream=trace"] {
            assert_eq!(log_level(good).as_deref(), Ok(good));
        }
        for bad in ["", "nonsense", "info,", "info,nonsense", "slotstream=loud", "=info", "a b=info", "3"] {
            assert!(log_level(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn leader_addresses_keep_their_host_name() {
        assert_eq!(host_port("leader.example:8379"), Ok("leader.example:8379".to_owned()));
        for bad in ["", "leader", ":8379", "leader:", "leader:0", "leader:70000"] {
            assert!(host_port(bad).is_err(), "{bad}");
        }
    }
}
