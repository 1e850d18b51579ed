//! Whether two replies to a command say the same.
//!
//! They are equal byte for byte, but for moments, which pass while two servers answer; keys in no order; and what
//! [`explained`](super::explained) has a row for.

use super::explained;

/// A command as it can be read.
pub(super) fn show(command: &[Vec<u8>]) -> String {
    command.iter().map(|arg| format!("{:?} ", arg.escape_ascii().to_string())).collect()
}

pub(super) fn integer(reply: &[u8]) -> Option<i64> {
    std::str::from_utf8(reply.strip_prefix(b":")?).ok()?.trim_end().parse().ok()
}

/// How far apart two servers may be in time: a machine may be busy.
const TOLERANCE_MS: u64 = 60_000;

/// No key is as short a reply as none.
const NULL_SIZE_MAX: usize = b"$-1\r\n".len();

/// Two times, or two lengths of time.
fn are_near(name: &[u8], ours: &[u8], theirs: &[u8]) -> bool {
    let tolerance = if name.starts_with(b"p") { TOLERANCE_MS } else { TOLERANCE_MS / 1000 };
    match (integer(ours), integer(theirs)) {
        // Negative ones say that there is no such time.
        (Some(ours), Some(theirs)) => ours.min(theirs) >= 0 && ours.abs_diff(theirs) <= tolerance,
        _ => false,
    }
}

/// The bulk strings in a reply, in order of their bytes.
pub(super) fn strings(reply: &[u8]) -> Vec<&[u8]> {
    let (mut strings, mut rest) = (Vec::new(), reply);
    while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
        let (line, after) = (&rest[..end], &rest[end + 2..]);
        rest = after;
        if let Some(digits) = line.strip_prefix(b"$") {
            let len: usize = std::str::from_utf8(digits).expect("digits").parse().expect("a length");
            strings.push(&after[..len]);
            rest = &after[len + 2..];
        }
    }
    strings.sort_unstable();
    strings
}

/// What a difference is explained by; `None` where there is none. Panics at one that is not explained.
pub(super) fn check(command: &[Vec<u8>], ours: &[u8], theirs: &[u8]) -> Option<&'static str> {
    if ours == theirs {
        return None;
    }
    let name = command[0].to_ascii_lowercase();
    let is_same = match name.as_slice() {
        b"ttl" | b"pttl" | b"expiretime" | b"pexpiretime" => are_near(&name, ours, theirs),
        b"keys" | b"scan" => ours.len() == theirs.len() && strings(ours) == strings(theirs),
        // Redis tells of an expired record, too, until it deletes it.
        b"memory" => (ours == b"$-1\r\n" || ours == b"_\r\n") && integer(theirs).is_some(),
        // Any key, where there is one.
        b"randomkey" => ours.len() > NULL_SIZE_MAX && theirs.len() > NULL_SIZE_MAX,
        _ => false,
    };
    if is_same {
        return None;
    }
    let explained = explained::find(command, ours, theirs);
    assert!(
        explained.is_some(),
        "ours and Redis to {}\n  {}\n  {}",
        show(command),
        ours.escape_ascii(),
        theirs.escape_ascii()
    );
    explained
}
