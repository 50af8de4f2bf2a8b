//! Time as the engine keeps it: whole nanoseconds in 64 bits.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// A moment, as the rules need it: on the monotonic clock for deciding, on the wall for showing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) tick: Tick,
    pub(crate) wall: Wall,
}

/// A moment on a clock that never goes back and also counts while the machine is suspended: a message
/// that expires in an hour has expired after a night. Only to be compared with others of this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(u64);

impl Tick {
    pub(crate) const fn from_nanoseconds(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    pub(crate) fn nanoseconds(self) -> u64 {
        self.0
    }

    /// The moment so much later; one that never comes for the end of time.
    pub(crate) fn after(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A moment on the wall clock, since 1970. Times before 1677 and after 2262 are cut to these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wall(i64);

impl Wall {
    /// From nanoseconds since 1970.
    pub(crate) const fn from_nanoseconds(nanoseconds: i64) -> Self {
        Self(nanoseconds)
    }

    /// The moment so much earlier.
    pub(crate) fn before(self, span: Span) -> Self {
        Self(self.0.saturating_sub_unsigned(span.0))
    }

    /// A moment that never comes.
    pub(crate) const NEVER: Self = Self(i64::MAX);

    /// The moment so much later.
    pub(crate) fn after(self, span: Span) -> Self {
        Self(self.0.saturating_add_unsigned(span.0))
    }

    /// Nanoseconds since 1970.
    pub(crate) fn nanoseconds(self) -> i64 {
        self.0
    }
}

impl From<DateTime<Utc>> for Wall {
    fn from(time: DateTime<Utc>) -> Self {
        let farthest = if time.timestamp() < 0 { i64::MIN } else { i64::MAX };
        Self(time.timestamp_nanos_opt().unwrap_or(farthest))
    }
}

impl From<Wall> for DateTime<Utc> {
    fn from(time: Wall) -> Self {
        DateTime::from_timestamp_nanos(time.0)
    }
}

/// A length of time. What is longer than 584 years is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(u64);

impl Span {
    pub(crate) const FOR_EVER: Self = Self(u64::MAX);
}

impl From<Duration> for Span {
    fn from(length: Duration) -> Self {
        Self(nanoseconds(length))
    }
}

/// `None` is for ever.
impl From<Option<Duration>> for Span {
    fn from(length: Option<Duration>) -> Self {
        length.map_or(Self::FOR_EVER, Self::from)
    }
}

fn nanoseconds(length: Duration) -> u64 {
    let seconds = length.as_secs().saturating_mul(1_000_000_000);
    seconds.saturating_add(length.subsec_nanos().into())
}
