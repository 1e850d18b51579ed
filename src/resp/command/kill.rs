//! CLIENT KILL: ends other connections, as Sentinel does when a node's role has changed.

use std::net::SocketAddr;

use super::super::error::CommandError;
use super::super::number::parse_i64;
use super::super::session::ClientInfo;
use super::{Call, Flow};

/// Which connections are meant.
#[derive(Default)]
struct Filter {
    id: Option<u64>,
    peer: Option<SocketAddr>,
    local: Option<SocketAddr>,
    /// A type of which there is none here.
    is_none: bool,
    spares_caller: bool,
}

impl Filter {
    fn takes(&self, info: &ClientInfo, caller: u64) -> bool {
        !self.is_none
            && self.id.is_none_or(|id| id == info.id)
            && self.peer.is_none_or(|peer| peer == info.peer)
            && self.local.is_none_or(|local| local == info.local)
            && !(self.spares_caller && info.id == caller)
    }
}

/// `CLIENT KILL ip:port`, `CLIENT KILL [ID id] [TYPE type] [ADDR ip:port] [LADDR ip:port] [SKIPME yes|no]`
pub(super) fn kill(call: &mut Call<'_>) -> Result<Flow, CommandError> {
    let is_short = call.args.len() == 3;
    let filter =
        if is_short { Filter { peer: Some(address(call, 2)?), ..Filter::default() } } else { filter(call)? };
    let caller = call.session.info.id;
    let (mut killed, mut is_caller) = (0, false);
    for info in call.worker.clients.all().iter().filter(|info| filter.takes(info, caller)) {
        killed += 1;
        if info.id == caller {
            is_caller = true;
        } else {
            info.end();
        }
    }
    match (is_short, killed) {
        (true, 0) => return Err(CommandError::text("ERR No such client")),
        (true, _) => call.reply.ok(),
        (false, _) => call.reply.count(killed),
    }
    // Its own connection ends behind the reply; inside EXEC there are more replies to come.
    Ok(if is_caller && !call.in_exec { Flow::Close } else { Flow::Done })
}

fn filter(call: &Call<'_>) -> Result<Filter, CommandError> {
    let args = call.args;
    let mut filter = Filter { spares_caller: true, ..Filter::default() };
    if args.len() < 4 || !args.len().is_multiple_of(2) {
        return Err(CommandError::Syntax);
    }
    for at in (2..args.len()).step_by(2) {
        let value = args.at(at + 1).to_ascii_lowercase();
        match args.at(at).to_ascii_lowercase().as_slice() {
            b"id" => {
                let id = parse_i64(&value).and_then(|id| u64::try_from(id).ok()).filter(|id| *id > 0);
                filter.id = Some(id.ok_or(CommandError::text("ERR client-id should be greater than 0"))?);
            }
            b"type" => match value.as_slice() {
                b"normal" => {}
                b"master" | b"replica" | b"slave" | b"pubsub" => filter.is_none = true,
                _ => return Err(CommandError::repeating("ERR Unknown client type '", args.at(at + 1), "'")),
            },
            b"addr" => filter.peer = Some(address(call, at + 1)?),
            b"laddr" => filter.local = Some(address(call, at + 1)?),
            b"skipme" if value == b"yes" => filter.spares_caller = true,
            b"skipme" if value == b"no" => filter.spares_caller = false,
            _ => return Err(CommandError::Syntax),
        }
    }
    Ok(filter)
}

/// What is no address is nobody's.
fn address(call: &Call<'_>, at: usize) -> Result<SocketAddr, CommandError> {
    let text = std::str::from_utf8(call.args.at(at)).ok();
    text.and_then(|text| text.parse().ok()).ok_or(CommandError::text("ERR No such client"))
}
