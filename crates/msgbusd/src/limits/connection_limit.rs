//! The limiter of connections: so many in all, and so many of one address.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use parking_lot::Mutex;

use crate::{net::client_prefix::ClientPrefix, service::code::Code};

/// Places for connections.
#[derive(Debug)]
pub(crate) struct ConnectionLimiter {
    limit: usize,
    per_address: PerAddress,
    in_use: Mutex<InUse>,
}

/// How many of them one address may have.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PerAddress {
    Unlimited,
    /// So many, whoever it is.
    Max(usize),
    /// So many, unless it is this machine: there are proxies, and whoever tries something out.
    MaxExceptLoopback(usize),
}

#[derive(Debug, Default)]
struct InUse {
    all: usize,
    /// Of those that are counted and have one at least.
    of: HashMap<ClientPrefix, usize>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LimitExceeded {
    Total,
    PerAddress,
}

impl LimitExceeded {
    /// What the client is told, a line.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Total => "too many connections: try again in a bit\n",
            Self::PerAddress => "too many connections from this address: close some first\n",
        }
    }

    /// The word in the metrics.
    pub(crate) fn code(self) -> Code {
        match self {
            Self::Total => Code::TooManyConnections,
            Self::PerAddress => Code::TooManyConnectionsOfAddress,
        }
    }
}

impl ConnectionLimiter {
    pub(crate) fn new(limit: usize, per_address: PerAddress) -> Arc<Self> {
        Arc::new(Self { limit, per_address, in_use: Mutex::default() })
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn in_use(&self) -> usize {
        self.in_use.lock().all
    }

    /// A place for a connection from this address; where there is none, as with a unix socket, only all of
    /// them together are counted.
    pub(crate) fn try_acquire(
        self: &Arc<Self>,
        address: Option<IpAddr>,
    ) -> Result<ConnectionPermit, LimitExceeded> {
        let counted = address.and_then(|address| self.counted(address));
        let mut in_use = self.in_use.lock();
        if in_use.all >= self.limit {
            return Err(LimitExceeded::Total);
        }
        if let Some((network, most)) = counted {
            let own = in_use.of.entry(network).or_default();
            if *own >= most {
                return Err(LimitExceeded::PerAddress);
            }
            *own += 1;
        }
        in_use.all += 1;
        let network = counted.map(|(network, _)| network);
        Ok(ConnectionPermit { limiter: Arc::clone(self), network })
    }

    fn counted(&self, address: IpAddr) -> Option<(ClientPrefix, usize)> {
        let most = match self.per_address {
            PerAddress::MaxExceptLoopback(_) if address.to_canonical().is_loopback() => {
                return None;
            }
            PerAddress::Unlimited => return None,
            PerAddress::Max(most) | PerAddress::MaxExceptLoopback(most) => most,
        };
        Some((address.into(), most))
    }
}

/// A place that is in use until this is dropped.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    limiter: Arc<ConnectionLimiter>,
    /// As which it is counted.
    network: Option<ClientPrefix>,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut in_use = self.limiter.in_use.lock();
        in_use.all -= 1;
        let Some(network) = self.network else { return };
        if let Some(own) = in_use.of.get_mut(&network) {
            *own -= 1;
            if *own == 0 {
                in_use.of.remove(&network);
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
    fn an_address_has_only_so_many_and_all_of_them_too() {
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
        assert_eq!((limiter.in_use(), limiter.in_use.lock().of.len()), (4, 1));
    }

    #[test]
    fn this_machine_is_counted_only_when_that_was_said() {
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
        assert_eq!(limiter.in_use.lock().of.len(), 0, "nobody is remembered");
    }
}
