//! What a leader's shard went through, change by change, and the state it had at any seq.
//!
//! The recorder is a ring of its own that is emptied after every write, so it sees each image
//! exactly as a link would, and nothing of the code under test lies between.

use slotstream::ring::{RingReader, Sleeper};
use slotstream::slot::{Records, image::image_seq};
use slotstream::{Seq, ShardIndex, SlotIndex, Store};

const RECORDER_BYTES: usize = 64 * 1024;

/// A slot's image at the moment of a change.
#[derive(Debug)]
struct Change {
    seq: Seq,
    slot: usize,
    image: Box<[u8]>,
}

/// All changes of one shard, in seq order.
#[derive(Debug)]
pub(crate) struct History {
    shard: ShardIndex,
    changes: Vec<Change>,
    recorder: Option<RingReader>,
}

impl History {
    pub(crate) fn new(shard: ShardIndex) -> Self {
        Self { shard, changes: Vec::new(), recorder: None }
    }

    /// Begins, or goes on after a restart of the leader.
    pub(crate) fn attach(&mut self, store: &Store) {
        let (ring, head) = store.attach(self.shard, RECORDER_BYTES, Sleeper::new(|| {}));
        let last = self.changes.last().map_or(Seq::ZERO, |change| change.seq);
        assert!(head >= last, "shard {}: head went back from {last} to {head} by a restart", self.shard);
        self.recorder = Some(ring);
    }

    /// Takes over what was written since.
    pub(crate) fn record(&mut self, store: &Store) {
        let ring = self.recorder.as_mut().expect("attached");
        assert!(!ring.is_latched(), "the recorder's ring is too small");
        let waiting = ring.used();
        if waiting == 0 {
            return;
        }
        let chunk = ring.chunk(waiting);
        let (first, second) = chunk.as_slices();
        let bytes = [first, second].concat();
        chunk.commit(waiting);
        for record in Records::new(&store.geometry(), &bytes) {
            let record = record.expect("a ring holds whole records");
            let seq = image_seq(record.image);
            let last = self.changes.last().map_or(Seq::ZERO, |change| change.seq);
            assert!(seq > last, "shard {}: seq {seq} after {last}", self.shard);
            self.changes.push(Change { seq, slot: record.slot.0 as usize, image: record.image.into() });
        }
    }
}

/// One follower's place in a shard's history: the state at its watermark.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    applied: usize,
    slots: Vec<Option<usize>>,
    /// Seqs of the follower's slots when they were last looked at.
    seen: Vec<Seq>,
}

impl Mirror {
    /// Moves the state on to `seq`; it never goes back.
    fn advance(&mut self, history: &History, seq: Seq) {
        while let Some(change) = history.changes.get(self.applied)
            && change.seq <= seq
        {
            if self.slots.len() <= change.slot {
                self.slots.resize(change.slot + 1, None);
            }
            self.slots[change.slot] = Some(self.applied);
            self.applied += 1;
        }
    }

    /// Fails if a slot went back, which a reader would see even while the follower catches up.
    pub(crate) fn assert_no_slot_goes_back(&mut self, store: &Store, shard: ShardIndex, who: &str) {
        let slot_count = store.extent(shard).0;
        self.seen.resize(slot_count as usize, Seq::ZERO);
        for (slot, seen) in (0..slot_count).zip(&mut self.seen) {
            let seq =
                store.with_slot(shard, SlotIndex(slot), |view| view.map_or(Seq::ZERO, |view| view.seq()));
            assert!(seq >= *seen, "{who}: shard {shard} slot {slot} goes back from seq {seen} to {seq}");
            *seen = seq;
        }
    }

    /// Fails unless the store's shard is, slot by slot and byte by byte, the leader's state at `seq`.
    pub(crate) fn assert_prefix(&mut self, history: &History, store: &Store, seq: Seq, who: &str) {
        self.advance(history, seq);
        let shard = history.shard;
        let slot_count = store.extent(shard).0;
        for slot in 0..slot_count.max(u32::try_from(self.slots.len()).unwrap()) {
            let wanted = self.slots.get(slot as usize).copied().flatten().map(|at| &history.changes[at]);
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
