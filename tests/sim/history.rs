//! What shards went through under each term of leadership, and the state they had at any seq.
//!
//! The recorder is a ring of its own that is emptied after every write, so it sees each image
//! exactly as a link would, and nothing of the code under test lies between. A leader's history begins
//! with what its store held: a part of another term's.

use std::collections::HashMap;
use std::rc::Rc;

use slotstream::slot::{Records, image::image_seq};
use slotstream::store::{RingReader, Sleeper};
use slotstream::{Seq, ShardIndex, SlotIndex, Store};

const RECORDER_BYTES: usize = 64 * 1024;

/// A slot's image at the moment of a change.
#[derive(Debug)]
struct Change {
    seq: Seq,
    slot: usize,
    image: Box<[u8]>,
}

/// All changes of one shard up to some moment, in seq order.
type Changes = Vec<Rc<Change>>;
/// What each shard of a store has lived through.
#[derive(Debug, Clone)]
pub(crate) struct Held(Vec<Changes>);

/// The histories of all terms.
#[derive(Debug, Default)]
pub(crate) struct Histories(HashMap<(ShardIndex, u64), Changes>);

/// The name of the term that a shard is in, or follows.
pub(crate) fn term_of(store: &Store, shard: ShardIndex) -> u64 {
    store.lineage(shard).last().unwrap().id
}

impl Histories {
    fn of(&self, store: &Store, shard: ShardIndex) -> &[Rc<Change>] {
        self.0.get(&(shard, term_of(store, shard))).map_or(&[], Vec::as_slice)
    }

    /// The last seq up to which what a store holds went the way that another one's did.
    pub(crate) fn shared(&self, held: &Store, other: &Store, shard: ShardIndex) -> Seq {
        let held_to = held.head_shared(shard);
        let pairs = self.of(held, shard).iter().zip(self.of(other, shard));
        // The same change, not an equal one: two leaders may write the same bytes with the same seq.
        let same = pairs.take_while(|(a, b)| Rc::ptr_eq(a, b) && a.seq <= held_to);
        same.last().map_or(Seq::ZERO, |(change, _)| change.seq)
    }

    /// Before a store takes a new term: what it held goes on under that term's name.
    fn held(&self, store: &Store, shard: ShardIndex) -> Changes {
        let head = store.head(shard);
        self.of(store, shard).iter().take_while(|change| change.seq <= head).cloned().collect()
    }
}

impl Histories {
    /// All that the terms of a store's shards went through, whatever of it the store holds.
    pub(crate) fn whole(&self, store: &Store) -> Held {
        Held(store.shards().map(|shard| self.of(store, shard).to_vec()).collect())
    }

    /// What a store holds that has lost some of `whole` in a power cut and taken a new term: all up to where
    /// that begins, and of what came later those images that are left.
    pub(crate) fn left(whole: &Held, store: &Store, who: &str) -> Held {
        let of_shard = |(shard, changes): (ShardIndex, &Changes)| {
            let through = Seq(store.lineage(shard).last().unwrap().first_seq - 1);
            let mut held: Changes =
                changes.iter().take_while(|change| change.seq <= through).cloned().collect();
            let mut mirror = Mirror::default();
            mirror.advance(&held, through);
            let mut left = Vec::new();
            for slot in 0..store.extent(shard).0.max(u32::try_from(mirror.slots.len()).unwrap()) {
                let wanted = mirror.slots.get(slot as usize).and_then(Option::as_ref);
                assert!(slot < store.extent(shard).0, "{who}: shard {shard} lacks slot {slot}");
                store.with_slot(shard, SlotIndex(slot), |view| {
                    let view = view.unwrap_or_else(|error| panic!("{who}: {shard} slot {slot}: {error}"));
                    if view.seq() > through {
                        let image = view.image().into();
                        left.push(Rc::new(Change { seq: view.seq(), slot: slot as usize, image }));
                        return;
                    }
                    let wanted_seq = wanted.map_or(Seq::ZERO, |change| change.seq);
                    let is_equal = wanted.is_none_or(|change| *change.image == *view.image());
                    assert!(
                        view.seq() == wanted_seq && is_equal,
                        "{who}: shard {shard} slot {slot} has seq {}, wanted {wanted_seq}: all up to {through} is held",
                        view.seq()
                    );
                });
            }
            left.sort_by_key(|change| change.seq);
            assert!(left.is_sorted_by(|a, b| a.seq < b.seq), "{who}: shard {shard}: two slots have one seq");
            held.extend(left);
            held
        };
        Held(store.shards().zip(&whole.0).map(of_shard).collect())
    }
}

/// Follows what one leader writes to its shards.
#[derive(Debug, Default)]
pub(crate) struct Recorder(Vec<RingReader>);

impl Recorder {
    /// What the shards hold before a new term begins.
    pub(crate) fn before(histories: &Histories, store: &Store) -> Held {
        Held(store.shards().map(|shard| histories.held(store, shard)).collect())
    }

    /// A term has begun.
    pub(crate) fn begin(histories: &mut Histories, store: &Store, before: Held) -> Self {
        let attach = |(shard, changes): (ShardIndex, Changes)| {
            let (ring, head) = store.attach(shard, RECORDER_BYTES, Sleeper::new(|| {}));
            let last = changes.last().map_or(Seq::ZERO, |change| change.seq);
            assert_eq!(head, last, "shard {shard}: a term begins with what was there");
            histories.0.insert((shard, term_of(store, shard)), changes);
            ring
        };
        Self(store.shards().zip(before.0).map(attach).collect())
    }

    /// Takes over what was written since.
    pub(crate) fn record(&mut self, histories: &mut Histories, store: &Store) {
        for (shard, ring) in store.shards().zip(&mut self.0) {
            assert!(!ring.is_latched(), "the recorder's ring is too small");
            let waiting = ring.used();
            if waiting == 0 {
                continue;
            }
            let chunk = ring.chunk(waiting);
            let (first, second) = chunk.as_slices();
            let bytes = [first, second].concat();
            chunk.commit(waiting);
            let changes = histories.0.get_mut(&(shard, term_of(store, shard))).expect("begun");
            for record in Records::new(&store.geometry(), &bytes) {
                let record = record.expect("a ring holds whole records");
                let seq = image_seq(record.image);
                let last = changes.last().map_or(Seq::ZERO, |change| change.seq);
                assert_eq!(seq.0, last.0 + 1, "shard {shard}: seqs are given out one by one");
                let (slot, image) = (record.slot.0 as usize, record.image.into());
                changes.push(Rc::new(Change { seq, slot, image }));
            }
        }
    }
}

/// One follower's place in a shard's history: the state at its watermark.
#[derive(Debug, Default, Clone)]
pub(crate) struct Mirror {
    term: u64,
    applied: usize,
    slots: Vec<Option<Rc<Change>>>,
    /// Seqs of the follower's slots when they were last looked at.
    seen: Vec<Seq>,
}

impl Mirror {
    /// Moves the state on to `seq`; it never goes back within a term.
    fn advance(&mut self, changes: &[Rc<Change>], seq: Seq) {
        while let Some(change) = changes.get(self.applied)
            && change.seq <= seq
        {
            if self.slots.len() <= change.slot {
                self.slots.resize(change.slot + 1, None);
            }
            self.slots[change.slot] = Some(Rc::clone(change));
            self.applied += 1;
        }
    }

    /// Fails if a slot went back, which a reader would see even while the follower catches up; it may
    /// when another leader is followed.
    pub(crate) fn assert_no_slot_goes_back(&mut self, store: &Store, shard: ShardIndex, who: &str) {
        if self.term != term_of(store, shard) {
            *self = Self { term: term_of(store, shard), ..Self::default() };
        }
        let slot_count = store.extent(shard).0;
        self.seen.resize(slot_count as usize, Seq::ZERO);
        for (slot, seen) in (0..slot_count).zip(&mut self.seen) {
            let seq =
                store.with_slot(shard, SlotIndex(slot), |view| view.map_or(Seq::ZERO, |view| view.seq()));
            assert!(seq >= *seen, "{who}: shard {shard} slot {slot} goes back from seq {seen} to {seq}");
            *seen = seq;
        }
    }

    /// Slots may go back now.
    pub(crate) fn forget_slots(&mut self) {
        self.seen.clear();
    }

    /// Fails unless the store's shard is, slot by slot and byte by byte, its leader's state at `seq`.
    pub(crate) fn assert_prefix(
        &mut self,
        histories: &Histories,
        store: &Store,
        shard: ShardIndex,
        seq: Seq,
        who: &str,
    ) {
        if self.term != term_of(store, shard) {
            *self = Self { term: term_of(store, shard), ..Self::default() };
        }
        self.advance(histories.of(store, shard), seq);
        let slot_count = store.extent(shard).0;
        for slot in 0..slot_count.max(u32::try_from(self.slots.len()).unwrap()) {
            let wanted = self.slots.get(slot as usize).and_then(Option::as_ref);
            if slot >= slot_count {
                assert!(wanted.is_none(), "{who}: shard {shard} at seq {seq} lacks slot {slot}");
                continue;
            }
            store.with_slot(shard, SlotIndex(slot), |view| {
                let view = view.unwrap_or_else(|error| panic!("{who}: shard {shard} slot {slot}: {error}"));
                match wanted {
                    None => {
                        assert_eq!(view.seq(), Seq::ZERO, "{who}: shard {shard} slot {slot} at seq {seq}")
                    }
                    Some(change) => assert!(
                        view.image() == &*change.image,
                        "{who}: shard {shard} slot {slot} at seq {seq} has seq {}, wanted {}",
                        view.seq(),
                        change.seq
                    ),
                }
            });
        }
    }
}
