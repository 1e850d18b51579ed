//! Floor 0: sizes and times as people write and read them: `1MiB`, `250ms`, `12.3 MiB/s`.

use std::time::Duration;

/// Parses a size in bytes: `4096`, `64KiB`, `1MiB`, `2GiB`.
pub fn parse_size(text: &str) -> Result<usize, String> {
    let wanted = || format!("{text:?} is no size; wanted bytes, or a number with KiB, MiB or GiB");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: usize = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wanted()),
    };
    number.parse::<usize>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(wanted)
}

/// Parses a duration: `250ms`, `1s`, `2m`. Zero is none.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wanted = || format!("{text:?} is no duration; wanted a number above 0 with ms, s or m");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wanted())?;
    let ms = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        _ => None,
    };
    match ms {
        Some(ms) if ms > 0 => Ok(Duration::from_millis(ms)),
        _ => Err(wanted()),
    }
}

/// Parses a duration, or `off` (also `0`), which is zero.
pub fn parse_duration_or_off(text: &str) -> Result<Duration, String> {
    match text {
        "off" | "0" | "0s" => Ok(Duration::ZERO),
        _ => parse_duration(text).map_err(|error| format!("{error}, or off")),
    }
}

/// Bytes with a binary unit and one decimal: `512 B`, `1.5 MiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = float(count) / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A count with thousands apart: `1,234,567`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// An integer as a float, for figures that are shown; exact up to 2^53.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "for display and metrics, whose type is f64 anyway")]
pub fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units_and_never_overflow() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64KiB"), Ok(65_536));
        assert_eq!(parse_size("1MiB"), Ok(1 << 20));
        for bad in ["", "MiB", "1MB", "-1", "1.5MiB", "99999999999GiB", "18446744073709551616"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_need_a_unit_and_are_never_zero() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "1", "0s", "s", "1h", "-1s", "99999999999999999999s", "18446744073709551615m"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn figures_read_well() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(1536 << 10), "1.5 MiB");
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
    }
}
