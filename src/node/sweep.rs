//! The leader's expiry sweep: deletes records whose time has passed, as ordinary changes.
//!
//! It takes a bounded share of the time: at most [`SHARD_BUDGET`] per shard and [`TICK_BUDGET`] in all
//! per [`TICK`], and nothing where no record carries an expiry time. Reads do not wait for it: to them
//! an expired record is absent already.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::slot::{ShardIndex, SlotIndex};
use crate::stop::Stop;
use crate::store::Store;

const TICK: Duration = Duration::from_millis(100);
const SHARD_BUDGET: Duration = Duration::from_millis(1);
const TICK_BUDGET: Duration = Duration::from_millis(10);
/// Slots looked at under one hold of the shard's lock.
const SLOTS_PER_STEP: u32 = 256;

/// Starts the sweep's thread; it ends when the stop signal is set.
pub(super) fn start(store: Arc<Store>, stop: &Stop) -> std::io::Result<JoinHandle<()>> {
    let (wake, stopped) = mpsc::channel::<()>();
    let thread = std::thread::Builder::new().name("sweep".to_owned()).spawn(move || {
        let mut sweep = Sweep::new(&store);
        // The sender lives until the stop signal is set; then this returns at once.
        while stopped.recv_timeout(TICK) == Err(mpsc::RecvTimeoutError::Timeout) {
            sweep.tick(&store);
        }
    })?;
    stop.on_stop(move || drop(wake));
    Ok(thread)
}

/// Where the sweep is in each shard, and which shard is next.
struct Sweep {
    places: Vec<SlotIndex>,
    next: usize,
}

impl Sweep {
    fn new(store: &Store) -> Self {
        Self { places: vec![SlotIndex(0); usize::from(store.geometry().shard_count)], next: 0 }
    }

    fn tick(&mut self, store: &Store) {
        let start = Instant::now();
        for _ in 0..self.places.len() {
            if start.elapsed() >= TICK_BUDGET {
                // The next tick goes on with the shard that did not get its turn.
                return;
            }
            let shard = ShardIndex(u16::try_from(self.next).unwrap_or(0));
            if store.stats(shard).expiring > 0 {
                self.sweep_shard(store, shard);
            }
            self.next = (self.next + 1) % self.places.len();
        }
    }

    fn sweep_shard(&mut self, store: &Store, shard: ShardIndex) {
        let place = &mut self.places[usize::from(shard.0)];
        let start = Instant::now();
        loop {
            let (_, next) = store.sweep(shard, *place, SLOTS_PER_STEP);
            *place = next.unwrap_or(SlotIndex(0));
            // One round per tick is enough, however small the shard.
            if next.is_none() || start.elapsed() >= SHARD_BUDGET {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::slot::Geometry;
    use crate::store::Options;

    #[test]
    fn expired_records_go_and_others_stay() {
        let clock = Arc::new(ManualClock::new(1_000));
        let geometry =
            Geometry { shard_count: 2, key_size_max: 16, value_size_max: 16, shard_prefix_bits: 0 };
        let options = Options { clock: clock.clone(), ..Options::memory(geometry, 10_000) };
        let store = Store::open(std::path::Path::new("memory"), options).expect("opens");
        for number in 0..2_000_u32 {
            let expire_at = if number % 2 == 0 { 2_000 } else { 0 };
            store.put_expiring(number.to_string().as_bytes(), b"x", expire_at).expect("put");
        }
        let mut sweep = Sweep::new(&store);
        sweep.tick(&store);
        assert_eq!(store.len(), 2_000);
        clock.advance(Duration::from_secs(1));
        for _ in 0..1_000 {
            sweep.tick(&store);
        }
        assert_eq!(store.len(), 1_000);
        assert!(store.shards().all(|shard| store.stats(shard).expiring == 0));
    }
}
