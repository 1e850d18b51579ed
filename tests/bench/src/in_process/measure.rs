//! The measurements themselves, one function each, the same for every engine.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::clocks::{OwnCpu, monotonic_ns, thread_cpu_ns};
use crate::engine::{Engine, EngineName, SHARD_COUNT};
use crate::follower_process::FollowerProcess;
use crate::slotstream_engine::{BATCH, Slotstream};
use crate::workload::{Indexes, KEY_SIZE, Key, VALUE_SIZE, digest, key, stamp, value};

/// Updates between two looks at the follower's progress.
const CHUNK: u64 = 2_048;
/// Stamps of updates start here, above every stamp of the first fill.
const FIRST_STAMP: u64 = 1 << 40;

fn per_second(count: u64, took: Duration) -> f64 {
    // Counts here are far below 2^53.
    count as f64 / took.as_secs_f64()
}

/// Inserts `count` records; how many a second.
pub fn insert<E: Engine>(engine: &E, count: u64) -> Result<f64> {
    let start = Instant::now();
    for index in 0..count {
        engine.put(&key(index), &value(index))?;
    }
    Ok(per_second(count, start.elapsed()))
}

/// Updates `count` random ones of `record_count` records; how many a second.
pub fn update<E: Engine>(engine: &E, record_count: u64, count: u64, seed: u64) -> Result<f64> {
    let mut indexes = Indexes::new(seed, record_count);
    let start = Instant::now();
    for done in 0..count {
        engine.put(&key(indexes.draw()), &value(FIRST_STAMP + done))?;
    }
    Ok(per_second(count, start.elapsed()))
}

/// Reads `count` random ones of `record_count` records; how many a second.
pub fn get<E: Engine>(engine: &E, record_count: u64, count: u64, seed: u64) -> Result<f64> {
    let mut indexes = Indexes::new(seed, record_count);
    let (mut found, mut sum) = (0, 0_u64);
    let start = Instant::now();
    for _ in 0..count {
        if let Some(value) = engine.get(&key(indexes.draw())) {
            found += 1;
            sum = sum.wrapping_add(stamp(&value));
        }
    }
    let took = start.elapsed();
    std::hint::black_box(sum);
    ensure!(found == count, "found {found} of {count} records");
    Ok(per_second(count, took))
}

/// [`update`] in batches.
pub fn update_batch(engine: &Slotstream, record_count: u64, count: u64, seed: u64) -> Result<f64> {
    let mut indexes = Indexes::new(seed, record_count);
    let start = Instant::now();
    let mut batch = [([0; KEY_SIZE], [0; VALUE_SIZE]); BATCH];
    let mut done = 0;
    while done < count {
        for record in &mut batch {
            *record = (key(indexes.draw()), value(FIRST_STAMP + done));
            done += 1;
        }
        engine.put_batch(&batch)?;
    }
    Ok(per_second(done, start.elapsed()))
}

/// [`get`] in batches.
pub fn get_batch(engine: &Slotstream, record_count: u64, count: u64, seed: u64) -> Result<f64> {
    let mut indexes = Indexes::new(seed, record_count);
    let (mut found, mut sum) = (0, 0_u64);
    let start = Instant::now();
    let mut asked = 0;
    while asked < count {
        let keys: [Key; BATCH] = std::array::from_fn(|_| key(indexes.draw()));
        asked += keys.len() as u64;
        engine.get_batch(&keys, |value| {
            found += 1;
            sum = sum.wrapping_add(stamp(&value));
        })?;
    }
    let took = start.elapsed();
    std::hint::black_box(sum);
    ensure!(found == asked, "found {found} of {asked} records");
    Ok(per_second(asked, took))
}

/// One key per shard, beyond the measured records: what is written under it last tells how far a stream is.
/// Behind them lies one more, to watch.
struct Markers {
    per_shard: Vec<u64>,
    watched: u64,
}

impl Markers {
    fn insert<E: Engine>(engine: &E, record_count: u64) -> Result<Self> {
        let mut per_shard = vec![None; usize::from(SHARD_COUNT)];
        let mut index = record_count;
        while per_shard.contains(&None) {
            per_shard[engine.shard_of(&key(index))].get_or_insert(index);
            index += 1;
        }
        let markers = Self { per_shard: per_shard.into_iter().flatten().collect(), watched: index };
        for index in markers.per_shard.iter().chain([&markers.watched]) {
            engine.put(&key(*index), &value(0))?;
        }
        Ok(markers)
    }

    fn count(&self) -> u64 {
        self.per_shard.len() as u64 + 1
    }
}

/// What [`replicate`] found.
#[derive(Debug)]
pub struct Replicated {
    /// Slots a second, from an open, empty store on the follower to its last record.
    pub first_sync: f64,
    /// Updates a second, from the first write to the last one applied on the follower.
    pub stream: f64,
    /// Delays from write to visible, in nanoseconds.
    pub visible: Vec<f64>,
    /// CPU time of the writer's thread per update without a follower, in nanoseconds.
    pub cpu_alone: f64,
    /// The same with one.
    pub cpu_attached: f64,
    /// Something to tell the reader, if it was not as it should be.
    pub note: Option<String>,
}

/// How much [`replicate`] does.
#[derive(Debug, Clone, Copy)]
pub struct ReplicateSize {
    /// Records in the engine, with indexes from 0.
    pub record_count: u64,
    /// Updates per measurement.
    pub update_count: u64,
    /// Changes whose way to the follower is timed.
    pub visible_count: u64,
    /// Decides which records are updated.
    pub seed: u64,
}

/// Everything that takes a follower: first sync, streaming, delay, cost to the writer.
pub fn replicate<E: Engine>(
    engine: &Arc<E>,
    name: EngineName,
    follower_directory: &Path,
    size: ReplicateSize,
) -> Result<Replicated> {
    let markers = Markers::insert(engine.as_ref(), size.record_count)?;
    let mut writer = Writer {
        engine: engine.as_ref(),
        markers: &markers.per_shard,
        indexes: Indexes::new(size.seed, size.record_count),
        written: FIRST_STAMP << 1,
    };
    let cpu_alone = {
        let _own_cpu = OwnCpu::take()?;
        writer.write(size.update_count, None)?
    };

    let (leader, address) = E::lead(engine)?;
    let record_count = size.record_count + markers.count();
    let (mut follower, took) = FollowerProcess::start(name, follower_directory, address, record_count)?;
    let first_sync = per_second(record_count, took);
    expect_equal(engine.as_ref(), &mut follower, size.record_count)?;

    let mut pauses = Indexes::new(size.seed, 20_000);
    let visible = follower.watch(
        markers.watched,
        size.visible_count,
        || Duration::from_micros(5_000 + pauses.draw()),
        |stamp| engine.put(&key(markers.watched), &value(stamp)),
    )?;

    let applied_before = follower.applied()?;
    let (stream, _) = writer.stream(&mut follower, size.update_count)?;
    let applied = follower.applied()?.zip(applied_before).map(|(after, before)| after - before);
    let overflows = E::overflows(&leader);
    let cpu_attached = {
        let own_cpu = OwnCpu::take()?;
        if let Some(own_cpu) = &own_cpu {
            own_cpu.push_out(follower.pid())?;
        }
        writer.stream(&mut follower, size.update_count)?.1
    };
    expect_equal(engine.as_ref(), &mut follower, size.record_count)?;

    let wanted = Writer::<E>::changes(size.update_count);
    let is_lossless = overflows.unwrap_or(0) == 0 && applied.is_none_or(|applied| applied == wanted);
    let note = (!is_lossless).then(|| {
        format!(
            "{}: streamed {applied:?} of {wanted} updates one by one, {overflows:?} overflows",
            name.as_str()
        )
    });
    Ok(Replicated { first_sync, stream, visible, cpu_alone, cpu_attached, note })
}

/// Writes random updates, and a rising stamp under one marker per shard, at a pace that a follower can keep.
struct Writer<'e, E> {
    engine: &'e E,
    markers: &'e [u64],
    indexes: Indexes,
    /// Last stamp under the markers; it counts updates.
    written: u64,
}

impl<E: Engine> Writer<'_, E> {
    /// Changes that so many updates amount to, markers included.
    fn changes(update_count: u64) -> u64 {
        update_count + update_count.div_ceil(CHUNK) * u64::from(SHARD_COUNT)
    }

    /// Returns the CPU time of this thread per update, waits not counted.
    fn write(&mut self, count: u64, reached: Option<&AtomicU64>) -> Result<f64> {
        let (mut left, mut cpu_ns) = (count, 0);
        while left > 0 {
            let chunk = left.min(CHUNK);
            left -= chunk;
            self.written += chunk;
            let start = thread_cpu_ns();
            let value = value(self.written);
            for _ in 0..chunk {
                self.engine.put(&key(self.indexes.draw()), &value)?;
            }
            for marker in self.markers {
                self.engine.put(&key(*marker), &value)?;
            }
            cpu_ns += thread_cpu_ns() - start;
            // Relaxed: a stale value makes the writer wait a little longer than it must.
            while reached
                .is_some_and(|at| self.written.saturating_sub(at.load(Ordering::Relaxed)) > E::STREAM_WINDOW)
            {
                thread::sleep(Duration::from_micros(50));
            }
        }
        Ok(cpu_ns as f64 / Self::changes(count) as f64)
    }

    /// Returns updates a second until the follower has the last one, and the writer's CPU time for each.
    fn stream(&mut self, follower: &mut FollowerProcess, count: u64) -> Result<(f64, f64)> {
        let last = self.written + count;
        let start = monotonic_ns();
        let markers = self.markers;
        let (cpu, end) = follower.stream(last, markers, |reached| self.write(count, Some(reached)))?;
        Ok((per_second(count, Duration::from_nanos(end - start)), cpu))
    }
}

/// Nothing of a measurement counts if the two sides do not hold the same in the end.
fn expect_equal<E: Engine>(engine: &E, follower: &mut FollowerProcess, record_count: u64) -> Result<()> {
    let ours = digest(record_count, |key| engine.get(key));
    let start = Instant::now();
    loop {
        let theirs = follower.digest(record_count)?;
        if ours == theirs {
            return Ok(());
        }
        ensure!(start.elapsed() < Duration::from_secs(60), "the follower's records differ from the leader's");
        thread::sleep(Duration::from_millis(100));
    }
}
