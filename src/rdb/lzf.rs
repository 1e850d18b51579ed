//! Strings that Redis has packed with LZF.
//!
//! A control byte below 32 is followed by that many bytes and one more, as they are; any other names a run that is
//! there already: its upper three bits are the run's length less two (7 = add the next byte), its lower five and the
//! byte behind are how far back it begins, less one.

/// Unpacks what is `len` bytes long into `target`, which is emptied first; `None` if it is no such thing.
///
/// `len` must have been found sensible: it is allocated.
pub fn unpack(packed: &[u8], len: usize, target: &mut Vec<u8>) -> Option<()> {
    target.clear();
    target.reserve(len);
    let mut packed = packed.iter().copied();
    while let Some(control) = packed.next() {
        if control < 32 {
            let run = usize::from(control) + 1;
            if target.len() + run > len || packed.len() < run {
                return None;
            }
            target.extend(packed.by_ref().take(run));
            continue;
        }
        let mut run = usize::from(control >> 5) + 2;
        if run == 9 {
            run += usize::from(packed.next()?);
        }
        let back = (usize::from(control & 31) << 8) + usize::from(packed.next()?) + 1;
        let start = target.len().checked_sub(back)?;
        if target.len() + run > len {
            return None;
        }
        // Byte by byte: a run may begin in what it makes.
        for at in start..start + run {
            target.push(target[at]);
        }
    }
    (target.len() == len).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_what_they_repeat_are_unpacked() {
        let mut target = Vec::new();
        // "ab", then 8 bytes that repeat it.
        assert_eq!(unpack(b"\x01ab\xC0\x01", 10, &mut target), Some(()));
        assert_eq!(target, b"ababababab");
        // A long run: 7 + 2 + 5.
        assert_eq!(unpack(b"\x00x\xE0\x05\x00", 15, &mut target), Some(()));
        assert_eq!(target, [b'x'; 15]);
    }

    #[test]
    fn no_bytes_make_more_than_was_said() {
        let mut target = Vec::new();
        for (packed, len) in [
            (&b"\x01ab\xC0\x01"[..], 9),
            (b"\x01ab\xC0\x01", 11),
            (b"\x01a", 2),
            (b"\xC0", 8),
            (b"\x00a\xC0\x01", 9),
            (b"\xE0", 9),
            (b"\x1Fab", 2),
        ] {
            assert_eq!(unpack(packed, len, &mut target), None, "{packed:?}");
            assert!(target.len() <= len, "{packed:?}");
        }
    }
}
