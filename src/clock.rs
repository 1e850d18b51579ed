//! Floor 0: time as a dependency: everything that asks for the time asks a [`Clock`].
//!
//! The process uses [`SystemClock`]; simulators and tests use [`ManualClock`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Both times, read once per round of work and passed down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Time since an arbitrary start; never goes back.
    pub monotonic: Duration,
    /// Milliseconds since the Unix epoch.
    pub unix_ms: u64,
}

/// Source of wall-clock and monotonic time.
pub trait Clock: Send + Sync {
    /// Milliseconds since the Unix epoch; what expiry times are compared with.
    fn unix_ms(&self) -> u64;
    /// Time since an arbitrary start that never goes back; what deadlines are measured with.
    fn monotonic(&self) -> Duration;
    /// Both times.
    fn now(&self) -> Now {
        Now { monotonic: self.monotonic(), unix_ms: self.unix_ms() }
    }
}

/// The operating system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts at zero now.
    #[must_use]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn unix_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock that moves only when told to.
#[derive(Debug, Default)]
pub struct ManualClock {
    elapsed_ms: AtomicU64,
    unix_start_ms: u64,
}

impl ManualClock {
    /// A clock at zero monotonic time and `unix_ms` wall-clock time.
    #[must_use]
    pub fn new(unix_ms: u64) -> Self {
        Self { elapsed_ms: AtomicU64::new(0), unix_start_ms: unix_ms }
    }

    /// Moves both times forward.
    pub fn advance(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.elapsed_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn unix_ms(&self) -> u64 {
        self.unix_start_ms + self.elapsed_ms.load(Ordering::Relaxed)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.elapsed_ms.load(Ordering::Relaxed))
    }
}
