//! What a subscriber has seen of a topic, and whether that is what it should have seen.

use std::collections::HashMap;

use msgbus_core::Message;

use super::{
    Soak,
    books::{Book, Books},
    claims::Claim,
    keys::Keys,
    payload::{self, Origin},
    topics::Topic,
    transport::{Item, Transport},
    wire::Head,
};

/// An own subscription that is there now, for comparison with what the server says of it.
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub(super) claim: Claim,
    pub(super) topic: String,
    pub(super) epoch: u64,
    /// The first id that was asked for.
    pub(super) start: u64,
    /// On this connection.
    pub(super) received: u64,
    /// The next id if nothing is missed; `None` where ids do not come.
    pub(super) next: Option<u64>,
}

/// One subscription, over all its connections.
#[derive(Debug)]
pub(super) struct Track {
    pub(super) topic: Topic,
    pub(super) transport: Transport,
    /// Of the connection that there is now.
    pub(super) claim: Claim,
    /// Epoch and next id, once they are known.
    pub(super) place: Option<(u64, u64)>,
    /// What each publisher said last.
    sequences: HashMap<u64, u64>,
}

impl Track {
    pub(super) fn new(topic: Topic, transport: Transport, claim: Claim) -> Self {
        Self { topic, transport, claim, place: None, sequences: HashMap::new() }
    }

    /// Notes where the server says that the reading starts, on a connection that it calls `name`.
    pub(super) fn begin(&mut self, soak: &Soak, head: &Head, name: &str) {
        let mut books = soak.books.borrow_mut();
        let topic = self.topic.name();
        let (Some(epoch), Some(next)) =
            (head.number("msgbus-epoch"), head.number("msgbus-next-id"))
        else {
            return books.check(Book::Answers, false, || format!("{topic}: no place is told"));
        };
        let missed = head.number("msgbus-missed").unwrap_or(0);
        let start = next.saturating_sub(missed);
        let restarted = head.has("msgbus-restarted");
        if let Some((old, expected)) = self.place {
            let is_right = if restarted {
                epoch != old && start == 0
            } else {
                // A topic that was never published to goes with its last follower: the next one of its
                // name has begun anew for nobody.
                (epoch, start) == (old, expected) || (expected, start) == (0, 0) && epoch > old
            };
            books.check(Book::Subscriptions, is_right, || {
                format!(
                    "{topic}: resumed at {expected} of {old}, it starts at {start} of {epoch}, \
                     restarted: {restarted}"
                )
            });
        }
        self.may_miss(&mut books, missed);
        // Websockets leave the gap to the ids; in streams it comes again as an event.
        self.place = Some((epoch, start));
        let next = self.transport.has_ids().then_some(start);
        let claim = self.claim;
        let live = Live { topic: topic.to_owned(), claim, epoch, start, received: 0, next };
        soak.live.borrow_mut().insert(name.to_owned(), live);
    }

    /// Notes what has come.
    pub(super) fn take(&mut self, soak: &Soak, name: &str, item: Item) {
        let mut books = soak.books.borrow_mut();
        match item {
            Item::Message(message) => {
                self.take_message(&soak.keys.borrow(), &mut books, &message);
                books.received += 1;
            }
            Item::Payload(payload) => {
                self.check_payload(&soak.keys.borrow(), &mut books, &payload);
                books.received += 1;
            }
            Item::Gap(count) => {
                books.count("messages missed, and told so", count);
                self.may_miss(&mut books, count);
                if let Some((_, next)) = &mut self.place {
                    *next += count;
                }
                return self.show(soak, name, 0);
            }
            Item::Ping(_) | Item::End | Item::Revoked | Item::Other => return,
        }
        self.show(soak, name, 1);
    }

    /// Lets others see how far this is, after so many more messages.
    fn show(&self, soak: &Soak, name: &str, messages: u64) {
        if let Some(live) = soak.live.borrow_mut().get_mut(name) {
            live.received += messages;
            live.next = self.place.map(|(_, next)| next).filter(|_| live.next.is_some());
        }
    }

    fn take_message(&mut self, keys: &Keys, books: &mut Books, message: &Message) {
        let topic = self.topic.name();
        let (epoch, next) = self.place.unwrap_or_default();
        let id = message.id();
        books.check(Book::Order, id >= next, || {
            format!("{topic}, epoch {epoch}: #{id} after #{}", next.saturating_sub(1))
        });
        let gap = id.saturating_sub(next);
        if self.transport.tells_gaps() {
            books.check(Book::Subscriptions, gap == 0, || {
                format!("{topic}: #{id} instead of #{next}, and nothing was said")
            });
        }
        let named = message.topic().name.as_str();
        books.check(Book::Payloads, named == topic, || format!("#{id} of {named} came in {topic}"));
        self.may_miss(books, gap);
        self.place = Some((epoch, id + 1));
        if let Some(origin) = self.check_payload(keys, books, message.payload()) {
            books.check(Book::Payloads, origin.describes(message), || {
                let said = (message.content_type(), message.content_encoding());
                format!("#{id} of {named}: {said:?} instead of {:?}", origin.described)
            });
        }
    }

    /// Nothing leaves a topic that is kept.
    fn may_miss(&self, books: &mut Books, missed: u64) {
        if self.topic.is_kept() {
            let topic = self.topic.name();
            books.check(Book::Subscriptions, missed == 0, || {
                format!("{missed} messages of {topic} were missed, which keeps all")
            });
        }
    }

    fn check_payload(&mut self, keys: &Keys, books: &mut Books, payload: &[u8]) -> Option<Origin> {
        let topic = self.topic.name();
        let origin = payload::read(payload, topic);
        books.check(Book::Payloads, origin.is_some(), || {
            let begin = &payload[..payload.len().min(60)];
            format!("following {topic}: {}", String::from_utf8_lossy(begin))
        });
        let origin = origin?;
        keys.check_message(books, &self.claim, origin, topic);
        let last = self.sequences.insert(origin.publisher, origin.sequence);
        books.check(Book::Order, last.is_none_or(|last| last < origin.sequence), || {
            format!(
                "{topic}: message {} of publisher {} after its {last:?}",
                origin.sequence, origin.publisher
            )
        });
        Some(origin)
    }
}
