//! Times and lengths of time in whole nanoseconds, in 64 bits.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// The current time on two clocks: monotonic time decides, wall time is shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) monotonic: MonotonicTime,
    pub(crate) wall: WallTime,
}

impl Now {
    /// The wall time of a monotonic time that is at or after this one.
    pub(crate) fn wall_at(self, time: MonotonicTime) -> WallTime {
        self.wall.after(time.since(self.monotonic).into())
    }
}

/// A time on a clock that never goes back and that counts while the machine is suspended: a message with a
/// TTL of an hour has expired after a night. Only comparable with others of the same process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MonotonicTime(u64);

impl MonotonicTime {
    pub(crate) const MAX: Self = Self(u64::MAX);

    pub(crate) const fn from_nanoseconds(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    pub(crate) fn nanoseconds(self) -> u64 {
        self.0
    }

    /// This time plus `length`. With [`Nanos::INFINITE`] it never comes.
    pub(crate) fn after(self, length: Nanos) -> Self {
        Self(self.0.saturating_add(length.0))
    }

    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A time on the wall clock. Times before 1677 and after 2262 become the nearest that fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WallTime(i64);

impl WallTime {
    /// A time that never comes.
    pub(crate) const NEVER: Self = Self(i64::MAX);

    /// From nanoseconds since 1970.
    pub(crate) const fn from_nanoseconds(nanoseconds: i64) -> Self {
        Self(nanoseconds)
    }

    /// Nanoseconds since 1970.
    pub(crate) fn nanoseconds(self) -> i64 {
        self.0
    }

    /// The time from `earlier` to this one; zero if it is not earlier.
    pub(crate) fn since(self, earlier: Self) -> Nanos {
        Nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// This time minus `length`.
    pub(crate) fn before(self, length: Nanos) -> Self {
        Self(self.0.saturating_sub_unsigned(length.0))
    }

    /// This time plus `length`.
    pub(crate) fn after(self, length: Nanos) -> Self {
        Self(self.0.saturating_add_unsigned(length.0))
    }
}

impl From<DateTime<Utc>> for WallTime {
    fn from(time: DateTime<Utc>) -> Self {
        let nearest = if time.timestamp() < 0 { i64::MIN } else { i64::MAX };
        Self(time.timestamp_nanos_opt().unwrap_or(nearest))
    }
}

impl From<WallTime> for DateTime<Utc> {
    fn from(time: WallTime) -> Self {
        DateTime::from_timestamp_nanos(time.0)
    }
}

/// A length of time in nanoseconds. More than 584 years are infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Nanos(u64);

impl Nanos {
    pub(crate) const INFINITE: Self = Self(u64::MAX);

    pub(crate) const fn from_seconds(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000))
    }
}

impl From<Duration> for Nanos {
    fn from(length: Duration) -> Self {
        let seconds = length.as_secs().saturating_mul(1_000_000_000);
        Self(seconds.saturating_add(length.subsec_nanos().into()))
    }
}

/// `None` is infinite.
impl From<Option<Duration>> for Nanos {
    fn from(length: Option<Duration>) -> Self {
        length.map_or(Self::INFINITE, Self::from)
    }
}
