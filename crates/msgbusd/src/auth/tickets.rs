//! Tickets: a web page uses one instead of a key where it cannot send headers.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Principal, secret};

/// The time in which a ticket can be redeemed.
pub(crate) const TICKET_LIFETIME: Duration = Duration::from_secs(30);
/// The maximum number of open tickets.
const MAX_TICKETS: usize = 10_000;
/// The maximum number of open tickets of one key, so that one client cannot use them all up.
const MAX_PER_KEY: usize = 1_000;
const PREFIX: &str = "mbt_";
/// In bytes. Too many to guess a ticket within its lifetime.
const SIZE: usize = 16;

/// The open tickets.
#[derive(Default)]
pub(super) struct Tickets(HashMap<String, Ticket>);

/// Omits the tickets: they are secrets.
impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tickets({})", self.0.len())
    }
}

#[derive(Debug)]
struct Ticket {
    principal: Arc<Principal>,
    expires_at: Instant,
}

/// The maximum number of tickets is open, or the system's random number generator failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooManyTickets;

impl Tickets {
    pub(super) fn open(
        &mut self,
        principal: Arc<Principal>,
        now: Instant,
    ) -> Result<String, TooManyTickets> {
        if self.is_full_for(&principal) {
            self.0.retain(|_, ticket| ticket.expires_at > now);
        }
        if self.is_full_for(&principal) {
            return Err(TooManyTickets);
        }
        let text = secret::random::<SIZE>(PREFIX).map_err(|_| TooManyTickets)?;
        self.0.insert(text.clone(), Ticket { principal, expires_at: now + TICKET_LIFETIME });
        Ok(text)
    }

    fn is_full_for(&self, principal: &Principal) -> bool {
        let is_own = |ticket: &&Ticket| ticket.principal.key == principal.key;
        // Counting visits all tickets, so it is done only when the result can matter.
        let own = || self.0.values().filter(is_own).count();
        self.0.len() >= MAX_TICKETS || (self.0.len() >= MAX_PER_KEY && own() >= MAX_PER_KEY)
    }

    /// Removes a ticket. Returns its principal if it has not expired.
    pub(super) fn redeem(&mut self, text: &str, now: Instant) -> Option<Arc<Principal>> {
        let Ticket { principal, expires_at } = self.0.remove(text)?;
        Some(principal).filter(|_| now < expires_at)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Hash, *};

    #[test]
    fn a_ticket_is_single_use_and_expires() {
        let principal = Arc::new(Principal { key: None, grants: Vec::new(), publish_rate: None });
        let (mut tickets, now) = (Tickets::default(), Instant::now());
        let once = tickets.open(Arc::clone(&principal), now).unwrap();
        let late = tickets.open(Arc::clone(&principal), now).unwrap();
        assert!(tickets.redeem(&once, now + TICKET_LIFETIME - Duration::from_nanos(1)).is_some());
        assert!(tickets.redeem(&once, now).is_none());
        assert!(tickets.redeem(&late, now + TICKET_LIFETIME).is_none());
        assert!(tickets.redeem("mbt_", now).is_none());
    }

    #[test]
    fn tickets_are_limited_per_key_and_in_total() {
        let holder = |name: String| {
            let hash = Hash::of(&name);
            Arc::new(Principal { key: Some((name, hash)), grants: Vec::new(), publish_rate: None })
        };
        let (mut tickets, now) = (Tickets::default(), Instant::now());
        for key in 0..MAX_TICKETS / MAX_PER_KEY {
            let principal = holder(key.to_string());
            for _ in 0..MAX_PER_KEY {
                tickets.open(Arc::clone(&principal), now).unwrap();
            }
            assert_eq!(tickets.open(principal, now), Err(TooManyTickets));
        }
        let other = holder("other".to_owned());
        assert_eq!(tickets.open(Arc::clone(&other), now), Err(TooManyTickets));
        let text = tickets.open(other, now + TICKET_LIFETIME).unwrap();
        assert_eq!(tickets.0.len(), 1, "expired tickets are dropped");
        assert!(!format!("{tickets:?}").contains(&text));
    }
}
