//! WAIT: how many followers have applied this connection's writes. WAITAOF: whether they are durable here, and on
//! how many followers.
//!
//! A follower counts if, for every shard that the connection has written to, it has a link and has
//! acknowledged the seq of the connection's last write there as applied. A connection is woken only by an
//! Ack that passes one of those seqs.

use std::time::Duration;

use super::super::error::CommandError;
use super::super::number::{Decimal, parse_i64};
use super::super::reply::Reply;
use super::super::worker::Worker;
use super::position::Positions;
use super::{Call, Flow, xread};
use crate::links::{Level, Links};
use crate::resp::context::Role;
use crate::slot::{Seq, ShardIndex};
use crate::store::Store;

/// What a client waits for.
#[derive(Debug)]
pub(in crate::resp) enum Request {
    /// Followers to have something.
    Followers(Followers),
    /// This node to have something.
    Positions(Positions),
    /// Records to change.
    Changes(xread::Read),
    /// This node and followers to have something where a power cut does not take it.
    Durable(Durable),
    /// Time to pass.
    Time(Duration),
}

impl Request {
    /// Whether it is a follower that waits for this, or a leader; `None`: either.
    pub(in crate::resp) fn is_of_follower(&self) -> Option<bool> {
        match self {
            Self::Followers(_) | Self::Durable(_) => Some(false),
            Self::Positions(_) => Some(true),
            Self::Changes(_) | Self::Time(_) => None,
        }
    }

    /// The reply, when there is one.
    pub(in crate::resp) async fn answer(self, worker: &Worker, resp3: bool) -> Vec<u8> {
        match self {
            Self::Positions(positions) => {
                let mut reply = Reply::default();
                reply.begin(resp3);
                match positions.wait(worker).await {
                    Ok(true) => reply.ok(),
                    Ok(false) => reply.null(),
                    Err(error) => reply.error(&error.message()),
                }
                worker.counters.errors.add(reply.take_errors());
                reply.as_bytes().to_vec()
            }
            Self::Changes(read) => read.answer(worker, resp3).await,
            Self::Time(time) => {
                tokio::time::sleep(time).await;
                b"+OK\r\n".to_vec()
            }
            Self::Durable(durable) => {
                let (here, followers) = durable.wait(worker).await;
                durable_reply(here, followers)
            }
            Self::Followers(followers) => {
                let holders = followers.wait(worker).await;
                [b":", Decimal::unsigned(holders as u64).as_bytes(), b"\r\n"].concat()
            }
        }
    }
}

/// Followers that are to have something.
#[derive(Debug)]
pub(in crate::resp) struct Followers {
    level: Level,
    wanted: usize,
    /// `None`: for ever.
    timeout: Option<Duration>,
    needed: Vec<(ShardIndex, Seq)>,
}

impl Followers {
    fn holders(&self, links: &Links) -> usize {
        links.holders(self.level, &self.needed)
    }

    /// Waits until enough followers have everything, or the time is over; how many have it then.
    async fn wait(&self, worker: &Worker) -> usize {
        let links = &worker.context.links;
        let enough = |links: &Links| {
            let holders = self.holders(links);
            (holders >= self.wanted).then_some(holders)
        };
        let wait = worker.bell.on(links.wait(self.needed.clone(), enough));
        match self.timeout {
            Some(timeout) => {
                tokio::time::timeout(timeout, wait).await.unwrap_or_else(|_| self.holders(links))
            }
            None => wait.await,
        }
    }
}

/// Nodes that are to have something durably.
#[derive(Debug)]
pub(in crate::resp) struct Durable {
    wants_here: bool,
    followers: Followers,
}

impl Durable {
    /// Whether it is durable here, and on how many followers.
    fn holders(&self, store: &Store, links: &Links) -> (bool, usize) {
        let here = self.followers.needed.iter().all(|(shard, seq)| store.durable(*shard) >= *seq);
        (here && store.has_log(), self.followers.holders(links))
    }

    fn is_enough(&self, (here, followers): (bool, usize)) -> bool {
        (here || !self.wants_here) && followers >= self.followers.wanted
    }

    async fn wait(&self, worker: &Worker) -> (bool, usize) {
        let (store, links) = (&worker.context.store, &worker.context.links);
        let enough = |links: &Links| Some(self.holders(store, links)).filter(|found| self.is_enough(*found));
        let wait = worker.bell.on(links.wait(self.followers.needed.clone(), enough));
        match self.followers.timeout {
            Some(timeout) => {
                tokio::time::timeout(timeout, wait).await.unwrap_or_else(|_| self.holders(store, links))
            }
            None => wait.await,
        }
    }
}

fn durable_reply(here: bool, followers: usize) -> Vec<u8> {
    format!("*2\r\n:{}\r\n:{followers}\r\n", u8::from(here)).into_bytes()
}

/// `WAITAOF numlocal numreplicas timeout`
pub(in crate::resp) fn waitaof(call: &mut Call<'_>) -> Result<Flow, CommandError> {
    let wants_here = match call.args.integer(1)? {
        0 => false,
        1 => true,
        _ => return Err(CommandError::text("ERR value is out of range, must be 0 or 1")),
    };
    let wanted = usize::try_from(call.args.integer(2)?)
        .map_err(|_| CommandError::text("ERR value is out of range, must be positive"))?;
    let timeout = timeout(call.args.at(3))?;
    if matches!(*call.worker.context.node.role.read(), Role::Follower { .. }) {
        return Err(CommandError::text("ERR WAITAOF cannot be used with replica instances."));
    }
    if wants_here && !call.store().has_log() {
        return Err(CommandError::text(
            "ERR WAITAOF cannot be used when numlocal is set but this node keeps no log (--durability)",
        ));
    }
    let Some(needed) = call.session.written(call.store()) else {
        // This node has followed another since those writes: nobody can say whether they live on.
        call.reply.array(2);
        call.reply.count(0);
        call.reply.count(0);
        return Ok(Flow::Done);
    };
    let followers = Followers { level: Level::Durable, wanted, timeout, needed };
    let durable = Durable { wants_here, followers };
    let found = durable.holders(call.store(), &call.worker.context.links);
    if durable.is_enough(found) || call.in_exec {
        call.reply.array(2);
        call.reply.count(u64::from(found.0));
        call.reply.count(found.1 as u64);
        return Ok(Flow::Done);
    }
    Ok(Flow::Wait(Request::Durable(durable)))
}

/// A time-out in milliseconds; `None` = for ever.
pub(super) fn timeout(argument: &[u8]) -> Result<Option<Duration>, CommandError> {
    let ms =
        parse_i64(argument).ok_or(CommandError::text("ERR timeout is not an integer or out of range"))?;
    let ms = u64::try_from(ms).map_err(|_| CommandError::text("ERR timeout is negative"))?;
    Ok((ms > 0).then(|| Duration::from_millis(ms)))
}

/// `WAIT numreplicas timeout`
pub(in crate::resp) fn wait(call: &mut Call<'_>) -> Result<Flow, CommandError> {
    if matches!(*call.worker.context.node.role.read(), Role::Follower { .. }) {
        return Err(CommandError::text(
            "ERR WAIT cannot be used with replica instances. Please also note that since Redis 4.0 if a \
             replica is configured to be writable (which is not the default) writes to replicas are just \
             local and are not propagated.",
        ));
    }
    let wanted = usize::try_from(call.args.integer(1)?).unwrap_or(0);
    let timeout = timeout(call.args.at(2))?;
    let Some(needed) = call.session.written(call.store()) else {
        // This node has followed another since those writes: nobody can say whether they live on.
        call.reply.count(0);
        return Ok(Flow::Done);
    };
    let followers = Followers { level: Level::Applied, wanted, timeout, needed };
    let holders = followers.holders(&call.worker.context.links);
    if holders >= wanted || call.in_exec {
        call.reply.count(holders as u64);
        return Ok(Flow::Done);
    }
    Ok(Flow::Wait(Request::Followers(followers)))
}
