//! One turn of a connection, without I/O: all commands that a buffer holds, replies in one buffer.
//!
//! A turn is bounded in commands and in reply bytes, so that no client keeps the others waiting and no
//! client makes the server hold an unbounded reply. Commands are parsed some way ahead of being done,
//! so that the store can load what they will touch.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::command::{Args, Flow, dispatch, is_held, reads_pending, roles, settle, told, wait};
use super::error::CommandError;
use super::held::{Held, Holder};
use super::parse::{Arg, Cursor, Limits, ProtocolError, Step};
use super::reply::Reply;
use super::rules::demand;
use super::session::Session;
use super::table::{GET, SET, TABLE, flag, lookup};
use super::worker::Worker;
use crate::slot::Place;
use crate::store::{Store, WriteError};

/// Commands parsed before the first of them is done: enough to hide a miss, few enough to stay in the first level.
const LOOKAHEAD: usize = 16;
/// Commands done in one turn.
const COMMANDS_PER_TURN: u64 = 1024;
/// Above this many bytes of replies a turn ends.
const REPLY_BYTES_PER_TURN: usize = 1 << 20;
/// Reply memory that a worker keeps.
const REPLY_CAPACITY_KEPT: usize = 2 << 20;
/// Arguments for which a worker keeps memory.
const ARGS_KEPT: usize = 16 << 10;
/// Bytes read at once.
pub(super) const READ_SIZE: usize = 64 << 10;
/// Bytes of an unfinished command that are copied to the front of the shared read buffer; a longer one
/// grows in a buffer of its own.
pub(super) const CARRIED_SIZE_MAX: usize = 16 << 10;
/// One turn in this many is timed.
const TIMED_TURNS: u32 = 16;

/// Buffers for the turn under way; one set per worker, so that an idle connection needs none.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) input: Box<[u8]>,
    pub(super) reply: Reply,
    pub(super) ahead: Ahead,
}

/// Commands parsed ahead.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    commands: Vec<Parsed>,
    args: Vec<Arg>,
    /// Turns taken, to time some of them.
    turns: u32,
}

#[derive(Debug, Clone, Copy)]
struct Parsed {
    row: Option<u8>,
    /// Where its key belongs; none before it is looked at, and where it has none or several.
    place: Option<Place>,
    /// Its arguments, in [`Ahead::args`].
    args_start: usize,
    args_end: usize,
    /// Where the command begins and ends in the buffer.
    start: usize,
    end: usize,
}

/// An unfinished command's parse, so that a long command is not parsed again with each read.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    cursor: Cursor,
    args: Vec<Arg>,
}

/// How a turn ended.
#[derive(Debug)]
pub(super) enum End {
    /// All whole commands are done; the rest of the buffer needs more bytes.
    Drained,
    /// More can be done without reading: after the replies so far are sent.
    Paused,
    /// As [`End::Paused`], once followers have acknowledged.
    Waiting(wait::Request),
    /// As [`End::Paused`], once the node has answered.
    Asking(roles::Pending),
    /// As [`End::Paused`], once writes are no longer held.
    Held,
    /// The connection is over once the replies are sent.
    Close,
}

/// What a turn left behind.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) end: End,
    /// Bytes of the buffer that are dealt with.
    pub(super) consumed: usize,
    /// Replies that wait; they are no longer among the turn's.
    pub(super) held: Option<Held>,
}

impl Outcome {
    fn new(end: End, consumed: usize) -> Self {
        Self { end, consumed, held: None }
    }
}

/// How parsing ahead ended.
enum ParseEnd {
    /// The look-ahead is full.
    Full,
    /// The buffer ends, perhaps inside a command, which begins at `start`.
    Incomplete {
        start: usize,
    },
    Malformed(ProtocolError),
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self {
            input: vec![0; CARRIED_SIZE_MAX + READ_SIZE].into_boxed_slice(),
            reply: Reply::default(),
            ahead: Ahead::default(),
        }
    }

    /// Gives memory back after an unusual turn.
    #[inline]
    pub(super) fn shrink(&mut self) {
        self.reply.shrink(REPLY_CAPACITY_KEPT);
        if self.ahead.args.capacity() > ARGS_KEPT {
            self.ahead.args = Vec::new();
        }
    }
}

impl Ahead {
    fn clear(&mut self) {
        self.commands.clear();
        self.args.clear();
    }

    fn parse(&mut self, data: &mut [u8], cursor: &mut Cursor, mut start: usize, limits: &Limits) -> ParseEnd {
        while self.commands.len() < LOOKAHEAD {
            let args_start = self.commands.last().map_or(0, |command| command.args_end);
            // An inline command changes the buffer as it is parsed, and so must be done in this turn:
            // it is never parsed behind another, which may end the turn.
            let is_inline = cursor.position == start && data.get(start).is_some_and(|byte| *byte != b'*');
            if is_inline && !self.commands.is_empty() {
                return ParseEnd::Full;
            }
            match cursor.next(data, &mut self.args, limits) {
                Ok(Step::Command) => {
                    let name = self.args[args_start];
                    self.commands.push(Parsed {
                        row: lookup(&data[name.start..name.end]),
                        place: None,
                        args_start,
                        args_end: self.args.len(),
                        start,
                        end: cursor.position,
                    });
                }
                Ok(Step::Nothing) => {}
                Ok(Step::Incomplete) => return ParseEnd::Incomplete { start },
                Err(error) => return ParseEnd::Malformed(error),
            }
            start = cursor.position;
        }
        ParseEnd::Full
    }

    /// Takes out the parse of the command that begins at `start`, which is where the buffer will begin.
    fn take_unfinished(&mut self, mut cursor: Cursor, start: usize) -> Unfinished {
        let args_start = self.commands.last().map_or(0, |command| command.args_end);
        let mut args =
            if args_start == 0 { std::mem::take(&mut self.args) } else { self.args.split_off(args_start) };
        if start > 0 {
            cursor.position -= start;
            for arg in &mut args {
                arg.start -= start;
                arg.end -= start;
            }
        }
        Unfinished { cursor, args }
    }

    fn args<'a>(&'a self, data: &'a [u8], command: &Parsed) -> Args<'a> {
        Args::new(data, &self.args[command.args_start..command.args_end])
    }

    /// Finds where the commands' keys belong, and starts loading what the store will need of them.
    #[inline]
    fn place_keys(&mut self, data: &[u8], store: &Store) {
        // One key alone has nothing to overlap with.
        let is_alone = self.commands.len() == 1;
        for command in &mut self.commands {
            let Some(row) = command.row.map(|row| &TABLE[usize::from(row)]) else { continue };
            let args = Args::new(data, &self.args[command.args_start..command.args_end]);
            if !row.has_one_key() {
                store.prefetch(row.key_positions(args.len()).map(|index| args.at(index)));
                continue;
            }
            let Some(key) = args.get(row.first_key.into()) else { continue };
            let place = store.geometry().place(key);
            command.place = Some(place);
            if !is_alone {
                store.prefetch_bucket(place);
            }
        }
        for command in &self.commands {
            if let Some(place) = command.place
                && (!is_alone || command.row != Some(GET))
            {
                store.prefetch_slots(place);
            }
        }
    }
}

/// A turn under way.
pub(super) struct Turn<'a> {
    pub(super) worker: &'a Worker,
    pub(super) session: &'a mut Session,
    pub(super) ahead: &'a mut Ahead,
    pub(super) reply: &'a mut Reply,
    /// What is demanded of commands; see [`demand`].
    pub(super) demands: u8,
    /// Notes writes whose replies wait.
    pub(super) holder: Option<Holder>,
}

impl<'a> Turn<'a> {
    pub(super) fn new(
        worker: &'a Worker,
        session: &'a mut Session,
        ahead: &'a mut Ahead,
        reply: &'a mut Reply,
    ) -> Self {
        let demands = worker.rules.flags();
        Self { worker, session, ahead, reply, demands, holder: None }
    }

    /// Does the commands in `data`. `unfinished` is the parse of a command that an earlier turn met the
    /// beginning of, at the start of `data`; `resume` goes to the first command.
    // Apart from the connection's future: in there the compiler leaves writes uninlined, which costs a SET 90 ns.
    #[inline(never)]
    pub(super) fn run(
        mut self,
        data: &mut [u8],
        unfinished: &mut Option<Unfinished>,
        resume: &mut usize,
    ) -> Outcome {
        self.reply.begin(self.session.resp3);
        self.ahead.turns = self.ahead.turns.wrapping_add(1);
        let started = self.ahead.turns.is_multiple_of(TIMED_TURNS).then(Instant::now);
        let mut done = 0;
        let mut outcome = self.run_commands(data, unfinished, resume, &mut done);
        if let Some(holder) = self.holder.take() {
            outcome.held = holder.end(&self.worker.context.store, self.session, self.reply);
        }
        let counters = &self.worker.counters;
        if let Some(started) = started {
            counters.latency.record(started.elapsed(), done);
        }
        let errors = self.reply.take_errors();
        if errors > 0 {
            counters.errors.add(errors);
        }
        self.session.info.active_ms.store(self.worker.now_ms(), Ordering::Relaxed);
        outcome
    }

    fn run_commands(
        &mut self,
        data: &mut [u8],
        unfinished: &mut Option<Unfinished>,
        resume: &mut usize,
        done: &mut u64,
    ) -> Outcome {
        let mut cursor = Cursor::default();
        self.ahead.clear();
        if let Some(unfinished) = unfinished.take() {
            cursor = unfinished.cursor;
            self.ahead.args = unfinished.args;
        }
        let mut position = 0;
        loop {
            let parse_end = self.ahead.parse(data, &mut cursor, position, &self.worker.limits);
            if let Some(outcome) = self.execute_ahead(data, resume, done) {
                return outcome;
            }
            match parse_end {
                ParseEnd::Full => position = cursor.position,
                ParseEnd::Incomplete { start } => {
                    if data.len() - start > CARRIED_SIZE_MAX {
                        *unfinished = Some(self.ahead.take_unfinished(cursor, start));
                    }
                    return Outcome::new(End::Drained, start);
                }
                ParseEnd::Malformed(error) => {
                    self.worker.counters.protocol_errors.add(1);
                    self.reply.error(format!("ERR Protocol error: {error}").as_bytes());
                    return Outcome::new(End::Close, data.len());
                }
            }
            self.ahead.clear();
        }
    }

    /// Does the commands parsed ahead; an outcome if the turn ends with one of them.
    #[inline]
    fn execute_ahead(&mut self, data: &[u8], resume: &mut usize, done: &mut u64) -> Option<Outcome> {
        self.ahead.place_keys(data, &self.worker.context.store);
        for index in 0..self.ahead.commands.len() {
            let command = self.ahead.commands[index];
            *done += 1;
            let flow = if self.demands == 0 {
                self.execute(data, &command, std::mem::take(resume))
            } else {
                self.execute_with_demands(data, &command, std::mem::take(resume))
            };
            match flow {
                Flow::Done => {}
                Flow::Close => return Some(Outcome::new(End::Close, data.len())),
                Flow::More(next) => {
                    *resume = next;
                    return Some(Outcome::new(End::Paused, command.start));
                }
                Flow::Wait(request) => return Some(Outcome::new(End::Waiting(request), command.end)),
                Flow::Ask(pending) => return Some(Outcome::new(End::Asking(pending), command.end)),
                Flow::Hold => return Some(Outcome::new(End::Held, command.start)),
                Flow::Again => return Some(Outcome::new(End::Paused, command.start)),
            }
            if self.reply.len() > REPLY_BYTES_PER_TURN || *done >= COMMANDS_PER_TURN {
                return Some(Outcome::new(End::Paused, command.end));
            }
        }
        if let Some(row) = self.ahead.commands.last().and_then(|command| command.row) {
            self.session.info.last_command.store(row, Ordering::Relaxed);
        }
        None
    }

    /// Does one command. The two commands that nearly all traffic is made of take the short way.
    #[inline]
    fn execute(&mut self, data: &[u8], command: &Parsed, resume: usize) -> Flow {
        let Self { worker, session, ahead, reply, demands, .. } = self;
        let args = ahead.args(data, command);
        if session.queue.is_none() {
            match (command.row, command.place, args.len()) {
                (Some(GET), Some(place), 2) => return get(worker, reply, place, args.at(1)),
                (Some(SET), Some(place), 3) => {
                    let may_pause = data[command.start] == b'*';
                    return set(worker, session, reply, place, args.at(1), args.at(2), may_pause);
                }
                _ => {}
            }
        }
        // What an inline command's quotes held is resolved in place: it cannot be parsed a second time.
        let may_pause = data[command.start] == b'*';
        let flow = dispatch(worker, session, reply, args, command.row, resume, may_pause);
        // It may have been the command that demands something.
        *demands = worker.rules.flags();
        flow
    }

    /// Does one command where reads or writes demand something of replication or of the log.
    #[cold]
    fn execute_with_demands(&mut self, data: &[u8], command: &Parsed, resume: usize) -> Flow {
        let Self { worker, session, ahead, reply, demands, holder } = self;
        if *demands & (demand::SYNC | demand::DURABLE) != 0 && holder.is_none() {
            *holder = Some(Holder::new(worker, *demands, session));
        }
        let (start, writes) = (reply.len(), session.writes);
        let may_pause = data[command.start] == b'*';
        let args = ahead.args(data, command);
        let is_queued = session.queue.is_some();
        if !is_queued
            && holder.as_ref().is_some_and(Holder::has_pending)
            && reads_pending(worker, args, command.row)
        {
            if may_pause {
                return Flow::Again;
            }
            if let Err(error) = settle(worker) {
                reply.error(&error.message());
                return Flow::Done;
            }
        }
        let flow = dispatch(worker, session, reply, args, command.row, resume, may_pause);
        // A reply that was begun before replies had to wait is not taken back.
        if let Some(holder) = holder
            && session.writes != writes
            && resume == 0
        {
            holder.wrote(start..reply.len());
        } else if let Some(holder) = holder
            && *demands & demand::DURABLE != 0
            && (is_queued || command.row.is_some_and(|row| TABLE[usize::from(row)].is(flag::WRITE)))
            // Who stops writes between this command and here leaves what it may tell of waiting.
            && (!worker.context.store.is_read_only() || worker.context.store.has_pending())
        {
            holder.tells(start);
        }
        *demands = worker.rules.flags();
        flow
    }
}

/// `GET key`
#[inline]
fn get(worker: &Worker, reply: &mut Reply, place: Place, key: &[u8]) -> Flow {
    let counters = &worker.counters;
    counters.commands[usize::from(GET)].add(1);
    let found = worker.context.store.read_at(place, key, |entry| match entry {
        Some(entry) => {
            reply.bulk(entry.value);
            true
        }
        None => {
            reply.null();
            false
        }
    });
    match found {
        Ok(true) => counters.keyspace_hits.add(1),
        Ok(false) => counters.keyspace_misses.add(1),
        Err(error) => reply.error(&CommandError::from(error).message()),
    }
    Flow::Done
}

/// `SET key value`
#[inline]
fn set(
    worker: &Worker,
    session: &mut Session,
    reply: &mut Reply,
    place: Place,
    key: &[u8],
    value: &[u8],
    may_pause: bool,
) -> Flow {
    let store = &worker.context.store;
    match store.put_at(place, key, value, 0) {
        Ok(seq) => {
            session.wrote_in(store, place.shard, seq);
            reply.ok();
        }
        Err(WriteError::ReadOnly) if may_pause && is_held(worker) => return Flow::Hold,
        Err(error) => reply.error(&told(worker, error.into()).message()),
    }
    worker.counters.commands[usize::from(SET)].add(1);
    Flow::Done
}
