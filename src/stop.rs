//! Floor 0: one stop signal for all threads of a node.
//!
//! A thread polls [`Stop::is_set`] and registers with [`Stop::on_stop`] whatever wakes it from its
//! longest sleep, so that an orderly stop never waits for a timeout.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

type Hook = Box<dyn FnOnce() + Send>;

/// A signal that is set once; clones share it.
#[derive(Clone, Default)]
pub struct Stop {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    set: AtomicBool,
    hooks: Mutex<Vec<Hook>>,
}

impl Stop {
    /// A signal that is not set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether [`Stop::set`] was called.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.shared.set.load(Ordering::Acquire)
    }

    /// Sets the signal and runs every hook once.
    pub fn set(&self) {
        let hooks = {
            let mut hooks = self.shared.hooks.lock();
            self.shared.set.store(true, Ordering::Release);
            std::mem::take(&mut *hooks)
        };
        for hook in hooks {
            hook();
        }
    }

    /// Runs `hook` when the signal is set; at once if it is set already.
    pub fn on_stop(&self, hook: impl FnOnce() + Send + 'static) {
        let mut hooks = self.shared.hooks.lock();
        // Under the lock, so that a concurrent `set` either sees this hook or is seen here.
        if self.is_set() {
            drop(hooks);
            hook();
        } else {
            hooks.push(Box::new(hook));
        }
    }
}

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stop").field("set", &self.is_set()).finish()
    }
}
