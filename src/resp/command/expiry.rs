//! Times to live: EXPIRE and its kin, TTL, EXPIRETIME, PERSIST.
//!
//! A record carries its expiry as Unix milliseconds; 0 is never. Sums that leave an `i64` are refused.

use super::super::error::CommandError;
use super::{Call, Flow};
use crate::store::Change;

type Outcome = Result<Flow, CommandError>;

/// What a time counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::resp) enum TimeUnit {
    Seconds,
    Milliseconds,
}

/// What a time counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::resp) enum Deadline {
    /// From now.
    Relative,
    /// From the Unix epoch.
    Absolute,
}

/// The Unix milliseconds that a positive time argument of SET, SETEX or GETEX means.
pub(in crate::resp) fn deadline(
    call: &Call<'_>,
    index: usize,
    unit: TimeUnit,
    kind: Deadline,
) -> Result<u64, CommandError> {
    let time = call.args.integer(index)?;
    let invalid = || CommandError::ExpireTime(call.command().name);
    if time <= 0 {
        return Err(invalid());
    }
    let time_ms = match unit {
        TimeUnit::Seconds => time.checked_mul(1000).ok_or_else(invalid)?,
        TimeUnit::Milliseconds => time,
    };
    let expire_at = match kind {
        Deadline::Relative => time_ms.checked_add(call.now_ms()).ok_or_else(invalid)?,
        Deadline::Absolute => time_ms,
    };
    u64::try_from(expire_at).map_err(|_| invalid())
}

/// When EXPIRE may change a record's expiry.
#[derive(Debug, Default)]
struct Conditions {
    absent: bool,
    present: bool,
    greater: bool,
    less: bool,
}

fn conditions(call: &Call<'_>) -> Result<Conditions, CommandError> {
    let mut conditions = Conditions::default();
    for word in call.args.from(3) {
        match word.to_ascii_uppercase().as_slice() {
            b"NX" => conditions.absent = true,
            b"XX" => conditions.present = true,
            b"GT" => conditions.greater = true,
            b"LT" => conditions.less = true,
            _ => return Err(CommandError::repeating("ERR Unsupported option ", word, "")),
        }
    }
    if conditions.absent && (conditions.present || conditions.greater || conditions.less) {
        return Err(CommandError::text(
            "ERR NX and XX, GT or LT options at the same time are not compatible",
        ));
    }
    if conditions.greater && conditions.less {
        return Err(CommandError::text("ERR GT and LT options at the same time are not compatible"));
    }
    Ok(conditions)
}

impl Conditions {
    /// Whether the new expiry may replace the old one (0 = never expires, which counts as infinitely late).
    fn allow(&self, old: u64, new: i64) -> bool {
        let old = (old != 0).then(|| i64::try_from(old).unwrap_or(i64::MAX));
        match old {
            None => !self.present && !self.greater,
            Some(old) => !self.absent && (!self.greater || new > old) && (!self.less || new < old),
        }
    }
}

fn expire_generic(call: &mut Call<'_>, unit: TimeUnit, kind: Deadline) -> Outcome {
    let key = call.args.at(1);
    let conditions = conditions(call)?;
    let time = call.args.integer(2)?;
    let invalid = CommandError::ExpireTime(call.command().name);
    let time_ms = match unit {
        TimeUnit::Seconds => time.checked_mul(1000),
        TimeUnit::Milliseconds => Some(time),
    };
    let now_ms = call.now_ms();
    let when = match kind {
        Deadline::Relative => time_ms.and_then(|time_ms| time_ms.checked_add(now_ms)),
        Deadline::Absolute => time_ms,
    };
    let Some(when) = when else { return Err(invalid) };
    let changed = call.store().update(key, |old, _| match old {
        None => (Change::Keep, false),
        Some(entry) if !conditions.allow(entry.expire_at, when) => (Change::Keep, false),
        Some(_) => match u64::try_from(when) {
            Ok(expire_at) if when > now_ms => (Change::Expire { expire_at }, true),
            _ => (Change::Delete, true),
        },
    })?;
    if changed {
        call.session.wrote(&call.worker.context.store, key);
    }
    call.reply.integer(i64::from(changed));
    Ok(Flow::Done)
}

/// `EXPIRE key seconds [NX | XX | GT | LT]`
pub(in crate::resp) fn expire(call: &mut Call<'_>) -> Outcome {
    expire_generic(call, TimeUnit::Seconds, Deadline::Relative)
}

/// `PEXPIRE key milliseconds [NX | XX | GT | LT]`
pub(in crate::resp) fn pexpire(call: &mut Call<'_>) -> Outcome {
    expire_generic(call, TimeUnit::Milliseconds, Deadline::Relative)
}

/// `EXPIREAT key unix-seconds [NX | XX | GT | LT]`
pub(in crate::resp) fn expireat(call: &mut Call<'_>) -> Outcome {
    expire_generic(call, TimeUnit::Seconds, Deadline::Absolute)
}

/// `PEXPIREAT key unix-milliseconds [NX | XX | GT | LT]`
pub(in crate::resp) fn pexpireat(call: &mut Call<'_>) -> Outcome {
    expire_generic(call, TimeUnit::Milliseconds, Deadline::Absolute)
}

/// When the record expires in Unix milliseconds; -1 = never, -2 = no such key.
fn expires_at_ms(call: &Call<'_>) -> Result<i64, CommandError> {
    let expire_at = call.store().read(call.args.at(1), |entry| entry.expire_at)?;
    call.looked_up(expire_at.is_some());
    Ok(match expire_at {
        None => -2,
        Some(0) => -1,
        Some(expire_at) => i64::try_from(expire_at).unwrap_or(i64::MAX),
    })
}

/// A time, rounded to the nearest second as Redis does; less than zero is no time.
fn seconds(time_ms: i64) -> i64 {
    if time_ms < 0 { time_ms } else { (time_ms / 1000).saturating_add(i64::from(time_ms % 1000 >= 500)) }
}

/// `EXPIRETIME key`
pub(in crate::resp) fn expiretime(call: &mut Call<'_>) -> Outcome {
    let time_ms = expires_at_ms(call)?;
    call.reply.integer(seconds(time_ms));
    Ok(Flow::Done)
}

/// `PEXPIRETIME key`
pub(in crate::resp) fn pexpiretime(call: &mut Call<'_>) -> Outcome {
    let time_ms = expires_at_ms(call)?;
    call.reply.integer(time_ms);
    Ok(Flow::Done)
}

/// Milliseconds left; -1 = never expires, -2 = no such key.
fn time_left_ms(call: &Call<'_>) -> Result<i64, CommandError> {
    let time_ms = expires_at_ms(call)?;
    Ok(if time_ms < 0 { time_ms } else { (time_ms - call.now_ms()).max(0) })
}

/// `TTL key`
pub(in crate::resp) fn ttl(call: &mut Call<'_>) -> Outcome {
    let left_ms = time_left_ms(call)?;
    call.reply.integer(seconds(left_ms));
    Ok(Flow::Done)
}

/// `PTTL key`
pub(in crate::resp) fn pttl(call: &mut Call<'_>) -> Outcome {
    let left_ms = time_left_ms(call)?;
    call.reply.integer(left_ms);
    Ok(Flow::Done)
}

/// `PERSIST key`
pub(in crate::resp) fn persist(call: &mut Call<'_>) -> Outcome {
    let key = call.args.at(1);
    let changed = call.store().update(key, |old, _| match old {
        Some(entry) if entry.expire_at != 0 => (Change::Expire { expire_at: 0 }, true),
        _ => (Change::Keep, false),
    })?;
    if changed {
        call.session.wrote(&call.worker.context.store, key);
    }
    call.reply.integer(i64::from(changed));
    Ok(Flow::Done)
}
