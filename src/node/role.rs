//! A role while it lasts: its threads, started and stopped as one. The store, Redis clients and HTTP are the
//! node's and go on through every change.
//!
//! The replication port is served in both roles: whoever follows refuses followers and says where the leader
//! is.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context as _;
use indicatif::MultiProgress;

use super::memory::LeaderAt;
use super::{progress, sweep};
use crate::follower::{self, Follower};
use crate::leader::{self, Leader};
use crate::links::Links;
use crate::resp;
use crate::status::{Role, View};
use crate::stop::Stop;
use crate::store::Store;

/// What every role of a node works with.
pub(super) struct Parts {
    pub(super) store: Arc<Store>,
    pub(super) links: Arc<Links>,
    pub(super) view: Arc<View>,
    /// What Redis clients are told.
    pub(super) node: Arc<resp::Node>,
    pub(super) replication: TcpListener,
    pub(super) bars: MultiProgress,
    pub(super) leader_options: leader::Options,
    pub(super) follower_options: follower::Options,
}

/// A role under way.
pub(super) struct Running {
    stop: Stop,
    port: Leader,
    kind: Kind,
}

enum Kind {
    Leading { sweep: JoinHandle<()> },
    Following { leader: LeaderAt, follower: Follower, progress: JoinHandle<()> },
}

impl Running {
    /// Leads: the store takes writes from the moment that followers can come, unless another one leads in a
    /// newer epoch.
    pub(super) fn lead(parts: &Parts, superseded_by_epoch: Option<u64>) -> anyhow::Result<Self> {
        let stop = Stop::new();
        parts.links.forget_superseded();
        match superseded_by_epoch {
            None => parts.store.set_read_only(false),
            Some(epoch) => {
                parts.links.supersede(epoch);
                parts.store.stop_writes();
            }
        }
        let port = open_port(parts, None, &stop)?;
        let sweep =
            sweep::start(Arc::clone(&parts.store), &stop).context("no thread for the expiry sweep")?;
        parts.show(None);
        Ok(Self { stop, port, kind: Kind::Leading { sweep } })
    }

    /// Follows: the store takes changes from that leader only.
    pub(super) fn follow(parts: &Parts, leader: LeaderAt) -> anyhow::Result<Self> {
        let stop = Stop::new();
        parts.store.demote().context("this node cannot follow")?;
        parts.links.forget_superseded();
        parts.show(Some(&leader));
        let port = open_port(parts, Some(leader.replication.clone()), &stop)?;
        let follower = Follower::start(
            Arc::clone(&parts.store),
            leader.replication.clone(),
            parts.follower_options.clone(),
            Arc::clone(&parts.links),
            stop.clone(),
        )
        .context("the leader cannot be followed")?;
        let progress = progress::start(Arc::clone(&parts.links), parts.bars.clone(), &stop)
            .context("no thread for the progress display")?;
        Ok(Self { stop, port, kind: Kind::Following { leader, follower, progress } })
    }

    /// Whom the node follows; `None`: it leads.
    pub(super) fn leader(&self) -> Option<&LeaderAt> {
        match &self.kind {
            Kind::Leading { .. } => None,
            Kind::Following { leader, .. } => Some(leader),
        }
    }

    /// Ends the role's threads and all its links.
    pub(super) fn stop(self) {
        self.stop.set();
        self.port.join();
        let helper = match self.kind {
            Kind::Leading { sweep } => sweep,
            Kind::Following { follower, progress, .. } => {
                follower.join();
                progress
            }
        };
        if helper.join().is_err() {
            tracing::error!("a thread of the role has panicked");
        }
    }
}

fn open_port(parts: &Parts, leader: Option<String>, stop: &Stop) -> anyhow::Result<Leader> {
    let options = leader::Options { leader, ..parts.leader_options.clone() };
    let listener = parts.replication.try_clone().context("the replication port cannot be served")?;
    Leader::start(Arc::clone(&parts.store), listener, options, Arc::clone(&parts.links), stop.clone())
        .context("followers cannot be served")
}

impl Parts {
    /// Tells everybody who asks what the node is.
    pub(super) fn show(&self, leader: Option<&LeaderAt>) {
        let role = if leader.is_some() { Role::Follower } else { Role::Leader };
        self.view.set_role(role, leader.map(|leader| leader.replication.clone()));
        self.node.set_role(match leader {
            None => resp::Role::Leader,
            Some(leader) => {
                resp::Role::Follower { leader: leader.replication.clone(), resp_port: leader.resp_port }
            }
        });
    }
}
