//! What a follower says of itself when a link begins.

use crate::slot::{Seq, ShardIndex};
use crate::store::{Progress, Step};
use crate::wire::message::{Hello, RefuseCode, ScanPlace, VERSION};

use super::link::{Env, LinkError};

/// What the shard holds, and where a scan of it was cut off.
pub(super) fn of_held(shard: ShardIndex, env: Env<'_>) -> Hello {
    let Env { store, options, .. } = env;
    let progress = store.progress(shard);
    Hello {
        version_min: VERSION,
        version_max: VERSION,
        shard: shard.0,
        resp_port: options.resp_port,
        geometry: Some(store.geometry()),
        store_id: store.store_id(),
        follower_id: options.follower_id,
        epoch: store.epoch_seen(shard),
        watermark: progress.seq,
        head: store.head_shared(shard),
        scan_place: scan_place(&progress),
        asks: store.is_astray(shard),
        lineage: store.lineage(shard),
    }
}

/// As one that holds nothing: all of its slots are to become the leader's.
pub(super) fn of_given_up(shard: ShardIndex, env: Env<'_>) -> Hello {
    let held = of_held(shard, env);
    Hello { watermark: Seq::ZERO, head: Seq::ZERO, scan_place: None, asks: true, ..held }
}

/// Whether a leader that refused for this gets all slots replaced, since somebody said so by hand.
#[must_use]
pub fn is_given_up(error: &LinkError, env: Env<'_>) -> bool {
    let LinkError::Refused(refuse) = error else { return false };
    matches!(refuse.code, RefuseCode::FollowerAhead | RefuseCode::Forgotten)
        && env.options.accept_store == Some(env.store.store_id())
}

/// Where a scan was cut off, if one was.
fn scan_place(progress: &Progress) -> Option<ScanPlace> {
    match progress.step {
        Step::Scan { next, through } if next.0 != 0 => Some(ScanPlace { next, through }),
        Step::None | Step::Scan { .. } | Step::Rewind { .. } => None,
    }
}
