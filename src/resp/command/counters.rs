//! Numbers in values: INCR, DECR, INCRBY, DECRBY, INCRBYFLOAT.

use super::super::error::CommandError;
use super::super::float::{Float, Number};
use super::super::number::{Decimal, parse_i64};
use super::{Call, Flow};
use crate::store::Change;

type Outcome = Result<Flow, CommandError>;

fn add(call: &mut Call<'_>, by: i64) -> Outcome {
    const OVERFLOW: CommandError = CommandError::text("ERR increment or decrement would overflow");
    let key = call.args.at(1);
    let sum = call.store().update(key, |old, buffer| {
        let value = match old {
            None => 0,
            Some(entry) => match parse_i64(entry.value) {
                Some(value) => value,
                None => return (Change::Keep, Err(CommandError::NotInteger)),
            },
        };
        let Some(sum) = value.checked_add(by) else {
            return (Change::Keep, Err(OVERFLOW));
        };
        buffer.extend_from_slice(Decimal::signed(sum).as_bytes());
        (Change::Put { expire_at: old.map_or(0, |entry| entry.expire_at) }, Ok(sum))
    })??;
    call.session.wrote(&call.worker.context.store, key);
    call.reply.integer(sum);
    Ok(Flow::Done)
}

/// `INCR key`
pub(in crate::resp) fn incr(call: &mut Call<'_>) -> Outcome {
    add(call, 1)
}

/// `DECR key`
pub(in crate::resp) fn decr(call: &mut Call<'_>) -> Outcome {
    add(call, -1)
}

/// `INCRBY key increment`
pub(in crate::resp) fn incrby(call: &mut Call<'_>) -> Outcome {
    let by = call.args.integer(2)?;
    add(call, by)
}

/// `DECRBY key decrement`
pub(in crate::resp) fn decrby(call: &mut Call<'_>) -> Outcome {
    let by = call.args.integer(2)?;
    let by = by.checked_neg().ok_or(CommandError::text("ERR decrement would overflow"))?;
    add(call, by)
}

/// `INCRBYFLOAT key increment`
pub(in crate::resp) fn incrbyfloat(call: &mut Call<'_>) -> Outcome {
    const NO_FLOAT: CommandError = CommandError::text("ERR value is not a valid float");
    const TOO_LARGE: CommandError = CommandError::text("ERR increment would produce NaN or Infinity");
    let (key, by) = (call.args.at(1), Float::parse(call.args.at(2)));
    let text = call.store().update(key, |old, buffer| {
        let value = old.map_or(Some(Number::Finite(Float::ZERO)), |entry| Float::parse(entry.value));
        let sum = match (value, by) {
            (Some(Number::Finite(value)), Some(Number::Finite(by))) => value.add(by).ok_or(TOO_LARGE),
            (Some(_), Some(_)) => Err(TOO_LARGE),
            _ => Err(NO_FLOAT),
        };
        match sum {
            Ok(sum) => {
                let text = sum.format();
                buffer.extend_from_slice(text.as_bytes());
                (Change::Put { expire_at: old.map_or(0, |entry| entry.expire_at) }, Ok(text))
            }
            Err(error) => (Change::Keep, Err(error)),
        }
    })??;
    call.session.wrote(&call.worker.context.store, key);
    call.reply.bulk(text.as_bytes());
    Ok(Flow::Done)
}
