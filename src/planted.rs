//! Floor 0: faults on purpose, to prove that the tests can fail. Without the feature `planted-bugs` every
//! question is answered "no" at compile time and nothing of this is left.
//!
//! A bug is planted for the current thread only, so that tests may run side by side.

/// A fault that a test can plant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The ring is attached, and the watermark taken, after the scan instead of before it.
    AttachAfterScan,
    /// The latch is cleared while the ring still holds records.
    UnlatchBeforeDrain,
    /// The scan after an overflow begins at the head instead of the last seq sent.
    ScanSinceHead,
    /// The follower calls itself consistent as soon as the scan is through.
    ConsistentAtOnce,
    /// The follower does not note that it is inside a scan.
    ScanNotNoted,
    /// An overflow is forgotten: the latch is cleared and no scan follows.
    OverflowIgnored,
    /// The follower does not note that it is inside a batch.
    BatchNotNoted,
    /// A sender forgets that a part of a frame is out.
    HalfFrameForgotten,
    /// The follower sets its watermark with the first batch of a scan.
    WatermarkTooEarly,
    /// The follower applies an image whatever seq its slot has.
    StaleImageApplied,
    /// Applying an image leaves the slot's former key in the index.
    FormerKeyKept,
    /// The last seq that two histories share is taken to be one higher.
    ForkTooHigh,
    /// An image that was asked for in a rewind is taken only if its seq is newer than its slot's.
    ForcedImageRefused,
    /// A rewind leaves the slots to come in the index.
    IndexKeptInRewind,
    /// What was written of a report before a kill stays in it when it is begun again.
    HalfReportKept,
    /// A scan's position is kept before its batch is applied.
    PositionTooEarly,
    /// A scan that goes on leaves out the slot where it was cut off.
    ResumedTooFar,
    /// A scan that went on in the middle is through without the slots before that.
    RestForgotten,
    /// A digest is believed whatever its header says.
    StaleDigestBelieved,
    /// A node takes an older epoch than one it has heard of.
    OlderEpochAccepted,
    /// A leader that has heard of a newer epoch takes writes all the same.
    SupersededIgnored,
    /// A leader counts what it has sent as applied.
    SentCountsAsApplied,
    /// A follower that hears nothing of its leader any more calls itself fresh.
    SilenceForgotten,
    /// A leader that remembers nothing of what a follower shares with it replaces all that the follower holds.
    ForgottenTaken,
    /// After an OS crash a leader forgets what followers gave back when it takes its new term.
    RegainedForgotten,
    /// What followers give back is taken though the slot holds something newer.
    RegainedThoughOlder,
    /// After an OS crash a leader says that it shares with followers all that it has.
    RegainedTooHigh,
    /// A new term begins before what followers gave back is durable.
    RegainedNotSynced,
    /// The log is cut before the slots that it covers are durable.
    LogCutBeforeSync,
    /// What was appended to the log is called durable before its sync.
    AckBeforeSync,
    /// A change that waits for the log is in its slot before the log's sync.
    LandedBeforeSync,
    /// Who waits for the log is told that it is durable when it is only written.
    ReplyBeforeDurable,
    /// After a power cut a follower believes its watermark, log or no log.
    WatermarkTrusted,
    /// After a power cut what the header counts is taken to be on the disk.
    GrowthTrusted,
    /// After a power cut seqs are given out again.
    SeqReused,
    /// A slot is taken without a look at its checksum.
    TornSlotAccepted,
    /// A frame of the log is taken without a look at its checksum.
    TornFrameAccepted,
    /// After a failed sync of the log another one is tried.
    RetryAfterFailedSync,
    /// What a killed process left of a header is not made durable before the other copy is written.
    KilledHeaderNotSynced,
    /// That a shard follows is left to the system's write-back.
    RoleNotSynced,
    /// So is the lineage of a new leader, with its epoch.
    LineageNotSynced,
    /// So is that a shard is being rewound.
    RewindNotSynced,
    /// Changes of several shards that are one land shard by shard.
    GroupLandedApart,
    /// Nothing in the log says that they are one.
    GroupUnmarked,
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug for this thread, or none.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted here.
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether any bug is planted for this thread.
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn is_any_planted() -> bool {
    PLANTED.get().is_some()
}

/// Whether this bug is planted here: never.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
#[must_use]
pub const fn is_planted(_bug: Bug) -> bool {
    false
}
