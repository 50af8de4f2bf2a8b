//! Tickets: what a web page says in the place of a key where it can send no header.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Principal, secret};

/// How long a ticket can be used.
pub(crate) const TICKET_LIVES: Duration = Duration::from_secs(30);
/// The most that are open at a time.
const MOST: usize = 10_000;
/// The most of one key: its holder is not to take them all from the others.
const MOST_OF_A_KEY: usize = 1_000;
const PREFIX: &str = "mbt_";
/// In bytes: more than can be tried in half a minute.
const SIZE: usize = 16;

/// The tickets that nobody has used yet.
#[derive(Default)]
pub(super) struct Tickets(HashMap<String, Ticket>);

/// Without the tickets: who reads one may use it.
impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tickets({})", self.0.len())
    }
}

#[derive(Debug)]
struct Ticket {
    of: Arc<Principal>,
    ends: Instant,
}

/// As many tickets are open as can be, or the system has no randomness to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooManyTickets;

impl Tickets {
    pub(super) fn open(
        &mut self,
        of: Arc<Principal>,
        now: Instant,
    ) -> Result<String, TooManyTickets> {
        if self.is_full_for(&of) {
            self.0.retain(|_, ticket| ticket.ends > now);
        }
        if self.is_full_for(&of) {
            return Err(TooManyTickets);
        }
        let text = secret::random::<SIZE>(PREFIX).map_err(|_| TooManyTickets)?;
        self.0.insert(text.clone(), Ticket { of, ends: now + TICKET_LIVES });
        Ok(text)
    }

    fn is_full_for(&self, principal: &Principal) -> bool {
        let is_own = |ticket: &&Ticket| ticket.of.key == principal.key;
        // They are counted only where they can be too many.
        let own = || self.0.values().filter(is_own).count();
        self.0.len() >= MOST || (self.0.len() >= MOST_OF_A_KEY && own() >= MOST_OF_A_KEY)
    }

    /// Uses a ticket up.
    pub(super) fn redeem(&mut self, text: &str, now: Instant) -> Option<Arc<Principal>> {
        let Ticket { of, ends } = self.0.remove(text)?;
        Some(of).filter(|_| now < ends)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Hash, *};

    #[test]
    fn a_ticket_is_for_once_and_not_for_long() {
        let principal = Arc::new(Principal { key: None, grants: Vec::new(), publish_rate: None });
        let (mut tickets, now) = (Tickets::default(), Instant::now());
        let once = tickets.open(Arc::clone(&principal), now).unwrap();
        let late = tickets.open(Arc::clone(&principal), now).unwrap();
        assert!(tickets.redeem(&once, now + TICKET_LIVES - Duration::from_nanos(1)).is_some());
        assert!(tickets.redeem(&once, now).is_none());
        assert!(tickets.redeem(&late, now + TICKET_LIVES).is_none());
        assert!(tickets.redeem("mbt_", now).is_none());
    }

    #[test]
    fn a_key_has_only_so_many_and_all_of_them_too() {
        let holder = |name: String| {
            let hash = Hash::of(&name);
            Arc::new(Principal { key: Some((name, hash)), grants: Vec::new(), publish_rate: None })
        };
        let (mut tickets, now) = (Tickets::default(), Instant::now());
        for key in 0..MOST / MOST_OF_A_KEY {
            let principal = holder(key.to_string());
            for _ in 0..MOST_OF_A_KEY {
                tickets.open(Arc::clone(&principal), now).unwrap();
            }
            assert_eq!(tickets.open(principal, now), Err(TooManyTickets));
        }
        let other = holder("other".to_owned());
        assert_eq!(tickets.open(Arc::clone(&other), now), Err(TooManyTickets));
        let text = tickets.open(other, now + TICKET_LIVES).unwrap();
        assert_eq!(tickets.0.len(), 1, "old ones make room");
        assert!(!format!("{tickets:?}").contains(&text));
    }
}
