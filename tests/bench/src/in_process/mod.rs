//! slotstream and armdb as libraries: the same keys in the same order, one writer, four shards, directories on
//! the same file system, followers in processes of their own.

mod measure;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;

use crate::armdb_engine::Armdb;
use crate::engine::{Engine, EngineName};
use crate::report::{Report, Side, Target, Unit, percentile};
use crate::slotstream_engine::Slotstream;
use measure::{ReplicateSize, Replicated};

const ARMDB: &str = "armdb 0.15";
const UNSYNCED: &str = "armdb, unsynced";

const INSERT: &str = "insert";
const INSERT_UNSYNCED: &str = "insert, neither side syncs";
const UPDATE: &str = "random update";
const UPDATE_UNSYNCED: &str = "random update, neither side syncs";
const UPDATE_BATCH: &str = "random update, ours in batches of 16";
const GET: &str = "random get";
const GET_BATCH: &str = "random get, ours in batches of 16";
const FIRST_SYNC: &str = "first sync of an empty follower, slots";
const STREAM: &str = "streaming to one follower, no loss";
const STREAM_UNSYNCED: &str = "streaming, no loss, neither side syncs";
const VISIBLE_P50: &str = "write to visible, idle pair, p50";
const VISIBLE_P99: &str = "write to visible, idle pair, p99";
const CPU_ALONE: &str = "writer CPU per update, no follower";
const CPU_ATTACHED: &str = "writer CPU per update, one follower";
const CPU_FACTOR: &str = "writer CPU, one follower against none";

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Times everything is repeated.
    pub rounds: usize,
    /// Records in each store.
    pub record_count: u64,
    /// Reads and updates per measurement.
    pub operation_count: u64,
    /// The same where armdb's syncs make an update dear.
    pub synced_operation_count: u64,
    /// Changes whose way to the follower is timed.
    pub visible_count: u64,
}

impl Size {
    /// What the published figures are taken with.
    pub const FULL: Self = Self {
        rounds: 5,
        record_count: 1_000_000,
        operation_count: 2_000_000,
        synced_operation_count: 300_000,
        visible_count: 200,
    };
    /// A look: one round, the same number of records, fewer operations.
    pub const QUICK: Self = Self {
        rounds: 1,
        operation_count: 1_000_000,
        synced_operation_count: 100_000,
        visible_count: 50,
        ..Self::FULL
    };
}

/// Runs every measurement of this suite into `report`. `only` leaves the other side's column empty.
pub fn run(report: &mut Report, size: Size, folder: &Path, only: Option<Side>) -> Result<()> {
    declare(report);
    for round in 0..size.rounds {
        report.begin_round("in process", round, size.rounds);
        let mut bench = Round { report, size, seed: round as u64, folder: folder.to_owned() };
        if only != Some(Side::Peer) {
            bench.slotstream()?;
        }
        if only != Some(Side::Ours) {
            bench.armdb()?;
            bench.armdb_unsynced()?;
        }
    }
    Ok(())
}

fn declare(report: &mut Report) {
    use Target::{AtLeast, AtMost, RatioAtLeast, RatioAtMost};
    report.row(INSERT, ARMDB, Unit::PerSecond, &[RatioAtLeast(5.0)]);
    report.row(INSERT_UNSYNCED, UNSYNCED, Unit::PerSecond, &[RatioAtLeast(5.0)]);
    report.row(UPDATE, ARMDB, Unit::PerSecond, &[RatioAtLeast(20.0)]);
    report.row(UPDATE_UNSYNCED, UNSYNCED, Unit::PerSecond, &[RatioAtLeast(20.0)]);
    report.row(UPDATE_BATCH, ARMDB, Unit::PerSecond, &[]);
    report.row(GET, ARMDB, Unit::PerSecond, &[RatioAtLeast(2.0)]);
    report.row(GET_BATCH, ARMDB, Unit::PerSecond, &[]);
    report.row(FIRST_SYNC, ARMDB, Unit::PerSecond, &[RatioAtLeast(6.0)]);
    report.row(STREAM, ARMDB, Unit::PerSecond, &[AtLeast(1e6)]);
    report.row(STREAM_UNSYNCED, UNSYNCED, Unit::PerSecond, &[AtLeast(1e6)]);
    report.row(VISIBLE_P50, ARMDB, Unit::Nanoseconds, &[AtMost(100e3), RatioAtMost(0.01)]);
    report.row(VISIBLE_P99, ARMDB, Unit::Nanoseconds, &[]);
    report.row(CPU_ALONE, UNSYNCED, Unit::Nanoseconds, &[]);
    report.row(CPU_ATTACHED, UNSYNCED, Unit::Nanoseconds, &[]);
    report.row(CPU_FACTOR, UNSYNCED, Unit::Factor, &[AtMost(1.25)]);
    report.note(
        "armdb 0.15 is its `FixedConfig::balanced`: no fsync per write, but an fdatasync at every 1,024th write of a \
         shard or after 50 ms. \"Neither side syncs\" puts both thresholds out of its reach; slotstream, as measured \
         here, leaves write-back to the kernel.",
    );
    report.note("First sync: from an open, empty store, connecting included, until it holds every record.");
    report.note("Batch rows set our `put_batch` and `get_batch` against the peer's single calls.");
    report.note(
        "Streaming: a writer keeps a bounded distance to the follower, so that nothing is conflated; timed from its \
         first write until the last one can be read on the follower, a process of its own.",
    );
}

struct Round<'r> {
    report: &'r mut Report,
    size: Size,
    seed: u64,
    folder: PathBuf,
}

impl Round<'_> {
    fn slotstream(&mut self) -> Result<()> {
        let Size { record_count, operation_count, .. } = self.size;
        let engine = self.open::<Slotstream>("slotstream")?;
        let insert = measure::insert(engine.as_ref(), record_count)?;
        self.ours(&[INSERT, INSERT_UNSYNCED], insert);
        let update = measure::update(engine.as_ref(), record_count, operation_count, self.seed)?;
        self.ours(&[UPDATE, UPDATE_UNSYNCED], update);
        let get = measure::get(engine.as_ref(), record_count, operation_count, self.seed)?;
        self.ours(&[GET], get);
        let update = measure::update_batch(engine.as_ref(), record_count, operation_count, self.seed)?;
        self.ours(&[UPDATE_BATCH], update);
        let get = measure::get_batch(engine.as_ref(), record_count, operation_count, self.seed)?;
        self.ours(&[GET_BATCH], get);
        let replicated = self.replicate(&engine, EngineName::Slotstream, operation_count)?;
        self.ours(&[FIRST_SYNC], replicated.first_sync);
        self.ours(&[STREAM, STREAM_UNSYNCED], replicated.stream);
        self.visible(Side::Ours, &replicated);
        self.cpu(Side::Ours, &replicated);
        self.close(engine, "slotstream")
    }

    fn armdb(&mut self) -> Result<()> {
        let Size { record_count, operation_count, synced_operation_count, .. } = self.size;
        let engine = self.open::<Armdb<true>>("armdb")?;
        let insert = measure::insert(engine.as_ref(), record_count)?;
        self.report.sample(INSERT, Side::Peer, insert);
        let update = measure::update(engine.as_ref(), record_count, synced_operation_count, self.seed)?;
        self.report.sample(UPDATE, Side::Peer, update);
        self.report.sample(UPDATE_BATCH, Side::Peer, update);
        let get = measure::get(engine.as_ref(), record_count, operation_count, self.seed)?;
        self.report.sample(GET, Side::Peer, get);
        self.report.sample(GET_BATCH, Side::Peer, get);
        let replicated = self.replicate(&engine, EngineName::Armdb, synced_operation_count)?;
        self.report.sample(FIRST_SYNC, Side::Peer, replicated.first_sync);
        self.report.sample(STREAM, Side::Peer, replicated.stream);
        self.visible(Side::Peer, &replicated);
        self.close(engine, "armdb")
    }

    fn armdb_unsynced(&mut self) -> Result<()> {
        let Size { record_count, operation_count, .. } = self.size;
        let engine = self.open::<Armdb<false>>("armdb-unsynced")?;
        let insert = measure::insert(engine.as_ref(), record_count)?;
        self.report.sample(INSERT_UNSYNCED, Side::Peer, insert);
        let update = measure::update(engine.as_ref(), record_count, operation_count, self.seed)?;
        self.report.sample(UPDATE_UNSYNCED, Side::Peer, update);
        let replicated = self.replicate(&engine, EngineName::ArmdbUnsynced, operation_count)?;
        self.report.sample(STREAM_UNSYNCED, Side::Peer, replicated.stream);
        self.cpu(Side::Peer, &replicated);
        self.close(engine, "armdb-unsynced")
    }

    fn ours(&mut self, rows: &[&str], figure: f64) {
        for row in rows {
            self.report.sample(row, Side::Ours, figure);
        }
    }

    fn visible(&mut self, side: Side, replicated: &Replicated) {
        for (row, percent) in [(VISIBLE_P50, 50), (VISIBLE_P99, 99)] {
            if let Some(delay) = percentile(&replicated.visible, percent) {
                self.report.sample(row, side, delay);
            }
        }
    }

    fn cpu(&mut self, side: Side, replicated: &Replicated) {
        self.report.sample(CPU_ALONE, side, replicated.cpu_alone);
        self.report.sample(CPU_ATTACHED, side, replicated.cpu_attached);
        self.report.sample(CPU_FACTOR, side, replicated.cpu_attached / replicated.cpu_alone);
    }

    fn open<E: Engine>(&self, name: &str) -> Result<Arc<E>> {
        let directory = self.folder.join(name);
        std::fs::create_dir_all(&directory)?;
        Ok(Arc::new(E::open(&directory)?))
    }

    fn replicate<E: Engine>(
        &mut self,
        engine: &Arc<E>,
        name: EngineName,
        update_count: u64,
    ) -> Result<Replicated> {
        let Size { record_count, visible_count, .. } = self.size;
        let size = ReplicateSize { record_count, update_count, visible_count, seed: self.seed };
        let directory = self.folder.join(format!("{}-follower", name.as_str()));
        let replicated = measure::replicate(engine, name, &directory, size)?;
        if let Some(note) = &replicated.note {
            self.report.note(note.as_str());
        }
        std::fs::remove_dir_all(directory)?;
        Ok(replicated)
    }

    /// Removes the files at once: their dirty pages would otherwise be written back during the next measurement.
    fn close<E: Engine>(&self, engine: Arc<E>, name: &str) -> Result<()> {
        drop(engine);
        Ok(std::fs::remove_dir_all(self.folder.join(name))?)
    }
}
