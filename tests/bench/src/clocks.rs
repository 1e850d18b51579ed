//! Clocks and counters of the kernel: wall time, CPU time of a thread, of this process, of another one.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, Pid, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of the machine's monotonic clock; comparable between processes.
#[inline]
pub fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// CPU time that the calling thread has used, in nanoseconds.
#[inline]
pub fn thread_cpu_ns() -> u64 {
    nanoseconds(ClockId::ThreadCPUTime)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// CPU time, user and system, that all threads of a process have used, as the kernel accounts it: in
/// steps of one tick, 10 ms.
pub fn process_cpu(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The name in parentheses may hold blanks; fields are counted from behind it.
    let (_, fields) = stat.rsplit_once(')').with_context(|| format!("{path} has no name"))?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut ticks = || -> Result<u64> { Ok(fields.next().context("stat is too short")?.parse()?) };
    let total = ticks()? + ticks()?;
    Ok(Duration::from_nanos(total * (1_000_000_000 / rustix::param::clock_ticks_per_second())))
}

/// The machine's load averages over 1, 5 and 15 minutes, as text.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_ascii_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Lets the calling thread run on one CPU only, and every other thread of this process on all but that
/// one. Dropped, it lets them all run anywhere again.
#[derive(Debug)]
pub struct OwnCpu {
    cpu_count: usize,
}

impl OwnCpu {
    /// Takes CPU 0. `None` where there is no second CPU to leave to the others.
    pub fn take() -> Result<Option<Self>> {
        let cpu_count = std::thread::available_parallelism()?.get();
        if cpu_count < 2 {
            return Ok(None);
        }
        let (mut own, mut others) = (CpuSet::new(), CpuSet::new());
        own.set(0);
        (1..cpu_count).for_each(|cpu| others.set(cpu));
        for task in tasks(std::process::id())? {
            // A thread that has ended since the listing needs no CPU.
            sched_setaffinity(Some(task), &others).ok();
        }
        sched_setaffinity(None, &own)?;
        Ok(Some(Self { cpu_count }))
    }

    /// Keeps another process off this thread's CPU.
    pub fn push_out(&self, pid: u32) -> Result<()> {
        let mut others = CpuSet::new();
        (1..self.cpu_count).for_each(|cpu| others.set(cpu));
        for task in tasks(pid)? {
            sched_setaffinity(Some(task), &others).ok();
        }
        Ok(())
    }
}

impl Drop for OwnCpu {
    fn drop(&mut self) {
        let mut all = CpuSet::new();
        (0..self.cpu_count).for_each(|cpu| all.set(cpu));
        for task in tasks(std::process::id()).unwrap_or_default() {
            sched_setaffinity(Some(task), &all).ok();
        }
    }
}

fn tasks(pid: u32) -> Result<Vec<Pid>> {
    let mut tasks = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let id = entry?.file_name().to_string_lossy().parse()?;
        tasks.push(Pid::from_raw(id).context("a thread id is never zero")?);
    }
    Ok(tasks)
}
