//! Times as text: RFC 3339 in UTC with nanoseconds.

use chrono::{DateTime, Datelike as _, SecondsFormat, Timelike as _, Utc};
use serde::{Serialize, Serializer};

/// The time that means "never": the zero time of Go, in which prologic/msgbus is written.
pub(super) const NEVER: DateTime<Utc> = match DateTime::from_timestamp(-62_135_596_800, 0) {
    Some(time) => time,
    None => DateTime::<Utc>::MIN_UTC,
};

/// A time as it is encoded.
pub fn format_time(time: DateTime<Utc>) -> String {
    with_text(time, |text| String::from_utf8_lossy(text).into_owned())
}

/// Appends a time as it is encoded.
pub(super) fn write(out: &mut Vec<u8>, time: DateTime<Utc>) {
    with_text(time, |text| out.extend_from_slice(text));
}

/// A time within a serialized object.
pub(super) struct Time(pub(super) DateTime<Utc>);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        with_text(self.0, |text| {
            serializer.serialize_str(std::str::from_utf8(text).unwrap_or_default())
        })
    }
}

/// Calls `act` with the text. There are four times in each message, so it is written without the library, which takes
/// several times as long.
fn with_text<T>(time: DateTime<Utc>, act: impl FnOnce(&[u8]) -> T) -> T {
    if time == NEVER {
        return act(b"0001-01-01T00:00:00Z");
    }
    let nanoseconds = time.nanosecond();
    let year = match u32::try_from(time.year()) {
        // A leap second has more nanoseconds than others.
        Ok(year @ 0..=9999) if nanoseconds < 1_000_000_000 => year,
        _ => return act(time.to_rfc3339_opts(SecondsFormat::Nanos, true).as_bytes()),
    };
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    for (at, number) in [
        (0, year / 100),
        (2, year),
        (5, time.month()),
        (8, time.day()),
        (11, time.hour()),
        (14, time.minute()),
        (17, time.second()),
        (20, nanoseconds / 10_000_000),
        (22, nanoseconds / 100_000),
        (24, nanoseconds / 1000),
        (26, nanoseconds / 10),
        (27, nanoseconds),
    ] {
        text[at..at + 2].copy_from_slice(two_digits(number));
    }
    act(&text)
}

/// The last two digits of a number.
fn two_digits(number: u32) -> &'static [u8] {
    const DIGITS: &[u8; 200] = b"0001020304050607080910111213141516171819\
        2021222324252627282930313233343536373839404142434445464748495051525354555657585960616263646566676869\
        707172737475767778798081828384858687888990919293949596979899";
    let at = 2 * (number % 100) as usize;
    &DIGITS[at..at + 2]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by_library(time: DateTime<Utc>) -> String {
        time.to_rfc3339_opts(SecondsFormat::Nanos, true)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn times_are_what_the_library_writes(seconds in any::<i32>(), nanoseconds in 0..2_000_000_000_u32) {
            let time = DateTime::from_timestamp(i64::from(seconds) * 200, nanoseconds);
            for time in time.into_iter().filter(|time| *time != NEVER) {
                prop_assert_eq!(format_time(time), by_library(time));
            }
        }
    }

    #[test]
    fn the_first_and_last_times_are_written_too() {
        for time in [DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC, DateTime::UNIX_EPOCH] {
            assert_eq!(format_time(time), by_library(time));
        }
        assert_eq!(format_time(NEVER), "0001-01-01T00:00:00Z");
    }
}
