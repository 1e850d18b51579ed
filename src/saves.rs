//! Floor 0: the backups that clients ask a node for (BGSAVE, SAVE): the one under way, and how the last ones ended.
//!
//! Clients ask, a thread of the node does it ([`Saves::listen`]), and INFO, `/status` and `/metrics` show it. Always
//! true: there is one at a time at most, and each that was begun ends with [`Saves::done`] or [`Saves::failed`].

use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Hears how a backup ended.
pub type Answer = Box<dyn FnOnce(Result<(), String>) + Send>;

/// Begins a backup on a thread of its own; must not block.
type Listener = Box<dyn Fn(Option<Answer>) + Send + Sync>;

/// Why no backup is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The node knows no place for it.
    NoDirectory,
    /// One is under way.
    Busy,
}

/// A backup under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Running {
    /// Seconds since it was begun.
    pub seconds: f64,
    /// Slots that were looked at.
    pub slots: u64,
    /// Slots to look at.
    pub slots_total: u64,
    /// Records taken.
    pub records: u64,
    /// Bytes of these.
    pub bytes: u64,
}

/// A whole backup.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Its directory.
    pub path: String,
    /// When it was whole, Unix seconds.
    pub unix_s: u64,
    /// Records in it; 0 where nobody knows.
    pub records: u64,
    /// Bytes of its files; 0 where nobody knows.
    pub bytes: u64,
}

/// What there is to say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SaveStats {
    /// Where backups go.
    pub directory: String,
    /// The one under way.
    pub running: Option<Running>,
    /// Backups done since the process started.
    pub done: u64,
    /// Backups that failed since the process started.
    pub failed: u64,
    /// The last whole one, also of an earlier process.
    pub last_done: Option<Done>,
    /// How long the last one took, whole or failed.
    pub last_seconds: Option<f64>,
    /// Why the last one failed; none if it did not.
    pub last_error: Option<String>,
}

/// The state that clients and the node share.
#[derive(Default)]
pub struct Saves {
    listener: OnceLock<Listener>,
    stats: Mutex<SaveStats>,
}

impl Saves {
    /// Hands every request to `listener`; backups go to `directory`, whose newest is `last`. The first listener stays.
    pub fn listen(
        &self,
        directory: String,
        last: Option<Done>,
        listener: impl Fn(Option<Answer>) + Send + Sync + 'static,
    ) {
        if self.listener.set(Box::new(listener)).is_ok() {
            let mut stats = self.stats.lock();
            (stats.directory, stats.last_done) = (directory, last);
        }
    }

    /// Begins a backup, unless one is under way; `answer` hears how it ends.
    pub fn begin(&self, answer: Option<Answer>) -> Result<(), Refusal> {
        let Some(listener) = self.listener.get() else { return Err(Refusal::NoDirectory) };
        {
            let mut stats = self.stats.lock();
            if stats.running.is_some() {
                return Err(Refusal::Busy);
            }
            stats.running = Some(Running::default());
        }
        listener(answer);
        Ok(())
    }

    /// How far the one under way is.
    pub fn progress(&self, running: Running) {
        self.stats.lock().running = Some(running);
    }

    /// The one under way is whole.
    pub fn done(&self, done: Done, took: Duration) {
        let mut stats = self.stats.lock();
        assert!(stats.running.is_some(), "a backup ends that was not begun");
        stats.running = None;
        stats.done += 1;
        (stats.last_seconds, stats.last_error) = (Some(took.as_secs_f64()), None);
        stats.last_done = Some(done);
    }

    /// The one under way was given up.
    pub fn failed(&self, error: String, took: Duration) {
        let mut stats = self.stats.lock();
        assert!(stats.running.is_some(), "a backup ends that was not begun");
        stats.running = None;
        stats.failed += 1;
        (stats.last_seconds, stats.last_error) = (Some(took.as_secs_f64()), Some(error));
    }

    /// What there is to say; `None` where the node takes no backups.
    #[must_use]
    pub fn stats(&self) -> Option<SaveStats> {
        self.listener.get()?;
        Some(self.stats.lock().clone())
    }
}

impl std::fmt::Debug for Saves {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saves").field("stats", &self.stats).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;

    #[test]
    fn one_backup_at_a_time_and_the_last_word_is_kept() {
        let saves = Saves::default();
        assert_eq!((saves.begin(None), saves.stats()), (Err(Refusal::NoDirectory), None));
        let begun = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&begun);
        saves.listen("/b".into(), None, move |_| {
            count.fetch_add(1, Relaxed);
        });
        assert_eq!(saves.begin(None), Ok(()));
        assert_eq!(saves.begin(None), Err(Refusal::Busy));
        saves.failed("disk full".into(), Duration::from_secs(1));
        let stats = saves.stats().expect("it listens");
        assert_eq!((stats.failed, stats.last_error.as_deref()), (1, Some("disk full")));
        assert_eq!((stats.running, stats.last_done), (None, None));
        assert_eq!(saves.begin(None), Ok(()));
        saves.done(Done { unix_s: 7, ..Done::default() }, Duration::from_secs(2));
        let stats = saves.stats().expect("it listens");
        assert_eq!((stats.done, stats.failed, stats.last_error), (1, 1, None));
        assert_eq!((stats.last_done.map(|done| done.unix_s), stats.last_seconds), (Some(7), Some(2.0)));
        assert_eq!(begun.load(Relaxed), 2);
    }
}
