//! A leader hands over to one of its followers, and no acknowledged write is lost.
//!
//! 1. The follower must hold every shard, and stream; its Redis and replication ports must answer.
//! 2. Writes are held back: clients wait.
//! 3. The follower has applied the last seq of every shard.
//! 4. The directory notes that this node follows, so that no restart brings back a second leader.
//! 5. The follower is told to lead. From here on only its word says who leads.
//! 6. Clients that waited are sent on; this node follows.
//!
//! What fails before step 5 leaves this node leading, and the writes that waited are done. If the follower
//! gives no answer to 5, it is asked until it does: a process that was started since cannot have been told.
//! If it stays silent this node does not lead, since the other one may.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::asking::{ANSWER_WITHIN, ask};
use super::memory::{LeaderAt, Memory, Remembered};
use super::role::Parts;
use super::roles::{UNCERTAIN, check_log};
use crate::follower::{self, ProbeError};
use crate::inspect::ask::{AskError, Asked, bracketed};
use crate::links::{LinkCell, Links, Phase};
use crate::resp::FailoverState;
use crate::store::Store;
use crate::wire::RefuseCode;

/// How long a follower that was told to lead is asked whether it does.
const VERDICT_PATIENCE: Duration = Duration::from_secs(10);
const VERDICT_INTERVAL: Duration = Duration::from_millis(50);
/// Acks wake the wait; phases and the abort are looked at this often.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
const ABORTED: &str = "a client sent FAILOVER ABORT";

/// A wish to give up, from any thread: heard until the follower is about to be told to lead, refused then.
#[derive(Clone, Default)]
pub(super) struct Abort(Arc<AtomicU8>);

impl Abort {
    const TOO_LATE: u8 = 0;
    const POSSIBLE: u8 = 1;
    const ASKED: u8 = 2;

    /// Whether the hand-over under way will be given up.
    pub(super) fn ask(&self) -> bool {
        let (order, old) = (Ordering::AcqRel, Self::POSSIBLE);
        let swapped = self.0.compare_exchange(old, Self::ASKED, order, Ordering::Acquire);
        swapped.is_ok() || swapped == Err(Self::ASKED)
    }

    /// A hand-over begins.
    pub(super) fn open(&self) {
        self.0.store(Self::POSSIBLE, Ordering::Release);
    }

    /// Nobody can give up from now on; false if somebody has.
    fn close(&self) -> bool {
        self.0.swap(Self::TOO_LATE, Ordering::AcqRel) != Self::ASKED
    }

    fn is_asked(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::ASKED
    }
}

/// How a hand-over ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The follower leads.
    Done { pause: Duration },
    /// This node goes on leading.
    GivenUp { reason: String, pause: Duration },
    /// The follower may lead: this node does not.
    Unknown { reason: String },
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |pause: &Duration| pause.as_secs_f64() * 1000.0;
        match self {
            Self::Done { pause } => write!(f, "done, writes waited {:.1} ms", ms(pause)),
            Self::GivenUp { reason, pause } => {
                write!(f, "given up, writes waited {:.1} ms: {reason}", ms(pause))
            }
            Self::Unknown { reason } => write!(
                f,
                "the follower was told to lead and does not say whether it does ({reason}); this node follows \
                 it; if it does not lead, promote one of the two: both hold every acknowledged write"
            ),
        }
    }
}

/// A hand-over that may begin.
pub(super) struct Switchover {
    address: String,
    asked: Asked,
    node_id: Uuid,
    target: LeaderAt,
}

impl Switchover {
    /// Checks the follower that answers Redis clients at `to`, or the first that is fit; an error is the
    /// client's reply.
    pub(super) fn new(parts: &Parts, follows: bool, to: Option<(String, u16)>) -> Result<Self, String> {
        let refused = |text: &str| Err(text.to_owned());
        if follows {
            return refused("FAILOVER is not valid when server is a replica.");
        }
        if let Some(epoch) = parts.links.superseded_by_epoch() {
            return Err(format!("this leader was replaced: another one leads in epoch {epoch}"));
        }
        check_log(&parts.store)?;
        let cells = parts.links.all();
        if cells.is_empty() {
            return refused("FAILOVER requires connected replicas.");
        }
        let (host, port) = match to {
            Some(to) => to,
            None => match cells
                .iter()
                .find(|cell| cell.resp_port != 0 && lacking(parts, &cells, cell.follower).is_none())
            {
                Some(cell) => (cell.peer.ip().to_string(), cell.resp_port),
                None => return refused("FAILOVER requires a replica that streams every shard."),
            },
        };
        let address = format!("{}:{port}", bracketed(&host));
        let followers: Vec<Uuid> = cells.iter().map(|cell| cell.follower).collect();
        ask(&parts.view.stop, &address.clone(), move || Self::ask(address, &host, port, &followers))
    }

    /// Whether a follower is there, and whether others could follow it: where nobody could, it must not lead.
    fn ask(address: String, host: &str, port: u16, followers: &[Uuid]) -> Result<Self, String> {
        let asked = Asked::new(&address, ANSWER_WITHIN).map_err(|error| error.to_string())?;
        let node_id = Uuid::parse_str(&asked.info.node_id).unwrap_or_default();
        if !followers.contains(&node_id) {
            return Err("FAILOVER target HOST and PORT is not a replica.".to_owned());
        }
        let target = LeaderAt {
            replication: format!("{}:{}", bracketed(host), asked.info.replication_port),
            resp_port: port,
        };
        match follower::probe(&target.replication, ANSWER_WITHIN) {
            Err(ProbeError::Refused { refuse, .. }) if refuse.code == RefuseCode::NotLeader => {}
            Err(error) => return Err(format!("nobody could follow the target: {error}")),
            Ok(_) => return Err("the target leads already".to_owned()),
        }
        Ok(Self { address, asked, node_id, target })
    }

    pub(super) fn target(&self) -> &LeaderAt {
        &self.target
    }

    /// Does it. If it ends with anything but [`Ended::GivenUp`] this node must follow the target: its store
    /// takes no writes, and its clients have been told so.
    pub(super) fn run(&mut self, parts: &Parts, memory: &Memory, abort: &Abort, timeout: Duration) -> Ended {
        let deadline = Instant::now() + timeout;
        tracing::info!(to = self.address, ?timeout, "switchover: waiting for the follower to stream");
        let streams = || lacking(parts, &parts.links.all(), self.node_id);
        if let Err(reason) = wait(parts, abort, deadline, streams) {
            return Ended::GivenUp { reason, pause: Duration::ZERO };
        }
        // As it is: where it cannot be written, no write is to wait for that.
        let superseded_by_epoch = parts.links.superseded_by_epoch();
        if let Err(error) = memory.keep(&Remembered::Leader { superseded_by_epoch }) {
            return Ended::GivenUp { reason: format!("role.json: {error}"), pause: Duration::ZERO };
        }
        let held_at = Instant::now();
        parts.node.control.hold_writes();
        parts.store.stop_writes();
        let ended = self.hand_over(parts, memory, abort, deadline, held_at);
        if matches!(ended, Ended::GivenUp { .. }) {
            take_writes_again(&parts.store, &parts.links);
        } else {
            parts.show(Some(&self.target));
        }
        parts.node.control.release_writes();
        let pause_us = u64::try_from(held_at.elapsed().as_micros()).unwrap_or(u64::MAX);
        parts.view.changes.switchover_pause_us.store(pause_us, Ordering::Relaxed);
        ended
    }

    fn hand_over(
        &mut self,
        parts: &Parts,
        memory: &Memory,
        abort: &Abort,
        deadline: Instant,
        held_at: Instant,
    ) -> Ended {
        let node_id = self.node_id;
        let given_up = |reason: String| Ended::GivenUp { reason, pause: held_at.elapsed() };
        if parts.store.has_pending() {
            return given_up("changes wait for this node's log, which has no space".to_owned());
        }
        if let Err(reason) = wait(parts, abort, deadline, || behind(parts, node_id)) {
            return given_up(reason);
        }
        if !abort.close() {
            return given_up(ABORTED.to_owned());
        }
        let follow = Remembered::Follower(self.target.clone());
        if let Err(error) = memory.keep(&follow) {
            return given_up(format!("role.json: {error}"));
        }
        parts.node.control.set_failover(FailoverState::InProgress);
        let verdict = match self.asked.order(&["REPLICAOF", "NO", "ONE"]) {
            Ok(_) => Verdict::Leads,
            Err(error) if is_refused(&error) => Verdict::DoesNot(error.to_string()),
            Err(error) => self.ask_for_verdict(error),
        };
        match verdict {
            Verdict::Leads => Ended::Done { pause: held_at.elapsed() },
            Verdict::DoesNot(reason) => {
                let superseded_by_epoch = parts.links.superseded_by_epoch();
                if let Err(error) = memory.keep(&Remembered::Leader { superseded_by_epoch }) {
                    tracing::error!(%error, "role.json still says that this node follows: correct it before a restart");
                }
                given_up(reason)
            }
            Verdict::Silent(reason) => Ended::Unknown { reason },
        }
    }

    fn ask_for_verdict(&self, mut last: AskError) -> Verdict {
        let deadline = Instant::now() + VERDICT_PATIENCE;
        while Instant::now() < deadline {
            match Asked::new(&self.address, ANSWER_WITHIN).map(|asked| asked.info) {
                Ok(info) if info.follows.is_none() => return Verdict::Leads,
                Ok(info) if info.run_id != self.asked.info.run_id => {
                    return Verdict::DoesNot(format!("{} was started anew and follows", self.address));
                }
                // It may have the order still before it.
                Ok(_) => {}
                Err(error) => last = error,
            }
            std::thread::sleep(VERDICT_INTERVAL);
        }
        Verdict::Silent(last.to_string())
    }
}

/// Lets a store that stopped taking writes take them again, unless somebody else was found to lead: a link that
/// hears of a newer epoch marks it first and stops writes then.
fn take_writes_again(store: &Store, links: &Links) {
    store.resume_writes(|| links.superseded_by_epoch().is_none());
}

/// What became of the order to lead.
enum Verdict {
    Leads,
    DoesNot(String),
    Silent(String),
}

/// Whether the follower says that it does not lead, and will not.
fn is_refused(error: &AskError) -> bool {
    matches!(error, AskError::Refused { text, .. } if !text.starts_with(UNCERTAIN))
}

/// Why a follower cannot take over as it is: a shard without a link, or one that does not stream.
fn lacking(parts: &Parts, cells: &[Arc<LinkCell>], follower: Uuid) -> Option<String> {
    parts.store.shards().find_map(|shard| {
        let links = || cells.iter().filter(|cell| cell.follower == follower && cell.shard == shard.0);
        match links().map(|cell| cell.phase()).max_by_key(|phase| *phase == Phase::Stream) {
            Some(Phase::Stream) => None,
            Some(phase) => Some(format!("the follower's shard {shard} is in phase {}", phase.as_str())),
            None => Some(format!("the follower has no link for shard {shard}")),
        }
    })
}

/// The first shard whose head the follower has not applied.
fn behind(parts: &Parts, follower: Uuid) -> Option<String> {
    let cells = parts.links.all();
    lacking(parts, &cells, follower).or_else(|| {
        parts.store.shards().find_map(|shard| {
            let head = parts.store.head(shard).0;
            let links = cells.iter().filter(|cell| cell.follower == follower && cell.shard == shard.0);
            let applied = links.map(|cell| cell.applied_seq.load(Ordering::Relaxed)).max().unwrap_or(0);
            (applied < head)
                .then(|| format!("the follower has applied seq {applied} of {head} in shard {shard}"))
        })
    })
}

/// Waits until `lacks` finds nothing; the error says what was lacking when the time was over.
fn wait(
    parts: &Parts,
    abort: &Abort,
    deadline: Instant,
    lacks: impl Fn() -> Option<String>,
) -> Result<(), String> {
    loop {
        let Some(reason) = lacks() else { return Ok(()) };
        if abort.is_asked() {
            return Err(ABORTED.to_owned());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("{reason} when the time was over"));
        }
        // An Ack of a head wakes us; a phase is looked at now and then.
        let heads = parts.store.shards().map(|shard| (shard, parts.store.head(shard))).collect();
        parts.links.wait(heads, |_| lacks().is_none().then_some(())).block(left.min(LOOK_INTERVAL));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::Geometry;
    use crate::store::Options;

    #[test]
    fn a_hand_over_is_given_up_only_before_the_follower_is_told() {
        let abort = Abort::default();
        assert!(!abort.ask(), "nothing is under way");
        abort.open();
        assert!(abort.ask() && abort.ask() && abort.is_asked());
        assert!(!abort.close(), "it was given up");
        abort.open();
        assert!(abort.close());
        assert!(!abort.ask() && !abort.is_asked(), "the follower may have been told");
    }

    /// Its role may be written down as another before something fails: no word that it does not lead.
    #[test]
    fn a_follower_that_ends_half_way_has_not_refused() {
        let answered = |text: &str| AskError::Refused { address: "b:6379".to_owned(), text: text.to_owned() };
        assert!(is_refused(&answered("ERR role.json: no space left")));
        assert!(!is_refused(&answered(&format!("{UNCERTAIN} this node ends before it leads"))));
    }

    /// However a link and the end of a hand-over come between each other, no replaced leader takes writes.
    #[test]
    fn a_leader_that_was_replaced_meanwhile_takes_no_writes_again() {
        let geometry = Geometry { shard_count: 1, key_size_max: 8, value_size_max: 8, shard_prefix_bits: 0 };
        let options = Options::memory(geometry, 16);
        let store = Store::open(std::path::Path::new("memory"), options).expect("a store in memory");
        for round in 1..=2_000 {
            let links = Links::new();
            store.stop_writes();
            let start = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    start.wait();
                    if links.supersede(round) {
                        store.stop_writes();
                    }
                });
                start.wait();
                take_writes_again(&store, &links);
            });
            assert!(store.is_read_only(), "round {round}");
        }
        take_writes_again(&store, &Links::new());
        assert!(store.put(b"key", b"value").is_ok());
    }
}
