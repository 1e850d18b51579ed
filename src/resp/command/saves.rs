//! BGSAVE, SAVE, LASTSAVE: backups of this node in a directory of its own, taken by a thread of the node.
//!
//! Nothing is forked and no client waits, but the one that sent SAVE.

use tokio::sync::oneshot;

use super::super::error::CommandError;
use super::roles::Pending;
use super::{Call, Flow};
use crate::saves::{Answer, Refusal};

type Outcome = Result<Flow, CommandError>;

/// `BGSAVE [SCHEDULE]`; there is nothing that it would have to be scheduled after.
pub(in crate::resp) fn bgsave(call: &mut Call<'_>) -> Outcome {
    if call.args.len() > 2 || (call.args.len() == 2 && !call.args.is(1, "schedule")) {
        return Err(CommandError::Syntax);
    }
    begin(call, None)?;
    call.reply.simple("Background saving started");
    Ok(Flow::Done)
}

/// `SAVE`: as BGSAVE, and the reply comes when the backup is whole.
pub(in crate::resp) fn save(call: &mut Call<'_>) -> Outcome {
    if call.in_exec {
        return Err(CommandError::text("ERR SAVE waits, which a transaction does not; use BGSAVE"));
    }
    let (answer, pending) = oneshot::channel();
    // A client that has gone does not hear how its backup ended.
    let answer: Answer = Box::new(move |outcome: Result<(), String>| {
        drop(answer.send(outcome.map(|()| "OK".to_owned()).map_err(|error| format!("ERR {error}"))));
    });
    begin(call, Some(answer))?;
    Ok(Flow::Ask(Pending::new(pending)))
}

fn begin(call: &Call<'_>, answer: Option<Answer>) -> Result<(), CommandError> {
    let node = &call.worker.context.node;
    if node.follows() {
        return Err(CommandError::text("ERR this node follows; its leader takes backups"));
    }
    node.saves.begin(answer).map_err(|refusal| {
        CommandError::text(match refusal {
            Refusal::Busy => "ERR Background save already in progress",
            Refusal::NoDirectory => {
                "ERR this node has no place for backups; start it with --backup-directory DIR, or use \
                 `slotstream backup`"
            }
        })
    })
}

/// `LASTSAVE`: when the last backup was whole; before the first one, when the node started, as Redis has it.
pub(in crate::resp) fn lastsave(call: &mut Call<'_>) -> Outcome {
    let node = &call.worker.context.node;
    let last = node.saves.stats().and_then(|stats| stats.last_done);
    call.reply.count(last.map_or(node.started_unix_s, |done| done.unix_s));
    Ok(Flow::Done)
}
