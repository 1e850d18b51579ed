//! `slotstream bench`: a small closed-loop load on a running leader, through its Redis port.
//!
//! It shares the machine with the server and waits for each pipeline's replies, so its figures say what
//! this client saw, not what the server could do. Comparisons live in `scripts/bench`.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::redis::{Client, Reply};
use crate::units;

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// RESP address.
    pub address: SocketAddr,
    /// Connections, one thread each.
    pub clients: u16,
    /// Commands sent before their replies are awaited.
    pub pipeline: u16,
    /// Different keys.
    pub keys: u32,
    /// Bytes of a value.
    pub value_size: u16,
    /// How long each of SET and GET runs.
    pub duration: Duration,
}

/// Round trips kept per client for the percentiles; later ones overwrite earlier ones.
const SAMPLES_MAX: usize = 1 << 18;

#[derive(Debug, Clone, Copy)]
enum Work {
    Set,
    Get,
}

/// What one client saw.
struct Seen {
    commands: u64,
    round_trips: Vec<Duration>,
}

/// Runs SET, then GET, and prints a line for each.
pub fn run(load: &Load, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "{} clients, pipeline {}, {} keys, values of {} bytes, {:?} each",
        load.clients,
        load.pipeline,
        units::count(u64::from(load.keys)),
        load.value_size,
        load.duration
    )?;
    for (name, work) in [("SET", Work::Set), ("GET", Work::Get)] {
        let start = Instant::now();
        let seen = clients(load, work)?;
        let elapsed = start.elapsed();
        let commands: u64 = seen.iter().map(|client| client.commands).sum();
        let mut trips: Vec<Duration> = seen.into_iter().flat_map(|client| client.round_trips).collect();
        trips.sort_unstable();
        let at = |permille: usize| trips[(trips.len() - 1) * permille / 1000];
        writeln!(
            out,
            "{name}  {:>9.0} commands/s   round trip of a pipeline: p50 {:?}  p99 {:?}  p99.9 {:?}",
            units::float(commands) / elapsed.as_secs_f64(),
            at(500),
            at(990),
            at(999)
        )?;
    }
    Ok(())
}

fn clients(load: &Load, work: Work) -> io::Result<Vec<Seen>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..load.clients)
            .map(|client| scope.spawn(move || drive(load, work, u64::from(client))))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("a client thread panicked"))))
            .collect()
    })
}

fn drive(load: &Load, work: Work, client: u64) -> io::Result<Seen> {
    let mut connection = Client::connect(load.address)?;
    let value = vec![b'x'; usize::from(load.value_size)];
    let mut random = client.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut seen = Seen { commands: 0, round_trips: Vec::new() };
    let mut trips = 0_usize;
    let start = Instant::now();
    while start.elapsed() < load.duration {
        for _ in 0..load.pipeline {
            // xorshift64: the keys need no better.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let key = format!("bench:{:010}", random % u64::from(load.keys));
            match work {
                Work::Set => connection.queue(&[b"SET", key.as_bytes(), &value]),
                Work::Get => connection.queue(&[b"GET", key.as_bytes()]),
            }
        }
        let sent = Instant::now();
        connection.flush()?;
        for _ in 0..load.pipeline {
            if let Reply::Error(error) = connection.reply()? {
                return Err(io::Error::other(format!("{} answers: {error}", load.address)));
            }
        }
        seen.commands += u64::from(load.pipeline);
        if seen.round_trips.len() < SAMPLES_MAX {
            seen.round_trips.push(sent.elapsed());
        } else {
            seen.round_trips[trips % SAMPLES_MAX] = sent.elapsed();
        }
        trips += 1;
    }
    Ok(seen)
}
