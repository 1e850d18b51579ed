//! Phase 2: the ring's bytes, straight out of the ring.
//!
//! A frame is cut at a record's end; its header says how many bytes of the ring follow. What the
//! socket takes is committed, the rest stays in the ring, which nothing else reads.
//!
//! Always true: the records of a shard's stream are contiguous in seq. The walk over a frame's
//! records, which must find their ends anyway, checks it.

use std::io;

use crate::planted::{Bug, is_planted};
use crate::ring::RingReader;
use crate::slot::Seq;
use crate::slot::image::{RECORD_HEADER_SIZE, image_seq};
use crate::wire::Transport;
use crate::wire::frame::{FLAG_STREAM, HEADER_SIZE, batch_header};

/// As much of a record as tells its length and seq.
const RECORD_PREFIX_SIZE: usize = RECORD_HEADER_SIZE + crate::slot::layout::HEADER_SIZE;

/// A frame whose payload lies in the ring.
#[derive(Debug)]
pub(super) struct RingFrame {
    header: [u8; HEADER_SIZE],
    header_sent: usize,
    payload_left: usize,
}

/// What a frame of the ring carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) records: u64,
    pub(super) seq_last: Seq,
    pub(super) payload_bytes: usize,
}

impl RingFrame {
    /// A frame of the records that wait, at most `payload_bytes_max`; `None` if nothing waits.
    /// `seq_sent` is the seq of the record sent last.
    pub(super) fn cut(
        ring: &mut RingReader,
        payload_bytes_max: usize,
        seq_sent: Seq,
        epoch: u64,
    ) -> Option<(Self, Carried)> {
        if ring.is_empty() {
            return None;
        }
        let chunk = ring.chunk(payload_bytes_max);
        let (first, second) = chunk.as_slices();
        let carried = walk(first, second, seq_sent);
        assert!(carried.payload_bytes > 0, "no record fits {payload_bytes_max} bytes");
        let header = batch_header(FLAG_STREAM, epoch, carried.payload_bytes);
        let frame = Self { header, header_sent: 0, payload_left: carried.payload_bytes };
        Some((frame, carried))
    }

    /// Sends what the transport takes; returns the bytes taken and whether the frame is out.
    pub(super) fn send(
        &mut self,
        ring: &mut RingReader,
        transport: &mut impl Transport,
    ) -> io::Result<(usize, bool)> {
        let chunk = ring.chunk(self.payload_left);
        let (first, second) = chunk.as_slices();
        assert_eq!(
            first.len() + second.len(),
            self.payload_left,
            "a frame's records stay until they are sent"
        );
        let taken = match transport.send(&[&self.header[self.header_sent..], first, second]) {
            Ok(taken) => taken,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        let header_taken = taken.min(HEADER_SIZE - self.header_sent);
        let payload_taken = taken - header_taken;
        chunk.commit(payload_taken);
        self.header_sent += header_taken;
        self.payload_left -= payload_taken;
        if is_planted(Bug::HalfFrameForgotten) && taken > 0 {
            return Ok((taken, true));
        }
        Ok((taken, self.payload_left == 0))
    }
}

/// Walks whole records over two runs of bytes, of which the first may end anywhere.
fn walk(first: &[u8], second: &[u8], seq_sent: Seq) -> Carried {
    let mut carried = Carried { records: 0, seq_last: seq_sent, payload_bytes: 0 };
    let waiting = first.len() + second.len();
    let mut at = 0;
    while waiting - at >= RECORD_PREFIX_SIZE {
        let mut joined = [0; RECORD_PREFIX_SIZE];
        let prefix = record_prefix(first, second, at, &mut joined);
        let image_len = u32::from_le_bytes([prefix[4], prefix[5], prefix[6], prefix[7]]) as usize;
        let end = at + RECORD_HEADER_SIZE + image_len;
        if end > waiting {
            break;
        }
        let seq = image_seq(&prefix[RECORD_HEADER_SIZE..]);
        assert_eq!(seq.0, carried.seq_last.0 + 1, "records of a ring are contiguous in seq");
        carried.seq_last = seq;
        carried.records += 1;
        at = end;
    }
    carried.payload_bytes = at;
    carried
}

#[inline]
fn record_prefix<'a>(
    first: &'a [u8],
    second: &'a [u8],
    at: usize,
    joined: &'a mut [u8; RECORD_PREFIX_SIZE],
) -> &'a [u8] {
    if let Some(prefix) = first.get(at..at + RECORD_PREFIX_SIZE) {
        return prefix;
    }
    if let Some(at) = at.checked_sub(first.len()) {
        return &second[at..at + RECORD_PREFIX_SIZE];
    }
    let (head, tail) = joined.split_at_mut(first.len() - at);
    head.copy_from_slice(&first[at..]);
    tail.copy_from_slice(&second[..tail.len()]);
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::image::{Image, push_record};
    use crate::slot::{ShardIndex, SlotIndex, Status};

    fn records(seqs: std::ops::RangeInclusive<u64>) -> Vec<u8> {
        let mut out = Vec::new();
        for seq in seqs {
            let value = vec![7; usize::try_from(seq % 5).unwrap()];
            let image =
                Image { seq: Seq(seq), status: Status::Occupied, expire_at: 0, key: b"k", value: &value };
            let mut bytes = vec![0; image.size()];
            image.write(ShardIndex(0), SlotIndex(3), &mut bytes);
            push_record(&mut out, SlotIndex(3), &bytes);
        }
        out
    }

    #[test]
    fn a_walk_finds_the_same_records_wherever_the_ring_wraps() {
        let bytes = records(11..=20);
        for cut in 0..=bytes.len() {
            let carried = walk(&bytes[..cut], &bytes[cut..], Seq(10));
            assert_eq!(carried, Carried { records: 10, seq_last: Seq(20), payload_bytes: bytes.len() });
        }
    }

    #[test]
    fn a_walk_stops_at_a_records_end() {
        let bytes = records(1..=10);
        let whole = records(1..=9).len();
        for end in whole..bytes.len() {
            let carried = walk(&bytes[..end], &[], Seq(0));
            assert_eq!(carried, Carried { records: 9, seq_last: Seq(9), payload_bytes: whole });
        }
    }

    #[test]
    #[should_panic(expected = "contiguous")]
    fn a_hole_in_the_ring_is_our_own_mistake() {
        let mut bytes = records(1..=3);
        bytes.extend(records(5..=6));
        walk(&bytes, &[], Seq(0));
    }
}
