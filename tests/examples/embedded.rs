//! A leader and a follower in one process: `cargo run --example embedded`.
//!
//! The leader's store takes writes; a follower's store, in another directory (and, but for this
//! example, in another process), gets them over TCP and answers reads.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use slotstream::follower::{self, Follower};
use slotstream::leader::{self, Leader};
use slotstream::links::Links;
use slotstream::stop::Stop;
use slotstream::{Geometry, Options, Store};

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let directory = tempfile::tempdir()?;
    let stop = Stop::new();

    // The leader: a store, and a port where followers connect.
    let geometry = Geometry { shard_count: 4, key_size_max: 32, value_size_max: 128, shard_prefix_bits: 0 };
    let store = Arc::new(Store::open(&directory.path().join("leader"), Options::create(geometry))?);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let leader =
        Leader::start(Arc::clone(&store), listener, leader::Options::default(), Links::new(), stop.clone())?;
    let address = leader.address().to_string();
    store.put(b"device:17", b"online")?;

    // The follower: it asks the leader for sizes and identity, makes a store to match, and follows.
    let info = follower::probe(&address, Duration::from_secs(5))?;
    let options = Options { store_id: Some(info.store_id), ..Options::create(info.geometry) };
    let copy = Arc::new(Store::open(&directory.path().join("follower"), options)?);
    let follower = Follower::start(
        Arc::clone(&copy),
        address,
        follower::Options::default(),
        Links::new(),
        stop.clone(),
    )?;

    // A write comes to be visible on the follower within a fraction of a millisecond; wait for it.
    let seq = store.put(b"device:18", b"asleep")?;
    let shard = store.shard_of(b"device:18");
    let deadline = Instant::now() + Duration::from_secs(10);
    while copy.progress(shard).seq < seq || copy.get(b"device:17")?.is_none() {
        if Instant::now() > deadline {
            return Err("the follower has not caught up".into());
        }
        std::thread::yield_now();
    }
    assert_eq!(copy.get(b"device:17")?.as_deref(), Some(&b"online"[..]));
    assert_eq!(copy.get(b"device:18")?.as_deref(), Some(&b"asleep"[..]));
    println!("the follower holds {} records; shard {shard} is at seq {seq}", copy.len());

    stop.set();
    follower.join();
    leader.join();
    copy.close()?;
    store.close()?;
    Ok(())
}
