//! Where a change stands that somebody remembers by epoch and seq: held here, still to come, or lost.
//!
//! A seq alone would lie after a failover: the new leader writes other changes under the seqs that the old
//! one gave out and nobody else had.

use super::{Store, Term};
use crate::slot::{Seq, ShardIndex};

/// Where a change stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The shard holds it, or what replaced it.
    Held,
    /// It may still come.
    Ahead,
    /// A later term of leadership began without it.
    Lost {
        /// That term's epoch.
        epoch: u64,
        /// Its first seq.
        first_seq: Seq,
    },
}

/// Judges by terms, oldest first, and the seq that the shard has reached.
fn position(lineage: &[Term], reached: Seq, epoch: u64, seq: Seq) -> Position {
    if let Some(next) = lineage.iter().find(|term| term.epoch > epoch) {
        let lived = lineage.iter().any(|term| term.epoch == epoch);
        if !lived || seq.0 >= next.first_seq {
            return Position::Lost { epoch: next.epoch, first_seq: Seq(next.first_seq) };
        }
    } else if lineage.last().is_none_or(|newest| newest.epoch < epoch) {
        return Position::Ahead;
    }
    if reached >= seq { Position::Held } else { Position::Ahead }
}

impl Store {
    /// Where a change of the shard stands.
    #[must_use]
    pub fn position(&self, shard: ShardIndex, epoch: u64, seq: Seq) -> Position {
        let locked = self.shared(shard);
        // A leader's store has no progress; a follower's slots may run ahead of its watermark.
        let reached = if locked.shard.leads() { locked.shard.seq() } else { locked.shard.progress().seq };
        position(locked.shard.lineage(), reached, epoch, seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_held_to_come_or_lost() {
        let terms = [(1, 1), (3, 91), (3, 95), (4, 120)];
        let lineage: Vec<_> = terms.map(|(epoch, first_seq)| term(epoch, first_seq)).into();
        let at = |epoch, seq| position(&lineage, Seq(110), epoch, Seq(seq));
        let lost = |epoch, first_seq| Position::Lost { epoch, first_seq: Seq(first_seq) };
        assert_eq!(at(1, 90), Position::Held);
        assert_eq!(at(1, 91), lost(3, 91), "the next leader had only 90");
        assert_eq!(at(2, 5), lost(3, 91), "an epoch that this lineage never lived through");
        assert_eq!(at(3, 91), Position::Held);
        assert_eq!(at(3, 110), Position::Held);
        assert_eq!(at(3, 119), Position::Ahead);
        assert_eq!(at(3, 120), lost(4, 120));
        assert_eq!(at(4, 130), Position::Ahead);
        assert_eq!(at(5, 1), Position::Ahead, "an epoch not heard of yet");
        assert_eq!(position(&[], Seq(0), 1, Seq(1)), Position::Ahead);
    }

    fn term(epoch: u64, first_seq: u64) -> Term {
        Term { epoch, id: epoch, first_seq }
    }
}
