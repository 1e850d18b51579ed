//! Who changes the node's role: one thread, which owns it and takes orders one after another.
//!
//! Orders come from Redis clients, notices from links. Every change goes: check what can be checked, write
//! down what the node will be, then stop the old role and start the new one. An order that is refused
//! changes nothing.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::asking::{ANSWER_WITHIN, ask};
use super::memory::{LeaderAt, Memory, Remembered};
use super::owed::{EndsNode, Owed};
use super::role::{Parts, Running};
use super::switchover::{Abort, Ended, Switchover};
use crate::follower::{self, LeaderInfo};
use crate::inspect::ask::{Asked, bracketed};
use crate::links::{Notice, Phase};
use crate::resp::{Answer, FailoverState, Order};
use crate::stop::Stop;
use crate::store::Store;

/// How often a follower without any link looks whether its leader has moved.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How long it waits for an answer then: an order may come meanwhile.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the handing over of the lead may take where nobody says.
const SWITCHOVER_TIMEOUT: Duration = Duration::from_secs(10);

/// How the answer to an order begins that may be done or not; others that are no success say that it is not.
pub(super) const UNCERTAIN: &str = "UNCERTAIN";

/// A leader that nobody has replaced.
const LEADER: Remembered = Remembered::Leader { superseded_by_epoch: None };

pub(super) enum Event {
    Order(Order, Answer),
    Notice(Notice),
    Stop,
}

/// The way to the thread, for whoever ends it.
pub(super) struct Director {
    events: mpsc::Sender<Event>,
    abort: Abort,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Director {
    /// Takes orders from now on. `stop` is set if the node is left without a role.
    pub(super) fn start(parts: Parts, running: Running, memory: Memory, stop: Stop) -> anyhow::Result<Self> {
        let (events, inbox) = mpsc::channel();
        let abort = Abort::default();
        let node = Arc::downgrade(&parts.node);
        let (orders, ordered_abort) = (events.clone(), abort.clone());
        let listen = move |order, answer| take_order(&node, &orders, &ordered_abort, order, answer);
        parts.node.control.listen(listen);
        let notices = events.clone();
        // Whoever is stopping needs no notice.
        parts.links.notices.listen(move |notice| drop(notices.send(Event::Notice(notice))));
        let mut roles = Roles {
            parts,
            memory,
            abort: abort.clone(),
            running: Some(running),
            looked_at: Instant::now(),
            nobody_leads: false,
        };
        let run = move || {
            let _ends = EndsNode(stop);
            let result = roles.run(&inbox);
            if let Some(running) = roles.running.take() {
                running.stop();
            }
            result
        };
        let thread = std::thread::Builder::new().name("roles".to_owned()).spawn(run);
        Ok(Self { events, abort, thread: thread.context("no thread for changes of role")? })
    }

    /// Ends the role and the thread; an error if the node was left without a role.
    pub(super) fn join(self) -> anyhow::Result<()> {
        // A hand-over that still waits for its follower is given up.
        self.abort.ask();
        // A thread that has ended hears nothing, and needs not.
        drop(self.events.send(Event::Stop));
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// On a client's thread: what must not wait for the change under way is answered here.
fn take_order(
    node: &Weak<crate::resp::Node>,
    orders: &mpsc::Sender<Event>,
    abort: &Abort,
    order: Order,
    answer: Answer,
) {
    let Some(node) = node.upgrade() else { return };
    match (order, node.control.failover()) {
        (Order::AbortFailover, FailoverState::None) => {
            answer(Err("ERR No failover in progress.".to_owned()));
        }
        (Order::AbortFailover, _) if abort.ask() => answer(Ok("OK".to_owned())),
        (Order::AbortFailover, _) => {
            answer(Err("ERR FAILOVER is past the point where it can be aborted.".to_owned()));
        }
        (Order::Failover { .. }, FailoverState::WaitingForSync | FailoverState::InProgress) => {
            answer(Err("ERR FAILOVER already in progress.".to_owned()));
        }
        // A node that is stopping drops the answer, and the client is told so.
        (order, _) => drop(orders.send(Event::Order(order, answer))),
    }
}

/// What a node becomes goes into its log, too, behind all that waits there: whether there is space for that.
pub(super) fn check_log(store: &Store) -> Result<(), String> {
    store.sync_log().map_err(|error| format!("this node's log cannot hold a change of role: {error}"))
}

struct Roles {
    parts: Parts,
    memory: Memory,
    abort: Abort,
    /// None only while one role follows another.
    running: Option<Running>,
    /// When a follower without a link last looked for its leader.
    looked_at: Instant,
    /// Its leader was found to follow this node; said once.
    nobody_leads: bool,
}

impl Roles {
    fn run(&mut self, inbox: &mpsc::Receiver<Event>) -> anyhow::Result<()> {
        loop {
            match inbox.recv_timeout(LOOK_INTERVAL) {
                Ok(Event::Order(order, answer)) => self.obey(order, answer)?,
                Ok(Event::Notice(Notice::Moved { leader })) => self.move_to(leader)?,
                Ok(Event::Notice(Notice::Superseded)) => self.remember_successor(),
                Ok(Event::Notice(Notice::Failed)) => {
                    anyhow::bail!("this node cannot go on in its role; the log says why")
                }
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.looked_at.elapsed() >= LOOK_INTERVAL {
                self.look_for_leader()?;
                self.looked_at = Instant::now();
            }
        }
    }

    fn leader(&self) -> Option<&LeaderAt> {
        self.running.as_ref().and_then(Running::leader)
    }

    fn obey(&mut self, order: Order, answer: Answer) -> anyhow::Result<()> {
        let answer = Owed::new(answer);
        let done = match order {
            Order::Lead => match self.lead() {
                Ok(done) => done,
                Err(error) => {
                    // It may be written down already, and the next start finishes it.
                    answer.give(Err(format!(
                        "{UNCERTAIN} this node ends before it leads, and may lead: {error:#}"
                    )));
                    return Err(error);
                }
            },
            Order::Follow { host, port } => self.follow(&host, port)?,
            Order::Failover { to, timeout } => {
                match Switchover::new(&self.parts, self.leader().is_some(), to) {
                    Err(error) => Err(error),
                    Ok(switchover) => {
                        self.abort.open();
                        self.parts.node.control.set_failover(FailoverState::WaitingForSync);
                        answer.give(Ok("OK".to_owned()));
                        return self.hand_over(switchover, timeout.unwrap_or(SWITCHOVER_TIMEOUT));
                    }
                }
            }
            Order::AbortFailover => Err("No failover in progress.".to_owned()),
        };
        answer.give(done.map_err(|text| format!("ERR {text}")));
        Ok(())
    }

    /// Lets the node lead from what it holds; the inner error is the client's.
    fn lead(&mut self) -> anyhow::Result<Result<String, String>> {
        let Some(leader) = self.leader().cloned() else { return self.lead_again() };
        if let Err(error) = self.parts.store.check_promote() {
            return Ok(Err(format!("this node cannot lead: {error}")));
        }
        if let Err(error) = check_log(&self.parts.store) {
            return Ok(Err(error));
        }
        self.stop_role();
        // Once more, now that nothing changes any more; then written down, so that a kill between two
        // shards leaves a promotion that the next start finishes.
        let kept = match self.parts.store.check_promote() {
            Err(error) => Err(format!("this node cannot lead: {error}")),
            Ok(()) => self.memory.keep(&LEADER).map_err(|error| format!("role.json: {error}")),
        };
        if let Err(text) = kept {
            self.running = Some(Running::follow(&self.parts, leader)?);
            return Ok(Err(text));
        }
        self.parts.store.promote_rest().context("a shard has changed while nobody changes it")?;
        self.running = Some(Running::lead(&self.parts, None)?);
        let epoch = self.parts.store.shards().map(|shard| self.parts.store.stats(shard).epoch).max();
        tracing::warn!(epoch, followed = leader.replication, "promoted: this node leads now");
        Ok(Ok("OK".to_owned()))
    }

    /// A leader that has met its successor, and takes no writes since, leads again in an epoch of its own. One that
    /// waits for what a crash took waits no longer.
    fn lead_again(&mut self) -> anyhow::Result<Result<String, String>> {
        if self.parts.store.is_regaining() {
            tracing::warn!("told to lead with what has come back so far: what is missing is lost");
            self.parts.store.end_regain().context("this node cannot lead")?;
            self.parts.store.begin_writes();
        }
        if let Some(epoch) = self.parts.links.superseded_by_epoch() {
            // Its links are of the epoch that ends here.
            self.stop_role();
            self.parts.store.lead_past(epoch).context("this node cannot lead again")?;
            if let Err(error) = self.memory.keep(&LEADER) {
                // An epoch that the store is past means nothing at the next start.
                tracing::warn!(%error, "role.json still says that this leader was replaced");
            }
            self.running = Some(Running::lead(&self.parts, None)?);
            tracing::warn!(
                past = epoch,
                "this node leads again, in a newer epoch than the one it had heard of"
            );
        }
        Ok(Ok("OK".to_owned()))
    }

    /// A leader that was replaced stays one that takes no writes, also after a restart.
    fn remember_successor(&mut self) {
        let superseded_by_epoch = self.parts.links.superseded_by_epoch();
        // It may lead again by now, or follow.
        if superseded_by_epoch.is_none() || self.leader().is_some() {
            return;
        }
        if let Err(error) = self.memory.keep(&Remembered::Leader { superseded_by_epoch }) {
            tracing::error!(%error, "role.json: a restart would let this leader take writes, and it was replaced");
        }
    }

    /// Follows the node that answers Redis clients there.
    fn follow(&mut self, host: &str, port: u16) -> anyhow::Result<Result<String, String>> {
        let (leader, epoch) = match self.find_leader(host, port) {
            Ok(found) => found,
            Err(text) => return Ok(Err(text)),
        };
        if self.leader() == Some(&leader) {
            return Ok(Ok("OK Already connected to specified master".to_owned()));
        }
        if let Err(error) = self.change_leader(leader)? {
            self.heard_of(epoch);
            return Ok(Err(error));
        }
        Ok(Ok("OK".to_owned()))
    }

    /// A leader that cannot follow its successor must not go on beside it.
    fn heard_of(&self, epoch: u64) {
        if self.leader().is_some() || epoch <= super::epoch_seen(&self.parts.store) {
            return;
        }
        if self.parts.links.supersede(epoch) {
            tracing::error!(epoch, "this leader was replaced: it takes no writes any more");
        }
        self.parts.store.stop_writes();
    }

    /// Asks the node there where it takes followers, and whether it would take this one; the leader's epoch.
    fn find_leader(&self, host: &str, port: u16) -> Result<(LeaderAt, u64), String> {
        let (host, store) = (bracketed(host), Arc::clone(&self.parts.store));
        let address = format!("{host}:{port}");
        let (run_id, standing) = (self.parts.node.run_id.clone(), self.standing());
        ask(&self.parts.view.stop, &address.clone(), move || {
            let info = Asked::new(&address, ANSWER_WITHIN).map_err(|error| error.to_string())?.info;
            if info.run_id == run_id {
                return Err(format!("{address} is this node itself"));
            }
            if let Some(leader) = info.follows {
                return Err(format!(
                    "{address} follows {leader}; let it lead first (REPLICAOF NO ONE there, or FAILOVER at its leader)"
                ));
            }
            let replication = format!("{host}:{}", info.replication_port);
            let epoch = check_leader(&replication, &store, standing)?.epoch;
            Ok((LeaderAt { replication, resp_port: port }, epoch))
        })
    }

    fn standing(&self) -> Standing {
        match self.leader() {
            None => Standing::Leads,
            Some(_) if self.has_a_leader() => Standing::Led,
            Some(_) => Standing::Alone,
        }
    }

    /// Whether somebody leads this node now.
    fn has_a_leader(&self) -> bool {
        let is_up = |phase| matches!(phase, Phase::Scan | Phase::CatchUp | Phase::Stream);
        self.leader().is_some() && self.parts.links.all().iter().any(|cell| is_up(cell.phase()))
    }

    /// From one role to following; the inner error says that nothing has changed.
    fn change_leader(&mut self, leader: LeaderAt) -> anyhow::Result<Result<(), String>> {
        if self.leader().is_none()
            && let Err(error) = check_log(&self.parts.store)
        {
            return Ok(Err(error));
        }
        if let Err(error) = self.memory.keep(&Remembered::Follower(leader.clone())) {
            return Ok(Err(format!("role.json: {error}")));
        }
        // Before the role's threads end: no write may come behind what followers were sent.
        self.parts.store.stop_writes();
        self.stop_role();
        tracing::warn!(leader = leader.replication, "this node follows now");
        self.running = Some(Running::follow(&self.parts, leader)?);
        Ok(Ok(()))
    }

    fn stop_role(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }

    /// Who was followed says where the leader is. Only one that does lead this store is gone to.
    fn move_to(&mut self, replication: String) -> anyhow::Result<()> {
        if self.leader().is_none_or(|leader| leader.replication == replication) {
            return Ok(());
        }
        let (store, at) = (Arc::clone(&self.parts.store), replication.clone());
        // Nobody has said that it is to lead: one that was replaced is told so.
        let check = move || check_leader(&at, &store, Standing::Led);
        let checked = ask(&self.parts.view.stop, &replication, check);
        match checked {
            Ok(info) => {
                let leader = LeaderAt { replication, resp_port: info.resp_port };
                if let Err(error) = self.change_leader(leader)? {
                    tracing::error!(%error, "the leader has moved, and this node cannot follow it");
                }
            }
            Err(error) => tracing::info!(%error, "a leader that was named does not lead"),
        }
        Ok(())
    }

    /// A follower without any link asks where its leader served Redis clients: that node may take followers
    /// at another port by now, or follow another one.
    fn look_for_leader(&mut self) -> anyhow::Result<()> {
        let Some(leader) = self.leader().cloned() else { return Ok(()) };
        if self.has_a_leader() {
            self.nobody_leads = false;
            return Ok(());
        }
        let cells = self.parts.links.all();
        let heard = cells.iter().map(|cell| cell.leader_resp_port.load(Relaxed)).max().unwrap_or(0);
        let (run_id, asked) = (self.parts.node.run_id.clone(), leader.clone());
        let look = move || Ok(look_for(&asked, heard, &run_id));
        match ask(&self.parts.view.stop, &leader.replication, look) {
            Ok(Seen::At(replication)) => self.move_to(replication)?,
            Ok(Seen::Follows) => {
                if !std::mem::replace(&mut self.nobody_leads, true) {
                    let leader = leader.replication;
                    tracing::error!(
                        leader,
                        "nobody leads: this node's leader follows this node; promote one of the two"
                    );
                }
            }
            Ok(Seen::Nothing) | Err(_) => {}
        }
        Ok(())
    }

    fn hand_over(&mut self, mut switchover: Switchover, timeout: Duration) -> anyhow::Result<()> {
        let node = Arc::clone(&self.parts.node);
        let target = switchover.target().clone();
        let ended = switchover.run(&self.parts, &self.memory, &self.abort, timeout);
        let changes = &self.parts.view.changes;
        match &ended {
            Ended::Done { .. } => changes.switchovers_done.fetch_add(1, Relaxed),
            Ended::GivenUp { .. } | Ended::Unknown { .. } => changes.switchovers_failed.fetch_add(1, Relaxed),
        };
        node.control.set_last_failover(ended.to_string());
        match ended {
            Ended::GivenUp { .. } => tracing::warn!(to = target.replication, "switchover: {ended}"),
            Ended::Done { .. } => tracing::warn!(to = target.replication, "switchover: {ended}"),
            Ended::Unknown { .. } => tracing::error!(to = target.replication, "switchover: {ended}"),
        }
        let follows = !matches!(ended, Ended::GivenUp { .. });
        if follows {
            self.stop_role();
            self.running = Some(Running::follow(&self.parts, target)?);
        }
        node.control.set_failover(FailoverState::None);
        Ok(())
    }
}

/// What a follower has seen of a leader to which it has no link.
enum Seen {
    Nothing,
    /// It follows this node.
    Follows,
    /// It, or the one that it follows, takes followers there.
    At(String),
}

/// Asks where `leader` served Redis clients; `heard` is the port that its links named.
fn look_for(leader: &LeaderAt, heard: u16, run_id: &str) -> Seen {
    let port = if leader.resp_port == 0 { heard } else { leader.resp_port };
    let host = leader.replication.rsplit_once(':').map_or("", |(host, _)| host);
    if port == 0 {
        return Seen::Nothing;
    }
    let ask = |address: &str| Asked::new(address, LOOK_TIMEOUT).map(|asked| asked.info);
    let Ok(info) = ask(&format!("{host}:{port}")) else { return Seen::Nothing };
    match info.follows {
        // It leads, and somebody named the way to it, which may be no direct one.
        None if leader.resp_port == 0 => Seen::Nothing,
        None => Seen::At(format!("{host}:{}", info.replication_port)),
        Some(next) => match ask(&next) {
            Ok(found) if found.run_id == run_id => Seen::Follows,
            Ok(found) if found.follows.is_none() => {
                let host = next.rsplit_once(':').map_or("", |(host, _)| host);
                Seen::At(format!("{host}:{}", found.replication_port))
            }
            _ => Seen::Nothing,
        },
    }
}

/// What is known of a leader, where a node is told to follow one of an older epoch.
#[derive(Debug, Clone, Copy)]
enum Standing {
    /// There is another one.
    Led,
    /// This node follows one that is not there.
    Alone,
    /// It is this node, which is to lead no longer.
    Leads,
}

/// Whether who takes followers there leads this node's store. Where another one leads, it is told that it was
/// replaced: the sooner it knows, the fewer writes it takes that will be dropped. Where none does, it is the one
/// that is wanted as leader, and to refuse this node must not stop its writes.
fn check_leader(replication: &str, store: &Store, standing: Standing) -> Result<LeaderInfo, String> {
    let info = follower::probe(replication, ANSWER_WITHIN).map_err(|error| error.to_string())?;
    super::check_store(replication, &info, store)?;
    super::check_epoch(replication, &info, store).map_err(|error| {
        let id = store.store_id();
        let kept = match standing {
            Standing::Led => return tell(replication, store, error),
            Standing::Alone => "promote this node (REPLICAOF NO ONE) and send REPLICAOF to that one",
            Standing::Leads => "send REPLICAOF to that one, for it to follow this node",
        };
        format!(
            "{error}; nothing was changed at either: to keep what this node holds, {kept}; to drop it, start this \
             node as a follower of that one with --accept-store {id}"
        )
    })?;
    Ok(info)
}

/// Tells a leader that it was replaced; the error with what came of it.
fn tell(replication: &str, store: &Store, error: String) -> String {
    let seen = super::epoch_seen(store);
    match follower::tell_epoch(replication, store.store_id(), seen, ANSWER_WITHIN) {
        Ok(()) => {
            format!("{error}, whose leader it follows; that one was told so, and takes no writes any more")
        }
        Err(told) => {
            tracing::info!(error = %told, "a leader that was replaced could not be told");
            error
        }
    }
}
