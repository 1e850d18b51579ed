//! What a record is made of, as far as that can be told: OBJECT and MEMORY USAGE.
//!
//! A slot knows no encoding and nobody notes when it was read: the answers are those that Redis gives for a value
//! that was set a moment ago.

use super::super::error::CommandError;
use super::super::number::parse_i64;
use super::{Call, Flow};

type Outcome = Result<Flow, CommandError>;

/// Redis keeps longer strings apart from their object.
const EMBEDDED_SIZE_MAX: usize = 44;
/// Redis has each of the numbers below this once.
const SHARED_NUMBERS: i64 = 10_000;
/// What OBJECT FREQ says where a policy of eviction by time was chosen, or none.
const NO_FREQUENCY: &str = "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note \
                            that when switching between policies at runtime LRU and LFU data will take some time \
                            to adjust.";

/// What the index holds of a record.
const INDEX_ENTRY_SIZE: usize = 8;

const OBJECT_HELP: [&str; 15] = [
    "OBJECT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "ENCODING <key>",
    "    Return the kind of internal representation used in order to store the value",
    "    associated with a <key>.",
    "FREQ <key>",
    "    Return the access frequency index of the <key>. The returned integer is",
    "    proportional to the logarithm of the recent access frequency of the key.",
    "IDLETIME <key>",
    "    Return the idle time of the <key>, that is the approximated number of",
    "    seconds elapsed since the last access to the key.",
    "REFCOUNT <key>",
    "    Return the number of references of the value associated with the specified",
    "    <key>.",
    "HELP",
    "    Prints this help.",
];

const MEMORY_HELP: [&str; 5] = [
    "MEMORY <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "USAGE <key> [SAMPLES <count>]",
    "    Return memory in bytes used by <key> and its value: those of its slot and of the index.",
    "HELP",
    "    Prints this help.",
];

/// The lines of a HELP.
pub(super) fn reply_help(call: &mut Call<'_>, lines: &[&str]) -> Outcome {
    if call.args.len() != 2 {
        return Err(call.subcommand_arity_error("help"));
    }
    call.reply.array(lines.len());
    lines.iter().for_each(|line| call.reply.simple(line));
    Ok(Flow::Done)
}

fn encoding(value: &[u8]) -> &'static str {
    match value {
        value if parse_i64(value).is_some() => "int",
        value if value.len() <= EMBEDDED_SIZE_MAX => "embstr",
        _ => "raw",
    }
}

fn references(value: &[u8]) -> i64 {
    let is_shared = parse_i64(value).is_some_and(|number| (0..SHARED_NUMBERS).contains(&number));
    if is_shared { i32::MAX.into() } else { 1 }
}

/// `OBJECT ENCODING | FREQ | IDLETIME | REFCOUNT key`, `OBJECT HELP`
pub(in crate::resp) fn object(call: &mut Call<'_>) -> Outcome {
    if call.args.is(1, "help") {
        return reply_help(call, &OBJECT_HELP);
    }
    let names = ["encoding", "freq", "idletime", "refcount"];
    let Some(name) = names.into_iter().find(|name| call.args.is(1, name)) else {
        return Err(call.unknown_subcommand());
    };
    if call.args.len() != 3 {
        return Err(call.subcommand_arity_error(name));
    }
    let of_value = |value: &[u8]| (encoding(value), references(value));
    let found = call.store().read(call.args.at(2), |entry| of_value(entry.value))?;
    match (name, found) {
        (_, None) => call.reply.null(),
        ("encoding", Some((encoding, _))) => call.reply.bulk(encoding.as_bytes()),
        ("refcount", Some((_, references))) => call.reply.integer(references),
        ("idletime", Some(_)) => call.reply.integer(0),
        _ => return Err(CommandError::text(NO_FREQUENCY)),
    }
    Ok(Flow::Done)
}

/// `MEMORY USAGE key [SAMPLES count]`, `MEMORY HELP`
pub(in crate::resp) fn memory(call: &mut Call<'_>) -> Outcome {
    if call.args.is(1, "help") {
        return reply_help(call, &MEMORY_HELP);
    }
    if !call.args.is(1, "usage") {
        return Err(call.unknown_subcommand());
    }
    if call.args.len() < 3 {
        return Err(call.subcommand_arity_error("usage"));
    }
    let mut at = 3;
    while at < call.args.len() {
        if !call.args.is(at, "samples") || at + 1 >= call.args.len() || call.args.integer(at + 1)? < 0 {
            return Err(CommandError::Syntax);
        }
        at += 2;
    }
    let size = call.store().geometry().slot_stride() + INDEX_ENTRY_SIZE;
    match call.store().contains(call.args.at(2))? {
        true => call.reply.count(size as u64),
        false => call.reply.null(),
    }
    Ok(Flow::Done)
}
