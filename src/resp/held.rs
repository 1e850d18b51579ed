//! Replies that wait for followers: from a turn's first write on, in order, for as long as it takes.
//!
//! A turn waits once, for its last write to each shard. When the time is over the reply to each of its
//! writes becomes an error: the writes are done here, and that they are anywhere else is not known.

use std::ops::Range;
use std::time::Duration;

use super::reply::Reply;
use super::rules::Demands;
use super::session::Session;
use super::worker::Worker;
use crate::links::{Level, Links};
use crate::slot::{Seq, ShardIndex};

/// Notes where the replies to a turn's writes are.
#[derive(Debug)]
pub(super) struct Holder {
    demands: Demands,
    before: Vec<(ShardIndex, u64, Seq)>,
    replies: Vec<Range<usize>>,
}

/// Replies, and what must happen before they are sent.
#[derive(Debug)]
pub(super) struct Held {
    level: Level,
    wanted: usize,
    timeout: Duration,
    needed: Vec<(ShardIndex, Seq)>,
    bytes: Vec<u8>,
    /// The replies to writes among those.
    replies: Vec<Range<usize>>,
}

impl Holder {
    /// For a turn that begins.
    pub(super) fn new(demands: Demands, session: &Session) -> Self {
        Self { demands, before: session.positions().collect(), replies: Vec::new() }
    }

    /// These bytes are the reply to a command that has changed something.
    pub(super) fn wrote(&mut self, reply: Range<usize>) {
        self.replies.push(reply);
    }

    /// Takes what is to be held out of the turn's replies.
    pub(super) fn end(self, session: &Session, reply: &mut Reply) -> Option<Held> {
        let start = self.replies.first()?.start;
        let level = self.demands.sync_level?;
        let is_new = |position: &(ShardIndex, u64, Seq)| !self.before.contains(position);
        let needed = session.positions().filter(is_new).map(|(shard, _, seq)| (shard, seq)).collect();
        let bytes = reply.as_bytes()[start..].to_vec();
        reply.truncate(start);
        Some(Held {
            level,
            wanted: self.demands.sync_followers,
            timeout: self.demands.sync_timeout,
            needed,
            bytes,
            replies: self.replies.into_iter().map(|reply| reply.start - start..reply.end - start).collect(),
        })
    }
}

impl Held {
    /// The least number of followers that have one of the writes. They need not be the same ones: each
    /// write is confirmed for itself.
    fn holders(&self, links: &Links) -> usize {
        self.needed.iter().map(|needed| links.holders(self.level, &[*needed])).min().unwrap_or(usize::MAX)
    }

    /// The replies to send, once followers have the writes or the time is over.
    pub(super) async fn wait(self, worker: &Worker) -> Vec<u8> {
        let links = &worker.context.links;
        let enough = |links: &Links| (self.holders(links) >= self.wanted).then_some(());
        let wait = worker.bell.on(links.wait(self.needed.clone(), enough));
        let node = &worker.context.node;
        let is_confirmed = tokio::select! {
            confirmed = tokio::time::timeout(self.timeout, wait) => confirmed.is_ok(),
            // Nobody acknowledges anything to a node that follows.
            () = node.control.until(|| node.follows()) => false,
        };
        if is_confirmed {
            return self.bytes;
        }
        worker.counters.writes_unconfirmed.add(self.replies.len() as u64);
        worker.counters.errors.add(self.replies.len() as u64);
        self.unconfirmed(self.holders(links))
    }

    /// The replies, with an error in place of each write's.
    fn unconfirmed(&self, found: usize) -> Vec<u8> {
        let (wanted, timeout) = (self.wanted, self.timeout);
        let error = format!(
            "-NOREPLICAS the write is applied here, but {found} of {wanted} followers confirmed it within {timeout:?}\r\n"
        );
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
        let held = Held {
            level: Level::Applied,
            wanted: 2,
            timeout: Duration::from_millis(50),
            needed: Vec::new(),
            bytes: b"+OK\r\n$1\r\nx\r\n:1\r\n".to_vec(),
            replies: vec![0..5, 12..16],
        };
        let text = String::from_utf8(held.unconfirmed(1)).unwrap();
        let error =
            "-NOREPLICAS the write is applied here, but 1 of 2 followers confirmed it within 50ms\r\n";
        assert_eq!(text, format!("{error}$1\r\nx\r\n{error}"));
    }
}
