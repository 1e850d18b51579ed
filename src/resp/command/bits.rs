//! Bits of values, the first of a byte its highest: GETBIT, SETBIT, BITCOUNT, BITPOS.

use super::super::error::CommandError;
use super::ranges::{BYTES_MAX, check_value_size, is_backward, resolve};
use super::{Call, Flow};
use crate::store::Change;

type Outcome = Result<Flow, CommandError>;

const BIT: CommandError = CommandError::text("ERR bit is not an integer or out of range");

/// A bit's position, which is not in a value of its own accord.
pub(super) fn bit_offset(offset: Option<i64>) -> Result<usize, CommandError> {
    offset
        .and_then(|offset| usize::try_from(offset).ok())
        .filter(|offset| offset / 8 < BYTES_MAX)
        .ok_or(CommandError::text("ERR bit offset is not an integer or out of range"))
}

/// Whether the bit is set; behind the value there are zeros.
pub(super) fn bit(value: &[u8], offset: usize) -> bool {
    value.get(offset / 8).is_some_and(|byte| byte >> (7 - offset % 8) & 1 == 1)
}

/// Sets a bit of a value that holds it.
pub(super) fn set_bit(value: &mut [u8], offset: usize, is_set: bool) {
    let mask = 0x80 >> (offset % 8);
    if is_set { value[offset / 8] |= mask } else { value[offset / 8] &= !mask }
}

/// `GETBIT key offset`
pub(in crate::resp) fn getbit(call: &mut Call<'_>) -> Outcome {
    let offset = bit_offset(call.args.integer(2).ok())?;
    let found = call.store().read(call.args.at(1), |entry| bit(entry.value, offset))?;
    call.looked_up(found.is_some());
    call.reply.integer(i64::from(found.unwrap_or(false)));
    Ok(Flow::Done)
}

/// `SETBIT key offset value`
pub(in crate::resp) fn setbit(call: &mut Call<'_>) -> Outcome {
    let key = call.args.at(1);
    let offset = bit_offset(call.args.integer(2).ok())?;
    let is_set = match call.args.integer(3) {
        Ok(0) => false,
        Ok(1) => true,
        _ => return Err(BIT),
    };
    let store = &call.worker.context.store;
    let (before, changed) = store.update(key, |old, buffer| {
        let value = old.map_or(&b""[..], |entry| entry.value);
        let before = bit(value, offset);
        if before == is_set && offset / 8 < value.len() {
            return (Change::Keep, Ok((before, false)));
        }
        if let Err(error) = check_value_size(store, offset / 8 + 1) {
            return (Change::Keep, Err(error));
        }
        buffer.extend_from_slice(value);
        buffer.resize(value.len().max(offset / 8 + 1), 0);
        set_bit(buffer, offset, is_set);
        (Change::Put { expire_at: old.map_or(0, |entry| entry.expire_at) }, Ok((before, true)))
    })??;
    if changed {
        call.session.wrote(&call.worker.context.store, key);
    }
    call.reply.integer(i64::from(before));
    Ok(Flow::Done)
}

/// Whether a range counts bits rather than bytes.
fn counts_bits(call: &Call<'_>, index: usize) -> Result<bool, CommandError> {
    match call.args.get(index) {
        None => Ok(false),
        Some(_) if call.args.is(index, "bit") => Ok(true),
        Some(_) if call.args.is(index, "byte") => Ok(false),
        Some(_) => Err(CommandError::Syntax),
    }
}

/// First and last bit of a range, both included; `None` if it is empty.
fn bit_range(start: i64, end: i64, in_bits: bool, bytes: usize) -> Option<(usize, usize)> {
    if in_bits {
        return resolve(start, end, bytes * 8);
    }
    resolve(start, end, bytes).map(|(start, end)| (start * 8, end * 8 + 7))
}

/// The bits of byte `at` that lie between `first` and `last`.
fn mask(at: usize, first: usize, last: usize) -> u8 {
    let behind_first = if at == first / 8 { 0xFF >> (first % 8) } else { 0xFF };
    let before_last = if at == last / 8 { !(0x7F >> (last % 8)) } else { 0xFF };
    behind_first & before_last
}

fn count_bits(call: &Call<'_>, value: &[u8]) -> Result<u64, CommandError> {
    let range = match call.args.len() {
        2 => bit_range(0, -1, false, value.len()),
        4 | 5 => {
            let (start, end) = (call.args.integer(2)?, call.args.integer(3)?);
            if is_backward(start, end) {
                return Ok(0);
            }
            bit_range(start, end, counts_bits(call, 4)?, value.len())
        }
        _ => return Err(CommandError::Syntax),
    };
    let Some((first, last)) = range else { return Ok(0) };
    let bytes = &value[first / 8..=last / 8];
    let ones: u64 = bytes.iter().map(|byte| u64::from(byte.count_ones())).sum();
    let outside = |at: usize| u64::from((value[at] & !mask(at, first, last)).count_ones());
    let edges = if bytes.len() == 1 { outside(first / 8) } else { outside(first / 8) + outside(last / 8) };
    Ok(ones - edges)
}

/// `BITCOUNT key [start end [BYTE | BIT]]`
pub(in crate::resp) fn bitcount(call: &mut Call<'_>) -> Outcome {
    // As Redis 7.0 does, the range is looked at only if there is a value.
    let count = call.store().read(call.args.at(1), |entry| count_bits(call, entry.value))?;
    call.looked_up(count.is_some());
    call.reply.count(count.unwrap_or(Ok(0))?);
    Ok(Flow::Done)
}

/// Position of the first such bit; -1 = none.
fn find_bit(call: &Call<'_>, value: &[u8], wanted: bool) -> Result<i64, CommandError> {
    let args = call.args;
    let has_end = args.len() > 4;
    let range = match args.len() {
        3 => bit_range(0, -1, false, value.len()),
        4..=6 => {
            let start = args.integer(3)?;
            let in_bits = counts_bits(call, 5)?;
            bit_range(start, if has_end { args.integer(4)? } else { -1 }, in_bits, value.len())
        }
        _ => return Err(CommandError::Syntax),
    };
    let Some((first, last)) = range else { return Ok(-1) };
    let as_position = |position: usize| i64::try_from(position).unwrap_or(-1);
    // Made ones, whichever are wanted.
    let flip = if wanted { 0 } else { 0xFF };
    for (at, byte) in value.iter().enumerate().take(last / 8 + 1).skip(first / 8) {
        let found = (byte ^ flip) & mask(at, first, last);
        if found != 0 {
            return Ok(as_position(at * 8 + found.leading_zeros() as usize));
        }
    }
    // Without an end, the value is followed by zeros.
    Ok(if wanted || has_end { -1 } else { as_position(last + 1) })
}

/// `BITPOS key bit [start [end [BYTE | BIT]]]`
pub(in crate::resp) fn bitpos(call: &mut Call<'_>) -> Outcome {
    let wanted = match call.args.integer(2)? {
        0 => false,
        1 => true,
        _ => return Err(CommandError::text("ERR The bit argument must be 1 or 0.")),
    };
    let position = call.store().read(call.args.at(1), |entry| find_bit(call, entry.value, wanted))?;
    call.looked_up(position.is_some());
    call.reply.integer(position.unwrap_or(Ok(if wanted { -1 } else { 0 }))?);
    Ok(Flow::Done)
}
