//! What a topic must be after a crash.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use chrono::DateTime;
use msgbus_core::{
    Message, TopicInfo,
    store::{
        Promise, Record, RecoveredMessage, RecoveredTopic, StoreError, Ticket, TopicState,
        TopicStore,
    },
};

use super::{
    groups::{self, Groups},
    observer::{Observer, Told},
};

/// A topic as the bus knows it.
#[derive(Debug)]
pub(super) struct ModelTopic {
    pub(super) info: Arc<TopicInfo>,
    pub(super) promise: Promise,
    pub(super) store: Box<dyn TopicStore>,
    pub(super) observer: Arc<Observer>,
    /// What the store has said is kept.
    pub(super) committed: Known,
    /// What a power cut must not take.
    pub(super) durable: Known,
    pub(super) pending: VecDeque<(Ticket, Known)>,
    /// The most that may be found: what was refused because the disk failed may have been written.
    highest: TopicState,
    may_be_deleted: bool,
    /// The groups at the beginning, and after each change to them.
    groups: Vec<Groups>,
    /// What was appended last with each id.
    pub(super) messages: BTreeMap<u64, Message>,
    /// How many messages were appended before the one with each id.
    pub(super) ordinals: BTreeMap<u64, u64>,
}

/// How far a topic has come.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Known {
    pub(super) exists: bool,
    pub(super) is_deleted: bool,
    pub(super) state: TopicState,
    /// The number of changes to groups.
    groups: usize,
}

/// How a run has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// By a clean stop.
    Close,
    /// The process was killed.
    Kill,
    /// The machine lost its power.
    PowerCut,
}

impl ModelTopic {
    pub(super) fn new(
        info: Arc<TopicInfo>,
        promise: Promise,
        store: Box<dyn TopicStore>,
        observer: Arc<Observer>,
    ) -> Self {
        Self {
            info,
            promise,
            store,
            observer,
            committed: Known::default(),
            durable: Known::default(),
            pending: VecDeque::new(),
            highest: TopicState::default(),
            may_be_deleted: false,
            groups: vec![Groups::new()],
            messages: BTreeMap::new(),
            ordinals: BTreeMap::new(),
        }
    }

    /// The state after everything that was appended.
    pub(super) fn last_state(&self) -> TopicState {
        let (first_id, committed) = (self.committed.state.first_id, self.committed.state);
        let last = self.pending.back().map_or(committed, |(_, last)| last.state);
        TopicState { first_id, ..last }
    }

    /// The groups after everything that was appended.
    pub(super) fn last_groups(&self) -> &Groups {
        self.groups.last().expect("those at the beginning")
    }

    pub(super) fn is_being_deleted(&self) -> bool {
        self.committed.is_deleted || self.may_be_deleted
    }

    pub(super) fn append(&mut self, record: Record, state: TopicState) -> Result<(), StoreError> {
        let is_deletion = matches!(record, Record::Deleted);
        let messages = match &record {
            Record::Messages(messages) => messages.clone(),
            _ => Vec::new(),
        };
        let ordinals = state.appended - messages.len() as u64..;
        let groups = match &record {
            Record::Group { number, change } => {
                Some(groups::changed(self.last_groups(), *number, change))
            }
            _ => None,
        };
        let ticket = self.store.append(record, state)?;
        self.groups.extend(groups);
        let groups = self.groups.len() - 1;
        let known = Known { exists: true, is_deleted: is_deletion, state, groups };
        self.pending.push_back((ticket, known));
        self.may_be_deleted |= is_deletion;
        self.highest.next_id = self.highest.next_id.max(state.next_id);
        self.highest.appended = self.highest.appended.max(state.appended);
        self.highest.pull_next = self.highest.pull_next.max(state.pull_next);
        for (ordinal, message) in ordinals.zip(messages) {
            self.ordinals.insert(message.id(), ordinal);
            self.messages.insert(message.id(), message);
        }
        Ok(())
    }

    /// Applies what the store has said.
    pub(super) fn listen(&mut self) {
        for told in self.observer.take() {
            let up_to = match told {
                Told::Committed(up_to) => up_to,
                Told::Refused(error) => {
                    self.pending.clear();
                    if error == StoreError::Full {
                        // Nothing was written.
                        self.highest = self.committed.state;
                        self.may_be_deleted = false;
                        self.messages.split_off(&self.committed.state.next_id);
                        self.groups.truncate(self.committed.groups + 1);
                    }
                    continue;
                }
            };
            while let Some(&(ticket, known)) = self.pending.front()
                && ticket <= up_to
            {
                self.pending.pop_front();
                let first_id = self.committed.state.first_id;
                self.committed = Known { state: TopicState { first_id, ..known.state }, ..known };
            }
        }
    }

    /// What must be there after a run ended in this way.
    fn promised(&self, ending: Ending) -> Known {
        match (ending, self.promise) {
            (Ending::PowerCut, Promise::Written { .. } | Promise::Memory) => self.durable,
            _ => self.committed,
        }
    }

    /// Checks that a topic that was not recovered may be gone.
    pub(super) fn check_absent(&self, ending: Ending) {
        let promised = self.promised(ending);
        let must_exist = promised.exists && !self.is_being_deleted();
        assert!(!must_exist, "{} is gone: {promised:?}", self.info.name);
    }

    /// Checks a topic that was recovered.
    pub(super) fn check(
        &self,
        found: &RecoveredTopic,
        messages: &[RecoveredMessage],
        ending: Ending,
    ) {
        let promised = self.promised(ending);
        assert!(!promised.is_deleted, "{} is back", self.info.name);
        assert_eq!(found.info.name, self.info.name);
        assert_eq!(found.info.created, self.info.created);
        self.check_contents(found, messages);
        self.check_messages(found, promised.state);
        self.check_state(found, promised.state);
        let released = self.committed.state.first_id;
        groups::check(found, &self.groups[promised.groups..], released);
    }

    fn check_contents(&self, found: &RecoveredTopic, messages: &[RecoveredMessage]) {
        let ids = |messages: &[RecoveredMessage]| -> Vec<_> {
            messages.iter().map(|message| message.id).collect()
        };
        let kept: Vec<_> = found.messages.iter().map(|kept| kept.id).collect();
        assert_eq!(kept, ids(messages));
        for (kept, message) in found.messages.iter().zip(messages) {
            let appended = self.messages.get(&message.id).expect("no other messages");
            assert_eq!(&message.payload, appended.payload(), "id {}", message.id);
            assert_eq!(&message.headers, appended.headers());
            assert_eq!(message.created, appended.created());
            assert_eq!(message.expires, appended.expires());
            let never = DateTime::from_timestamp_nanos(i64::MAX);
            assert_eq!(DateTime::from_timestamp_nanos(kept.created), appended.created());
            let expires = DateTime::from_timestamp_nanos(kept.expires);
            assert_eq!(expires, appended.expires().unwrap_or(never));
            assert_eq!(kept.size, appended.accounted_size());
        }
    }

    fn check_messages(&self, found: &RecoveredTopic, promised: TopicState) {
        let ids: Vec<u64> = found.messages.iter().map(|message| message.id).collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
        for message in &found.messages {
            let run = found.gaps.iter().rev().find(|gap| gap.id <= message.id);
            let ordinal = run.map_or(message.id, |gap| gap.appended + (message.id - gap.id));
            assert_eq!(ordinal, self.ordinals[&message.id], "{:?}", found.gaps);
        }
        let first_id = self.committed.state.first_id;
        let end = ids.last().map_or(0, |last| last + 1).max(promised.next_id).max(first_id);
        for id in self.messages.range(first_id..end).map(|(id, _)| id) {
            let found = &found.state;
            assert!(ids.contains(id), "{id} is lost: {ids:?} {found:?} {self:#?}");
        }
    }

    fn check_state(&self, found: &RecoveredTopic, promised: TopicState) {
        let state = found.state;
        let first = found.messages.first().map_or(state.next_id, |message| message.id);
        assert_eq!(state.first_id, first);
        assert!(
            state.next_id >= self.committed.state.next_id,
            "ids would be given again: {state:?} {self:#?}"
        );
        let last = self.highest;
        assert!(
            (promised.appended..=last.appended).contains(&state.appended),
            "{state:?} {self:#?}"
        );
        if let Some(last) = found.messages.last() {
            assert!(state.next_id > last.id);
            if state.next_id == last.id + 1 {
                assert_eq!(state.appended, self.ordinals[&last.id] + 1);
            }
        }
        if self.promise == Promise::Synced {
            assert!(state.next_id <= last.next_id);
        }
        let pulled = promised.pull_next..=last.pull_next;
        assert!(pulled.contains(&state.pull_next), "{state:?} {self:#?}");
    }

    /// Goes on with what was recovered.
    pub(super) fn rebase(&mut self, found: RecoveredTopic) {
        self.groups = vec![found.groups.into_iter().collect()];
        self.committed = Known { exists: true, is_deleted: false, state: found.state, groups: 0 };
        self.durable = self.committed;
        self.pending.clear();
        self.highest = found.state;
        self.may_be_deleted = false;
        self.messages.retain(|id, _| found.messages.iter().any(|message| message.id == *id));
        self.store = found.store;
        self.observer = Arc::new(Observer::default());
    }
}
