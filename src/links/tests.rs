//! Who holds what, who is woken by what, and how far behind a link is.

use super::*;

fn cell(links: &Links, follower: u128, shard: u16, applied: u64) -> Arc<LinkCell> {
    let cell = LinkCell::new(Uuid::from_u128(follower), ([127, 0, 0, 1], 1).into(), 0, shard);
    cell.set_phase(Phase::Stream);
    cell.applied_seq.store(applied, Ordering::Relaxed);
    cell.received_seq.store(applied, Ordering::Relaxed);
    links.add(Arc::clone(&cell));
    cell
}

fn at(ms: u64) -> Now {
    Now { monotonic: Duration::from_millis(ms), unix_ms: 1 }
}

#[test]
fn a_follower_holds_what_it_has_in_every_shard_that_is_asked_for() {
    let links = Links::new();
    cell(&links, 1, 0, 10);
    let slow = cell(&links, 1, 1, 5);
    // Carries shard 1 only, and has two links to it: it came back before the old one timed out.
    cell(&links, 2, 1, 3);
    let back = cell(&links, 2, 1, 20);
    let holders = |needed: &[(u16, u64)]| {
        let needed: Vec<_> = needed.iter().map(|(shard, seq)| (ShardIndex(*shard), Seq(*seq))).collect();
        links.holders(Level::Applied, &needed)
    };
    assert_eq!(holders(&[]), 2);
    assert_eq!(holders(&[(0, 10)]), 1, "the other does not carry it");
    assert_eq!(holders(&[(1, 5)]), 2);
    assert_eq!(holders(&[(1, 6)]), 1);
    assert_eq!(holders(&[(0, 10), (1, 5)]), 1);
    assert_eq!(holders(&[(0, 10), (1, 6)]), 0, "each has one of them");
    slow.received_seq.store(6, Ordering::Relaxed);
    assert_eq!(links.holders(Level::Received, &[(ShardIndex(1), Seq(6))]), 2);
    back.set_phase(Phase::Closed);
    assert_eq!(holders(&[(1, 5)]), 1);
    links.remove(&back);
    assert_eq!(holders(&[]), 2);
}

/// A link that began where its follower had got to before its last Ack was lost once woke nobody.
#[test]
fn a_wait_ends_with_the_ack_that_matters_or_with_a_link_that_is_there_already() {
    use std::pin::Pin;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Context, Poll, Wake, Waker};

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let links = Links::new();
    let first = cell(&links, 1, 0, 0);
    let needed = [(ShardIndex(0), Seq(7))];
    let mut wait = links.wait(needed.to_vec(), move |links: &Links| {
        let holders = links.holders(Level::Applied, &needed);
        (holders >= 2).then_some(holders)
    });
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&count));
    let mut poll = || Pin::new(&mut wait).poll(&mut Context::from_waker(&waker));
    let woken = || count.0.load(Ordering::Relaxed);
    let ack = |cell: &LinkCell, to: u64| {
        let from = Seq(cell.applied_seq.swap(to, Ordering::Relaxed));
        links.passed(cell, from, Seq(to));
    };
    assert_eq!(poll(), Poll::Pending);
    for seq in 1..7 {
        ack(&first, seq);
    }
    assert_eq!(woken(), 0, "Acks below the seq wake nobody");
    ack(&first, 9);
    assert_eq!((woken(), poll()), (1, Poll::Pending), "one of two");
    ack(&first, 10);
    assert_eq!(woken(), 1);
    cell(&links, 2, 0, 7);
    assert_eq!((woken(), poll()), (2, Poll::Ready(2)));
    drop(wait);
    assert!(links.waiters.is_empty(), "a wait leaves nothing behind");
}

#[test]
fn a_wait_in_a_thread_ends_with_the_ack_or_in_time() {
    let links = Links::new();
    let cell = cell(&links, 1, 0, 0);
    let enough = |links: &Links| (links.acked(ShardIndex(0), Seq(3)) > 0).then_some(());
    let target = vec![(ShardIndex(0), Seq(3))];
    assert_eq!(links.wait(target.clone(), enough).block(Duration::from_millis(5)), None);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| links.wait(target, enough).block(Duration::MAX));
        while links.waiters.is_empty() {
            std::thread::yield_now();
        }
        cell.applied_seq.store(3, Ordering::Relaxed);
        links.passed(&cell, Seq::ZERO, Seq(3));
        assert_eq!(waiter.join().unwrap(), Some(()));
    });
}

#[test]
fn a_leader_knows_lag_exactly_and_a_silent_leader_is_lag_for_its_follower() {
    let links = Links::new();
    let cell = cell(&links, 1, 0, 10);
    cell.carried(4, 400);
    links.heads.heard(ShardIndex(0), 1_000, Seq(10));
    links.heads.heard(ShardIndex(0), 2_000, Seq(20));
    let lag = |head, now| links.lag(&cell, Seq(head), 8, 50, at(now));
    assert_eq!(lag(10, 90_000), Lag::default(), "nothing new for long is no lag");
    assert_eq!(lag(15, 3_000), Lag { records: 5, bytes: 500, ms: 2_000 });
    assert_eq!(lag(20, 3_000), Lag { records: 10, bytes: 800, ms: 2_000 }, "a delta sends no slot twice");
    assert_eq!(links.near(ShardIndex(0), Seq(20), Duration::from_millis(2_000), at(3_000)), 1);
    assert_eq!(links.near(ShardIndex(0), Seq(20), Duration::from_millis(1_999), at(3_000)), 0);
    assert_eq!(links.near(ShardIndex(1), Seq(20), Duration::MAX, at(3_000)), 0);

    // The same cell as a follower's: heads are in the leader's clock, an hour ahead.
    cell.clock_offset_ms.store(3_600_000, Ordering::Relaxed);
    cell.silence_ms_max.store(2_000, Ordering::Relaxed);
    cell.applied_seq.store(20, Ordering::Relaxed);
    links.heads.heard(ShardIndex(0), 3_610_000, Seq(20));
    assert_eq!(lag(20, 11_900).ms, 0, "between two heartbeats");
    assert_eq!(lag(20, 19_000).ms, 9_000);
    links.heads.heard(ShardIndex(0), 3_619_000, Seq(25));
    assert_eq!(lag(25, 19_000), Lag { records: 5, bytes: 500, ms: 9_000 });
}

/// A follower that was started without its leader once was as fresh as could be, or decades old.
#[test]
fn where_nothing_is_known_a_follower_is_as_old_as_its_process() {
    let links = Links::new();
    let cell = cell(&links, 1, 0, 0);
    cell.silence_ms_max.store(2_000, Ordering::Relaxed);
    let age_ms = |now| links.lag(&cell, Seq::ZERO, 8, 50, at(now)).ms;
    assert_eq!((age_ms(1), age_ms(1_500), age_ms(90_000)), (1, 1_500, 90_000));
    cell.clock_offset_ms.store(1_700_000_000_000, Ordering::Relaxed);
    assert_eq!(age_ms(90_000), 90_000, "of a clock that told no head");
}

#[test]
fn a_follower_in_its_first_scan_is_near_nothing() {
    let links = Links::new();
    let cell = cell(&links, 1, 0, 0);
    cell.set_phase(Phase::Scan);
    links.heads.heard(ShardIndex(0), 1_000, Seq(10));
    let near = |head| links.near(ShardIndex(0), Seq(head), Duration::from_secs(10), at(1_001));
    assert_eq!(near(10), 0);
    assert_eq!(near(0), 1, "of an empty shard there is nothing to have");
}

/// A follower that nobody takes once looked as if it had all there is.
#[test]
fn what_is_held_of_something_else_is_no_part_of_the_leader_s_and_lags() {
    let links = Links::new();
    let cell = cell(&links, 1, 0, 50);
    cell.silence_ms_max.store(1_000, Ordering::Relaxed);
    links.heads.heard(ShardIndex(0), 100, Seq(50));
    let lag = |head| links.lag(&cell, Seq(head), 10, 40, at(101));
    assert_eq!(lag(50), Lag::default());
    cell.is_unrelated.store(true, Ordering::Relaxed);
    assert_eq!(lag(50), Lag { records: 50, bytes: 400, ms: 1 });
    assert!(lag(0).records > 0 && lag(0).bytes > 0 && lag(0).ms > 0);
}
