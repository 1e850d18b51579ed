//! The latch: no change is lost when a ring overflows, when it is re-armed, or when it is attached, while a
//! writer goes on.

use loom::sync::{Arc, Mutex};
use loom::thread;

use crate::ring::{RingReader, RingWriter, Sleeper, ring};

const SLOT_COUNT: usize = 2;
/// Small enough that most writes overflow. A record is one byte here.
const RING_BYTES: usize = 1;

/// A shard's slots, each with the seq it was stamped with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Slots {
    stamps: [u8; SLOT_COUNT],
    seq: u8,
}

struct Shard {
    slots: Slots,
    ring: Option<RingWriter>,
}

type Lock = Arc<Mutex<Shard>>;

fn lock(shard: &Lock) -> loom::sync::MutexGuard<'_, Shard> {
    shard.lock().expect("no model panics and goes on")
}

/// The one write path: slot, seq and ring under the shard lock.
fn put(shard: &Lock, slot: u8) {
    let mut shard = lock(shard);
    let Shard { slots, ring } = &mut *shard;
    slots.seq += 1;
    slots.stamps[usize::from(slot)] = slots.seq;
    if let Some(ring) = ring {
        ring.push(&[encode(slots.seq, slot)]);
    }
}

fn encode(seq: u8, slot: u8) -> u8 {
    (seq << 1) | slot
}

/// In which order a link does what it has to; only one is right.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Drain, clear the latch, scan from the last seq sent.
    DrainThenClear,
    /// A planted bug.
    ClearThenDrain,
}

/// A link's two ends in one: what it would send is at once what the follower holds.
struct Link {
    ring: RingReader,
    held: Slots,
}

impl Link {
    fn attach(shard: &Lock) -> Self {
        let (writer, reader) = ring(RING_BYTES, Sleeper::new(|| ()));
        // Watermark before scan: the seq and the ring belong to one moment.
        let seq = {
            let mut shard = lock(shard);
            shard.ring = Some(writer);
            shard.slots.seq
        };
        let mut link = Self { ring: reader, held: Slots::default() };
        link.scan(shard, 0, seq);
        link
    }

    /// A planted bug: what changes between the scan and the ring is in neither.
    fn attach_after_scan(shard: &Lock) -> Self {
        let seq = lock(shard).slots.seq;
        let (writer, reader) = ring(RING_BYTES, Sleeper::new(|| ()));
        let mut link = Self { ring: reader, held: Slots::default() };
        link.scan(shard, 0, seq);
        lock(shard).ring = Some(writer);
        link
    }

    fn service(&mut self, shard: &Lock, order: Order) {
        let is_latched = self.ring.is_latched();
        if is_latched && order == Order::ClearThenDrain {
            let seq = rearm(shard);
            self.drain(false);
            self.scan(shard, self.held.seq, seq.max(self.held.seq));
            return;
        }
        self.drain(true);
        if is_latched {
            assert!(self.ring.is_empty(), "a latched ring takes nothing, so it stays drained");
            let seq = rearm(shard);
            self.scan(shard, self.held.seq, seq);
        }
    }

    fn drain(&mut self, is_gapless: bool) {
        while !self.ring.is_empty() {
            let chunk = self.ring.chunk(usize::MAX);
            let (records, wrapped) = chunk.as_slices();
            for record in records.iter().chain(wrapped) {
                let (seq, slot) = (record >> 1, usize::from(record & 1));
                if is_gapless {
                    assert_eq!(seq, self.held.seq + 1, "a gap is never silent, and nothing comes twice");
                }
                self.held.seq = seq;
                self.held.stamps[slot] = self.held.stamps[slot].max(seq);
            }
            chunk.commit_all();
        }
    }

    /// Slot by slot, each under the lock, as the writer goes on in between.
    fn scan(&mut self, shard: &Lock, since: u8, watermark: u8) {
        for slot in 0..SLOT_COUNT {
            let stamp = lock(shard).slots.stamps[slot];
            if stamp > since {
                self.held.stamps[slot] = self.held.stamps[slot].max(stamp);
            }
        }
        self.held.seq = watermark;
    }

    fn is_quiet(&self) -> bool {
        self.ring.is_empty() && !self.ring.is_latched()
    }
}

fn rearm(shard: &Lock) -> u8 {
    let mut shard = lock(shard);
    if let Some(ring) = &mut shard.ring {
        ring.unlatch();
    }
    shard.slots.seq
}

/// How a link comes to its ring.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attach {
    /// At once; then two writes, the second of which overflows, before there is a second thread.
    Overflown,
    /// Beside the writer: ring first, then scan.
    Beside,
    /// A planted bug.
    AfterScan,
}

fn run(writes: &'static [u8], attach: Attach, order: Order) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(5);
    builder.check(move || {
        let shard: Lock = Arc::new(Mutex::new(Shard { slots: Slots::default(), ring: None }));
        let early = (attach == Attach::Overflown).then(|| {
            let link = Link::attach(&shard);
            put(&shard, 0);
            put(&shard, 1);
            link
        });
        let writer = {
            let shard = Arc::clone(&shard);
            thread::spawn(move || writes.iter().for_each(|slot| put(&shard, *slot)))
        };
        let mut link = early.unwrap_or_else(|| match attach {
            Attach::AfterScan => Link::attach_after_scan(&shard),
            Attach::Overflown | Attach::Beside => Link::attach(&shard),
        });
        link.service(&shard, order);
        writer.join().expect("the writer does not panic");
        let mut rounds = 0;
        while !link.is_quiet() {
            link.service(&shard, order);
            rounds += 1;
            assert!(rounds <= 2, "without writes, one round re-arms and the next finds nothing");
        }
        assert_eq!(link.held, lock(&shard).slots, "at rest both sides are equal");
    });
}

#[test]
fn overflow_and_rearm_lose_no_change() {
    run(&[0, 1], Attach::Overflown, Order::DrainThenClear);
}

#[test]
fn attaching_beside_a_writer_loses_no_change() {
    run(&[0, 1], Attach::Beside, Order::DrainThenClear);
}

#[test]
fn attaching_beside_a_writer_that_overflows_loses_no_change() {
    run(&[0, 1, 0], Attach::Beside, Order::DrainThenClear);
}

#[test]
#[should_panic(expected = "at rest both sides are equal")]
fn clearing_the_latch_before_draining_is_found_out() {
    run(&[0], Attach::Overflown, Order::ClearThenDrain);
}

#[test]
#[should_panic(expected = "at rest both sides are equal")]
fn attaching_after_the_scan_is_found_out() {
    run(&[0, 1], Attach::AfterScan, Order::DrainThenClear);
}
