//! Replies that wait: from a turn's first write on, in order, for as long as it takes. First for this node's log, where
//! that comes first; then for followers, which have nothing before.
//!
//! A turn waits once: for one round of the log, and for its last write to each shard. When the time for followers is
//! over the reply to each of its writes becomes an error: the writes are done here, and that they are anywhere else is
//! not known.

use std::ops::Range;
use std::time::Duration;

use super::reply::Reply;
use super::rules::{Demands, demand};
use super::session::Session;
use super::worker::Worker;
use crate::links::{Level, Links};
use crate::slot::{Seq, ShardIndex};
use crate::store::{LogState, Store};

/// Notes where the replies to a turn's writes are.
#[derive(Debug)]
pub(super) struct Holder {
    waits_for_log: bool,
    sync: Option<Sync>,
    /// What must not be told before.
    start: Option<usize>,
    replies: Vec<Range<usize>>,
}

/// What is demanded of followers, and where the turn began.
#[derive(Debug)]
struct Sync {
    demands: Demands,
    before: Vec<(ShardIndex, u64, Seq)>,
}

/// Replies, and what must happen before they are sent.
#[derive(Debug)]
pub(super) struct Held {
    /// Of the log.
    round: Option<u64>,
    followers: Option<Followers>,
    bytes: Vec<u8>,
    /// The replies to writes among those.
    replies: Vec<Range<usize>>,
}

/// Who must have what.
#[derive(Debug)]
struct Followers {
    level: Level,
    wanted: usize,
    timeout: Duration,
    needed: Vec<(ShardIndex, Seq)>,
}

impl Holder {
    /// For a turn that begins; `demands` has the bits of [`demand`].
    pub(super) fn new(worker: &Worker, demands: u8, session: &Session) -> Self {
        let begin = || Sync { demands: worker.rules.demands(), before: session.positions().collect() };
        Self {
            waits_for_log: demands & demand::DURABLE != 0,
            sync: (demands & demand::SYNC != 0).then(begin),
            start: None,
            replies: Vec::new(),
        }
    }

    /// These bytes are the reply to a command that has changed something.
    pub(super) fn wrote(&mut self, reply: Range<usize>) {
        self.tells(reply.start);
        self.replies.push(reply);
    }

    /// The reply that begins here may tell what a change did that waits, one's own or another's.
    pub(super) fn tells(&mut self, start: usize) {
        self.start.get_or_insert(start);
    }

    /// Whether the turn has made changes that wait for the log.
    pub(super) fn has_pending(&self) -> bool {
        self.waits_for_log && !self.replies.is_empty()
    }

    /// Takes what is to be held out of the turn's replies.
    pub(super) fn end(self, store: &Store, session: &Session, reply: &mut Reply) -> Option<Held> {
        let start = self.start?;
        let followers =
            self.sync.filter(|_| !self.replies.is_empty()).and_then(|Sync { demands, before }| {
                let is_new = |position: &(ShardIndex, u64, Seq)| !before.contains(position);
                Some(Followers {
                    level: demands.sync_level?,
                    wanted: demands.sync_followers,
                    timeout: demands.sync_timeout,
                    needed: session.positions().filter(is_new).map(|(shard, _, seq)| (shard, seq)).collect(),
                })
            });
        let round = self.waits_for_log.then(|| store.ask_for_a_round());
        if round.is_none() && followers.is_none() {
            return None;
        }
        let bytes = reply.as_bytes()[start..].to_vec();
        reply.truncate(start);
        let replies = self.replies.into_iter().map(|reply| reply.start - start..reply.end - start).collect();
        Some(Held { round, followers, bytes, replies })
    }
}

impl Followers {
    /// The least number of followers that have one of the writes. They need not be the same ones: each
    /// write is confirmed for itself.
    fn holders(&self, links: &Links) -> usize {
        self.needed.iter().map(|needed| links.holders(self.level, &[*needed])).min().unwrap_or(usize::MAX)
    }

    fn unconfirmed(&self, found: usize) -> String {
        let (wanted, timeout) = (self.wanted, self.timeout);
        format!(
            "-NOREPLICAS the write is applied here, but {found} of {wanted} followers confirmed it within {timeout:?}\r\n"
        )
    }
}

/// In place of replies while the disk is full.
const NO_SPACE: &str =
    "-MISCONF the write is not durable, since the log has no space: it may be done later, or not at all\r\n";

impl Held {
    /// The replies to send, once the log and followers have the writes or the time for followers is over.
    pub(super) async fn wait(self, worker: &Worker) -> Vec<u8> {
        let (store, links) = (&worker.context.store, &worker.context.links);
        if let Some(round) = self.round {
            // A log that fails ends the process; one without space may get some.
            let is_over = |_: &Links| match store.is_round_over(round) {
                true => Some(true),
                false => (store.log_state() == LogState::NoSpace).then_some(false),
            };
            if !worker.bell.on(links.wait_for_round(round, is_over)).await {
                worker.counters.errors.add(self.replies.len() as u64);
                return self.replies_instead(NO_SPACE);
            }
        }
        let Some(followers) = &self.followers else { return self.bytes };
        let enough = |links: &Links| (followers.holders(links) >= followers.wanted).then_some(());
        let wait = worker.bell.on(links.wait(followers.needed.clone(), enough));
        let node = &worker.context.node;
        let is_confirmed = tokio::select! {
            confirmed = tokio::time::timeout(followers.timeout, wait) => confirmed.is_ok(),
            // Nobody acknowledges anything to a node that follows.
            () = node.control.until(|| node.follows()) => false,
        };
        if is_confirmed {
            return self.bytes;
        }
        worker.counters.writes_unconfirmed.add(self.replies.len() as u64);
        worker.counters.errors.add(self.replies.len() as u64);
        self.replies_instead(&followers.unconfirmed(followers.holders(links)))
    }

    /// The replies, with this in place of each write's.
    fn replies_instead(&self, error: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let mut at = 0;
        for reply in &self.replies {
            out.extend_from_slice(&self.bytes[at..reply.start]);
            out.extend_from_slice(error.as_bytes());
            at = reply.end;
        }
        out.extend_from_slice(&self.bytes[at..]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_replies_to_writes_become_errors() {
        let followers = Followers {
            level: Level::Applied,
            wanted: 2,
            timeout: Duration::from_millis(50),
            needed: Vec::new(),
        };
        let held = Held {
            round: None,
            followers: None,
            bytes: b"+OK\r\n$1\r\nx\r\n:1\r\n".to_vec(),
            replies: vec![0..5, 12..16],
        };
        let text = String::from_utf8(held.replies_instead(&followers.unconfirmed(1))).unwrap();
        let error =
            "-NOREPLICAS the write is applied here, but 1 of 2 followers confirmed it within 50ms\r\n";
        assert_eq!(text, format!("{error}$1\r\nx\r\n{error}"));
    }
}
