//! A leader's shard after an OS crash: any slot may be older than it was, and nobody here knows which.
//!
//! What an orderly close made durable is held for sure; what was written later may be gone, and followers may
//! have it. Until they were asked the shard's file is as the crash left it, but for newer images of slots,
//! so that a process that dies meanwhile leaves the same question to the next one. Then the shard takes a
//! new term, which shares with the ones before only what is held for sure by then: what a follower holds
//! beyond may differ from what is left here. Not a new epoch: a leader that was replaced while it was down
//! must not look newer than its successor.

use std::io;

use crate::planted::{Bug, is_planted};
use crate::slot::{Seq, lineage};

use super::recover::Host;
use super::{Shard, Term};

/// What a shard waits for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tail {
    /// Everything up to here is held.
    held: Seq,
    /// Nothing is taken back any more.
    is_closed: bool,
}

impl Shard {
    pub(super) fn begin_regain(&mut self) {
        self.tail = Some(Tail { held: self.state.durable_seq, is_closed: false });
    }

    /// While the shard waits for its tail: everything up to here is held.
    #[must_use]
    pub fn tail(&self) -> Option<Seq> {
        self.tail.map(|tail| tail.held)
    }

    /// Whether what followers give back may still be applied.
    #[must_use]
    pub fn takes_back(&self) -> bool {
        self.tail.is_some_and(|tail| !tail.is_closed)
    }

    /// A follower that holds everything up to `through` has sent all that is newer than what was held.
    pub fn regained(&mut self, through: Seq) {
        if let Some(tail) = &mut self.tail
            && !is_planted(Bug::RegainedForgotten)
        {
            tail.held = tail.held.max(through);
        }
    }

    /// Takes nothing back from here on: no slot changes before the new term begins.
    pub fn close_regain(&mut self) {
        if let Some(tail) = &mut self.tail {
            tail.is_closed = true;
        }
    }

    /// Takes the new term, once nothing is taken back any more, and after that all that is left, or came back, was
    /// made durable: so it need not be asked for again. On an error the shard still waits for its tail, and the
    /// process must end: a second sync of the same pages would say that all is well.
    pub fn end_regain(&mut self, host: Host, term_id: u64) -> io::Result<()> {
        let Some(Tail { held: tail, is_closed }) = self.tail else { return Ok(()) };
        assert!(is_closed, "what comes during a sync may not be durable after it");
        let reserved = Seq(self.state.seq_reserved);
        // A follower may be through to a seq whose slot was changed again, and then lost here.
        self.seq = self.seq.max(tail);
        let through = if is_planted(Bug::RegainedTooHigh) { self.seq } else { tail };
        if self.seq == Seq::ZERO {
            self.add_term(self.epoch(), term_id);
        } else {
            let mut terms = self.state.lineage.clone();
            let first_seq = through.next().0;
            lineage::cut(&mut terms, Term { epoch: self.epoch(), id: term_id, first_seq });
            self.keep_terms(terms);
        }
        self.state.durable_seq = self.seq;
        self.state.slots_durable = self.slots_formatted();
        self.note_host(host, term_id);
        self.sync_state()?;
        self.tail = None;
        self.skip_to(reserved);
        // Changes of the new term: in the old one a follower may hold others with their seqs.
        self.bury_twins();
        Ok(())
    }
}
