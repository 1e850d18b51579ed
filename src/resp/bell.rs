//! One wake-up for all who wait on a worker, however many of them an Ack concerns.
//!
//! A thread that wakes a task of another thread's runtime pays a system call each time. So what waits
//! for followers leaves its waker here when its turn has come, and the first to do so rings; the worker
//! then wakes them all itself, which costs next to nothing.

use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// A worker's bell.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: Notify,
    turned: Mutex<Vec<Waker>>,
}

impl Bell {
    /// Wakes those whose turn has come, for ever; run by the worker beside all else.
    pub(super) async fn attend(&self) {
        loop {
            self.rung.notified().await;
            let turned = std::mem::take(&mut *self.turned.lock());
            turned.into_iter().for_each(Waker::wake);
        }
    }

    /// The future, woken through this bell.
    pub(super) async fn on<F: Future>(self: &Arc<Self>, future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|context| {
            let rope = Arc::new(Rope { bell: Arc::clone(self), task: context.waker().clone() });
            future.as_mut().poll(&mut Context::from_waker(&Waker::from(rope)))
        })
        .await
    }
}

/// Rings the bell for one task.
struct Rope {
    bell: Arc<Bell>,
    task: Waker,
}

impl Wake for Rope {
    fn wake(self: Arc<Self>) {
        let is_first = {
            let mut turned = self.bell.turned.lock();
            turned.push(self.task.clone());
            turned.len() == 1
        };
        if is_first {
            // A ring that nobody attends to yet is kept.
            self.bell.rung.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::links::{Level, LinkCell, Links, Phase};
    use crate::slot::{Seq, ShardIndex};

    /// Counts how often the attendant is woken.
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_thousand_waits_cost_one_ring_and_only_for_the_ack_that_matters() {
        const CLIENTS: u64 = 1_000;
        let links = Links::new();
        let cell = LinkCell::new(uuid::Uuid::from_u128(1), ([127, 0, 0, 1], 1).into(), 0, 0);
        cell.set_phase(Phase::Stream);
        links.add(Arc::clone(&cell));
        let bell = Arc::new(Bell::default());
        let attendant = Arc::new(Count(AtomicUsize::new(0)));
        let attendant_waker = Waker::from(Arc::clone(&attendant));
        let mut attend = Box::pin(bell.attend());
        assert!(attend.as_mut().poll(&mut Context::from_waker(&attendant_waker)).is_pending());
        let looks = Arc::new(AtomicUsize::new(0));
        let tasks = Arc::new(Count(AtomicUsize::new(0)));
        let task_waker = Waker::from(Arc::clone(&tasks));
        let mut waits: Vec<_> = (1..=CLIENTS)
            .map(|seq| {
                let (links, bell, looks) = (Arc::clone(&links), Arc::clone(&bell), Arc::clone(&looks));
                Box::pin(async move {
                    let needed = [(ShardIndex(0), Seq(seq))];
                    let wait = links.wait(needed.to_vec(), move |links| {
                        looks.fetch_add(1, Ordering::Relaxed);
                        (links.holders(Level::Applied, &needed) > 0).then_some(())
                    });
                    bell.on(wait).await;
                })
            })
            .collect();
        for wait in &mut waits {
            assert!(wait.as_mut().poll(&mut Context::from_waker(&task_waker)).is_pending());
        }
        // Acks come one after another, each for ten clients.
        for acked in (10..=CLIENTS).step_by(10) {
            let before = cell.applied_seq.swap(acked, Ordering::Relaxed);
            links.passed(&cell, Seq(before), Seq(acked));
            assert!(attend.as_mut().poll(&mut Context::from_waker(&attendant_waker)).is_pending());
            for wait in waits.drain(..10) {
                let mut wait = wait;
                assert!(wait.as_mut().poll(&mut Context::from_waker(&task_waker)).is_ready());
            }
        }
        assert_eq!(attendant.0.load(Ordering::Relaxed), 100, "one ring per Ack");
        assert_eq!(tasks.0.load(Ordering::Relaxed), 1_000, "each client is woken once");
        assert_eq!(looks.load(Ordering::Relaxed), 2_000, "and looks twice: when it begins, when it is woken");
    }
}
