//! A queue with the interface of `rtrb` that `src/ring.rs` uses, on loom's atomics and cells.
//!
//! `rtrb` itself has no loom support. Its orderings are kept: what is written to a place is published by a
//! release of `tail`, what is read is given back by a release of `head`. Reading a place without either is an
//! error that loom finds.

use loom::cell::Cell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug)]
pub struct Buffer<T> {
    places: Vec<Cell<T>>,
    head: AtomicUsize,
    tail: AtomicUsize,
}

impl<T> Buffer<T> {
    pub fn capacity(&self) -> usize {
        self.places.len()
    }
}

pub struct RingBuffer;

impl RingBuffer {
    #[allow(clippy::new_ret_no_self, reason = "as in rtrb")]
    pub fn new<T: Default>(capacity: usize) -> (Producer<T>, Consumer<T>) {
        let places = (0..capacity).map(|_| Cell::new(T::default())).collect();
        let buffer = Arc::new(Buffer { places, head: AtomicUsize::new(0), tail: AtomicUsize::new(0) });
        (Producer { buffer: Arc::clone(&buffer), tail: 0 }, Consumer { buffer, head: 0 })
    }
}

#[derive(Debug)]
pub struct NoRoom;

#[derive(Debug)]
pub struct Producer<T> {
    buffer: Arc<Buffer<T>>,
    tail: usize,
}

impl<T: Copy> Producer<T> {
    pub fn push_entire_slice(&mut self, slice: &[T]) -> Result<(), NoRoom> {
        let capacity = self.buffer.capacity();
        let used = self.tail - self.buffer.head.load(Ordering::Acquire);
        if capacity - used < slice.len() {
            return Err(NoRoom);
        }
        for element in slice {
            self.buffer.places[self.tail % capacity].set(*element);
            self.tail += 1;
        }
        self.buffer.tail.store(self.tail, Ordering::Release);
        Ok(())
    }

    /// Only for the address of what comes next; there is none here.
    pub fn write_chunk_uninit(&mut self, _count: usize) -> Result<chunks::WriteChunk, NoRoom> {
        Err(NoRoom)
    }

    pub fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.buffer) < 2
    }
}

#[derive(Debug)]
pub struct Consumer<T> {
    buffer: Arc<Buffer<T>>,
    head: usize,
}

impl<T: Copy> Consumer<T> {
    pub fn is_empty(&self) -> bool {
        self.slots() == 0
    }

    pub fn slots(&self) -> usize {
        self.buffer.tail.load(Ordering::Acquire) - self.head
    }

    pub fn buffer(&self) -> &Buffer<T> {
        &self.buffer
    }

    pub fn read_chunk(&mut self, count: usize) -> Result<chunks::ReadChunk<'_, T>, NoRoom> {
        if self.slots() < count {
            return Err(NoRoom);
        }
        let places = &self.buffer.places;
        let elements = (self.head..self.head + count).map(|at| places[at % places.len()].get()).collect();
        Ok(chunks::ReadChunk { consumer: self, elements })
    }
}

pub mod chunks {
    //! As `rtrb::chunks`.

    use super::{Consumer, Ordering};

    #[derive(Debug)]
    pub struct WriteChunk;

    impl WriteChunk {
        pub fn as_mut_slices(&mut self) -> (&mut [u8], &mut [u8]) {
            (&mut [], &mut [])
        }
    }

    #[derive(Debug)]
    pub struct ReadChunk<'c, T> {
        pub(super) consumer: &'c mut Consumer<T>,
        pub(super) elements: Vec<T>,
    }

    impl<T> ReadChunk<'_, T> {
        pub fn as_slices(&self) -> (&[T], &[T]) {
            (&self.elements, &[])
        }

        pub fn commit_all(self) {
            self.consumer.head += self.elements.len();
            self.consumer.buffer.head.store(self.consumer.head, Ordering::Release);
        }
    }
}
