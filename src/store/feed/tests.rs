//! Feeds against a model of what a reader keeps, through writes, returns, followers and failovers.

use std::collections::BTreeMap;

use super::*;
use crate::slot::Geometry;
use crate::store::{Options, Progress};

const SHARD: ShardIndex = ShardIndex(0);

fn memory(slots: u32) -> Store {
    let geometry = Geometry { shard_count: 1, key_size_max: 8, value_size_max: 16, shard_prefix_bits: 0 };
    Store::open("unused".as_ref(), Options::memory(geometry, slots)).unwrap()
}

/// What a reader keeps: the slots, and from them the keys.
#[derive(Debug, Default)]
struct Reader {
    last: ChangeId,
    slots: BTreeMap<SlotIndex, (Vec<u8>, Option<Vec<u8>>)>,
}

impl Reader {
    fn take(&mut self, id: ChangeId, slot: SlotIndex, view: &SlotView<'_>) {
        assert!(id.seq > self.last.seq, "{id} after {}", self.last);
        assert_eq!(id.seq, view.seq());
        self.last = id;
        let value = (view.status() == Status::Occupied).then(|| view.value().to_vec());
        self.slots.insert(slot, (view.key().to_vec(), value));
    }

    /// Reads until there is no more for now.
    fn drain(&mut self, store: &Store, feed: &mut ChangeFeed) {
        while feed.step(store, usize::MAX, |id, slot, view| self.take(id, slot, view)).unwrap() == Fed::More {
        }
        assert_eq!(feed.last(), self.last);
    }

    fn records(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut records = BTreeMap::new();
        for (key, value) in self.slots.values() {
            if let Some(value) = value {
                assert!(records.insert(key.clone(), value.clone()).is_none(), "{key:?} is in two slots");
            }
        }
        records
    }
}

fn contents(store: &Store) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut records = BTreeMap::new();
    let visit = store.visit(SHARD, SlotIndex(0), u32::MAX, |entry| {
        records.insert(entry.key.to_vec(), entry.value.to_vec());
    });
    visit.unwrap();
    records
}

fn feed(last: ChangeId) -> ChangeFeed {
    ChangeFeed::new(SHARD, last, PLAN_SLOTS_MAX)
}

/// Everything the shard holds, applied to another store, up to a watermark.
fn copy(leader: &Store, follower: &Store, watermark: Seq) {
    let (mut scan, mut records) = (leader.scan(SHARD, Seq::ZERO), Vec::new());
    while leader.scan_next(SHARD, &mut scan, &mut records, usize::MAX).unwrap() {}
    follower.demote().unwrap();
    follower.apply(SHARD, &records).unwrap();
    follower.set_lineage(SHARD, &leader.lineage(SHARD));
    let progress = Progress { epoch: 1, seq: watermark, consistent_at: watermark, step: Step::None };
    follower.set_progress(SHARD, progress);
}

#[test]
fn a_reader_that_comes_and_goes_between_writes_ends_with_what_the_store_holds() {
    for seed in 1..=60_u64 {
        let store = memory(200);
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        // From a plan of one slot, so that each is looked for anew, to one that takes all.
        let plan = [1, 3, 20, 1_000][usize::try_from(seed % 4).unwrap()];
        let mut reader = Reader::default();
        let mut feed = ChangeFeed::new(SHARD, reader.last, plan);
        for _ in 0..1_500 {
            let key = next(90).to_le_bytes();
            match next(10) {
                0..4 => {
                    store.put(&key[..2], &next(1 << 40).to_le_bytes()).unwrap();
                }
                4..7 => {
                    store.delete(&key[..2]).unwrap();
                }
                7..9 => {
                    let count = usize::try_from(next(5) + 1).unwrap();
                    feed.step(&store, count, |id, slot, view| reader.take(id, slot, view)).unwrap();
                }
                // Another connection, which knows only where the reader is.
                _ if next(4) == 0 => feed = ChangeFeed::new(SHARD, reader.last, plan),
                _ => {}
            }
        }
        reader.drain(&store, &mut feed);
        assert_eq!(reader.records(), contents(&store), "seed {seed}");
        assert_eq!(reader.last, store.last_change(SHARD), "seed {seed}");
        assert_eq!(feed.step(&store, 1, |_, _, _| panic!("nothing changed")).unwrap(), Fed::Drained);
    }
}

#[test]
fn a_key_whose_slot_was_used_again_meanwhile_is_known_to_be_gone_by_its_slot() {
    let store = memory(100);
    store.put(b"old", b"1").unwrap();
    let mut reader = Reader::default();
    reader.drain(&store, &mut feed(ChangeId::START));
    store.delete(b"old").unwrap();
    store.put(b"new", b"2").unwrap();
    reader.drain(&store, &mut feed(reader.last));
    assert_eq!(reader.records(), BTreeMap::from([(b"new".to_vec(), b"2".to_vec())]));
}

#[test]
fn a_follower_gives_only_what_its_watermark_covers() {
    let (leader, follower) = (memory(200), memory(200));
    for key in 0..50_u8 {
        leader.put(&[key], b"value").unwrap();
    }
    copy(&leader, &follower, Seq(20));
    let mut reader = Reader::default();
    let mut feed = feed(ChangeId::START);
    reader.drain(&follower, &mut feed);
    assert_eq!((reader.slots.len(), reader.last.seq), (20, Seq(20)));
    assert_eq!(follower.last_change(SHARD), reader.last);
    // What is still to come is waited for, and not stepped over.
    let ahead = ChangeId { seq: Seq(30), ..reader.last };
    assert_eq!(self::feed(ahead).step(&follower, 9, |_, _, _| panic!("ahead")).unwrap(), Fed::Drained);
    copy(&leader, &follower, Seq(50));
    reader.drain(&follower, &mut feed);
    assert_eq!(reader.records(), contents(&leader));
    assert_eq!(reader.last, leader.last_change(SHARD), "an id means the same on all nodes");
}

#[test]
fn a_place_that_a_failover_dropped_is_an_error_and_one_before_it_goes_on() {
    let (leader, follower) = (memory(200), memory(200));
    for key in 0..10_u8 {
        leader.put(&[key], b"both").unwrap();
    }
    let shared = leader.last_change(SHARD);
    copy(&leader, &follower, Seq(10));
    leader.put(b"only", b"here").unwrap();
    let lost = leader.last_change(SHARD);
    follower.promote().unwrap();
    follower.set_read_only(false);
    for key in 20..30_u8 {
        follower.put(&[key], b"next").unwrap();
    }
    let mut seen = 0;
    let mut goes_on = feed(shared);
    while goes_on.step(&follower, usize::MAX, |_, _, _| seen += 1).unwrap() == Fed::More {}
    assert_eq!(seen, 10);
    assert!(goes_on.last().term > shared.term);
    let error = feed(lost).step(&follower, 9, |_, _, _| panic!("lost")).unwrap_err();
    assert!(matches!(error, FeedError::Lost { first_seq: Seq(11), epoch: 2, .. }), "{error}");
}

/// A leader, its follower, and who has read more than half of what that holds.
fn read_in_part() -> (Store, Store, Reader, ChangeFeed) {
    let (leader, node) = (memory(300), memory(300));
    for key in 0..200_u8 {
        leader.put(&[key], b"both").unwrap();
    }
    copy(&leader, &node, Seq(200));
    let mut reader = Reader::default();
    let mut feed = feed(ChangeId::START);
    while reader.last.seq < Seq(120) {
        feed.step(&node, 40, |id, slot, view| reader.take(id, slot, view)).unwrap();
    }
    (leader, node, reader, feed)
}

#[test]
fn a_failover_between_two_steps_of_one_feed_is_seen() {
    let (leader, node, _, mut feed) = read_in_part();
    // The node gives up everything above 100, and its slots are about to go back.
    crate::store::rewind::run(&node, node.begin_rewind(SHARD, Seq(100), false).unwrap());
    for _ in 0..9 {
        assert_eq!(feed.step(&node, 9, |_, _, _| panic!("on its way back")).unwrap(), Fed::Drained);
    }
    let mut lineage = leader.lineage(SHARD);
    lineage.push(Term { epoch: 2, id: 7, first_seq: 101 });
    node.set_lineage(SHARD, &lineage);
    let progress = Progress { epoch: 2, seq: Seq(200), consistent_at: Seq(200), step: Step::None };
    node.set_progress(SHARD, progress);
    let error = feed.step(&node, 9, |_, _, _| panic!("lost")).unwrap_err();
    assert!(matches!(error, FeedError::Lost { first_seq: Seq(101), .. }), "{error}");
}

#[test]
fn a_new_term_that_drops_nothing_neither_repeats_nor_misses_a_change() {
    let (leader, node, mut reader, mut feed) = read_in_part();
    node.promote().unwrap();
    reader.drain(&node, &mut feed);
    assert_eq!(reader.records(), contents(&leader));
}

#[test]
fn several_shards_are_read_in_turn_and_a_wait_ends() {
    let geometry = Geometry { shard_count: 3, key_size_max: 8, value_size_max: 16, shard_prefix_bits: 0 };
    let store = Arc::new(Store::open("unused".as_ref(), Options::memory(geometry, 500)).unwrap());
    let mut changes =
        Changes::new(Arc::clone(&store), store.shards().map(|shard| (shard, store.last_change(shard))));
    assert_eq!(changes.next_within(Duration::from_millis(5)), None);
    for key in 0..300_u32 {
        store.put(&key.to_le_bytes(), b"value").unwrap();
    }
    let mut keys: Vec<_> = changes.by_ref().map(|change| change.unwrap().key).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 300);
    store.delete(&7_u32.to_le_bytes()).unwrap();
    let change = changes.next_within(Duration::from_secs(60)).unwrap().unwrap();
    assert_eq!((change.key, change.value), (7_u32.to_le_bytes().to_vec(), None));
}

#[test]
fn an_id_reads_as_it_is_written() {
    for id in [ChangeId { term: 1 << 32 | 5, seq: Seq(7) }, ChangeId::START] {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    assert_eq!("0".parse(), Ok(ChangeId::START));
    for wrong in
        ["", "-", "5", "0-5", "5-", "-5", "1-2-3", "+1-2", "1-+2", "1-18446744073709551615", "x", "$"]
    {
        assert_eq!(wrong.parse::<ChangeId>(), Err(NoChangeId { found: wrong.to_owned() }));
    }
}
