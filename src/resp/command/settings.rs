//! CONFIG SET and CONFIG REWRITE.

use super::super::error::CommandError;
use super::super::settings::SettingError;
use super::{Call, Flow, server};

/// `CONFIG SET name value [name value ...]`: all of them, or none.
pub(super) fn set(call: &mut Call<'_>) -> Result<Flow, CommandError> {
    if call.args.len() < 4 || !call.args.len().is_multiple_of(2) {
        return Err(call.subcommand_arity_error("set"));
    }
    let mut demands = call.worker.rules.demands();
    let fixed = server::fixed_values(call);
    let pairs = (2..call.args.len()).step_by(2).map(|at| (call.args.at(at), call.args.at(at + 1)));
    for (name, value) in pairs.clone() {
        let failed = |wanted: &str| {
            let before = "ERR CONFIG SET failed (possibly related to argument '";
            CommandError::repeating(before, name, &format!("') - {wanted}"))
        };
        let (Ok(name_text), Ok(text)) = (std::str::from_utf8(name), std::str::from_utf8(value)) else {
            return Err(failed("it is no text"));
        };
        match demands.change(name_text, text) {
            Ok(()) => {}
            Err(SettingError::Value(wanted)) => return Err(failed(wanted)),
            // To ask for what is so is no harm.
            Err(SettingError::Unknown) => {
                match fixed.iter().find(|(known, _)| known.eq_ignore_ascii_case(name_text)) {
                    Some((_, is)) if is == text => {}
                    Some(_) => return Err(failed("can't set immutable config")),
                    None => {
                        let before = "ERR Unknown option or number of arguments for CONFIG SET - '";
                        return Err(CommandError::repeating(before, name, "'"));
                    }
                }
            }
        }
    }
    if demands != call.worker.rules.demands() {
        for (name, value) in pairs {
            let (name, value) = (name.escape_ascii(), value.escape_ascii());
            tracing::info!(%name, %value, "CONFIG SET, until this node is started again, or CONFIG REWRITE keeps it");
        }
        call.worker.rules.set(demands);
    }
    call.reply.ok();
    Ok(Flow::Done)
}

/// `CONFIG REWRITE`: what was set stays so when the node is started again.
pub(super) fn rewrite(call: &mut Call<'_>) -> Result<Flow, CommandError> {
    if call.args.len() != 2 {
        return Err(call.subcommand_arity_error("rewrite"));
    }
    let demands = call.worker.rules.demands();
    match &call.worker.options.keeper {
        // Nothing was set, so nothing would be lost.
        None if demands == call.worker.options.demands => {}
        None => return Err(CommandError::text("ERR The server is running without a config file")),
        Some(keeper) => keeper
            .keep(&demands)
            .map_err(|error| CommandError::Text(format!("ERR Rewriting config file: {error}").into()))?,
    }
    call.reply.ok();
    Ok(Flow::Done)
}
