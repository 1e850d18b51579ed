//! Commands of several keys, which are one step for everybody else on this node, as in Redis.
//!
//! One that writes holds the shards of its keys. One that reads is done without, and once more with them held if
//! somebody has changed one of these shards meanwhile.

use super::super::error::CommandError;
use super::super::table::{Command, flag};
use super::{Args, Call, Flow};
use crate::slot::ShardIndex;
use crate::store::{Intent, Store};

/// The shards of a command's keys, from argument `from` on; all of them for a command that names no keys.
pub(super) fn shards(store: &Store, command: &Command, args: Args<'_>, from: usize) -> Vec<ShardIndex> {
    let keys = command.key_positions(args.len()).filter(|key| *key >= from);
    // Of many keys nearly all shards are touched: no need to ask for each key.
    if command.first_key == 0 || keys.clone().count() > usize::from(store.geometry().shard_count) {
        return store.shards().collect();
    }
    keys.map(|key| store.shard_of(args.at(key))).collect()
}

/// Does a command that was checked.
pub(super) fn run(call: &mut Call<'_>) -> Result<Flow, CommandError> {
    let command = call.command();
    let keys = command.key_positions(call.args.len());
    let has_several = keys.filter(|key| *key >= call.resume).nth(1).is_some();
    if !has_several || !command.is(flag::WRITE | flag::READONLY) {
        return (command.run)(call);
    }
    let store = &call.worker.context.store;
    let shards = shards(store, command, call.args, call.resume);
    if command.is(flag::WRITE) {
        call.session.begin_hold(store);
        let done = store.transact(shards, Intent::Write, || (command.run)(call));
        call.session.end_hold();
        return done?;
    }
    let start = call.reply.len();
    if let Some(moment) = store.moment(shards.iter().copied()) {
        let outcome = (command.run)(call);
        if store.is_still(&moment) {
            return outcome;
        }
        call.reply.truncate(start);
    }
    store.transact(shards, Intent::Read, || (command.run)(call))?
}
