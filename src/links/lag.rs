//! Lag in time, from samples of (when, head): a reader at seq `s` is behind by the age of the
//! newest sample that it has reached.
//!
//! The samples are bounded: when there are too many, every other one goes, so that old ones get
//! sparser and a long lag gets coarser but never unbounded in memory.

use std::collections::VecDeque;

use crate::slot::Seq;

const SAMPLES_MAX: usize = 64;
/// Samples closer together than this tell nothing more.
const SAMPLE_INTERVAL_MS: u64 = 10;

#[derive(Debug, Clone, Copy)]
struct Sample {
    unix_ms: u64,
    head: Seq,
}

/// Samples of one shard's head, in time order.
#[derive(Debug, Default)]
pub struct LagSamples {
    samples: VecDeque<Sample>,
}

impl LagSamples {
    /// Notes that the head was `head` at this time.
    pub fn sample(&mut self, unix_ms: u64, head: Seq) {
        if let Some(newest) = self.samples.back_mut() {
            if newest.head == head {
                newest.unix_ms = newest.unix_ms.max(unix_ms);
                return;
            }
            if unix_ms < newest.unix_ms.saturating_add(SAMPLE_INTERVAL_MS) {
                return;
            }
        }
        if self.samples.len() == SAMPLES_MAX {
            let mut index = 0;
            self.samples.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
        self.samples.push_back(Sample { unix_ms, head });
    }

    /// How far behind a reader at `reached` is; zero if it reached `head`.
    pub fn lag_ms(&mut self, now_unix_ms: u64, reached: Seq, head: Seq) -> u64 {
        if reached >= head {
            return 0;
        }
        while self.samples.get(1).is_some_and(|second| second.head <= reached) {
            self.samples.pop_front();
        }
        self.samples.front().map_or(0, |oldest| now_unix_ms.saturating_sub(oldest.unix_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_the_age_of_the_newest_sample_reached() {
        let mut lag = LagSamples::default();
        lag.sample(1_000, Seq(5));
        lag.sample(1_100, Seq(5));
        lag.sample(1_200, Seq(9));
        lag.sample(1_300, Seq(12));
        assert_eq!(lag.lag_ms(1_400, Seq(12), Seq(12)), 0);
        assert_eq!(lag.lag_ms(1_400, Seq(5), Seq(12)), 300, "5 was still the head at 1,100");
        assert_eq!(lag.lag_ms(1_400, Seq(10), Seq(12)), 200);
        assert_eq!(lag.lag_ms(1_400, Seq(12), Seq(13)), 100);
    }

    #[test]
    fn samples_stay_bounded_and_keep_the_oldest() {
        let mut lag = LagSamples::default();
        for i in 0..10_000 {
            lag.sample(1_000 + i * 20, Seq(i + 1));
        }
        assert!(lag.samples.len() <= SAMPLES_MAX);
        assert_eq!(lag.lag_ms(201_000, Seq(1), Seq(20_000)), 200_000);
    }
}
