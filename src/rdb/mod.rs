//! Floor 0: how Redis writes strings: in dumps, and in what DUMP answers and RESTORE takes, a *payload*.
//!
//! | part     | bytes of a payload                                                              |
//! |----------|---------------------------------------------------------------------------------|
//! | type     | 1: 0 = string                                                                   |
//! | value    | a length and as many bytes, a number, or packed bytes: as in a dump             |
//! | version  | 2, little-endian: of the dumps that the writer makes                            |
//! | checksum | 8, little-endian: CRC-64 of all before                                          |
//!
//! Strings have been written this way since version 6; nothing larger than the payload is allocated, but for what
//! packed bytes become, whose size must be one that they can have.

mod checksum;
pub mod lzf;

pub use checksum::crc64;

const TYPE_STRING: u8 = 0;
/// What Redis 7.0 writes: every later one takes it.
const VERSION: u16 = 10;
/// Redis and Valkey have got as far; none of them has changed strings.
const VERSION_MAX: u16 = 80;
const FOOTER_SIZE: usize = 10;
/// A number is written as one if it has no more digits than this.
const NUMBER_SIZE_MAX: usize = 11;
/// No byte of LZF makes more than so many: three make 264.
const LZF_RATIO_MAX: usize = 88;

/// Why a payload was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadError {
    /// Not of these versions, or not the bytes that were written.
    Envelope,
    /// Of another type than string.
    Type(u8),
    /// No string is written so.
    Format,
    /// A longer one than was wanted.
    Size {
        /// How long.
        found: usize,
    },
}

/// Writes the length of a string; it must be below 4 GiB.
pub fn push_length(target: &mut Vec<u8>, len: usize) {
    let len = u32::try_from(len).unwrap_or_else(|_| unreachable!("keys and values are small"));
    let [.., high, low] = len.to_be_bytes();
    match len {
        0..64 => target.push(low),
        64..16_384 => target.extend([0x40 | high, low]),
        _ => {
            target.push(0x80);
            target.extend(len.to_be_bytes());
        }
    }
}

/// The number that a short text is, if it is written as numbers are.
fn number(text: &[u8]) -> Option<i32> {
    let number: i32 =
        std::str::from_utf8(text).ok().filter(|text| text.len() <= NUMBER_SIZE_MAX)?.parse().ok()?;
    (number.to_string().as_bytes() == text).then_some(number)
}

/// A value as a payload.
#[must_use]
pub fn payload(value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![TYPE_STRING];
    match number(value) {
        Some(number) => match (i8::try_from(number), i16::try_from(number)) {
            (Ok(number), _) => bytes.extend([&[0xC0][..], &number.to_le_bytes()].concat()),
            (_, Ok(number)) => bytes.extend([&[0xC1][..], &number.to_le_bytes()].concat()),
            _ => bytes.extend([&[0xC2][..], &number.to_le_bytes()].concat()),
        },
        None => {
            push_length(&mut bytes, value.len());
            bytes.extend_from_slice(value);
        }
    }
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(crc64(0, &bytes).to_le_bytes());
    bytes
}

/// Takes `len` bytes off the front.
fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(taken)
}

fn take_array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    take(bytes, N)?.try_into().ok()
}

/// A length whose first byte is known.
fn take_length(bytes: &mut &[u8], first: u8) -> Option<usize> {
    match (first >> 6, first) {
        (0, _) => Some(first.into()),
        (1, _) => take_array(bytes).map(|[low]: [u8; 1]| usize::from(first & 63) << 8 | usize::from(low)),
        (_, 0x80) => usize::try_from(u32::from_be_bytes(take_array(bytes)?)).ok(),
        (_, 0x81) => usize::try_from(u64::from_be_bytes(take_array(bytes)?)).ok(),
        _ => None,
    }
}

fn take_packed(bytes: &mut &[u8], len_max: usize) -> Option<Result<Vec<u8>, PayloadError>> {
    let [first] = take_array(bytes)?;
    let packed_len = take_length(bytes, first)?;
    let [first] = take_array(bytes)?;
    let len = take_length(bytes, first)?;
    let packed = take(bytes, packed_len)?;
    if len > packed.len().saturating_mul(LZF_RATIO_MAX) {
        return None;
    }
    if len > len_max {
        return Some(Err(PayloadError::Size { found: len }));
    }
    let mut value = Vec::new();
    lzf::unpack(packed, len, &mut value).map(|()| Ok(value))
}

/// The value in a payload, of at most `len_max` bytes.
pub fn parse_payload(payload: &[u8], len_max: usize) -> Result<Vec<u8>, PayloadError> {
    let (body, footer) = payload
        .len()
        .checked_sub(FOOTER_SIZE)
        .and_then(|len| payload.split_at_checked(len))
        .ok_or(PayloadError::Envelope)?;
    let version = u16::from_le_bytes([footer[0], footer[1]]);
    let checksum = crc64(0, &payload[..body.len() + 2]);
    if version > VERSION_MAX || footer[2..] != checksum.to_le_bytes() {
        return Err(PayloadError::Envelope);
    }
    let mut bytes = match body {
        [TYPE_STRING, bytes @ ..] => bytes,
        [other, ..] => return Err(PayloadError::Type(*other)),
        [] => return Err(PayloadError::Format),
    };
    take_string(&mut bytes, len_max).ok_or(PayloadError::Format)?
}

/// `None` if it ends too early, or is no string.
fn take_string(bytes: &mut &[u8], len_max: usize) -> Option<Result<Vec<u8>, PayloadError>> {
    let [first] = take_array(bytes)?;
    let decimal = |number: i32| Some(Ok(number.to_string().into_bytes()));
    match first {
        0xC0 => decimal(i8::from_le_bytes(take_array(bytes)?).into()),
        0xC1 => decimal(i16::from_le_bytes(take_array(bytes)?).into()),
        0xC2 => decimal(i32::from_le_bytes(take_array(bytes)?)),
        0xC3 => take_packed(bytes, len_max),
        _ => {
            let len = take_length(bytes, first)?;
            let value = take(bytes, len)?;
            Some(if len > len_max { Err(PayloadError::Size { found: len }) } else { Ok(value.to_vec()) })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `body` in an envelope.
    fn sealed(body: &[u8], version: u16) -> Vec<u8> {
        let bytes = [body, &version.to_le_bytes()].concat();
        [&bytes[..], &crc64(0, &bytes).to_le_bytes()].concat()
    }

    #[test]
    fn payloads_are_those_of_redis() {
        // DUMP of redis-server 7.0 for "hello".
        assert_eq!(payload(b"hello"), b"\x00\x05hello\n\x00cr\xdfve4 \n");
        assert_eq!(&payload(b"-129")[..4], b"\x00\xc1\x7f\xff");
        assert_eq!(&payload(b"-0")[..4], b"\x00\x02-0");
        assert_eq!(&payload(b"2147483648")[..3], b"\x00\x0a2");
        assert_eq!(payload(&[b'x'; 300])[..3], [0, 0x41, 0x2C]);
    }

    #[test]
    fn what_is_no_string_is_refused_by_name() {
        let parse = |body: &[u8], version| parse_payload(&sealed(body, version), 100);
        assert_eq!(parse(b"\x00\xC3\x04\x0Aab\xC0\x01", 10), Err(PayloadError::Format));
        assert_eq!(parse(b"\x00\xC3\x05\x0A\x01ab\xC0\x01", 10).unwrap(), b"ababababab");
        assert_eq!(parse(b"\x00\x01a", 80).unwrap(), b"a");
        assert_eq!(parse(b"\x00\x01a", 81), Err(PayloadError::Envelope));
        assert_eq!(parse(b"\x01\x01a", 10), Err(PayloadError::Type(1)));
        assert_eq!(parse(b"", 10), Err(PayloadError::Format));
        // A size that the packed bytes cannot become is not allocated.
        assert_eq!(
            parse(b"\x00\xC3\x01\x81\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFFx", 10),
            Err(PayloadError::Format)
        );
        assert_eq!(parse(b"\x00\x80\xFF\xFF\xFF\xFFx", 10), Err(PayloadError::Format));
        let long = [&b"\x00\x40\x65"[..], &[b'x'; 101]].concat();
        assert_eq!(parse(&long, 10), Err(PayloadError::Size { found: 101 }));
        assert_eq!(parse_payload(b"short", 100), Err(PayloadError::Envelope));
    }

    proptest! {
        #[test]
        fn values_survive_both_ways(value in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..20_000),
            any::<i64>().prop_map(|number| number.to_string().into_bytes()),
            any::<i16>().prop_map(|number| number.to_string().into_bytes()),
        ]) {
            prop_assert_eq!(parse_payload(&payload(&value), value.len()), Ok(value));
        }

        #[test]
        fn any_bytes_are_refused_or_taken_whole(body in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(value) = parse_payload(&sealed(&body, 10), 64) {
                prop_assert!(value.len() <= 64);
            }
        }

        #[test]
        fn a_changed_bit_is_found(value in proptest::collection::vec(any::<u8>(), 0..50), at: usize) {
            let mut bytes = payload(&value);
            let bit = at % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(parse_payload(&bytes, 50), Err(PayloadError::Envelope));
        }
    }
}
