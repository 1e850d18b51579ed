//! Keys as such: DEL, EXISTS, TOUCH, TYPE; and what would move keys between databases, of which there is one.

use super::super::error::CommandError;
use super::strings::check_sizes;
use super::{Call, Flow};
use crate::store::{Change, Entry, Store, WriteError};

type Outcome = Result<Flow, CommandError>;

/// Calls `f` with the record that the key's next write will find: with a log that comes first, one that waits for it.
pub(super) fn latest<T>(
    store: &Store,
    key: &[u8],
    f: impl FnOnce(Entry<'_>) -> T,
) -> Result<Option<T>, WriteError> {
    if store.is_pending(key) {
        return store.update(key, |old, _| (Change::Keep, old.map(f)));
    }
    Ok(store.read(key, f)?)
}

/// `DEL key [key ...]`, `UNLINK key [key ...]`
pub(in crate::resp) fn del(call: &mut Call<'_>) -> Outcome {
    let store = &call.worker.context.store;
    let mut deleted = 0;
    for key in call.args.from(1) {
        // A key that no slot can hold is a key that is not there.
        if check_sizes(&store.geometry(), key, b"").is_err() {
            continue;
        }
        if store.delete(key)? {
            deleted += 1;
            call.session.wrote(store, key);
        }
    }
    call.reply.integer(deleted);
    Ok(Flow::Done)
}

/// `EXISTS key [key ...]`, `TOUCH key [key ...]`; a key named twice counts twice.
pub(in crate::resp) fn exists(call: &mut Call<'_>) -> Outcome {
    let mut found = 0;
    for key in call.args.from(1) {
        let exists = call.store().contains(key)?;
        call.looked_up(exists);
        found += i64::from(exists);
    }
    call.reply.integer(found);
    Ok(Flow::Done)
}

/// `TYPE key`
pub(in crate::resp) fn type_of(call: &mut Call<'_>) -> Outcome {
    let exists = call.store().contains(call.args.at(1))?;
    call.looked_up(exists);
    call.reply.simple(if exists { "string" } else { "none" });
    Ok(Flow::Done)
}

/// The number of a database, of which only 0 exists.
pub(super) fn check_database(call: &Call<'_>, index: usize) -> Result<(), CommandError> {
    match call.args.integer(index)? {
        0 => Ok(()),
        number if i32::try_from(number).is_ok() => Err(CommandError::text("ERR DB index is out of range")),
        _ => {
            let text = format!("ERR value is out of range, value must between {} and {}", i32::MIN, i32::MAX);
            Err(CommandError::Text(text.into()))
        }
    }
}

/// What Redis says where a record would be copied onto itself.
pub(super) const SAME_OBJECT: CommandError =
    CommandError::text("ERR source and destination objects are the same");

/// `MOVE key database`
pub(in crate::resp) fn move_key(call: &mut Call<'_>) -> Outcome {
    check_database(call, 2)?;
    Err(SAME_OBJECT)
}

/// `SWAPDB database database`
pub(in crate::resp) fn swapdb(call: &mut Call<'_>) -> Outcome {
    let is_number = |index| call.args.integer(index).is_ok_and(|number| i32::try_from(number).is_ok());
    if !is_number(1) {
        return Err(CommandError::text("ERR invalid first DB index"));
    }
    if !is_number(2) {
        return Err(CommandError::text("ERR invalid second DB index"));
    }
    check_database(call, 1)?;
    check_database(call, 2)?;
    call.reply.ok();
    Ok(Flow::Done)
}
