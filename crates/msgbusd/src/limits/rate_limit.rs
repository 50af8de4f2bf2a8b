//! Publish rates: a token bucket for each key, for each address without a key, and one for all clients of
//! unix sockets without a key.
//!
//! A bucket holds the tokens of one second. It is known by the moment at which it is full again, so there
//! is nothing to do as time goes by, and one that is full need not be kept. Tokens are taken before anything is
//! published, and never more than there are: no client goes past its rate, and none owes tokens.
//!
//! `governor` has the same algorithm, but no bound on the number of its keys and no rate for each key: both
//! would be added around it, and are most of this file.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    auth::{Hash, Principal},
    limits::rate::Rate,
    net::client_prefix::ClientPrefix,
};

const BURST: Duration = Duration::from_secs(1);
/// How many keys and addresses have a bucket of their own; other addresses share one.
const MOST_BUCKETS: usize = 100_000;
const FEW: usize = 64;

/// The rates, and how much of them is used up.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    /// For clients whose key has no rate of its own.
    default: Option<Rate>,
    buckets: Mutex<Buckets>,
}

#[derive(Debug, Default)]
struct Buckets {
    /// Those that may miss tokens.
    by_owner: HashMap<Owner, Bucket>,
    /// How many there may be before the full ones are dropped.
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

/// The bucket that a client's messages are charged to, and its rate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Account {
    owner: Owner,
    rate: Rate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Owner {
    Key(Hash),
    Address(ClientPrefix),
    /// All clients of unix sockets together: the system does not say which of them a proxy speaks for.
    UnixSockets,
    /// All addresses for which there is no bucket of their own.
    OtherAddresses,
}

/// Why tokens were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OverRate {
    /// They will be there after this time.
    Wait(Duration),
    /// More than the bucket holds: they will never be there. This is what it holds.
    Never(Rate),
}

impl RateLimiter {
    pub(crate) fn new(default: Option<Rate>) -> Self {
        Self { default, buckets: Mutex::default() }
    }

    /// The bucket for a client's messages; `None` where no rate is set for it. Without an address it comes
    /// by a unix socket.
    pub(crate) fn account(
        &self,
        principal: Option<&Principal>,
        address: Option<IpAddr>,
    ) -> Option<Account> {
        let rate = principal.and_then(Principal::publish_rate).or(self.default)?;
        let owner = match (principal.and_then(Principal::hash), address) {
            (Some(hash), _) => Owner::Key(hash),
            (None, Some(address)) => Owner::Address(address.into()),
            (None, None) => Owner::UnixSockets,
        };
        Some(Account { owner, rate })
    }

    /// Takes the token of a request.
    ///
    /// # Errors
    /// When there is none. Nothing is taken then.
    pub(crate) fn take(&self, account: Account) -> Result<(), OverRate> {
        let now = Instant::now();
        self.buckets.lock().of(account, now).take(now, 1)
    }

    /// Takes the tokens of a batch, in place of the one that was taken for its request.
    ///
    /// # Errors
    /// When there are not as many. That of the request is given back then.
    pub(crate) fn take_batch(&self, account: Account, count: usize) -> Result<(), OverRate> {
        let now = Instant::now();
        let mut buckets = self.buckets.lock();
        let bucket = buckets.of(account, now);
        bucket.give_back_one(now);
        bucket.take(now, count)
    }
}

impl Buckets {
    fn of(&mut self, account: Account, now: Instant) -> &mut Bucket {
        let Account { mut owner, rate } = account;
        if !self.by_owner.contains_key(&owner) {
            self.tidy(now);
            if matches!(owner, Owner::Address(_)) && self.by_owner.len() >= MOST_BUCKETS {
                owner = Owner::OtherAddresses;
            }
        }
        let new = Bucket { rate, full_at: now };
        let bucket = self.by_owner.entry(owner).or_insert(new);
        if bucket.rate != rate {
            *bucket = new;
        }
        bucket
    }

    /// Drops those that are full again, when there are twice as many as the last time, but at most once a
    /// second: at the most there may be none to drop.
    fn tidy(&mut self, now: Instant) {
        let is_due = self.tidied.is_none_or(|last| now - last >= BURST);
        if self.by_owner.len() < self.tidy_at || !is_due {
            return;
        }
        self.by_owner.retain(|_, bucket| bucket.full_at > now);
        self.tidy_at = (self.by_owner.len() * 2).clamp(FEW, MOST_BUCKETS);
        self.tidied = Some(now);
    }
}

impl Bucket {
    fn take(&mut self, now: Instant, count: usize) -> Result<(), OverRate> {
        let count = u32::try_from(count).ok().filter(|count| *count <= self.rate.get());
        let Some(count) = count else { return Err(OverRate::Never(self.rate)) };
        let full_at = self.full_at.max(now) + self.interval() * count;
        let missing = (full_at - now).saturating_sub(BURST);
        if !missing.is_zero() {
            return Err(OverRate::Wait(missing));
        }
        self.full_at = full_at;
        Ok(())
    }

    fn give_back_one(&mut self, now: Instant) {
        self.full_at = self.full_at.max(now + self.interval()) - self.interval();
    }

    fn interval(&self) -> Duration {
        BURST / self.rate.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::rate::HIGHEST;

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
                bucket.take(start, 1).unwrap();
            }
            bucket.take(start, (rate - count) as usize).unwrap();
            let Err(OverRate::Wait(wait)) = bucket.take(start, 1) else { panic!("{bucket:?}") };
            assert!(wait <= bucket.interval(), "{rate}: {wait:?}");
            bucket.take(start + wait, 1).unwrap();
            assert!(bucket.take(start + wait, 1).is_err(), "{rate}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_takes_all_its_tokens_at_once_or_none() {
        let rates = RateLimiter::new(Some(rate(10)));
        let account = rates.account(None, None).unwrap();
        for _ in 0..3 {
            rates.take(account).unwrap();
        }
        assert_eq!(rates.take_batch(account, 11), Err(OverRate::Never(rate(10))));
        rates.take(account).unwrap();
        rates.take_batch(account, 8).unwrap();
        assert_eq!(rates.take(account), Err(OverRate::Wait(Duration::from_millis(100))));
        tokio::time::advance(Duration::from_millis(100)).await;
        rates.take(account).unwrap();
        let wait = Duration::from_millis(100);
        assert_eq!(rates.take_batch(account, 2), Err(OverRate::Wait(wait)), "one was given back");
        tokio::time::advance(wait).await;
        rates.take(account).unwrap();
        rates.take_batch(account, 2).unwrap();
        tokio::time::advance(BURST).await;
        rates.take(account).unwrap();
        rates.take_batch(account, 10).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn another_rate_is_another_bucket_and_the_same_one_stays() {
        let rates = RateLimiter::new(None);
        let account = |n| Account { owner: Owner::UnixSockets, rate: rate(n) };
        rates.take(account(1)).unwrap();
        assert!(rates.take(account(1)).is_err());
        rates.take(account(2)).unwrap();
        assert!(rates.account(None, None).is_none(), "no rate is set");
    }

    #[tokio::test(start_paused = true)]
    async fn buckets_are_kept_while_tokens_are_missing_and_are_bounded() {
        let rates = RateLimiter::new(Some(rate(1)));
        let account = |n: u32| rates.account(None, Some(IpAddr::V4(n.into()))).unwrap();
        let count = u32::try_from(MOST_BUCKETS).unwrap();
        for n in 0..count {
            rates.take(account(n)).unwrap();
        }
        rates.take(account(count)).unwrap();
        assert!(rates.take(account(count + 1)).is_err(), "newcomers have one together");
        assert!(rates.take(account(0)).is_err());
        rates.take(rates.account(None, None).unwrap()).unwrap();
        assert_eq!(rates.buckets.lock().by_owner.len(), MOST_BUCKETS + 2);
        tokio::time::advance(BURST).await;
        rates.take(account(count + 1)).unwrap();
        assert_eq!(rates.buckets.lock().by_owner.len(), 1, "the others are full again");
    }
}
