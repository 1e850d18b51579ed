//! LCS: the longest common subsequence of two values.

use super::super::error::CommandError;
use super::super::number::parse_i64;
use super::super::reply::Reply;
use super::{Call, Flow};

/// Cells of the table that is made: 32 MiB. Time is in proportion, and others of this worker wait meanwhile.
const CELLS_MAX: usize = 16 << 20;

#[derive(Debug, Default)]
struct Options {
    length: bool,
    ranges: bool,
    range_lengths: bool,
    range_length_min: usize,
}

fn options(call: &Call<'_>) -> Result<Options, CommandError> {
    let args = call.args;
    let (mut options, mut at) = (Options::default(), 3);
    while at < args.len() {
        if args.is(at, "idx") {
            options.ranges = true;
        } else if args.is(at, "len") {
            options.length = true;
        } else if args.is(at, "withmatchlen") {
            options.range_lengths = true;
        } else if let (true, Some(length)) = (args.is(at, "minmatchlen"), args.get(at + 1)) {
            let length = parse_i64(length).ok_or(CommandError::NotInteger)?;
            options.range_length_min = usize::try_from(length).unwrap_or(0);
            at += 1;
        } else {
            return Err(CommandError::Syntax);
        }
        at += 1;
    }
    if options.length && options.ranges {
        return Err(CommandError::text("ERR If you want both the length and indexes, please just use IDX."));
    }
    Ok(options)
}

/// `cells[i * (b.len() + 1) + j]`: how long the longest common subsequence of `a[..i]` and `b[..j]` is.
struct Table<'a> {
    a: &'a [u8],
    b: &'a [u8],
    cells: Vec<u16>,
}

impl<'a> Table<'a> {
    /// `None` if it would be too large.
    fn new(a: &'a [u8], b: &'a [u8]) -> Option<Self> {
        let width = b.len() + 1;
        let size = width.checked_mul(a.len() + 1).filter(|size| *size <= CELLS_MAX)?;
        let mut cells = vec![0; size];
        for (i, byte) in a.iter().enumerate() {
            let (above, row) = cells[i * width..(i + 2) * width].split_at_mut(width);
            for (j, other) in b.iter().enumerate() {
                // No value is longer than a cell can say.
                row[j + 1] = if byte == other { above[j] + 1 } else { above[j + 1].max(row[j]) };
            }
        }
        Some(Self { a, b, cells })
    }

    fn at(&self, i: usize, j: usize) -> u16 {
        self.cells[i * (self.b.len() + 1) + j]
    }

    fn length(&self) -> u16 {
        self.at(self.a.len(), self.b.len())
    }

    /// The common runs that make up the subsequence, the last one first: where one begins in `a` and in `b`, and how
    /// long it is. Where there are several ways, the one that Redis goes.
    fn ranges(&self) -> Vec<(usize, usize, usize)> {
        let (mut ranges, mut run) = (Vec::new(), 0);
        let (mut i, mut j) = (self.a.len(), self.b.len());
        while i > 0 && j > 0 {
            if self.a[i - 1] == self.b[j - 1] {
                (i, j, run) = (i - 1, j - 1, run + 1);
                continue;
            }
            if run > 0 {
                ranges.push((i, j, run));
                run = 0;
            }
            if self.at(i - 1, j) > self.at(i, j - 1) { i -= 1 } else { j -= 1 }
        }
        if run > 0 {
            ranges.push((i, j, run));
        }
        ranges
    }
}

fn reply_ranges(reply: &mut Reply, table: &Table<'_>, options: &Options) {
    let mut ranges = table.ranges();
    ranges.retain(|(_, _, length)| *length >= options.range_length_min);
    reply.map(2);
    reply.bulk(b"matches");
    reply.array(ranges.len());
    for (in_a, in_b, length) in ranges {
        reply.array(2 + usize::from(options.range_lengths));
        for start in [in_a, in_b] {
            reply.array(2);
            reply.count(start as u64);
            reply.count((start + length - 1) as u64);
        }
        if options.range_lengths {
            reply.count(length as u64);
        }
    }
    reply.bulk(b"len");
    reply.integer(table.length().into());
}

/// `LCS key key [LEN] [IDX] [MINMATCHLEN length] [WITHMATCHLEN]`
pub(in crate::resp) fn lcs(call: &mut Call<'_>) -> Result<Flow, CommandError> {
    let options = options(call)?;
    let store = call.store();
    let a = store.get(call.args.at(1))?.unwrap_or_default();
    let b = store.get(call.args.at(2))?.unwrap_or_default();
    let table = Table::new(&a, &b).ok_or(CommandError::text(
        "ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len",
    ))?;
    if options.ranges {
        reply_ranges(call.reply, &table, &options);
    } else if options.length {
        call.reply.integer(table.length().into());
    } else {
        let parts: Vec<_> =
            table.ranges().iter().rev().map(|(start, _, length)| &a[*start..start + length]).collect();
        call.reply.bulk(&parts.concat());
    }
    Ok(Flow::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_manual_gives_its_ranges() {
        let table = Table::new(b"ohmytext", b"mynewtext").unwrap();
        assert_eq!(table.length(), 6);
        assert_eq!(table.ranges(), [(4, 5, 4), (2, 0, 2)]);
    }

    #[test]
    fn a_table_is_bounded() {
        assert!(Table::new(&[0; 4000], &[0; 4000]).is_some());
        assert!(Table::new(&[0; 65_535], &[0; 65_535]).is_none());
        assert_eq!(Table::new(b"", b"").unwrap().length(), 0);
    }
}
