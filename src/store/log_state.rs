//! What a log is doing: it takes what comes, has no space for a while, or has failed for good.
//!
//! A log without space loses nothing: changes are refused until it has some. From a failure nothing leads back,
//! whatever other threads find at the same time.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;

/// What the log is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum LogState {
    /// It takes what comes.
    Going = 0,
    /// The disk has no room for it: changes are refused until it has.
    NoSpace = 1,
    /// A write or sync failed: changes are refused for good.
    Failed = 2,
}

/// A log's state, for whoever asks without waiting for a sync.
#[derive(Debug, Default)]
pub(super) struct Standing {
    state: AtomicU8,
    /// What the system last said of its space.
    no_space: Mutex<String>,
    /// Writes refused since the log has no space.
    refused: AtomicU64,
}

impl Standing {
    pub(super) fn get(&self) -> LogState {
        match self.state.load(Ordering::Relaxed) {
            0 => LogState::Going,
            1 => LogState::NoSpace,
            _ => LogState::Failed,
        }
    }

    #[inline]
    pub(super) fn is_going(&self) -> bool {
        self.state.load(Ordering::Relaxed) == LogState::Going as u8
    }

    pub(super) fn fail(&self) {
        self.state.store(LogState::Failed as u8, Ordering::Relaxed);
    }

    pub(super) fn find_no_space(&self, error: impl ToString) {
        *self.no_space.lock() = error.to_string();
        self.state.fetch_max(LogState::NoSpace as u8, Ordering::Relaxed);
    }

    /// It has space, or always had.
    pub(super) fn find_space(&self) {
        // A failure has another bit: whoever has found one meanwhile is right.
        self.state.fetch_and(!(LogState::NoSpace as u8), Ordering::Relaxed);
    }

    /// What the system says of its space, while it has none.
    pub(super) fn lacks_space(&self) -> Option<String> {
        (self.get() == LogState::NoSpace).then(|| self.no_space.lock().clone())
    }

    /// Counts a write that is refused; says why.
    pub(super) fn refuse(&self) -> String {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.no_space.lock().clone()
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leads_back_from_a_failure() {
        for round in 0..5_000 {
            let (standing, start) = (Standing::default(), std::sync::Barrier::new(3));
            standing.find_no_space("full");
            std::thread::scope(|scope| {
                let find: [fn(&Standing); 3] = [
                    |standing| (0..20).for_each(|_| standing.find_space()),
                    |standing| (0..20).for_each(|_| standing.find_no_space("full")),
                    Standing::fail,
                ];
                for find in find {
                    let (standing, start) = (&standing, &start);
                    scope.spawn(move || {
                        start.wait();
                        find(standing);
                    });
                }
            });
            assert_eq!(standing.get(), LogState::Failed, "round {round}");
        }
    }

    #[test]
    fn a_log_has_no_space_until_it_is_found_to_have_some() {
        let standing = Standing::default();
        standing.find_space();
        assert!(standing.is_going());
        standing.find_no_space("No space left on device");
        assert_eq!((standing.get(), standing.is_going()), (LogState::NoSpace, false));
        assert_eq!((standing.refuse().as_str(), standing.refused()), ("No space left on device", 1));
        standing.find_space();
        assert!(standing.is_going());
    }
}
