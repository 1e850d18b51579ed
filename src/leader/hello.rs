//! Whether a follower may have what it asks for, and from which seq on.
//!
//! A leader never sends a delta to a follower whose watermark is not on the leader's own lineage:
//! such a follower would call itself equal and not be.

use crate::slot::Seq;
use crate::store::{Store, Term};
use crate::wire::message::{Hello, Refuse, RefuseCode, SHARD_PROBE};

fn refuse<T>(code: RefuseCode, text: String) -> Result<T, Refuse> {
    Err(Refuse::new(code, text))
}

/// Checks all of a Hello but its watermark; a probe is checked for what it states.
pub(super) fn check_identity(store: &Store, epoch: u64, hello: &Hello) -> Result<(), Refuse> {
    if store.is_read_only() {
        // A follower's store takes seqs as they come, so what it would stream has no order.
        let text = "this node follows another or is shutting down: it has no stream to give".to_owned();
        return refuse(RefuseCode::NotLeader, text);
    }
    let (store_id, geometry) = (store.store_id(), store.geometry());
    if !hello.store_id.is_nil() && hello.store_id != store_id {
        let found = hello.store_id;
        return refuse(
            RefuseCode::ForeignStore,
            format!("follower holds data of store {found}, this is store {store_id}"),
        );
    }
    if let Some(found) = hello.geometry.filter(|found| *found != geometry) {
        return refuse(RefuseCode::Geometry, format!("follower has {}, this leader has {}", found, geometry));
    }
    if hello.epoch > epoch {
        let found = hello.epoch;
        return refuse(
            RefuseCode::OldEpoch,
            format!("follower has heard of epoch {found}, this leader is in epoch {epoch}"),
        );
    }
    if hello.shard == SHARD_PROBE {
        return Ok(());
    }
    if hello.shard >= geometry.shard_count {
        let (found, wanted) = (hello.shard, geometry.shard_count - 1);
        return refuse(RefuseCode::Shard, format!("no shard {found}, this store has shards 0 to {wanted}"));
    }
    if hello.store_id.is_nil() || hello.geometry.is_none() {
        return refuse(RefuseCode::Malformed, "a follower without a store cannot take a shard".to_owned());
    }
    Ok(())
}

/// Checks the watermark against the lineage (oldest term first) and the head; returns where a scan
/// for this follower begins.
pub(super) fn check_watermark(lineage: &[Term], head: Seq, hello: &Hello) -> Result<Seq, Refuse> {
    let current = lineage.last().expect("a lineage is never empty");
    if hello.is_inside_scan && hello.epoch != current.epoch {
        // What the cut-off scan carried may be lost here, and a delta would not put it right.
        return refuse(
            RefuseCode::FollowerAhead,
            format!(
                "follower was cut off inside a scan of epoch {}, this is epoch {}: it may hold changes that \
                 were lost; remove its data so that it starts anew",
                hello.epoch, current.epoch
            ),
        );
    }
    let watermark = hello.watermark_seq;
    if watermark == Seq::ZERO {
        return Ok(Seq::ZERO);
    }
    let Some(at) = lineage.iter().position(|term| term.epoch == hello.watermark_epoch) else {
        return refuse(
            RefuseCode::FollowerAhead,
            format!("follower holds epoch {}, which this store never lived through", hello.watermark_epoch),
        );
    };
    // The last seq of that epoch that this store has.
    let last = lineage.get(at + 1).map_or(head, |next| Seq(next.first_seq.saturating_sub(1)));
    if watermark > last {
        return refuse(
            RefuseCode::FollowerAhead,
            format!(
                "follower holds seq {watermark} of epoch {}, this leader knows that epoch only up to {last}; \
                 remove its data so that it starts anew",
                hello.watermark_epoch
            ),
        );
    }
    Ok(watermark)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn hello(epoch: u64, watermark: (u64, u64), is_inside_scan: bool) -> Hello {
        Hello {
            version_min: 1,
            version_max: 1,
            shard: 0,
            resp_port: 0,
            geometry: None,
            store_id: Uuid::nil(),
            follower_id: Uuid::nil(),
            epoch,
            watermark_epoch: watermark.0,
            watermark_seq: Seq(watermark.1),
            is_inside_scan,
        }
    }

    fn code(result: Result<Seq, Refuse>) -> RefuseCode {
        result.unwrap_err().code
    }

    #[test]
    fn a_watermark_is_good_only_on_our_lineage() {
        let lineage = [Term { epoch: 1, first_seq: 1 }, Term { epoch: 4, first_seq: 1000 }];
        let head = Seq(1500);
        let check = |hello: &Hello| check_watermark(&lineage, head, hello);
        assert_eq!(check(&hello(4, (4, 1500), false)), Ok(Seq(1500)));
        assert_eq!(check(&hello(4, (4, 1200), true)), Ok(Seq(1200)));
        assert_eq!(check(&hello(1, (1, 999), false)), Ok(Seq(999)));
        assert_eq!(check(&hello(1, (0, 0), false)), Ok(Seq::ZERO));
        assert_eq!(code(check(&hello(1, (1, 1000), false))), RefuseCode::FollowerAhead);
        assert_eq!(code(check(&hello(4, (4, 1501), false))), RefuseCode::FollowerAhead);
        assert_eq!(code(check(&hello(4, (3, 5), false))), RefuseCode::FollowerAhead);
        assert_eq!(code(check(&hello(1, (1, 10), true))), RefuseCode::FollowerAhead);
        assert_eq!(code(check(&hello(1, (0, 0), true))), RefuseCode::FollowerAhead);
    }
}
