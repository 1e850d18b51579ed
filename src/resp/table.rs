//! The one table of commands: it drives look-up, arity checks, COMMAND and the prefetch of keys.

use super::command::{
    Call, Flow, bitfield, bitop, bits, client, counters, debug, dump, expiry, export, keys, lcs, object,
    position, ranges, rename, roles, saves, scan, server, strings, transaction, wait, walk, xread,
};
use super::error::CommandError;

/// What a command is; the words of COMMAND INFO.
pub(super) mod flag {
    pub(in super::super) const WRITE: u16 = 1;
    pub(in super::super) const READONLY: u16 = 1 << 1;
    pub(in super::super) const DENYOOM: u16 = 1 << 2;
    pub(in super::super) const ADMIN: u16 = 1 << 3;
    pub(in super::super) const NOSCRIPT: u16 = 1 << 4;
    pub(in super::super) const LOADING: u16 = 1 << 5;
    pub(in super::super) const STALE: u16 = 1 << 6;
    pub(in super::super) const FAST: u16 = 1 << 7;
    pub(in super::super) const BLOCKING: u16 = 1 << 8;
    /// Not queued by MULTI, but done at once.
    pub(in super::super) const UNQUEUED: u16 = 1 << 9;

    /// Names of the flags that COMMAND INFO shows.
    pub(in super::super) const NAMES: [(u16, &str); 9] = [
        (WRITE, "write"),
        (READONLY, "readonly"),
        (DENYOOM, "denyoom"),
        (ADMIN, "admin"),
        (NOSCRIPT, "noscript"),
        (LOADING, "loading"),
        (STALE, "stale"),
        (FAST, "fast"),
        (BLOCKING, "blocking"),
    ];
}

use flag::{ADMIN, BLOCKING, DENYOOM, FAST, LOADING, NOSCRIPT, READONLY, STALE, UNQUEUED, WRITE};

/// A command's row.
pub(super) struct Command {
    /// Lower case. Letters only; one of more than 16 letters may have dots, and any an underscore.
    pub(super) name: &'static str,
    /// Arguments with the name; negative = at least.
    pub(super) arity: i16,
    pub(super) flags: u16,
    /// First key's position; 0 = no keys.
    pub(super) first_key: u8,
    /// Last key's position; negative counts from the end.
    pub(super) last_key: i8,
    pub(super) key_step: u8,
    pub(super) run: fn(&mut Call<'_>) -> Result<Flow, CommandError>,
}

impl Command {
    /// Whether that many arguments, the name included, may be right.
    #[inline]
    pub(super) fn accepts(&self, args: usize) -> bool {
        let wanted = usize::from(self.arity.unsigned_abs());
        if self.arity >= 0 { args == wanted } else { args >= wanted }
    }

    /// Positions of the keys among that many arguments.
    #[inline]
    pub(super) fn key_positions(&self, args: usize) -> std::iter::StepBy<std::ops::Range<usize>> {
        let first = usize::from(self.first_key);
        let end = if first == 0 {
            0
        } else if self.last_key < 0 {
            (args + 1).saturating_sub(usize::from(self.last_key.unsigned_abs()))
        } else {
            args.min(usize::from(self.last_key.unsigned_abs()) + 1)
        };
        (first..end.max(first)).step_by(usize::from(self.key_step).max(1))
    }

    /// Whether it takes just one key.
    #[inline]
    pub(super) fn has_one_key(&self) -> bool {
        self.first_key > 0 && i16::from(self.last_key) == i16::from(self.first_key)
    }

    pub(super) fn is(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

const fn row(
    name: &'static str,
    arity: i16,
    flags: u16,
    keys: (u8, i8, u8),
    run: fn(&mut Call<'_>) -> Result<Flow, CommandError>,
) -> Command {
    Command { name, arity, flags, first_key: keys.0, last_key: keys.1, key_step: keys.2, run }
}

const NO_KEY: (u8, i8, u8) = (0, 0, 0);
const ONE_KEY: (u8, i8, u8) = (1, 1, 1);
const ALL_KEYS: (u8, i8, u8) = (1, -1, 1);
const CONNECTION: u16 = NOSCRIPT | LOADING | STALE | FAST;
const PUT: u16 = WRITE | DENYOOM;

/// GET's row.
pub(super) const GET: u8 = 0;
/// SET's row.
pub(super) const SET: u8 = 1;

/// All commands.
pub(super) static TABLE: [Command; COMMAND_COUNT] = [
    row("get", 2, READONLY | FAST, ONE_KEY, strings::get),
    row("set", -3, PUT, ONE_KEY, strings::set),
    row("append", 3, PUT | FAST, ONE_KEY, strings::append),
    row("auth", -2, CONNECTION | UNQUEUED, NO_KEY, client::auth),
    row("bgsave", -1, ADMIN | NOSCRIPT, NO_KEY, saves::bgsave),
    row("bitcount", -2, READONLY, ONE_KEY, bits::bitcount),
    row("bitfield", -2, PUT, ONE_KEY, bitfield::bitfield),
    row("bitfield_ro", -2, READONLY | FAST, ONE_KEY, bitfield::bitfield_ro),
    row("bitop", -4, PUT, (2, -1, 1), bitop::bitop),
    row("bitpos", -3, READONLY, ONE_KEY, bits::bitpos),
    row("client", -2, NOSCRIPT | LOADING | STALE, NO_KEY, client::client),
    row("command", -1, LOADING | STALE, NO_KEY, server::command),
    row("config", -2, ADMIN | NOSCRIPT | LOADING | STALE, NO_KEY, server::config),
    row("copy", -3, PUT, (1, 2, 1), rename::copy),
    row("dbsize", 1, READONLY | FAST, NO_KEY, server::dbsize),
    row("debug", -2, ADMIN | NOSCRIPT | LOADING | STALE, NO_KEY, debug::debug),
    row("decr", 2, PUT | FAST, ONE_KEY, counters::decr),
    row("decrby", 3, PUT | FAST, ONE_KEY, counters::decrby),
    row("del", -2, WRITE, ALL_KEYS, keys::del),
    row("delifeq", 3, WRITE | FAST, ONE_KEY, strings::delifeq),
    row("discard", 1, CONNECTION | UNQUEUED, NO_KEY, transaction::discard),
    row("dump", 2, READONLY, ONE_KEY, dump::dump),
    row("echo", 2, LOADING | STALE | FAST, NO_KEY, client::echo),
    row("exec", 1, NOSCRIPT | LOADING | STALE | UNQUEUED, NO_KEY, transaction::exec),
    row("exists", -2, READONLY | FAST, ALL_KEYS, keys::exists),
    row("expire", -3, WRITE | FAST, ONE_KEY, expiry::expire),
    row("expireat", -3, WRITE | FAST, ONE_KEY, expiry::expireat),
    row("expiretime", 2, READONLY | FAST, ONE_KEY, expiry::expiretime),
    row("failover", -1, ADMIN | NOSCRIPT | STALE, NO_KEY, roles::failover),
    row("flushall", -1, WRITE, NO_KEY, server::flushall),
    row("flushdb", -1, WRITE, NO_KEY, server::flushall),
    row("getbit", 3, READONLY | FAST, ONE_KEY, bits::getbit),
    row("getdel", 2, WRITE | FAST, ONE_KEY, strings::getdel),
    row("getex", -2, WRITE | FAST, ONE_KEY, strings::getex),
    row("getrange", 4, READONLY, ONE_KEY, ranges::getrange),
    row("getset", 3, PUT | FAST, ONE_KEY, strings::getset),
    row("hello", -1, CONNECTION, NO_KEY, client::hello),
    row("incr", 2, PUT | FAST, ONE_KEY, counters::incr),
    row("incrby", 3, PUT | FAST, ONE_KEY, counters::incrby),
    row("incrbyfloat", 3, PUT | FAST, ONE_KEY, counters::incrbyfloat),
    row("info", -1, LOADING | STALE, NO_KEY, server::info),
    row("keys", 2, READONLY, NO_KEY, walk::keys),
    row("lastsave", 1, LOADING | STALE | FAST, NO_KEY, saves::lastsave),
    row("lcs", -3, READONLY, (1, 2, 1), lcs::lcs),
    row("memory", -2, READONLY, (2, 2, 1), object::memory),
    row("mget", -2, READONLY | FAST, ALL_KEYS, strings::mget),
    row("move", 3, WRITE | FAST, ONE_KEY, keys::move_key),
    row("mset", -3, PUT, (1, -1, 2), strings::mset),
    row("msetnx", -3, PUT, (1, -1, 2), strings::msetnx),
    row("multi", 1, CONNECTION | UNQUEUED, NO_KEY, transaction::multi),
    row("object", -2, READONLY, (2, 2, 1), object::object),
    row("persist", 2, WRITE | FAST, ONE_KEY, expiry::persist),
    row("pexpire", -3, WRITE | FAST, ONE_KEY, expiry::pexpire),
    row("pexpireat", -3, WRITE | FAST, ONE_KEY, expiry::pexpireat),
    row("pexpiretime", 2, READONLY | FAST, ONE_KEY, expiry::pexpiretime),
    row("ping", -1, FAST, NO_KEY, client::ping),
    row("psetex", 4, PUT, ONE_KEY, strings::psetex),
    row("pttl", 2, READONLY | FAST, ONE_KEY, expiry::pttl),
    row("quit", -1, CONNECTION | UNQUEUED, NO_KEY, client::quit),
    row("randomkey", 1, READONLY, NO_KEY, walk::randomkey),
    row("readonly", 1, LOADING | STALE | FAST, NO_KEY, client::readonly),
    row("rename", 3, WRITE, (1, 2, 1), rename::rename),
    row("renamenx", 3, WRITE | FAST, (1, 2, 1), rename::renamenx),
    row("replicaof", 3, ADMIN | NOSCRIPT | STALE, NO_KEY, roles::replicaof),
    row("reset", 1, CONNECTION | UNQUEUED, NO_KEY, client::reset),
    row("restore", -4, PUT, ONE_KEY, dump::restore),
    row("role", 1, CONNECTION, NO_KEY, server::role),
    row("save", 1, ADMIN | NOSCRIPT, NO_KEY, saves::save),
    row("scan", -2, READONLY, NO_KEY, scan::scan),
    row("select", 2, LOADING | STALE | FAST, NO_KEY, client::select),
    row("setbit", 4, PUT, ONE_KEY, bits::setbit),
    row("setex", 4, PUT, ONE_KEY, strings::setex),
    row("setnx", 3, PUT | FAST, ONE_KEY, strings::setnx),
    row("setrange", 4, PUT, ONE_KEY, ranges::setrange),
    row("shutdown", -1, ADMIN | NOSCRIPT | LOADING | STALE, NO_KEY, server::shutdown),
    row("slaveof", 3, ADMIN | NOSCRIPT | STALE, NO_KEY, roles::replicaof),
    row("strlen", 2, READONLY | FAST, ONE_KEY, strings::strlen),
    row("substr", 4, READONLY, ONE_KEY, ranges::getrange),
    row("swapdb", 3, WRITE | FAST, NO_KEY, keys::swapdb),
    row("time", 1, LOADING | STALE | FAST, NO_KEY, server::time),
    row("touch", -2, READONLY | FAST, ALL_KEYS, keys::exists),
    row("ttl", 2, READONLY | FAST, ONE_KEY, expiry::ttl),
    row("type", 2, READONLY | FAST, ONE_KEY, keys::type_of),
    row("unlink", -2, WRITE | FAST, ALL_KEYS, keys::del),
    row("unwatch", 1, CONNECTION, NO_KEY, transaction::unwatch),
    row("wait", 3, NOSCRIPT | BLOCKING, NO_KEY, wait::wait),
    row("waitaof", 4, NOSCRIPT | BLOCKING, NO_KEY, wait::waitaof),
    row("watch", -2, CONNECTION | UNQUEUED, ALL_KEYS, transaction::watch),
    row("xinfo", -2, NOSCRIPT | STALE, NO_KEY, xread::xinfo),
    row("xread", -4, NOSCRIPT | BLOCKING | STALE, NO_KEY, xread::xread),
    row("slotstream.export", -2, READONLY, NO_KEY, export::export),
    row("slotstream.lastseq", -1, CONNECTION, NO_KEY, position::lastseq),
    row("slotstream.waitseq", -2, NOSCRIPT | BLOCKING | STALE, NO_KEY, position::waitseq),
];

const COMMAND_COUNT: usize = 93;
/// Longer names are not in the index.
const NAME_SIZE_MAX: usize = 16;

/// Position in [`INDEX`], where a name's search begins.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "both halves of the number, and eight bits of a hash")]
const fn hash(folded: u128) -> usize {
    let mixed =
        ((folded >> 64) as u64 ^ (folded & u64::MAX as u128) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 56) as usize
}

/// The name in lower case, as a number. Only letters fold onto letters, so that two different names with
/// the same number cannot both be made of letters and have the same length.
#[inline]
const fn fold(padded: [u8; NAME_SIZE_MAX]) -> u128 {
    u128::from_le_bytes(padded) | 0x2020_2020_2020_2020_2020_2020_2020_2020
}

const fn pad(name: &[u8]) -> [u8; NAME_SIZE_MAX] {
    let mut padded = [0; NAME_SIZE_MAX];
    let mut index = 0;
    while index < name.len() {
        padded[index] = name[index];
        index += 1;
    }
    padded
}

/// Open addressing: folded name, row, and whether the name is letters only; the row is [`NO_ROW`] in an empty place.
static INDEX: [(u128, u8, bool); 256] = index();
const NO_ROW: u8 = u8::MAX;
const _: () = assert!(COMMAND_COUNT < 128, "the index must stay sparse and a row must fit its byte");

const fn is_letters_only(name: &[u8]) -> bool {
    let mut at = 0;
    while at < name.len() && name[at].is_ascii_alphabetic() {
        at += 1;
    }
    at == name.len()
}

const fn index() -> [(u128, u8, bool); 256] {
    let mut index = [(0, NO_ROW, true); 256];
    let mut row = 0;
    while row < COMMAND_COUNT {
        if TABLE[row].name.len() > NAME_SIZE_MAX {
            row += 1;
            continue;
        }
        let folded = fold(pad(TABLE[row].name.as_bytes()));
        let mut place = hash(folded);
        while index[place].1 != NO_ROW {
            place = (place + 1) % 256;
        }
        #[expect(clippy::cast_possible_truncation, reason = "there are fewer than 128 rows")]
        let row_byte = row as u8;
        index[place] = (folded, row_byte, is_letters_only(TABLE[row].name.as_bytes()));
        row += 1;
    }
    index
}

/// Finds a command's row, in any case of its letters, without allocating.
#[inline]
pub(super) fn lookup(name: &[u8]) -> Option<u8> {
    if let [a, b, c] = name {
        match [a | 0x20, b | 0x20, c | 0x20] {
            [b'g', b'e', b't'] => return Some(GET),
            [b's', b'e', b't'] => return Some(SET),
            _ => {}
        }
    }
    if name.len() > NAME_SIZE_MAX {
        return lookup_long(name);
    }
    let mut padded = [0; NAME_SIZE_MAX];
    padded[..name.len()].copy_from_slice(name);
    let folded = fold(padded);
    let mut place = hash(folded);
    loop {
        let (known, row, is_letters_only) = INDEX[place];
        if row == NO_ROW {
            return None;
        }
        let wanted = TABLE[usize::from(row)].name.as_bytes();
        // Another byte than an underscore folds onto it, too.
        if known == folded
            && wanted.len() == name.len()
            && (is_letters_only || wanted.eq_ignore_ascii_case(name))
        {
            return Some(row);
        }
        place = (place + 1) % 256;
    }
}

#[cold]
fn lookup_long(name: &[u8]) -> Option<u8> {
    let row = TABLE.iter().position(|command| command.name.as_bytes().eq_ignore_ascii_case(name))?;
    u8::try_from(row).ok()
}

/// All names, in the order of the rows.
pub(super) fn names() -> Vec<&'static str> {
    TABLE.iter().map(|command| command.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_in_any_case() {
        for (row, command) in TABLE.iter().enumerate() {
            let is_long = command.name.len() > NAME_SIZE_MAX;
            let is_good = |byte: u8| byte.is_ascii_lowercase() || byte == b'_' || (is_long && byte == b'.');
            assert!(command.name.bytes().all(is_good), "{}", command.name);
            let row = u8::try_from(row).unwrap();
            assert_eq!(lookup(command.name.as_bytes()), Some(row), "{}", command.name);
            assert_eq!(lookup(command.name.to_uppercase().as_bytes()), Some(row), "{}", command.name);
            let mut mixed = command.name.as_bytes().to_vec();
            mixed[0] = mixed[0].to_ascii_uppercase();
            assert_eq!(lookup(&mixed), Some(row), "{}", command.name);
        }
        assert_eq!(TABLE[usize::from(GET)].name, "get");
        assert_eq!(TABLE[usize::from(SET)].name, "set");
    }

    #[test]
    fn other_names_are_not_found() {
        for name in [
            "",
            "g",
            "gett",
            "ge",
            "get ",
            "get\0",
            "\0\0\0",
            "gEt\x20",
            "configconfigconfigconfig",
            "bitfield\x7fro",
        ] {
            assert_eq!(lookup(name.as_bytes()), None, "{name:?}");
        }
    }

    #[test]
    fn key_positions_follow_the_row() {
        let positions = |name: &str, args| {
            let row = lookup(name.as_bytes()).unwrap();
            TABLE[usize::from(row)].key_positions(args).collect::<Vec<_>>()
        };
        assert_eq!(positions("get", 2), [1]);
        assert_eq!(positions("mget", 4), [1, 2, 3]);
        assert_eq!(positions("mset", 5), [1, 3]);
        assert_eq!(positions("bitop", 5), [2, 3, 4]);
        assert_eq!(positions("ping", 2), [0; 0]);
        assert_eq!(positions("mget", 1), [0; 0]);
        assert_eq!(positions("get", 1), [0; 0]);
    }
}
