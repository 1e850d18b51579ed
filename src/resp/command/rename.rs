//! RENAME, RENAMENX and COPY: a record gets another key, with its expiry.
//!
//! The target is stored before the source goes: whatever stops a command in between, nothing is lost.

use super::super::error::CommandError;
use super::keys::{SAME_OBJECT, check_database, latest};
use super::{Call, Flow};
use crate::slot::Seq;
use crate::store::{Change, Store, WriteError};

type Outcome = Result<Flow, CommandError>;

struct Record {
    value: Vec<u8>,
    expire_at: u64,
    seq: Seq,
}

fn record(store: &Store, key: &[u8]) -> Result<Option<Record>, WriteError> {
    let copy = |entry: crate::store::Entry<'_>| Record {
        value: entry.value.to_vec(),
        expire_at: entry.expire_at,
        seq: entry.seq,
    };
    latest(store, key, copy)
}

/// Stores the record; false if there is one that is not to be replaced.
fn put(call: &mut Call<'_>, key: &[u8], record: &Record, replace: bool) -> Result<bool, CommandError> {
    let store = &call.worker.context.store;
    let is_done = store.update(key, |old, buffer| {
        if old.is_some() && !replace {
            return (Change::Keep, false);
        }
        buffer.extend_from_slice(&record.value);
        (Change::Put { expire_at: record.expire_at }, true)
    })?;
    if is_done {
        call.session.wrote(store, key);
    }
    Ok(is_done)
}

/// Moves the record; false if there is one already that is not to be replaced.
fn move_record(call: &mut Call<'_>, replace: bool) -> Result<bool, CommandError> {
    let (source, target) = (call.args.at(1), call.args.at(2));
    let store = &call.worker.context.store;
    let mut replace = replace;
    loop {
        let record = record(store, source)?.ok_or(CommandError::text("ERR no such key"))?;
        if source == target {
            return Ok(replace);
        }
        if !put(call, target, &record, replace)? {
            return Ok(false);
        }
        // What was written to the source since it was read is not to go with it.
        let (is_moved, is_deleted) = store.update(source, |old, _| match old {
            Some(entry) if entry.seq == record.seq => (Change::Delete, (true, true)),
            Some(_) => (Change::Keep, (false, false)),
            None => (Change::Keep, (true, false)),
        })?;
        if is_deleted {
            call.session.wrote(store, source);
        }
        if is_moved {
            return Ok(true);
        }
        // What is at the target now is an older state of the source.
        replace = true;
    }
}

/// `RENAME key newkey`
pub(in crate::resp) fn rename(call: &mut Call<'_>) -> Outcome {
    move_record(call, true)?;
    call.reply.ok();
    Ok(Flow::Done)
}

/// `RENAMENX key newkey`
pub(in crate::resp) fn renamenx(call: &mut Call<'_>) -> Outcome {
    let is_done = move_record(call, false)?;
    call.reply.integer(is_done.into());
    Ok(Flow::Done)
}

/// `COPY source target [DB database] [REPLACE]`
pub(in crate::resp) fn copy(call: &mut Call<'_>) -> Outcome {
    let args = call.args;
    let (mut replace, mut at) = (false, 3);
    while at < args.len() {
        if args.is(at, "replace") {
            replace = true;
        } else if args.is(at, "db") && at + 1 < args.len() {
            at += 1;
            check_database(call, at)?;
        } else {
            return Err(CommandError::Syntax);
        }
        at += 1;
    }
    if args.at(1) == args.at(2) {
        return Err(SAME_OBJECT);
    }
    let is_done = match record(call.store(), args.at(1))? {
        Some(record) => put(call, args.at(2), &record, replace)?,
        None => false,
    };
    call.reply.integer(is_done.into());
    Ok(Flow::Done)
}
