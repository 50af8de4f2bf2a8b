//! The messages of one topic.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use msgbus_core::{
    BatchLimit, GroupName,
    engine::{Begin, EngineMessage, Page},
    store::RecoveredMessage,
};

use super::groups::Group;

#[derive(Debug)]
pub(super) struct Topic {
    pub(super) next: u64,
    pub(super) messages: BTreeMap<u64, RecoveredMessage>,
    /// All that there ever were, retained or not.
    pub(super) published: Vec<(u64, Bytes)>,
    /// The ids of messages by their idempotency keys.
    pub(super) keys: HashMap<String, u64>,
    pub(super) groups: HashMap<Option<GroupName>, Group>,
}

impl Topic {
    pub(super) fn new(next: u64) -> Self {
        Self {
            next,
            messages: BTreeMap::new(),
            published: Vec::new(),
            keys: HashMap::new(),
            groups: HashMap::new(),
        }
    }

    pub(super) fn push(&mut self, message: RecoveredMessage, retain: usize) {
        self.next = message.id + 1;
        self.published.push((message.id, message.payload.clone()));
        self.messages.insert(message.id, message);
        while self.messages.len() > retain {
            self.messages.pop_first();
        }
    }

    pub(super) fn from(&self, id: u64) -> Vec<RecoveredMessage> {
        self.messages.range(id..).map(|(_, message)| message.clone()).collect()
    }

    /// How many messages with ids in this range are gone.
    pub(super) fn gone(&self, from: u64, to: u64) -> u64 {
        let first = self.published.partition_point(|(id, _)| *id < from);
        let all = self.published[first..].iter().take_while(|(id, _)| *id < to);
        all.filter(|(id, _)| !self.messages.contains_key(id)).count() as u64
    }

    /// The first id that a position asks for.
    pub(super) fn resolve(&self, from: Begin, end: u64) -> u64 {
        let first = |wanted: &dyn Fn(&RecoveredMessage) -> bool| {
            let found = self.messages.values().find(|message| wanted(message));
            found.map_or(end, |message| message.id)
        };
        match from {
            Begin::First => first(&|_| true),
            Begin::Next => end,
            Begin::Sequence(id) => id,
            Begin::Time(time) => first(&|message| message.created >= time),
        }
    }

    pub(super) fn page(
        &self,
        epoch: u64,
        from: Begin,
        limit: BatchLimit,
        end: u64,
        counts: bool,
    ) -> Page {
        let mut next = self.resolve(from, end);
        let skipped = |from: u64, to: u64| {
            let gone = self.gone(from, to);
            (counts || gone == 0).then_some(gone)
        };
        let (mut messages, mut bytes) = (Vec::new(), 0);
        for (id, message) in self.messages.range(next..) {
            if messages.len() >= limit.events.max(1) || bytes >= limit.bytes.max(1) {
                return Page { epoch, messages, next, skipped: Some(0) };
            }
            bytes += message.payload.len();
            messages.push(EngineMessage { message: message.clone(), skipped: skipped(next, *id) });
            next = id + 1;
        }
        Page { epoch, messages, next: end, skipped: skipped(next, end) }
    }
}
