//! Whether a key was touched since it was looked at: what a client's WATCH asks.
//!
//! Every change stamps its slot with a fresh seq, so a record that has its seq still was left alone. Where there is no
//! record there is no stamp: so each shard remembers its last deletions. A key that was put and deleted again longer ago
//! than those counts as untouched: it is as absent as it was.

use super::{Locked, ReadError, Store};
use crate::slot::Seq;

/// Deletions that a shard remembers.
const DELETIONS_KEPT: usize = 256;

/// A key as it was at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Last seq that the shard's readers saw then.
    head: Seq,
    /// The live record's; none if there was none.
    seq: Option<Seq>,
    /// [`Store::demotions`] then: seqs of another leader's history are not to be compared.
    demotions: u32,
}

/// A shard's last deletions of live records: index hash and seq, a ring. Expired records are absent before.
#[derive(Debug)]
pub(super) struct Deletions {
    kept: Box<[(u32, Seq)]>,
    next: usize,
}

impl Deletions {
    pub(super) fn new() -> Self {
        Self { kept: vec![(0, Seq::ZERO); DELETIONS_KEPT].into_boxed_slice(), next: 0 }
    }

    pub(super) fn note(&mut self, hash: u32, seq: Seq) {
        self.kept[self.next] = (hash, seq);
        self.next = (self.next + 1) % DELETIONS_KEPT;
    }

    fn has(&self, hash: u32, after: Seq) -> bool {
        self.kept.iter().any(|(kept, seq)| *kept == hash && *seq > after)
    }
}

impl Locked {
    /// A live record of this hash was deleted just now.
    pub(super) fn note_deletion(&mut self, hash: u32) {
        let seq = self.shard.made();
        self.deletions.note(hash, seq);
    }
}

impl Store {
    /// A key as readers see it now.
    pub fn mark(&self, key: &[u8]) -> Result<Mark, ReadError> {
        let place = self.geometry.place(key);
        let locked = self.shared(place.shard);
        let (_, live) = locked.live(self, place, key)?;
        Ok(Mark { head: locked.shard.seq(), seq: live.map(|view| view.seq()), demotions: self.demotions() })
    }

    /// Whether the key was left alone since; a change that waits for the log counts, a record that has expired does, too.
    pub fn is_marked(&self, key: &[u8], mark: &Mark) -> Result<bool, ReadError> {
        let place = self.geometry.place(key);
        let locked = self.shared(place.shard);
        let (_, latest) = locked.latest(self, place, key)?;
        let is_same = mark.seq == latest.map(|view| view.seq()) && mark.demotions == self.demotions();
        Ok(is_same && (mark.seq.is_some() || !locked.deletions.has(place.hash, mark.head)))
    }
}
