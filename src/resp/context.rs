//! What the server needs to know of its node; made by whoever starts it.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use uuid::Uuid;

use super::control::Control;
use crate::links::Links;
use crate::saves::Saves;
use crate::stop::Stop;
use crate::store::Store;

/// Which end of replication the node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Takes writes.
    Leader,
    /// Follows another node and refuses writes.
    Follower {
        /// Where the leader takes followers, `host:port`.
        leader: String,
        /// Where it answers Redis clients, on the same host; 0 = it has not said yet.
        resp_port: u16,
    },
}

/// Facts of the node that clients may ask for.
#[derive(Debug)]
pub struct Node {
    /// Which end of replication the node is; changes at run time, see [`Node::set_role`].
    pub role: RwLock<Role>,
    /// How clients change it, and what holds while it changes.
    pub control: Control,
    /// The backups that clients ask for.
    pub saves: Arc<Saves>,
    /// Names the node in its leader's figures.
    pub node_id: Uuid,
    /// Where the node takes followers, or would; 0 = nowhere.
    pub replication_port: u16,
    /// Identity of this run of the process: 40 hexadecimal digits.
    pub run_id: String,
    /// When the process started.
    pub started: Instant,
    /// The same in Unix seconds.
    pub started_unix_s: u64,
    /// What CONFIG GET answers beside the server's own names: name and value.
    pub config: Vec<(String, String)>,
}

impl Node {
    /// Facts of a process that starts now.
    #[must_use]
    pub fn new(role: Role) -> Self {
        let random = [Uuid::new_v4(), Uuid::new_v4()].map(|id| id.simple().to_string()).concat();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            role: RwLock::new(role),
            control: Control::default(),
            saves: Arc::default(),
            node_id: Uuid::new_v4(),
            replication_port: 0,
            run_id: random[..40].to_owned(),
            started: Instant::now(),
            started_unix_s: since.as_secs(),
            config: Vec::new(),
        }
    }

    /// The node is something else from now on.
    pub fn set_role(&self, role: Role) {
        *self.role.write() = role;
        self.control.role_changed();
    }

    /// Whether the node follows.
    #[must_use]
    pub fn follows(&self) -> bool {
        matches!(*self.role.read(), Role::Follower { .. })
    }

    /// Milliseconds since the start.
    #[must_use]
    pub fn uptime_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// What the server works on. Clones share it.
#[derive(Clone)]
pub struct Context {
    /// The records.
    pub store: Arc<Store>,
    /// The replication links that INFO, ROLE and WAIT report.
    pub links: Arc<Links>,
    /// Ends the server.
    pub stop: Stop,
    /// What clients may ask about the node.
    pub node: Arc<Node>,
    /// What SHUTDOWN does.
    pub shutdown: Arc<dyn Fn() + Send + Sync>,
}

impl Context {
    /// A leader on its own, whose SHUTDOWN sets `stop`; for embedding and tests.
    #[must_use]
    pub fn standalone(store: Arc<Store>, stop: Stop) -> Self {
        let shutdown = {
            let stop = stop.clone();
            Arc::new(move || stop.set())
        };
        let node = Arc::new(Node::new(Role::Leader));
        Self { store, links: Links::new(), stop, node, shutdown }
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("store", &self.store)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}
