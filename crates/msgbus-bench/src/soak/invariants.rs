//! The invariants of the soak, their state, and what clients know of messages.

use std::{collections::BTreeMap, ops::RangeInclusive};

use super::{groups::GroupRecords, ids::IdSet, services::ServiceRecords};

/// A property that must hold at every check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Invariant {
    Topics,
    Pulls,
    Bus,
    Published,
    Pulled,
    Subscriptions,
    Order,
    Payloads,
    Groups,
    Deliveries,
    Leases,
    Acks,
    DeadLetters,
    Requests,
    Replies,
    Responses,
    StillAllowed,
    NotAllowed,
    Reloads,
    Released,
    Descriptors,
    Memory,
    End,
    Told,
    Held,
    Engine,
}

impl Invariant {
    pub(super) const ALL: [Self; 23] = [
        Self::Topics,
        Self::Pulls,
        Self::Bus,
        Self::Published,
        Self::Pulled,
        Self::Subscriptions,
        Self::Order,
        Self::Payloads,
        Self::Groups,
        Self::Deliveries,
        Self::Leases,
        Self::Acks,
        Self::DeadLetters,
        Self::Requests,
        Self::Replies,
        Self::Responses,
        Self::StillAllowed,
        Self::NotAllowed,
        Self::Reloads,
        Self::Released,
        Self::Descriptors,
        Self::Memory,
        Self::End,
    ];

    /// The invariants of a soak on an engine.
    pub(super) const ON_ENGINE: [Self; 13] = [
        Self::Engine,
        Self::Published,
        Self::Pulled,
        Self::Told,
        Self::Order,
        Self::Payloads,
        Self::Held,
        Self::Acks,
        Self::Responses,
        Self::Released,
        Self::Descriptors,
        Self::Memory,
        Self::End,
    ];

    /// The invariant in words, for the report.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Topics => "topic: published = retained + expired + evicted",
            Self::Pulls => "published = pulled + unpulled + removed unpulled",
            Self::Bus => "bus: published = retained + expired + evicted + deleted",
            Self::Published => "published messages are those confirmed to publishers, no id twice",
            Self::Pulled => "each id is pulled at most once, and counts match the server's",
            Self::Subscriptions => "subscription: received + missed = published since its start",
            Self::Order => "ids rise, and so do the sequence numbers of each publisher",
            Self::Payloads => "payloads are complete, in their topic, with their attributes",
            Self::Groups => {
                "group: published = acked + dead letters + expired + evicted + still there"
            }
            Self::Deliveries => {
                "deliveries = acks + nacks + ended leases + live leases, as clients count"
            }
            Self::Leases => {
                "one live lease of a message at a time; only live leases can be settled"
            }
            Self::Acks => "each job is acknowledged once or a dead letter, none is lost",
            Self::DeadLetters => "dead letters are complete, and say where they come from",
            Self::Requests => {
                "service: asked = replied + failed + timed out + refused + given up + open"
            }
            Self::Replies => {
                "a request is served once, or again if it may be; its reply reaches its requester, once"
            }
            Self::Responses => "each request is answered according to the protocol",
            Self::StillAllowed => "permitted clients are accepted, and not ended by a reload",
            Self::NotAllowed => {
                "others are refused, and receive nothing published after the reload"
            }
            Self::Reloads => "each reload of the keys takes effect, or is reported as invalid",
            Self::Released => "without topics, the server holds no messages and no subscribers",
            Self::Descriptors => "the server has as many open files as at the start",
            Self::Memory => "the server's memory does not grow after the first round",
            Self::End => "the server stops cleanly",
            Self::Told => "a subscription receives every message, or is told of a gap",
            Self::Held => "no message is leased to two workers at once",
            Self::Engine => "the engine has what publishers were told, and no leases in the end",
        }
    }
}

/// The state of an invariant.
#[derive(Debug, Default)]
pub(super) struct InvariantState {
    pub(super) checks: u64,
    pub(super) violations: u64,
    /// The first few violations.
    pub(super) examples: Vec<String>,
}

/// A number of messages, with an uncertainty.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Count {
    pub(super) confirmed: u64,
    /// How many more there may be, because of requests that got no response.
    pub(super) unconfirmed: u64,
}

impl Count {
    pub(super) fn range(self) -> RangeInclusive<u64> {
        self.confirmed..=self.confirmed + self.unconfirmed
    }

    pub(super) fn add(&mut self, other: Self) {
        self.confirmed += other.confirmed;
        self.unconfirmed += other.unconfirmed;
    }
}

/// What clients know of a topic name in this round.
#[derive(Debug, Default)]
pub(super) struct TopicRecord {
    /// The ids confirmed to publishers, by epoch.
    confirmed: BTreeMap<u64, IdSet>,
    /// The pulled ids, by creation time of the topic in nanoseconds. Messages have that, not the epoch.
    pulled: BTreeMap<u64, IdSet>,
    unknown_published: u64,
    unknown_pulled: u64,
}

impl TopicRecord {
    /// How many messages were published to one epoch of the topic, and the end of the confirmed ids.
    pub(super) fn published(&self, epoch: u64) -> (Count, u64) {
        let confirmed = self.confirmed.get(&epoch);
        let count = Count {
            confirmed: confirmed.map_or(0, IdSet::len),
            unconfirmed: self.unknown_published,
        };
        (count, confirmed.map_or(0, IdSet::end))
    }

    /// How many messages were pulled from one epoch of the topic, and the end of their ids.
    pub(super) fn pulled(&self, created: u64) -> (Count, u64) {
        let pulled = self.pulled.get(&created);
        let count =
            Count { confirmed: pulled.map_or(0, IdSet::len), unconfirmed: self.unknown_pulled };
        (count, pulled.map_or(0, IdSet::end))
    }
}

/// The state of all invariants, and everything that clients know.
#[derive(Debug, Default)]
pub(super) struct Invariants {
    states: BTreeMap<Invariant, InvariantState>,
    actions: BTreeMap<&'static str, u64>,
    topics: BTreeMap<String, TopicRecord>,
    /// What workers know of groups in this round.
    pub(super) groups: GroupRecords,
    /// What requesters and responders know of services.
    pub(super) services: ServiceRecords,
    /// The dead letters of all rounds before.
    pub(super) dead_letters: u64,
    published: Count,
    pulled: Count,
    /// The messages received by all subscribers.
    pub(super) received: u64,
}

impl Invariants {
    const EXAMPLES: usize = 5;

    /// Records a check of an invariant. `what` describes the violation if `holds` is false.
    pub(super) fn check(
        &mut self,
        invariant: Invariant,
        holds: bool,
        what: impl FnOnce() -> String,
    ) {
        let state = self.states.entry(invariant).or_default();
        state.checks += 1;
        if !holds {
            state.violations += 1;
            if state.examples.len() < Self::EXAMPLES {
                state.examples.push(what());
            }
        }
    }

    pub(super) fn state(&self, invariant: Invariant) -> Option<&InvariantState> {
        self.states.get(&invariant)
    }

    /// Whether no invariant has been violated so far.
    pub(super) fn none_violated(&self) -> bool {
        self.states.values().all(|state| state.violations == 0)
    }

    /// Whether each of these invariants has been checked and none was violated.
    pub(super) fn all_hold(&self, all: &[Invariant]) -> bool {
        self.none_violated() && all.iter().all(|invariant| self.states.contains_key(invariant))
    }

    /// Counts an action, for the report.
    pub(super) fn count(&mut self, what: &'static str, times: u64) {
        *self.actions.entry(what).or_default() += times;
    }

    pub(super) fn actions(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.actions.iter().map(|(what, times)| (*what, *times))
    }

    pub(super) fn record(&self, topic: &str) -> Option<&TopicRecord> {
        self.topics.get(topic)
    }

    fn record_mut(&mut self, topic: &str) -> &mut TopicRecord {
        self.topics.entry(topic.to_owned()).or_default()
    }

    /// Records ids that the server confirmed to a publisher.
    pub(super) fn record_published(&mut self, topic: &str, epoch: u64, ids: RangeInclusive<u64>) {
        for id in ids {
            let is_new = self.record_mut(topic).confirmed.entry(epoch).or_default().insert(id);
            self.published.confirmed += u64::from(is_new);
            self.check(Invariant::Published, is_new, || {
                format!("{topic}, epoch {epoch}: two messages are #{id}")
            });
        }
    }

    /// Records a publish of `count` messages without a response.
    pub(super) fn may_have_published(&mut self, topic: &str, count: u64) {
        self.record_mut(topic).unknown_published += count;
        self.published.add(Count { confirmed: 0, unconfirmed: count });
    }

    /// Counts published messages of which somebody else keeps account.
    pub(super) fn count_published(&mut self, count: Count) {
        self.published.add(count);
    }

    /// Records a pulled message.
    pub(super) fn record_pulled(&mut self, topic: &str, created: u64, id: u64) {
        let is_new = self.record_mut(topic).pulled.entry(created).or_default().insert(id);
        self.pulled.confirmed += u64::from(is_new);
        self.check(Invariant::Pulled, is_new, || format!("{topic}: #{id} was pulled twice"));
    }

    /// Records a pull of up to `count` messages without a response.
    pub(super) fn may_have_pulled(&mut self, topic: &str, count: u64) {
        self.record_mut(topic).unknown_pulled += count;
        self.pulled.add(Count { confirmed: 0, unconfirmed: count });
    }

    /// The number of messages published in all rounds.
    pub(super) fn all_published(&self) -> Count {
        self.published
    }

    /// The number of messages pulled in all rounds.
    pub(super) fn all_pulled(&self) -> Count {
        self.pulled
    }

    /// Forgets all topics after they were deleted. New ones have other epochs.
    pub(super) fn forget_topics(&mut self) {
        self.topics.clear();
        self.groups = GroupRecords::default();
        self.services.forget_requests();
    }
}
