//! The request parser: arrays of bulk strings and inline commands, parsed in place.
//!
//! Arguments are ranges of the buffer, so nothing is copied and nothing is allocated per command. A
//! [`Cursor`] keeps its place when the buffer ends inside a command: a caller may keep the cursor
//! (and its arguments) and go on when more bytes are there, or start the command over.
//! Lengths are checked against [`Limits`] before anybody acts on them.

use super::inline;

/// What a client may announce.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Most arguments of one command.
    pub(super) args_max: usize,
    /// Most bytes of one argument.
    pub(super) bulk_size_max: usize,
    /// Most bytes of one inline command.
    pub(super) inline_size_max: usize,
}

/// Where an argument lies in its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arg {
    pub(super) start: usize,
    pub(super) end: usize,
}

/// What [`Cursor::next`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A whole command; its arguments were appended.
    Command,
    /// A blank line or an empty array: to be ignored.
    Nothing,
    /// The buffer ends inside a command.
    Incomplete,
}

/// Why bytes are not the protocol; the connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProtocolError {
    /// The array's length is no number, or more than a command may have.
    #[error("invalid multibulk length")]
    ArrayLength,
    /// The argument's length is no number, or more than an argument may have.
    #[error("invalid bulk length")]
    BulkLength,
    /// Something else stands where an argument must begin.
    #[error("expected '$', got '{0}'")]
    BulkStart(char),
    /// The argument does not end where its length says.
    #[error("expected CRLF after bulk string")]
    BulkEnd,
    /// The length line does not end.
    #[error("too big mbulk count string")]
    LineLength,
    /// An inline command does not end.
    #[error("too big inline request")]
    InlineLength,
    /// An inline command's quotes do not close.
    #[error("unbalanced quotes in request")]
    Quotes,
}

/// A place in a buffer of requests.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cursor {
    /// The next byte to look at.
    pub(super) position: usize,
    /// Arguments of the array under way that are still to come; 0 between commands.
    args_left: usize,
}

/// A length line holds at most this many bytes between its type and its end.
const LENGTH_DIGITS_MAX: usize = 20;

enum Line {
    Number { value: i64, next: usize },
    Incomplete,
    Malformed,
    TooLong,
}

/// Reads the number between `start` and the next CRLF.
#[inline(never)]
fn number_line(buffer: &[u8], start: usize) -> Line {
    let rest = &buffer[start..];
    let (negative, skip) = match rest.first() {
        Some(b'-') => (true, 1),
        Some(_) => (false, 0),
        None => return Line::Incomplete,
    };
    let mut value: i64 = 0;
    for (index, byte) in rest.iter().enumerate().skip(skip).take(LENGTH_DIGITS_MAX) {
        let digit = byte.wrapping_sub(b'0');
        if digit <= 9 {
            // Saturating: a length this large is refused by every limit.
            value = value.saturating_mul(10).saturating_add(i64::from(digit));
            continue;
        }
        if *byte != b'\r' || index == skip {
            return Line::Malformed;
        }
        return match rest.get(index + 1) {
            Some(b'\n') => {
                Line::Number { value: if negative { -value } else { value }, next: start + index + 2 }
            }
            Some(_) => Line::Malformed,
            None => Line::Incomplete,
        };
    }
    if rest.len() >= LENGTH_DIGITS_MAX + skip { Line::TooLong } else { Line::Incomplete }
}

/// Reads the line that nearly all lengths have: one or two digits, and CRLF, all of it there.
#[inline(always)]
fn short_line(buffer: &[u8], start: usize) -> Option<(usize, usize)> {
    let line = *buffer.get(start..)?.first_chunk::<4>()?;
    let digit = |place: usize| {
        let digit = line[place].wrapping_sub(b'0');
        (digit <= 9).then_some(usize::from(digit))
    };
    let line = u32::from_le_bytes(line);
    const CRLF: u32 = 0x0A0D;
    let (value, size) = match line {
        _ if line >> 8 & 0xFFFF == CRLF => (digit(0)?, 3),
        _ if line >> 16 == CRLF => (digit(0)? * 10 + digit(1)?, 4),
        _ => return None,
    };
    Some((value, start + size))
}

impl Cursor {
    /// Parses one command and appends its arguments to `args`. After [`Step::Incomplete`] the same
    /// cursor may go on with the same buffer made longer and the same `args`.
    /// An inline command's quotes and escapes are resolved inside the buffer, which they never lengthen.
    #[inline]
    pub(super) fn next(
        &mut self,
        buffer: &mut [u8],
        args: &mut Vec<Arg>,
        limits: &Limits,
    ) -> Result<Step, ProtocolError> {
        if self.args_left == 0 {
            match buffer.get(self.position) {
                None => return Ok(Step::Incomplete),
                Some(b'*') => {}
                Some(_) => return self.next_inline(buffer, args, limits),
            }
            let (count, next) = match short_line(buffer, self.position + 1) {
                Some(line) => line,
                None => match number_line(buffer, self.position + 1) {
                    // Below zero it is an empty array, too.
                    Line::Number { value, next } => (usize::try_from(value).unwrap_or(0), next),
                    Line::Incomplete => return Ok(Step::Incomplete),
                    Line::Malformed => return Err(ProtocolError::ArrayLength),
                    Line::TooLong => return Err(ProtocolError::LineLength),
                },
            };
            self.position = next;
            if count == 0 {
                return Ok(Step::Nothing);
            }
            if count > limits.args_max {
                return Err(ProtocolError::ArrayLength);
            }
            self.args_left = count;
        }
        self.next_args(buffer, args, limits)
    }

    #[inline]
    fn next_args(
        &mut self,
        buffer: &[u8],
        args: &mut Vec<Arg>,
        limits: &Limits,
    ) -> Result<Step, ProtocolError> {
        while self.args_left > 0 {
            match buffer.get(self.position) {
                None => return Ok(Step::Incomplete),
                Some(b'$') => {}
                Some(other) => return Err(ProtocolError::BulkStart(char::from(*other))),
            }
            let (length, start) = match short_line(buffer, self.position + 1) {
                Some(line) => line,
                None => match number_line(buffer, self.position + 1) {
                    Line::Number { value, next } => {
                        (usize::try_from(value).map_err(|_| ProtocolError::BulkLength)?, next)
                    }
                    Line::Incomplete => return Ok(Step::Incomplete),
                    Line::Malformed | Line::TooLong => return Err(ProtocolError::BulkLength),
                },
            };
            if length > limits.bulk_size_max {
                return Err(ProtocolError::BulkLength);
            }
            let end = start + length;
            match buffer.get(end..end + 2) {
                Some(b"\r\n") => {}
                Some(_) => return Err(ProtocolError::BulkEnd),
                None => return Ok(Step::Incomplete),
            }
            args.push(Arg { start, end });
            self.args_left -= 1;
            self.position = end + 2;
        }
        Ok(Step::Command)
    }

    #[cold]
    fn next_inline(
        &mut self,
        buffer: &mut [u8],
        args: &mut Vec<Arg>,
        limits: &Limits,
    ) -> Result<Step, ProtocolError> {
        let start = self.position;
        let Some(length) = buffer[start..].iter().position(|byte| *byte == b'\n') else {
            if buffer.len() - start > limits.inline_size_max {
                return Err(ProtocolError::InlineLength);
            }
            return Ok(Step::Incomplete);
        };
        if length > limits.inline_size_max {
            return Err(ProtocolError::InlineLength);
        }
        self.position = start + length + 1;
        let before = args.len();
        inline::split(buffer, start, start + length, args).map_err(|_| ProtocolError::Quotes)?;
        Ok(if args.len() == before { Step::Nothing } else { Step::Command })
    }
}

#[cfg(test)]
mod tests;
