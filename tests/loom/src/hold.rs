//! Shards held as one, as `src/store/hold.rs` does it: a transaction over two of them beside a writer of one and a reader
//! without locks. The protocol is written down here once more, word by word as small as it can be: gates, locks and
//! versions, and a slot that is one relaxed word.

use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use loom::sync::{Arc, Mutex, MutexGuard, RwLock};
use loom::thread;

/// Who holds a shard.
const NOBODY: usize = 0;

#[derive(Default)]
struct Shard {
    gate: Mutex<()>,
    lock: RwLock<()>,
    version: AtomicU64,
    holder: AtomicUsize,
    /// What a transaction writes to both shards.
    joint: AtomicU64,
    /// What another writer writes to one.
    single: AtomicU64,
}

type Shards = Arc<[Shard; 2]>;

/// What is done wrong on purpose.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Shards are let go of one by one, as soon as each is written.
    Early,
    /// A reader looks at each shard's version for itself.
    ApartRead,
}

/// A change of one shard, by whoever finds it free or holds it.
fn change(shard: &Shard, me: usize, write: impl FnOnce()) {
    let mut locked = shard.lock.write().expect("no model panics and goes on");
    let mut version = shard.version.load(Ordering::Relaxed);
    let is_mine = shard.holder.load(Ordering::Relaxed) == me;
    if version % 2 == 1 && !is_mine {
        drop(locked);
        let gate = shard.gate.lock().expect("no model panics and goes on");
        locked = shard.lock.write().expect("no model panics and goes on");
        drop(gate);
        version = shard.version.load(Ordering::Relaxed);
        assert_eq!(version % 2, 0, "nobody holds a shard without its gate");
    }
    if version % 2 == 1 {
        write();
        return;
    }
    shard.version.store(version + 1, Ordering::Relaxed);
    fence(Ordering::Release);
    write();
    shard.version.store(version + 2, Ordering::Release);
    drop(locked);
}

struct Hold<'a> {
    held: Vec<(&'a Shard, MutexGuard<'a, ()>)>,
}

impl<'a> Hold<'a> {
    fn new(shards: &'a [Shard; 2], me: usize) -> Self {
        let lock = |shard: &'a Shard| (shard, shard.gate.lock().expect("no model panics and goes on"));
        let held: Vec<_> = shards.iter().map(lock).collect();
        for (shard, _) in &held {
            let _locked = shard.lock.write().expect("no model panics and goes on");
            shard.holder.store(me, Ordering::Relaxed);
            shard.version.store(shard.version.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            fence(Ordering::Release);
        }
        Self { held }
    }

    fn let_go(&mut self) {
        for (shard, gate) in self.held.drain(..) {
            let locked = shard.lock.write().expect("no model panics and goes on");
            shard.holder.store(NOBODY, Ordering::Relaxed);
            shard.version.store(shard.version.load(Ordering::Relaxed) + 1, Ordering::Release);
            drop(locked);
            drop(gate);
        }
    }
}

fn transact(shards: &[Shard; 2], me: usize, fault: Fault) {
    if fault == Fault::Early {
        shards.iter().for_each(|shard| change(shard, me, || shard.joint.store(1, Ordering::Relaxed)));
        return;
    }
    let mut hold = Hold::new(shards, me);
    shards.iter().for_each(|shard| change(shard, me, || shard.joint.store(1, Ordering::Relaxed)));
    hold.let_go();
}

/// What both shards have at one moment, without a lock; none if somebody is at work.
fn read(shards: &[Shard; 2], fault: Fault) -> Option<[u64; 2]> {
    let begin = |shard: &Shard| shard.version.load(Ordering::Acquire);
    let end = |shard: &Shard| {
        fence(Ordering::Acquire);
        shard.version.load(Ordering::Relaxed)
    };
    let value = |shard: &Shard| shard.joint.load(Ordering::Relaxed);
    if fault == Fault::ApartRead {
        let apart = |shard: &Shard| {
            let version = begin(shard);
            let found = value(shard);
            (version % 2 == 0 && end(shard) == version).then_some(found)
        };
        return Some([apart(&shards[0])?, apart(&shards[1])?]);
    }
    let versions = [begin(&shards[0]), begin(&shards[1])];
    let found = [value(&shards[0]), value(&shards[1])];
    let is_still =
        versions.iter().all(|version| version % 2 == 0) && [end(&shards[0]), end(&shards[1])] == versions;
    is_still.then_some(found)
}

fn run(fault: Fault) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let shards: Shards = Arc::new([Shard::default(), Shard::default()]);
        let writers = [
            {
                let shards = Arc::clone(&shards);
                thread::spawn(move || transact(&shards, 1, fault))
            },
            {
                let shards = Arc::clone(&shards);
                thread::spawn(move || {
                    let shard = &shards[1];
                    let add =
                        || shard.single.store(shard.single.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                    change(shard, 2, add);
                })
            },
        ];
        let found = read(&shards, fault).unwrap_or_else(|| {
            // As a reader that was disturbed: it holds the shards, too.
            let mut hold = Hold::new(&shards, 3);
            let found = [0, 1].map(|shard: usize| shards[shard].joint.load(Ordering::Relaxed));
            hold.let_go();
            found
        });
        assert_eq!(found[0], found[1], "a reader sees all of a transaction or nothing");
        writers.into_iter().for_each(|writer| writer.join().expect("no writer panics"));
        assert_eq!(shards[1].single.load(Ordering::Relaxed), 1);
        assert!(shards.iter().all(|shard| shard.version.load(Ordering::Relaxed) % 2 == 0));
    });
}

#[test]
fn a_reader_sees_all_of_a_transaction_or_nothing() {
    run(Fault::None);
}

#[test]
#[should_panic(expected = "all of a transaction or nothing")]
fn shards_that_are_changed_one_by_one_are_found_out() {
    run(Fault::Early);
}

#[test]
#[should_panic(expected = "all of a transaction or nothing")]
fn a_reader_that_looks_at_shards_one_by_one_is_found_out() {
    run(Fault::ApartRead);
}
