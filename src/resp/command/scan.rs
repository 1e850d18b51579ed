//! SCAN: a walk over all slots, in slot order.
//!
//! A cursor is the shard and the slot to look at next, so it stays right whatever changes: a record
//! keeps its slot as long as it lives, hence one that is there from the first call to the last is
//! returned. One that is deleted and set again meanwhile may be returned twice, or not at all.

use super::super::error::CommandError;
use super::super::glob;
use super::super::reply::Reply;
use super::{Call, Flow};
use crate::slot::{ShardIndex, SlotIndex};

/// Slots looked at under one hold of a shard's lock.
const SLOTS_PER_VISIT: u32 = 256;
/// A call looks at this many slots at least before it returns fewer keys than asked for, so that a store of
/// few records in many slots is walked in few calls.
const SLOTS_PER_CALL_MIN: u64 = 16 << 10;
const COUNT_DEFAULT: u64 = 10;
/// COUNT is a hint: a call looks at no more records than this.
const COUNT_MAX: u64 = 10_000;
const REPLY_BYTES_MAX: usize = 1 << 20;

struct Options<'a> {
    pattern: Option<&'a [u8]>,
    count: u64,
    /// Every record is a string: any other type finds nothing.
    wanted: bool,
}

fn options<'a>(call: &Call<'a>) -> Result<Options<'a>, CommandError> {
    let args = call.args;
    let mut options = Options { pattern: None, count: COUNT_DEFAULT, wanted: true };
    let mut at = 2;
    while at < args.len() {
        let Some(value) = args.get(at + 1) else { return Err(CommandError::Syntax) };
        if args.is(at, "count") {
            let count = args.integer(at + 1)?;
            options.count =
                u64::try_from(count).ok().filter(|count| *count > 0).ok_or(CommandError::Syntax)?;
        } else if args.is(at, "match") {
            options.pattern = (value != b"*").then_some(value);
        } else if args.is(at, "type") {
            options.wanted = value.eq_ignore_ascii_case(b"string");
        } else {
            return Err(CommandError::Syntax);
        }
        at += 2;
    }
    Ok(options)
}

pub(super) fn parse_cursor(text: &[u8]) -> Result<u64, CommandError> {
    // As C's strtoul, but for blanks and signs, which Redis refuses or no client sends.
    std::str::from_utf8(text)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or(CommandError::text("ERR invalid cursor"))
}

pub(super) fn cursor(shard: ShardIndex, slot: SlotIndex) -> u64 {
    u64::from(shard.0) << 32 | u64::from(slot.0)
}

/// The shard and the slot of a cursor.
pub(super) fn place(cursor: u64) -> (u16, SlotIndex) {
    #[expect(clippy::cast_possible_truncation, reason = "the low half of the cursor is the slot")]
    let slot = SlotIndex(cursor as u32);
    (u16::try_from(cursor >> 32).unwrap_or(u16::MAX), slot)
}

/// `SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]`
pub(in crate::resp) fn scan(call: &mut Call<'_>) -> Result<Flow, CommandError> {
    let start = parse_cursor(call.args.at(1))?;
    let options = options(call)?;
    let store = call.store();
    let shard_count = store.geometry().shard_count;
    let mut keys = Reply::default();
    let count = options.count.min(COUNT_MAX);
    let mut slots_left = SLOTS_PER_CALL_MIN.max(count * 2);
    let (mut found, mut seen) = (0, 0);
    // Few slots at a time where records are dense, so that little more than COUNT is returned.
    let mut step = u32::try_from(count).unwrap_or(SLOTS_PER_VISIT).min(SLOTS_PER_VISIT);
    let (mut shard, mut slot) = place(start);
    let next = loop {
        if shard >= shard_count {
            break 0;
        }
        if seen >= count || slots_left == 0 || keys.len() > REPLY_BYTES_MAX {
            break cursor(ShardIndex(shard), slot);
        }
        slots_left = slots_left.saturating_sub(step.into());
        let seen_before = seen;
        let next = store.visit(ShardIndex(shard), slot, step, |entry| {
            seen += 1;
            if options.wanted
                && options.pattern.is_none_or(|pattern| glob::matches(pattern, entry.key, false))
            {
                keys.bulk(entry.key);
                found += 1;
            }
        })?;
        if seen == seen_before {
            step = (step * 2).min(SLOTS_PER_VISIT);
        }
        match next {
            Some(next) => slot = next,
            None => {
                shard += 1;
                slot = SlotIndex(0);
            }
        }
    };
    call.reply.array(2);
    call.reply.bulk_number(next);
    call.reply.array(found);
    call.reply.raw(keys.as_bytes());
    Ok(Flow::Done)
}
