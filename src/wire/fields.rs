//! Fields that messages are made of: written to a frame's payload, and taken from one, one by one.

use uuid::Uuid;

use super::frame::{EPOCH_MAX, Frame, Kind, push_frame};
use super::message::{MessageError, ScanPlace, TERMS_MAX};
use crate::slot::lineage::is_ordered;
use crate::slot::{Geometry, Seq, SlotIndex, Term};

pub(super) const TERM_SIZE: usize = 24;

pub(super) fn push_words<const N: usize>(target: &mut Vec<u8>, kind: Kind, epoch: u64, words: [u64; N]) {
    push_frame(target, kind, epoch, |out| {
        for word in words {
            out.extend_from_slice(&word.to_le_bytes());
        }
    });
}

/// Of a longer lineage the newest terms are what the other end can still be in.
pub(super) fn newest(lineage: &[Term]) -> &[Term] {
    &lineage[lineage.len().saturating_sub(TERMS_MAX)..]
}

pub(super) fn term_count(terms: &[Term]) -> u16 {
    u16::try_from(terms.len()).unwrap_or_else(|_| unreachable!("at most TERMS_MAX"))
}

pub(super) fn push_terms(out: &mut Vec<u8>, terms: &[Term]) {
    for term in terms {
        for word in [term.epoch, term.id, term.first_seq] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }
}

pub(super) fn push_place(out: &mut Vec<u8>, place: Option<ScanPlace>) {
    let (through, next) = place.map_or((0, 0), |place| (place.through.0, place.next.0));
    out.extend_from_slice(&through.to_le_bytes());
    out.extend_from_slice(&next.to_le_bytes());
}

pub(super) fn push_geometry(out: &mut Vec<u8>, geometry: Option<&Geometry>) {
    let halves = geometry.map_or([0; 4], |geometry| {
        [geometry.shard_count, geometry.key_size_max, geometry.value_size_max, geometry.shard_prefix_bits]
    });
    for half in halves {
        out.extend_from_slice(&half.to_le_bytes());
    }
}

/// A payload's fields, taken one by one.
pub(super) struct Fields<'a> {
    kind: Kind,
    payload_len: usize,
    pub(super) rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(frame: &Frame<'a>) -> Self {
        Self { kind: frame.kind, payload_len: frame.payload.len(), rest: frame.payload }
    }

    pub(super) fn size_error(&self, wanted: usize) -> MessageError {
        MessageError::Size { kind: self.kind, found: self.payload_len, wanted }
    }

    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        let Some((field, rest)) = self.rest.split_first_chunk::<N>() else {
            let taken = self.payload_len - self.rest.len();
            return Err(self.size_error(taken + N));
        };
        self.rest = rest;
        Ok(*field)
    }

    pub(super) fn u16(&mut self) -> Result<u16, MessageError> {
        self.take().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, MessageError> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, MessageError> {
        self.take().map(u64::from_le_bytes)
    }

    pub(super) fn seq(&mut self) -> Result<Seq, MessageError> {
        let found = self.u64()?;
        if found > Seq::MAX.0 {
            return Err(MessageError::Seq { kind: self.kind, found });
        }
        Ok(Seq(found))
    }

    pub(super) fn uuid(&mut self) -> Result<Uuid, MessageError> {
        self.take().map(Uuid::from_bytes)
    }

    /// `None` for zeros.
    pub(super) fn geometry(&mut self) -> Result<Option<Geometry>, MessageError> {
        let geometry = Geometry {
            shard_count: self.u16()?,
            key_size_max: self.u16()?,
            value_size_max: self.u16()?,
            shard_prefix_bits: self.u16()?,
        };
        if geometry.shard_count == 0 && geometry.key_size_max == 0 && geometry.value_size_max == 0 {
            return Ok(None);
        }
        geometry.check()?;
        Ok(Some(geometry))
    }

    /// Slot zero = none.
    pub(super) fn place(&mut self) -> Result<Option<ScanPlace>, MessageError> {
        let (through, next) = (self.seq()?, SlotIndex(self.u32()?));
        Ok((next.0 != 0).then_some(ScanPlace { next, through }))
    }

    pub(super) fn terms(&mut self, count: u16, may_be_empty: bool) -> Result<Vec<Term>, MessageError> {
        let count = usize::from(count);
        if count == 0 && may_be_empty {
            return Ok(Vec::new());
        }
        if count > TERMS_MAX {
            return Err(MessageError::Lineage);
        }
        if self.rest.len() < count * TERM_SIZE {
            return Err(self.size_error(self.payload_len - self.rest.len() + count * TERM_SIZE));
        }
        let mut terms = Vec::with_capacity(count);
        for _ in 0..count {
            terms.push(Term { epoch: self.u64()?, id: self.u64()?, first_seq: self.seq()?.0 });
        }
        if is_ordered(&terms) && terms.last().is_none_or(|term| term.epoch <= EPOCH_MAX) {
            Ok(terms)
        } else {
            Err(MessageError::Lineage)
        }
    }

    pub(super) fn end(&self) -> Result<(), MessageError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(self.size_error(self.payload_len - self.rest.len()))
    }
}
