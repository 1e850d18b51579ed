//! Floor 0: CRC-32C (Castagnoli), the checksum of slot images.
//!
//! Every read of a record checks one, so what counts is how few instructions a small image takes: the
//! processor overlaps the cache misses of two reads only if they lie within some 300 instructions. Its own
//! CRC instruction takes eight bytes at a time, and such loads also get what was stored in words a moment ago
//! without waiting for it to reach the cache.

const POLYNOMIAL_REFLECTED: u32 = 0x82F6_3B78;

/// CRC-32C of four bytes (little-endian) and what follows them.
#[inline]
#[must_use]
pub(crate) fn crc32c(head: u32, rest: &[u8]) -> u32 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if std::arch::is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has the instruction, as was asked just now.
        return unsafe { by_instruction(head, rest) };
    }
    by_table(head, rest)
}

/// CRC-32C of what `crc` is that of, and `rest` behind it, which is empty or of four bytes at least.
pub(crate) fn crc32c_further(crc: u32, rest: &[u8]) -> u32 {
    match rest.split_first_chunk() {
        // A CRC meets the next bytes by their difference only.
        Some((head, rest)) => crc32c(u32::from_le_bytes(*head) ^ crc, rest),
        None => {
            assert!(rest.is_empty(), "four bytes at least");
            crc
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "sse4.2")]
#[inline]
fn by_instruction(head: u32, rest: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u16, _mm_crc32_u32, _mm_crc32_u64};
    let mut crc = u64::from(_mm_crc32_u32(!0, head));
    let (words, tail) = rest.as_chunks::<8>();
    let (pairs, last) = words.as_chunks::<2>();
    for [first, second] in pairs {
        crc = _mm_crc32_u64(crc, u64::from_le_bytes(*first));
        crc = _mm_crc32_u64(crc, u64::from_le_bytes(*second));
    }
    for word in last {
        crc = _mm_crc32_u64(crc, u64::from_le_bytes(*word));
    }
    #[expect(clippy::cast_possible_truncation, reason = "the instruction leaves the high half zero")]
    let mut crc = crc as u32;
    let (fours, tail) = tail.as_chunks::<4>();
    for four in fours {
        crc = _mm_crc32_u32(crc, u32::from_le_bytes(*four));
    }
    let (twos, tail) = tail.as_chunks::<2>();
    for two in twos {
        crc = _mm_crc32_u16(crc, u16::from_le_bytes(*two));
    }
    for byte in tail {
        crc = _mm_crc32_u8(crc, *byte);
    }
    !crc
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0_u32;
    while byte < 256 {
        let (mut crc, mut bit) = (byte, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL_REFLECTED } else { 0 };
            bit += 1;
        }
        table[byte as usize] = crc;
        byte += 1;
    }
    table
};

// Not for this processor: it must not make the callers larger.
#[cold]
#[inline(never)]
fn by_table(head: u32, rest: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| (crc >> 8) ^ TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)];
    !rest.iter().fold(head.to_le_bytes().iter().fold(!0, step), step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_is_the_one_of_its_definition() {
        assert_eq!(crc32c(u32::from_le_bytes(*b"1234"), b"56789"), 0xE306_9283);
        assert_eq!(by_table(u32::from_le_bytes(*b"1234"), b"56789"), 0xE306_9283);
    }

    #[test]
    fn pieces_have_the_checksum_of_the_whole() {
        let bytes: Vec<u8> = (0..40_u8).map(|number| number.wrapping_mul(151)).collect();
        for first in 0..20 {
            for second in (0..16).filter(|second| !(1..4).contains(second)) {
                let in_pieces = crc32c_further(crc32c(77, &bytes[..first]), &bytes[first..first + second]);
                assert_eq!(in_pieces, crc32c(77, &bytes[..first + second]), "{first} and {second}");
            }
        }
    }

    #[test]
    fn instruction_and_table_agree_at_every_length() {
        let bytes: Vec<u8> = (0..200_u32).map(|number| (number * 151 + 7).to_le_bytes()[0]).collect();
        for len in 0..bytes.len() {
            assert_eq!(
                crc32c(0x0102_0304, &bytes[..len]),
                by_table(0x0102_0304, &bytes[..len]),
                "{len} bytes"
            );
        }
    }
}
