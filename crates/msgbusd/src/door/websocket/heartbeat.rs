//! When a websocket is pinged, and when its client has been silent for too long.

use std::time::Duration;

use tokio::time::Instant;

/// How long a ping has to be answered, at least, counted from when it was written.
const PONG_TIMEOUT: Duration = Duration::from_secs(10);

/// The time of one websocket.
#[derive(Debug)]
pub(super) struct Heartbeat {
    interval: Duration,
    ping_at: Instant,
    heard_at: Instant,
    ping: Ping,
}

/// The first ping after the client was last heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ping {
    None,
    /// It waits to be written.
    Queued,
    Written(Instant),
}

impl Heartbeat {
    pub(super) fn new(interval: Duration, now: Instant) -> Self {
        Self { interval, ping_at: now + interval, heard_at: now, ping: Ping::None }
    }

    /// When there is something to do at the earliest. Looked at then: later, all of it is later.
    pub(super) fn next(&self) -> Instant {
        self.silent_at().map_or(self.ping_at, |silent_at| silent_at.min(self.ping_at))
    }

    /// The client has sent something.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard_at = now;
        self.ping = Ping::None;
    }

    /// Whether to ping now. If so, the next ping is due an interval from now.
    pub(super) fn ping_is_due(&mut self, now: Instant) -> bool {
        let is_due = self.ping_at <= now;
        if is_due {
            self.ping_at = now + self.interval;
            if self.ping == Ping::None {
                self.ping = Ping::Queued;
            }
        }
        is_due
    }

    /// All pings are written.
    pub(super) fn ping_is_out(&mut self) {
        if self.ping == Ping::Queued {
            self.ping = Ping::Written(Instant::now());
        }
    }

    /// Whether the client is to be given up.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        self.silent_at().is_some_and(|silent_at| silent_at <= now)
    }

    /// A client that takes its time to read gets its pings late, and is not silent for that.
    fn silent_at(&self) -> Option<Instant> {
        let Ping::Written(written_at) = self.ping else { return None };
        let longest_silence = 2 * self.interval + PONG_TIMEOUT;
        Some((self.heard_at + longest_silence).max(written_at + PONG_TIMEOUT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(25);

    #[test]
    fn two_pings_and_ten_seconds() {
        let start = Instant::now();
        let mut heartbeat = Heartbeat::new(INTERVAL, start);
        let mut pings = 0;
        let mut now = start;
        while !heartbeat.is_silent(now) {
            pings += u32::from(heartbeat.ping_is_due(now));
            heartbeat.ping_is_out();
            now = heartbeat.next();
        }
        assert_eq!((pings, now - start), (2, 2 * INTERVAL + PONG_TIMEOUT));
    }

    #[test]
    fn a_ping_that_is_not_written_cannot_be_answered() {
        let start = Instant::now();
        let mut heartbeat = Heartbeat::new(INTERVAL, start);
        for ping in 1..10 {
            let now = start + ping * INTERVAL;
            assert!(heartbeat.ping_is_due(now) && !heartbeat.is_silent(now));
            assert_eq!(heartbeat.next(), now + INTERVAL);
        }
        heartbeat.heard(start + 9 * INTERVAL);
        heartbeat.ping_is_out();
        assert_eq!(heartbeat.next(), start + 10 * INTERVAL);
    }
}
