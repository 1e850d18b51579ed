//! Whether a follower may have what it asks for, and what it is sent.
//!
//! Always true: a delta begins at a seq that both sides have lived through, and a follower that holds
//! more than that has asked for the slots in question before the scan begins. A follower with which the
//! leader has no term in common is refused: it holds what an emptied or foreign store cannot replace
//! without somebody saying so.

use crate::planted::{Bug, is_planted};
use crate::slot::Seq;
use crate::slot::lineage::{fork, is_forgotten};
use crate::store::{Store, Term};
use crate::wire::message::{Hello, Refuse, RefuseCode, SHARD_PROBE, ScanPlace};

fn refuse<T>(code: RefuseCode, text: String) -> Result<T, Refuse> {
    Err(Refuse::new(code, text))
}

/// Checks all of a Hello but its watermark; a probe is checked for what it states.
pub(super) fn check_identity(store: &Store, epoch: u64, hello: &Hello) -> Result<(), Refuse> {
    if store.is_read_only() && !store.is_regaining() {
        // A follower's store takes seqs as they come, so what it would stream has no order.
        let text = "this node follows another or is shutting down: it has no stream to give".to_owned();
        return refuse(RefuseCode::NotLeader, text);
    }
    let (store_id, geometry) = (store.store_id(), store.geometry());
    if !hello.store_id.is_nil() && hello.store_id != store_id {
        let found = hello.store_id;
        return refuse(
            RefuseCode::ForeignStore,
            format!(
                "follower holds data of store {found}, this is store {store_id}; to throw the follower's data away, \
                 start it with --accept-store {store_id}"
            ),
        );
    }
    if let Some(found) = hello.geometry.filter(|found| *found != geometry) {
        return refuse(RefuseCode::Geometry, format!("follower has {}, this leader has {}", found, geometry));
    }
    if hello.epoch > epoch && !is_planted(Bug::OlderEpochAccepted) {
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

/// What a follower is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// The last seq that both sides have lived through.
    pub(super) fork: Seq,
    /// Slots above this seq are scanned; zero = all.
    pub(super) since: Seq,
    /// Where the scan goes on.
    pub(super) scan_place: Option<ScanPlace>,
    /// The follower asks for slots first.
    pub(super) asks: bool,
}

/// Decides by the lineage (oldest term first) and the head.
pub(super) fn plan(lineage: &[Term], head: Seq, hello: &Hello) -> Result<Plan, Refuse> {
    let mut fork = fork(lineage, head, &hello.lineage, hello.head);
    if is_planted(Bug::ForgottenTaken) {
        fork = fork.or(Some(Seq::ZERO));
    }
    let Some(fork) = fork else { return Err(unrelated(lineage, hello)) };
    let since = hello.watermark.min(fork);
    let is_ahead = hello.head > fork;
    // What was scanned of another history is worth nothing.
    let scan_place = hello.scan_place.filter(|_| !is_ahead && !hello.asks);
    let scan_place = scan_place.map(|place| ScanPlace { through: place.through.min(fork), ..place });
    let scan_place = scan_place.filter(|place| place.through > since);
    Ok(Plan { fork, since, scan_place, asks: is_ahead || hello.asks })
}

/// Nothing is known of what both sides have lived through, so what the follower holds is not replaced unless
/// somebody says so.
fn unrelated(lineage: &[Term], hello: &Hello) -> Refuse {
    let Hello { head, store_id, .. } = hello;
    let last = hello.lineage.last().map_or(0, |term| term.epoch);
    let (code, why) = if is_forgotten(lineage, &hello.lineage) {
        let count = lineage.len();
        let why =
            format!("it was away for longer than the {count} terms of leadership that this leader remembers");
        (RefuseCode::Forgotten, why)
    } else {
        (RefuseCode::FollowerAhead, "this store was emptied, or lost its past".to_owned())
    };
    let text = format!(
        "follower holds seq {head} of epoch {last} and shares no term of leadership with this store: {why}; the \
         follower keeps its data; to replace them by the leader's, start it with --accept-store {store_id}; to keep \
         them, let it lead (promote --force)"
    );
    Refuse::new(code, text)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::shard::header::LINEAGE_LEN_MAX;
    use crate::slot::SlotIndex;
    use crate::slot::lineage::begin;
    use uuid::Uuid;

    /// A follower that holds this.
    pub(in crate::leader) fn hello(lineage: &[Term], watermark: u64, head: u64) -> Hello {
        Hello {
            version_min: 1,
            version_max: 1,
            shard: 0,
            resp_port: 0,
            geometry: None,
            store_id: Uuid::nil(),
            follower_id: Uuid::nil(),
            epoch: 4,
            watermark: Seq(watermark),
            head: Seq(head),
            scan_place: None,
            asks: false,
            lineage: lineage.to_vec(),
        }
    }

    #[test]
    fn a_delta_begins_where_both_histories_are_one() {
        let term = |epoch, id, first_seq| Term { epoch, id, first_seq };
        let lineage = [term(1, 1, 1), term(4, 2, 1000)];
        let check = |hello: &Hello| plan(&lineage, Seq(1500), hello).map(|plan| (plan.since.0, plan.asks));
        // On our history: a delta from the watermark.
        assert_eq!(check(&hello(&lineage, 1500, 1500)), Ok((1500, false)));
        assert_eq!(check(&hello(&lineage, 1200, 1400)), Ok((1200, false)));
        assert_eq!(check(&hello(&lineage[..1], 999, 999)), Ok((999, false)));
        // Nothing held: all of it.
        assert_eq!(check(&hello(&[term(1, 7, 1)], 0, 0)), Ok((0, false)));
        // Beyond the fork: a rewind, and a delta from there, or from further back.
        assert_eq!(check(&hello(&lineage[..1], 1100, 1100)), Ok((999, true)));
        assert_eq!(check(&hello(&lineage[..1], 500, 1100)), Ok((500, true)));
        assert_eq!(check(&hello(&lineage, 1600, 1600)), Ok((1500, true)));
        assert_eq!(check(&hello(&[lineage[0], term(1, 9, 600)], 800, 800)), Ok((599, true)));
        // Nothing in common.
        let strange = check(&hello(&[term(1, 9, 1)], 5, 5));
        assert_eq!(strange.unwrap_err().code, RefuseCode::FollowerAhead);
    }

    /// The follower was in sync in the first term, and the leader has lived through so many more since.
    #[test]
    fn a_follower_is_known_by_the_last_128_terms_and_no_longer() {
        let followed = Term { epoch: 1, id: 1, first_seq: 1 };
        let after = |count: u64| {
            let mut lineage = vec![followed];
            for n in 1..=count {
                begin(&mut lineage, Term { epoch: 1 + n, id: 1 + n, first_seq: 10 * n });
            }
            let forgotten = lineage.len().saturating_sub(LINEAGE_LEN_MAX);
            plan(&lineage[forgotten..], Seq(10 * count + 5), &Hello { epoch: 1, ..hello(&[followed], 9, 9) })
        };
        assert_eq!(after(126).map(|plan| plan.since), Ok(Seq(9)));
        assert_eq!(after(127).map(|plan| plan.since), Ok(Seq(9)));
        for count in [128, 129, 1_000] {
            let refuse = after(count).unwrap_err();
            assert_eq!(refuse.code, RefuseCode::Forgotten);
            assert!(refuse.code.is_permanent() && refuse.text.contains("--accept-store"), "{}", refuse.text);
            assert!(refuse.text.len() <= crate::wire::message::REFUSE_TEXT_SIZE_MAX, "{}", refuse.text.len());
        }
        // Who says that it gives up what it holds gets all there is.
        let lineage = [Term { epoch: 200, id: 200, first_seq: 2_000 }];
        let given_up = Hello { asks: true, ..hello(&[followed], 0, 0) };
        let wanted = Plan { fork: Seq::ZERO, since: Seq::ZERO, scan_place: None, asks: true };
        assert_eq!(plan(&lineage, Seq(2_005), &given_up), Ok(wanted));
    }

    #[test]
    fn a_scan_goes_on_only_on_our_history() {
        let term = |id, first_seq| Term { epoch: 1, id, first_seq };
        let (ours, theirs) = ([term(1, 1), term(2, 100)], [term(1, 1)]);
        let place = |through| Some(ScanPlace { next: SlotIndex(7), through: Seq(through) });
        let check = |lineage: &[Term], head, through| {
            let hello = Hello { scan_place: place(through), ..hello(lineage, 50, head) };
            plan(&ours, Seq(500), &hello).unwrap().scan_place
        };
        assert_eq!(check(&ours, 400, 300), place(300));
        assert_eq!(check(&theirs, 99, 80), place(80));
        assert_eq!(check(&theirs, 90, 200), place(90));
        assert_eq!(check(&theirs, 150, 80), None);
        assert_eq!(check(&ours, 400, 50), None);
    }
}
