//! The background audit: a store that came back from its digests serves at once, and every slot's checksum,
//! index entry and word are looked at meanwhile, at a pace that others do not feel.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::setpriority_process;
use rustix::thread::gettid;

use crate::slot::{ShardIndex, SlotIndex};
use crate::stop::Stop;
use crate::store::{Fault, Store};

/// Read between two naps: with the nap, at most 100 MiB a second.
const ROUND_BYTES: usize = 1 << 20;
const NAP: Duration = Duration::from_millis(10);
/// Read under one hold of a shard's lock, which readers share and writers wait for.
const STEP_BYTES: usize = 16 << 10;
/// Faults logged one by one in each shard; the rest is counted.
const FAULTS_LOGGED: usize = 10;

/// Starts the audit's thread, if there is anything to look at; it ends by itself, or with the stop signal.
pub(super) fn start(store: &Arc<Store>, stop: &Stop) -> std::io::Result<Option<JoinHandle<()>>> {
    let shards: Vec<_> = store.shards().filter(|shard| store.doubt(*shard).is_none()).collect();
    if shards.is_empty() {
        return Ok(None);
    }
    let (wake, stopped) = mpsc::channel::<()>();
    let store = Arc::clone(store);
    let thread = std::thread::Builder::new().name("audit".to_owned()).spawn(move || {
        // Everybody else goes first. Without the leave to say so it is only the pace that is kept.
        setpriority_process(Some(gettid()), 19).ok();
        // The sender lives until the stop signal is set; then this returns at once.
        run(&store, &shards, || stopped.recv_timeout(NAP) == Err(mpsc::RecvTimeoutError::Timeout));
    })?;
    stop.on_stop(move || drop(wake));
    Ok(Some(thread))
}

/// Looks at all slots of these shards; `nap` says whether to go on.
fn run(store: &Store, shards: &[ShardIndex], nap: impl Fn() -> bool) {
    let start = Instant::now();
    let (mut slots, mut faults) = (0_u64, 0);
    let stride = store.geometry().slot_stride();
    let step_slots = u32::try_from((STEP_BYTES / stride).max(1)).unwrap_or(1);
    let mut left = ROUND_BYTES;
    for shard in shards.iter().copied() {
        let (mut next, mut found) = (Some(SlotIndex(0)), 0);
        while let Some(from) = next {
            let audit = store.audit(shard, from, step_slots);
            for (slot, fault) in audit.faults {
                found += 1;
                if found <= FAULTS_LOGGED {
                    log(shard, slot, &fault);
                }
            }
            slots += u64::from(step_slots);
            next = audit.next;
            left = left.saturating_sub(step_slots as usize * stride);
            if left == 0 {
                if !nap() {
                    return;
                }
                left = ROUND_BYTES;
            }
        }
        faults += found;
        if found > FAULTS_LOGGED {
            tracing::error!(%shard, found, "faults in all");
        }
    }
    tracing::info!(slots, faults, took = ?start.elapsed(), "every slot was checked in the background");
}

fn log(shard: ShardIndex, slot: SlotIndex, fault: &Fault) {
    match fault {
        Fault::Damaged(error) => tracing::error!(%shard, %slot, %error, "damaged slot set aside"),
        Fault::Misfit => tracing::error!(%shard, %slot, "put right: {fault}"),
    }
}
