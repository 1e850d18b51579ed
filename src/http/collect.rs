//! Publishes what a node counts in plain cells, once per scrape, under the names of [`crate::metrics`].
//!
//! Every gauge is set anew at every scrape and the recorder drops gauges that were not, so the series
//! of a follower that left are gone at the next scrape.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use metrics::{counter, gauge};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;
use uuid::Uuid;

use crate::counters::feeds::FeedTotals;
use crate::counters::{Counters, LATENCY_BOUNDS_NS};
use crate::links::{LinkCell, Phase, Totals};
use crate::metrics as names;
use crate::saves::Saves;
use crate::slot::ShardIndex;
use crate::status::{Changes, Role, View, is_inconsistent};
use crate::store::{LogState, Store};
use crate::units::float;

/// Installs the process's recorder. Only the binary calls this, once.
pub fn install_recorder() -> Result<PrometheusHandle, BuildError> {
    let recorder = PrometheusBuilder::new()
        .with_recommended_naming(true)
        // Without buckets a histogram would be shown as a summary, which cannot be added up.
        .set_buckets(&LATENCY_BOUNDS_NS.map(seconds))?
        .idle_timeout(MetricKindMask::GAUGE, Some(Duration::ZERO))
        .install_recorder()?;
    names::describe();
    metrics_process::Collector::default().describe();
    Ok(recorder)
}

fn seconds(ns: u64) -> f64 {
    float(ns) / 1e9
}

/// Publishes a node's figures.
#[derive(Default)]
pub struct Collector {
    process: metrics_process::Collector,
}

impl Collector {
    /// Sets every series to what it is now.
    pub(super) fn publish(&self, view: &View) {
        gauge!(names::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        gauge!(names::IS_LEADER).set(if view.role() == Role::Leader { 1.0 } else { 0.0 });
        gauge!(names::SUPERSEDED_BY_EPOCH).set(float(view.links.superseded_by_epoch().unwrap_or(0)));
        let cells = view.links.all();
        if let Some(store) = view.store() {
            publish_shards(view, store);
            gauge!(names::REGAINING).set(f64::from(store.is_regaining()));
            publish_log(store);
        }
        publish_links(view, &cells);
        publish_totals(view.role(), &view.links.totals);
        publish_changes(&view.changes);
        publish_saves(&view.saves);
        if let Some(clients) = view.clients() {
            publish_clients(clients);
            publish_feeds(&clients.feeds.totals(), view);
        }
        self.process.collect();
    }
}

fn publish_changes(changes: &Changes) {
    let read = |cell: &std::sync::atomic::AtomicU64| cell.load(Relaxed);
    counter!(names::ROLE_CHANGES_TOTAL).absolute(read(&changes.role_changes));
    for (result, count) in [("done", &changes.switchovers_done), ("failed", &changes.switchovers_failed)] {
        counter!(names::SWITCHOVERS_TOTAL, "result" => result).absolute(read(count));
    }
    gauge!(names::SWITCHOVER_PAUSE_SECONDS).set(float(read(&changes.switchover_pause_us)) / 1e6);
}

fn publish_saves(saves: &Saves) {
    let Some(stats) = saves.stats() else { return };
    gauge!(names::BACKUP_IN_PROGRESS).set(f64::from(stats.running.is_some()));
    for (result, count) in [("done", stats.done), ("failed", stats.failed)] {
        counter!(names::BACKUPS_TOTAL, "result" => result).absolute(count);
    }
    let last = stats.last_done.unwrap_or_default();
    gauge!(names::BACKUP_LAST_SUCCESS_TIMESTAMP_SECONDS).set(float(last.unix_s));
    gauge!(names::BACKUP_LAST_BYTES).set(float(last.bytes));
    gauge!(names::BACKUP_LAST_DURATION_SECONDS).set(stats.last_seconds.unwrap_or(0.0));
}

fn publish_clients(clients: &Counters) {
    let totals = clients.totals();
    for (name, calls) in &totals.commands {
        counter!(names::COMMANDS_TOTAL, "cmd" => *name).absolute(*calls);
    }
    counter!(names::COMMANDS_TOTAL, "cmd" => "unknown").absolute(totals.commands_unknown);
    gauge!(names::CONNECTED_CLIENTS).set(float(totals.connected_clients));
    counter!(names::CONNECTIONS_RECEIVED_TOTAL).absolute(totals.connections_received);
    counter!(names::CONNECTIONS_REJECTED_TOTAL).absolute(totals.connections_rejected);
    counter!(names::NET_INPUT_BYTES_TOTAL).absolute(totals.net_input_bytes);
    counter!(names::NET_OUTPUT_BYTES_TOTAL).absolute(totals.net_output_bytes);
    counter!(names::KEYSPACE_HITS_TOTAL).absolute(totals.keyspace_hits);
    counter!(names::KEYSPACE_MISSES_TOTAL).absolute(totals.keyspace_misses);
    counter!(names::WRITE_REJECTED_TOTAL, "reason" => "followers").absolute(totals.writes_refused);
    counter!(names::WRITES_UNCONFIRMED_TOTAL).absolute(totals.writes_unconfirmed);
    counter!(names::ERROR_REPLIES_TOTAL).absolute(totals.errors);
}

fn publish_feeds(feeds: &FeedTotals, view: &View) {
    gauge!(names::FEED_READERS).set(float(feeds.readers));
    counter!(names::FEED_CHANGES_TOTAL).absolute(feeds.changes);
    counter!(names::FEED_CHANGES_REPLACED_TOTAL).absolute(feeds.replaced);
    counter!(names::FEED_RESETS_TOTAL).absolute(feeds.resets);
    let Some(store) = view.store() else { return };
    for (shard, last) in &feeds.last {
        let head = store.last_change(ShardIndex(*shard)).seq.0;
        let behind = float(head.saturating_sub(*last));
        gauge!(names::FEED_BEHIND_RECORDS, "shard" => shard.to_string()).set(behind);
    }
}

/// The process's CPU time is recorded as a gauge, since the facade's counters know whole numbers only; it is
/// a counter all the same, and shown as one.
pub(super) fn with_cpu_counter(text: String) -> String {
    text.replacen("# TYPE process_cpu_seconds_total gauge", "# TYPE process_cpu_seconds_total counter", 1)
}

/// The command histogram as text. It is counted in buckets already, and the facade takes samples
/// only, each of which it would keep until the next scrape.
pub(super) fn histogram(clients: &Counters) -> String {
    let totals = clients.totals();
    let name = names::COMMANDS_DURATION_SECONDS;
    let help = names::ALL.iter().find(|metric| metric.name == name).map_or("", |metric| metric.help);
    let mut text = format!("# HELP {name} {help}\n# TYPE {name} histogram\n");
    let bounds = LATENCY_BOUNDS_NS.iter().map(|ns| seconds(*ns).to_string()).chain(["+Inf".to_owned()]);
    let mut count = 0;
    for (bound, commands) in bounds.zip(&totals.latency_buckets) {
        count += commands;
        line(&mut text, format_args!("{name}_bucket{{le=\"{bound}\"}} {count}"));
    }
    line(&mut text, format_args!("{name}_sum {}", seconds(totals.latency_sum_ns)));
    line(&mut text, format_args!("{name}_count {count}"));
    text
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a String takes all that is written to it");
}

fn publish_shards(view: &View, store: &Store) {
    let (mut epoch, mut damaged) = (0, 0);
    for shard in view.status().shards {
        gauge!(names::SHARD_READY, "shard" => shard.shard.to_string()).set(f64::from(shard.ready));
    }
    for &shard in view.shards() {
        let stats = store.stats(shard);
        let label = shard.to_string();
        epoch = epoch.max(stats.epoch);
        damaged += stats.slots_damaged;
        if view.role() == Role::Leader {
            gauge!(names::REPLICATION_SEQ, "shard" => label.clone()).set(float(stats.seq));
        } else {
            let watermark = store.progress(shard).seq.0;
            gauge!(names::REPLICATION_APPLIED_SEQ, "shard" => label.clone()).set(float(watermark));
            let is_inconsistent = is_inconsistent(store, &view.links, shard);
            gauge!(names::SHARD_INCONSISTENT, "shard" => label.clone()).set(f64::from(is_inconsistent));
        }
        gauge!(names::SLOTS_CAPACITY, "shard" => label.clone()).set(float(stats.slots_formatted));
        gauge!(names::SLOTS_USED, "shard" => label.clone()).set(float(stats.slots_used));
        gauge!(names::SHARD_FILE_BYTES, "shard" => label.clone()).set(float(stats.file_bytes));
        counter!(names::RING_OVERFLOWS_TOTAL, "shard" => label.clone()).absolute(stats.ring_overflows);
        counter!(names::SLOTS_AUDITED_TOTAL, "shard" => label.clone()).absolute(stats.slots_audited);
        counter!(names::MISFITS_MENDED_TOTAL, "shard" => label.clone()).absolute(stats.misfits_mended);
        gauge!(names::SLOTS_DAMAGED, "shard" => label.clone()).set(float(stats.slots_damaged));
        counter!(names::WRITE_REJECTED_TOTAL, "reason" => "full", "shard" => label).absolute(stats.rejected);
    }
    // A counter never falls: slots that were healed meanwhile stay counted.
    counter!(names::CHECKSUM_ERRORS_TOTAL, "where" => "open").absolute(damaged);
    gauge!(names::EPOCH).set(float(epoch));
}

fn publish_log(store: &Store) {
    let durability = store.durability();
    // A label that is empty is none.
    let interval = durability.interval().map(|interval| format!("{interval:?}")).unwrap_or_default();
    gauge!(names::DURABILITY_INFO, "level" => durability.level(), "interval" => interval).set(1.0);
    let Some(log) = store.log_stats() else { return };
    counter!(names::WAL_BYTES_TOTAL).absolute(log.bytes);
    counter!(names::WAL_SYNCS_TOTAL).absolute(log.syncs);
    counter!(names::WAL_CHECKPOINTS_TOTAL).absolute(log.checkpoints);
    counter!(names::WAL_STALLS_TOTAL).absolute(log.stalls);
    counter!(names::WAL_WRITES_HELD_TOTAL).absolute(log.writes_held);
    counter!(names::CHECKPOINT_BYTES_TOTAL).absolute(log.checkpoint_bytes);
    counter!(names::WRITE_REJECTED_TOTAL, "reason" => "log").absolute(log.writes_refused);
    gauge!(names::WAL_SEGMENTS).set(f64::from(log.segments));
    gauge!(names::WAL_SEGMENTS_MAX).set(f64::from(log.segments_max));
    gauge!(names::WAL_TAKES_CHANGES).set(f64::from(log.state == LogState::Going));
    for shard in store.shards() {
        gauge!(names::DURABLE_SEQ, "shard" => shard.to_string()).set(float(store.durable(shard).0));
    }
}

fn publish_links(view: &View, cells: &[Arc<LinkCell>]) {
    let now = view.now();
    let mut slowest: BTreeMap<Uuid, Phase> = BTreeMap::new();
    let mut scanning = 0;
    for cell in cells {
        let link = view.link(cell, now);
        let phase = cell.phase();
        scanning += u64::from(phase == Phase::Scan);
        slowest
            .entry(cell.follower)
            .and_modify(|slow| *slow = if (phase as u8) < (*slow as u8) { phase } else { *slow })
            .or_insert(phase);
        let (follower, shard) = (cell.follower.to_string(), cell.shard.to_string());
        let labels = || [("follower", follower.clone()), ("shard", shard.clone())];
        let lag_labels =
            || [("follower", follower.clone()), ("shard", shard.clone()), ("phase", link.phase.clone())];
        gauge!(names::FOLLOWER_LAG_SECONDS, &lag_labels()).set(link.lag_seconds);
        gauge!(names::FOLLOWER_LAG_RECORDS, &lag_labels()).set(float(link.lag_records));
        gauge!(names::FOLLOWER_LAG_BYTES, &lag_labels()).set(float(link.lag_bytes));
        gauge!(names::FOLLOWER_ACKED_SEQ, &labels()).set(float(link.applied_seq));
        if view.role() == Role::Leader {
            gauge!(names::RING_CAPACITY_BYTES, &labels()).set(float(link.ring_capacity));
            gauge!(names::RING_USED_BYTES, &labels()).set(float(link.ring_used));
        } else {
            let up = matches!(phase, Phase::Scan | Phase::CatchUp | Phase::Stream);
            let heard = float(cell.last_io_unix_ms.load(Relaxed)) / 1000.0;
            gauge!(names::LEADER_LINK_UP, "shard" => shard.clone()).set(if up { 1.0 } else { 0.0 });
            gauge!(names::LEADER_LAST_IO_TIMESTAMP_SECONDS, "shard" => shard.clone()).set(heard);
            gauge!(names::REPLICATION_SEQ, "shard" => shard.clone()).set(float(link.head_seq));
        }
    }
    gauge!(names::SCAN_IN_PROGRESS).set(float(scanning));
    if view.role() == Role::Leader {
        for state in [Phase::Handshake, Phase::Queued, Phase::Scan, Phase::CatchUp, Phase::Stream] {
            let followers = slowest.values().filter(|phase| **phase == state).count();
            gauge!(names::CONNECTED_FOLLOWERS, "state" => state.as_str()).set(float(followers as u64));
        }
    }
}

fn publish_totals(role: Role, totals: &Totals) {
    let read = |cell: &std::sync::atomic::AtomicU64| cell.load(Relaxed);
    if role == Role::Leader {
        counter!(names::FULL_SCANS_TOTAL).absolute(read(&totals.full_scans));
        counter!(names::DELTA_SCANS_TOTAL, "reason" => "reconnect")
            .absolute(read(&totals.delta_scans_reconnect));
        counter!(names::DELTA_SCANS_TOTAL, "reason" => "overflow")
            .absolute(read(&totals.delta_scans_overflow));
        counter!(names::SLOTS_REGAINED_TOTAL).absolute(read(&totals.slots_regained));
        counter!(names::SCANS_RESUMED_TOTAL).absolute(read(&totals.scans_resumed));
        counter!(names::SCAN_SLOTS_SENT_TOTAL).absolute(read(&totals.scan_slots_sent));
        counter!(names::REPLICATION_SENT_BYTES_TOTAL).absolute(read(&totals.sent_bytes));
        counter!(names::REPLICATION_RECORDS_SENT_TOTAL).absolute(read(&totals.records_sent));
        for (reason, count) in totals.refusals.lock().iter() {
            counter!(names::FOLLOWERS_REFUSED_TOTAL, "reason" => *reason).absolute(*count);
        }
    } else {
        counter!(names::REPLICATION_RECEIVED_BYTES_TOTAL).absolute(read(&totals.received_bytes));
        counter!(names::REPLICATION_RECORDS_APPLIED_TOTAL).absolute(read(&totals.records_applied));
        counter!(names::REWINDS_TOTAL).absolute(read(&totals.rewinds));
        counter!(names::WRITES_DROPPED_TOTAL).absolute(read(&totals.writes_dropped));
        counter!(names::REPLICATION_RECORDS_SKIPPED_TOTAL).absolute(read(&totals.records_skipped));
        for (reason, count) in totals.reconnects.lock().iter() {
            counter!(names::RECONNECTS_TOTAL, "reason" => *reason).absolute(*count);
        }
    }
    counter!(names::REPLICATION_HEARTBEATS_SENT_TOTAL).absolute(read(&totals.heartbeats_sent));
    counter!(names::REPLICATION_HEARTBEATS_RECEIVED_TOTAL).absolute(read(&totals.heartbeats_received));
    counter!(names::CHECKSUM_ERRORS_TOTAL, "where" => "scan").absolute(read(&totals.damaged_slots_met));
    counter!(names::REPLICATION_PROTOCOL_ERRORS_TOTAL).absolute(read(&totals.protocol_errors));
}
