//! Commands about the server: INFO, ROLE, CONFIG GET, COMMAND, DBSIZE, TIME, FLUSHALL, SHUTDOWN.

use std::time::{SystemTime, UNIX_EPOCH};

use super::super::error::CommandError;
use super::super::glob;
use super::super::reply::Reply;
use super::super::settings as known;
use super::super::table::{Command, TABLE, flag, lookup};
use super::{Args, Call, Flow, info, settings};
use crate::resp::context::Role;
use crate::store::Durability;

type Outcome = Result<Flow, CommandError>;

/// `INFO [section ...]`
pub(in crate::resp) fn info(call: &mut Call<'_>) -> Outcome {
    let text = info::render(call.worker, call.args.from(1));
    call.reply.verbatim(&text);
    Ok(Flow::Done)
}

/// `DBSIZE`
pub(in crate::resp) fn dbsize(call: &mut Call<'_>) -> Outcome {
    let records = call.store().len();
    call.reply.count(records);
    Ok(Flow::Done)
}

/// `TIME`
pub(in crate::resp) fn time(call: &mut Call<'_>) -> Outcome {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    call.reply.array(2);
    call.reply.bulk_number(now.as_secs());
    call.reply.bulk_number(now.subsec_micros().into());
    Ok(Flow::Done)
}

/// `FLUSHALL [ASYNC | SYNC]`, `FLUSHDB [ASYNC | SYNC]`
pub(in crate::resp) fn flushall(call: &mut Call<'_>) -> Outcome {
    let is_known = |call: &Call<'_>| call.args.is(1, "async") || call.args.is(1, "sync");
    if call.args.len() > 2 || (call.args.len() == 2 && !is_known(call)) {
        return Err(CommandError::Syntax);
    }
    call.store().clear()?;
    call.session.wrote_everywhere(&call.worker.context.store);
    call.reply.ok();
    Ok(Flow::Done)
}

/// `SHUTDOWN [NOSAVE | SAVE] [NOW] [FORCE] [ABORT]`; there is nothing to save: a write is in its slot.
pub(in crate::resp) fn shutdown(call: &mut Call<'_>) -> Outcome {
    for index in 1..call.args.len() {
        if call.args.is(index, "abort") {
            return Err(CommandError::text("ERR No shutdown in progress."));
        }
        if !["nosave", "save", "now", "force"].iter().any(|word| call.args.is(index, word)) {
            return Err(CommandError::Syntax);
        }
    }
    (call.worker.context.shutdown)();
    Ok(Flow::Close)
}

/// `ROLE`
pub(in crate::resp) fn role(call: &mut Call<'_>) -> Outcome {
    let worker = call.worker;
    let reply = &mut *call.reply;
    match &*worker.context.node.role.read() {
        Role::Leader => {
            let followers = info::followers(&worker.context.store, &worker.context.links);
            reply.array(3);
            reply.bulk(b"master");
            reply.count(info::offset(&worker.context.store));
            reply.array(followers.len());
            for follower in followers {
                reply.array(3);
                reply.bulk(follower.ip.to_string().as_bytes());
                reply.bulk_number(follower.port.into());
                reply.bulk_number(follower.offset);
            }
        }
        Role::Follower { leader, resp_port } => {
            let link = info::leader_link(&worker.context.links);
            let (host, port) = info::leader_address(&worker.context.links, leader, *resp_port);
            reply.array(5);
            reply.bulk(b"slave");
            reply.bulk(host.as_bytes());
            reply.count(port.into());
            reply.bulk(link.state.as_bytes());
            reply.count(info::offset(&worker.context.store));
        }
    }
    Ok(Flow::Done)
}

/// `CONFIG GET pattern [pattern ...]`, `CONFIG SET`, `CONFIG REWRITE`
pub(in crate::resp) fn config(call: &mut Call<'_>) -> Outcome {
    if call.args.is(1, "rewrite") {
        return settings::rewrite(call);
    }
    if call.args.is(1, "set") {
        return settings::set(call);
    }
    if !call.args.is(1, "get") {
        return Err(call.unknown_subcommand());
    }
    if call.args.len() < 3 {
        return Err(call.subcommand_arity_error("get"));
    }
    let values = config_values(call);
    let found: Vec<_> = values
        .iter()
        .filter(|(name, _)| call.args.from(2).any(|pattern| glob::matches(pattern, name.as_bytes(), true)))
        .collect();
    call.reply.map(found.len());
    for (name, value) in found {
        call.reply.bulk(name.as_bytes());
        call.reply.bulk(value.as_bytes());
    }
    Ok(Flow::Done)
}

fn config_values(call: &Call<'_>) -> Vec<(String, String)> {
    let mut values = fixed_values(call);
    values.extend(known::values(&call.worker.rules.demands()));
    values
}

/// What clients and exporters ask for, in Redis's names, and nobody changes; the node's own values go before.
pub(super) fn fixed_values(call: &Call<'_>) -> Vec<(String, String)> {
    let worker = call.worker;
    let mut values = worker.context.node.config.clone();
    // As INFO has it: the log takes the place of the append-only file.
    let durability = worker.context.store.durability();
    let (appendonly, appendfsync) = match durability {
        Durability::None => ("no", "no"),
        Durability::Interval(_) => ("yes", "everysec"),
        Durability::Always => ("yes", "always"),
    };
    let interval = durability.interval().map(|interval| format!("{}ms", interval.as_millis()));
    let fixed: [(&str, String); 15] = [
        ("appendfsync", appendfsync.into()),
        ("appendonly", appendonly.into()),
        ("bind", worker.address.ip().to_string()),
        ("databases", "1".into()),
        ("durability", durability.level().into()),
        ("durability-interval", interval.unwrap_or_default()),
        ("io-threads", worker.options.workers.to_string()),
        ("maxclients", worker.options.clients_max.to_string()),
        ("maxmemory", "0".into()),
        ("maxmemory-policy", "noeviction".into()),
        ("port", worker.address.port().to_string()),
        ("proto-max-bulk-len", worker.options.bulk_size_max.to_string()),
        ("save", String::new()),
        ("tcp-keepalive", "300".into()),
        ("timeout", "0".into()),
    ];
    for (name, value) in fixed {
        if !values.iter().any(|(known, _)| known == name) {
            values.push((name.to_owned(), value));
        }
    }
    values
}

/// `COMMAND [COUNT | DOCS [name ...] | INFO [name ...] | LIST]`
pub(in crate::resp) fn command(call: &mut Call<'_>) -> Outcome {
    let args = call.args;
    let reply = &mut *call.reply;
    match args.get(1).map(<[u8]>::to_ascii_lowercase).as_deref() {
        None => reply_rows(reply),
        Some(b"count") if args.len() == 2 => reply.count(TABLE.len() as u64),
        Some(b"count") => return Err(call.subcommand_arity_error("count")),
        Some(b"docs") => reply_docs(reply, args),
        Some(b"info") if args.len() == 2 => reply_rows(reply),
        Some(b"info") => {
            reply.array(args.len() - 2);
            for name in args.from(2) {
                match lookup(name) {
                    Some(row) => reply_row(reply, &TABLE[usize::from(row)]),
                    None => reply.null(),
                }
            }
        }
        Some(b"list") if args.len() == 2 => {
            reply.array(TABLE.len());
            for command in &TABLE {
                reply.bulk(command.name.as_bytes());
            }
        }
        Some(_) => return Err(call.unknown_subcommand()),
    }
    Ok(Flow::Done)
}

/// What to say of the commands that are no other server's; clients know the rest.
const DOCS: [(&str, &str); 3] = [
    (
        "slotstream.export",
        "EXPORT cursor [COUNT n]: next cursor, shard, key, value and expiry (Unix ms, 0 = never) of each record, and \
         damaged slots",
    ),
    (
        "slotstream.lastseq",
        "LASTSEQ [key]: shard, term and seq of this connection's last write to each shard, or to the key's",
    ),
    (
        "slotstream.waitseq",
        "WAITSEQ timeout-ms [shard term seq ...]: OK once this node holds those writes, null when the time is \
         over (0 = never)",
    ),
];

fn reply_docs(reply: &mut Reply, args: Args<'_>) {
    let is_asked =
        |name: &str| args.len() == 2 || args.from(2).any(|asked| asked.eq_ignore_ascii_case(name.as_bytes()));
    let docs: Vec<_> = DOCS.iter().filter(|(name, _)| is_asked(name)).collect();
    reply.map(docs.len());
    for (name, summary) in docs {
        reply.bulk(name.as_bytes());
        reply.map(2);
        for text in ["summary", summary, "group", "replication"] {
            reply.bulk(text.as_bytes());
        }
    }
}

fn reply_rows(reply: &mut Reply) {
    reply.array(TABLE.len());
    for command in &TABLE {
        reply_row(reply, command);
    }
}

/// Name, arity, flags, keys; then categories, tips, key specifications and subcommands, which are empty.
fn reply_row(reply: &mut Reply, command: &Command) {
    reply.array(10);
    reply.bulk(command.name.as_bytes());
    reply.integer(command.arity.into());
    let flags = flag::NAMES.iter().filter(|(bit, _)| command.is(*bit));
    reply.set(flags.clone().count());
    for (_, name) in flags {
        reply.simple(name);
    }
    reply.integer(command.first_key.into());
    reply.integer(command.last_key.into());
    reply.integer(command.key_step.into());
    reply.set(0);
    reply.array(0);
    reply.array(0);
    reply.array(0);
}
