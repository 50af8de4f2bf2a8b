//! Time as the engine keeps it: whole nanoseconds in 64 bits.

#[cfg(not(target_os = "linux"))]
use std::{sync::LazyLock, time::Instant};
use std::{
    sync::atomic::{
        AtomicI64, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    time::{Duration, SystemTime},
};

use chrono::{DateTime, Utc};
#[cfg(target_os = "linux")]
use rustix::time::{ClockId, Timespec, clock_gettime};

/// A moment, as the rules need it: on the monotonic clock for deciding, on the wall for showing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) tick: Tick,
    pub(crate) wall: Wall,
}

impl Now {
    pub(crate) fn read() -> Self {
        let tick = Tick::now();
        Self { tick, wall: WALL.at(tick) }
    }
}

/// The wall clock, told by the monotonic one: asking the system for both would double the price of
/// the time, which is a good part of what a publish costs.
struct WallClock {
    /// How far the wall clock is ahead of the ticks.
    ahead: AtomicI64,
    /// The tick until which that holds.
    good_until: AtomicU64,
}

static WALL: WallClock = WallClock { ahead: AtomicI64::new(0), good_until: AtomicU64::new(0) };

impl WallClock {
    /// How late a change of the wall clock may be seen, in nanoseconds.
    const LATEST: u64 = 1_000_000;
    /// How long the asking may take to be exact enough to be remembered.
    const EXACT: Duration = Duration::from_micros(10);

    fn at(&self, tick: Tick) -> Wall {
        if tick.0 < self.good_until.load(Acquire) {
            return Wall(self.ahead.load(Relaxed).saturating_add_unsigned(tick.0));
        }
        let wall = Wall::now();
        if Tick::now().since(tick) < Self::EXACT {
            // Of two threads that do this at the same time the slower one may undo what the other has
            // learnt, until the next asking.
            self.ahead.store(wall.0.saturating_sub_unsigned(tick.0), Relaxed);
            self.good_until.store(tick.0 + Self::LATEST, Release);
        }
        wall
    }
}

/// A moment on a clock that never goes back and also counts while the machine is suspended: a message
/// that expires in an hour has expired after a night. Only to be compared with others of this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(u64);

impl Tick {
    /// `CLOCK_BOOTTIME`, read without a system call: where std's `Instant` stands still in suspend, as on
    /// Linux, and cheaper than it.
    #[cfg(target_os = "linux")]
    pub(crate) fn now() -> Self {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Boottime);
        Self(tv_sec.cast_unsigned() * 1_000_000_000 + tv_nsec.cast_unsigned())
    }

    #[cfg(not(target_os = "linux"))]
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

    /// A moment that never comes.
    pub(crate) const NEVER: Self = Self(i64::MAX);

    /// The moment so much later.
    pub(crate) fn after(self, span: Span) -> Self {
        Self(self.0.saturating_add_unsigned(span.0))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_is_told_right() {
        let tolerance = Span::from(Duration::from_millis(2));
        for _ in 0..100_000 {
            let before = Wall::now();
            let told = Now::read().wall;
            let after = Wall::now();
            assert!(before.before(tolerance) <= told && told.before(tolerance) <= after);
        }
    }
}
