//! The 80-bit floating-point numbers that INCRBYFLOAT counts in: read, added and written as Redis does on x86, where
//! they are C's `long double`.
//!
//! A number is `mantissa * 2^exponent` and a sign. Always true: the mantissa is 0, or its highest bit is set, or the
//! exponent is [`EXPONENT_MIN`]. Rounding is to the nearest, ties to even.

use std::cmp::Ordering;

/// Exponent of the least number above zero.
const EXPONENT_MIN: i32 = -16_445;
/// Exponent of the greatest number.
const EXPONENT_MAX: i32 = 16_320;
/// Redis reads no longer text as a number.
const TEXT_SIZE_MAX: usize = 5 * 1024 - 1;
/// Digits behind the point that are written.
const DECIMALS: u32 = 17;

/// A finite number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Float {
    is_negative: bool,
    mantissa: u64,
    exponent: i32,
}

/// What a text says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    Finite(Float),
    Infinite,
}

impl Float {
    pub(super) const ZERO: Self = Self { is_negative: false, mantissa: 0, exponent: EXPONENT_MIN };

    /// Rounds `mantissa * 2^exponent`, of whose bits below the lowest some may be set (`has_more`); `None` if it is
    /// too large.
    fn round(is_negative: bool, mantissa: u128, exponent: i32, has_more: bool) -> Option<Self> {
        let mut shift = 64 - i32::try_from(mantissa.leading_zeros()).unwrap_or(0);
        shift = shift.max(EXPONENT_MIN - exponent);
        if shift <= 0 {
            // Nothing is lost: 64 bits hold it, and those below are far away or none.
            debug_assert!(!has_more || shift == 0, "bits below the lowest are lost");
            let up = shift.unsigned_abs();
            let mantissa = u64::try_from(mantissa << up).ok()?;
            return Self::checked(is_negative, mantissa, exponent + shift);
        }
        let shift_bits = shift.unsigned_abs();
        let (kept, rest, half) = if shift_bits > 127 {
            (0, mantissa, u128::MAX)
        } else {
            (mantissa >> shift_bits, mantissa & ((1 << shift_bits) - 1), 1_u128 << (shift_bits - 1))
        };
        let is_up = match rest.cmp(&half) {
            Ordering::Less => false,
            Ordering::Greater => true,
            Ordering::Equal => has_more || kept & 1 == 1,
        };
        let rounded = kept + u128::from(is_up);
        match u64::try_from(rounded) {
            Ok(mantissa) => Self::checked(is_negative, mantissa, exponent + shift),
            // A carry: 2^64.
            Err(_) => Self::checked(is_negative, 1 << 63, exponent + shift + 1),
        }
    }

    fn checked(is_negative: bool, mantissa: u64, exponent: i32) -> Option<Self> {
        if mantissa == 0 {
            return Some(Self { is_negative, ..Self::ZERO });
        }
        (exponent <= EXPONENT_MAX).then_some(Self { is_negative, mantissa, exponent })
    }

    /// `None` if the sum is too large.
    pub(super) fn add(self, other: Self) -> Option<Self> {
        let (large, small) = if self.exponent >= other.exponent { (self, other) } else { (other, self) };
        // Room for a carry above, and for what is shifted out below.
        const ROOM: i32 = 62;
        let (a, b) = (u128::from(large.mantissa) << ROOM, u128::from(small.mantissa) << ROOM);
        let shift = (large.exponent - small.exponent).unsigned_abs();
        let is_exact = b == 0 || b.trailing_zeros() >= shift;
        // The last bit stands for all that are below.
        let b = b.checked_shr(shift).unwrap_or(0) | u128::from(!is_exact);
        let exponent = large.exponent - ROOM;
        if large.is_negative == small.is_negative {
            return Self::round(large.is_negative, a + b, exponent, false);
        }
        match a.cmp(&b) {
            // What cancels is a positive zero.
            Ordering::Equal => Some(Self::ZERO),
            Ordering::Greater => Self::round(large.is_negative, a - b, exponent, false),
            Ordering::Less => Self::round(small.is_negative, b - a, exponent, false),
        }
    }

    /// As C's `strtold` reads it, without blanks before it or anything behind it; `None` if it is no number, or
    /// is too large or too near zero to be one.
    pub(super) fn parse(text: &[u8]) -> Option<Number> {
        if text.len() > TEXT_SIZE_MAX {
            return None;
        }
        let (is_negative, digits) = match text {
            [b'-', digits @ ..] => (true, digits),
            [b'+', digits @ ..] => (false, digits),
            digits => (false, digits),
        };
        if digits.eq_ignore_ascii_case(b"inf") || digits.eq_ignore_ascii_case(b"infinity") {
            return Some(Number::Infinite);
        }
        let found = match digits {
            [b'0', b'x' | b'X', digits @ ..] => parse_hexadecimal(is_negative, digits),
            digits => parse_decimal(is_negative, digits),
        };
        found.map(Number::Finite)
    }

    /// In decimal, with up to 17 digits behind the point, and no zeros at its end.
    pub(super) fn format(self) -> String {
        let sign = if self.is_negative { "-" } else { "" };
        let mut text = if self.exponent >= 0 {
            let mut whole = Natural::from_u64(self.mantissa);
            whole.shift_up(self.exponent.unsigned_abs());
            format!("{sign}{}", whole.into_decimal())
        } else {
            // 64 bits and 57.
            let scaled = u128::from(self.mantissa) * 10_u128.pow(DECIMALS);
            let shift = self.exponent.unsigned_abs();
            let rounded = if shift > 127 {
                0
            } else {
                let (kept, rest) = (scaled >> shift, scaled & ((1 << shift) - 1));
                let half = 1_u128 << (shift - 1);
                kept + u128::from(rest > half || (rest == half && kept & 1 == 1))
            };
            let (whole, part) = (rounded / 10_u128.pow(DECIMALS), rounded % 10_u128.pow(DECIMALS));
            let text = format!("{sign}{whole}.{part:017}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        };
        if text == "-0" {
            text.remove(0);
        }
        text
    }
}

/// A natural number of any size: 32 bits each, the lowest first, the highest not zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Natural(Vec<u32>);

#[expect(
    clippy::cast_possible_truncation,
    reason = "the lower half of a number, of which the upper is carried"
)]
fn low(number: u64) -> u32 {
    number as u32
}

impl Natural {
    fn from_u64(number: u64) -> Self {
        let mut natural = Self(vec![low(number), low(number >> 32)]);
        natural.trim();
        natural
    }

    fn trim(&mut self) {
        let len = self.0.iter().rposition(|limb| *limb != 0).map_or(0, |last| last + 1);
        self.0.truncate(len);
    }

    /// `self * by + plus`
    fn multiply_add(&mut self, by: u32, plus: u32) {
        let mut carry = u64::from(plus);
        for limb in &mut self.0 {
            let product = u64::from(*limb) * u64::from(by) + carry;
            *limb = low(product);
            carry = product >> 32;
        }
        if carry != 0 {
            self.0.push(low(carry));
        }
    }

    fn bits(&self) -> i32 {
        let bits = self.0.len() * 32 - self.0.last().map_or(0, |limb| limb.leading_zeros() as usize);
        i32::try_from(bits).unwrap_or(i32::MAX)
    }

    fn shift_up(&mut self, bits: u32) {
        if !bits.is_multiple_of(32) {
            self.multiply_add(1 << (bits % 32), 0);
        }
        self.0.splice(..0, std::iter::repeat_n(0, bits as usize / 32));
        self.trim();
    }

    fn compare(&self, other: &Self) -> Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
    }

    /// Takes away what is not larger.
    fn subtract(&mut self, other: &Self) {
        let mut borrow = 0;
        for (at, limb) in self.0.iter_mut().enumerate() {
            let taken = u64::from(other.0.get(at).copied().unwrap_or(0)) + borrow;
            let difference = (1_u64 << 32 | u64::from(*limb)) - taken;
            *limb = low(difference);
            borrow = u64::from(difference >> 32 == 0);
        }
        self.trim();
    }

    fn into_decimal(mut self) -> String {
        const CHUNK: u64 = 1_000_000_000;
        let mut chunks = Vec::new();
        while !self.0.is_empty() {
            let mut remainder = 0;
            for limb in self.0.iter_mut().rev() {
                let wide = remainder << 32 | u64::from(*limb);
                *limb = low(wide / CHUNK);
                remainder = wide % CHUNK;
            }
            self.trim();
            chunks.push(remainder);
        }
        let mut text = chunks.pop().unwrap_or(0).to_string();
        chunks.iter().rev().for_each(|chunk| text.push_str(&format!("{chunk:09}")));
        text
    }
}

/// The number nearest to `numerator / denominator * 2^exponent`; `None` if it is too large, or too near zero without
/// being it.
fn nearest(is_negative: bool, numerator: Natural, denominator: Natural, exponent: i32) -> Option<Float> {
    /// Of the quotient: three more than a number has.
    const BITS: i32 = 67;
    if numerator.0.is_empty() {
        return Some(Float { is_negative, ..Float::ZERO });
    }
    let (mut rest, mut divisor) = (numerator, denominator);
    // So that the quotient has 67 or 68 bits.
    let scale = divisor.bits() + BITS - rest.bits();
    if scale > 0 {
        rest.shift_up(scale.unsigned_abs())
    } else {
        divisor.shift_up(scale.unsigned_abs())
    }
    divisor.shift_up(BITS.unsigned_abs());
    let mut quotient: u128 = 0;
    for _ in 0..=BITS {
        quotient <<= 1;
        if rest.compare(&divisor) != Ordering::Less {
            rest.subtract(&divisor);
            quotient |= 1;
        }
        rest.shift_up(1);
    }
    Float::round(is_negative, quotient, exponent - scale, !rest.0.is_empty())
        .filter(|float| float.mantissa != 0)
}

/// Digits with a point among them, perhaps: as a whole number, how many of them are behind the point, and the rest.
fn parse_digits(text: &[u8], radix: u32) -> Option<(Natural, i32, &[u8])> {
    /// Digits that fit 32 bits in any radix.
    const CHUNK: u32 = 7;
    let (mut number, mut chunk, mut count, mut behind, mut at) = (Natural::default(), 0, 0, None, 0);
    while let Some(byte) = text.get(at) {
        match char::from(*byte).to_digit(radix) {
            Some(digit) => {
                (chunk, count) = (chunk * radix + digit, count + 1);
                behind = behind.map(|behind| behind + 1);
                if count % CHUNK == 0 {
                    number.multiply_add(radix.pow(CHUNK), std::mem::take(&mut chunk));
                }
            }
            None if *byte == b'.' && behind.is_none() => behind = Some(0),
            None => break,
        }
        at += 1;
    }
    number.multiply_add(radix.pow(count % CHUNK), chunk);
    (count > 0).then_some((number, behind.unwrap_or(0), &text[at..]))
}

/// What follows the digits: nothing, or the mark and an exponent, which is cut to what makes any number 0 or too large.
fn parse_exponent(text: &[u8], mark: u8) -> Option<i32> {
    const LIMIT: i32 = 100_000;
    let (is_negative, digits) = match text {
        [] => return Some(0),
        [found, b'-', digits @ ..] if found.eq_ignore_ascii_case(&mark) => (true, digits),
        [found, b'+', digits @ ..] | [found, digits @ ..] if found.eq_ignore_ascii_case(&mark) => {
            (false, digits)
        }
        _ => return None,
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: i32, digit: &u8| (sum * 10 + i32::from(digit - b'0')).min(LIMIT);
    let exponent = digits.iter().fold(0, add);
    Some(if is_negative { -exponent } else { exponent })
}

fn parse_hexadecimal(is_negative: bool, text: &[u8]) -> Option<Float> {
    let (number, behind, rest) = parse_digits(text, 16)?;
    let exponent = parse_exponent(rest, b'p')? - 4 * behind;
    nearest(is_negative, number, Natural(vec![1]), exponent)
}

fn parse_decimal(is_negative: bool, text: &[u8]) -> Option<Float> {
    /// Beyond 10 to this power there is no number, however near zero its digits are; below, none is above zero.
    const LIMIT: i32 = 12_000;
    let (mut number, behind, rest) = parse_digits(text, 10)?;
    let exponent = parse_exponent(rest, b'e')? - behind;
    if number.0.is_empty() {
        return Some(Float { is_negative, ..Float::ZERO });
    }
    if exponent.abs() > LIMIT {
        return None;
    }
    let mut denominator = Natural(vec![1]);
    let scaled = if exponent > 0 { &mut number } else { &mut denominator };
    let mut left = exponent.unsigned_abs();
    while left > 0 {
        let step = left.min(9);
        scaled.multiply_add(10_u32.pow(step), 0);
        left -= step;
    }
    nearest(is_negative, number, denominator, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(a: &str, b: &str) -> Option<String> {
        let finite = |text: &str| match Float::parse(text.as_bytes()) {
            Some(Number::Finite(float)) => Some(float),
            _ => None,
        };
        finite(a)?.add(finite(b)?).map(Float::format)
    }

    #[test]
    fn sums_are_those_of_a_long_double() {
        // What redis-server 7.0 answers on x86.
        let cases = [
            ("10.5", "0.1", "10.6"),
            ("0.1", "0.2", "0.3"),
            ("5.0e3", "2.0e2", "5200"),
            ("1", "-1", "0"),
            ("-0", "-0", "0"),
            ("3", "1.00000000000000001", "4.00000000000000001"),
            ("0x1.8p1", "0x.8", "3.5"),
            ("1e-17", "0", "0.00000000000000001"),
            ("1e-18", "0", "0"),
            ("-1e-4950", "0", "0"),
            ("18446744073709551615", "0", "18446744073709551615"),
            ("18446744073709551616", "1", "18446744073709551616"),
            ("1e20", "0", "100000000000000000000"),
            ("+.5", "5.", "5.5"),
            ("12345678901234567.8901234567e-2", "0", "123456789012345.67890167236328125"),
        ];
        for (a, b, wanted) in cases {
            assert_eq!(sum(a, b).as_deref(), Some(wanted), "{a} + {b}");
            assert_eq!(sum(b, a).as_deref(), Some(wanted), "{b} + {a}");
        }
        assert_eq!(sum("1.18e4932", "0").map(|text| text.len()), Some(4933));
        assert_eq!(sum("1.18e4932", "1.18e4932"), None, "too large");
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let texts = [
            "", " 1", "1 ", "abc", "1e", "1e+", "0x", "0xp1", "0x1p", ".", "-", "+-1", "1.2.3", "nan", "1_0",
            "1e5000", "1e-5000", "infinit", "1\0",
        ];
        for text in texts {
            assert_eq!(Float::parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(Float::parse(&[b'1'; TEXT_SIZE_MAX + 1]), None);
        assert_eq!(Float::parse(b"-Infinity"), Some(Number::Infinite));
        assert_eq!(sum("0e999999999999", "0").as_deref(), Some("0"));
    }
}
