//! The values of parameters, which mean the same at every door: how they are written, and what is allowed.

use std::{ops::RangeInclusive, time::Duration};

use msgbus_core::{
    BatchLimit, LagPolicy, LeaseToken, NewRequest, Position, PositionError, format_duration,
    parse_duration,
};
use thiserror::Error;

/// How long a pull may wait.
pub(crate) const WAITS: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(60);
/// How long a requester may wait.
pub(crate) const TIMEOUTS: RangeInclusive<Duration> = NewRequest::TIMEOUTS;
/// How long a lease may be.
pub(crate) const LEASES: RangeInclusive<Duration> = Duration::from_secs(1)..=LeaseToken::MAX_TIME;
/// How long a message may wait after a nack.
pub(crate) const DELAYS: RangeInclusive<Duration> = Duration::ZERO..=LeaseToken::MAX_TIME;
/// The maximum number of messages, and of bytes of payload, that one pull takes.
pub(crate) const MAX_BATCH: BatchLimit = BatchLimit { events: 10_000, bytes: 8 << 20 };
/// The maximum number of leases that one request settles.
pub(crate) const MAX_SETTLED: usize = 10_000;

/// A parameter has a value that is not allowed. The text says what is.
#[derive(Debug, Error)]
#[error("bad value of parameter {name:?}: {why}")]
pub(crate) struct BadParameter {
    pub(crate) name: &'static str,
    pub(crate) why: String,
}

impl BadParameter {
    pub(crate) fn new(name: &'static str, why: impl Into<String>) -> Self {
        Self { name, why: why.into() }
    }
}

/// A duration within a range.
pub(crate) fn duration(
    name: &'static str,
    text: &str,
    allowed: &RangeInclusive<Duration>,
) -> Result<Duration, BadParameter> {
    match parse_duration(text) {
        Ok(duration) if allowed.contains(&duration) => Ok(duration),
        Ok(_) => {
            let [least, most] = [allowed.start(), allowed.end()].map(|end| format_duration(*end));
            Err(BadParameter::new(name, format!("use {least} to {most}")))
        }
        Err(error) => Err(BadParameter::new(name, error.to_string())),
    }
}

/// The time that a message lives.
pub(crate) fn ttl(text: &str) -> Result<Duration, BadParameter> {
    match parse_duration(text) {
        Ok(Duration::ZERO) => Err(BadParameter::new("ttl", "must be longer than 0")),
        Ok(ttl) => Ok(ttl),
        Err(error) => Err(BadParameter::new("ttl", error.to_string())),
    }
}

/// A start position.
pub(crate) fn since(text: &str) -> Result<Position, BadParameter> {
    text.parse().map_err(|error: PositionError| BadParameter::new("since", error.to_string()))
}

/// The policy for a subscriber that lags behind the retained messages.
pub(crate) fn lag(text: &str) -> Result<LagPolicy, BadParameter> {
    match text {
        "skip" => Ok(LagPolicy::Skip),
        "disconnect" => Ok(LagPolicy::Disconnect),
        _ => Err(BadParameter::new("lag", "use skip or disconnect")),
    }
}
