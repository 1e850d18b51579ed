//! Proof that the simulator can fail: each planted bug must be found within a few hundred seeds.
//!
//! `cargo test --features planted-bugs --test sim -- planted`

use std::any::Any;
use std::panic::catch_unwind;
use std::sync::Once;

use slotstream::planted::{Bug, is_any_planted, plant};

use crate::{follower_power, headers, log, power, try_run};

const SEEDS_MAX: u64 = 500;

/// A run that fails with a planted bug is a success; only other failures are worth a line.
fn silence_wanted_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !is_any_planted() {
                usual(info);
            }
        }));
    });
}

fn assert_found(bug: Bug) {
    silence_wanted_panics();
    plant(Some(bug));
    let found = (0..SEEDS_MAX).find_map(|seed| try_run(seed).err().map(|failure| (seed, failure)));
    plant(None);
    let Some((seed, failure)) = found else { panic!("{bug:?} was not found in {SEEDS_MAX} seeds") };
    println!("{bug:?} found by seed {seed}: {}", text_of(&*failure));
}

/// A bug that a test on the simulated disk finds.
fn assert_found_by(bug: Bug, test: fn()) {
    silence_wanted_panics();
    plant(Some(bug));
    let ended = catch_unwind(test);
    plant(None);
    let Err(failure) = ended else { panic!("{bug:?} was not found") };
    println!("{bug:?} found: {}", text_of(&*failure));
}

fn text_of(failure: &(dyn Any + Send)) -> &str {
    let text = failure.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| failure.downcast_ref::<&str>().copied()).unwrap_or("(no text)")
}

macro_rules! planted {
    ($($name:ident: $bug:ident,)*) => {
        $(#[test] fn $name() { assert_found(Bug::$bug); })*
    };
}

planted! {
    ring_attached_after_the_scan: AttachAfterScan,
    latch_cleared_before_the_ring_is_drained: UnlatchBeforeDrain,
    scan_begins_at_the_head: ScanSinceHead,
    overflow_is_forgotten: OverflowIgnored,
    follower_is_consistent_at_once: ConsistentAtOnce,
    scan_is_not_noted: ScanNotNoted,
    batch_is_not_noted: BatchNotNoted,
    stale_image_is_applied: StaleImageApplied,
    former_key_is_kept: FormerKeyKept,
    half_frame_is_forgotten: HalfFrameForgotten,
    watermark_is_set_before_the_scan_is_through: WatermarkTooEarly,
    fork_is_one_too_high: ForkTooHigh,
    image_that_was_asked_for_is_refused: ForcedImageRefused,
    index_is_kept_in_a_rewind: IndexKeptInRewind,
    scan_position_is_kept_too_early: PositionTooEarly,
    scan_goes_on_too_far: ResumedTooFar,
    scan_leaves_out_what_came_before_its_place: RestForgotten,
    leader_that_was_replaced_takes_writes: SupersededIgnored,
    what_was_sent_counts_as_applied: SentCountsAsApplied,
    follower_that_hears_nothing_is_fresh: SilenceForgotten,
    stale_digest_is_believed: StaleDigestBelieved,
    older_epoch_is_accepted: OlderEpochAccepted,
    half_a_report_is_kept: HalfReportKept,
    forgotten_follower_is_emptied: ForgottenTaken,
    what_was_given_back_is_forgotten: RegainedForgotten,
    what_is_given_back_is_taken_though_older: RegainedThoughOlder,
    new_term_is_cut_too_high: RegainedTooHigh,
    new_term_begins_before_a_sync: RegainedNotSynced,
    role_is_not_synced: RoleNotSynced,
    lineage_is_not_synced: LineageNotSynced,
}

#[test]
fn log_is_called_durable_before_its_sync() {
    assert_found_by(Bug::AckBeforeSync, log::all_lives);
}

#[test]
fn torn_frame_is_accepted() {
    assert_found_by(Bug::TornFrameAccepted, log::all_lives);
}

#[test]
fn failed_sync_is_tried_again() {
    assert_found_by(Bug::RetryAfterFailedSync, log::all_lives);
}

#[test]
fn log_is_cut_before_slots_are_synced() {
    assert_found_by(Bug::LogCutBeforeSync, power::all_lives);
}

#[test]
fn rewind_is_not_synced() {
    assert_found_by(Bug::RewindNotSynced, headers::all_cuts);
}

#[test]
fn follower_s_watermark_is_believed_without_a_log() {
    assert_found_by(Bug::WatermarkTrusted, follower_power::all_lives_without_log);
}

#[test]
fn follower_s_slots_ahead_of_its_watermark_are_believed() {
    assert_found_by(Bug::WatermarkTrusted, follower_power::all_lives);
}

#[test]
fn follower_s_log_is_called_durable_before_its_sync() {
    assert_found_by(Bug::AckBeforeSync, follower_power::all_lives);
}

#[test]
fn torn_slot_is_accepted() {
    assert_found_by(Bug::TornSlotAccepted, power::all_lives);
}

#[test]
fn growth_is_taken_to_be_on_the_disk() {
    assert_found_by(Bug::GrowthTrusted, power::all_lives_without_log);
}

#[test]
fn header_of_a_killed_process_is_not_synced() {
    assert_found_by(Bug::KilledHeaderNotSynced, headers::all_kills);
}

#[test]
fn change_is_in_its_slot_before_the_sync_of_its_record() {
    assert_found_by(Bug::LandedBeforeSync, power::all_lives_log_first);
}

#[test]
fn reply_comes_before_its_change_is_durable() {
    assert_found_by(Bug::ReplyBeforeDurable, power::all_lives_log_first);
}

#[test]
fn seqs_are_given_out_again() {
    assert_found_by(Bug::SeqReused, power::all_lives);
}
