//! Stores in memory, for simulators and tests: made, copied, killed, and cut off from power.

use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use uuid::Uuid;

use crate::region::Region;
use crate::shard::Shard;
use crate::shard::header::{Identity, slots_offset};
use crate::shard::recover::{Files, Host};
use crate::slot::{Geometry, ShardIndex};

use super::Store;
use super::open::{Assembly, OpenError, Options, io_error, recover_error};
use super::report::Reports;

const PATH: &str = "memory";

impl Store {
    pub(super) fn in_memory(geometry: Geometry, slots: u32, options: Options) -> Result<Self, OpenError> {
        if let Some(simulated) = options.simulated.clone() {
            return Self::on_simulated(geometry, slots, options, simulated);
        }
        let store_id = options.store_id.unwrap_or_else(Uuid::new_v4);
        let initial = Shard::initial_size(&geometry);
        let bytes =
            (slots_offset(&geometry) + slots as usize * geometry.slot_stride()).next_multiple_of(4096);
        let make = |shard| {
            let identity = Identity { store_id, shard, geometry };
            Shard::create(Region::heap(initial.min(bytes), bytes), identity, Host::default())
        };
        let shards = (0..geometry.shard_count).map(ShardIndex).map(make).collect::<io::Result<_>>();
        let shards = shards.map_err(io_error(Path::new(PATH), "make a shard"))?;
        let identity = Identity { store_id, shard: ShardIndex(0), geometry };
        let assembly = Assembly {
            clock: options.clock,
            chance: options.chance,
            host: Host::default(),
            regains: options.regain,
            lock: None,
            reports: Reports::Memory(Mutex::default()),
        };
        Self::assemble(identity, shards, assembly).map_err(io_error(Path::new(PATH), "sync the header"))
    }

    /// A copy of a store in memory, opened from its slots alone, as a copied directory is.
    pub fn copy_in_memory(&self) -> Result<Self, OpenError> {
        self.open_again(self.host, |shard| Files::without_digest(shard.copy_region(), &self.geometry))
    }

    /// Opens a store in memory again, as a new process does after a kill.
    pub fn reopen_in_memory(self) -> Result<Self, OpenError> {
        self.open_again(self.host, Shard::copy_files)
    }

    /// Opens what a power cut leaves of a store in memory: what is on its disks, on a machine that has
    /// started again.
    pub fn reopen_after_power_cut(self) -> Result<Self, OpenError> {
        let mut host = self.host;
        host.boot_id[0] = host.boot_id[0].wrapping_add(1);
        self.open_again(host, Shard::files_on_disk)
    }

    /// Gives a store in memory disks that keep what is made durable, for [`Store::reopen_after_power_cut`].
    pub fn keep_disks(&self) {
        self.shards().for_each(|shard| self.shared(shard).shard.keep_disk());
    }

    /// Lets some parts of a store in memory reach its disks, as a kernel's write-back does in any order.
    pub fn write_back(&self, mut choose: impl FnMut() -> bool) {
        self.shards().for_each(|shard| self.shared(shard).shard.write_back(&mut choose));
    }

    fn open_again(&self, host: Host, files: impl Fn(&Shard) -> Files) -> Result<Self, OpenError> {
        let (geometry, store_id, path) = (self.geometry, self.store_id, Path::new(PATH));
        let open = |shard: ShardIndex| {
            let identity = Identity { store_id, shard, geometry };
            let files = files(&self.shared(shard).shard);
            Shard::open(path, files, identity, host, |_| {}).map_err(|error| recover_error(path, error))
        };
        let shards = self.shards().map(open).collect::<Result<_, OpenError>>()?;
        let assembly = Assembly {
            clock: Arc::clone(&self.clock),
            chance: Arc::clone(&self.chance),
            host,
            regains: true,
            lock: None,
            reports: self.reports.copy(),
        };
        let identity = Identity { store_id, shard: ShardIndex(0), geometry };
        Self::assemble(identity, shards, assembly).map_err(io_error(path, "sync the header"))
    }
}
