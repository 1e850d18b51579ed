//! Writers that know, for each of their keys, which states a correct store may be in.
//!
//! A writer alone writes its keys. What was acknowledged must be there; what was sent and not
//! acknowledged may be. When its connection breaks it connects again and reads every key back.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::harness::{Client, PATIENCE, Reply, encode, poll};

/// Keys that a writer begins with.
const KEYS: usize = 2_000;
const PIPELINE: usize = 50;

/// Writers under way.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writers: Vec<JoinHandle<Writer>>,
}

impl Load {
    /// Starts `writers` writers against a leader's Redis port.
    pub(crate) fn start(address: SocketAddr, writers: u64) -> Self {
        Self::paced(address, writers, Duration::ZERO)
    }

    /// The same with a pause between batches, for what is about many moments and not about many writes.
    pub(crate) fn paced(address: SocketAddr, writers: u64, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let start = |number| {
            let mut writer = Writer {
                address,
                number,
                pause,
                random: number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
                keys: (0..KEYS).map(|_| VecDeque::from([None])).collect(),
                operations: 0,
                acknowledged: Arc::clone(&acknowledged),
            };
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                writer.run(&stop);
                writer
            })
        };
        Self { writers: (1..=writers).map(start).collect(), stop, acknowledged }
    }

    /// Commands acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until `more` further commands were acknowledged.
    #[track_caller]
    pub(crate) fn wait_for(&self, more: u64) {
        let wanted = self.acknowledged() + more;
        crate::harness::wait_until("the load goes on", PATIENCE, || {
            self.acknowledged() >= wanted || self.writers.iter().any(JoinHandle::is_finished)
        });
        assert!(self.acknowledged() >= wanted, "a writer has ended: it found something missing");
    }

    /// Ends the writers, each of which then reads all its keys back once more.
    pub(crate) fn finish(self) -> Vec<Writer> {
        self.stop.store(true, Ordering::Relaxed);
        self.writers
            .into_iter()
            .map(|writer| writer.join().expect("a writer found something wrong"))
            .collect()
    }
}

/// One writer and what it knows.
pub(crate) struct Writer {
    address: SocketAddr,
    number: u64,
    pause: Duration,
    random: u64,
    /// Per key: the last acknowledged state, then those sent and not acknowledged; `None` = absent.
    keys: Vec<VecDeque<Option<u64>>>,
    operations: u64,
    acknowledged: Arc<AtomicU64>,
}

impl Writer {
    fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let mut client = self.connect();
            self.check(&mut client);
            // Ends when the connection breaks.
            while !stop.load(Ordering::Relaxed) && self.batch(&mut client).is_ok() {
                std::thread::sleep(self.pause);
            }
        }
        let mut client = self.connect();
        self.check(&mut client);
    }

    fn connect(&self) -> Client {
        let mut client = None;
        let connected = poll(PATIENCE, || {
            client = Client::try_connect(self.address).ok().and_then(|mut client| {
                let answers = client.try_call(&[b"PING"]).is_ok();
                answers.then_some(client)
            });
            client.is_some()
        });
        assert!(connected, "no connection to {} within {PATIENCE:?}", self.address);
        client.expect("just connected")
    }

    fn batch(&mut self, client: &mut Client) -> std::io::Result<()> {
        let mut request = Vec::new();
        let mut touched = Vec::with_capacity(PIPELINE + 1);
        // A key that was never there, so that the store grows all the time.
        let fresh = self.keys.len();
        self.operations += 1;
        encode(&mut request, &[b"SET", self.key(fresh).as_bytes(), value(self.operations).as_bytes()]);
        self.keys.push(VecDeque::from([None, Some(self.operations)]));
        touched.push(fresh);
        for _ in 0..PIPELINE {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let index = usize::try_from(self.random % self.keys.len() as u64).expect("below the count");
            self.operations += 1;
            let key = self.key(index);
            if self.random >> 60 == 0 {
                encode(&mut request, &[b"DEL", key.as_bytes()]);
                self.keys[index].push_back(None);
            } else {
                encode(&mut request, &[b"SET", key.as_bytes(), value(self.operations).as_bytes()]);
                self.keys[index].push_back(Some(self.operations));
            }
            touched.push(index);
        }
        client.send(&request)?;
        for index in touched {
            let reply = client.reply()?;
            assert!(!matches!(reply, Reply::Error(_)), "a write was refused: {reply:?}");
            self.keys[index].pop_front();
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Reads every key and asserts that its state is one that it may have; then that one is known.
    fn check(&mut self, client: &mut Client) {
        for index in 0..self.keys.len() {
            // A node that is killed meanwhile is asked again after the next connect.
            let Ok(found) = read(client, &self.key(index)) else { return };
            let number = self.number;
            let states = &mut self.keys[index];
            assert!(
                states.contains(&found),
                "key {number}:{index} holds {found:?}, wanted one of {states:?}"
            );
            *states = VecDeque::from([found]);
        }
    }

    /// Asserts that a node (a follower, say) holds exactly what this writer's leader holds.
    pub(crate) fn assert_held_by(&self, address: SocketAddr) {
        let mut client = Client::connect(address);
        for (index, states) in self.keys.iter().enumerate() {
            let key = self.key(index);
            let found = read(&mut client, &key).expect("the node answers");
            assert!(states.len() == 1 && states[0] == found, "{key} holds {found:?}, wanted {states:?}");
        }
    }

    fn key(&self, index: usize) -> String {
        format!("{}:{index}", self.number)
    }
}

fn value(operation: u64) -> String {
    format!("{operation}:{}", "x".repeat(usize::try_from(operation % 32).expect("small")))
}

fn read(client: &mut Client, key: &str) -> std::io::Result<Option<u64>> {
    match client.try_call(&[b"GET", key.as_bytes()])? {
        Reply::Nil => Ok(None),
        Reply::Bulk(bytes) => {
            let text = String::from_utf8(bytes).expect("our value is text");
            let operation = text.split(':').next().and_then(|number| number.parse().ok()).expect("our value");
            assert_eq!(text, value(operation), "a value is torn");
            Ok(Some(operation))
        }
        other => panic!("GET answers {other:?}"),
    }
}
