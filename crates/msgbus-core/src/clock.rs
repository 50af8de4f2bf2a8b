//! Time as the engine keeps it: whole nanoseconds in 64 bits.

use std::{
    sync::LazyLock,
    time::{Duration, Instant, SystemTime},
};

use chrono::{DateTime, TimeDelta, Utc};

/// A moment, as the rules need it: on the monotonic clock for deciding, on the wall for showing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) tick: Tick,
    pub(crate) wall: Wall,
}

impl Now {
    pub(crate) fn read() -> Self {
        Self { tick: Tick::now(), wall: Wall::now() }
    }
}

/// A moment on the monotonic clock, since this program first asked it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(u64);

impl Tick {
    pub(crate) fn now() -> Self {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        Self(nanoseconds(START.elapsed()))
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
    fn now() -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self(since_1970.map_or(0, |time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)))
    }

    /// The moment so much earlier.
    pub(crate) fn before(self, span: Span) -> Self {
        Self(self.0.saturating_sub_unsigned(span.0))
    }

    /// The moment so much later; `None` for the end of time.
    pub(crate) fn after(self, span: Span) -> Option<DateTime<Utc>> {
        DateTime::from(self).checked_add_signed(TimeDelta::from_std(span.get()?).ok()?)
    }

    /// Nanoseconds since 1970, 0 before.
    pub(crate) fn nanoseconds(self) -> u64 {
        u64::try_from(self.0).unwrap_or(0)
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

    /// The length; `None` for ever.
    fn get(self) -> Option<Duration> {
        (self != Self::FOR_EVER).then(|| Duration::from_nanos(self.0))
    }
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
    u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)
}
