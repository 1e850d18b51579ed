//! How long to wait before connecting again: twice as long each time, with jitter, so that the
//! followers of a leader that comes back do not all connect in the same instant.

use std::time::Duration;

/// Pauses between attempts.
#[derive(Debug)]
pub(crate) struct BackOff {
    min: Duration,
    max: Duration,
    next: Duration,
    random: u64,
}

impl BackOff {
    /// Pauses from `min` to `max`; different seeds jitter differently.
    pub(crate) fn new(min: Duration, max: Duration, seed: u64) -> Self {
        Self { min, max, next: min, random: seed }
    }

    /// The next pause: between a half and the whole of what is due.
    pub(crate) fn pause(&mut self) -> Duration {
        let due = self.next;
        self.next = (due * 2).min(self.max);
        let half = due / 2;
        half + half.mul_f64(self.fraction())
    }

    /// The longest pause; for peers that somebody must put right first.
    pub(crate) fn longest(&mut self) -> Duration {
        self.next = self.max;
        self.pause()
    }

    /// The last attempt was a good one.
    pub(crate) fn reset(&mut self) {
        self.next = self.min;
    }

    /// In [0, 1); splitmix64.
    fn fraction(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let bits = u32::try_from((z ^ (z >> 31)) >> 32).unwrap_or(0);
        f64::from(bits) / (f64::from(u32::MAX) + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_again() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut back_off = BackOff::new(min, max, 7);
        let mut due = min;
        for _ in 0..10 {
            let pause = back_off.pause();
            assert!(pause >= due / 2 && pause <= due, "{pause:?} of {due:?}");
            due = (due * 2).min(max);
        }
        back_off.reset();
        assert!(back_off.pause() <= min);
        assert!(back_off.longest() >= max / 2);
    }

    #[test]
    fn seeds_jitter_differently() {
        let pause = |seed| BackOff::new(Duration::from_secs(1), Duration::from_secs(1), seed).pause();
        assert_ne!(pause(1), pause(2));
    }
}
