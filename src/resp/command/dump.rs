//! DUMP and RESTORE: a value in the form in which Redis keeps it, with version and checksum.

use super::super::error::CommandError;
use super::keys::latest;
use super::{Call, Flow};
use crate::rdb::{PayloadError, parse_payload, payload};
use crate::store::{Change, WriteError};

type Outcome = Result<Flow, CommandError>;

const BUSY: CommandError = CommandError::text("BUSYKEY Target key name already exists.");

/// `DUMP key`
pub(in crate::resp) fn dump(call: &mut Call<'_>) -> Outcome {
    let reply = &mut *call.reply;
    let store = &call.worker.context.store;
    let found = store.read(call.args.at(1), |entry| reply.bulk(&payload(entry.value)))?.is_some();
    if !found {
        call.reply.null();
    }
    call.looked_up(found);
    Ok(Flow::Done)
}

#[derive(Debug, Default)]
struct Options {
    replace: bool,
    is_absolute: bool,
}

/// How often and when a record was used is not kept: such options are checked, and that is all.
fn options(call: &Call<'_>) -> Result<Options, CommandError> {
    let args = call.args;
    let (mut options, mut at) = (Options::default(), 4);
    let (mut has_idle_time, mut has_frequency) = (false, false);
    while at < args.len() {
        let has_value = at + 1 < args.len();
        if args.is(at, "replace") {
            options.replace = true;
        } else if args.is(at, "absttl") {
            options.is_absolute = true;
        } else if args.is(at, "idletime") && has_value && !has_frequency {
            if args.integer(at + 1)? < 0 {
                return Err(CommandError::text("ERR Invalid IDLETIME value, must be >= 0"));
            }
            has_idle_time = true;
            at += 1;
        } else if args.is(at, "freq") && has_value && !has_idle_time {
            if !(0..=255).contains(&args.integer(at + 1)?) {
                return Err(CommandError::text("ERR Invalid FREQ value, must be >= 0 and <= 255"));
            }
            has_frequency = true;
            at += 1;
        } else {
            return Err(CommandError::Syntax);
        }
        at += 1;
    }
    Ok(options)
}

/// The value in the command's payload.
fn value(call: &Call<'_>) -> Result<Vec<u8>, CommandError> {
    let wanted = call.store().geometry().value_size_max;
    parse_payload(call.args.at(3), wanted.into()).map_err(|error| match error {
        PayloadError::Envelope => CommandError::text("ERR DUMP payload version or checksum are wrong"),
        PayloadError::Format => CommandError::text("ERR Bad data format"),
        PayloadError::Type(found) => {
            let text = format!("ERR Bad data format: type {found}, this store holds strings (type 0)");
            CommandError::Text(text.into())
        }
        PayloadError::Size { found } => WriteError::ValueSize { found, wanted }.into(),
    })
}

/// `RESTORE key ttl payload [REPLACE] [ABSTTL] [IDLETIME seconds] [FREQ frequency]`
pub(in crate::resp) fn restore(call: &mut Call<'_>) -> Outcome {
    let options = options(call)?;
    let (key, store) = (call.args.at(1), &call.worker.context.store);
    if !options.replace && latest(store, key, |_| ())?.is_some() {
        return Err(BUSY);
    }
    let time = call.args.integer(2)?;
    if time < 0 {
        return Err(CommandError::text("ERR Invalid TTL value, must be >= 0"));
    }
    let value = value(call)?;
    let now_ms = call.now_ms();
    let expire_at = match time {
        0 => None,
        time if options.is_absolute => Some(time),
        // As in Redis, a time beyond all times is one that is over.
        time => Some(time.wrapping_add(now_ms)),
    };
    let is_over = expire_at.is_some_and(|expire_at| expire_at <= now_ms);
    let expire_at = expire_at.and_then(|expire_at| u64::try_from(expire_at).ok()).unwrap_or(0);
    let changed = store.update(key, |old, buffer| {
        if old.is_some() && !options.replace {
            return (Change::Keep, Err(BUSY));
        }
        if is_over {
            return (Change::Delete, Ok(old.is_some()));
        }
        buffer.extend_from_slice(&value);
        (Change::Put { expire_at }, Ok(true))
    })??;
    if changed {
        call.session.wrote(store, key);
    }
    call.reply.ok();
    Ok(Flow::Done)
}
