//! What clients may ask of the node's role, and what the server must know while it changes.
//!
//! The server changes no role: REPLICAOF and FAILOVER become an [`Order`] for whoever runs the node. While
//! a leader hands over, clients' writes are held back: they wait, and are done or refused when the node
//! says which.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// A change of role that a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Lead from what is held.
    Lead,
    /// Follow the node that answers Redis clients there.
    Follow {
        /// Its host.
        host: String,
        /// Its RESP port.
        port: u16,
    },
    /// Hand the lead over to a follower.
    Failover {
        /// Where it answers Redis clients; `None`: any that can take over.
        to: Option<(String, u16)>,
        /// How long it may take until it is given up.
        timeout: Option<Duration>,
    },
    /// Give up the hand-over under way.
    AbortFailover,
}

/// Takes the reply to an order: what follows `+`, or what follows `-`.
pub type Answer = Box<dyn FnOnce(Result<String, String>) + Send>;

type Listener = Box<dyn Fn(Order, Answer) + Send + Sync>;

/// How far a hand-over is; the words of INFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FailoverState {
    /// None is under way.
    None = 0,
    /// The chosen follower has not everything yet.
    WaitingForSync = 1,
    /// The follower was told to lead.
    InProgress = 2,
}

impl FailoverState {
    /// INFO's `master_failover_state`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "no-failover",
            Self::WaitingForSync => "waiting-for-sync",
            Self::InProgress => "failover-in-progress",
        }
    }
}

/// The state that server and node share.
#[derive(Default)]
pub struct Control {
    listener: OnceLock<Listener>,
    failover: AtomicU8,
    last_failover: Mutex<String>,
    are_writes_held: AtomicBool,
    /// Writes are no longer held, or the role is another.
    changed: Notify,
}

impl Control {
    /// Hands every order to `listener`, on a client's thread: it must not block. The first listener stays.
    pub fn listen(&self, listener: impl Fn(Order, Answer) + Send + Sync + 'static) {
        drop(self.listener.set(Box::new(listener)));
    }

    /// Passes an order on.
    pub(super) fn order(&self, order: Order, answer: Answer) {
        match self.listener.get() {
            Some(listener) => listener(order, answer),
            None => answer(Err("ERR this server's role cannot be changed".to_owned())),
        }
    }

    /// How far a hand-over is.
    #[must_use]
    pub fn failover(&self) -> FailoverState {
        match self.failover.load(Ordering::Relaxed) {
            1 => FailoverState::WaitingForSync,
            2 => FailoverState::InProgress,
            _ => FailoverState::None,
        }
    }

    /// Publishes how far a hand-over is.
    pub fn set_failover(&self, state: FailoverState) {
        self.failover.store(state as u8, Ordering::Relaxed);
    }

    /// How the last hand-over ended; empty if there was none.
    #[must_use]
    pub fn last_failover(&self) -> String {
        self.last_failover.lock().clone()
    }

    /// Publishes how a hand-over ended, in one line.
    pub fn set_last_failover(&self, outcome: String) {
        *self.last_failover.lock() = outcome.replace(['\r', '\n'], " ");
    }

    /// Lets writes wait instead of being refused; the store must refuse them from then on.
    pub fn hold_writes(&self) {
        self.are_writes_held.store(true, Ordering::SeqCst);
    }

    /// Lets the writes that wait be done, or be refused by the store: whatever it says now.
    pub fn release_writes(&self) {
        self.are_writes_held.store(false, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// The role is another: whoever waits looks again.
    pub fn role_changed(&self) {
        self.changed.notify_waiters();
    }

    /// Whether a write that the store refuses should wait.
    #[cold]
    pub(super) fn are_writes_held(&self) -> bool {
        self.are_writes_held.load(Ordering::SeqCst)
    }

    /// Waits until `is_over` holds, which is looked at whenever something has changed.
    pub(super) async fn until(&self, is_over: impl Fn() -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Listening before the look, so that a change in between is not missed.
            changed.as_mut().enable();
            if is_over() {
                return;
            }
            changed.await;
        }
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field("failover", &self.failover())
            .field("are_writes_held", &self.are_writes_held())
            .finish_non_exhaustive()
    }
}
