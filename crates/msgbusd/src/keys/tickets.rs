//! Tickets: what a web page says in the place of a key where it can send no header.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Caller, secret};

/// How long a ticket can be used.
pub(crate) const TICKET_LIVES: Duration = Duration::from_secs(30);
/// The most that are open at a time.
const MOST: usize = 10_000;
const PREFIX: &str = "mbt_";
/// In bytes: more than can be tried in half a minute.
const SIZE: usize = 16;

/// The tickets that nobody has used yet.
#[derive(Debug, Default)]
pub(super) struct Tickets(HashMap<String, Ticket>);

#[derive(Debug)]
struct Ticket {
    of: Arc<Caller>,
    ends: Instant,
}

/// As many tickets are open as can be, or the system has no randomness to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooManyTickets;

impl Tickets {
    pub(super) fn open(&mut self, of: Arc<Caller>, now: Instant) -> Result<String, TooManyTickets> {
        if self.0.len() >= MOST {
            self.0.retain(|_, ticket| ticket.ends > now);
        }
        if self.0.len() >= MOST {
            return Err(TooManyTickets);
        }
        let text = secret::random::<SIZE>(PREFIX).map_err(|_| TooManyTickets)?;
        self.0.insert(text.clone(), Ticket { of, ends: now + TICKET_LIVES });
        Ok(text)
    }

    /// Uses a ticket up.
    pub(super) fn redeem(&mut self, text: &str, now: Instant) -> Option<Arc<Caller>> {
        let Ticket { of, ends } = self.0.remove(text)?;
        Some(of).filter(|_| now < ends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_for_once_and_not_for_long() {
        let caller = Arc::new(Caller { key: None, grants: Vec::new() });
        let (mut tickets, now) = (Tickets::default(), Instant::now());
        let once = tickets.open(Arc::clone(&caller), now).unwrap();
        let late = tickets.open(Arc::clone(&caller), now).unwrap();
        assert!(tickets.redeem(&once, now + TICKET_LIVES - Duration::from_nanos(1)).is_some());
        assert!(tickets.redeem(&once, now).is_none());
        assert!(tickets.redeem(&late, now + TICKET_LIVES).is_none());
        assert!(tickets.redeem("mbt_", now).is_none());
    }

    #[test]
    fn there_are_only_so_many_and_old_ones_make_room() {
        let caller = Arc::new(Caller { key: None, grants: Vec::new() });
        let (mut tickets, now) = (Tickets::default(), Instant::now());
        for _ in 0..MOST {
            tickets.open(Arc::clone(&caller), now).unwrap();
        }
        assert_eq!(tickets.open(Arc::clone(&caller), now), Err(TooManyTickets));
        assert!(tickets.open(caller, now + TICKET_LIVES).is_ok());
        assert_eq!(tickets.0.len(), 1);
    }
}
