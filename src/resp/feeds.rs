//! Wakes clients that wait for changes of shards: one look for all of a worker's, so that a hundred who wait cost what
//! one does, and no writer knows of any.
//!
//! Always true: who looks itself once it is known here is woken by every change that it did not see, and not by those of
//! other shards. What a look cannot see (a shard that goes back in its history) they find by themselves, since they look
//! now and then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::slot::ShardIndex;
use crate::store::feed::{NAP_MAX, NAP_MIN};
use crate::store::{ChangeId, Store};

/// How often who waits looks by itself.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The shards that a worker's clients wait for.
#[derive(Debug, Default)]
pub(super) struct Lookout {
    watched: Mutex<Watched>,
    /// Somebody waits.
    begun: Notify,
}

#[derive(Debug, Default)]
struct Watched {
    shards: BTreeMap<ShardIndex, Shard>,
    last_client: u64,
}

#[derive(Debug)]
struct Shard {
    last: ChangeId,
    clients: BTreeMap<u64, Arc<Notify>>,
}

/// Somebody who waits, until this is dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    lookout: Arc<Lookout>,
    shards: Vec<ShardIndex>,
    client: u64,
    changed: Arc<Notify>,
}

impl Lookout {
    /// Looks out for these shards, too.
    pub(super) fn wait_for(self: &Arc<Self>, store: &Store, shards: Vec<ShardIndex>) -> Waiting {
        let changed = Arc::new(Notify::new());
        let mut watched = self.watched.lock();
        watched.last_client += 1;
        let client = watched.last_client;
        for &shard in &shards {
            let new = || Shard { last: store.last_change(shard), clients: BTreeMap::new() };
            let entry = watched.shards.entry(shard).or_insert_with(new);
            entry.clients.insert(client, Arc::clone(&changed));
        }
        drop(watched);
        self.begun.notify_one();
        Waiting { lookout: Arc::clone(self), shards, client, changed }
    }

    /// Looks out, for ever; run by the worker beside all else.
    pub(super) async fn attend(&self, store: &Store) {
        let mut nap = NAP_MIN;
        loop {
            if self.watched.lock().shards.is_empty() {
                self.begun.notified().await;
                nap = NAP_MIN;
            }
            tokio::time::sleep(nap).await;
            nap = if self.look(store) { NAP_MIN } else { (nap * 2).min(NAP_MAX) };
        }
    }

    /// Wakes those who wait for a shard that has changed; says whether one has.
    fn look(&self, store: &Store) -> bool {
        let mut has_changed = false;
        for (shard, Shard { last, clients }) in &mut self.watched.lock().shards {
            let now = store.last_change(*shard);
            if now != std::mem::replace(last, now) {
                has_changed = true;
                clients.values().for_each(|changed| changed.notify_one());
            }
        }
        has_changed
    }
}

impl Waiting {
    /// Until one of the shards changes, or has since this was asked last; at most for so long.
    pub(super) async fn changed(&self, at_most: Duration) {
        // Woken or not, who waits looks.
        drop(tokio::time::timeout(at_most.min(LOOK_INTERVAL), self.changed.notified()).await);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut watched = self.lookout.watched.lock();
        for shard in &self.shards {
            if let Some(entry) = watched.shards.get_mut(shard) {
                entry.clients.remove(&self.client);
                if entry.clients.is_empty() {
                    watched.shards.remove(shard);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::Geometry;
    use crate::store::Options;

    #[test]
    fn a_look_sees_each_change_once_and_only_where_somebody_waits() {
        let geometry = Geometry { shard_count: 2, key_size_max: 8, value_size_max: 8, shard_prefix_bits: 0 };
        let store = Store::open("memory".as_ref(), Options::memory(geometry, 16)).expect("a store in memory");
        let key = |shard: u16| {
            let keys = (0..100_u8).map(|key| [key]);
            keys.into_iter().find(|key| store.shard_of(key).0 == shard).expect("a key of that shard")
        };
        let (lookout, [first, second]) = (Arc::<Lookout>::default(), [key(0), key(1)]);
        store.put(&first, b"a").expect("written");
        assert!(!lookout.look(&store), "nobody waits");
        let one = lookout.wait_for(&store, vec![ShardIndex(0)]);
        let other = lookout.wait_for(&store, vec![ShardIndex(0), ShardIndex(1)]);
        assert!(!lookout.look(&store), "before they came");
        store.put(&first, b"b").expect("written");
        assert_eq!((lookout.look(&store), lookout.look(&store)), (true, false));
        drop(other);
        store.put(&second, b"c").expect("written");
        assert!(!lookout.look(&store), "nobody waits for that shard any more");
        store.put(&first, b"c").expect("written");
        assert!(lookout.look(&store), "one still waits");
        drop(one);
        assert!(lookout.watched.lock().shards.is_empty());
    }
}
