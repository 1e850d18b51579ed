//! WAIT: how many followers have applied this connection's writes.
//!
//! A follower counts if, for every shard that the connection has written to, it has a link and has
//! acknowledged the seq of the connection's last write there as applied.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use uuid::Uuid;

use super::super::error::CommandError;
use super::super::number::parse_i64;
use super::{Call, Flow};
use crate::links::{LinkCell, Links, Phase};
use crate::resp::context::Role;
use crate::slot::Seq;

/// What a client waits for.
#[derive(Debug)]
pub(in crate::resp) struct Request {
    followers: usize,
    /// `None`: for ever.
    timeout: Option<Duration>,
    /// By shard; zero = not written.
    written: Vec<Seq>,
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
    let followers = call.args.integer(1)?;
    let timeout_ms = parse_i64(call.args.at(2))
        .ok_or(CommandError::text("ERR timeout is not an integer or out of range"))?;
    let timeout_ms = u64::try_from(timeout_ms).map_err(|_| CommandError::text("ERR timeout is negative"))?;
    let request = Request {
        followers: usize::try_from(followers).unwrap_or(0),
        timeout: (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms)),
        written: call.session.written().to_vec(),
    };
    let applied = request.applied(&call.worker.context.links);
    if applied >= request.followers || call.in_exec {
        call.reply.count(applied as u64);
        return Ok(Flow::Done);
    }
    Ok(Flow::Wait(request))
}

impl Request {
    /// Followers that have everything.
    fn applied(&self, links: &Links) -> usize {
        let cells = links.all();
        let is_connected =
            |cell: &LinkCell| !matches!(cell.phase(), Phase::Connecting | Phase::Refused | Phase::Closed);
        let followers: BTreeSet<Uuid> =
            cells.iter().filter(|cell| is_connected(cell)).map(|cell| cell.follower).collect();
        let has_shard = |follower: &Uuid, shard: usize, seq: Seq| {
            cells.iter().any(|cell| {
                cell.follower == *follower
                    && usize::from(cell.shard) == shard
                    && is_connected(cell)
                    && cell.applied_seq.load(Ordering::Relaxed) >= seq.0
            })
        };
        let has_all = |follower: &&Uuid| {
            let written = self.written.iter().enumerate().filter(|(_, seq)| **seq != Seq::ZERO);
            written.into_iter().all(|(shard, seq)| has_shard(follower, shard, *seq))
        };
        followers.iter().filter(has_all).count()
    }

    /// Waits until enough followers have everything, or the time is over; how many have it then.
    pub(in crate::resp) async fn wait(self, links: &Links, bell: &Arc<AckBell>) -> usize {
        let enough = async {
            loop {
                let mut acked = pin!(bell.rung.notified());
                // Listening before the look, so that an Ack in between is not missed.
                acked.as_mut().enable();
                bell.listen(links);
                if self.applied(links) >= self.followers {
                    return;
                }
                acked.await;
            }
        };
        match self.timeout {
            // On time out the count below is the answer, as it is otherwise.
            Some(timeout) => drop(tokio::time::timeout(timeout, enough).await),
            None => enough.await,
        }
        self.applied(links)
    }
}

/// Wakes all who wait on one worker at the next Ack. It is registered with the links once at a time,
/// so that clients who wait in vain leave nothing behind.
#[derive(Debug, Default)]
pub(in crate::resp) struct AckBell {
    rung: Notify,
    is_listening: AtomicBool,
}

impl AckBell {
    fn listen(self: &Arc<Self>, links: &Links) {
        if !self.is_listening.swap(true, Ordering::SeqCst) {
            links.on_ack(Waker::from(Arc::clone(self)));
        }
    }
}

impl Wake for AckBell {
    fn wake(self: Arc<Self>) {
        // In this order: who then finds the bell listening is among those who are notified.
        self.is_listening.store(false, Ordering::SeqCst);
        self.rung.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::Seq;

    fn request(timeout: Option<Duration>) -> Request {
        Request { followers: 1, timeout, written: vec![Seq::ZERO, Seq(7)] }
    }

    #[test]
    fn an_ack_ends_the_wait() {
        let links = Links::new();
        let cell = LinkCell::new(Uuid::from_u128(1), ([127, 0, 0, 1], 1).into(), 0, 1);
        cell.set_phase(Phase::Stream);
        links.add(Arc::clone(&cell));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let bell = Arc::new(AckBell::default());
            let task = {
                let (links, bell) = (Arc::clone(&links), Arc::clone(&bell));
                tokio::spawn(async move { request(None).wait(&links, &bell).await })
            };
            // The task looks and finds too little; then an Ack that is not enough; then one that is.
            tokio::task::yield_now().await;
            for (seq, is_done) in [(6, false), (7, true)] {
                cell.applied_seq.store(seq, Ordering::Relaxed);
                links.notify_ack();
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
                assert_eq!(task.is_finished(), is_done, "after an Ack of {seq}");
            }
            assert_eq!(task.await.unwrap(), 1);
        });
    }

    #[test]
    fn a_wait_in_vain_ends_in_time() {
        let links = Links::new();
        let bell = Arc::new(AckBell::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        for _ in 0..3 {
            let wait = request(Some(Duration::from_millis(5))).wait(&links, &bell);
            assert_eq!(runtime.block_on(wait), 0);
        }
    }
}
