//! Floor 0: every metric's name, kind and help text. Nothing is counted here.
//!
//! Hot paths count in plain cells; when somebody scrapes, those are published under these names through
//! the `metrics` facade. Counters are cumulative since the process started. Only the binary installs a
//! recorder: in a program that embeds a store the names go wherever that program's recorder sends them.

/// Gauge, counter or histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only rises; its name ends in `_total`.
    Counter,
    /// Buckets in seconds.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Name with prefix and unit.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it tells, for the `# HELP` line.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal, $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: &str = concat!("slotstream_", $name);)*
        /// All of them.
        pub const ALL: &[Metric] = &[$(Metric { name: $constant, kind: Kind::$kind, help: $help },)*];
    };
}

metrics! {
    BUILD_INFO = Gauge "build_info", "1; the labels say which build this is.";
    IS_LEADER = Gauge "is_leader", "1 on a leader, 0 on a follower.";
    EPOCH = Gauge "epoch", "Highest epoch among the shards served.";
    SUPERSEDED_BY_EPOCH = Gauge "superseded_by_epoch", "On a leader that was replaced and takes no writes: the newer epoch; else 0.";
    ROLE_CHANGES_TOTAL = Counter "role_changes_total", "Times this node became a leader, a follower, or a follower of another leader.";
    SWITCHOVERS_TOTAL = Counter "switchovers_total", "Hand-overs of the lead by this node, by result.";
    SWITCHOVER_PAUSE_SECONDS = Gauge "switchover_pause_seconds", "How long this node's last hand-over held writes back.";

    CONNECTED_FOLLOWERS = Gauge "connected_followers", "Followers by the state of their slowest link.";
    FOLLOWER_LAG_SECONDS = Gauge "follower_lag_seconds", "Age of a follower's shard, 0 when it has caught up; the phase says whether it ever has.";
    FOLLOWER_LAG_RECORDS = Gauge "follower_lag_records", "Changes that a follower's shard still lacks.";
    FOLLOWER_LAG_BYTES = Gauge "follower_lag_bytes", "About what a delta would have to send to a follower's shard.";
    SHARD_INCONSISTENT = Gauge "shard_inconsistent", "1 while a follower's shard is inside a scan or never was in sync.";
    SHARD_READY = Gauge "shard_ready", "1 while a shard is fit to serve; /readyz says why it is not.";
    FOLLOWER_ACKED_SEQ = Gauge "follower_acked_seq", "Last seq that a follower's shard has applied.";
    REPLICATION_SEQ = Gauge "replication_seq", "The leader's last seq of a shard; on a follower, as last heard.";
    REPLICATION_APPLIED_SEQ = Gauge "replication_applied_seq", "A follower's watermark of a shard.";
    LEADER_LINK_UP = Gauge "leader_link_up", "1 while a follower's shard is connected to its leader.";
    LEADER_LAST_IO_TIMESTAMP_SECONDS = Gauge "leader_last_io_timestamp_seconds", "When a follower's shard last heard from its leader.";

    FULL_SCANS_TOTAL = Counter "full_scans_total", "Scans of every slot that were begun.";
    DELTA_SCANS_TOTAL = Counter "delta_scans_total", "Scans of the slots above a watermark that were begun, by reason.";
    SCANS_RESUMED_TOTAL = Counter "scans_resumed_total", "Delta scans that went on where a broken link had left one.";
    REWINDS_TOTAL = Counter "rewinds_total", "Times a follower's shard dropped writes that its leader never had.";
    WRITES_DROPPED_TOTAL = Counter "writes_dropped_total", "Writes dropped by rewinds; each is in a report in the data directory.";
    REGAINING = Gauge "regaining", "1 while a leader takes no writes because followers give back what a crash took, else 0.";
    SLOTS_REGAINED_TOTAL = Counter "slots_regained_total", "Slots that followers gave back to this leader after a crash.";
    SCAN_IN_PROGRESS = Gauge "scan_in_progress", "Links that are scanning.";
    SCAN_SLOTS_SENT_TOTAL = Counter "scan_slots_sent_total", "Slots sent by scans.";
    REPLICATION_SENT_BYTES_TOTAL = Counter "replication_sent_bytes_total", "Bytes written to replication links.";
    REPLICATION_RECEIVED_BYTES_TOTAL = Counter "replication_received_bytes_total", "Bytes read from replication links.";
    REPLICATION_RECORDS_SENT_TOTAL = Counter "replication_records_sent_total", "Changes sent from rings.";
    REPLICATION_RECORDS_APPLIED_TOTAL = Counter "replication_records_applied_total", "Slot images applied by a follower.";
    REPLICATION_RECORDS_SKIPPED_TOTAL = Counter "replication_records_skipped_total", "Slot images that a follower held already, or newer.";
    REPLICATION_HEARTBEATS_SENT_TOTAL = Counter "replication_heartbeats_sent_total", "Heartbeats sent.";
    REPLICATION_HEARTBEATS_RECEIVED_TOTAL = Counter "replication_heartbeats_received_total", "Heartbeats received.";
    REPLICATION_PROTOCOL_ERRORS_TOTAL = Counter "replication_protocol_errors_total", "Frames, records or peers refused for what they sent.";
    FOLLOWERS_REFUSED_TOTAL = Counter "followers_refused_total", "Links of followers that a leader refused, by reason.";
    RECONNECTS_TOTAL = Counter "reconnects_total", "Times a follower's link was made again, by reason.";

    RING_CAPACITY_BYTES = Gauge "ring_capacity_bytes", "Bytes that a link's ring holds at most.";
    RING_USED_BYTES = Gauge "ring_used_bytes", "Bytes that wait in a link's ring.";
    RING_OVERFLOWS_TOTAL = Counter "ring_overflows_total", "Times a ring of this shard was full and its link fell back to a scan.";

    SLOTS_DAMAGED = Gauge "slots_damaged", "Slots found damaged at opening or by the audit, and not healed since.";
    SLOTS_AUDITED_TOTAL = Counter "slots_audited_total", "Slots checked in the background after an opening that read none.";
    MISFITS_MENDED_TOTAL = Counter "misfits_mended_total", "Slots that the audit found the index, the free set or the digest not to fit, and put right.";
    CHECKSUM_ERRORS_TOTAL = Counter "checksum_errors_total", "Damaged slots found since the process started, by place.";
    SLOTS_CAPACITY = Gauge "slots_capacity", "Slots that a shard has formatted; it grows when they are used up.";
    SLOTS_USED = Gauge "slots_used", "Slots that hold a record.";
    SHARD_FILE_BYTES = Gauge "shard_file_bytes", "Size of a shard's file.";
    WRITE_REJECTED_TOTAL = Counter "write_rejected_total", "Writes that were refused and changed nothing, by reason.";

    WRITES_UNCONFIRMED_TOTAL = Counter "writes_unconfirmed_total", "Writes that are applied here, but that too few followers had confirmed in time.";

    DURABILITY_INFO = Gauge "durability_info", "1; the labels say when a write is durable.";
    WAL_BYTES_TOTAL = Counter "wal_bytes_total", "Bytes of records appended to the write-ahead log.";
    WAL_SYNCS_TOTAL = Counter "wal_syncs_total", "Times the write-ahead log was made durable.";
    WAL_CHECKPOINTS_TOTAL = Counter "wal_checkpoints_total", "Times all slots were made durable and the log was cut.";
    WAL_STALLS_TOTAL = Counter "wal_stalls_total", "Times writes waited because the log was full.";
    WAL_WRITES_HELD_TOTAL = Counter "wal_writes_held_total", "Times writes were held back for a moment because the log was filling.";
    CHECKPOINT_BYTES_TOTAL = Counter "checkpoint_bytes_total", "Bytes of slots that checkpoints wrote back at their rate.";
    WAL_SEGMENTS = Gauge "wal_segments", "Files that hold what slots may lack.";
    WAL_SEGMENTS_MAX = Gauge "wal_segments_max", "Files that the log may have.";
    WAL_TAKES_CHANGES = Gauge "wal_takes_changes", "1 while the log takes changes; 0 without space, and after it has failed.";
    DURABLE_SEQ = Gauge "durable_seq", "Everything of a shard up to here survives a power cut; only with a log.";
    BACKUP_IN_PROGRESS = Gauge "backup_in_progress", "1 while a backup that a client asked for is under way; only with --backup-directory.";
    BACKUPS_TOTAL = Counter "backups_total", "Backups that clients asked for, by result.";
    BACKUP_LAST_SUCCESS_TIMESTAMP_SECONDS = Gauge "backup_last_success_timestamp_seconds", "When the newest backup in the directory was whole; 0 = there is none.";
    BACKUP_LAST_DURATION_SECONDS = Gauge "backup_last_duration_seconds", "How long the last backup took, whole or failed.";
    BACKUP_LAST_BYTES = Gauge "backup_last_bytes", "Size of the last whole backup.";
    FEED_READERS = Gauge "feed_readers", "Connections that have asked for changes (XREAD, slotstream tail).";
    FEED_BEHIND_RECORDS = Gauge "feed_behind_records", "Changes of a shard since the last one that its slowest reader was given; it gets the newest state of each slot.";
    FEED_CHANGES_TOTAL = Counter "feed_changes_total", "Changes given to readers.";
    FEED_CHANGES_REPLACED_TOTAL = Counter "feed_changes_replaced_total", "Changes that readers were not given, since newer ones of the same slot had taken their place.";
    FEED_RESETS_TOTAL = Counter "feed_resets_total", "Times a reader had to begin a shard anew, since a failover had dropped what it had read.";
    COMMANDS_TOTAL = Counter "commands_total", "Commands served, by command.";
    COMMANDS_DURATION_SECONDS = Histogram "commands_duration_seconds", "Time per command: a sample of the batches that reads bring, each command counted with its batch's mean.";
    ERROR_REPLIES_TOTAL = Counter "error_replies_total", "Replies to Redis clients that were errors.";
    CONNECTED_CLIENTS = Gauge "connected_clients", "Redis clients connected.";
    CONNECTIONS_RECEIVED_TOTAL = Counter "connections_received_total", "Redis clients that ever connected.";
    CONNECTIONS_REJECTED_TOTAL = Counter "connections_rejected_total", "Redis clients turned away at the limit.";
    NET_INPUT_BYTES_TOTAL = Counter "net_input_bytes_total", "Bytes read from Redis clients.";
    NET_OUTPUT_BYTES_TOTAL = Counter "net_output_bytes_total", "Bytes written to Redis clients.";
    KEYSPACE_HITS_TOTAL = Counter "keyspace_hits_total", "Reads that found their key.";
    KEYSPACE_MISSES_TOTAL = Counter "keyspace_misses_total", "Reads that did not.";
}

/// Hands every help text to the installed recorder.
pub fn describe() {
    for metric in ALL {
        match metric.kind {
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_counters_alone_end_in_total() {
        let mut seen = std::collections::BTreeSet::new();
        for metric in ALL {
            assert!(seen.insert(metric.name), "{} is there twice", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
        }
    }
}
