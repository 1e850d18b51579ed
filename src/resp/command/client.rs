//! Commands about the connection itself: HELLO, CLIENT, PING and so on.

use std::sync::atomic::Ordering;

use super::super::error::CommandError;
use super::super::number::parse_i64;
use super::super::session::ClientInfo;
use super::super::table::TABLE;
use super::{Call, Flow};
use crate::resp::context::Role;

type Outcome = Result<Flow, CommandError>;

/// The Redis version that the server behaves as.
pub(in crate::resp) const REDIS_VERSION: &str = "7.2.4";

const WRONG_PASSWORD: CommandError =
    CommandError::text("WRONGPASS invalid username-password pair or user is disabled.");

/// `PING [message]`
pub(in crate::resp) fn ping(call: &mut Call<'_>) -> Outcome {
    match call.args.len() {
        1 => call.reply.raw(b"+PONG\r\n"),
        2 => call.reply.bulk(call.args.at(1)),
        _ => return Err(call.arity_error()),
    }
    Ok(Flow::Done)
}

/// `ECHO message`
pub(in crate::resp) fn echo(call: &mut Call<'_>) -> Outcome {
    call.reply.bulk(call.args.at(1));
    Ok(Flow::Done)
}

/// `QUIT`
pub(in crate::resp) fn quit(call: &mut Call<'_>) -> Outcome {
    call.reply.ok();
    Ok(Flow::Close)
}

/// `READONLY`, which cluster clients send to replicas.
pub(in crate::resp) fn readonly(_: &mut Call<'_>) -> Outcome {
    Err(CommandError::text("ERR This instance has cluster support disabled"))
}

/// `RESET`
pub(in crate::resp) fn reset(call: &mut Call<'_>) -> Outcome {
    (call.session.queue, call.session.watched) = (None, None);
    call.session.set_resp3(false);
    call.reply.set_resp3(false);
    call.session.info.names.lock().name.clear();
    call.reply.simple("RESET");
    Ok(Flow::Done)
}

/// `SELECT index`
pub(in crate::resp) fn select(call: &mut Call<'_>) -> Outcome {
    let index = call.args.integer(1)?;
    if i32::try_from(index).is_err() {
        return Err(CommandError::text(
            "ERR value is out of range, value must between -2147483648 and 2147483647",
        ));
    }
    if index != 0 {
        return Err(CommandError::text("ERR DB index is out of range"));
    }
    call.reply.ok();
    Ok(Flow::Done)
}

/// `AUTH [username] password`: there is one user, `default`, and it has no password.
pub(in crate::resp) fn auth(call: &mut Call<'_>) -> Outcome {
    match call.args.len() {
        2 => Err(CommandError::text(
            "ERR AUTH <password> called without any password configured for the default user. \
             Are you sure your configuration is correct?",
        )),
        3 if call.args.at(1) == b"default" => {
            call.reply.ok();
            Ok(Flow::Done)
        }
        3 => Err(WRONG_PASSWORD),
        _ => Err(CommandError::Syntax),
    }
}

/// `HELLO [version [AUTH username password] [SETNAME name]]`
pub(in crate::resp) fn hello(call: &mut Call<'_>) -> Outcome {
    let args = call.args;
    let mut resp3 = call.session.resp3;
    if let Some(version) = args.get(1) {
        resp3 = match parse_i64(version) {
            Some(2) => false,
            Some(3) => true,
            Some(_) => return Err(CommandError::text("NOPROTO unsupported protocol version")),
            None => {
                return Err(CommandError::text("ERR Protocol version is not an integer or out of range"));
            }
        };
    }
    let mut name = None;
    let mut at = 2;
    while at < args.len() {
        let left = args.len() - 1 - at;
        if args.is(at, "auth") && left >= 2 {
            if args.at(at + 1) != b"default" {
                return Err(WRONG_PASSWORD);
            }
            at += 3;
        } else if args.is(at, "setname") && left >= 1 {
            name = Some(checked_name(args.at(at + 1))?);
            at += 2;
        } else {
            return Err(CommandError::repeating("ERR Syntax error in HELLO option '", args.at(at), "'"));
        }
    }
    if let Some(name) = name {
        call.session.info.names.lock().name = name.to_vec();
    }
    call.session.set_resp3(resp3);
    call.reply.set_resp3(resp3);
    reply_hello(call);
    Ok(Flow::Done)
}

fn reply_hello(call: &mut Call<'_>) {
    let role = match *call.worker.context.node.role.read() {
        Role::Leader => "master",
        Role::Follower { .. } => "replica",
    };
    let reply = &mut *call.reply;
    reply.map(7);
    let field = |reply: &mut super::Reply, name: &str, value: &str| {
        reply.bulk(name.as_bytes());
        reply.bulk(value.as_bytes());
    };
    field(reply, "server", "redis");
    field(reply, "version", REDIS_VERSION);
    reply.bulk(b"proto");
    reply.integer(if call.session.resp3 { 3 } else { 2 });
    reply.bulk(b"id");
    reply.count(call.session.info.id);
    field(reply, "mode", "standalone");
    field(reply, "role", role);
    reply.bulk(b"modules");
    reply.array(0);
}

/// A name may hold what prints, but no blanks: it is shown between blanks.
fn checked_name(name: &[u8]) -> Result<&[u8], CommandError> {
    if name.iter().all(|byte| (b'!'..=b'~').contains(byte)) {
        return Ok(name);
    }
    Err(CommandError::text("ERR Client names cannot contain spaces, newlines or special characters."))
}

/// `CLIENT subcommand ...`
pub(in crate::resp) fn client(call: &mut Call<'_>) -> Outcome {
    let subcommand = call.args.at(1).to_ascii_lowercase();
    let wanted = |call: &Call<'_>, args: usize, name: &str| {
        if call.args.len() == args { Ok(()) } else { Err(call.subcommand_arity_error(name)) }
    };
    match subcommand.as_slice() {
        b"id" => {
            wanted(call, 2, "id")?;
            call.reply.count(call.session.info.id);
        }
        b"getname" => {
            wanted(call, 2, "getname")?;
            let names = call.session.info.names.lock();
            if names.name.is_empty() { call.reply.null() } else { call.reply.bulk(&names.name) }
        }
        b"setname" => {
            wanted(call, 3, "setname")?;
            call.session.info.names.lock().name = checked_name(call.args.at(2))?.to_vec();
            call.reply.ok();
        }
        b"setinfo" => {
            wanted(call, 4, "setinfo")?;
            set_info(call)?;
            call.reply.ok();
        }
        b"info" => {
            wanted(call, 2, "info")?;
            let line = describe(&call.session.info, call.worker.now_ms());
            call.reply.verbatim(&line);
        }
        b"list" => list(call)?,
        b"kill" if call.args.len() > 2 => return super::kill::kill(call),
        b"no-evict" | b"no-touch" => {
            let name = if subcommand == b"no-evict" { "no-evict" } else { "no-touch" };
            wanted(call, 3, name)?;
            if !call.args.is(2, "on") && !call.args.is(2, "off") {
                return Err(CommandError::Syntax);
            }
            call.reply.ok();
        }
        _ => return Err(call.unknown_subcommand()),
    }
    Ok(Flow::Done)
}

fn set_info(call: &Call<'_>) -> Result<(), CommandError> {
    let value = call.args.at(3);
    let attribute = call.args.at(2);
    let is_library = match attribute.to_ascii_lowercase().as_slice() {
        b"lib-name" => true,
        b"lib-ver" => false,
        _ => return Err(CommandError::repeating("ERR Unrecognized option '", attribute, "'")),
    };
    if !value.iter().all(|byte| (b'!'..=b'~').contains(byte)) {
        let after = " cannot contain spaces, newlines or special characters.";
        return Err(CommandError::repeating("ERR ", attribute, after));
    }
    let mut names = call.session.info.names.lock();
    let field = if is_library { &mut names.library } else { &mut names.library_version };
    *field = value.to_vec();
    Ok(())
}

/// `CLIENT LIST [TYPE type] [ID id [id ...]]`
fn list(call: &mut Call<'_>) -> Result<(), CommandError> {
    let mut clients = call.worker.clients.all();
    match call.args.len() {
        2 => {}
        4 if call.args.is(2, "type") => match call.args.at(3).to_ascii_lowercase().as_slice() {
            b"normal" => {}
            b"master" | b"replica" | b"slave" | b"pubsub" => clients.clear(),
            _ => return Err(CommandError::repeating("ERR Unknown client type '", call.args.at(3), "'")),
        },
        4.. if call.args.is(2, "id") => {
            let mut wanted = Vec::new();
            for id in call.args.from(3) {
                let id = parse_i64(id).and_then(|id| u64::try_from(id).ok()).filter(|id| *id > 0);
                wanted.push(id.ok_or(CommandError::text("ERR Invalid client ID"))?);
            }
            wanted.sort_unstable();
            clients.retain(|info| wanted.binary_search(&info.id).is_ok());
        }
        _ => return Err(CommandError::Syntax),
    }
    let now_ms = call.worker.now_ms();
    let text: String = clients.iter().map(|info| describe(info, now_ms)).collect();
    call.reply.verbatim(&text);
    Ok(())
}

/// A client's line, with Redis's fields.
fn describe(info: &ClientInfo, now_ms: u64) -> String {
    let names = info.names.lock().clone();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let command =
        TABLE.get(usize::from(info.last_command.load(Ordering::Relaxed))).map_or("NULL", |c| c.name);
    format!(
        "id={id} addr={peer} laddr={local} fd=-1 name={name} age={age} idle={idle} flags=N db=0 sub=0 psub=0 \
         ssub=0 multi=-1 qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 tot-mem=0 \
         events=r cmd={command} user=default redir=-1 resp={resp} lib-name={library} lib-ver={version}\n",
        id = info.id,
        peer = info.peer,
        local = info.local,
        name = text(&names.name),
        age = now_ms.saturating_sub(info.connected_ms) / 1000,
        idle = now_ms.saturating_sub(info.active_ms.load(Ordering::Relaxed)) / 1000,
        resp = if info.resp3.load(Ordering::Relaxed) { 3 } else { 2 },
        library = text(&names.library),
        version = text(&names.library_version),
    )
}
