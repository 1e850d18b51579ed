//! SLOTSTREAM.EXPORT: SCAN's walk over all slots, with values and expiries, each record as it was at one moment.
//!
//! A reply holds records of one shard. What SCAN says of its cursor holds here too, but that a damaged slot does not end
//! the walk: it is named, since what can be read is wanted most of all where something cannot.

use super::super::error::CommandError;
use super::super::reply::Reply;
use super::scan::{cursor, parse_cursor, place};
use super::{Call, Flow};
use crate::slot::{ShardIndex, SlotIndex};
use crate::store::ReadError;

const COUNT_DEFAULT: u64 = 1_000;
/// COUNT is a hint: a call returns no more records than about this.
const COUNT_MAX: u64 = 10_000;
/// Slots looked at in one call, so that a shard of few records in many slots is walked in few calls.
const SLOTS_MAX: u32 = 64 << 10;
/// Slots looked at under one hold of the shard's lock, and what they may hold.
const SLOTS_PER_VISIT: usize = 256;
const BYTES_PER_VISIT: usize = 256 << 10;
const REPLY_BYTES_MAX: usize = 1 << 20;

/// `SLOTSTREAM.EXPORT cursor [COUNT n]`: the next cursor, the shard, key, value and expiry in Unix milliseconds (0 =
/// never) of each record, and the slots that are damaged. `0` begins, and is the cursor behind the last record.
pub(in crate::resp) fn export(call: &mut Call<'_>) -> Result<Flow, CommandError> {
    let (shard, mut slot) = place(parse_cursor(call.args.at(1))?);
    let count = count(call)?;
    let store = call.store();
    let geometry = store.geometry();
    if shard >= geometry.shard_count {
        return Err(CommandError::text("ERR invalid cursor"));
    }
    let step = (BYTES_PER_VISIT / geometry.slot_stride()).clamp(1, SLOTS_PER_VISIT);
    let step = u32::try_from(step).unwrap_or(1);
    let last = slot.0.saturating_add(SLOTS_MAX);
    let (mut rows, mut found, mut damaged) = (Reply::default(), 0, Vec::new());
    let next = loop {
        let next = store.visit(ShardIndex(shard), slot, step, |entry| {
            rows.bulk(entry.key);
            rows.bulk(entry.value);
            rows.bulk_number(entry.expire_at);
            found += 1;
        });
        let next = match next {
            Ok(next) => next,
            Err(ReadError::Damaged { slot: at, .. }) => {
                damaged.push(at);
                let after = at.0.saturating_add(1);
                (after < store.extent(ShardIndex(shard)).0).then_some(SlotIndex(after))
            }
        };
        match next {
            None if shard + 1 == geometry.shard_count => break 0,
            None => break cursor(ShardIndex(shard + 1), SlotIndex(0)),
            Some(next) => slot = next,
        }
        if found + damaged.len() as u64 >= count || rows.len() > REPLY_BYTES_MAX || slot.0 >= last {
            break cursor(ShardIndex(shard), slot);
        }
    };
    call.reply.array(4);
    call.reply.bulk_number(next);
    call.reply.bulk_number(shard.into());
    call.reply.array(usize::try_from(3 * found).unwrap_or(usize::MAX));
    call.reply.raw(rows.as_bytes());
    call.reply.array(damaged.len());
    damaged.iter().for_each(|slot| call.reply.bulk_number(slot.0.into()));
    Ok(Flow::Done)
}

fn count(call: &Call<'_>) -> Result<u64, CommandError> {
    match call.args.len() {
        2 => Ok(COUNT_DEFAULT),
        4 if call.args.is(2, "count") => {
            let count = u64::try_from(call.args.integer(3)?).ok().filter(|count| *count > 0);
            count.map(|count| count.min(COUNT_MAX)).ok_or(CommandError::Syntax)
        }
        _ => Err(CommandError::Syntax),
    }
}
