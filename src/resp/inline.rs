//! Inline commands: words between blanks, with quotes and escapes as in Redis.
//!
//! `"..."` knows `\n \r \t \b \a \xHH` and takes any other escaped byte as it is; `'...'` knows `\'`.
//! A closing quote must be followed by a blank or the end.

use super::parse::Arg;

/// The quotes of a line do not close, or text follows a closing quote.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnbalancedQuotes;

enum Quote {
    None,
    Single,
    Double,
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

fn hex(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// Splits `buffer[start..end]` into words. A word without its quotes and escapes is never longer than
/// with them, so each is written back over its own beginning.
pub(super) fn split(
    buffer: &mut [u8],
    start: usize,
    end: usize,
    args: &mut Vec<Arg>,
) -> Result<(), UnbalancedQuotes> {
    let mut at = start;
    loop {
        while at < end && is_blank(buffer[at]) {
            at += 1;
        }
        // A NUL ends the line: Redis reads it as a C string.
        if at == end || buffer[at] == 0 {
            return Ok(());
        }
        at = word(buffer, at, end, args)?;
    }
}

fn word(buffer: &mut [u8], start: usize, end: usize, args: &mut Vec<Arg>) -> Result<usize, UnbalancedQuotes> {
    let (mut at, mut target) = (start, start);
    let mut quote = Quote::None;
    let mut put = |buffer: &mut [u8], byte: u8| {
        buffer[target] = byte;
        target += 1;
    };
    loop {
        let byte = if at < end { buffer[at] } else { 0 };
        let next = if at + 1 < end { buffer[at + 1] } else { 0 };
        match quote {
            Quote::None => match byte {
                0 => break,
                blank if is_blank(blank) => break,
                b'"' => quote = Quote::Double,
                b'\'' => quote = Quote::Single,
                other => put(buffer, other),
            },
            Quote::Double => match byte {
                0 => return Err(UnbalancedQuotes),
                b'\\' if next == b'x' && at + 3 < end => match (hex(buffer[at + 2]), hex(buffer[at + 3])) {
                    (Some(high), Some(low)) => {
                        put(buffer, high * 16 + low);
                        at += 3;
                    }
                    _ => {
                        put(buffer, b'x');
                        at += 1;
                    }
                },
                b'\\' if next != 0 => {
                    put(buffer, unescape(next));
                    at += 1;
                }
                b'"' => {
                    if next != 0 && !is_blank(next) {
                        return Err(UnbalancedQuotes);
                    }
                    at += 1;
                    break;
                }
                other => put(buffer, other),
            },
            Quote::Single => match byte {
                0 => return Err(UnbalancedQuotes),
                b'\\' if next == b'\'' => {
                    put(buffer, b'\'');
                    at += 1;
                }
                b'\'' => {
                    if next != 0 && !is_blank(next) {
                        return Err(UnbalancedQuotes);
                    }
                    at += 1;
                    break;
                }
                other => put(buffer, other),
            },
        }
        at += 1;
    }
    args.push(Arg { start, end: target });
    Ok(at)
}

fn unescape(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 0x08,
        b'a' => 0x07,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[u8]) -> Result<Vec<Vec<u8>>, UnbalancedQuotes> {
        let mut buffer = line.to_vec();
        let mut args = Vec::new();
        let end = buffer.len();
        split(&mut buffer, 0, end, &mut args)?;
        Ok(args.iter().map(|arg| buffer[arg.start..arg.end].to_vec()).collect())
    }

    #[test]
    fn blanks_separate_words() {
        assert_eq!(words(b"  set\tkey  value \r").unwrap(), [&b"set"[..], b"key", b"value"]);
        assert_eq!(words(b" \r").unwrap(), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn quotes_and_escapes_are_resolved() {
        assert_eq!(words(br#"set "a b" 'c d'"#).unwrap(), [&b"set"[..], b"a b", b"c d"]);
        assert_eq!(words(br#""\x00\xfF\n\"" 'it\'s'"#).unwrap(), [&b"\x00\xff\n\""[..], b"it's"]);
        assert_eq!(words(br#""\xzz" ''"#).unwrap(), [&b"xzz"[..], b""]);
        assert_eq!(words(br#"fo"o b"  x"#).unwrap(), [&b"foo b"[..], b"x"]);
    }

    #[test]
    fn open_quotes_are_refused() {
        for line in [&br#""abc"#[..], b"'abc", br#""abc"d"#, b"'abc'd", br#""abc\""#] {
            assert_eq!(words(line), Err(UnbalancedQuotes), "{}", line.escape_ascii());
        }
    }
}
