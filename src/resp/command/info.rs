//! INFO, with Redis's sections and field names, so that exporters and dashboards work unchanged.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::super::worker::Worker;
use super::client::REDIS_VERSION;
use crate::links::{LinkCell, Links, Phase};
use crate::resp::context::{Context, Role};
use crate::slot::{Seq, ShardIndex};
use crate::store::{LogState, Store};

/// A connected follower, over all its links.
pub(super) struct Follower {
    pub(super) ip: IpAddr,
    /// Its RESP port.
    pub(super) port: u16,
    /// Sum of the seqs that it has applied.
    pub(super) offset: u64,
    /// The phase of the link that is least far.
    phase: Phase,
    /// The longest of its links.
    lag_ms: u64,
    /// The sum of its links.
    lag_records: u64,
    lag_bytes: u64,
}

/// A leader's followers that serve Redis clients, in a stable order. What else takes its shards, as a backup does, is no
/// replica: clients would look for one at port 0.
pub(super) fn followers(store: &Store, links: &Links) -> Vec<Follower> {
    // A follower that came back before its old link timed out has two for a shard: the better one counts.
    let mut best: BTreeMap<(Uuid, u16), Arc<LinkCell>> = BTreeMap::new();
    let applied = |cell: &LinkCell| cell.applied_seq.load(Ordering::Relaxed);
    for cell in links.all() {
        if cell.resp_port == 0 || matches!(cell.phase(), Phase::Closed | Phase::Refused) {
            continue;
        }
        let known = best.entry((cell.follower, cell.shard)).or_insert_with(|| Arc::clone(&cell));
        if applied(&cell) > applied(known) {
            *known = cell;
        }
    }
    let mut by_id: BTreeMap<Uuid, Follower> = BTreeMap::new();
    let now = store.clock().now();
    for cell in best.values() {
        let follower = by_id.entry(cell.follower).or_insert_with(|| Follower {
            ip: cell.peer.ip(),
            port: cell.resp_port,
            offset: 0,
            phase: Phase::Stream,
            lag_ms: 0,
            lag_records: 0,
            lag_bytes: 0,
        });
        let stats = store.stats(ShardIndex(cell.shard));
        let record_bytes_max = store.geometry().image_size_max() as u64;
        let lag = links.lag(cell, Seq(stats.seq), stats.slots_formatted, record_bytes_max, now);
        follower.offset += applied(cell);
        if (cell.phase() as u8) < follower.phase as u8 {
            follower.phase = cell.phase();
        }
        follower.lag_ms = follower.lag_ms.max(lag.ms);
        follower.lag_records += lag.records;
        follower.lag_bytes = follower.lag_bytes.saturating_add(lag.bytes);
    }
    by_id.into_values().collect()
}

/// What a follower has of its leader, over all shards.
pub(super) struct LeaderLink {
    /// ROLE's word.
    pub(super) state: &'static str,
    is_up: bool,
    is_scanning: bool,
    last_io_unix_ms: u64,
    /// Why either side refused the other, if one did.
    refusal: String,
}

pub(super) fn leader_link(links: &Links) -> LeaderLink {
    let cells = links.all();
    let any = |phase: Phase| cells.iter().any(|cell| cell.phase() == phase);
    let is_up = !cells.is_empty()
        && cells.iter().all(|cell| matches!(cell.phase(), Phase::Scan | Phase::CatchUp | Phase::Stream));
    let is_scanning = any(Phase::Scan) || any(Phase::CatchUp);
    let refused = cells.iter().find(|cell| cell.phase() == Phase::Refused);
    let last_io = |cell: &Arc<LinkCell>| cell.last_io_unix_ms.load(Ordering::Relaxed);
    LeaderLink {
        state: match (is_up, is_scanning) {
            (false, _) => "connecting",
            (true, true) => "sync",
            (true, false) => "connected",
        },
        is_up,
        is_scanning,
        last_io_unix_ms: cells.iter().map(last_io).max().unwrap_or(0),
        refusal: refused.map_or_else(String::new, |cell| cell.reason.lock().clone()),
    }
}

/// One figure for how far the store has come: the sum of its shards' seqs.
pub(super) fn offset(store: &Store) -> u64 {
    store.shards().map(|shard: ShardIndex| store.head(shard).0).sum()
}

/// Where a follower's leader answers Redis clients, as far as that is known; else where it takes followers.
pub(super) fn leader_address<'a>(links: &Links, leader: &'a str, resp_port: u16) -> (&'a str, u16) {
    let (host, replication_port) = host_port(leader);
    let heard = || links.all().iter().map(|cell| cell.leader_resp_port.load(Ordering::Relaxed)).max();
    let known = [resp_port, heard().unwrap_or(0), replication_port];
    (host, known.into_iter().find(|port| *port != 0).unwrap_or(0))
}

/// `host:port`, with `[` and `]` around an IPv6 host taken away.
pub(super) fn host_port(address: &str) -> (&str, u16) {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    (host.trim_start_matches('[').trim_end_matches(']'), port.parse().unwrap_or(0))
}

type Section = fn(&Worker, &mut String) -> std::fmt::Result;

const SECTIONS: [(&str, Section); 9] = [
    ("Server", server),
    ("Clients", clients),
    ("Memory", memory),
    ("Persistence", persistence),
    ("Stats", stats),
    ("Replication", replication),
    ("CPU", cpu),
    ("Commandstats", command_stats),
    ("Keyspace", keyspace),
];
/// Shown only when asked for.
const EXTRA: &str = "Commandstats";

/// The sections asked for; the usual ones if none is named.
pub(super) fn render<'a>(worker: &Worker, names: impl Iterator<Item = &'a [u8]> + Clone) -> String {
    let asked = |word: &str| names.clone().any(|name| name.eq_ignore_ascii_case(word.as_bytes()));
    let is_default = names.clone().next().is_none() || asked("default");
    let is_all = asked("all") || asked("everything");
    let mut text = String::with_capacity(4096);
    for (name, section) in SECTIONS {
        if !(is_all || asked(name) || (is_default && name != EXTRA)) {
            continue;
        }
        if !text.is_empty() {
            text.push_str("\r\n");
        }
        text.push_str("# ");
        text.push_str(name);
        text.push_str("\r\n");
        section(worker, &mut text).expect("writing to a string does not fail");
    }
    text
}

fn server(worker: &Worker, text: &mut String) -> std::fmt::Result {
    let node = &worker.context.node;
    let uptime_s = node.uptime_ms() / 1000;
    write!(text, "redis_version:{REDIS_VERSION}\r\n")?;
    write!(text, "server_name:slotstream\r\n")?;
    write!(text, "slotstream_version:{}\r\n", env!("CARGO_PKG_VERSION"))?;
    write!(text, "redis_mode:standalone\r\n")?;
    write!(text, "os:{} {}\r\n", std::env::consts::OS, std::env::consts::ARCH)?;
    write!(text, "arch_bits:{}\r\n", usize::BITS)?;
    write!(text, "process_id:{}\r\n", std::process::id())?;
    write!(text, "run_id:{}\r\n", node.run_id)?;
    write!(text, "tcp_port:{}\r\n", worker.address.port())?;
    write!(text, "server_time_usec:{}\r\n", worker.context.store.clock().unix_ms() * 1000)?;
    write!(text, "uptime_in_seconds:{uptime_s}\r\n")?;
    write!(text, "uptime_in_days:{}\r\n", uptime_s / 86_400)?;
    write!(text, "start_time_unix:{}\r\n", node.started_unix_s)?;
    write!(text, "io_threads_active:{}\r\n", worker.options.workers)
}

fn clients(worker: &Worker, text: &mut String) -> std::fmt::Result {
    write!(text, "connected_clients:{}\r\n", worker.clients.count())?;
    write!(text, "maxclients:{}\r\n", worker.options.clients_max)?;
    write!(text, "blocked_clients:0\r\n")
}

fn memory(worker: &Worker, text: &mut String) -> std::fmt::Result {
    let resident = resident_bytes();
    let store = &worker.context.store;
    let (files, derived) = store
        .shards()
        .map(|shard| store.stats(shard))
        .fold((0, 0), |(files, derived), stats| (files + stats.file_bytes, derived + stats.memory_bytes));
    write!(text, "used_memory:{resident}\r\n")?;
    write!(text, "used_memory_rss:{resident}\r\n")?;
    write!(text, "used_memory_index:{derived}\r\n")?;
    write!(text, "used_disk:{files}\r\n")?;
    write!(text, "maxmemory:0\r\n")?;
    write!(text, "maxmemory_policy:noeviction\r\n")?;
    write!(text, "mem_fragmentation_ratio:1.00\r\n")
}

/// Resident memory as the kernel counts it, mapped slots included; 0 if it does not say.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

fn persistence(worker: &Worker, text: &mut String) -> std::fmt::Result {
    let is_regaining = worker.context.store.is_regaining();
    write!(text, "loading:{}\r\n", u8::from(is_regaining))?;
    write!(text, "async_loading:0\r\n")?;
    saves(worker, text)?;
    let log = worker.context.store.log_stats();
    write!(text, "aof_enabled:{}\r\n", u8::from(log.is_some()))?;
    let durability = worker.context.store.durability();
    write!(text, "slotstream_durability:{}\r\n", durability.level())?;
    if let Some(interval) = durability.interval() {
        write!(text, "slotstream_durability_interval_ms:{}\r\n", interval.as_millis())?;
    }
    if let Some(log) = log {
        let status = if log.state == LogState::Going { "ok" } else { "err" };
        write!(text, "aof_last_write_status:{status}\r\n")?;
        write!(text, "aof_current_segments:{}\r\n", log.segments)?;
    }
    write!(text, "aof_rewrite_in_progress:0\r\n")
}

/// Backups in the words that Redis has for its dumps.
fn saves(worker: &Worker, text: &mut String) -> std::fmt::Result {
    let node = &worker.context.node;
    let stats = node.saves.stats().unwrap_or_default();
    let status = if stats.last_error.is_some() { "err" } else { "ok" };
    // Whole seconds; -1 = there is none.
    let seconds = |time: Option<f64>| time.map_or("-1".to_owned(), |seconds| format!("{seconds:.0}"));
    let last_unix_s = stats.last_done.as_ref().map_or(node.started_unix_s, |done| done.unix_s);
    write!(text, "rdb_bgsave_in_progress:{}\r\n", u8::from(stats.running.is_some()))?;
    write!(text, "rdb_last_save_time:{last_unix_s}\r\n")?;
    write!(text, "rdb_last_bgsave_status:{status}\r\n")?;
    write!(text, "rdb_last_bgsave_time_sec:{}\r\n", seconds(stats.last_seconds))?;
    write!(text, "rdb_current_bgsave_time_sec:{}\r\n", seconds(stats.running.map(|now| now.seconds)))?;
    write!(text, "rdb_saves:{}\r\n", stats.done)?;
    if let Some(now) = stats.running {
        write!(text, "current_save_keys_processed:{}\r\n", now.slots)?;
        write!(text, "current_save_keys_total:{}\r\n", now.slots_total)?;
    }
    if let Some(error) = &stats.last_error {
        write!(text, "slotstream_last_bgsave_error:{}\r\n", error.replace(['\r', '\n'], " "))?;
    }
    Ok(())
}

fn stats(worker: &Worker, text: &mut String) -> std::fmt::Result {
    let totals = worker.all_counters.totals();
    let links = &worker.context.links.totals;
    let get = |figure: &std::sync::atomic::AtomicU64| figure.load(Ordering::Relaxed);
    let store = &worker.context.store;
    let expired: u64 = store.shards().map(|shard| store.stats(shard).expired).sum();
    let partial = get(&links.delta_scans_reconnect) + get(&links.delta_scans_overflow);
    write!(text, "total_connections_received:{}\r\n", totals.connections_received)?;
    write!(text, "total_commands_processed:{}\r\n", totals.commands_processed)?;
    write!(text, "instantaneous_ops_per_sec:{}\r\n", worker.rate.per_second())?;
    write!(text, "total_net_input_bytes:{}\r\n", totals.net_input_bytes)?;
    write!(text, "total_net_output_bytes:{}\r\n", totals.net_output_bytes)?;
    write!(text, "rejected_connections:{}\r\n", totals.connections_rejected)?;
    write!(text, "sync_full:{}\r\n", get(&links.full_scans))?;
    write!(text, "sync_partial_ok:{partial}\r\n")?;
    write!(text, "sync_partial_err:0\r\n")?;
    write!(text, "expired_keys:{expired}\r\n")?;
    write!(text, "evicted_keys:0\r\n")?;
    write!(text, "keyspace_hits:{}\r\n", totals.keyspace_hits)?;
    write!(text, "keyspace_misses:{}\r\n", totals.keyspace_misses)?;
    write!(text, "total_error_replies:{}\r\n", totals.errors)
}

fn replication(worker: &Worker, text: &mut String) -> std::fmt::Result {
    let context = &worker.context;
    let offset = offset(&context.store);
    match &*context.node.role.read() {
        Role::Leader => {
            write!(text, "role:master\r\n")?;
            leader_lines(context, text)?;
        }
        Role::Follower { leader, resp_port } => {
            write!(text, "role:slave\r\n")?;
            follower_lines(worker, leader, *resp_port, offset, text)?;
        }
    }
    // Forty digits, as Redis's: the store's identity, which all its followers share.
    let id = context.store.store_id().simple().to_string();
    let control = &context.node.control;
    write!(text, "master_failover_state:{}\r\n", control.failover().as_str())?;
    write!(text, "slotstream_last_failover:{}\r\n", control.last_failover())?;
    write!(text, "slotstream_node_id:{}\r\n", context.node.node_id)?;
    write!(text, "slotstream_replication_port:{}\r\n", context.node.replication_port)?;
    write!(text, "slotstream_shard_count:{}\r\n", context.store.geometry().shard_count)?;
    write!(text, "master_replid:{id:0>40}\r\n")?;
    write!(text, "master_replid2:{:0>40}\r\n", 0)?;
    write!(text, "master_repl_offset:{offset}\r\n")?;
    write!(text, "second_repl_offset:-1\r\n")?;
    write!(text, "repl_backlog_active:0\r\n")
}

fn leader_lines(context: &Context, text: &mut String) -> std::fmt::Result {
    let followers = followers(&context.store, &context.links);
    // Redis knows no master that takes no writes: who asks for more than the role is told here.
    let epoch = context.links.superseded_by_epoch().unwrap_or(0);
    write!(text, "slotstream_superseded_by_epoch:{epoch}\r\n")?;
    write!(text, "connected_slaves:{}\r\n", followers.len())?;
    for (index, follower) in followers.iter().enumerate() {
        // Clients drop a line with any other character than these fields hold: no blank, no underscore.
        let state = if follower.phase == Phase::Stream { "online" } else { "sync" };
        let Follower { ip, port, offset, lag_ms, lag_records, lag_bytes, .. } = follower;
        let (seconds, phase) = (lag_ms / 1000, follower.phase.as_str().replace('_', "-"));
        write!(text, "slave{index}:ip={ip},port={port},state={state},offset={offset},lag={seconds}")?;
        write!(text, ",phase={phase},lagms={lag_ms},lagrecords={lag_records},lagbytes={lag_bytes}\r\n")?;
    }
    Ok(())
}

fn follower_lines(
    worker: &Worker,
    leader: &str,
    resp_port: u16,
    offset: u64,
    text: &mut String,
) -> std::fmt::Result {
    let link = leader_link(&worker.context.links);
    let (host, port) = leader_address(&worker.context.links, leader, resp_port);
    let now_ms = worker.context.store.clock().unix_ms();
    let last_io_s = match link.last_io_unix_ms {
        0 => -1,
        last => i64::try_from(now_ms.saturating_sub(last) / 1000).unwrap_or(i64::MAX),
    };
    write!(text, "master_host:{host}\r\n")?;
    write!(text, "master_port:{port}\r\n")?;
    write!(text, "master_link_status:{}\r\n", if link.is_up { "up" } else { "down" })?;
    write!(text, "slotstream_link_refused:{}\r\n", link.refusal)?;
    write!(text, "master_last_io_seconds_ago:{last_io_s}\r\n")?;
    write!(text, "master_sync_in_progress:{}\r\n", u8::from(link.is_scanning))?;
    write!(text, "slave_read_repl_offset:{offset}\r\n")?;
    write!(text, "slave_repl_offset:{offset}\r\n")?;
    write!(text, "slave_priority:100\r\n")?;
    write!(text, "slave_read_only:1\r\n")?;
    write!(text, "replica_announced:1\r\n")?;
    write!(text, "connected_slaves:0\r\n")
}

fn cpu(_: &Worker, text: &mut String) -> std::fmt::Result {
    let (user, system) = cpu_seconds().unwrap_or((0.0, 0.0));
    write!(text, "used_cpu_sys:{system:.6}\r\n")?;
    write!(text, "used_cpu_user:{user:.6}\r\n")
}

/// User and system seconds of the process, in the kernel's ticks of a hundredth.
fn cpu_seconds() -> Option<(f64, f64)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the name, in parentheses, and may hold blanks.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user / 100.0, system / 100.0))
}

fn command_stats(worker: &Worker, text: &mut String) -> std::fmt::Result {
    for (name, calls) in worker.all_counters.totals().commands {
        write!(text, "cmdstat_{name}:calls={calls}\r\n")?;
    }
    Ok(())
}

fn keyspace(worker: &Worker, text: &mut String) -> std::fmt::Result {
    let store = &worker.context.store;
    let (keys, expiring) = store
        .shards()
        .map(|shard| store.stats(shard))
        .fold((0, 0), |(keys, expiring), stats| (keys + stats.slots_used, expiring + stats.expiring));
    if keys > 0 {
        write!(text, "db0:keys={keys},expires={expiring},avg_ttl=0\r\n")?;
    }
    Ok(())
}
