//! What one shard has made and the log has not taken yet: records in the order of their seqs.

use crate::wal::Kind;

/// What a shard has for the log; behind its lock.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) is_on: bool,
    /// A change waits here until it is durable, and is in no slot before.
    pub(super) comes_first: bool,
    /// Some of it is one with what other shards' buffers hold, or with each other; see [`super::hold`].
    pub(super) is_group: bool,
    pub(super) limit: usize,
    pub(super) bytes: Vec<u8>,
    /// Where runs of another kind begin.
    pub(super) kinds: Vec<(usize, Kind)>,
}

impl Buffer {
    /// Takes nothing: there is no log.
    pub(super) fn off() -> Self {
        Self {
            is_on: false,
            comes_first: false,
            is_group: false,
            limit: usize::MAX,
            bytes: Vec::new(),
            kinds: Vec::new(),
        }
    }

    #[inline]
    pub(super) fn push(&mut self, record: &[u8]) {
        if self.is_on {
            self.bytes.extend_from_slice(record);
        }
    }

    /// Records that count whatever their slots have.
    pub(super) fn push_forced(&mut self, records: &[u8]) {
        if self.is_on && !records.is_empty() {
            self.kinds.push((self.bytes.len(), Kind::Forced));
            self.bytes.extend_from_slice(records);
            self.kinds.push((self.bytes.len(), Kind::Records));
        }
    }

    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= self.limit
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}
