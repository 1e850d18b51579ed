//! Read your writes on any node: SLOTSTREAM.LASTSEQ says where a connection's writes lie, and
//! SLOTSTREAM.WAITSEQ on another connection, to a follower, waits until they are there.

use std::time::Duration;

use super::super::error::CommandError;
use super::super::worker::Worker;
use super::{Call, Flow, wait};
use crate::links::Links;
use crate::resp::context::Role;
use crate::slot::{Seq, ShardIndex};
use crate::store::{Position, Store, Term};

/// A change, named as LASTSEQ names it.
type Change = (ShardIndex, u64, Seq);

/// `SLOTSTREAM.LASTSEQ [key]`: shard, term and seq of this connection's last write to each shard, or to the
/// key's shard only.
pub(in crate::resp) fn lastseq(call: &mut Call<'_>) -> Result<Flow, CommandError> {
    if call.args.len() > 2 {
        return Err(call.arity_error());
    }
    let of_key = call.args.get(1).map(|key| call.store().shard_of(key));
    let is_asked = |(shard, _, _): &Change| of_key.is_none_or(|wanted| wanted == *shard);
    let changes: Vec<_> = call.session.positions().filter(is_asked).collect();
    call.reply.array(changes.len() * 3);
    for (shard, term, seq) in changes {
        call.reply.count(shard.0.into());
        call.reply.count(term);
        call.reply.count(seq.0);
    }
    Ok(Flow::Done)
}

/// `SLOTSTREAM.WAITSEQ timeout-ms [shard term seq ...]`: OK once this node holds all of these; null when the
/// time is over (0 = never), and at once on a leader, which holds what it will hold.
pub(in crate::resp) fn waitseq(call: &mut Call<'_>) -> Result<Flow, CommandError> {
    if !(call.args.len() - 2).is_multiple_of(3) {
        return Err(call.arity_error());
    }
    let timeout = wait::timeout(call.args.at(1))?;
    let mut changes = Vec::new();
    for at in (2..call.args.len()).step_by(3) {
        let number = |at| u64::try_from(call.args.integer(at)?).map_err(|_| CommandError::NotInteger);
        changes.push((shard(call, number(at)?)?, number(at + 1)?, Seq(number(at + 2)?)));
    }
    let positions = Positions { changes, timeout };
    match positions.look(call.store())? {
        true => call.reply.ok(),
        false if call.in_exec || *call.worker.context.node.role.read() == Role::Leader => call.reply.null(),
        false => return Ok(Flow::Wait(wait::Request::Positions(positions))),
    }
    Ok(Flow::Done)
}

/// A shard that this node carries.
pub(super) fn shard(call: &Call<'_>, found: u64) -> Result<ShardIndex, CommandError> {
    let shard_count = call.store().geometry().shard_count;
    let Some(shard) = u16::try_from(found).ok().filter(|shard| *shard < shard_count) else {
        let text = format!("ERR no shard {found}, this store has shards 0 to {}", shard_count - 1);
        return Err(CommandError::Text(text.into()));
    };
    let follows = matches!(*call.worker.context.node.role.read(), Role::Follower { .. });
    if follows && !call.worker.context.links.all().iter().any(|cell| cell.shard == shard) {
        return Err(CommandError::Text(format!("ERR this follower does not carry shard {shard}").into()));
    }
    Ok(ShardIndex(shard))
}

/// Changes that this node is to hold.
#[derive(Debug)]
pub(in crate::resp) struct Positions {
    changes: Vec<Change>,
    timeout: Option<Duration>,
}

impl Positions {
    /// Whether all are held; an error if one will never be.
    fn look(&self, store: &Store) -> Result<bool, CommandError> {
        let mut are_here = true;
        for (shard, term, seq) in &self.changes {
            match store.position(*shard, *term, *seq) {
                Position::Held => {}
                Position::Ahead => are_here = false,
                Position::Lost { epoch: taken, first_seq } => {
                    let text = format!(
                        "LOSTSEQ shard {shard}: a leader of epoch {taken} took over at seq {first_seq} without seq \
                         {seq} of epoch {}",
                        Term::epoch_of(*term)
                    );
                    return Err(CommandError::Text(text.into()));
                }
            }
        }
        Ok(are_here)
    }

    /// Whether all are held before the time is over.
    pub(super) async fn wait(self, worker: &Worker) -> Result<bool, CommandError> {
        let store = &worker.context.store;
        let targets = self.changes.iter().map(|(shard, _, seq)| (*shard, *seq)).collect();
        let look = |_: &Links| match self.look(store) {
            Ok(false) => None,
            other => Some(other),
        };
        let wait = worker.bell.on(worker.context.links.wait(targets, look));
        match self.timeout {
            Some(timeout) => tokio::time::timeout(timeout, wait).await.unwrap_or(Ok(false)),
            None => wait.await,
        }
    }
}
