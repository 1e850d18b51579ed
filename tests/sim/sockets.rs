//! Leader and follower threads over real loopback sockets, in one process.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use slotstream::follower::{self, Follower};
use slotstream::leader::{self, Leader};
use slotstream::links::{Level, LinkCell, Links, Phase};
use slotstream::slot::SlotIndex;
use slotstream::stop::Stop;
use slotstream::store::{Options, Position, Progress, Store};
use slotstream::{Geometry, Seq, ShardIndex};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn geometry(shard_count: u16) -> Geometry {
    Geometry { shard_count, key_size_max: 16, value_size_max: 64, shard_prefix_bits: 0 }
}

pub(crate) fn store(geometry: Geometry, id: Option<uuid::Uuid>) -> Arc<Store> {
    let options = Options { store_id: id, ..Options::memory(geometry, 100_000) };
    Arc::new(Store::open(std::path::Path::new("unused"), options).unwrap())
}

pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {DEADLINE:?} until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) struct Node<T> {
    pub(crate) store: Arc<Store>,
    pub(crate) links: Arc<Links>,
    pub(crate) stop: Stop,
    role: Option<T>,
}

pub(crate) fn start_leader(store: &Arc<Store>, options: leader::Options) -> Node<Leader> {
    let (links, stop) = (Links::new(), Stop::new());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let role = Leader::start(Arc::clone(store), listener, options, Arc::clone(&links), stop.clone()).unwrap();
    Node { store: Arc::clone(store), links, stop, role: Some(role) }
}

pub(crate) fn start_follower(
    store: &Arc<Store>,
    leader: SocketAddr,
    options: follower::Options,
) -> Node<Follower> {
    let (links, stop) = (Links::new(), Stop::new());
    let role =
        Follower::start(Arc::clone(store), leader.to_string(), options, Arc::clone(&links), stop.clone())
            .unwrap();
    Node { store: Arc::clone(store), links, stop, role: Some(role) }
}

impl Node<Leader> {
    pub(crate) fn address(&self) -> SocketAddr {
        self.role.as_ref().unwrap().address()
    }
}

impl<T> Drop for Node<T> {
    fn drop(&mut self) {
        self.stop.set();
    }
}

fn is_equal(leader: &Store, follower: &Store) -> bool {
    leader.shards().all(|shard| follower.progress(shard).seq == leader.head(shard))
}

fn assert_equal(leader: &Store, follower: &Store) {
    for shard in leader.shards() {
        assert_eq!(images(leader, shard), images(follower, shard), "slots of shard {shard}");
    }
    follower.check().unwrap();
}

fn images(store: &Store, shard: ShardIndex) -> Vec<u8> {
    let (mut out, mut scan) = (Vec::new(), store.scan(shard, slotstream::Seq::ZERO));
    while store.scan_next(shard, &mut scan, &mut out, usize::MAX / 2).unwrap() {}
    out
}

pub(crate) fn put(store: &Store, key: u64, value: u64) {
    store.put(&key.to_le_bytes(), &value.to_le_bytes()).unwrap();
}

/// 130 MB of slots that hold nothing, and a record behind them: a follower once took that for a mistake of its leader,
/// and began its first sync again and again.
#[test]
fn a_follower_takes_a_record_far_behind_the_one_before_it() {
    const LAST: u32 = 2_000;
    let geometry =
        Geometry { shard_count: 1, key_size_max: 16, value_size_max: 65_000, shard_prefix_bits: 0 };
    let small = |id| {
        let options = Options { store_id: id, ..Options::memory(geometry, LAST + 100) };
        Arc::new(Store::open(std::path::Path::new("unused"), options).unwrap())
    };
    let (store_l, empty, shard) = (small(None), small(None), ShardIndex(0));
    for key in 0..=u64::from(LAST) {
        put(&store_l, key, 1);
    }
    for slot in 1..LAST {
        let mut record = Vec::new();
        empty.push_slot(shard, SlotIndex(slot), &mut record).unwrap();
        store_l.apply_forced(shard, &record, SlotIndex(slot + 1)).unwrap();
    }
    assert_eq!(store_l.len(), 2);
    let leader = start_leader(&store_l, leader::Options::default());
    let store_f = small(Some(store_l.store_id()));
    let _follower = start_follower(&store_f, leader.address(), follower::Options::default());
    wait_until("the scan is through", || is_equal(&store_l, &store_f));
    assert_equal(&store_l, &store_f);
    assert_eq!(leader.links.totals.full_scans.load(Ordering::Relaxed), 1, "it began once");
}

#[test]
fn a_follower_converges_by_scan_and_then_by_stream() {
    let store_l = store(geometry(4), None);
    for key in 0..20_000 {
        put(&store_l, key, 1);
    }
    let leader = start_leader(&store_l, leader::Options::default());
    let store_f = store(geometry(4), Some(store_l.store_id()));
    let follower = start_follower(&store_f, leader.address(), follower::Options::default());
    wait_until("the scan is through", || is_equal(&store_l, &store_f));
    assert_equal(&store_l, &store_f);
    for key in 10_000..30_000 {
        put(&store_l, key, 2);
    }
    wait_until("the stream is through", || is_equal(&store_l, &store_f));
    assert_equal(&store_l, &store_f);
    wait_until("all links stream", || follower.links.all().iter().all(|cell| cell.phase() == Phase::Stream));
    wait_until("all is acknowledged", || {
        store_l.shards().all(|shard| leader.links.acked(shard, store_l.head(shard)) == 1)
    });
    assert_eq!(leader.links.totals.full_scans.load(Ordering::Relaxed), 4);
    assert_eq!(leader.links.totals.protocol_errors.load(Ordering::Relaxed), 0);
    assert_eq!(follower.links.totals.protocol_errors.load(Ordering::Relaxed), 0);
}

#[test]
fn overflow_of_a_tiny_ring_is_healed_by_a_delta_on_the_same_link() {
    let store_l = store(geometry(2), None);
    let options = leader::Options { ring_bytes: 400, ..Default::default() };
    let leader = start_leader(&store_l, options);
    let store_f = store(geometry(2), Some(store_l.store_id()));
    let follower = start_follower(&store_f, leader.address(), follower::Options::default());
    wait_until("links stream", || follower.links.all().iter().all(|cell| cell.phase() == Phase::Stream));
    for round in 0..20 {
        for key in 0..2_000 {
            put(&store_l, key, round);
        }
    }
    wait_until("all is there", || is_equal(&store_l, &store_f));
    assert_equal(&store_l, &store_f);
    let totals = &leader.links.totals;
    assert!(totals.delta_scans_overflow.load(Ordering::Relaxed) > 0, "the ring never overflowed");
    assert_eq!(totals.full_scans.load(Ordering::Relaxed), 2);
    assert_eq!(totals.delta_scans_reconnect.load(Ordering::Relaxed), 0);
    assert!(follower.links.totals.reconnects.lock().is_empty());
}

/// Passes bytes on between a follower and a leader until it is told to cut.
struct Proxy {
    address: SocketAddr,
    generation: Arc<AtomicU64>,
    is_stopped: Arc<AtomicBool>,
}

impl Proxy {
    fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (generation, is_stopped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (cuts, stopped) = (Arc::clone(&generation), Arc::clone(&is_stopped));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (client, server) = (client.unwrap(), TcpStream::connect(target).unwrap());
                let pump = |from: &TcpStream, to: &TcpStream| {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let cuts = Arc::clone(&cuts);
                    let born = cuts.load(Ordering::Relaxed);
                    std::thread::spawn(move || copy(from, to, || cuts.load(Ordering::Relaxed) != born));
                };
                pump(&client, &server);
                pump(&server, &client);
            }
        });
        Self { address, generation, is_stopped }
    }

    fn cut(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, is_cut: impl Fn() -> bool) {
    let mut buffer = [0; 1000];
    from.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    while !is_cut() {
        match from.read(&mut buffer) {
            Ok(0) => break,
            // A cut may fall anywhere in a frame.
            Ok(len) if to.write_all(&buffer[..len]).is_err() => break,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    from.shutdown(std::net::Shutdown::Both).ok();
    to.shutdown(std::net::Shutdown::Both).ok();
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.cut();
        TcpStream::connect(self.address).ok();
    }
}

#[test]
fn a_dropped_connection_costs_a_delta_and_nothing_else() {
    let store_l = store(geometry(2), None);
    let leader = start_leader(&store_l, leader::Options::default());
    let proxy = Proxy::start(leader.address());
    let store_f = store(geometry(2), Some(store_l.store_id()));
    let options = follower::Options { back_off_min: Duration::from_millis(1), ..Default::default() };
    let follower = start_follower(&store_f, proxy.address, options);
    put(&store_l, 1, 1);
    wait_until("all is there", || is_equal(&store_l, &store_f));
    for key in 0..1_000 {
        put(&store_l, key, 1);
    }
    wait_until("all is there", || is_equal(&store_l, &store_f));
    for round in 2..10 {
        for key in 0..5_000 {
            put(&store_l, key, round);
            if key == 2_500 {
                proxy.cut();
            }
        }
        wait_until("all is there", || is_equal(&store_l, &store_f));
        assert_equal(&store_l, &store_f);
    }
    let totals = &leader.links.totals;
    assert!(totals.delta_scans_reconnect.load(Ordering::Relaxed) > 0, "no link came back");
    assert_eq!(totals.full_scans.load(Ordering::Relaxed), 2, "a watermark makes a delta do");
    assert!(!follower.links.totals.reconnects.lock().is_empty());
}

#[test]
fn another_stores_follower_is_refused_and_keeps_its_data() {
    let store_l = store(geometry(1), None);
    let leader = start_leader(&store_l, leader::Options::default());
    let store_f = store(geometry(1), None);
    put(&store_f, 5, 5);
    let before = images(&store_f, ShardIndex(0));
    // It has followed another leader.
    store_f.demote().unwrap();
    store_f.set_progress(
        ShardIndex(0),
        Progress { epoch: 1, seq: Seq(5), consistent_at: Seq(5), ..Progress::default() },
    );
    let follower = start_follower(&store_f, leader.address(), follower::Options::default());
    wait_until("the link is refused", || {
        follower.links.all().iter().all(|cell| cell.phase() == Phase::Refused)
    });
    let reason = follower.links.all()[0].reason.lock().clone();
    assert!(reason.contains("follower holds data of store"), "{reason}");
    assert_eq!(images(&store_f, ShardIndex(0)), before);
    assert_eq!(leader.links.totals.full_scans.load(Ordering::Relaxed), 0);
}

/// A former leader's data once passed for an empty follower's: what it had of its own stayed for good.
#[test]
fn a_store_that_shares_no_term_with_its_leader_is_refused_and_keeps_its_data() {
    let store_l = store(geometry(1), None);
    put(&store_l, 1, 1);
    let leader = start_leader(&store_l, leader::Options::default());
    let store_f = store(geometry(1), Some(store_l.store_id()));
    put(&store_f, 5, 5);
    let before = images(&store_f, ShardIndex(0));
    let follower = start_follower(&store_f, leader.address(), follower::Options::default());
    wait_until("the link is refused", || {
        follower.links.all().iter().all(|cell| cell.phase() == Phase::Refused)
    });
    let reason = follower.links.all()[0].reason.lock().clone();
    assert!(reason.contains("shares no term of leadership"), "{reason}");
    assert_eq!(images(&store_f, ShardIndex(0)), before);
}

#[test]
fn both_ends_stop_at_once_when_told_to() {
    // Nothing else would wake them: an end that waits for a heartbeat or a silence waits for an hour.
    let hour = Duration::from_secs(3600);
    let store_l = store(geometry(8), None);
    let options = leader::Options { heartbeat_interval: hour, dead_after: hour * 2, ..Default::default() };
    let mut leader = start_leader(&store_l, options);
    let store_f = store(geometry(8), Some(store_l.store_id()));
    let options = follower::Options { heartbeat_interval: hour, dead_after: hour * 2, ..Default::default() };
    let mut follower = start_follower(&store_f, leader.address(), options);
    let streams = |cells: &[Arc<LinkCell>]| cells.iter().filter(|cell| cell.phase() == Phase::Stream).count();
    wait_until("links stream", || streams(&follower.links.all()) == 8);
    leader.stop.set();
    follower.stop.set();
    let (role_l, role_f) = (leader.role.take().unwrap(), follower.role.take().unwrap());
    let ends = std::thread::spawn(move || {
        role_l.join();
        role_f.join();
    });
    wait_until("both ends have stopped", || ends.is_finished());
    assert!(leader.store.stats(ShardIndex(0)).rings == 0 && follower.store.is_read_only());
}

#[test]
fn many_sender_threads_serve_one_store_and_a_name_is_looked_up() {
    let store_l = store(geometry(8), None);
    let leader = start_leader(&store_l, leader::Options { threads: 3, ..Default::default() });
    let store_f = store(geometry(8), Some(store_l.store_id()));
    let (links, stop) = (Links::new(), Stop::new());
    let address = format!("localhost:{}", leader.address().port());
    let options = follower::Options { back_off_min: Duration::from_millis(1), ..Default::default() };
    let role =
        Follower::start(Arc::clone(&store_f), address, options, Arc::clone(&links), stop.clone()).unwrap();
    for round in 0..10 {
        for key in 0..1_000 {
            put(&store_l, key, round);
        }
    }
    wait_until("all is there", || is_equal(&store_l, &store_f));
    assert_equal(&store_l, &store_f);
    stop.set();
    role.join();
}

#[test]
fn a_waiter_is_woken_when_followers_have_acknowledged() {
    let store_l = store(geometry(1), None);
    let leader = start_leader(&store_l, leader::Options::default());
    let stores: Vec<_> = (0..2).map(|_| store(geometry(1), Some(store_l.store_id()))).collect();
    let followers: Vec<_> = stores
        .iter()
        .map(|store| start_follower(store, leader.address(), follower::Options::default()))
        .collect();
    let role = leader.role.as_ref().unwrap();
    let wait = |seq, timeout| role.wait(ShardIndex(0), seq, Level::Applied, followers.len(), timeout);
    for value in 0..200 {
        let seq = store_l.put(b"key", &[value]).unwrap();
        assert_eq!(wait(seq, DEADLINE), Ok(2));
    }
    let term = store_l.term(ShardIndex(0));
    let reader = followers[0].role.as_ref().unwrap();
    let seq = store_l.put(b"key", b"last").unwrap();
    reader.wait(ShardIndex(0), term, seq, DEADLINE).unwrap();
    assert_eq!(stores[0].get(b"key").unwrap(), Some(b"last".to_vec()));
    let later = reader.wait(ShardIndex(0), term, Seq(500), Duration::from_millis(5)).unwrap_err();
    assert_eq!(later.found, Position::Ahead, "{later}");
    let error = wait(Seq(300), Duration::from_millis(5)).unwrap_err();
    assert_eq!((error.found, error.wanted), (0, 2), "{error}");
}
