//! Who reads feeds of changes, and how far each one is.
//!
//! A reader is a connection that has asked for changes, for as long as it lasts. It notes where it is when it is
//! answered; how far that is behind is for whoever asks, who knows where the shards are by then.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// One reader: by shard, the seq that it was last given; zero = it begins at the start.
#[derive(Debug, Default)]
pub struct Reader {
    places: Mutex<BTreeMap<u16, u64>>,
}

impl Reader {
    /// The reader has everything of the shard up to here.
    pub fn note(&self, shard: u16, seq: u64) {
        self.places.lock().insert(shard, seq);
    }
}

/// All readers of a node, and what they were given.
#[derive(Debug, Default)]
pub struct Feeds {
    readers: Mutex<Vec<Weak<Reader>>>,
    changes: AtomicU64,
    replaced: AtomicU64,
    resets: AtomicU64,
}

/// A moment's figures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FeedTotals {
    /// Readers connected.
    pub readers: u64,
    /// By shard, where the reader is that is furthest behind.
    pub last: BTreeMap<u16, u64>,
    /// Changes given out.
    pub changes: u64,
    /// Changes that nobody was given who was not at the start, since newer ones had taken their place.
    pub replaced: u64,
    /// Readers that had to begin a shard anew, since a failover had dropped what they had read.
    pub resets: u64,
}

impl Feeds {
    /// A reader more, for as long as somebody holds it.
    #[must_use]
    pub fn join(&self) -> Arc<Reader> {
        let reader = Arc::default();
        let mut readers = self.readers.lock();
        // Where others come and go, those that went must not pile up.
        readers.retain(|reader| reader.strong_count() > 0);
        readers.push(Arc::downgrade(&reader));
        reader
    }

    /// A reader went from one seq of a shard to another, and was given so many changes for it.
    pub fn gave(&self, from: u64, to: u64, changes: u64) {
        self.changes.fetch_add(changes, Ordering::Relaxed);
        if from > 0 {
            self.replaced.fetch_add(to.saturating_sub(from).saturating_sub(changes), Ordering::Relaxed);
        }
    }

    /// A reader's place was lost.
    pub fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }

    /// The figures now.
    #[must_use]
    pub fn totals(&self) -> FeedTotals {
        let readers: Vec<Arc<Reader>> = self.readers.lock().iter().filter_map(Weak::upgrade).collect();
        let mut last = BTreeMap::new();
        for reader in &readers {
            for (shard, seq) in &*reader.places.lock() {
                last.entry(*shard).and_modify(|last: &mut u64| *last = (*last).min(*seq)).or_insert(*seq);
            }
        }
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        FeedTotals {
            readers: readers.len() as u64,
            last,
            changes: read(&self.changes),
            replaced: read(&self.replaced),
            resets: read(&self.resets),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_furthest_behind_counts_for_as_long_as_it_is_there() {
        let feeds = Feeds::default();
        let (slow, fast) = (feeds.join(), feeds.join());
        slow.note(1, 5);
        fast.note(1, 90);
        fast.note(2, 7);
        let totals = feeds.totals();
        assert_eq!((totals.readers, totals.last), (2, BTreeMap::from([(1, 5), (2, 7)])));
        drop(slow);
        assert_eq!((feeds.totals().readers, feeds.totals().last[&1]), (1, 90));
        drop(fast);
        assert_eq!(feeds.totals(), FeedTotals::default());
    }

    #[test]
    fn what_was_replaced_is_what_lies_between_and_was_not_given() {
        let feeds = Feeds::default();
        feeds.gave(0, 1_000, 10);
        feeds.gave(1_000, 1_020, 5);
        feeds.gave(1_020, 1_020, 0);
        assert_eq!((feeds.totals().changes, feeds.totals().replaced), (15, 15));
    }
}
