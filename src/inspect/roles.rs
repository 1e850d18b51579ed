//! `slotstream promote` and `slotstream switchover`: orders to a running node over its Redis port, and one
//! line about how it ended.

use std::io::Write;
use std::time::{Duration, Instant};

use super::Verdict;
use super::ask::{AskError, Asked, NodeInfo};

/// How long a node may take for one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the leader of a node that is to be promoted may take to show that it is there.
const LEADER_PATIENCE: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Why the order came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    /// A node could not be asked, or refused.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// Two would lead.
    #[error(
        "{leader} still leads, and two leaders lose writes; use `slotstream switchover {leader} --to ...`, or, where \
         the node refuses that leader (see `slotstream status`), promote with --force"
    )]
    LeaderThere {
        /// The leader.
        leader: String,
    },
    /// It led, and does not any more.
    #[error(
        "{node} led and was replaced: another node leads in epoch {epoch}, and two leaders lose writes; let it follow \
         that one, or promote with --force"
    )]
    Replaced {
        /// The node.
        node: String,
        /// The newer epoch.
        epoch: u64,
    },
    /// The target is no address of a Redis port.
    #[error("{found:?} is no HOST:PORT")]
    Target {
        /// What was named.
        found: String,
    },
    /// The leader gave the hand-over up and goes on.
    #[error("{leader} goes on leading: {reason}")]
    GivenUp {
        /// The leader.
        leader: String,
        /// What it said.
        reason: String,
    },
    /// Nobody said how it ended.
    #[error("{leader} does not say how the hand-over ended within {waited:?}; ask both nodes with `status`")]
    Unknown {
        /// The leader.
        leader: String,
        /// How long it was asked.
        waited: Duration,
    },
    /// The answer cannot be written.
    #[error("cannot write: {0}")]
    Write(#[from] std::io::Error),
}

/// Lets the node at `address` lead from what it holds; not while its leader is there, or where it led
/// and was replaced, unless `by_force`.
pub fn promote(address: &str, by_force: bool, out: &mut impl Write) -> Result<Verdict, RoleError> {
    let mut node = Asked::new(address, PATIENCE)?;
    let (before, superseded) = (node.info.follows.clone(), node.info.superseded_by_epoch);
    if let Some(epoch) = superseded.filter(|_| !by_force) {
        return Err(RoleError::Replaced { node: address.to_owned(), epoch });
    }
    let leads = |info: &NodeInfo| info.follows.is_none() && info.superseded_by_epoch.is_none();
    if let Some(leader) = before.as_ref().filter(|_| !by_force)
        && Asked::new(leader, LEADER_PATIENCE).is_ok_and(|asked| leads(&asked.info))
    {
        return Err(RoleError::LeaderThere { leader: leader.clone() });
    }
    node.order(&["REPLICAOF", "NO", "ONE"])?;
    match (before, superseded) {
        (None, None) => writeln!(out, "{address} leads; it did so before")?,
        (None, Some(epoch)) => {
            writeln!(out, "{address} leads again, past epoch {epoch} that had replaced it")?
        }
        (Some(leader), _) => writeln!(out, "{address} leads; it followed {leader} until now")?,
    }
    Ok(Verdict::Good)
}

/// Lets the leader at `address` hand over to its follower at `to`.
pub fn switchover(
    address: &str,
    to: &str,
    timeout: Duration,
    out: &mut impl Write,
) -> Result<Verdict, RoleError> {
    let (host, port) = to.rsplit_once(':').ok_or_else(|| RoleError::Target { found: to.to_owned() })?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut leader = Asked::new(address, PATIENCE)?;
    let timeout_ms = timeout.as_millis().max(1).to_string();
    leader.order(&["FAILOVER", "TO", host, port, "TIMEOUT", &timeout_ms])?;
    let start = Instant::now();
    // Beyond its own time the leader may still ask the follower how the hand-over ended.
    let patience = timeout + 2 * PATIENCE;
    loop {
        let info = leader.again()?;
        if info.failover == "no-failover" {
            let reason = info.last_failover.clone();
            if info.follows.is_some() {
                writeln!(out, "{to} leads, {address} follows it: {reason}")?;
                return Ok(Verdict::Good);
            }
            return Err(RoleError::GivenUp { leader: address.to_owned(), reason });
        }
        if start.elapsed() > patience {
            return Err(RoleError::Unknown { leader: address.to_owned(), waited: patience });
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
