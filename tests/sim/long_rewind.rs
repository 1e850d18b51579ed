//! A rewind whose report takes longer than a link may be silent: both ends hear of each other meanwhile.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use slotstream::clock::{Clock, ManualClock};
use slotstream::links::{LinkCell, Links};
use slotstream::store::{Options, Sleeper};
use slotstream::{Geometry, ShardIndex, Store, follower, leader};
use uuid::Uuid;

use crate::network::Connection;
use crate::random::Random;

const SHARD: ShardIndex = ShardIndex(0);
const RECORDS: u64 = 60;
/// How long each piece of the report takes.
const PIECE: Duration = Duration::from_millis(400);

fn store(clock: &Arc<ManualClock>) -> Store {
    let geometry = Geometry { shard_count: 1, key_size_max: 8, value_size_max: 8, shard_prefix_bits: 0 };
    let clock = Arc::clone(clock) as Arc<dyn Clock>;
    let options = Options { store_id: Some(Uuid::from_u128(1)), clock, ..Options::memory(geometry, 100) };
    Store::open(Path::new("memory"), options).unwrap()
}

#[test]
fn a_long_report_leaves_the_link_alive() {
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let (leading, following) = (store(&clock), store(&clock));
    for key in 0..RECORDS {
        following.put(&key.to_le_bytes(), b"lost").unwrap();
    }
    following.demote().unwrap();
    // Promoted with nothing, so that all of it is to be dropped.
    leading.lead_past(5).unwrap();

    let (links, registry) = ([Links::new(), Links::new()], leader::Registry::new(1, 10, 10));
    let (sleeper, leader_options) = (Sleeper::new(|| {}), leader::Options::default());
    let options = follower::Options { rewind_slots_max: 1, ..follower::Options::default() };
    let (connection, mut random) = (Connection::new(1, slotstream::Seq::ZERO, 1 << 20, 0), Random::new(1));
    let cell = LinkCell::new(options.follower_id, ([127, 0, 0, 1], 2).into(), 0, 0);
    let begin = clock.now();
    let env = follower::Env { store: &following, options: &options, links: &links[1], now: begin };
    let mut link = follower::Link::new(SHARD, cell, env);
    let seat = registry.pending_seat().unwrap();
    let mut end = leader::Link::new(([127, 0, 0, 1], 1).into(), seat, &leader_options, begin);
    let mut most_silent = Duration::ZERO;
    let mut spoken_at = begin.monotonic;
    while !link.is_streaming() {
        let now = clock.now();
        assert!(now.monotonic < begin.monotonic + 10 * PIECE * 60, "it gets on");
        let leader_env = leader::Env {
            store: &leading,
            options: &leader_options,
            links: &links[0],
            registry: &registry,
            sleeper: &sleeper,
            now,
        };
        let env = follower::Env { store: &following, options: &options, links: &links[1], now };
        connection.deliver(&mut random, true);
        let heard = links[0].totals.heartbeats_received.load(std::sync::atomic::Ordering::Relaxed);
        end.receive(&mut connection.end(true, &mut random), leader_env).unwrap();
        if links[0].totals.heartbeats_received.load(std::sync::atomic::Ordering::Relaxed) > heard {
            spoken_at = now.monotonic;
        }
        most_silent = most_silent.max(now.monotonic - spoken_at);
        end.check_deadlines(leader_env).unwrap();
        end.send(&mut connection.end(true, &mut random), 1 << 20, leader_env).unwrap();
        connection.deliver(&mut random, true);
        link.receive(&mut connection.end(false, &mut random), env).unwrap();
        link.check_deadlines(env).unwrap();
        link.send(&mut connection.end(false, &mut random), env).unwrap();
        clock.advance(PIECE);
    }
    let took = clock.now().monotonic - begin.monotonic;
    assert!(took > 4 * options.dead_after, "{took:?}: the report was long");
    assert!(most_silent <= 2 * options.heartbeat_interval, "silent for {most_silent:?}");
    let lines = following.reports().unwrap()[0].1.iter().filter(|byte| **byte == b'\n').count() as u64;
    assert_eq!(lines, 1 + RECORDS);
}
