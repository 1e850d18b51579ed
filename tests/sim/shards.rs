//! The shards' files of a simulated machine: what readers see, and what is durable. What a file has grown by since its
//! last sync is there after a power cut, in part, or not at all, whatever else is.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use slotstream::chance::Chance;
use slotstream::store::SimulatedShards;
use slotstream::wal::simulated::{SECTOR_SIZE, SimulatedDisk};
use slotstream::{ShardIndex, Store};

const PAGE_SIZE: usize = 4096;
const HEADER_PAGE_SIZE: usize = 2 * PAGE_SIZE;

#[derive(Clone, Default)]
struct Image {
    seen: Vec<u8>,
    durable: Vec<u8>,
}

/// The files, on the same disk as the log.
pub(crate) struct Shards {
    images: Mutex<BTreeMap<u16, Image>>,
    disk: Mutex<SimulatedDisk>,
    chance: Arc<dyn Chance>,
    /// A sector of a header is old or new: without a log nothing else says what it said.
    has_whole_headers: bool,
}

impl Shards {
    /// No files yet. With `has_whole_headers` no sector of a header is torn.
    pub(crate) fn new(disk: &SimulatedDisk, chance: Arc<dyn Chance>, has_whole_headers: bool) -> Arc<Self> {
        Arc::new(Self { images: Mutex::default(), disk: Mutex::new(disk.clone()), chance, has_whole_headers })
    }

    /// The store's process is gone; files are as it left them.
    pub(crate) fn keep(&self, store: &Store) {
        for shard in store.shards() {
            let bytes = store.shard_bytes(shard);
            self.images.lock().entry(shard.0).or_default().seen = bytes;
        }
    }

    /// The power is gone, and comes back; the disk as it is then.
    pub(crate) fn cut_power(&self) -> SimulatedDisk {
        let disk = self.disk.lock().after_power_cut();
        *self.disk.lock() = disk.clone();
        for image in self.images.lock().values_mut() {
            write_back_some(&mut image.durable, &image.seen, &*self.chance, self.has_whole_headers);
            image.seen.clone_from(&image.durable);
        }
        disk
    }
}

/// Of what the file has grown by some is on the disk; of the sectors that differ some are, some in part.
fn write_back_some(durable: &mut Vec<u8>, seen: &[u8], chance: &dyn Chance, has_whole_header: bool) {
    let grown = seen.len().saturating_sub(durable.len()) / PAGE_SIZE;
    let kept = match chance.next() % 4 {
        0 => 0,
        1 => grown,
        _ => usize::try_from(chance.next() % (grown as u64 + 1)).unwrap(),
    };
    durable.resize(durable.len() + kept * PAGE_SIZE, 0);
    let sectors = durable.chunks_mut(SECTOR_SIZE).zip(seen.chunks(SECTOR_SIZE)).enumerate();
    for (sector, (durable, seen)) in sectors.filter(|(_, (durable, seen))| durable != seen) {
        let cut = usize::try_from(chance.next() % seen.len() as u64).unwrap();
        let is_whole = has_whole_header && sector * SECTOR_SIZE < HEADER_PAGE_SIZE;
        match chance.next() % if is_whole { 6 } else { 8 } {
            0..3 => {}
            3..6 => durable[..seen.len()].copy_from_slice(seen),
            6 => durable[..cut].copy_from_slice(&seen[..cut]),
            _ => durable[cut..seen.len()].copy_from_slice(&seen[cut..]),
        }
    }
}

impl SimulatedShards for Shards {
    fn load(&self, shard: ShardIndex) -> Option<Vec<u8>> {
        self.images.lock().get(&shard.0).map(|image| image.seen.clone())
    }

    fn sync(&self, shard: ShardIndex, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let mut images = self.images.lock();
        let image = images.entry(shard.0).or_default();
        let end = offset + bytes.len();
        image.seen.resize(image.seen.len().max(end), 0);
        image.seen[offset..end].copy_from_slice(bytes);
        let durable = &mut image.durable;
        let synced = self.disk.lock().sync_other(|| {
            durable.resize(durable.len().max(end), 0);
            durable[offset..end].copy_from_slice(bytes);
        });
        if synced.is_err() && durable.is_empty() {
            // It was being made: files are made aside, and moved into place when they are durable.
            images.remove(&shard.0);
        } else if synced.is_err() {
            write_back_some(durable, &image.seen, &*self.chance, self.has_whole_headers);
        }
        synced
    }
}
