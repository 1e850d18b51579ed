//! What a link learns that its node must act on: a link itself changes no role.
//!
//! One listener per node. Notices repeat (each shard's link learns the same), so acting on one twice must
//! do no harm.

use std::sync::OnceLock;

/// What a link has learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A follower's: who was taken for the leader says that another one is, `HOST:PORT`.
    Moved {
        /// Where that one takes followers.
        leader: String,
    },
    /// A leader's: a newer epoch has begun. [`super::Links::superseded_by_epoch`] says which.
    Superseded,
    /// The node cannot go on, and the log says why. Its process must end.
    Failed,
}

/// The way from links to their node.
#[derive(Default)]
pub struct Notices {
    listener: OnceLock<Box<dyn Fn(Notice) + Send + Sync>>,
}

impl Notices {
    /// Calls `listener` for each notice from now on, on a replication thread: it must not block. The first
    /// listener stays.
    pub fn listen(&self, listener: impl Fn(Notice) + Send + Sync + 'static) {
        drop(self.listener.set(Box::new(listener)));
    }

    /// Tells the node; nobody else needs to know.
    pub(crate) fn tell(&self, notice: Notice) {
        if let Some(listener) = self.listener.get() {
            listener(notice);
        }
    }
}

impl std::fmt::Debug for Notices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notices").field("is_heard", &self.listener.get().is_some()).finish()
    }
}
