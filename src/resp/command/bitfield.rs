//! BITFIELD: integers of any width at any bit of a value.
//!
//! All operations of one command are one change of the value.

use super::super::error::CommandError;
use super::super::number::parse_i64;
use super::bits::{bit, bit_offset, set_bit};
use super::keys::latest;
use super::ranges::check_value_size;
use super::{Call, Flow};
use crate::store::Change;

/// What happens to a number that its field cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overflow {
    Wrap,
    Saturate,
    /// It is not stored.
    Fail,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Get,
    Set(i64),
    Add(i64),
}

#[derive(Debug, Clone, Copy)]
struct Field {
    is_signed: bool,
    /// 1 to 64; to 63 if unsigned.
    width: u32,
    /// Its first bit.
    offset: usize,
}

#[derive(Debug, Clone, Copy)]
struct Operation {
    field: Field,
    action: Action,
    overflow: Overflow,
}

/// A field's type, as in `i16` or `u8`.
fn field_type(text: &[u8]) -> Result<(bool, u32), CommandError> {
    const TYPE: CommandError = CommandError::text(
        "ERR Invalid bitfield type. Use something like i16 u8. Note that u64 is not supported but i64 is.",
    );
    let (is_signed, digits) = match text {
        [b'i', digits @ ..] => (true, digits),
        [b'u', digits @ ..] => (false, digits),
        _ => return Err(TYPE),
    };
    // As a C string: a NUL ends it.
    let end = digits.iter().position(|byte| *byte == 0).unwrap_or(digits.len());
    let width_max = if is_signed { 64 } else { 63 };
    let width = parse_i64(&digits[..end]).filter(|width| (1..=width_max).contains(width));
    width.and_then(|width| u32::try_from(width).ok()).map(|width| (is_signed, width)).ok_or(TYPE)
}

/// A field's first bit; `#n` counts fields.
fn field_offset(text: &[u8], width: u32) -> Result<usize, CommandError> {
    bit_offset(match text {
        [b'#', digits @ ..] => parse_i64(digits).map(|index| index.wrapping_mul(width.into())),
        digits => parse_i64(digits),
    })
}

fn operations(call: &Call<'_>) -> Result<Vec<Operation>, CommandError> {
    let args = call.args;
    let (mut operations, mut overflow, mut at) = (Vec::new(), Overflow::Wrap, 2);
    while at < args.len() {
        let follow = args.len() - at - 1;
        if args.is(at, "overflow") && follow >= 1 {
            let words = [("wrap", Overflow::Wrap), ("sat", Overflow::Saturate), ("fail", Overflow::Fail)];
            let found = words.into_iter().find(|(word, _)| args.is(at + 1, word));
            let found = found.ok_or(CommandError::text("ERR Invalid OVERFLOW type specified"))?;
            overflow = found.1;
            at += 2;
            continue;
        }
        let is_get = args.is(at, "get") && follow >= 2;
        let is_set = args.is(at, "set") && follow >= 3;
        let is_add = args.is(at, "incrby") && follow >= 3;
        if !(is_get || is_set || is_add) {
            return Err(CommandError::Syntax);
        }
        let (is_signed, width) = field_type(args.at(at + 1))?;
        let offset = field_offset(args.at(at + 2), width)?;
        let action = match () {
            () if is_get => Action::Get,
            () if is_set => Action::Set(args.integer(at + 3)?),
            () => Action::Add(args.integer(at + 3)?),
        };
        operations.push(Operation { field: Field { is_signed, width, offset }, action, overflow });
        at += if is_get { 3 } else { 4 };
    }
    Ok(operations)
}

impl Field {
    /// Behind its last bit.
    fn end(self) -> usize {
        self.offset + self.width as usize
    }

    /// The number in it; behind the value there are zeros.
    fn read(self, value: &[u8]) -> i64 {
        let bits = (self.offset..self.end()).fold(0, |sum: u64, at| sum << 1 | u64::from(bit(value, at)));
        self.truncate(bits)
    }

    fn write(self, value: &mut [u8], number: i64) {
        for (at, shift) in (self.offset..self.end()).zip((0..self.width).rev()) {
            set_bit(value, at, number >> shift & 1 == 1);
        }
    }

    /// The number that a field's low bits are.
    fn truncate(self, bits: u64) -> i64 {
        let unused = 64 - self.width;
        if self.is_signed {
            (bits << unused).cast_signed() >> unused
        } else {
            (bits << unused >> unused).cast_signed()
        }
    }

    /// `number + by`, and whether that does not fit; then it is what `overflow` makes of it.
    fn sum(self, number: i64, by: i64, overflow: Overflow) -> (i64, bool) {
        let limit = if self.is_signed {
            let max = i64::MAX >> (64 - self.width);
            let min = -max - 1;
            // As Redis computes it: a number far below a narrow field's least is above its greatest.
            let (up, down) = (max.wrapping_sub(number), min.wrapping_sub(number));
            let is_narrow = self.width != 64;
            if number > max || (is_narrow && by > up) || (number >= 0 && by > 0 && by > up) {
                Some(max)
            } else if number < min || (is_narrow && by < down) || (number < 0 && by < 0 && by < down) {
                Some(min)
            } else {
                None
            }
        } else {
            let max = u64::MAX >> (64 - self.width);
            let number = number.cast_unsigned();
            let sum = i128::from(number) + i128::from(by);
            if number > max || sum > i128::from(max) {
                Some(max.cast_signed())
            } else if sum < 0 {
                Some(0)
            } else {
                None
            }
        };
        match (limit, overflow) {
            (Some(limit), Overflow::Saturate) => (limit, true),
            (limit, _) => (self.truncate(number.wrapping_add(by).cast_unsigned()), limit.is_some()),
        }
    }
}

/// Does the operations on a value that is long enough for what they write; the replies, `None` = null.
fn apply(operations: &[Operation], value: &mut [u8]) -> Vec<Option<i64>> {
    let apply = |operation: &Operation| {
        let field = operation.field;
        let old = field.read(value);
        let (new, does_not_fit) = match operation.action {
            Action::Get => return Some(old),
            Action::Set(number) => field.sum(number, 0, operation.overflow),
            Action::Add(by) => field.sum(old, by, operation.overflow),
        };
        if does_not_fit && operation.overflow == Overflow::Fail {
            return None;
        }
        field.write(value, new);
        Some(if matches!(operation.action, Action::Set(_)) { old } else { new })
    };
    operations.iter().map(apply).collect()
}

fn reply(call: &mut Call<'_>, results: &[Option<i64>]) {
    call.reply.array(results.len());
    for result in results {
        match result {
            Some(number) => call.reply.integer(*number),
            None => call.reply.null(),
        }
    }
}

/// Replies to operations that only read.
fn read_only(call: &mut Call<'_>, operations: &[Operation]) -> Result<Flow, CommandError> {
    let key = call.args.at(1);
    let fields = |value: &[u8]| operations.iter().map(|each| Some(each.field.read(value))).collect();
    let found: Option<Vec<_>> = latest(call.store(), key, |entry| fields(entry.value))?;
    let results = found.unwrap_or_else(|| fields(b""));
    reply(call, &results);
    Ok(Flow::Done)
}

/// `BITFIELD key [GET type offset | [OVERFLOW WRAP | SAT | FAIL] SET type offset value | INCRBY type offset by] ...`
pub(in crate::resp) fn bitfield(call: &mut Call<'_>) -> Result<Flow, CommandError> {
    let key = call.args.at(1);
    let operations = operations(call)?;
    let writes = operations.iter().filter(|operation| operation.action != Action::Get);
    let Some(end) = writes.map(|operation| operation.field.end()).max() else {
        return read_only(call, &operations);
    };
    let bytes = end.div_ceil(8);
    let store = &call.worker.context.store;
    let (results, changed) = store.update(key, |old, buffer| {
        let value = old.map_or(&b""[..], |entry| entry.value);
        if let Err(error) = check_value_size(store, bytes) {
            return (Change::Keep, Err(error));
        }
        buffer.extend_from_slice(value);
        // Room is made also for what then is not stored.
        buffer.resize(value.len().max(bytes), 0);
        let results = apply(&operations, buffer);
        let is_changed = buffer != value;
        let change = Change::Put { expire_at: old.map_or(0, |entry| entry.expire_at) };
        (if is_changed { change } else { Change::Keep }, Ok((results, is_changed)))
    })??;
    if changed {
        call.session.wrote(store, key);
    }
    reply(call, &results);
    Ok(Flow::Done)
}

/// `BITFIELD_RO key [GET type offset] ...`
pub(in crate::resp) fn bitfield_ro(call: &mut Call<'_>) -> Result<Flow, CommandError> {
    let operations = operations(call)?;
    if operations.iter().any(|operation| operation.action != Action::Get) {
        return Err(CommandError::text("ERR BITFIELD_RO only supports the GET subcommand"));
    }
    read_only(call, &operations)
}
