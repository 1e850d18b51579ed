//! Keys as such: DEL, EXISTS, TYPE.

use super::super::error::CommandError;
use super::strings::check_sizes;
use super::{Call, Flow};

type Outcome = Result<Flow, CommandError>;

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

/// `EXISTS key [key ...]`; a key named twice counts twice.
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
