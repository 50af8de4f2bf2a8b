//! Exponential backoff with a cap. Delays are randomized so that clients do not reconnect together.

use std::time::Duration;

/// Delays between attempts: from half a second, up to half a minute.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(500);
    const CAP: Duration = Duration::from_secs(30);

    /// The next delay: 50 % to 100 % of a time that doubles with each failure, up to the cap.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> Duration {
        let full = Self::FIRST.saturating_mul(1 << self.failures.min(16)).min(Self::CAP);
        self.failures += 1;
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Starts again with the shortest delay, after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_begin_anew() {
        let mut backoff = Backoff::default();
        for full in [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            let wait = backoff.next().as_millis();
            assert!((full / 2..=full).contains(&wait), "{wait} of {full}");
        }
        backoff.reset();
        assert!(backoff.next() <= Backoff::FIRST);
    }
}
