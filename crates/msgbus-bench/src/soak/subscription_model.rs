//! The model of a subscription: what it should receive, compared with what it receives.

use std::{collections::HashMap, fmt};

use msgbus_core::Message;
use tokio::time::Instant;

use super::{
    Soak,
    acl_model::Access,
    invariants::{Invariant, Invariants},
    keys::Keys,
    payload::{self, Origin},
    raw_client::Head,
    topics::Topic,
    transport::{Item, Transport},
};

/// An active subscription of the soak, for comparison with what the server reports of it.
#[derive(Debug, Clone)]
pub(super) struct LiveSubscription {
    pub(super) access: Access,
    pub(super) topic: String,
    pub(super) epoch: u64,
    /// The first requested id.
    pub(super) start: u64,
    /// The messages received on this connection.
    pub(super) received: u64,
    /// The next id if nothing is missed; `None` if the transport sends no ids.
    pub(super) next: Option<u64>,
    pub(super) client: ClientState,
}

/// How a client reads a connection, for the report of a violation.
#[derive(Clone)]
pub(super) struct ClientState {
    /// The first line of its request.
    pub(super) request: String,
    pub(super) pace: ReadPace,
    /// The bytes that were read and not yet decoded, after the last read.
    pub(super) undecoded: usize,
    /// When it last read, or the phase changed.
    pub(super) last_read: Instant,
}

impl fmt::Debug for ClientState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request, pace, undecoded, last_read } = self;
        let since = last_read.elapsed();
        write!(f, "{request:?}, reads {pace:?}, last {since:?} ago, {undecoded} bytes not decoded")
    }
}

/// How a client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadPace {
    InTime,
    Slowly,
    /// Stops reading after a while.
    Stops,
}

/// A subscription across all its connections.
#[derive(Debug)]
pub(super) struct SubscriptionModel {
    pub(super) topic: Topic,
    pub(super) transport: Transport,
    pub(super) pace: ReadPace,
    /// The first line of the request of the current connection.
    pub(super) request: String,
    /// The access of the current connection.
    pub(super) access: Access,
    /// The epoch and the next id, once they are known.
    pub(super) position: Option<(u64, u64)>,
    /// The last sequence number of each publisher.
    sequences: HashMap<u64, u64>,
}

impl SubscriptionModel {
    pub(super) fn new(topic: Topic, transport: Transport, access: Access, pace: ReadPace) -> Self {
        Self {
            topic,
            transport,
            pace,
            request: String::new(),
            access,
            position: None,
            sequences: HashMap::new(),
        }
    }

    /// Checks and stores the start position that the server reports on a new connection. `name` is the
    /// address of the client.
    pub(super) fn begin(&mut self, soak: &Soak, head: &Head, name: &str) {
        let mut invariants = soak.invariants.borrow_mut();
        let topic = self.topic.name();
        let (Some(epoch), Some(next)) =
            (head.number("msgbus-epoch"), head.number("msgbus-next-id"))
        else {
            return invariants.check(Invariant::Responses, false, || {
                format!("{topic}: no start position in the response")
            });
        };
        let missed = head.number("msgbus-missed").unwrap_or(0);
        let start = next.saturating_sub(missed);
        let restarted = head.has("msgbus-restarted");
        if let Some((old, expected)) = self.position {
            let is_right = if restarted {
                epoch != old && start == 0
            } else {
                // A topic that was never published to is removed with its last subscriber. A new topic
                // of that name is not a reset.
                (epoch, start) == (old, expected) || (expected, start) == (0, 0) && epoch > old
            };
            invariants.check(Invariant::Subscriptions, is_right, || {
                format!(
                    "{topic}: resumed at id {expected} of epoch {old}, but it starts at id {start} of \
                     epoch {epoch}, restarted: {restarted}"
                )
            });
        }
        self.check_missed(&mut invariants, missed);
        // Streams report the gap again as an event; on websockets it shows only in the ids.
        self.position = Some((epoch, start));
        let next = self.transport.has_ids().then_some(start);
        let live = LiveSubscription {
            access: self.access,
            topic: topic.to_owned(),
            epoch,
            start,
            received: 0,
            next,
            client: ClientState {
                request: self.request.clone(),
                pace: self.pace,
                undecoded: 0,
                last_read: Instant::now(),
            },
        };
        soak.live.borrow_mut().insert(name.to_owned(), live);
    }

    /// Checks and records a received item.
    pub(super) fn take(&mut self, soak: &Soak, name: &str, item: Item) {
        let mut invariants = soak.invariants.borrow_mut();
        match item {
            Item::Message(message) => {
                self.take_message(&soak.keys.borrow(), &mut invariants, &message);
                invariants.received += 1;
            }
            Item::Payload(payload) => {
                self.check_payload(&soak.keys.borrow(), &mut invariants, &payload);
                invariants.received += 1;
            }
            Item::Gap(count) => {
                invariants.count("messages reported as missed", count);
                self.check_missed(&mut invariants, count);
                if let Some((_, next)) = &mut self.position {
                    *next += count;
                }
                return self.update_live(soak, name, 0);
            }
            Item::Ping(_) | Item::End | Item::Revoked | Item::Other => return,
        }
        self.update_live(soak, name, 1);
    }

    /// Updates the live subscription after `messages` more messages.
    fn update_live(&self, soak: &Soak, name: &str, messages: u64) {
        if let Some(live) = soak.live.borrow_mut().get_mut(name) {
            live.received += messages;
            live.next = self.position.map(|(_, next)| next).filter(|_| live.next.is_some());
        }
    }

    fn take_message(&mut self, keys: &Keys, invariants: &mut Invariants, message: &Message) {
        let topic = self.topic.name();
        let (epoch, next) = self.position.unwrap_or_default();
        let id = message.id();
        invariants.check(Invariant::Order, id >= next, || {
            format!("{topic}, epoch {epoch}: #{id} after #{}", next.saturating_sub(1))
        });
        let gap = id.saturating_sub(next);
        if self.transport.reports_gaps() {
            invariants.check(Invariant::Subscriptions, gap == 0, || {
                format!("{topic}: #{id} instead of #{next}, without a gap event")
            });
        }
        let named = message.topic().name.as_str();
        invariants.check(Invariant::Payloads, named == topic, || {
            format!("#{id} of {named} came in {topic}")
        });
        self.check_missed(invariants, gap);
        self.position = Some((epoch, id + 1));
        if let Some(origin) = self.check_payload(keys, invariants, message.payload()) {
            invariants.check(Invariant::Payloads, origin.describes(message), || {
                let said = (message.content_type(), message.content_encoding());
                format!("#{id} of {named}: {said:?} instead of {:?}", origin.described)
            });
        }
    }

    /// Checks that no messages of a topic that retains all messages were missed.
    fn check_missed(&self, invariants: &mut Invariants, missed: u64) {
        if self.topic.is_kept() {
            let topic = self.topic.name();
            invariants.check(Invariant::Subscriptions, missed == 0, || {
                format!("{missed} messages of {topic}, which retains all messages, were missed")
            });
        }
    }

    fn check_payload(
        &mut self,
        keys: &Keys,
        invariants: &mut Invariants,
        payload: &[u8],
    ) -> Option<Origin> {
        let topic = self.topic.name();
        let origin = payload::read(payload, topic);
        invariants.check(Invariant::Payloads, origin.is_some(), || {
            let begin = &payload[..payload.len().min(60)];
            format!("following {topic}: {}", String::from_utf8_lossy(begin))
        });
        let origin = origin?;
        keys.check_message(invariants, &self.access, origin, topic);
        let last = self.sequences.insert(origin.publisher, origin.sequence);
        invariants.check(Invariant::Order, last.is_none_or(|last| last < origin.sequence), || {
            format!(
                "{topic}: message {} of publisher {} after its {last:?}",
                origin.sequence, origin.publisher
            )
        });
        Some(origin)
    }
}
