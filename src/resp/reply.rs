//! Replies: appended to one buffer per turn, in the protocol version that the client asked for.

use super::number::Decimal;

/// The replies of one turn.
#[derive(Debug, Default)]
pub(super) struct Reply {
    bytes: Vec<u8>,
    resp3: bool,
    errors: u64,
}

impl Reply {
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    #[inline]
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Begins a turn: nothing in it, and the protocol version of this turn's client.
    #[inline]
    pub(super) fn begin(&mut self, resp3: bool) {
        self.bytes.clear();
        self.resp3 = resp3;
    }

    /// Takes back what was written since the reply was `len` bytes long.
    pub(super) fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
    }

    /// Gives memory back after an unusually large reply.
    pub(super) fn shrink(&mut self, capacity_max: usize) {
        if self.bytes.capacity() > capacity_max {
            self.bytes = Vec::with_capacity(capacity_max);
        }
    }

    pub(super) fn set_resp3(&mut self, resp3: bool) {
        self.resp3 = resp3;
    }

    /// Errors written since the last call.
    #[inline]
    pub(super) fn take_errors(&mut self) -> u64 {
        std::mem::take(&mut self.errors)
    }

    /// Bytes that are a reply, or several, already.
    #[inline]
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    #[inline]
    pub(super) fn ok(&mut self) {
        self.raw(b"+OK\r\n");
    }

    pub(super) fn simple(&mut self, text: &str) {
        self.raw(b"+");
        self.raw(text.as_bytes());
        self.raw(b"\r\n");
    }

    /// An error; line ends in the text go away at its end and become blanks elsewhere, since an error is
    /// one line.
    #[cold]
    pub(super) fn error(&mut self, text: &[u8]) {
        self.errors += 1;
        let end = text.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |last| last + 1);
        let text = &text[..end];
        self.raw(b"-");
        self.bytes.extend(text.iter().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte }));
        self.raw(b"\r\n");
    }

    #[inline]
    pub(super) fn integer(&mut self, value: i64) {
        match value {
            0 => self.raw(b":0\r\n"),
            1 => self.raw(b":1\r\n"),
            _ => self.header(b':', Decimal::signed(value).as_bytes()),
        }
    }

    pub(super) fn count(&mut self, value: u64) {
        self.header(b':', Decimal::unsigned(value).as_bytes());
    }

    #[inline]
    pub(super) fn bulk(&mut self, value: &[u8]) {
        self.bytes.reserve(value.len() + 32);
        match Decimal::pair(value.len()) {
            // As it is for nearly all values.
            Some([tens, ones]) => self.raw(&[b'$', tens, ones, b'\r', b'\n']),
            None => self.header(b'$', Decimal::unsigned(value.len() as u64).as_bytes()),
        }
        self.raw(value);
        self.raw(b"\r\n");
    }

    pub(super) fn bulk_number(&mut self, value: u64) {
        self.bulk(Decimal::unsigned(value).as_bytes());
    }

    /// Text that RESP3 clients may show as it is.
    pub(super) fn verbatim(&mut self, text: &str) {
        if self.resp3 {
            self.header(b'=', Decimal::unsigned(text.len() as u64 + 4).as_bytes());
            self.raw(b"txt:");
            self.raw(text.as_bytes());
            self.raw(b"\r\n");
        } else {
            self.bulk(text.as_bytes());
        }
    }

    /// No value.
    #[inline]
    pub(super) fn null(&mut self) {
        self.raw(if self.resp3 { b"_\r\n" } else { b"$-1\r\n" });
    }

    /// No replies, where some were asked for.
    pub(super) fn null_array(&mut self) {
        self.raw(if self.resp3 { b"_\r\n" } else { b"*-1\r\n" });
    }

    /// That many replies follow.
    pub(super) fn array(&mut self, count: usize) {
        self.header(b'*', Decimal::unsigned(count as u64).as_bytes());
    }

    /// That many pairs of replies follow.
    pub(super) fn map(&mut self, count: usize) {
        if self.resp3 {
            self.header(b'%', Decimal::unsigned(count as u64).as_bytes());
        } else {
            self.array(count * 2);
        }
    }

    /// That many replies follow, in no order.
    pub(super) fn set(&mut self, count: usize) {
        if self.resp3 {
            self.header(b'~', Decimal::unsigned(count as u64).as_bytes());
        } else {
            self.array(count);
        }
    }

    #[inline]
    fn header(&mut self, kind: u8, digits: &[u8]) {
        self.bytes.push(kind);
        self.bytes.extend_from_slice(digits);
        self.bytes.extend_from_slice(b"\r\n");
    }
}
