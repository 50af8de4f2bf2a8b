//! A store in memory whose commits are given by the test.

use std::{
    collections::BTreeMap,
    future::{poll_fn, ready},
    mem::take,
    sync::{Arc, Mutex, Weak},
    task::Poll,
};

use msgbus_core::{
    BatchLimit, Message, TopicInfo,
    store::{
        Adopted, CommitObserver, Gap, GroupChange, KeptGroup, KeptMessage, Promise, Read, Record,
        RecoveredMessage, RecoveredTopic, Store, StoreError, Ticket, TopicState, TopicStore,
    },
};

#[derive(Debug, Default, Clone)]
pub(crate) struct Disk(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    topics: BTreeMap<usize, Topic>,
    next_topic: usize,
    queue: Vec<(usize, Ticket, Record, TopicState)>,
    last_ticket: u64,
    refusal: Option<StoreError>,
    reads: usize,
    read_error: Option<StoreError>,
}

#[derive(Debug)]
struct Topic {
    info: TopicInfo,
    promise: Promise,
    observer: Option<Weak<dyn CommitObserver>>,
    state: TopicState,
    gaps: Vec<Gap>,
    messages: BTreeMap<u64, RecoveredMessage>,
    groups: BTreeMap<u8, KeptGroup>,
}

impl Disk {
    /// Appends fail from now on, or succeed again.
    pub(crate) fn refuse_appends(&self, refusal: Option<StoreError>) {
        self.0.lock().unwrap().refusal = refusal;
    }

    /// Keeps everything that is queued, and tells the topics.
    pub(crate) fn commit(&self) {
        self.end(Ok(()));
    }

    /// Keeps nothing that is queued, and tells the topics.
    pub(crate) fn refuse(&self, error: StoreError) {
        self.end(Err(error));
    }

    /// What is left after a crash: without what is queued.
    pub(crate) fn crash(self) -> Self {
        let mut inner = self.0.lock().unwrap();
        inner.queue.clear();
        inner.refusal = None;
        drop(inner);
        self
    }

    /// Leaves out ids, as after a power cut.
    pub(crate) fn skip_ids(&self, count: u64) {
        for topic in self.0.lock().unwrap().topics.values_mut() {
            topic.state.next_id += count;
            topic.gaps.push(Gap { id: topic.state.next_id, appended: topic.state.appended });
        }
    }

    /// Changes what is kept of the only topic.
    pub(crate) fn change(
        &self,
        change: impl FnOnce(&mut TopicState, &mut BTreeMap<u64, RecoveredMessage>),
    ) {
        let mut inner = self.0.lock().unwrap();
        let topic = inner.topics.values_mut().next().unwrap();
        change(&mut topic.state, &mut topic.messages);
    }

    /// How often pages were read.
    pub(crate) fn reads(&self) -> usize {
        self.0.lock().unwrap().reads
    }

    /// Reads fail from now on, or succeed again.
    pub(crate) fn fail_reads(&self, error: Option<StoreError>) {
        self.0.lock().unwrap().read_error = error;
    }

    pub(crate) fn topics(&self) -> usize {
        self.0.lock().unwrap().topics.len()
    }

    /// The messages that are kept of all topics.
    pub(crate) fn messages(&self) -> usize {
        self.0.lock().unwrap().topics.values().map(|topic| topic.messages.len()).sum()
    }

    fn end(&self, outcome: Result<(), StoreError>) {
        let mut inner = self.0.lock().unwrap();
        let mut touched = BTreeMap::new();
        for (number, ticket, record, state) in take(&mut inner.queue) {
            let Some(topic) = inner.topics.get_mut(&number) else { continue };
            touched.insert(number, (topic.observer.clone(), ticket));
            if outcome.is_ok() {
                if matches!(record, Record::Deleted) {
                    inner.topics.remove(&number);
                } else {
                    topic.keep(record, state);
                }
            }
        }
        drop(inner);
        for (observer, ticket) in touched.into_values() {
            let Some(observer) = observer.and_then(|observer| observer.upgrade()) else { continue };
            match outcome {
                Ok(()) => observer.committed(ticket),
                Err(error) => observer.refused(error),
            }
        }
    }
}

impl Topic {
    fn keep(&mut self, record: Record, state: TopicState) {
        self.state = state;
        match record {
            Record::Messages(messages) => {
                self.messages.extend(messages.iter().map(|message| (message.id(), kept(message))));
            }
            Record::Group { number, change: GroupChange::Set(group) } => {
                self.groups.insert(number, *group);
            }
            Record::Group { number, change: GroupChange::Update(update) } => {
                self.groups.get_mut(&number).expect("a group is set first").update(&update);
            }
            Record::Group { number, change: GroupChange::Removed } => {
                self.groups.remove(&number);
            }
            Record::Pulled | Record::Deleted => {}
        }
        self.messages.retain(|id, _| *id >= state.first_id);
    }
}

fn kept(message: &Message) -> RecoveredMessage {
    RecoveredMessage {
        id: message.id(),
        created: message.created(),
        expires: message.expires(),
        headers: message.headers().clone(),
        payload: message.payload().clone(),
    }
}

fn summary(kept: &RecoveredMessage) -> KeptMessage {
    KeptMessage {
        id: kept.id,
        created: kept.created.timestamp_nanos_opt().unwrap(),
        expires: kept.expires.map_or(i64::MAX, |expires| expires.timestamp_nanos_opt().unwrap()),
        size: Message::OVERHEAD + kept.payload.len() as u64,
    }
}

impl Store for Disk {
    fn recover(&self, found: &mut dyn FnMut(RecoveredTopic) -> Adopted) -> Result<(), StoreError> {
        for (number, topic) in &mut self.0.lock().unwrap().topics {
            let adopted = found(RecoveredTopic {
                info: topic.info.clone(),
                promise: topic.promise,
                state: topic.state,
                gaps: topic.gaps.clone(),
                messages: topic.messages.values().map(summary).collect(),
                groups: topic.groups.clone().into_iter().collect(),
                store: Box::new(Kept { disk: self.clone(), number: *number }),
            });
            topic.observer = Some(adopted.observer);
            topic.promise = adopted.promise;
        }
        Ok(())
    }

    fn create(
        &self,
        info: &Arc<TopicInfo>,
        promise: Promise,
        observer: Weak<dyn CommitObserver>,
    ) -> Result<Box<dyn TopicStore>, StoreError> {
        let mut inner = self.0.lock().unwrap();
        let number = inner.next_topic;
        inner.next_topic += 1;
        let topic = Topic {
            info: TopicInfo::clone(info),
            promise,
            observer: Some(observer),
            state: TopicState::default(),
            gaps: Vec::new(),
            messages: BTreeMap::new(),
            groups: BTreeMap::new(),
        };
        inner.topics.insert(number, topic);
        Ok(Box::new(Kept { disk: self.clone(), number }))
    }

    fn close(&self) -> Result<(), StoreError> {
        self.commit();
        self.refuse_appends(Some(StoreError::Closed));
        Ok(())
    }
}

#[derive(Debug)]
struct Kept {
    disk: Disk,
    number: usize,
}

impl TopicStore for Kept {
    fn append(&self, record: Record, state: TopicState) -> Result<Ticket, StoreError> {
        let mut inner = self.disk.0.lock().unwrap();
        if let Some(error) = inner.refusal {
            return Err(error);
        }
        inner.last_ticket += 1;
        let ticket = Ticket(inner.last_ticket);
        inner.queue.push((self.number, ticket, record, state));
        Ok(ticket)
    }

    fn release(&self, first_id: u64) {
        let mut inner = self.disk.0.lock().unwrap();
        if let Some(topic) = inner.topics.get_mut(&self.number) {
            topic.messages.retain(|id, _| *id >= first_id);
        }
    }

    fn read(&self, from_id: u64, limit: BatchLimit) -> Read {
        let mut inner = self.disk.0.lock().unwrap();
        inner.reads += 1;
        if let Some(error) = inner.read_error {
            return Box::pin(ready(Err(error)));
        }
        let topic = &inner.topics[&self.number];
        // Small pages, so that readers need many.
        let count = limit.events.min(3);
        let page = topic.messages.range(from_id..).take(count).map(|(_, kept)| kept.clone());
        let mut page: Vec<_> = page.collect();
        let mut is_second = false;
        Box::pin(poll_fn(move |cx| {
            if !std::mem::replace(&mut is_second, true) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(Ok(std::mem::take(&mut page)))
        }))
    }
}
