//! BITOP: the bits of several values make another one.
//!
//! Each source is read as it is at its moment; the target is stored as one change.

use super::super::error::CommandError;
use super::keys::latest;
use super::{Call, Flow};
use crate::store::Change;

/// What two bytes become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    And,
    Or,
    Xor,
    Not,
}

fn operation(call: &Call<'_>) -> Result<Operation, CommandError> {
    let words =
        [("and", Operation::And), ("or", Operation::Or), ("xor", Operation::Xor), ("not", Operation::Not)];
    let found = words.into_iter().find(|(word, _)| call.args.is(1, word));
    found.map(|(_, operation)| operation).ok_or(CommandError::Syntax)
}

impl Operation {
    /// Takes the next source in: the shorter of two is followed by zeros.
    fn fold(self, result: &mut Vec<u8>, source: &[u8]) {
        if source.len() > result.len() {
            result.resize(source.len(), 0);
        }
        for (at, byte) in result.iter_mut().enumerate() {
            let other = source.get(at).copied().unwrap_or(0);
            match self {
                Self::And => *byte &= other,
                Self::Or => *byte |= other,
                Self::Xor | Self::Not => *byte ^= other,
            }
        }
    }
}

/// `BITOP AND | OR | XOR | NOT target key [key ...]`
pub(in crate::resp) fn bitop(call: &mut Call<'_>) -> Result<Flow, CommandError> {
    let operation = operation(call)?;
    if operation == Operation::Not && call.args.len() != 4 {
        return Err(CommandError::text("ERR BITOP NOT must be called with a single source key."));
    }
    let store = &call.worker.context.store;
    let mut result: Option<Vec<u8>> = None;
    for key in call.args.from(3) {
        let source = latest(store, key, |entry| entry.value.to_vec())?.unwrap_or_default();
        match &mut result {
            Some(result) => operation.fold(result, &source),
            None => result = Some(source),
        }
    }
    let mut result = result.unwrap_or_default();
    if operation == Operation::Not {
        result.iter_mut().for_each(|byte| *byte = !*byte);
    }
    let target = call.args.at(2);
    let changed = store.update(target, |old, buffer| {
        if result.is_empty() {
            return (Change::Delete, old.is_some());
        }
        buffer.extend_from_slice(&result);
        (Change::Put { expire_at: 0 }, true)
    })?;
    if changed {
        call.session.wrote(store, target);
    }
    call.reply.count(result.len() as u64);
    Ok(Flow::Done)
}
