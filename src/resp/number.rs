//! Decimal integers as Redis reads and writes them.

/// Bytes of the longest `i64` in decimal.
pub(super) const DIGITS_MAX: usize = 20;

const PAIRS: &[u8; 200] = b"0001020304050607080910111213141516171819\
2021222324252627282930313233343536373839\
4041424344454647484950515253545556575859\
6061626364656667686970717273747576777879\
8081828384858687888990919293949596979899";

/// A number's decimal digits, without a heap.
pub(super) struct Decimal {
    digits: [u8; DIGITS_MAX],
    start: usize,
}

impl Decimal {
    /// The digits of a number that has two.
    #[inline]
    pub(super) fn pair(value: usize) -> Option<[u8; 2]> {
        PAIRS.as_chunks::<2>().0.get(value).copied().filter(|_| value >= 10)
    }

    #[inline]
    pub(super) fn unsigned(mut value: u64) -> Self {
        let mut digits = [0; DIGITS_MAX];
        let mut start = DIGITS_MAX;
        while value >= 100 {
            let pair = low_pair(value);
            value /= 100;
            start -= 2;
            digits[start..start + 2].copy_from_slice(&PAIRS[pair..pair + 2]);
        }
        if value >= 10 {
            let pair = low_pair(value);
            start -= 2;
            digits[start..start + 2].copy_from_slice(&PAIRS[pair..pair + 2]);
        } else {
            start -= 1;
            digits[start] = PAIRS[low_pair(value) + 1];
        }
        Self { digits, start }
    }

    #[inline]
    pub(super) fn signed(value: i64) -> Self {
        let mut decimal = Self::unsigned(value.unsigned_abs());
        if value < 0 {
            decimal.start -= 1;
            decimal.digits[decimal.start] = b'-';
        }
        decimal
    }

    #[inline]
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.digits[self.start..]
    }
}

#[inline]
fn low_pair(value: u64) -> usize {
    (value % 100) as usize * 2
}

/// Parses the one spelling that Redis accepts: no sign but `-`, no leading zero, no blank, no `-0`.
#[inline]
pub(super) fn parse_i64(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'0'] => return Some(0),
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.len() > DIGITS_MAX || !matches!(digits.first(), Some(b'1'..=b'9')) {
        return None;
    }
    let mut value: u64 = 0;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    if negative { 0_i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_redis_spellings_are_numbers() {
        for text in
            ["", "-", "+1", "01", "-0", " 1", "1 ", "1.0", "9223372036854775808", "-9223372036854775809"]
        {
            assert_eq!(parse_i64(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(parse_i64(b"0"), Some(0));
        assert_eq!(parse_i64(b"9223372036854775807"), Some(i64::MAX));
        assert_eq!(parse_i64(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(parse_i64(&[b'9'; 4000]), None);
    }

    proptest! {
        #[test]
        fn numbers_survive_both_ways(value: i64) {
            let decimal = Decimal::signed(value);
            let wanted = value.to_string();
            prop_assert_eq!(decimal.as_bytes(), wanted.as_bytes());
            prop_assert_eq!(parse_i64(decimal.as_bytes()), Some(value));
        }

        #[test]
        fn unsigned_numbers_are_decimal(value: u64) {
            let decimal = Decimal::unsigned(value);
            let wanted = value.to_string();
            prop_assert_eq!(decimal.as_bytes(), wanted.as_bytes());
        }
    }
}
