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

impl Shard {
    pub(super) fn begin_regain(&mut self) {
        self.tail = Some(self.state.durable_seq);
    }

    /// While the shard waits for its tail: everything up to here is held.
    #[must_use]
    pub fn tail(&self) -> Option<Seq> {
        self.tail
    }

    /// A follower that holds everything up to `through` has sent all that is newer than what was held.
    pub fn regained(&mut self, through: Seq) {
        if !is_planted(Bug::RegainedForgotten) {
            self.tail = self.tail.map(|tail| tail.max(through));
        }
    }

    /// Takes the new term. All that is left, or came back, is made durable first: so it need not be asked
    /// for again. On an error the shard still waits for its tail, and the process must end: a second sync of
    /// the same pages would say that all is well.
    pub fn end_regain(&mut self, host: Host, term_id: u64) -> io::Result<()> {
        let Some(tail) = self.tail else { return Ok(()) };
        let reserved = Seq(self.state.seq_reserved);
        self.slots.region.sync()?;
        // A follower may be through to a seq whose slot was changed again, and then lost here.
        self.seq = self.seq.max(tail);
        let through = if is_planted(Bug::RegainedTooHigh) { self.seq } else { tail };
        if self.seq == Seq::ZERO {
            self.begin_term(self.epoch(), term_id);
        } else {
            let mut terms = self.state.lineage.clone();
            let first_seq = through.next().0;
            lineage::cut(&mut terms, Term { epoch: self.epoch(), id: term_id, first_seq });
            self.set_lineage(&terms);
        }
        self.state.durable_seq = self.seq;
        self.note_host(host, term_id);
        self.sync_header()?;
        self.tail = None;
        self.skip_to(reserved);
        // Changes of the new term: in the old one a follower may hold others with their seqs.
        self.bury_twins();
        Ok(())
    }
}
