//! What clients were told, and the books that are checked with it.

use std::{collections::BTreeMap, ops::RangeInclusive};

use super::ids::IdSet;

/// A book: something that has to hold each time it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Book {
    Topics,
    Pulls,
    Bus,
    Published,
    Pulled,
    Subscriptions,
    Order,
    Payloads,
    Answers,
    StillAllowed,
    NotAllowed,
    Reloads,
    GivenBack,
    Descriptors,
    Memory,
    End,
}

impl Book {
    pub(super) const ALL: [Self; 16] = [
        Self::Topics,
        Self::Pulls,
        Self::Bus,
        Self::Published,
        Self::Pulled,
        Self::Subscriptions,
        Self::Order,
        Self::Payloads,
        Self::Answers,
        Self::StillAllowed,
        Self::NotAllowed,
        Self::Reloads,
        Self::GivenBack,
        Self::Descriptors,
        Self::Memory,
        Self::End,
    ];

    /// What it says.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Topics => "of a topic, published = retained + expired + evicted",
            Self::Pulls => "published = pulled + unpulled + what left unpulled",
            Self::Bus => "of the bus, published = retained + expired + evicted + deleted",
            Self::Published => "what publishers were told is what was published, no id twice",
            Self::Pulled => "each id is pulled once at most, and as often as the server says",
            Self::Subscriptions => {
                "of a subscription, received + missed = published since its start"
            }
            Self::Order => "ids rise, and so do the messages of each publisher",
            Self::Payloads => "payloads are whole, of their topic, and with what was said of them",
            Self::Answers => "each request is answered, and as the contract says",
            Self::StillAllowed => "who may by the keys is let in, and not ended by a reload",
            Self::NotAllowed => {
                "who may not is refused, and gets nothing published after the reload"
            }
            Self::Reloads => "each reload of the keys takes effect, or is said to be a mistake",
            Self::GivenBack => "without topics, nothing is set aside and nobody subscribes",
            Self::Descriptors => "open files of the server are as many as before",
            Self::Memory => "memory of the server is what it was after the first round",
            Self::End => "the server stops in order",
        }
    }
}

/// How a book stands.
#[derive(Debug, Default)]
pub(super) struct Standing {
    pub(super) checks: u64,
    pub(super) faults: u64,
    /// The first few.
    pub(super) examples: Vec<String>,
}

/// Numbers of messages that are known, but for some.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Count {
    pub(super) told: u64,
    /// How many more there may be: those of requests that were cut.
    pub(super) unknown: u64,
}

impl Count {
    pub(super) fn range(self) -> RangeInclusive<u64> {
        self.told..=self.told + self.unknown
    }

    fn add(&mut self, other: Self) {
        self.told += other.told;
        self.unknown += other.unknown;
    }
}

/// What clients know of one topic name in this round.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// By epoch, the ids that publishers were told.
    told: BTreeMap<u64, IdSet>,
    /// By creation of the topic in nanoseconds, which is what a message tells, the ids pulled.
    pulled: BTreeMap<u64, IdSet>,
    unknown_published: u64,
    unknown_pulled: u64,
}

impl Known {
    /// What was published to one life of the topic, and the end of the ids that were told.
    pub(super) fn published(&self, epoch: u64) -> (Count, u64) {
        let told = self.told.get(&epoch);
        let count = Count { told: told.map_or(0, IdSet::len), unknown: self.unknown_published };
        (count, told.map_or(0, IdSet::end))
    }

    /// What was pulled from one life of the topic.
    pub(super) fn pulled(&self, created: u64) -> (Count, u64) {
        let pulled = self.pulled.get(&created);
        let count = Count { told: pulled.map_or(0, IdSet::len), unknown: self.unknown_pulled };
        (count, pulled.map_or(0, IdSet::end))
    }
}

/// Everything that clients know.
#[derive(Debug, Default)]
pub(super) struct Books {
    standings: BTreeMap<Book, Standing>,
    tally: BTreeMap<&'static str, u64>,
    topics: BTreeMap<String, Known>,
    published: Count,
    pulled: Count,
    /// What all subscribers have received.
    pub(super) received: u64,
}

impl Books {
    const EXAMPLES: usize = 5;

    /// Looks at a book once more. `what` says what is wrong, if it `holds` not.
    pub(super) fn check(&mut self, book: Book, holds: bool, what: impl FnOnce() -> String) {
        let standing = self.standings.entry(book).or_default();
        standing.checks += 1;
        if !holds {
            standing.faults += 1;
            if standing.examples.len() < Self::EXAMPLES {
                standing.examples.push(what());
            }
        }
    }

    pub(super) fn standing(&self, book: Book) -> Option<&Standing> {
        self.standings.get(&book)
    }

    /// Whether nothing was wrong so far.
    pub(super) fn are_sound(&self) -> bool {
        self.standings.values().all(|standing| standing.faults == 0)
    }

    /// Whether each of them was looked at, and nothing was wrong.
    pub(super) fn balance(&self) -> bool {
        self.are_sound() && Book::ALL.iter().all(|book| self.standings.contains_key(book))
    }

    /// Counts what was done, for the table.
    pub(super) fn count(&mut self, what: &'static str, times: u64) {
        *self.tally.entry(what).or_default() += times;
    }

    pub(super) fn tally(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.tally.iter().map(|(what, times)| (*what, *times))
    }

    pub(super) fn known(&self, topic: &str) -> Option<&Known> {
        self.topics.get(topic)
    }

    fn know(&mut self, topic: &str) -> &mut Known {
        self.topics.entry(topic.to_owned()).or_default()
    }

    /// A publisher was told these ids.
    pub(super) fn told(&mut self, topic: &str, epoch: u64, ids: RangeInclusive<u64>) {
        for id in ids {
            let is_new = self.know(topic).told.entry(epoch).or_default().insert(id);
            self.published.told += u64::from(is_new);
            self.check(Book::Published, is_new, || {
                format!("{topic}, epoch {epoch}: two messages are #{id}")
            });
        }
    }

    /// A publish of so many messages had no answer.
    pub(super) fn may_have_published(&mut self, topic: &str, count: u64) {
        self.know(topic).unknown_published += count;
        self.published.add(Count { told: 0, unknown: count });
    }

    /// A puller has got a message.
    pub(super) fn pulled(&mut self, topic: &str, created: u64, id: u64) {
        let is_new = self.know(topic).pulled.entry(created).or_default().insert(id);
        self.pulled.told += u64::from(is_new);
        self.check(Book::Pulled, is_new, || format!("{topic}: #{id} was pulled twice"));
    }

    /// A pull of up to so many messages had no answer.
    pub(super) fn may_have_pulled(&mut self, topic: &str, count: u64) {
        self.know(topic).unknown_pulled += count;
        self.pulled.add(Count { told: 0, unknown: count });
    }

    /// What was published in all rounds.
    pub(super) fn all_published(&self) -> Count {
        self.published
    }

    /// What was pulled in all rounds.
    pub(super) fn all_pulled(&self) -> Count {
        self.pulled
    }

    /// All topics are gone: what comes now has other epochs.
    pub(super) fn forget_topics(&mut self) {
        self.topics.clear();
    }
}
