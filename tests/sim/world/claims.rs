//! What nodes say of how far followers are is true: a leader counts nobody for what it does not have, and nobody
//! who is behind is said not to be.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;

use slotstream::links::Level;
use slotstream::{Seq, ShardIndex};

use super::World;
use crate::nodes::{Leading, Node, Role};

/// Followers that had everything of a shard up to `seq`, by what they said on connections to this leader.
fn holders(leading: &Leading, shard: ShardIndex, seq: Seq) -> BTreeSet<usize> {
    let of_shard = leading.ends.iter().filter(|(link, _)| link.shard() == Some(shard.0));
    of_shard.filter(|(_, end)| end.held() >= seq).map(|(_, end)| end.follower()).collect()
}

impl World {
    /// WAIT counts no follower for a seq that it has not applied.
    pub(super) fn assert_counts(&self, number: usize) {
        let Node { role: Role::Leader(leading), links, .. } = &self.nodes[number] else { return };
        for cell in links.all() {
            let shard = ShardIndex(cell.shard);
            for seq in [&cell.applied_seq, &cell.received_seq] {
                let seq = Seq(seq.load(Relaxed));
                let true_count = holders(leading, shard, seq).len();
                for level in [Level::Received, Level::Applied] {
                    let count = links.holders(level, &[(shard, seq)]);
                    assert!(
                        count <= true_count,
                        "leader {number}: {count} followers are said to have {level:?} seq {seq} of shard {shard}, \
                         wanted {true_count}"
                    );
                }
            }
        }
    }

    /// Nobody who is behind is said not to be, and who hears nothing of its leader is as old as that is long.
    pub(super) fn assert_lags(&mut self) {
        for node in &mut self.nodes {
            let now = node.now();
            let Node { name, store, links, role, .. } = node;
            match role {
                Role::Leader(leading) => {
                    for cell in links.all() {
                        let shard = ShardIndex(cell.shard);
                        let head = store.head(shard);
                        let lag = links.lag(&cell, head, store.extent(shard).0.into(), 100, now);
                        let is_level = !holders(leading, shard, head).is_empty();
                        assert!(
                            is_level || (lag.records > 0 && lag.ms > 0),
                            "{name}: nobody has seq {head} of shard {shard}, and a follower's lag is {lag:?}"
                        );
                    }
                }
                Role::Follower { lanes, .. } => {
                    for lane in lanes {
                        let Some(heard_at) = lane.heard_at else { continue };
                        let head = Seq(lane.cell.head_seq.load(Relaxed));
                        let lag = links.lag(&lane.cell, head, 1, 100, now);
                        let silence_ms = now.monotonic.saturating_sub(heard_at).as_millis();
                        let silence_ms_max = lane.cell.silence_ms_max.load(Relaxed);
                        assert!(
                            silence_ms <= silence_ms_max.into() || u128::from(lag.ms) >= silence_ms,
                            "{name}: shard {} heard nothing for {silence_ms} ms, and its lag is {lag:?}",
                            lane.shard
                        );
                    }
                }
            }
        }
    }
}
