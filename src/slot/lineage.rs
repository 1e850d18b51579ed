//! Terms of leadership, and where two histories part.
//!
//! A term is one incarnation of a leader: one process that gives out seqs, from its first one on until
//! another term begins. A promotion takes the next epoch; every opening of a leader's store takes a new
//! random id in the same epoch, so that two leaders of one epoch, or a leader and an older copy of its
//! directory, are told apart. Always true of a lineage: oldest first, epochs and first seqs never fall.

use crate::planted::{Bug, is_planted};

use super::Seq;

/// A term of leadership that a shard has lived through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Term {
    /// Number of the promotion that it belongs to.
    pub epoch: u64,
    /// Random; tells incarnations of one epoch apart.
    pub id: u64,
    /// First seq that belongs to it.
    pub first_seq: u64,
}

/// Bits of a term's id in its name.
const NAME_ID_BITS: u32 = 32;

impl Term {
    /// The term in one number, for those who remember a change: the epoch, then a part of the id. Clients that
    /// know no integers above 2^53 can hold it for two million epochs.
    #[must_use]
    pub fn name(&self) -> u64 {
        self.epoch << NAME_ID_BITS | self.id & (u64::MAX >> NAME_ID_BITS)
    }

    /// The epoch of the term that bears this name.
    #[must_use]
    pub fn epoch_of(name: u64) -> u64 {
        name >> NAME_ID_BITS
    }

    fn is(&self, other: &Self) -> bool {
        (self.epoch, self.id) == (other.epoch, other.id)
    }
}

/// The last seq up to which both sides have lived through the same, given their lineages and last seqs;
/// `None` = they have no term in common, so that nothing is known. A side that holds nothing shares
/// everything it has: `Seq::ZERO`.
#[must_use]
pub fn fork(ours: &[Term], our_head: Seq, theirs: &[Term], their_head: Seq) -> Option<Seq> {
    if our_head == Seq::ZERO || their_head == Seq::ZERO {
        return Some(Seq::ZERO);
    }
    let common = |at: &usize| theirs.iter().any(|term| term.is(&ours[*at]));
    let at = (0..ours.len()).rev().find(common)?;
    let there = theirs.iter().position(|term| term.is(&ours[at]))?;
    let shared = end(ours, at, our_head).min(end(theirs, there, their_head));
    if is_planted(Bug::ForkTooHigh) {
        return Some(shared.next().min(our_head.max(their_head)));
    }
    Some(shared)
}

/// Whether a side has lived through a part of this term, be its seqs others by now.
#[must_use]
pub fn knows(lineage: &[Term], term: &Term) -> bool {
    lineage.iter().any(|other| other.is(term))
}

/// Whether a side that has no term in common with ours may have had one: ours began earlier than is remembered
/// of it, and theirs has not gone further than that.
#[must_use]
pub fn is_forgotten(ours: &[Term], theirs: &[Term]) -> bool {
    let (Some(oldest), Some(last)) = (ours.first(), theirs.last()) else { return false };
    oldest.first_seq > 1 && last.epoch <= oldest.epoch
}

/// The last seq of the term at this place.
fn end(lineage: &[Term], at: usize, head: Seq) -> Seq {
    lineage.get(at + 1).map_or(head, |next| Seq(next.first_seq.saturating_sub(1))).min(head)
}

/// Adds a term to a lineage whose store holds nothing of the terms that begin behind it. A last term of
/// the same epoch that has no seq yet is replaced, unless it is one of the first: another node may have
/// gone on with that, and must be known as a relative.
pub fn begin(lineage: &mut Vec<Term>, term: Term) {
    lineage.retain(|other| other.first_seq <= term.first_seq);
    let is_first = |last: &Term| last.first_seq == 1 && last.id != 0;
    let is_unused =
        |last: &Term| (last.epoch, last.first_seq) == (term.epoch, term.first_seq) && !is_first(last);
    if lineage.last().is_some_and(is_unused) {
        lineage.pop();
    }
    lineage.push(term);
}

/// Adds a term that shares only what lies before its first seq with the terms before it, though these
/// went on: they stay known, as owners of nothing behind it.
pub fn cut(lineage: &mut Vec<Term>, term: Term) {
    for other in lineage.iter_mut() {
        other.first_seq = other.first_seq.min(term.first_seq);
    }
    lineage.push(term);
}

/// Whether a lineage is one.
#[must_use]
pub fn is_ordered(lineage: &[Term]) -> bool {
    !lineage.is_empty()
        && lineage.windows(2).all(|pair| {
            pair[0].epoch <= pair[1].epoch && pair[0].first_seq <= pair[1].first_seq && !pair[0].is(&pair[1])
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store of the model: its lineage, and for each seq which term wrote it.
    #[derive(Clone, PartialEq, Eq, Hash)]
    struct Model {
        lineage: Vec<Term>,
        log: Vec<(u64, u64)>,
    }

    impl Model {
        fn head(&self) -> Seq {
            Seq(self.log.len() as u64)
        }

        fn begin(&mut self, epoch: u64, id: u64) {
            let first_seq = self.head().0 + 1;
            begin(&mut self.lineage, Term { epoch, id, first_seq });
        }

        /// What `fork` must find: the longest common part.
        fn shared(&self, other: &Self) -> Seq {
            Seq(self.log.iter().zip(&other.log).take_while(|(a, b)| a == b).count() as u64)
        }
    }

    /// Every way of three nodes and five steps: a leader writes, restarts, is promoted from any follower's
    /// state, a follower takes any part of a leader's history, a directory is restored from a copy.
    #[test]
    fn the_fork_is_the_longest_common_history_in_every_small_world() {
        let start = Model { lineage: vec![Term { epoch: 1, id: 1, first_seq: 1 }], log: Vec::new() };
        let mut worlds = vec![[start.clone(), start.clone(), start]];
        let mut seen = std::collections::HashSet::new();
        let mut id = 1;
        let mut pairs = 0_u64;
        for _ in 0..5 {
            let mut next = Vec::new();
            for world in &worlds {
                for node in 0..3 {
                    id += 1;
                    // Starts again, or is promoted, and writes once or twice.
                    for (promotes, writes) in [(0, 1), (1, 1), (1, 2), (0, 0)] {
                        let mut world = world.clone();
                        let epoch = world[node].lineage.last().unwrap().epoch + promotes;
                        world[node].begin(epoch, id);
                        let term = world[node].lineage.last().unwrap();
                        let wrote = (term.epoch, term.id);
                        world[node].log.extend(std::iter::repeat_n(wrote, writes));
                        next.push(world);
                    }
                    for source in (0..3).filter(|source| *source != node) {
                        // Takes all of another's history, or all but its last seq.
                        for lost in 0..2 {
                            let mut world = world.clone();
                            let log = &world[source].log;
                            let log = log[..log.len().saturating_sub(lost)].to_vec();
                            world[node] = Model { lineage: world[source].lineage.clone(), log };
                            next.push(world);
                        }
                    }
                }
            }
            next.retain(|world| seen.insert(world.clone()));
            worlds = next;
            // The last rounds are many: a part of them stands for all.
            worlds.truncate(20_000);
            for world in &worlds {
                for (a, b) in [(0, 1), (1, 2), (2, 0)] {
                    let (a, b) = (&world[a], &world[b]);
                    assert!(is_ordered(&a.lineage));
                    let found = fork(&a.lineage, a.head(), &b.lineage, b.head());
                    assert_eq!(found, fork(&b.lineage, b.head(), &a.lineage, a.head()), "symmetric");
                    let related = a.log.first() == b.log.first() || a.log.is_empty() || b.log.is_empty();
                    match found {
                        Some(found) => assert_eq!(found, a.shared(b), "{:?} {:?}", a.lineage, b.lineage),
                        None => assert!(!related, "{:?} {:?}", a.lineage, b.lineage),
                    }
                    pairs += 1;
                }
            }
        }
        assert!(pairs > 50_000, "{pairs} pairs");
    }

    #[test]
    fn a_cut_shares_only_what_lies_before_it() {
        let term = |epoch, id, first_seq| Term { epoch, id, first_seq };
        let theirs = [term(1, 1, 1), term(1, 2, 500)];
        for (durable, wanted) in [(0, 0), (300, 300), (600, 600), (900, 700)] {
            let mut ours = theirs.to_vec();
            cut(&mut ours, term(2, 3, durable + 1));
            assert!(is_ordered(&ours));
            assert_eq!(fork(&ours, Seq(1_000), &theirs, Seq(700)), Some(Seq(wanted)));
        }
        assert_eq!(fork(&[term(1, 9, 1)], Seq(5), &theirs, Seq(5)), None);
        assert_eq!(fork(&[term(1, 9, 1)], Seq(5), &theirs, Seq::ZERO), Some(Seq::ZERO));
    }

    #[test]
    fn a_lineage_that_was_cut_at_its_begin_may_have_shared_what_is_older() {
        let term = |epoch, id, first_seq| Term { epoch, id, first_seq };
        let (ours, theirs) = ([term(7, 1, 900), term(8, 2, 950)], |epoch| [term(epoch, 9, 1)]);
        assert!(is_forgotten(&ours, &theirs(3)) && is_forgotten(&ours, &theirs(7)));
        assert!(!is_forgotten(&ours, &theirs(8)), "all terms since then are remembered");
        assert!(!is_forgotten(&[term(7, 1, 1), ours[1]], &theirs(3)), "it remembers its begin");
    }

    #[test]
    fn a_term_without_a_seq_is_replaced() {
        let term = |id, first_seq| Term { epoch: 1, id, first_seq };
        let mut lineage = vec![term(1, 1), term(2, 10), term(3, 20)];
        begin(&mut lineage, term(4, 20));
        assert_eq!(lineage, [term(1, 1), term(2, 10), term(4, 20)]);
        begin(&mut lineage, term(5, 15));
        assert_eq!(lineage, [term(1, 1), term(2, 10), term(5, 15)]);
    }
}
