//! When to ping a websocket, and when its client has been silent for too long.

use std::time::Duration;

use tokio::time::Instant;

/// The minimum time that a client has to answer a ping, from when the ping was written.
const PONG_TIMEOUT: Duration = Duration::from_secs(10);

/// The ping timer of one websocket.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    interval: Duration,
    ping_at: Instant,
    received_at: Instant,
    ping: Ping,
}

/// The first ping since the client last sent something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ping {
    None,
    /// The ping waits to be written.
    Queued,
    Written(Instant),
}

impl Heartbeat {
    pub(crate) fn new(interval: Duration, now: Instant) -> Self {
        Self { interval, ping_at: now + interval, received_at: now, ping: Ping::None }
    }

    /// The earliest time at which something is due. Check again then: due times only move later.
    pub(crate) fn next(&self) -> Instant {
        self.silent_at().map_or(self.ping_at, |silent_at| silent_at.min(self.ping_at))
    }

    /// Records that the client sent something.
    pub(crate) fn received(&mut self, now: Instant) {
        self.received_at = now;
        self.ping = Ping::None;
    }

    /// Whether to ping now. If so, the next ping is due one interval from now.
    pub(crate) fn ping_is_due(&mut self, now: Instant) -> bool {
        let is_due = self.ping_at <= now;
        if is_due {
            self.ping_at = now + self.interval;
            if self.ping == Ping::None {
                self.ping = Ping::Queued;
            }
        }
        is_due
    }

    /// Records that all pings are written.
    pub(crate) fn pings_written(&mut self) {
        if self.ping == Ping::Queued {
            self.ping = Ping::Written(Instant::now());
        }
    }

    /// Whether the client has been silent for too long.
    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        self.silent_at().is_some_and(|silent_at| silent_at <= now)
    }

    /// When the client is considered silent. A client that reads slowly gets its pings late, so the time also counts from
    /// when the ping was written.
    fn silent_at(&self) -> Option<Instant> {
        let Ping::Written(written_at) = self.ping else { return None };
        let max_silence = 2 * self.interval + PONG_TIMEOUT;
        Some((self.received_at + max_silence).max(written_at + PONG_TIMEOUT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(25);

    #[test]
    fn a_client_is_silent_after_two_pings_and_ten_seconds() {
        let start = Instant::now();
        let mut heartbeat = Heartbeat::new(INTERVAL, start);
        let mut pings = 0;
        let mut now = start;
        while !heartbeat.is_silent(now) {
            pings += u32::from(heartbeat.ping_is_due(now));
            heartbeat.pings_written();
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
        heartbeat.received(start + 9 * INTERVAL);
        heartbeat.pings_written();
        assert_eq!(heartbeat.next(), start + 10 * INTERVAL);
    }
}
