//! What a seed makes of a run, and what came of it.

use std::sync::Mutex;

use slotstream::chance::Chance;
use slotstream::{Geometry, leader};

use crate::random::Random;

/// What a seed makes of a run.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) geometry: Geometry,
    pub(crate) slots: u32,
    pub(crate) node_count: usize,
    pub(crate) key_count: usize,
    pub(crate) step_count: usize,
    pub(crate) network_bytes: usize,
    pub(crate) fault_percent: usize,
    pub(crate) write_percent: usize,
    /// Faults in a hundred that are changes of roles.
    pub(crate) role_percent: usize,
    /// Faults in a hundred that are power cuts.
    pub(crate) power_percent: usize,
    /// Clocks differ by up to this much.
    pub(crate) skew_ms: usize,
    /// Deliveries in a hundred that flip a bit; links may then end for what the other end sent.
    pub(crate) noise_percent: usize,
    pub(crate) leader: leader::Options,
    /// Slots of a piece of a rewind's report.
    pub(crate) rewind_slots_max: usize,
}

impl Scenario {
    pub(crate) fn new(random: &mut Random) -> Self {
        let value_size_max = *random.pick(&[0, 8, 40]);
        let geometry = Geometry {
            shard_count: *random.pick(&[1, 1, 2, 3]),
            key_size_max: 8,
            value_size_max,
            shard_prefix_bits: 0,
        };
        let record_size = 8 + geometry.image_size_max();
        let leader = leader::Options {
            ring_bytes: *random.pick(&[
                record_size / 2,
                record_size,
                3 * record_size,
                10 * record_size,
                4096,
            ]),
            ack_window_bytes_max: *random.pick(&[1, 200, 1000, 1 << 20]),
            scan_batch_bytes_max: *random.pick(&[1, 150, 400, 64 << 10]),
            stream_batch_bytes_max: *random.pick(&[1, 200, 600, 256 << 10]),
            scan_bytes_per_second_max: *random.pick(&[0, 0, 0, 10_000]),
            scans_max: *random.pick(&[0, 0, 0, 1]),
            regain_wait: std::time::Duration::from_millis(*random.pick(&[0, 300, 3_000])),
            ..leader::Options::default()
        };
        Self {
            geometry,
            slots: *random.pick(&[4, 16, 40]),
            node_count: random.between(2, 4),
            key_count: random.between(2, 60),
            step_count: random.between(50, 400),
            network_bytes: *random.pick(&[30, 200, 1000, 10_000]),
            fault_percent: *random.pick(&[0, 1, 4, 8, 15]),
            role_percent: *random.pick(&[0, 30, 70]),
            power_percent: *random.pick(&[0, 10, 30]),
            skew_ms: *random.pick(&[0, 0, 1_000, 10_000_000]),
            noise_percent: *random.pick(&[0, 0, 0, 5]),
            write_percent: *random.pick(&[5, 10, 25]),
            leader,
            rewind_slots_max: *random.pick(&[1, 3, 4096]),
        }
    }
}

/// What a run did, to see that runs do something.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) full_scans: u64,
    pub(crate) delta_scans_reconnect: u64,
    pub(crate) delta_scans_overflow: u64,
    pub(crate) records_sent: u64,
    pub(crate) promotions: u64,
    pub(crate) restored: u64,
    pub(crate) rewinds: u64,
    pub(crate) writes_dropped: u64,
    pub(crate) scans_resumed: u64,
    pub(crate) power_cuts: u64,
    pub(crate) follower_power_cuts: u64,
    pub(crate) slots_regained: u64,
    /// Shards that were given up to a leader that did not remember them.
    pub(crate) given_up: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.full_scans += other.full_scans;
        self.delta_scans_reconnect += other.delta_scans_reconnect;
        self.delta_scans_overflow += other.delta_scans_overflow;
        self.records_sent += other.records_sent;
        self.promotions += other.promotions;
        self.restored += other.restored;
        self.rewinds += other.rewinds;
        self.writes_dropped += other.writes_dropped;
        self.scans_resumed += other.scans_resumed;
        self.power_cuts += other.power_cuts;
        self.follower_power_cuts += other.follower_power_cuts;
        self.slots_regained += other.slots_regained;
        self.given_up += other.given_up;
    }
}

/// Names of terms, from the seed.
pub(crate) struct SeededChance(Mutex<Random>);

impl SeededChance {
    pub(crate) fn new(random: Random) -> Self {
        Self(Mutex::new(random))
    }
}

impl Chance for SeededChance {
    fn next(&self) -> u64 {
        self.0.lock().unwrap().next()
    }
}
