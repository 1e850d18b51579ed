//! A disk in memory with two images: what readers see, and what is durable. A power cut leaves of each sector that
//! was written since its sync the old bytes, the new ones, or a part of them, as chance says.
//!
//! Any call that changes something can be the one in which the power goes, or a sync that fails: a failed sync
//! forgets what it should have written, as the kernel does, and the next one says that all is well.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::Disk;
use crate::chance::Chance;

/// Bytes that a device writes as one.
pub const SECTOR_SIZE: usize = 512;

/// An image that readers see, and what of it is durable.
#[derive(Debug, Clone, Default)]
pub struct Images {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that were written since their sync.
    dirty: BTreeSet<usize>,
}

impl Images {
    fn new(size: usize) -> Self {
        Self { seen: vec![0; size], durable: vec![0; size], dirty: BTreeSet::new() }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.seen[offset..offset + bytes.len()].copy_from_slice(bytes);
        if !bytes.is_empty() {
            self.dirty.extend(offset / SECTOR_SIZE..=(offset + bytes.len() - 1) / SECTOR_SIZE);
        }
    }

    /// Some of the dirty sectors reach the disk, some in part, in no order.
    fn write_back_some(&mut self, chance: &dyn Chance) {
        for sector in std::mem::take(&mut self.dirty) {
            let start = sector * SECTOR_SIZE;
            let end = (start + SECTOR_SIZE).min(self.seen.len());
            let kept = match chance.next() % 8 {
                0..3 => start..start,
                3..6 => start..end,
                6 => start..start + pick(chance, end - start),
                _ => start + pick(chance, end - start)..end,
            };
            self.durable[kept.clone()].copy_from_slice(&self.seen[kept]);
        }
    }

    fn sync(&mut self) {
        for sector in std::mem::take(&mut self.dirty) {
            let start = sector * SECTOR_SIZE;
            let end = (start + SECTOR_SIZE).min(self.seen.len());
            self.durable[start..end].copy_from_slice(&self.seen[start..end]);
        }
    }
}

fn pick(chance: &dyn Chance, below: usize) -> usize {
    usize::try_from(chance.next() % below as u64).unwrap_or(0)
}

/// What goes wrong in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The power goes: the call is done in part, and nothing works any more.
    PowerCut,
    /// The call fails, and what it should have written is forgotten.
    Failure,
    /// The process ends before the call: what it wrote until then is seen, and not durable.
    Kill,
}

#[derive(Default)]
struct Shared {
    files: BTreeMap<u32, Images>,
    /// Calls that changed something, so far.
    calls: u64,
    fault: Option<(u64, Fault)>,
    has_power: bool,
    /// Bytes for files; none = no bound.
    capacity: Option<u64>,
}

/// A disk that can lose its power. Clones are the same disk.
#[derive(Clone)]
pub struct SimulatedDisk {
    shared: Arc<Mutex<Shared>>,
    chance: Arc<dyn Chance>,
}

impl SimulatedDisk {
    /// An empty disk.
    #[must_use]
    pub fn new(chance: Arc<dyn Chance>) -> Self {
        let shared = Shared { has_power: true, ..Shared::default() };
        Self { shared: Arc::new(Mutex::new(shared)), chance }
    }

    /// The call with this number, counted from 0 over all that change something, goes wrong.
    pub fn plan(&self, call: u64, fault: Fault) {
        self.shared.lock().fault = Some((call, fault));
    }

    /// Nothing more goes wrong.
    pub fn plan_nothing(&self) {
        self.shared.lock().fault = None;
    }

    /// Calls that changed something.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.shared.lock().calls
    }

    /// Whether the power is on.
    #[must_use]
    pub fn has_power(&self) -> bool {
        self.shared.lock().has_power
    }

    /// Files together take at most so many bytes.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.shared.lock().capacity = bytes;
    }

    /// The disk as it is after a power cut now, and with power again.
    #[must_use]
    pub fn after_power_cut(&self) -> Self {
        let mut files = self.shared.lock().files.clone();
        for images in files.values_mut() {
            images.write_back_some(&*self.chance);
            images.seen.clone_from(&images.durable);
        }
        let shared = Shared { files, has_power: true, ..Shared::default() };
        Self { shared: Arc::new(Mutex::new(shared)), chance: Arc::clone(&self.chance) }
    }

    /// Another process may go on after [`Fault::Kill`].
    pub fn outlive(&self) {
        let mut shared = self.shared.lock();
        shared.has_power = true;
        shared.fault = None;
    }

    /// What readers see of a file.
    #[must_use]
    pub fn bytes(&self, file: u32) -> Vec<u8> {
        self.shared.lock().files.get(&file).map(|images| images.seen.clone()).unwrap_or_default()
    }

    /// Changes a file behind everybody's back, durably.
    pub fn corrupt(&self, file: u32, change: impl FnOnce(&mut [u8])) {
        let mut shared = self.shared.lock();
        let images = shared.files.get_mut(&file).expect("a file of this disk");
        change(&mut images.seen);
        images.durable.clone_from(&images.seen);
        images.dirty.clear();
    }

    /// A sync of something beside the files, which lies on the same disk: `done` makes it durable.
    pub fn sync_other(&self, done: impl FnOnce()) -> io::Result<()> {
        self.change(|_, fault| match fault {
            None => {
                done();
                Ok(())
            }
            Some(_) => Err(io::ErrorKind::Other.into()),
        })
    }

    fn change(&self, f: impl FnOnce(&mut Shared, Option<Fault>) -> io::Result<()>) -> io::Result<()> {
        let mut shared = self.shared.lock();
        if !shared.has_power {
            return Err(io::Error::other("the power is gone"));
        }
        let fault = shared.fault.filter(|(call, _)| *call == shared.calls).map(|(_, fault)| fault);
        shared.calls += 1;
        if matches!(fault, Some(Fault::PowerCut | Fault::Kill)) {
            shared.has_power = false;
        }
        f(&mut shared, fault)?;
        match fault {
            None => Ok(()),
            Some(fault) => Err(io::Error::other(format!("planned: {fault:?}"))),
        }
    }
}

fn find(shared: &mut Shared, file: u32) -> io::Result<&mut Images> {
    shared.files.get_mut(&file).ok_or_else(|| io::ErrorKind::NotFound.into())
}

impl Disk for SimulatedDisk {
    fn files(&self) -> io::Result<Vec<(u32, u64)>> {
        Ok(self.shared.lock().files.iter().map(|(file, images)| (*file, images.seen.len() as u64)).collect())
    }

    fn create(&self, file: u32, size: u64) -> io::Result<()> {
        self.change(|shared, fault| {
            let used: u64 = shared.files.values().map(|images| images.seen.len() as u64).sum();
            if shared.capacity.is_some_and(|capacity| used + size > capacity) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            // Cut off, it is there, or is not, or is too short.
            let size = match fault {
                None => size,
                Some(Fault::Kill) => 0,
                Some(_) => [0, size / 2, size][pick(&*self.chance, 3)],
            };
            if size > 0 {
                shared.files.insert(file, Images::new(usize::try_from(size).map_err(io::Error::other)?));
            }
            Ok(())
        })
    }

    fn remove(&self, file: u32) -> io::Result<()> {
        self.change(|shared, fault| {
            if fault.is_none() {
                shared.files.remove(&file);
            }
            Ok(())
        })
    }

    fn read(&self, file: u32, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let mut shared = self.shared.lock();
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = find(&mut shared, file)?.seen.get(offset..offset + target.len());
        target.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, file: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change(|shared, fault| {
            let images = find(shared, file)?;
            let offset = usize::try_from(offset).map_err(io::Error::other)?;
            assert!(offset + bytes.len() <= images.seen.len(), "a write within the file");
            let done = match fault {
                None => bytes.len(),
                Some(Fault::Kill) => 0,
                Some(_) => pick(&*self.chance, bytes.len() + 1),
            };
            images.write(offset, &bytes[..done]);
            Ok(())
        })
    }

    fn sync(&self, file: u32) -> io::Result<()> {
        self.change(|shared, fault| {
            let images = find(shared, file)?;
            match fault {
                None => images.sync(),
                Some(Fault::Failure) => images.write_back_some(&*self.chance),
                Some(Fault::PowerCut | Fault::Kill) => {}
            }
            Ok(())
        })
    }
}
