//! The threads that keep a store's log: one writes and syncs it, one makes slots durable and cuts it.
//!
//! Where the log comes first, the writer makes a round as soon as somebody asks for one; while it is at that, others
//! ask for the next, and so share it.
//!
//! Whatever fails for good ends the process at once, and not in order: a mark that all is well would lie. A full
//! disk is not that: the store refuses changes and says so, and this goes on trying.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::links::Links;
use crate::ring::Sleeper;
use crate::slot::Seq;
use crate::stop::Stop;
use crate::store::{Durability, LogState, Store, SyncError};

/// What shards have is written this often, so that a sync has little left to write.
const TICK: Duration = Duration::from_millis(10);
/// While nothing is written, it is looked this often: an idle process stays idle.
const QUIET_TICK: Duration = Duration::from_millis(100);
const CHECKPOINT_TICK: Duration = Duration::from_millis(200);
/// A log that is not nearly full is cut after this long, so that a restart has little to replay.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);
const SAY_INTERVAL: Duration = Duration::from_secs(10);

/// Starts both, where the store has a log; they end when the stop signal is set.
pub(super) fn start(
    store: &Arc<Store>,
    links: &Arc<Links>,
    stop: &Stop,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    say(store.durability());
    let interval = match store.durability() {
        Durability::None => return Ok(Vec::new()),
        Durability::Interval(interval) => interval,
        // What nobody has asked for is synced with each tick.
        Durability::Always => TICK,
    };
    let (wake, woken) = mpsc::channel();
    let (writer, cutter) = (Writer::new(store, links, interval, wake.clone()), Cutter::new(store));
    let (cutter_wake, cutter_woken) = mpsc::channel();
    let writer = spawn("wal", stop, writer, (wake, woken))?;
    Ok(vec![writer, spawn("checkpoint", stop, cutter, (cutter_wake, cutter_woken))?])
}

/// What was promised, for whoever reads the log.
fn say(durability: Durability) {
    let takes = match durability {
        Durability::None => "what the system had not written back",
        Durability::Interval(_) => "the writes of the last interval",
        Durability::Always => "nothing that was answered",
    };
    let interval = durability.interval().map(tracing::field::debug);
    tracing::info!(durability = durability.level(), interval, "a power cut may take {takes}");
}

/// Lets checkpoints take their time, until the node is told to stop.
pub(super) fn pace(store: &Arc<Store>, bytes_per_second: u64, stop: &Stop) {
    store.pace_checkpoints(bytes_per_second);
    let store = Arc::downgrade(store);
    stop.on_stop(move || {
        if let Some(store) = store.upgrade() {
            store.pace_checkpoints(0);
        }
    });
}

/// Waits for one of them to end.
pub(super) fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a thread of the log panicked");
    }
}

trait Work: Send + 'static {
    /// How long to wait before the next round, unless woken.
    fn wait(&self) -> Duration;
    fn round(&mut self);
}

/// What a thread of the log is told.
#[derive(Debug)]
enum Word {
    Go,
    Stop,
}

fn spawn(
    name: &str,
    stop: &Stop,
    mut work: impl Work,
    (wake, woken): (mpsc::Sender<Word>, mpsc::Receiver<Word>),
) -> anyhow::Result<JoinHandle<()>> {
    let run = move || {
        while !matches!(
            woken.recv_timeout(work.wait()),
            Ok(Word::Stop) | Err(mpsc::RecvTimeoutError::Disconnected)
        ) {
            work.round();
        }
    };
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run).context("no thread")?;
    // A thread that has ended already hears nothing.
    stop.on_stop(move || drop(wake.send(Word::Stop)));
    Ok(thread)
}

/// Ends the process if something went wrong that is no full disk.
fn judge(result: Result<(), SyncError>) {
    let Err(error) = result else { return };
    if !error.is_full() {
        tracing::error!(%error, "what is written can not be made durable any more: this process ends");
        std::process::exit(1);
    }
}

struct Writer {
    store: Arc<Store>,
    links: Arc<Links>,
    interval: Duration,
    synced: Instant,
    sleeper: Arc<Sleeper>,
    durable: Vec<Seq>,
    rounds: u64,
    /// Bytes that the log had been given after the last look.
    bytes: u64,
    /// Nothing came since the look before.
    is_quiet: bool,
    said: Option<Instant>,
    said_full: Option<Instant>,
    stalls: u64,
    writes_held: u64,
}

impl Writer {
    fn new(store: &Arc<Store>, links: &Arc<Links>, interval: Duration, wake: mpsc::Sender<Word>) -> Self {
        let sleeper = Sleeper::new(move || drop(wake.send(Word::Go)));
        store.wake_for_rounds(Arc::clone(&sleeper));
        let durable = store.shards().map(|shard| store.durable(shard)).collect();
        let (store, links) = (Arc::clone(store), Arc::clone(links));
        Self {
            store,
            links,
            interval,
            synced: Instant::now(),
            sleeper,
            durable,
            rounds: 0,
            bytes: 0,
            is_quiet: false,
            said: None,
            said_full: None,
            stalls: 0,
            writes_held: 0,
        }
    }

    /// Wakes who waits for something to be durable here.
    fn wake(&mut self) {
        for (shard, before) in self.store.shards().zip(&mut self.durable) {
            let now = self.store.durable(shard);
            self.links.durable_here(shard, std::mem::replace(before, now), now);
        }
        let rounds = self.store.rounds();
        self.links.rounds_over(std::mem::replace(&mut self.rounds, rounds), rounds);
    }

    /// Says that the log has no space, now and then for as long as that lasts, and that it has some again.
    fn say_space(&mut self) {
        if let Some(error) = self.store.log_lacks_space() {
            if self.said_full.is_none_or(|said| said.elapsed() >= SAY_INTERVAL) {
                self.said_full = Some(Instant::now());
                tracing::error!(error, "the log has no space: writes are refused until it has");
            }
        } else if self.said_full.take().is_some() {
            tracing::info!("the log has space again: writes are taken");
        }
    }

    fn say_stalls(&mut self) {
        let (stalls, held) = self.store.log_stats().map_or((0, 0), |log| (log.stalls, log.writes_held));
        let is_due = self.said.is_none_or(|said| said.elapsed() >= SAY_INTERVAL);
        if (stalls > self.stalls || held > self.writes_held) && is_due {
            self.said = Some(Instant::now());
            let held = held - std::mem::replace(&mut self.writes_held, held);
            let times = stalls - std::mem::replace(&mut self.stalls, stalls);
            if times > 0 {
                tracing::warn!(times, "the log was full: writes waited for a checkpoint; see --wal-size-max");
            } else {
                tracing::warn!(times = held, "the log is filling: writes are slowed; see --wal-size-max");
            }
        }
    }
}

impl Work for Writer {
    fn wait(&self) -> Duration {
        self.sleeper.announce();
        if self.store.is_asked_for_a_round() {
            return Duration::ZERO;
        }
        let tick = if self.is_quiet { QUIET_TICK } else { TICK };
        tick.min(self.interval.saturating_sub(self.synced.elapsed()))
    }

    fn round(&mut self) {
        self.sleeper.awake();
        let is_due = self.synced.elapsed() >= self.interval || self.store.is_asked_for_a_round();
        if is_due {
            // Before, not after: the interval is between two beginnings.
            self.synced = Instant::now();
        }
        let done = if is_due { self.store.sync_log() } else { self.store.write_log() };
        judge(done);
        let bytes = self.store.log_stats().map_or(0, |log| log.bytes);
        self.is_quiet = std::mem::replace(&mut self.bytes, bytes) == bytes;
        if self.store.log_state() == LogState::NoSpace {
            // Who waits for a round is told that none comes.
            self.links.rounds_over(self.rounds, u64::MAX);
        }
        self.say_space();
        if is_due {
            self.wake();
            self.say_stalls();
        }
    }
}

struct Cutter {
    store: Arc<Store>,
    last: Instant,
}

impl Cutter {
    fn new(store: &Arc<Store>) -> Self {
        Self { store: Arc::clone(store), last: Instant::now() }
    }
}

impl Work for Cutter {
    fn wait(&self) -> Duration {
        CHECKPOINT_TICK
    }

    fn round(&mut self) {
        if self.store.wants_checkpoint(self.last.elapsed() >= CHECKPOINT_INTERVAL) {
            self.last = Instant::now();
            let done = self.store.checkpoint();
            tracing::debug!(took = ?self.last.elapsed(), "checkpoint");
            judge(done);
        }
    }
}
