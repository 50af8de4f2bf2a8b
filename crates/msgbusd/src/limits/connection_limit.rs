//! Limits the number of connections, in total and per address.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use parking_lot::Mutex;

use super::quota::{Quota, QuotaPermit};
use crate::{code::Code, limits::client_prefix::ClientPrefix};

/// Counts open connections and enforces the limits.
#[derive(Debug)]
pub(crate) struct ConnectionLimiter {
    total: Arc<Quota>,
    per_address: PerAddress,
    /// The addresses that are counted and have at least one connection.
    by_prefix: Mutex<HashMap<ClientPrefix, usize>>,
}

/// The maximum number of connections per address.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PerAddress {
    Unlimited,
    /// The same limit for every address.
    Max(usize),
    /// A limit for every address but loopback, which proxies and local tests use.
    MaxExceptLoopback(usize),
}

/// The limit that refused a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LimitExceeded {
    Total,
    PerAddress,
}

impl LimitExceeded {
    /// The response text, one line.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Total => "too many connections: try again later\n",
            Self::PerAddress => "too many connections from this address: close some first\n",
        }
    }

    /// The code word for metrics.
    pub(crate) fn code(self) -> Code {
        match self {
            Self::Total => Code::TooManyConnections,
            Self::PerAddress => Code::TooManyConnectionsOfAddress,
        }
    }
}

impl ConnectionLimiter {
    pub(crate) fn new(limit: usize, per_address: PerAddress) -> Arc<Self> {
        Arc::new(Self { total: Quota::new(limit), per_address, by_prefix: Mutex::default() })
    }

    pub(crate) fn limit(&self) -> usize {
        self.total.limit()
    }

    pub(crate) fn in_use(&self) -> usize {
        self.total.used()
    }

    /// Counts a connection from this address. A connection without an address (unix socket) counts only toward the
    /// total.
    pub(crate) fn try_acquire(
        self: &Arc<Self>,
        address: Option<IpAddr>,
    ) -> Result<ConnectionPermit, LimitExceeded> {
        let total = self.total.try_acquire(1).ok_or(LimitExceeded::Total)?;
        let counted = address.and_then(|address| self.limit_for(address));
        if let Some((prefix, max)) = counted {
            let mut by_prefix = self.by_prefix.lock();
            let count = by_prefix.entry(prefix).or_default();
            if *count >= max {
                return Err(LimitExceeded::PerAddress);
            }
            *count += 1;
        }
        let prefix = counted.map(|(prefix, _)| prefix);
        Ok(ConnectionPermit { limiter: Arc::clone(self), prefix, _total: total })
    }

    /// The prefix that the address counts as, and its limit; `None` without a limit.
    fn limit_for(&self, address: IpAddr) -> Option<(ClientPrefix, usize)> {
        let max = match self.per_address {
            PerAddress::MaxExceptLoopback(_) if address.to_canonical().is_loopback() => {
                return None;
            }
            PerAddress::Unlimited => return None,
            PerAddress::Max(max) | PerAddress::MaxExceptLoopback(max) => max,
        };
        Some((address.into(), max))
    }
}

/// An open connection. It is counted until this is dropped.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    limiter: Arc<ConnectionLimiter>,
    /// The prefix that it is counted for, if any.
    prefix: Option<ClientPrefix>,
    _total: QuotaPermit,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let Some(prefix) = self.prefix else { return };
        let mut by_prefix = self.limiter.by_prefix.lock();
        if let Some(count) = by_prefix.get_mut(&prefix) {
            *count -= 1;
            if *count == 0 {
                by_prefix.remove(&prefix);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn connections_are_limited_per_address_and_in_total() {
        let limiter = ConnectionLimiter::new(4, PerAddress::Max(2));
        let one = limiter.try_acquire(Some(ip("2001:db8::1"))).unwrap();
        let _two = limiter.try_acquire(Some(ip("2001:db8::2"))).unwrap();
        assert_eq!(
            limiter.try_acquire(Some(ip("2001:db8::3"))).unwrap_err(),
            LimitExceeded::PerAddress
        );
        drop(one);
        let _three = limiter.try_acquire(Some(ip("2001:db8::3"))).unwrap();
        let _unix = [limiter.try_acquire(None).unwrap(), limiter.try_acquire(None).unwrap()];
        assert_eq!(limiter.try_acquire(Some(ip("192.0.2.1"))).unwrap_err(), LimitExceeded::Total);
        assert_eq!((limiter.in_use(), limiter.by_prefix.lock().len()), (4, 1));
    }

    #[test]
    fn loopback_is_limited_only_on_request() {
        for address in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            let limiter = ConnectionLimiter::new(9, PerAddress::MaxExceptLoopback(1));
            let _one = [
                limiter.try_acquire(Some(ip(address))).unwrap(),
                limiter.try_acquire(Some(ip(address))).unwrap(),
            ];
            let limiter = ConnectionLimiter::new(9, PerAddress::Max(1));
            let _one = limiter.try_acquire(Some(ip(address))).unwrap();
            assert_eq!(
                limiter.try_acquire(Some(ip(address))).unwrap_err(),
                LimitExceeded::PerAddress
            );
        }
        let limiter = ConnectionLimiter::new(9, PerAddress::MaxExceptLoopback(1));
        let other = limiter.try_acquire(Some(ip("192.0.2.1"))).unwrap();
        assert!(limiter.try_acquire(Some(ip("::ffff:192.0.2.1"))).is_err());
        drop(other);
        assert_eq!(limiter.by_prefix.lock().len(), 0, "no address is remembered");
    }
}
