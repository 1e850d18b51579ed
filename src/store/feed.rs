//! What changed in a shard, for programs that follow a store without being a follower.
//!
//! There is no log of changes, and so nothing to keep for a reader: a feed gives the newest state of every
//! slot that changed after the seq where the reader is, in the order of seqs. Always true:
//! - each change is newer than the one before it; a reader that goes on after the last one it has misses no
//!   slot, and what was overwritten before it came is left out;
//! - a reader that has drained the feed knows every slot as it is;
//! - a place in a history that was given up is an error, and never gone on from in silence.
//!
//! A deletion names its key only until its slot is used again. So a reader that keeps keys keeps them by slot:
//! a change of a slot replaces what the slot held before, also another key.
//!
//! How: look through the block summaries for slots that changed, take those with the least seqs, sort them,
//! give them out. A slot that changes meanwhile is left out here, since it comes again with its newer seq.
//! Nothing is attached to the store: a reader costs writers nothing but short turns of the shared lock.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLockReadGuard;

use super::position::{Position, position};
use super::{Locked, Scan, Store, Term};
use crate::shard::header::Step;
use crate::slot::{Seq, ShardIndex, SlotError, SlotIndex, SlotView, Status};

/// Slots that a feed looks out for at one time, at 16 bytes each: a shard in which more changed is looked through
/// several times.
pub const PLAN_SLOTS_MAX: usize = 1 << 18;
/// Changes given out under one lock.
const GIVEN_AT_ONCE: usize = 64;
/// How often who waits looks: soon after there was something, seldom after a while.
pub const NAP_MIN: Duration = Duration::from_millis(1);
/// See [`NAP_MIN`].
pub const NAP_MAX: Duration = Duration::from_millis(20);

/// Names a change of a shard, and the place behind it: the term that made it, and its seq.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ChangeId {
    /// Name of the term, see [`Term::name`].
    pub term: u64,
    /// Its seq. Zero: before all changes, in whatever term.
    pub seq: Seq,
}

impl ChangeId {
    /// Before all changes.
    pub const START: Self = Self { term: 0, seq: Seq::ZERO };

    fn new(lineage: &[Term], seq: Seq) -> Self {
        // A lineage keeps so many terms only: what is older bears the oldest one's name.
        let owner = lineage.iter().rev().find(|term| term.first_seq <= seq.0).or(lineage.first());
        Self { term: owner.map_or(0, Term::name), seq }
    }
}

impl fmt::Display for ChangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.term, self.seq.0)
    }
}

/// The text is no id of a change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("found {found:?}, wanted TERM-SEQ as a change names itself, or 0 for the start")]
pub struct NoChangeId {
    /// The text.
    pub found: String,
}

impl FromStr for ChangeId {
    type Err = NoChangeId;

    fn from_str(text: &str) -> Result<Self, NoChangeId> {
        let number = |text: &str| {
            let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| is_plain)
        };
        let (term, seq) = text.split_once('-').unwrap_or((text, "0"));
        match (number(term), number(seq)) {
            // A seq without its term could be anybody's, and a term alone is no place.
            (Some(0), Some(0)) => Ok(Self::START),
            (Some(term), Some(seq)) if term > 0 && text.contains('-') && seq <= Seq::MAX.0 => {
                Ok(Self { term, seq: Seq(seq) })
            }
            _ => Err(NoChangeId { found: text.chars().take(64).collect() }),
        }
    }
}

/// Why a feed does not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    /// The reader's last change was given up in a failover: a later term began without it. What the reader holds
    /// of the shard may be anything; it forgets that and begins again at [`ChangeId::START`].
    #[error("shard {shard}: a leader of epoch {epoch} took over at seq {first_seq} without seq {} of epoch {}", id.seq, Term::epoch_of(id.term))]
    Lost {
        /// The shard.
        shard: ShardIndex,
        /// Where the reader is.
        id: ChangeId,
        /// Epoch of the term that began without it.
        epoch: u64,
        /// That term's first seq: what lies before it still holds.
        first_seq: Seq,
    },
    /// A slot that may have changed is damaged: until it is healed the feed does not go past it.
    #[error(
        "shard {shard}: slot {slot}: {error}; no change of this shard is told until that slot is written again, or healed \
         by a leader (a follower of this node may lead)"
    )]
    Damaged {
        /// The shard.
        shard: ShardIndex,
        /// The slot.
        slot: SlotIndex,
        /// What is wrong with it.
        error: SlotError,
    },
}

/// Whether a feed has more to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fed {
    /// More may be there now: read on.
    More,
    /// Everything was given out.
    Drained,
}

/// One shard's changes from a place on.
#[derive(Debug)]
pub struct ChangeFeed {
    shard: ShardIndex,
    last: ChangeId,
    /// Everything up to here was given out, or comes again with a newer seq.
    through: Seq,
    stage: Stage,
    plan_slots_max: usize,
}

#[derive(Debug)]
enum Stage {
    Idle,
    /// Looking for the least seqs in a range.
    Look {
        plan: Plan,
        scan: Scan,
        found: Vec<(Seq, SlotIndex)>,
    },
    /// Giving out what was found, the next one last.
    Give {
        plan: Plan,
        found: Vec<(Seq, SlotIndex)>,
    },
}

/// What a plan is good for.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// Made in this term: a term later, slots may have gone back.
    term: u64,
    /// Covers the seqs up to here.
    until: Seq,
}

impl ChangeFeed {
    /// The changes after `last`. It looks out for at most `plan_slots_max` slots at a time.
    #[must_use]
    pub fn new(shard: ShardIndex, last: ChangeId, plan_slots_max: usize) -> Self {
        let plan_slots_max = plan_slots_max.max(1);
        Self { shard, last, through: last.seq, stage: Stage::Idle, plan_slots_max }
    }

    /// The shard.
    #[must_use]
    pub fn shard(&self) -> ShardIndex {
        self.shard
    }

    /// The last change given out: where another feed would go on.
    #[must_use]
    pub fn last(&self) -> ChangeId {
        self.last
    }

    /// Takes one step: looks on, or gives at most `count_max` changes to `take`. It holds the shard's lock shared
    /// for some microseconds, and for what `take` does with up to 64 changes.
    pub fn step(
        &mut self,
        store: &Store,
        count_max: usize,
        take: impl FnMut(ChangeId, SlotIndex, &SlotView<'_>),
    ) -> Result<Fed, FeedError> {
        let locked = store.shared(self.shard);
        let Some(reached) = self.reached(&locked)? else {
            self.restart();
            return Ok(Fed::Drained);
        };
        let term = locked.shard.lineage().last().map_or(0, Term::name);
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Look { plan, .. } | Stage::Give { plan, .. }
                if plan.term != term || plan.until > reached =>
            {
                self.restart();
                Ok(Fed::More)
            }
            Stage::Idle if reached <= self.through => Ok(Fed::Drained),
            Stage::Idle => {
                let scan = locked.shard.scan(self.through);
                self.look(locked, Plan { term, until: reached }, scan, Vec::new())
            }
            Stage::Look { plan, scan, found } => self.look(locked, plan, scan, found),
            Stage::Give { plan, found } => self.give(&locked, plan, found, count_max, take),
        }
    }

    /// What was looked through may not be true any more: go on where the reader is.
    fn restart(&mut self) {
        self.stage = Stage::Idle;
        self.through = self.last.seq;
    }

    /// The seq up to which the shard holds everything; `None` = it is on its way to another history.
    fn reached(&self, locked: &Locked) -> Result<Option<Seq>, FeedError> {
        let (shard, ChangeId { term, seq }) = (&locked.shard, self.last);
        let Some(reached) = reached(locked) else { return Ok(None) };
        if seq == Seq::ZERO {
            return Ok(Some(reached));
        }
        match position(shard.lineage(), shard.leads(), reached, term, seq) {
            Position::Held => Ok(Some(reached)),
            Position::Ahead => Ok(None),
            Position::Lost { epoch, first_seq } => {
                Err(FeedError::Lost { shard: self.shard, id: self.last, epoch, first_seq })
            }
        }
    }

    fn look(
        &mut self,
        locked: RwLockReadGuard<'_, Locked>,
        mut plan: Plan,
        mut scan: Scan,
        mut found: Vec<(Seq, SlotIndex)>,
    ) -> Result<Fed, FeedError> {
        let more = locked.shard.find_changed(&mut scan, plan.until, &mut found);
        let more = more.map_err(|(slot, error)| FeedError::Damaged { shard: self.shard, slot, error })?;
        // A writer need not wait for the choice.
        drop(locked);
        let max = self.plan_slots_max;
        if found.len() >= 2 * max || (!more && found.len() > max) {
            // The least ones are next; the others are looked for again when these are given out.
            found.select_nth_unstable(max - 1);
            found.truncate(max);
            plan.until = found[max - 1].0;
        }
        self.stage = if more {
            Stage::Look { plan, scan, found }
        } else {
            found.sort_unstable_by(|a, b| b.cmp(a));
            Stage::Give { plan, found }
        };
        Ok(Fed::More)
    }

    fn give(
        &mut self,
        locked: &Locked,
        plan: Plan,
        mut found: Vec<(Seq, SlotIndex)>,
        count_max: usize,
        mut take: impl FnMut(ChangeId, SlotIndex, &SlotView<'_>),
    ) -> Result<Fed, FeedError> {
        let mut given = 0;
        for _ in 0..GIVEN_AT_ONCE {
            let Some((seq, slot)) = found.last().copied().filter(|_| given < count_max) else { break };
            let view = locked.shard.view(slot);
            let view = view.map_err(|error| FeedError::Damaged { shard: self.shard, slot, error })?;
            found.pop();
            if view.seq() == seq {
                let id = ChangeId::new(locked.shard.lineage(), seq);
                take(id, slot, &view);
                self.last = id;
                given += 1;
            }
        }
        if found.is_empty() {
            self.through = plan.until;
        } else {
            self.stage = Stage::Give { plan, found };
        }
        Ok(Fed::More)
    }
}

/// The seq up to which a shard holds everything; `None` while slots may go back: a leader that asks its
/// followers for what a crash took, a follower that is being rewound.
fn reached(locked: &Locked) -> Option<Seq> {
    let shard = &locked.shard;
    if shard.tail().is_some() {
        return None;
    }
    match (shard.leads(), shard.progress().step) {
        (true, _) => Some(shard.seq()),
        (false, Step::Rewind { .. }) => None,
        // Slots may run ahead of the watermark, in any order.
        (false, Step::None | Step::Scan { .. }) => Some(shard.progress().seq),
    }
}

impl Store {
    /// The place behind everything that the shard holds: a feed from here gives what changes from now on.
    #[must_use]
    pub fn last_change(&self, shard: ShardIndex) -> ChangeId {
        let locked = self.shared(shard);
        let shard = &locked.shard;
        let seq = if shard.leads() { shard.seq() } else { shard.progress().seq };
        if seq == Seq::ZERO { ChangeId::START } else { ChangeId::new(shard.lineage(), seq) }
    }
}

/// A change, copied out of its slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotChange {
    /// The shard.
    pub shard: ShardIndex,
    /// The slot: what it held before, under whatever key, is no more.
    pub slot: SlotIndex,
    /// Names the change.
    pub id: ChangeId,
    /// The key.
    pub key: Vec<u8>,
    /// Its value; `None`: it was deleted.
    pub value: Option<Vec<u8>>,
    /// Unix milliseconds; 0 = never.
    pub expire_at: u64,
}

impl SlotChange {
    fn new(shard: ShardIndex, id: ChangeId, slot: SlotIndex, view: &SlotView<'_>) -> Self {
        let value = (view.status() == Status::Occupied).then(|| view.value().to_vec());
        Self { shard, slot, id, key: view.key().to_vec(), value, expire_at: view.expire_at() }
    }
}

/// The changes of several shards, as an iterator: it ends when there is no more for now, and may be asked again.
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// # use slotstream::{Geometry, Options, Store, store::{ChangeId, Changes}};
/// # let geometry = Geometry { shard_count: 2, key_size_max: 32, value_size_max: 32, shard_prefix_bits: 0 };
/// # let store = Arc::new(Store::open("unused".as_ref(), Options::memory(geometry, 64)).unwrap());
/// store.put(b"hello", b"world").unwrap();
/// let mut changes = Changes::new(Arc::clone(&store), store.shards().map(|shard| (shard, ChangeId::START)));
/// let change = changes.next_within(Duration::from_secs(1)).unwrap().unwrap();
/// assert_eq!((change.key, change.value), (b"hello".to_vec(), Some(b"world".to_vec())));
/// // Keep `change.shard` and `change.id` to go on from there later.
/// assert!(changes.next().is_none());
/// ```
#[derive(Debug)]
pub struct Changes {
    store: Arc<Store>,
    feeds: Vec<ChangeFeed>,
    waiting: VecDeque<SlotChange>,
    /// Of the feeds, who is asked next.
    turn: usize,
}

impl Changes {
    /// The changes of these shards, each after the change named.
    #[must_use]
    pub fn new(store: Arc<Store>, from: impl IntoIterator<Item = (ShardIndex, ChangeId)>) -> Self {
        let feed = |(shard, last)| ChangeFeed::new(shard, last, PLAN_SLOTS_MAX);
        Self { store, feeds: from.into_iter().map(feed).collect(), waiting: VecDeque::new(), turn: 0 }
    }

    /// The next change, waited for.
    pub fn next_within(&mut self, timeout: Duration) -> Option<Result<SlotChange, FeedError>> {
        let deadline = Instant::now().checked_add(timeout);
        let mut nap = NAP_MIN;
        loop {
            if let Some(change) = self.next() {
                return Some(change);
            }
            let left =
                deadline.map_or(NAP_MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return None;
            }
            std::thread::sleep(nap.min(left));
            nap = (nap * 2).min(NAP_MAX);
        }
    }
}

impl Iterator for Changes {
    type Item = Result<SlotChange, FeedError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut drained = 0;
        while self.waiting.is_empty() && drained < self.feeds.len() {
            let feed = &mut self.feeds[self.turn];
            let (shard, waiting) = (feed.shard, &mut self.waiting);
            let take =
                |id, slot, view: &SlotView<'_>| waiting.push_back(SlotChange::new(shard, id, slot, view));
            match feed.step(&self.store, usize::MAX, take) {
                Ok(Fed::More) => drained = 0,
                Ok(Fed::Drained) => {
                    drained += 1;
                    self.turn = (self.turn + 1) % self.feeds.len();
                }
                Err(error) => {
                    self.turn = (self.turn + 1) % self.feeds.len();
                    return Some(Err(error));
                }
            }
        }
        self.waiting.pop_front().map(Ok)
    }
}
