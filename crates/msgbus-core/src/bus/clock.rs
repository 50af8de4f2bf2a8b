//! The clocks. The holder of a topic's lock reads them and passes the time to the topic.

#[cfg(not(target_os = "linux"))]
use std::{sync::LazyLock, time::Instant};
use std::{
    sync::atomic::{
        AtomicI64, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    time::{Duration, SystemTime},
};

#[cfg(target_os = "linux")]
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::model::{MonotonicTime, Now, WallTime};

/// Reads both clocks.
#[inline]
pub(crate) fn now() -> Now {
    let monotonic = monotonic();
    Now { monotonic, wall: WALL_CLOCK.at(monotonic) }
}

/// Reads `CLOCK_BOOTTIME`, which needs no system call. On Linux std's `Instant` stands still while the
/// machine is suspended, and costs more.
#[cfg(target_os = "linux")]
#[inline]
pub(crate) fn monotonic() -> MonotonicTime {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Boottime);
    MonotonicTime::from_nanoseconds(
        tv_sec.cast_unsigned() * 1_000_000_000 + tv_nsec.cast_unsigned(),
    )
}

/// Reads std's monotonic clock.
#[cfg(not(target_os = "linux"))]
#[inline]
pub(crate) fn monotonic() -> MonotonicTime {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let elapsed = START.elapsed().as_nanos();
    MonotonicTime::from_nanoseconds(u64::try_from(elapsed).unwrap_or(u64::MAX))
}

fn system_time() -> WallTime {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    WallTime::from_nanoseconds(
        since_1970.map_or(0, |time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)),
    )
}

/// Derives wall time from the monotonic clock. Reading both would double the cost of a timestamp, which is
/// a large part of a publish.
struct WallClock {
    /// Wall time minus monotonic time, in nanoseconds.
    offset: AtomicI64,
    /// The monotonic time until which `offset` is valid, in nanoseconds.
    valid_until: AtomicU64,
}

static WALL_CLOCK: WallClock =
    WallClock { offset: AtomicI64::new(0), valid_until: AtomicU64::new(0) };

impl WallClock {
    /// How late a change of the system clock may be noticed, in nanoseconds.
    const MAX_STALENESS: u64 = 1_000_000;
    /// How long a sample of both clocks may take to be exact enough to be kept.
    const MAX_SAMPLE_GAP: Duration = Duration::from_micros(10);

    fn at(&self, now: MonotonicTime) -> WallTime {
        let nanoseconds = now.nanoseconds();
        if nanoseconds < self.valid_until.load(Acquire) {
            let offset = self.offset.load(Relaxed);
            return WallTime::from_nanoseconds(offset.saturating_add_unsigned(nanoseconds));
        }
        let wall = system_time();
        if monotonic().since(now) < Self::MAX_SAMPLE_GAP {
            // If two threads do this at once, the slower one may store an older offset, until the next
            // sample.
            let offset = wall.nanoseconds().saturating_sub_unsigned(nanoseconds);
            self.offset.store(offset, Relaxed);
            self.valid_until.store(nanoseconds + Self::MAX_STALENESS, Release);
        }
        wall
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_is_within_two_milliseconds_of_the_system_clock() {
        let tolerance = Duration::from_millis(2).into();
        for _ in 0..100_000 {
            let before = system_time();
            let derived = now().wall;
            let after = system_time();
            assert!(before.before(tolerance) <= derived && derived.before(tolerance) <= after);
        }
    }
}
