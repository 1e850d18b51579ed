//! Values: GET, SET and their kin, APPEND.

use super::super::error::CommandError;
use super::expiry::{Deadline, TimeUnit, deadline};
use super::keys::latest;
use super::{Call, Flow};
use crate::slot::Geometry;
use crate::store::{Change, Entry, WriteError};

type Outcome = Result<Flow, CommandError>;

/// Writes the value of `key`, or null.
fn reply_value(call: &mut Call<'_>, key: &[u8]) -> Result<(), CommandError> {
    let reply = &mut *call.reply;
    let found = call.worker.context.store.read(key, |entry| reply.bulk(entry.value))?.is_some();
    if !found {
        call.reply.null();
    }
    call.looked_up(found);
    Ok(())
}

/// `GET key`
pub(in crate::resp) fn get(call: &mut Call<'_>) -> Outcome {
    reply_value(call, call.args.at(1))?;
    Ok(Flow::Done)
}

/// When SET may store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Always,
    Absent,
    Present,
    /// If the value is this argument.
    Equal(usize),
}

/// What SET's or GETEX's expiry options ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExpiryOption {
    None,
    Keep,
    Persist,
    /// Position of the time, and how to read it.
    Time(usize, TimeUnit, Deadline),
}

#[derive(Debug)]
struct SetOptions {
    condition: Condition,
    expiry: ExpiryOption,
    get: bool,
}

/// Reads the options of SET (`is_set`) or GETEX from argument `start` on.
fn options(call: &Call<'_>, start: usize, is_set: bool) -> Result<SetOptions, CommandError> {
    let args = call.args;
    let mut options = SetOptions { condition: Condition::Always, expiry: ExpiryOption::None, get: false };
    let mut at = start;
    while at < args.len() {
        let time = |unit, kind| match options.expiry {
            // The same option again takes the later time.
            ExpiryOption::None if at + 1 < args.len() => Ok(ExpiryOption::Time(at + 1, unit, kind)),
            ExpiryOption::Time(_, unit_before, kind_before)
                if at + 1 < args.len() && (unit_before, kind_before) == (unit, kind) =>
            {
                Ok(ExpiryOption::Time(at + 1, unit, kind))
            }
            _ => Err(CommandError::Syntax),
        };
        let word = args.at(at).to_ascii_uppercase();
        match word.as_slice() {
            b"NX" if is_set && matches!(options.condition, Condition::Always | Condition::Absent) => {
                options.condition = Condition::Absent
            }
            b"XX" if is_set && matches!(options.condition, Condition::Always | Condition::Present) => {
                options.condition = Condition::Present
            }
            b"IFEQ" if is_set && options.condition == Condition::Always && at + 1 < args.len() => {
                options.condition = Condition::Equal(at + 1);
            }
            b"GET" if is_set => options.get = true,
            b"KEEPTTL" if is_set && matches!(options.expiry, ExpiryOption::None | ExpiryOption::Keep) => {
                options.expiry = ExpiryOption::Keep;
            }
            b"PERSIST" if !is_set && matches!(options.expiry, ExpiryOption::None | ExpiryOption::Persist) => {
                options.expiry = ExpiryOption::Persist;
            }
            b"EX" => options.expiry = time(TimeUnit::Seconds, Deadline::Relative)?,
            b"PX" => options.expiry = time(TimeUnit::Milliseconds, Deadline::Relative)?,
            b"EXAT" => options.expiry = time(TimeUnit::Seconds, Deadline::Absolute)?,
            b"PXAT" => options.expiry = time(TimeUnit::Milliseconds, Deadline::Absolute)?,
            _ => return Err(CommandError::Syntax),
        }
        at += if matches!(word.as_slice(), b"EX" | b"PX" | b"EXAT" | b"PXAT" | b"IFEQ") { 2 } else { 1 };
    }
    Ok(options)
}

/// `SET key value [NX | XX | IFEQ value] [GET] [EX s | PX ms | EXAT s | PXAT ms | KEEPTTL]`
pub(in crate::resp) fn set(call: &mut Call<'_>) -> Outcome {
    let (key, value) = (call.args.at(1), call.args.at(2));
    let options = options(call, 3, true)?;
    let expire_at = match options.expiry {
        ExpiryOption::Time(at, unit, kind) => deadline(call, at, unit, kind)?,
        _ => 0,
    };
    let keep = options.expiry == ExpiryOption::Keep;
    if options.condition == Condition::Always && !options.get && !keep {
        let seq = call.store().put_expiring(key, value, expire_at)?;
        call.session.wrote_at(&call.worker.context.store, key, seq);
        call.reply.ok();
        return Ok(Flow::Done);
    }
    let (args, mark) = (call.args, call.reply.len());
    let reply = &mut *call.reply;
    let result = call.worker.context.store.update(key, |old, buffer| {
        if options.get {
            match old {
                Some(entry) => reply.bulk(entry.value),
                None => reply.null(),
            }
        }
        let allowed = match options.condition {
            Condition::Always => true,
            Condition::Absent => old.is_none(),
            Condition::Present => old.is_some(),
            Condition::Equal(at) => old.is_some_and(|entry| entry.value == args.at(at)),
        };
        if !allowed {
            return (Change::Keep, false);
        }
        buffer.extend_from_slice(value);
        let kept = old.filter(|_| keep).map_or(expire_at, |entry| entry.expire_at);
        (Change::Put { expire_at: kept }, true)
    });
    let stored = match result {
        Ok(stored) => stored,
        Err(error) => {
            call.reply.truncate(mark);
            return Err(error.into());
        }
    };
    if stored {
        call.session.wrote(&call.worker.context.store, key);
    }
    if !options.get {
        if stored { call.reply.ok() } else { call.reply.null() }
    }
    Ok(Flow::Done)
}

/// `SETNX key value`
pub(in crate::resp) fn setnx(call: &mut Call<'_>) -> Outcome {
    let (key, value) = (call.args.at(1), call.args.at(2));
    let stored = call.store().update(key, |old, buffer| {
        if old.is_some() {
            return (Change::Keep, false);
        }
        buffer.extend_from_slice(value);
        (Change::Put { expire_at: 0 }, true)
    })?;
    if stored {
        call.session.wrote(&call.worker.context.store, key);
    }
    call.reply.integer(i64::from(stored));
    Ok(Flow::Done)
}

fn set_with_time(call: &mut Call<'_>, unit: TimeUnit) -> Outcome {
    let (key, value) = (call.args.at(1), call.args.at(3));
    let expire_at = deadline(call, 2, unit, Deadline::Relative)?;
    let seq = call.store().put_expiring(key, value, expire_at)?;
    call.session.wrote_at(&call.worker.context.store, key, seq);
    call.reply.ok();
    Ok(Flow::Done)
}

/// `SETEX key seconds value`
pub(in crate::resp) fn setex(call: &mut Call<'_>) -> Outcome {
    set_with_time(call, TimeUnit::Seconds)
}

/// `PSETEX key milliseconds value`
pub(in crate::resp) fn psetex(call: &mut Call<'_>) -> Outcome {
    set_with_time(call, TimeUnit::Milliseconds)
}

/// `DELIFEQ key value`
pub(in crate::resp) fn delifeq(call: &mut Call<'_>) -> Outcome {
    let (key, value) = (call.args.at(1), call.args.at(2));
    let deleted = call.store().update(key, |old, _| match old {
        Some(entry) if entry.value == value => (Change::Delete, true),
        _ => (Change::Keep, false),
    })?;
    if deleted {
        call.session.wrote(&call.worker.context.store, key);
    }
    call.reply.integer(i64::from(deleted));
    Ok(Flow::Done)
}

/// Writes the old value, or null, and makes the change that `change` asks for.
fn reply_old_value(
    call: &mut Call<'_>,
    key: &[u8],
    change: impl FnOnce(Option<Entry<'_>>, &mut Vec<u8>) -> Change,
) -> Outcome {
    let mark = call.reply.len();
    let reply = &mut *call.reply;
    let result = call.worker.context.store.update(key, |old, buffer| {
        match old {
            Some(entry) => reply.bulk(entry.value),
            None => reply.null(),
        }
        let change = change(old, buffer);
        (change, (old.is_some(), change != Change::Keep))
    });
    match result {
        Ok((found, changed)) => {
            call.looked_up(found);
            if changed {
                call.session.wrote(&call.worker.context.store, key);
            }
            Ok(Flow::Done)
        }
        Err(error) => {
            call.reply.truncate(mark);
            Err(error.into())
        }
    }
}

/// `GETSET key value`
pub(in crate::resp) fn getset(call: &mut Call<'_>) -> Outcome {
    let (key, value) = (call.args.at(1), call.args.at(2));
    reply_old_value(call, key, |_, buffer| {
        buffer.extend_from_slice(value);
        Change::Put { expire_at: 0 }
    })
}

/// `GETDEL key`
pub(in crate::resp) fn getdel(call: &mut Call<'_>) -> Outcome {
    reply_old_value(call, call.args.at(1), |old, _| if old.is_some() { Change::Delete } else { Change::Keep })
}

/// `GETEX key [EX s | PX ms | EXAT s | PXAT ms | PERSIST]`
pub(in crate::resp) fn getex(call: &mut Call<'_>) -> Outcome {
    let key = call.args.at(1);
    let expire_at = match options(call, 2, false)?.expiry {
        ExpiryOption::None | ExpiryOption::Keep => None,
        ExpiryOption::Persist => Some(0),
        ExpiryOption::Time(at, unit, kind) => {
            // Redis looks at the time only if there is a key.
            match deadline(call, at, unit, kind) {
                Ok(expire_at) => Some(expire_at),
                Err(error) if latest(call.store(), key, |_| ())?.is_some() => return Err(error),
                Err(_) => None,
            }
        }
    };
    let Some(expire_at) = expire_at else {
        if call.store().is_pending(key) {
            return reply_old_value(call, key, |_, _| Change::Keep);
        }
        reply_value(call, key)?;
        return Ok(Flow::Done);
    };
    let now_ms = call.store().clock().unix_ms();
    reply_old_value(call, key, |old, _| match old {
        None => Change::Keep,
        Some(entry) if entry.expire_at == expire_at => Change::Keep,
        Some(_) if expire_at != 0 && expire_at <= now_ms => Change::Delete,
        Some(_) => Change::Expire { expire_at },
    })
}

/// Whether a record of this key and value fits a slot.
pub(in crate::resp) fn check_sizes(geometry: &Geometry, key: &[u8], value: &[u8]) -> Result<(), WriteError> {
    let (key_max, value_max) = (geometry.key_size_max, geometry.value_size_max);
    if key.is_empty() || key.len() > usize::from(key_max) {
        return Err(WriteError::KeySize { found: key.len(), wanted: key_max });
    }
    if value.len() > usize::from(value_max) {
        return Err(WriteError::ValueSize { found: value.len(), wanted: value_max });
    }
    Ok(())
}

/// Above this many bytes a long reply is sent before it goes on.
const REPLY_PAUSE_BYTES: usize = 1 << 20;
/// A reply that cannot be sent in parts is refused, or given up, beyond this many bytes.
pub(super) const REPLY_BYTES_MAX: usize = 32 << 20;

/// Refuses a reply that would be too large to be made as a whole.
fn check_reply_size(call: &Call<'_>) -> Result<(), CommandError> {
    const FRAME_BYTES: usize = 16;
    let bytes_max =
        (call.args.len() - 1) * (usize::from(call.store().geometry().value_size_max) + FRAME_BYTES);
    if call.reply.len() + bytes_max <= REPLY_BYTES_MAX {
        return Ok(());
    }
    let mut bytes = call.reply.len();
    for key in call.args.from(1) {
        bytes += FRAME_BYTES + call.store().read(key, |entry| entry.value.len()).unwrap_or(None).unwrap_or(0);
        if bytes > REPLY_BYTES_MAX {
            let text = format!(
                "ERR the reply is larger than {REPLY_BYTES_MAX} bytes; ask for fewer keys, or not inline or in MULTI"
            );
            return Err(CommandError::Text(text.into()));
        }
    }
    Ok(())
}

/// `MGET key [key ...]`
pub(in crate::resp) fn mget(call: &mut Call<'_>) -> Outcome {
    if !call.may_pause {
        check_reply_size(call)?;
    }
    if call.resume == 0 {
        call.reply.array(call.args.len() - 1);
    }
    for index in call.resume.max(1)..call.args.len() {
        if call.reply.len() > REPLY_PAUSE_BYTES && call.may_pause {
            return Ok(Flow::More(index));
        }
        if call.reply.len() > 2 * REPLY_BYTES_MAX {
            // The values have grown since they were looked at. Half an array cannot be taken back: the connection is all that can be given up.
            return Ok(Flow::Close);
        }
        // One reply per key, so that a damaged record does not put the others in the wrong place.
        if let Err(error) = reply_value(call, call.args.at(index)) {
            call.reply.error(&error.message());
        }
    }
    Ok(Flow::Done)
}

/// The records that MSET or MSETNX stores. All sizes first, so that a command refused for one of them changes nothing.
fn pairs<'a>(call: &Call<'a>) -> Result<impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a>, CommandError> {
    let args = call.args;
    if args.len().is_multiple_of(2) {
        return Err(call.arity_error());
    }
    let pairs = (1..args.len()).step_by(2).map(move |index| (args.at(index), args.at(index + 1)));
    let geometry = call.store().geometry();
    for (key, value) in pairs.clone() {
        check_sizes(&geometry, key, value)?;
    }
    Ok(pairs)
}

fn put_all<'a>(
    call: &mut Call<'_>,
    pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<(), CommandError> {
    for (key, value) in pairs {
        let seq = call.worker.context.store.put(key, value)?;
        call.session.wrote_at(&call.worker.context.store, key, seq);
    }
    Ok(())
}

/// `MSET key value [key value ...]`
pub(in crate::resp) fn mset(call: &mut Call<'_>) -> Outcome {
    let pairs = pairs(call)?;
    put_all(call, pairs)?;
    call.reply.ok();
    Ok(Flow::Done)
}

/// `MSETNX key value [key value ...]`
pub(in crate::resp) fn msetnx(call: &mut Call<'_>) -> Outcome {
    let pairs = pairs(call)?;
    for index in (1..call.args.len()).step_by(2) {
        if latest(call.store(), call.args.at(index), |_| ())?.is_some() {
            call.reply.integer(0);
            return Ok(Flow::Done);
        }
    }
    put_all(call, pairs)?;
    call.reply.integer(1);
    Ok(Flow::Done)
}

/// `STRLEN key`
pub(in crate::resp) fn strlen(call: &mut Call<'_>) -> Outcome {
    let length = call.store().read(call.args.at(1), |entry| entry.value.len())?;
    call.looked_up(length.is_some());
    call.reply.count(length.unwrap_or(0) as u64);
    Ok(Flow::Done)
}

/// `APPEND key value`
pub(in crate::resp) fn append(call: &mut Call<'_>) -> Outcome {
    let (key, suffix) = (call.args.at(1), call.args.at(2));
    let length = call.store().update(key, |old, buffer| {
        let value = old.map_or(&b""[..], |entry| entry.value);
        buffer.extend_from_slice(value);
        buffer.extend_from_slice(suffix);
        (Change::Put { expire_at: old.map_or(0, |entry| entry.expire_at) }, buffer.len())
    })?;
    call.session.wrote(&call.worker.context.store, key);
    call.reply.count(length as u64);
    Ok(Flow::Done)
}
