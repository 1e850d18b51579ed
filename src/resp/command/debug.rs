//! DEBUG SLEEP: the connection that asks for it is served again after a while. All others are served meanwhile.

use std::time::Duration;

use super::super::error::CommandError;
use super::object::reply_help;
use super::wait::Request;
use super::{Call, Flow};

const HELP: [&str; 5] = [
    "DEBUG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "SLEEP <seconds>",
    "    Stop this connection for <seconds>. Decimals allowed.",
    "HELP",
    "    Prints this help.",
];

/// `DEBUG SLEEP seconds`, `DEBUG HELP`
pub(in crate::resp) fn debug(call: &mut Call<'_>) -> Result<Flow, CommandError> {
    if call.args.is(1, "help") {
        return reply_help(call, &HELP);
    }
    if !call.args.is(1, "sleep") || call.args.len() != 3 {
        let found = call.args.at(1);
        let before = "ERR unknown subcommand or wrong number of arguments for '";
        return Err(CommandError::repeating(before, &found[..found.len().min(128)], "'. Try DEBUG HELP."));
    }
    // As C's strtod: what is no number is none.
    let seconds = std::str::from_utf8(call.args.at(2)).ok().and_then(|text| text.parse().ok()).unwrap_or(0.0);
    let time = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO);
    if call.in_exec || time.is_zero() {
        call.reply.ok();
        return Ok(Flow::Done);
    }
    Ok(Flow::Wait(Request::Time(time)))
}
