//! How much clients write while scans run: what a scan leaves them of the machine depends on it.
//!
//! Scans tell how far their shards' heads have moved; a window of some milliseconds makes a rate of it.

use std::time::Duration;

use parking_lot::Mutex;

const WINDOW: Duration = Duration::from_millis(50);
/// A window that was open for so long says nothing of now: no scan was there to look.
const WINDOW_MAX: Duration = Duration::from_secs(1);
/// Writes a second below which clients are as good as idle: a hundredth of what one core takes.
const BUSY_PER_SECOND: f64 = 10_000.0;

/// Writes to the shards that are being scanned.
#[derive(Debug, Default)]
pub(super) struct Writes(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    opened_at: Duration,
    writes: u64,
    per_second: f64,
}

impl Writes {
    /// Takes so many writes; returns how many there are a second, 0 where it is next to none.
    pub(super) fn seen(&self, writes: u64, now: Duration) -> f64 {
        let mut window = self.0.lock();
        let open_for = now.saturating_sub(window.opened_at);
        if open_for > WINDOW_MAX {
            *window = Window { opened_at: now, ..Window::default() };
        } else if open_for >= WINDOW {
            let per_second = crate::units::float(window.writes + writes) / open_for.as_secs_f64();
            *window = Window { opened_at: now, writes: 0, per_second };
        } else {
            window.writes += writes;
        }
        if window.per_second < BUSY_PER_SECOND { 0.0 } else { window.per_second }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_what_was_written_in_the_last_whole_window() {
        let (writes, ms) = (Writes::default(), Duration::from_millis);
        let begin = 1_000_000;
        assert!(writes.seen(9_999, ms(begin)) < 1.0, "nobody looked before");
        assert!(writes.seen(3_000, ms(begin + 20)) < 1.0, "half a window");
        assert!((writes.seen(2_000, ms(begin + 50)) - 100_000.0).abs() < 1.0);
        assert!((writes.seen(1, ms(begin + 80)) - 100_000.0).abs() < 1.0);
        assert!(writes.seen(0, ms(begin + 100)) < 1.0, "one write is none");
        assert!(writes.seen(50_000, ms(begin + 200)) > 400_000.0);
        assert!(writes.seen(50_000, ms(begin + 9_000)) < 1.0, "an old window says nothing");
    }
}
