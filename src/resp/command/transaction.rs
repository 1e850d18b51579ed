//! MULTI, EXEC, DISCARD in their plain form: commands are queued, then done one after another.
//!
//! They are done without commands of the same connection in between; other connections of other
//! workers may write between two of them.

use super::super::error::CommandError;
use super::super::reply::Reply;
use super::super::rules::demand;
use super::super::session::{Queue, Session};
use super::super::table::{TABLE, flag};
use super::strings::REPLY_BYTES_MAX;
use super::{Args, Call, Flow};

type Outcome = Result<Flow, CommandError>;

/// Between two commands of EXEC, a reply longer than this is sent.
const REPLY_PAUSE_BYTES: usize = 1 << 20;

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
    call.reply.ok();
    Ok(Flow::Done)
}

/// `EXEC`
pub(in crate::resp) fn exec(call: &mut Call<'_>) -> Outcome {
    // All of it waits, or none.
    if call.resume == 0 && call.may_pause && super::is_held(call.worker) && has_write(call.session) {
        return Ok(Flow::Hold);
    }
    let Some(queue) = call.session.queue.take() else {
        return Err(CommandError::text("ERR EXEC without MULTI"));
    };
    if queue.broken {
        return Err(CommandError::text("EXECABORT Transaction discarded because of previous errors."));
    }
    if call.resume == 0 && call.worker.rules.flags() != 0 {
        // Followers may have gone since the commands were queued: then none of them is done.
        for index in 0..queue.len() {
            let (row, bytes, ranges) = queue.command(index);
            let command = &TABLE[usize::from(row)];
            call.worker.rules.check(call.worker, command, Args::new(bytes, ranges)).map_err(|error| {
                CommandError::repeating("EXECABORT Transaction discarded because of: ", &error.message(), "")
            })?;
        }
    }
    if call.resume == 0 {
        call.reply.array(queue.len());
    }
    run_queue(call, queue)
}

fn has_write(session: &Session) -> bool {
    let is_write = |row: u8| TABLE[usize::from(row)].is(flag::WRITE);
    session.queue.as_ref().is_some_and(|queue| (0..queue.len()).any(|index| is_write(queue.command(index).0)))
}

fn run_queue(call: &mut Call<'_>, queue: Box<Queue>) -> Outcome {
    for index in call.resume..queue.len() {
        // A reply that waits for followers waits as a whole, and so is made as a whole.
        let may_pause = call.may_pause && call.worker.rules.flags() & (demand::SYNC | demand::DURABLE) == 0;
        if index > call.resume && call.reply.len() > REPLY_PAUSE_BYTES && may_pause {
            call.session.queue = Some(queue);
            return Ok(Flow::More(index));
        }
        if call.reply.len() > 2 * REPLY_BYTES_MAX {
            // Half an array cannot be taken back: the connection is all that can be given up.
            return Ok(Flow::Close);
        }
        let (row, bytes, ranges) = queue.command(index);
        let args = Args::new(bytes, ranges);
        let waits_for_log = call.worker.rules.flags() & demand::DURABLE != 0;
        if waits_for_log
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
        match (TABLE[usize::from(row)].run)(&mut inner) {
            Ok(Flow::Close) => return Ok(Flow::Close),
            Ok(Flow::Done | Flow::More(_) | Flow::Wait(_) | Flow::Ask(_) | Flow::Hold | Flow::Again) => {}
            Err(error) => call.reply.error(&super::told(call.worker, error).message()),
        }
    }
    Ok(Flow::Done)
}
