//! Floor 2: byte rings between a shard's writers and one link (one ring per attached shard and follower).
//!
//! What lies in a ring is a run of whole records, exactly as it goes onto the wire. A full ring sets
//! the latch and takes nothing more until the link has drained it and cleared the latch under the
//! shard lock ([`crate::store::Store::rearm`]); a gap is never silent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// Lets a ring's writers wake the one thread that drains many rings, and only when it sleeps.
///
/// Sleeping: [`Sleeper::announce`], look at every ring once more, block, [`Sleeper::awake`].
pub struct Sleeper {
    parked: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Sleeper {
    /// `wake` ends the thread's block (an eventfd, an unpark); it may be called at any time.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { parked: AtomicBool::new(false), wake: Box::new(wake) })
    }

    /// From now on a writer will wake this thread. The caller must look at its rings again before it blocks.
    pub fn announce(&self) {
        // A swap, not a store: the model checker proves the swap, and only those who sleep pay for it.
        self.parked.swap(true, Ordering::Relaxed);
        // Pairs with the fence in `notify`: either the writer sees `parked`, or we see its record.
        fence(Ordering::SeqCst);
    }

    /// The thread runs again; writers need not wake it.
    pub fn awake(&self) {
        self.parked.store(false, Ordering::Relaxed);
    }

    /// Called by a writer after it pushed.
    #[inline]
    pub fn notify(&self) {
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Relaxed) && self.parked.swap(false, Ordering::Relaxed) {
            (self.wake)();
        }
    }
}

impl std::fmt::Debug for Sleeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sleeper").field("parked", &self.parked).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Shared {
    latched: AtomicBool,
    overflows: AtomicU64,
}

/// The writing end; lives behind the exclusive side of the shard lock.
#[derive(Debug)]
pub struct RingWriter {
    producer: rtrb::Producer<u8>,
    shared: Arc<Shared>,
    sleeper: Arc<Sleeper>,
}

/// The reading end; owned by one link.
#[derive(Debug)]
pub struct RingReader {
    consumer: rtrb::Consumer<u8>,
    shared: Arc<Shared>,
}

/// A ring of `capacity` bytes.
#[must_use]
pub fn ring(capacity: usize, sleeper: Arc<Sleeper>) -> (RingWriter, RingReader) {
    let (producer, consumer) = rtrb::RingBuffer::new(capacity);
    let shared = Arc::new(Shared::default());
    (RingWriter { producer, shared: Arc::clone(&shared), sleeper }, RingReader { consumer, shared })
}

impl RingWriter {
    /// Pushes one whole record, or sets the latch; never waits.
    #[inline]
    pub fn push(&mut self, record: &[u8]) {
        if self.shared.latched.load(Ordering::Relaxed) {
            return;
        }
        if self.producer.push_entire_slice(record).is_err() {
            self.shared.overflows.fetch_add(1, Ordering::Relaxed);
            // Release: a reader that sees the latch also sees every record pushed before it.
            self.shared.latched.store(true, Ordering::Release);
        }
        self.sleeper.notify();
    }

    /// Clears the latch. Only under the shard lock, and only when the ring is drained.
    pub(crate) fn unlatch(&mut self) {
        self.shared.latched.store(false, Ordering::Relaxed);
    }

    /// Whether the reader is gone.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.producer.is_abandoned()
    }

    /// Times a record found the ring full.
    #[must_use]
    pub fn overflows(&self) -> u64 {
        self.shared.overflows.load(Ordering::Relaxed)
    }

    pub(crate) fn belongs_to(&self, reader: &RingReader) -> bool {
        Arc::ptr_eq(&self.shared, &reader.shared)
    }
}

impl RingReader {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.consumer.is_empty()
    }

    /// Bytes that wait.
    #[must_use]
    pub fn used(&self) -> usize {
        self.consumer.slots()
    }

    /// Bytes the ring holds at most.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.consumer.buffer().capacity()
    }

    /// Whether a record did not fit; what follows it is not in the ring.
    #[must_use]
    pub fn is_latched(&self) -> bool {
        self.shared.latched.load(Ordering::Acquire)
    }

    /// Records that found the ring full and set the latch.
    #[must_use]
    pub fn overflows(&self) -> u64 {
        self.shared.overflows.load(Ordering::Relaxed)
    }

    /// The first `bytes_max` bytes waiting, in two runs (the second is empty unless the ring wraps).
    /// With `bytes_max = usize::MAX` they end at a record's end. What is not committed stays.
    pub fn chunk(&mut self, bytes_max: usize) -> rtrb::chunks::ReadChunk<'_, u8> {
        let waiting = self.consumer.slots().min(bytes_max);
        self.consumer.read_chunk(waiting).expect("only this reader takes bytes out, so they still wait")
    }
}
