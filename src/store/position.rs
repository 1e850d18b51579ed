//! Where a change stands that somebody remembers by term and seq: held here, still to come, or lost.
//!
//! A seq alone would lie after a failover: the new leader writes other changes under the seqs that the old
//! one gave out and nobody else had. So would an epoch and a seq, where a leader has lost its last writes.

use std::fmt;

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

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held => f.write_str("it is held"),
            Self::Ahead => f.write_str("it may still come"),
            Self::Lost { epoch, first_seq } => {
                write!(f, "it is lost, epoch {epoch} began at seq {first_seq} without it")
            }
        }
    }
}

/// Judges by terms, oldest first, and the seq that the shard has reached. Only a leader has lived through all
/// terms of its epoch: a follower may not have heard of the newest.
pub(super) fn position(lineage: &[Term], leads: bool, reached: Seq, term: u64, seq: Seq) -> Position {
    let here = if reached >= seq { Position::Held } else { Position::Ahead };
    let lost = |by: &Term| Position::Lost { epoch: by.epoch, first_seq: Seq(by.first_seq) };
    let (Some(oldest), Some(newest)) = (lineage.first(), lineage.last()) else { return Position::Ahead };
    if let Some(at) = lineage.iter().position(|other| other.name() == term) {
        return match lineage.get(at + 1).filter(|next| seq.0 >= next.first_seq) {
            Some(next) => lost(next),
            None => here,
        };
    }
    let epoch = Term::epoch_of(term);
    match lineage.iter().find(|other| other.epoch > epoch) {
        // Too long ago: a lineage keeps so many terms only.
        _ if epoch <= oldest.epoch && seq.0 < oldest.first_seq => here,
        Some(next) => lost(next),
        None if newest.epoch == epoch && leads => lost(newest),
        None => Position::Ahead,
    }
}

impl Store {
    /// The name of the term that the shard is in: with a change's seq it tells where the change stands.
    #[must_use]
    pub fn term(&self, shard: ShardIndex) -> u64 {
        self.shared(shard).shard.lineage().last().map_or(0, Term::name)
    }

    /// Where a change of the shard stands that was made under this seq in the term of this name.
    #[must_use]
    pub fn position(&self, shard: ShardIndex, term: u64, seq: Seq) -> Position {
        let locked = self.shared(shard);
        // A leader's store has no progress; a follower's slots may run ahead of its watermark.
        let leads = locked.shard.leads();
        let reached = if leads { locked.shard.seq() } else { locked.shard.progress().seq };
        position(locked.shard.lineage(), leads, reached, term, seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_held_to_come_or_lost() {
        let lineage = [term(1, 1, 1), term(3, 2, 91), term(3, 3, 95), term(4, 4, 120)];
        let name = |epoch, id| term(epoch, id, 0).name();
        let at = |epoch, id, seq| position(&lineage, false, Seq(110), name(epoch, id), Seq(seq));
        let lost = |epoch, first_seq| Position::Lost { epoch, first_seq: Seq(first_seq) };
        assert_eq!(at(1, 1, 90), Position::Held);
        assert_eq!(at(1, 1, 91), lost(3, 91), "the next leader had only 90");
        assert_eq!(at(2, 9, 5), lost(3, 91), "an epoch that this lineage never lived through");
        assert_eq!(at(3, 2, 91), Position::Held);
        assert_eq!(at(3, 2, 95), lost(3, 95), "the leader came back without it, in the same epoch");
        assert_eq!(at(3, 3, 110), Position::Held);
        assert_eq!(at(3, 9, 100), lost(4, 120), "another leader of that epoch");
        assert_eq!(at(3, 3, 119), Position::Ahead);
        assert_eq!(at(3, 3, 120), lost(4, 120));
        assert_eq!(at(4, 4, 130), Position::Ahead);
        assert_eq!(at(5, 9, 1), Position::Ahead, "an epoch not heard of yet");
        assert_eq!(at(4, 9, 1), Position::Ahead, "a follower may hear of a newer term");
        assert_eq!(
            position(&lineage, true, Seq(130), name(4, 9), Seq(125)),
            lost(4, 120),
            "its leader does not"
        );
        assert_eq!(position(&[], false, Seq(0), name(1, 1), Seq(1)), Position::Ahead);
        assert_eq!(position(&lineage[1..], true, Seq(130), name(1, 1), Seq(90)), Position::Held, "long ago");
    }

    #[test]
    fn a_terms_name_is_its_epoch_and_a_part_of_its_id() {
        let name = term(7, 0xAAAA_BBBB_CCCC_DDDD, 1).name();
        assert_eq!((name, Term::epoch_of(name)), (0x0000_0007_CCCC_DDDD, 7));
    }

    fn term(epoch: u64, id: u64, first_seq: u64) -> Term {
        Term { epoch, id, first_seq }
    }
}
