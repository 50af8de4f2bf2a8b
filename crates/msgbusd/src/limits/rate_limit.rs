//! Limits publish rates, with a token bucket for each key, for each address without a key, and one for all clients of
//! unix sockets without a key.
//!
//! A bucket holds the tokens of one second. It stores only the time at which it is full again, so no timer has to
//! refill it, and a full bucket can be dropped. Tokens are taken before a publish and never go below zero: no client
//! exceeds its rate, and none goes into debt.
//!
//! `governor` has the same algorithm, but no limit on the number of its keys and no rate per key. Both would have to
//! be added around it, and they are most of this file.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    auth::{Hash, Principal},
    limits::client_prefix::ClientPrefix,
    limits::rate::Rate,
};

const BURST: Duration = Duration::from_secs(1);
/// The maximum number of buckets. Further addresses share one bucket.
const MAX_BUCKETS: usize = 100_000;
const MIN_EVICTION_THRESHOLD: usize = 64;

/// The default rate and all buckets that are not full.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    /// The rate of clients whose key has none of its own.
    default: Option<Rate>,
    buckets: Mutex<Buckets>,
}

#[derive(Debug, Default)]
struct Buckets {
    /// The buckets that may not be full.
    by_owner: HashMap<Owner, Bucket>,
    /// The number of buckets at which full ones are dropped.
    evict_at: usize,
    evicted_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// A client whose rate changed gets a new bucket.
    rate: Rate,
    /// When the bucket is full again; in the future while tokens are missing.
    full_at: Instant,
}

/// The key of the bucket that a client's messages are charged to, and its rate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RateKey {
    owner: Owner,
    rate: Rate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Owner {
    Key(Hash),
    Address(ClientPrefix),
    /// All clients of unix sockets: nothing tells them apart behind a proxy.
    UnixSockets,
    /// All addresses beyond [`MAX_BUCKETS`].
    OtherAddresses,
}

/// Why tokens were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OverRate {
    /// Enough tokens will be available after this time.
    Wait(Duration),
    /// The batch needs more tokens than the bucket holds, which is this number.
    Never(Rate),
}

impl RateLimiter {
    pub(crate) fn new(default: Option<Rate>) -> Self {
        Self { default, buckets: Mutex::default() }
    }

    /// The key for a client's messages; `None` if no rate applies to it. A client without an address uses a unix
    /// socket.
    pub(crate) fn key(
        &self,
        principal: Option<&Principal>,
        address: Option<IpAddr>,
    ) -> Option<RateKey> {
        let rate = principal.and_then(Principal::publish_rate).or(self.default)?;
        let owner = match (principal.and_then(Principal::hash), address) {
            (Some(hash), _) => Owner::Key(hash),
            (None, Some(address)) => Owner::Address(address.into()),
            (None, None) => Owner::UnixSockets,
        };
        Some(RateKey { owner, rate })
    }

    /// Takes one token for a request.
    ///
    /// # Errors
    /// When the bucket is empty. Nothing is taken then.
    pub(crate) fn take(&self, key: RateKey) -> Result<(), OverRate> {
        let now = Instant::now();
        self.buckets.lock().bucket(key, now).take(now, 1)
    }

    /// Takes the tokens of a batch, in exchange for the one that was taken for its request.
    ///
    /// # Errors
    /// When there are not enough tokens. The token of the request is returned also then.
    pub(crate) fn take_batch(&self, key: RateKey, count: usize) -> Result<(), OverRate> {
        let now = Instant::now();
        let mut buckets = self.buckets.lock();
        let bucket = buckets.bucket(key, now);
        bucket.give_back_one(now);
        bucket.take(now, count)
    }
}

impl Buckets {
    fn bucket(&mut self, key: RateKey, now: Instant) -> &mut Bucket {
        let RateKey { mut owner, rate } = key;
        if !self.by_owner.contains_key(&owner) {
            self.evict_full(now);
            if matches!(owner, Owner::Address(_)) && self.by_owner.len() >= MAX_BUCKETS {
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

    /// Drops full buckets when the number of buckets has doubled since the last time. It does so at most once a second,
    /// because at the maximum number there may be no full bucket to drop.
    fn evict_full(&mut self, now: Instant) {
        let is_due = self.evicted_at.is_none_or(|last| now - last >= BURST);
        if self.by_owner.len() < self.evict_at || !is_due {
            return;
        }
        self.by_owner.retain(|_, bucket| bucket.full_at > now);
        self.evict_at = (self.by_owner.len() * 2).clamp(MIN_EVICTION_THRESHOLD, MAX_BUCKETS);
        self.evicted_at = Some(now);
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
        let key = rates.key(None, None).unwrap();
        for _ in 0..3 {
            rates.take(key).unwrap();
        }
        assert_eq!(rates.take_batch(key, 11), Err(OverRate::Never(rate(10))));
        rates.take(key).unwrap();
        rates.take_batch(key, 8).unwrap();
        assert_eq!(rates.take(key), Err(OverRate::Wait(Duration::from_millis(100))));
        tokio::time::advance(Duration::from_millis(100)).await;
        rates.take(key).unwrap();
        let wait = Duration::from_millis(100);
        assert_eq!(rates.take_batch(key, 2), Err(OverRate::Wait(wait)), "one was returned");
        tokio::time::advance(wait).await;
        rates.take(key).unwrap();
        rates.take_batch(key, 2).unwrap();
        tokio::time::advance(BURST).await;
        rates.take(key).unwrap();
        rates.take_batch(key, 10).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn another_rate_is_another_bucket_and_the_same_one_stays() {
        let rates = RateLimiter::new(None);
        let key = |n| RateKey { owner: Owner::UnixSockets, rate: rate(n) };
        rates.take(key(1)).unwrap();
        assert!(rates.take(key(1)).is_err());
        rates.take(key(2)).unwrap();
        assert!(rates.key(None, None).is_none(), "no rate is set");
    }

    #[tokio::test(start_paused = true)]
    async fn buckets_are_kept_while_tokens_are_missing_and_are_bounded() {
        let rates = RateLimiter::new(Some(rate(1)));
        let key = |n: u32| rates.key(None, Some(IpAddr::V4(n.into()))).unwrap();
        let count = u32::try_from(MAX_BUCKETS).unwrap();
        for n in 0..count {
            rates.take(key(n)).unwrap();
        }
        rates.take(key(count)).unwrap();
        assert!(rates.take(key(count + 1)).is_err(), "further addresses share a bucket");
        assert!(rates.take(key(0)).is_err());
        rates.take(rates.key(None, None).unwrap()).unwrap();
        assert_eq!(rates.buckets.lock().by_owner.len(), MAX_BUCKETS + 2);
        tokio::time::advance(BURST).await;
        rates.take(key(count + 1)).unwrap();
        assert_eq!(rates.buckets.lock().by_owner.len(), 1, "the others are full again");
    }
}
