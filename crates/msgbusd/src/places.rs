//! The places of connections: so many in all, and so many of one address.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use parking_lot::Mutex;

use crate::{code::Code, network::Network};

/// Places for connections.
#[derive(Debug)]
pub(crate) struct Places {
    limit: usize,
    per_address: PerAddress,
    taken: Mutex<Taken>,
}

/// How many of them one address may have.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PerAddress {
    All,
    /// So many, whoever it is.
    Most(usize),
    /// So many, unless it is this machine: there are proxies, and whoever tries something out.
    MostOfOthers(usize),
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Of those that are counted and have one at least.
    of: HashMap<Network, usize>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    InAll,
    OfThisAddress,
}

impl NoPlace {
    /// What the client is told, a line.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::InAll => "too many connections: try again in a bit\n",
            Self::OfThisAddress => "too many connections from this address: close some first\n",
        }
    }

    /// The word in the metrics.
    pub(crate) fn code(self) -> Code {
        match self {
            Self::InAll => Code::TooManyConnections,
            Self::OfThisAddress => Code::TooManyConnectionsOfAddress,
        }
    }
}

impl Places {
    pub(crate) fn new(limit: usize, per_address: PerAddress) -> Arc<Self> {
        Arc::new(Self { limit, per_address, taken: Mutex::default() })
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn taken(&self) -> usize {
        self.taken.lock().all
    }

    /// A place for a connection from this address; where there is none, as with a unix socket, only all of
    /// them together are counted.
    pub(crate) fn take(self: &Arc<Self>, address: Option<IpAddr>) -> Result<Place, NoPlace> {
        let counted = address.and_then(|address| self.counted(address));
        let mut taken = self.taken.lock();
        if taken.all >= self.limit {
            return Err(NoPlace::InAll);
        }
        if let Some((network, most)) = counted {
            let own = taken.of.entry(network).or_default();
            if *own >= most {
                return Err(NoPlace::OfThisAddress);
            }
            *own += 1;
        }
        taken.all += 1;
        let network = counted.map(|(network, _)| network);
        Ok(Place { places: Arc::clone(self), network })
    }

    fn counted(&self, address: IpAddr) -> Option<(Network, usize)> {
        let most = match self.per_address {
            PerAddress::MostOfOthers(_) if address.to_canonical().is_loopback() => return None,
            PerAddress::All => return None,
            PerAddress::Most(most) | PerAddress::MostOfOthers(most) => most,
        };
        Some((address.into(), most))
    }
}

/// A place that is taken until this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    /// As which it is counted.
    network: Option<Network>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.all -= 1;
        let Some(network) = self.network else { return };
        if let Some(own) = taken.of.get_mut(&network) {
            *own -= 1;
            if *own == 0 {
                taken.of.remove(&network);
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
        let places = Places::new(4, PerAddress::Most(2));
        let one = places.take(Some(ip("2001:db8::1"))).unwrap();
        let _two = places.take(Some(ip("2001:db8::2"))).unwrap();
        assert_eq!(places.take(Some(ip("2001:db8::3"))).unwrap_err(), NoPlace::OfThisAddress);
        drop(one);
        let _three = places.take(Some(ip("2001:db8::3"))).unwrap();
        let _unix = [places.take(None).unwrap(), places.take(None).unwrap()];
        assert_eq!(places.take(Some(ip("192.0.2.1"))).unwrap_err(), NoPlace::InAll);
        assert_eq!((places.taken(), places.taken.lock().of.len()), (4, 1));
    }

    #[test]
    fn this_machine_is_counted_only_when_that_was_said() {
        for address in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            let places = Places::new(9, PerAddress::MostOfOthers(1));
            let _one =
                [places.take(Some(ip(address))).unwrap(), places.take(Some(ip(address))).unwrap()];
            let places = Places::new(9, PerAddress::Most(1));
            let _one = places.take(Some(ip(address))).unwrap();
            assert_eq!(places.take(Some(ip(address))).unwrap_err(), NoPlace::OfThisAddress);
        }
        let places = Places::new(9, PerAddress::MostOfOthers(1));
        let other = places.take(Some(ip("192.0.2.1"))).unwrap();
        assert!(places.take(Some(ip("::ffff:192.0.2.1"))).is_err());
        drop(other);
        assert_eq!(places.taken.lock().of.len(), 0, "nobody is remembered");
    }
}
