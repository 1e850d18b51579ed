//! Values that are no strings: their names, and where they end.
//!
//! Every loop takes at least a byte per round, so a count that lies ends with the file and not later.

use std::io::Read;

use super::RdbError;
use super::input::Input;

/// What a kind of value is called; `None`: nobody knows where it ends.
pub(super) fn name(kind: u8) -> Option<&'static str> {
    Some(match kind {
        1 | 10 | 14 | 18 => "list",
        2 | 11 | 20 => "set",
        3 | 5 | 12 | 17 => "sorted set",
        4 | 9 | 13 | 16 | 22..=25 => "hash",
        7 => "value of a module",
        15 | 19 | 21 => "stream",
        _ => return None,
    })
}

/// Takes a value of a kind that has a name.
pub(super) fn value<R: Read>(input: &mut Input<R>, kind: u8) -> Result<(), RdbError> {
    match kind {
        // Lists and sets of strings, and of packed lists.
        1 | 2 | 14 => strings(input, 1),
        3 => {
            for _ in 0..input.length()? {
                input.skip_string()?;
                score(input)?;
            }
            Ok(())
        }
        4 => strings(input, 2),
        5 => {
            for _ in 0..input.length()? {
                input.skip_string()?;
                input.skip(8)?;
            }
            Ok(())
        }
        7 => module(input),
        // Packed into one string.
        9..=13 | 16 | 17 | 20 | 23 => input.skip_string(),
        15 | 19 | 21 => stream(input, kind),
        18 => {
            for _ in 0..input.length()? {
                input.length()?;
                input.skip_string()?;
            }
            Ok(())
        }
        // Hashes whose fields expire; all but the older forms begin with the first time of these.
        22 | 24 => {
            input.skip(if kind == 24 { 8 } else { 0 })?;
            for _ in 0..input.length()? {
                input.length()?;
                input.skip_string()?;
                input.skip_string()?;
            }
            Ok(())
        }
        25 => {
            input.skip(8)?;
            input.skip_string()
        }
        _ => unreachable!("kind {kind} has no name"),
    }
}

/// A count, and so many times `each` strings.
fn strings<R: Read>(input: &mut Input<R>, each: u32) -> Result<(), RdbError> {
    for _ in 0..input.length()? {
        for _ in 0..each {
            input.skip_string()?;
        }
    }
    Ok(())
}

/// A score as text; three lengths stand for what is no number.
fn score<R: Read>(input: &mut Input<R>) -> Result<(), RdbError> {
    match input.byte()? {
        253..=255 => Ok(()),
        len => input.skip(len.into()),
    }
}

/// A module's number, then fields that name their own kinds, up to an end mark.
pub(super) fn module<R: Read>(input: &mut Input<R>) -> Result<(), RdbError> {
    input.length()?;
    loop {
        match input.length()? {
            0 => return Ok(()),
            1 | 2 => drop(input.length()?),
            3 => input.skip(4)?,
            4 => input.skip(8)?,
            5 => input.skip_string()?,
            _ => return Err(input.damaged("a field of a module of no known kind")),
        }
    }
}

/// Entries, their last id (and more ids, from kind 19 on), then groups with what each has not acknowledged, by
/// consumer.
fn stream<R: Read>(input: &mut Input<R>, kind: u8) -> Result<(), RdbError> {
    let lengths = |input: &mut Input<R>, count: u32| -> Result<(), RdbError> {
        for _ in 0..count {
            input.length()?;
        }
        Ok(())
    };
    const ID_SIZE: u64 = 16;
    strings(input, 2)?;
    // Count, last id; first id, last deleted id, entries ever added.
    lengths(input, if kind >= 19 { 8 } else { 3 })?;
    for _ in 0..input.length()? {
        input.skip_string()?;
        // Last id; entries read.
        lengths(input, if kind >= 19 { 3 } else { 2 })?;
        for _ in 0..input.length()? {
            input.skip(ID_SIZE + 8)?;
            input.length()?;
        }
        for _ in 0..input.length()? {
            input.skip_string()?;
            // When it was seen; when it was active.
            input.skip(if kind >= 21 { 16 } else { 8 })?;
            for _ in 0..input.length()? {
                input.skip(ID_SIZE)?;
            }
        }
    }
    Ok(())
}
