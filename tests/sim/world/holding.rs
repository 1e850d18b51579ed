//! Whether a follower may refuse its leader as one that was emptied.

use slotstream::slot::lineage;
use slotstream::store::Term;
use slotstream::{Seq, ShardIndex, Store};

use crate::network::Welcomed;

/// What a follower holds of a shard that its leader may have, and the epoch that it is in.
pub(super) struct Holding {
    head: Seq,
    records: u64,
    epoch: u64,
    lineage: Vec<Term>,
}

impl Holding {
    pub(super) fn of(store: &Store, shard: ShardIndex) -> Self {
        Self {
            head: store.head_shared(shard),
            records: store.extent(shard).1,
            epoch: store.epoch_seen(shard),
            lineage: store.lineage(shard),
        }
    }

    /// Whether this leader came back as one that has lived through nothing of it, and was not promoted.
    pub(super) fn is_emptied(&self, leader: &Welcomed) -> bool {
        let is_lost = || {
            let last = self.lineage.last().unwrap();
            leader.head < self.head || !lineage::knows(&leader.lineage, last)
        };
        let shared = lineage::fork(&leader.lineage, leader.head, &self.lineage, self.head);
        let is_held = self.head > Seq::ZERO && self.records > 0;
        is_held && leader.epoch == self.epoch && shared == Some(Seq::ZERO) && is_lost()
    }
}
