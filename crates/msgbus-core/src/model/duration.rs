//! The grammar of durations: `500ms`, `30s`, `10m`, `1h30m`, `7d`.

use std::{fmt::Write as _, time::Duration};

use thiserror::Error;

/// Why a text is not a valid duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a duration: write a number and a unit (ms, s, m, h, d), as in 500ms, 30s or 1h30m")]
pub struct DurationError;

/// The units, longest first, each with its length in milliseconds.
const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Parses a duration: one or more whole numbers, each with its unit, from the longest unit to the
/// shortest. A bare `0` needs no unit.
///
/// # Errors
/// When the text is anything else, or longer than 2⁶⁴ milliseconds.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut units = UNITS.iter();
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (number, tail) = split_at_first(rest, |c| !c.is_ascii_digit());
        let (unit, tail) = split_at_first(tail, |c| c.is_ascii_digit());
        let number: u64 = number.parse().map_err(|_| DurationError)?;
        let (_, milliseconds) = units.find(|(name, _)| *name == unit).ok_or(DurationError)?;
        total = number
            .checked_mul(*milliseconds)
            .and_then(|part| total.checked_add(part))
            .ok_or(DurationError)?;
        rest = tail;
    }
    if text.is_empty() { Err(DurationError) } else { Ok(Duration::from_millis(total)) }
}

fn split_at_first(text: &str, stop: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(stop).unwrap_or(text.len()))
}

/// Writes a duration in the same grammar, in whole milliseconds.
pub fn format_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (name, milliseconds) in UNITS {
        let count = rest / milliseconds;
        rest %= milliseconds;
        if count > 0 {
            // Writing to a String cannot fail.
            let _ = write!(text, "{count}{name}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_documents() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("1m0s", 60_000),
            ("2d1ms", 172_800_001),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "1.5h",
            "1 h",
            "30S",
            "1m1h",
            "1s1s",
            "99999999999999999999s",
            "18446744073709551615d",
            "1é",
            "10m5",
        ] {
            assert_eq!(parse_duration(text), Err(DurationError), "{text}");
        }
    }

    #[test]
    fn writes_what_it_reads() {
        for text in ["500ms", "30s", "10m", "1h30m", "7d", "0s", "1d2h3m4s5ms"] {
            assert_eq!(parse_duration(text).map(format_duration).as_deref(), Ok(text));
        }
    }
}
