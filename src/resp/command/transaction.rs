//! MULTI, EXEC, DISCARD, WATCH, UNWATCH.
//!
//! EXEC holds the shards of all its keys, and those that are watched, while its commands are done: to everybody else on
//! this node they are one step. So it is done in one go, in its worker's thread, and its replies are made as a whole:
//! where they are too large the commands are done all the same, and the connection is closed in place of the
//! replies. Commands that give the node an order wait for other threads, which may need the shards: an EXEC that has
//! one of these holds nothing.

use std::collections::HashMap;

use super::super::error::CommandError;
use super::super::reply::Reply;
use super::super::rules::demand;
use super::super::session::{Queue, Session};
use super::super::table::{Command, TABLE, flag};
use super::strings::REPLY_BYTES_MAX;
use super::{Args, Call, Flow, is_held, together};
use crate::slot::ShardIndex;
use crate::store::{Intent, Mark, Store, WriteError};

type Outcome = Result<Flow, CommandError>;

/// Bytes of keys, and of what is kept of them, that a connection may watch.
const WATCHED_BYTES_MAX: usize = 4 << 20;

/// Keys that must be left alone until EXEC, or it does nothing.
#[derive(Debug, Default)]
pub(in crate::resp) struct Watched {
    keys: HashMap<Box<[u8]>, Mark>,
    bytes: usize,
}

impl Watched {
    /// Whether nobody has touched one of the keys.
    fn are_untouched(&self, store: &Store) -> Result<bool, CommandError> {
        for (key, mark) in &self.keys {
            if !store.is_marked(key, mark)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Keeps a command for EXEC.
pub(super) fn enqueue(session: &mut Session, reply: &mut Reply, args: Args<'_>, row: u8) -> Outcome {
    let Some(queue) = &mut session.queue else { return Ok(Flow::Done) };
    if !queue.push(row, args.from(0)) {
        queue.broken = true;
        return Err(CommandError::text("ERR transaction is too large"));
    }
    reply.raw(b"+QUEUED\r\n");
    Ok(Flow::Done)
}

/// `MULTI`
pub(in crate::resp) fn multi(call: &mut Call<'_>) -> Outcome {
    if call.session.queue.is_some() {
        return Err(CommandError::text("ERR MULTI calls can not be nested"));
    }
    call.session.queue = Some(Box::default());
    call.reply.ok();
    Ok(Flow::Done)
}

/// `DISCARD`
pub(in crate::resp) fn discard(call: &mut Call<'_>) -> Outcome {
    if call.session.queue.take().is_none() {
        return Err(CommandError::text("ERR DISCARD without MULTI"));
    }
    call.session.watched = None;
    call.reply.ok();
    Ok(Flow::Done)
}

/// `WATCH key [key ...]`
pub(in crate::resp) fn watch(call: &mut Call<'_>) -> Outcome {
    if call.session.queue.is_some() {
        return Err(CommandError::text("ERR WATCH inside MULTI is not allowed"));
    }
    let store = &call.worker.context.store;
    let watched = call.session.watched.get_or_insert_default();
    for key in call.args.from(1) {
        if watched.keys.contains_key(key) {
            continue;
        }
        watched.bytes += key.len() + size_of::<(Box<[u8]>, Mark)>();
        if watched.bytes > WATCHED_BYTES_MAX {
            // What is watched no longer cannot be trusted to be.
            call.session.watched = None;
            return Err(CommandError::text("ERR too many keys are watched; none is now"));
        }
        watched.keys.insert(key.into(), store.mark(key)?);
    }
    call.reply.ok();
    Ok(Flow::Done)
}

/// `UNWATCH`
pub(in crate::resp) fn unwatch(call: &mut Call<'_>) -> Outcome {
    call.session.watched = None;
    call.reply.ok();
    Ok(Flow::Done)
}

/// A queue's commands, each with its arguments.
fn commands(queue: &Queue) -> impl Iterator<Item = (&'static Command, u8, Args<'_>)> {
    (0..queue.len()).map(|index| {
        let (row, bytes, ranges) = queue.command(index);
        (&TABLE[usize::from(row)], row, Args::new(bytes, ranges))
    })
}

fn abort(because: CommandError) -> CommandError {
    CommandError::repeating("EXECABORT Transaction discarded because of: ", &because.message(), "")
}

/// EXEC with arguments, which ends the transaction.
pub(super) fn refuse_exec(session: &mut Session) -> Outcome {
    (session.queue, session.watched) = (None, None);
    let text = "EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command";
    Err(CommandError::text(text))
}

/// `EXEC`
pub(in crate::resp) fn exec(call: &mut Call<'_>) -> Outcome {
    let Some(queue) = call.session.queue.take() else {
        return Err(CommandError::text("ERR EXEC without MULTI"));
    };
    let watched = call.session.watched.take();
    if queue.broken {
        return Err(CommandError::text("EXECABORT Transaction discarded because of previous errors."));
    }
    let store = &call.worker.context.store;
    let writes = commands(&queue).any(|(command, ..)| command.is(flag::WRITE));
    if writes && store.is_read_only() {
        return put_off(call, queue, watched);
    }
    if call.worker.rules.flags() != 0 {
        // Followers may have gone since the commands were queued: then none of them is done.
        for (command, _, args) in commands(&queue) {
            call.worker.rules.check(call.worker, command, args).map_err(abort)?;
        }
    }
    if commands(&queue).any(|(command, ..)| command.is(flag::ADMIN)) {
        return run(call, &queue, watched.as_deref(), false);
    }
    let waits_for_log = call.worker.rules.flags() & demand::DURABLE != 0;
    let looks_at_all = |command: &Command| command.first_key == 0 && command.is(flag::READONLY);
    if waits_for_log && store.has_pending() && commands(&queue).any(|(command, ..)| looks_at_all(command)) {
        super::settle(call.worker)?;
    }
    let mut shards: Vec<ShardIndex> =
        watched.iter().flat_map(|watched| watched.keys.keys()).map(|key| store.shard_of(key)).collect();
    for (command, _, args) in commands(&queue) {
        shards.extend(together::shards(store, command, args, 0));
        if shards.len() > 2 * usize::from(store.geometry().shard_count) {
            shards.sort_unstable();
            shards.dedup();
        }
    }
    let intent = if writes { Intent::Write } else { Intent::Read };
    if writes {
        call.session.begin_hold(store);
    }
    let done = store.transact(shards, intent, || run(call, &queue, watched.as_deref(), true));
    call.session.end_hold();
    match done {
        Ok(outcome) => outcome,
        Err(WriteError::ReadOnly | WriteError::Regaining) => put_off(call, queue, watched),
        Err(error) => Err(abort(error.into())),
    }
}

/// EXEC of a store that takes no writes: all of it waits, or none of it is done.
fn put_off(call: &mut Call<'_>, queue: Box<Queue>, watched: Option<Box<Watched>>) -> Outcome {
    if call.may_pause && is_held(call.worker) {
        (call.session.queue, call.session.watched) = (Some(queue), watched);
        return Ok(Flow::Hold);
    }
    let is_regaining = call.worker.context.store.is_regaining();
    let error = if is_regaining { WriteError::Regaining } else { WriteError::ReadOnly };
    Err(abort(super::told(call.worker, error.into())))
}

fn run(call: &mut Call<'_>, queue: &Queue, watched: Option<&Watched>, is_isolated: bool) -> Outcome {
    let store = &call.worker.context.store;
    if let Some(watched) = watched
        && !watched.are_untouched(store)?
    {
        call.reply.null_array();
        return Ok(Flow::Done);
    }
    let start = call.reply.len();
    let (mut closes, mut is_too_large) = (false, false);
    call.reply.array(queue.len());
    for (command, row, args) in commands(queue) {
        is_too_large |= call.reply.len() > start + 2 * REPLY_BYTES_MAX;
        if is_too_large {
            call.reply.truncate(start);
        }
        let waits_for_log = call.worker.rules.flags() & demand::DURABLE != 0;
        if waits_for_log
            && !is_isolated
            && super::reads_pending(call.worker, args, Some(row))
            && let Err(error) = super::settle(call.worker)
        {
            call.reply.error(&error.message());
            continue;
        }
        let mut inner = Call {
            args,
            reply: &mut *call.reply,
            session: &mut *call.session,
            worker: call.worker,
            row,
            resume: 0,
            in_exec: true,
            may_pause: false,
        };
        let done = if is_isolated { (command.run)(&mut inner) } else { together::run(&mut inner) };
        match done {
            Ok(Flow::Close) => closes = true,
            Ok(Flow::Done | Flow::More(_) | Flow::Wait(_) | Flow::Ask(_) | Flow::Hold | Flow::Again) => {}
            Err(error) => call.reply.error(&super::told(call.worker, error).message()),
        }
    }
    if is_too_large {
        call.reply.truncate(start);
        let client = call.session.info.peer;
        tracing::warn!(%client, "the replies of an EXEC are too large: it is done, its client is disconnected");
    }
    Ok(if closes || is_too_large { Flow::Close } else { Flow::Done })
}
