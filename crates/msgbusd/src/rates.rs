//! How fast messages may come: a bucket of tokens for each key, and for each address without one.
//!
//! A bucket holds the tokens of one second. It is known by the moment at which it is full again, so there
//! is nothing to do as time goes by, and one that is full need not be kept.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    keys::{Caller, Hash},
    network::Network,
    rate::Rate,
};

const BURST: Duration = Duration::from_secs(1);
/// How many addresses have a bucket of their own; all others have one together.
const MOST_ADDRESSES: usize = 100_000;
const FEW: usize = 64;

/// The rates, and how much of them is used up.
#[derive(Debug)]
pub(crate) struct Rates {
    /// Of whoever has none of their own.
    default: Option<Rate>,
    buckets: Mutex<Buckets>,
}

#[derive(Debug, Default)]
struct Buckets {
    /// As many as the file of keys has had.
    of_keys: HashMap<Hash, Bucket>,
    of_addresses: HashMap<Network, Bucket>,
    of_all_others: Option<Bucket>,
    /// How many addresses there may be before those that are full again are forgotten.
    tidy_at: usize,
    tidied: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// With another rate it is another bucket.
    rate: Rate,
    /// In the future while tokens are missing.
    full_at: Instant,
}

/// Whose messages are counted, and against which rate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Account {
    whose: Whose,
    rate: Rate,
}

#[derive(Debug, Clone, Copy)]
enum Whose {
    Key(Hash),
    Address(Network),
}

impl Rates {
    pub(crate) fn new(default: Option<Rate>) -> Self {
        Self { default, buckets: Mutex::default() }
    }

    /// Against what the messages of this caller count; `None` where no rate is set for it, or it has neither
    /// a key nor an address.
    pub(crate) fn account(
        &self,
        caller: Option<&Caller>,
        address: Option<IpAddr>,
    ) -> Option<Account> {
        let rate = caller.and_then(Caller::publish_rate).or(self.default)?;
        let whose = match caller.and_then(Caller::hash) {
            Some(hash) => Whose::Key(hash),
            None => Whose::Address(address?.into()),
        };
        Some(Account { whose, rate })
    }

    /// Takes a token.
    ///
    /// # Errors
    /// How long until there is one.
    pub(crate) fn take(&self, account: Account) -> Result<(), Duration> {
        let now = Instant::now();
        self.buckets.lock().of(account, now).take(now)
    }

    /// Takes more tokens for what `take` has let in, even if they are not there: then the next has to wait
    /// for them.
    pub(crate) fn charge(&self, account: Account, count: usize) {
        let now = Instant::now();
        self.buckets.lock().of(account, now).charge(now, count);
    }
}

impl Buckets {
    fn of(&mut self, account: Account, now: Instant) -> &mut Bucket {
        let new = Bucket { rate: account.rate, full_at: now };
        let bucket = match account.whose {
            Whose::Key(hash) => self.of_keys.entry(hash).or_insert(new),
            Whose::Address(network) => {
                if !self.of_addresses.contains_key(&network) {
                    self.tidy(now);
                }
                if self.of_addresses.len() < MOST_ADDRESSES
                    || self.of_addresses.contains_key(&network)
                {
                    self.of_addresses.entry(network).or_insert(new)
                } else {
                    self.of_all_others.get_or_insert(new)
                }
            }
        };
        if bucket.rate != account.rate {
            *bucket = new;
        }
        bucket
    }

    /// Forgets those that are full again, when there are twice as many as the last time, but at most once a
    /// second: at the most there may be none to forget.
    fn tidy(&mut self, now: Instant) {
        let is_due = self.tidied.is_none_or(|last| now - last >= BURST);
        if self.of_addresses.len() < self.tidy_at || !is_due {
            return;
        }
        self.of_addresses.retain(|_, bucket| bucket.full_at > now);
        self.tidy_at = (self.of_addresses.len() * 2).clamp(FEW, MOST_ADDRESSES);
        self.tidied = Some(now);
    }
}

impl Bucket {
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let full_at = self.full_at.max(now) + self.interval();
        let missing = (full_at - now).saturating_sub(BURST);
        if !missing.is_zero() {
            return Err(missing);
        }
        self.full_at = full_at;
        Ok(())
    }

    fn charge(&mut self, now: Instant, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.full_at = self.full_at.max(now) + self.interval() * count;
    }

    fn interval(&self) -> Duration {
        BURST / self.rate.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate::HIGHEST;

    fn rate(rate: u32) -> Rate {
        Rate::new(rate).unwrap()
    }

    #[test]
    fn a_bucket_has_the_tokens_of_a_second() {
        for rate in [1, 2, 3, 7, 1000, HIGHEST] {
            let start = Instant::now();
            let mut bucket = Bucket { rate: Rate::new(rate).unwrap(), full_at: start };
            let count = rate.min(5000);
            for _ in 0..count {
                bucket.take(start).unwrap();
            }
            bucket.charge(start, (rate - count) as usize);
            let wait = bucket.take(start).unwrap_err();
            assert!(wait <= bucket.interval(), "{rate}: {wait:?}");
            bucket.take(start + wait).unwrap();
            assert!(bucket.take(start + wait).is_err(), "{rate}");
        }
    }

    #[test]
    fn what_was_taken_beyond_has_to_be_waited_for() {
        let start = Instant::now();
        let mut bucket = Bucket { rate: rate(10), full_at: start };
        bucket.take(start).unwrap();
        bucket.charge(start, 99);
        assert_eq!(bucket.take(start), Err(Duration::from_millis(9100)));
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_are_remembered_while_they_owe_something_and_are_bounded() {
        let rates = Rates::new(Some(rate(1)));
        let account = |n: u32| rates.account(None, Some(IpAddr::V4(n.into()))).unwrap();
        let count = u32::try_from(MOST_ADDRESSES).unwrap();
        for n in 0..count {
            rates.take(account(n)).unwrap();
        }
        rates.take(account(count)).unwrap();
        assert!(rates.take(account(count + 1)).is_err(), "newcomers have one together");
        assert!(rates.take(account(0)).is_err());
        assert_eq!(rates.buckets.lock().of_addresses.len(), MOST_ADDRESSES);
        tokio::time::advance(BURST).await;
        rates.take(account(count + 1)).unwrap();
        assert_eq!(rates.buckets.lock().of_addresses.len(), 1, "the others are full again");
        assert!(rates.account(None, None).is_none());
    }
}
