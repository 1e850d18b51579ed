//! Commands: what one is called with, and how it is sent on its way.

pub(super) mod bitfield;
pub(super) mod bitop;
pub(super) mod bits;
pub(super) mod client;
pub(super) mod counters;
pub(super) mod debug;
pub(super) mod dump;
pub(super) mod expiry;
pub(super) mod export;
pub(super) mod info;
pub(super) mod keys;
mod kill;
pub(super) mod lcs;
pub(super) mod object;
pub(super) mod position;
pub(super) mod ranges;
pub(super) mod rename;
pub(super) mod roles;
pub(super) mod saves;
pub(super) mod scan;
pub(super) mod server;
mod settings;
pub(super) mod strings;
mod together;
pub(super) mod transaction;
pub(super) mod wait;
pub(super) mod walk;
pub(super) mod xread;

use super::context::Context;
use super::error::{CommandError, REGAINING, read_only};
use super::number::parse_i64;
use super::parse::Arg;
use super::reply::Reply;
use super::session::Session;
use super::table::{Command, TABLE, flag};
use super::worker::Worker;
use crate::store::{Store, WriteError};

/// A command's arguments, its name first: ranges of the read buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Args<'a> {
    bytes: &'a [u8],
    ranges: &'a [Arg],
}

impl<'a> Args<'a> {
    #[inline]
    pub(super) fn new(bytes: &'a [u8], ranges: &'a [Arg]) -> Self {
        Self { bytes, ranges }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// The argument at `index`; the arity check has made sure that it is there.
    #[inline]
    pub(super) fn at(&self, index: usize) -> &'a [u8] {
        let range = self.ranges[index];
        &self.bytes[range.start..range.end]
    }

    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&'a [u8]> {
        (index < self.len()).then(|| self.at(index))
    }

    /// Arguments from `start` on.
    pub(super) fn from(self, start: usize) -> impl Iterator<Item = &'a [u8]> + Clone {
        (start..self.len()).map(move |index| self.at(index))
    }

    /// Whether the argument is this word, in any case.
    pub(super) fn is(&self, index: usize, word: &str) -> bool {
        self.at(index).eq_ignore_ascii_case(word.as_bytes())
    }

    pub(super) fn integer(&self, index: usize) -> Result<i64, CommandError> {
        parse_i64(self.at(index)).ok_or(CommandError::NotInteger)
    }
}

/// What follows a command.
#[derive(Debug)]
pub(super) enum Flow {
    /// The reply is complete: go on.
    Done,
    /// The reply, if any, is complete: send it and close the connection.
    Close,
    /// The reply has grown large: send what is there, then call the command again with this [`Call::resume`].
    More(usize),
    /// Send what is there, then wait for followers; the reply comes from there.
    Wait(wait::Request),
    /// Send what is there, then wait for the node; the reply comes from there.
    Ask(roles::Pending),
    /// Nothing was done: send what is there, and call the command again when writes are no longer held.
    Hold,
    /// Nothing was done: what the command reads waits for the log. Call it again when what is held was sent.
    Again,
}

/// One call of a command.
pub(super) struct Call<'a> {
    pub(super) args: Args<'a>,
    pub(super) reply: &'a mut Reply,
    pub(super) session: &'a mut Session,
    pub(super) worker: &'a Worker,
    /// The command's row.
    pub(super) row: u8,
    /// Zero at first; else what the command itself gave with [`Flow::More`].
    pub(super) resume: usize,
    /// Inside EXEC nothing waits.
    pub(super) in_exec: bool,
    /// Whether [`Flow::More`] may be returned.
    pub(super) may_pause: bool,
}

impl Call<'_> {
    pub(super) fn command(&self) -> &'static Command {
        &TABLE[usize::from(self.row)]
    }

    pub(super) fn store(&self) -> &Store {
        &self.worker.context.store
    }

    /// Now, in Unix milliseconds.
    pub(super) fn now_ms(&self) -> i64 {
        i64::try_from(self.store().clock().unix_ms()).unwrap_or(i64::MAX)
    }

    /// Counts a read that found its key, or did not.
    #[inline]
    pub(super) fn looked_up(&self, found: bool) {
        let counters = &self.worker.counters;
        if found { counters.keyspace_hits.add(1) } else { counters.keyspace_misses.add(1) }
    }

    pub(super) fn arity_error(&self) -> CommandError {
        CommandError::Arity(self.command().name.into())
    }

    pub(super) fn subcommand_arity_error(&self, subcommand: &str) -> CommandError {
        CommandError::Arity(format!("{}|{subcommand}", self.command().name).into())
    }

    pub(super) fn unknown_subcommand(&self) -> CommandError {
        let found = self.args.at(1);
        let found = found[..found.len().min(128)].to_vec();
        let parent = match self.command().name {
            "client" => "CLIENT",
            "config" => "CONFIG",
            "xinfo" => "XINFO",
            "object" => "OBJECT",
            "memory" => "MEMORY",
            _ => "COMMAND",
        };
        CommandError::Subcommand(found, parent)
    }
}

/// Checks a command and does it, or queues it inside MULTI.
pub(super) fn dispatch(
    worker: &Worker,
    session: &mut Session,
    reply: &mut Reply,
    args: Args<'_>,
    row: Option<u8>,
    resume: usize,
    may_pause: bool,
) -> Flow {
    match try_dispatch(worker, session, reply, args, row, resume, may_pause) {
        Ok(flow) => flow,
        // The store stopped writes after the command was let through.
        Err(CommandError::Write(WriteError::ReadOnly)) if may_pause && is_held(worker) => Flow::Hold,
        Err(error) => {
            reply.error(&told(worker, error).message());
            Flow::Done
        }
    }
}

/// The error with what only the node knows: why its store takes no writes.
pub(super) fn told(worker: &Worker, error: CommandError) -> CommandError {
    match error {
        CommandError::Write(WriteError::ReadOnly) => read_only(worker.context.links.superseded_by_epoch()),
        error => error,
    }
}

fn try_dispatch(
    worker: &Worker,
    session: &mut Session,
    reply: &mut Reply,
    args: Args<'_>,
    row: Option<u8>,
    resume: usize,
    may_pause: bool,
) -> Result<Flow, CommandError> {
    // A paused command goes on: it was checked and counted when it began.
    let row = match (row, resume) {
        (Some(row), 1..) => Ok(row),
        (Some(row), 0) if may_pause && TABLE[usize::from(row)].is(flag::WRITE) && is_held(worker) => {
            return Ok(Flow::Hold);
        }
        _ => check(worker, args, row),
    };
    let row = match row {
        Ok(row) => row,
        Err(CommandError::Arity(name)) if name == "exec" => return transaction::refuse_exec(session),
        Err(error) => {
            if let Some(queue) = &mut session.queue {
                queue.broken = true;
            }
            return Err(error);
        }
    };
    if session.queue.is_some() && !TABLE[usize::from(row)].is(flag::UNQUEUED) {
        return transaction::enqueue(session, reply, args, row);
    }
    together::run(&mut Call { args, reply, session, worker, row, resume, in_exec: false, may_pause })
}

/// Whether writes wait while the leader hands over.
#[inline]
pub(super) fn is_held(worker: &Worker) -> bool {
    let context = &worker.context;
    context.store.is_read_only() && context.node.control.are_writes_held()
}

/// Whether a command reads what a change will be that waits for the log.
pub(super) fn reads_pending(worker: &Worker, args: Args<'_>, row: Option<u8>) -> bool {
    let Some(command) = row.map(|row| &TABLE[usize::from(row)]) else { return false };
    let store = &worker.context.store;
    (command.is(flag::READONLY) || command.name == "watch")
        && match command.first_key {
            0 => store.has_pending(),
            _ => command.key_positions(args.len()).any(|key| store.is_pending(args.at(key))),
        }
}

/// Waits for the log in this thread, which all its clients do then: for commands that cannot be put off.
#[cold]
pub(super) fn settle(worker: &Worker) -> Result<(), CommandError> {
    let text = |error| CommandError::Text(format!("MISCONF what was written is not durable: {error}").into());
    worker.context.store.settle().map_err(text)
}

/// Whether the command exists, has its arguments, and may be done here.
fn check(worker: &Worker, args: Args<'_>, row: Option<u8>) -> Result<u8, CommandError> {
    let Some(row) = row else {
        worker.counters.commands_unknown.add(1);
        return Err(unknown(args));
    };
    worker.counters.commands[usize::from(row)].add(1);
    let command = &TABLE[usize::from(row)];
    if !command.accepts(args.len()) {
        return Err(CommandError::Arity(command.name.into()));
    }
    if command.is(flag::WRITE) && worker.context.store.is_read_only() {
        let Context { store, links, .. } = &worker.context;
        let is_regaining = store.is_regaining();
        return Err(if is_regaining {
            CommandError::text(REGAINING)
        } else {
            read_only(links.superseded_by_epoch())
        });
    }
    if worker.rules.flags() != 0 {
        worker.rules.check(worker, command, args)?;
    }
    Ok(row)
}

/// Redis names the command and its first arguments, up to 128 bytes of each.
#[cold]
fn unknown(args: Args<'_>) -> CommandError {
    const SHOWN_MAX: usize = 128;
    // As C strings: a NUL ends them.
    let shown = |bytes: &'_ [u8], max: usize| {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        bytes[..end.min(max)].to_vec()
    };
    let mut list: Vec<u8> = Vec::new();
    for arg in args.from(1) {
        if list.len() >= SHOWN_MAX {
            break;
        }
        list.extend([&b"'"[..], &shown(arg, SHOWN_MAX - list.len()), b"' "].concat());
    }
    let name = shown(args.at(0), SHOWN_MAX);
    let text = [b"ERR unknown command '", &name[..], b"', with args beginning with: ", &list].concat();
    CommandError::Bytes(text)
}
