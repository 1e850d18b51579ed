//! Parts of values: GETRANGE, SUBSTR, SETRANGE; and what all commands share that make a value longer.

use super::super::error::CommandError;
use super::{Call, Flow};
use crate::store::{Change, Store, WriteError};

type Outcome = Result<Flow, CommandError>;

/// Redis's own limit of a value.
pub(super) const BYTES_MAX: usize = 512 << 20;
const TOO_LONG: CommandError =
    CommandError::text("ERR string exceeds maximum allowed size (proto-max-bulk-len)");

/// Refuses a value that no slot can hold, before it is made.
pub(super) fn check_value_size(store: &Store, found: usize) -> Result<(), CommandError> {
    let wanted = store.geometry().value_size_max;
    if found > usize::from(wanted) {
        return Err(WriteError::ValueSize { found, wanted }.into());
    }
    Ok(())
}

/// The part from `start` to `end`, both included and counted from the end if negative; `None` if it is empty.
pub(super) fn resolve(start: i64, end: i64, len: usize) -> Option<(usize, usize)> {
    let len = i64::try_from(len).unwrap_or(i64::MAX);
    let from_front = |index: i64| if index < 0 { (index + len).max(0) } else { index };
    let (start, end) = (from_front(start), from_front(end).min(len - 1));
    Some((usize::try_from(start).ok()?, usize::try_from(end).ok()?)).filter(|(start, end)| start <= end)
}

/// Whether a part ends before it begins, wherever the value ends: such a one is empty, also where both ends lie before
/// the first byte, which [`resolve`] takes for the first.
pub(super) fn is_backward(start: i64, end: i64) -> bool {
    start < 0 && end < 0 && start > end
}

/// `GETRANGE key start end`, `SUBSTR key start end`
pub(in crate::resp) fn getrange(call: &mut Call<'_>) -> Outcome {
    let (start, end) = (call.args.integer(2)?, call.args.integer(3)?);
    let reply = &mut *call.reply;
    let found = call.worker.context.store.read(call.args.at(1), |entry| {
        let part = resolve(start, end, entry.value.len()).filter(|_| !is_backward(start, end));
        reply.bulk(part.map_or(b"", |(start, end)| &entry.value[start..=end]));
    })?;
    if found.is_none() {
        call.reply.bulk(b"");
    }
    call.looked_up(found.is_some());
    Ok(Flow::Done)
}

/// `SETRANGE key offset value`
pub(in crate::resp) fn setrange(call: &mut Call<'_>) -> Outcome {
    let (key, part) = (call.args.at(1), call.args.at(3));
    let offset = usize::try_from(call.args.integer(2)?)
        .map_err(|_| CommandError::text("ERR offset is out of range"))?;
    let store = &call.worker.context.store;
    let (length, changed) = store.update(key, |old, buffer| {
        let value = old.map_or(&b""[..], |entry| entry.value);
        if part.is_empty() {
            return (Change::Keep, Ok((value.len(), false)));
        }
        let end = offset.saturating_add(part.len());
        if end > BYTES_MAX {
            return (Change::Keep, Err(TOO_LONG));
        }
        if let Err(error) = check_value_size(store, end) {
            return (Change::Keep, Err(error));
        }
        buffer.extend_from_slice(value);
        buffer.resize(value.len().max(end), 0);
        buffer[offset..end].copy_from_slice(part);
        (Change::Put { expire_at: old.map_or(0, |entry| entry.expire_at) }, Ok((buffer.len(), true)))
    })??;
    if changed {
        call.session.wrote(&call.worker.context.store, key);
    }
    call.reply.count(length as u64);
    Ok(Flow::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_those_of_redis() {
        let cases = [
            ((0, 3), 5, Some((0, 3))),
            ((-3, -1), 5, Some((2, 4))),
            ((0, -1), 5, Some((0, 4))),
            ((10, 100), 5, None),
            ((-1, -3), 5, None),
            ((-10, -20), 5, Some((0, 0))),
            ((-100, 0), 5, Some((0, 0))),
            // What begins before the beginning, and ends there, is the first byte.
            ((-100, -100), 5, Some((0, 0))),
            ((0, 0), 0, None),
            ((i64::MIN, i64::MAX), 5, Some((0, 4))),
            ((i64::MAX, i64::MIN), 5, None),
        ];
        for ((start, end), len, part) in cases {
            assert_eq!(resolve(start, end, len), part, "{start} {end} of {len}");
        }
    }
}
