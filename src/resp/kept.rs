//! What an XREAD leaves for its connection's next one: feeds that have looked ahead, so that the next one need not look
//! for its place.
//!
//! Always true: a connection that has not asked for a second keeps none, and those of a worker's readers together are
//! of at most [`SLOTS_MAX`] slots, or [`SLOTS_PER_READER_MIN`] for each where readers are many: 32 MiB, or 16 KiB each;
//! twice that while they look.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::counters::feeds::Reader;
use crate::store::ChangeFeed;

/// Slots that all readers of a worker look out for at one time.
const SLOTS_MAX: usize = 1 << 21;
/// Slots that one connection looks out for at one time, all its streams together.
const SLOTS_PER_READER_MAX: usize = 1 << 15;
const SLOTS_PER_READER_MIN: usize = 1 << 10;
/// A connection that is idle for so long will look again.
const IDLE_MS: u64 = 1_000;

/// A connection's feeds between two XREADs.
#[derive(Debug)]
pub(super) struct KeptFeeds {
    feeds: Mutex<Vec<ChangeFeed>>,
    /// When they were left, in milliseconds since the start.
    left_ms: AtomicU64,
    pub(super) reader: Arc<Reader>,
}

impl KeptFeeds {
    pub(super) fn take(&self) -> Vec<ChangeFeed> {
        std::mem::take(&mut *self.feeds.lock())
    }

    pub(super) fn keep(&self, feeds: Vec<ChangeFeed>, now_ms: u64) {
        self.left_ms.store(now_ms, Ordering::Relaxed);
        *self.feeds.lock() = feeds;
    }
}

/// The feeds of all of a worker's connections.
#[derive(Debug, Default)]
pub(super) struct AllKept {
    all: Mutex<Vec<Weak<KeptFeeds>>>,
    looked_ms: AtomicU64,
}

impl AllKept {
    /// A connection that reads, for as long as it holds this.
    pub(super) fn join(&self, reader: Arc<Reader>) -> Arc<KeptFeeds> {
        let kept = Arc::new(KeptFeeds { feeds: Mutex::default(), left_ms: AtomicU64::new(0), reader });
        let mut all = self.all.lock();
        // Where others come and go, those that went must not pile up.
        all.retain(|kept| kept.strong_count() > 0);
        all.push(Arc::downgrade(&kept));
        kept
    }

    /// How many slots a connection may look out for now.
    pub(super) fn slots_per_reader(&self) -> usize {
        let readers = self.all.lock().len().max(1);
        (SLOTS_MAX / readers).clamp(SLOTS_PER_READER_MIN, SLOTS_PER_READER_MAX)
    }

    /// Forgets what connections keep that do not ask; called often, looks seldom.
    pub(super) fn forget_idle(&self, now_ms: u64) {
        if now_ms < self.looked_ms.load(Ordering::Relaxed) + IDLE_MS {
            return;
        }
        self.looked_ms.store(now_ms, Ordering::Relaxed);
        for kept in self.all.lock().iter().filter_map(Weak::upgrade) {
            if now_ms >= kept.left_ms.load(Ordering::Relaxed) + IDLE_MS {
                drop(kept.take());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::ShardIndex;
    use crate::store::ChangeId;

    #[test]
    fn who_does_not_ask_keeps_nothing_and_many_look_out_for_less() {
        let all = AllKept::default();
        let feeds = || vec![ChangeFeed::new(ShardIndex(0), ChangeId::START, all.slots_per_reader())];
        let (idle, busy) = (all.join(Arc::default()), all.join(Arc::default()));
        idle.keep(feeds(), 10_000);
        busy.keep(feeds(), 10_900);
        all.forget_idle(11_000);
        assert_eq!((idle.take().len(), busy.take().len()), (0, 1));
        busy.keep(feeds(), 11_000);
        // It has looked just now.
        all.forget_idle(11_999);
        assert_eq!(busy.feeds.lock().len(), 1);
        all.forget_idle(12_000);
        assert_eq!(busy.feeds.lock().len(), 0);

        assert_eq!(all.slots_per_reader(), SLOTS_PER_READER_MAX);
        let many: Vec<_> = (0..10_000).map(|_| all.join(Arc::default())).collect();
        assert_eq!(all.slots_per_reader(), SLOTS_PER_READER_MIN);
        drop(many);
        let _another = all.join(Arc::default());
        assert_eq!(all.slots_per_reader(), SLOTS_PER_READER_MAX);
    }
}
