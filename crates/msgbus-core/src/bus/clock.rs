//! The clocks. Whoever holds a topic's lock reads them and passes the time to the topic.

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

use crate::model::{Now, Tick, Wall};

/// Reads both clocks.
pub(crate) fn now() -> Now {
    let tick = monotonic();
    Now { tick, wall: WALL.at(tick) }
}

/// Reads `CLOCK_BOOTTIME`, without a system call: where std's `Instant` stands still in suspend, as on
/// Linux, and cheaper than it.
#[cfg(target_os = "linux")]
pub(crate) fn monotonic() -> Tick {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Boottime);
    Tick::from_nanoseconds(tv_sec.cast_unsigned() * 1_000_000_000 + tv_nsec.cast_unsigned())
}

/// Reads std's monotonic clock.
#[cfg(not(target_os = "linux"))]
pub(crate) fn monotonic() -> Tick {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let elapsed = START.elapsed().as_nanos();
    Tick::from_nanoseconds(u64::try_from(elapsed).unwrap_or(u64::MAX))
}

fn system_wall() -> Wall {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanoseconds =
        since_1970.map_or(0, |time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX));
    Wall::from_nanoseconds(nanoseconds)
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
        let nanoseconds = tick.nanoseconds();
        if nanoseconds < self.good_until.load(Acquire) {
            let ahead = self.ahead.load(Relaxed);
            return Wall::from_nanoseconds(ahead.saturating_add_unsigned(nanoseconds));
        }
        let wall = system_wall();
        if monotonic().since(tick) < Self::EXACT {
            // Of two threads that do this at the same time the slower one may undo what the other has
            // learnt, until the next asking.
            self.ahead.store(wall.nanoseconds().saturating_sub_unsigned(nanoseconds), Relaxed);
            self.good_until.store(nanoseconds + Self::LATEST, Release);
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
            let before = system_wall();
            let derived = now().wall;
            let after = system_wall();
            assert!(before.before(tolerance) <= derived && derived.before(tolerance) <= after);
        }
    }
}
