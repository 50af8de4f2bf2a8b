//! What the records of a log amount to.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use msgbus_core::{
    TopicInfo,
    store::{Gap, KeptGroup, KeptMessage, Promise, TopicState},
};

use super::groups::ReplayedGroups;
use crate::{
    format::{DecodeError, LogRecord, MessageRecord, TopicRecord},
    index::{Index, Location},
    segments::{Segment, Segments},
    tail::BootId,
    topic::{Progress, Reservation, Topic, Written},
};

/// Applies records in the order of the log.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) topics: HashMap<u32, ReplayedTopic>,
    /// Topics whose names this version does not allow.
    refused: HashMap<u32, String>,
    /// Whether messages are kept, or only their places.
    keeps_messages: bool,
    pub(crate) last_number: u32,
    pub(crate) records: u64,
    /// What the machine was running in the last run.
    pub(crate) boot: Option<BootId>,
    /// The last record says that the run ended cleanly.
    pub(crate) is_stopped: bool,
}

/// A topic as the records so far say.
#[derive(Debug)]
pub(crate) struct ReplayedTopic {
    pub(crate) info: TopicInfo,
    promise: Promise,
    reserved: u64,
    pub(crate) state: TopicState,
    gaps: Vec<Gap>,
    mentioned_in: u32,
    /// The state has changed without a record.
    is_dirty: bool,
    places: VecDeque<(u64, Location)>,
    messages: VecDeque<KeptMessage>,
    /// The ids rise. Copies by compaction come later than they were.
    is_sorted: bool,
    pub(super) groups: ReplayedGroups,
}

/// A topic that was found, for the bus.
#[derive(Debug)]
pub(crate) struct FoundTopic {
    pub(crate) topic: Arc<Topic>,
    pub(crate) state: TopicState,
    pub(crate) messages: Vec<KeptMessage>,
    pub(crate) groups: Vec<(u8, KeptGroup)>,
}

impl Replay {
    pub(crate) fn new(keeps_messages: bool) -> Self {
        Self {
            topics: HashMap::new(),
            refused: HashMap::new(),
            keeps_messages,
            last_number: 0,
            records: 0,
            boot: None,
            is_stopped: true,
        }
    }

    /// Applies a record of this segment. `size` is the record's, in bytes with padding.
    ///
    /// # Errors
    /// When it contradicts what came before, or itself.
    pub(crate) fn apply(
        &mut self,
        record: &LogRecord<'_>,
        segment: &Segment,
        offset: u64,
        size: usize,
    ) -> Result<(), DecodeError> {
        self.records += 1;
        self.is_stopped = matches!(record, LogRecord::Stop { .. });
        let place = Location::new(segment.number(), offset);
        match *record {
            LogRecord::Start { boot, .. } => self.boot = Some(boot),
            LogRecord::Topic { number, topic } => self.topic(number, &topic, segment.number()),
            LogRecord::Message(message) => {
                segment.messages.fetch_add(1, Relaxed);
                let keeps = self.keeps_messages;
                if let Some(topic) = self.known(message.topic)? {
                    topic.message(&message, place, keeps)?;
                }
            }
            LogRecord::Pulled { topic, pull_next, first_id, pulled } => {
                if let Some(topic) = self.known(topic)? {
                    topic.state.pull_next = pull_next;
                    topic.state.counters.pulled = pulled;
                    topic.trim(first_id);
                }
            }
            LogRecord::Group(group) => {
                let open = match self.known(group.topic)? {
                    Some(topic) => topic.groups.apply(&group, place)?,
                    None => 0,
                };
                segment.count_group_record(size as u64, open);
            }
            LogRecord::Deleted { topic } => {
                self.known(topic)?;
                self.topics.remove(&topic);
                self.refused.remove(&topic);
            }
            LogRecord::Batch { .. }
            | LogRecord::Stop { .. }
            | LogRecord::End { .. }
            | LogRecord::Hole => {}
        }
        Ok(())
    }

    /// The topic with this number, or `None` if its name is not allowed.
    fn known(&mut self, number: u32) -> Result<Option<&mut ReplayedTopic>, DecodeError> {
        match self.topics.get_mut(&number) {
            None if self.refused.contains_key(&number) => Ok(None),
            None => Err(DecodeError::Malformed),
            topic => Ok(topic),
        }
    }

    fn topic(&mut self, number: u32, record: &TopicRecord<'_>, segment: u32) {
        self.last_number = self.last_number.max(number);
        self.refused.remove(&number);
        let Ok(info) = record.info() else {
            self.topics.remove(&number);
            self.refused.insert(number, record.name.to_owned());
            return;
        };
        // After very many topics, a number is used again.
        if self.topics.get(&number).is_some_and(|known| known.info != info) {
            self.topics.remove(&number);
        }
        let topic = self.topics.entry(number).or_insert_with(|| ReplayedTopic::new(info));
        topic.promise = record.promise;
        topic.reserved = record.reserved;
        topic.mentioned_in = segment;
        topic.gaps = record.gaps().into_owned();
        let first_id = topic.state.first_id.max(record.state.first_id);
        topic.state = record.state;
        topic.trim(first_id);
    }

    /// The names of topics that this version does not allow.
    pub(crate) fn refused_names(&self) -> Vec<String> {
        self.refused.values().cloned().collect()
    }

    /// Ends the replay: after a power cut, leaves out the ids that somebody may have seen; drops all but the newest
    /// topic of each name.
    pub(crate) fn finish(&mut self, after_power_cut: bool) {
        let mut newest: HashMap<_, (u64, u32)> = HashMap::new();
        for (number, topic) in &self.topics {
            let entry =
                newest.entry(topic.info.name.clone()).or_insert((topic.info.epoch, *number));
            *entry = (*entry).max((topic.info.epoch, *number));
        }
        self.topics.retain(|number, topic| {
            newest.get(&topic.info.name).is_some_and(|(_, newest)| newest == number)
        });
        for topic in self.topics.values_mut() {
            topic.finish(after_power_cut);
        }
    }
}

impl ReplayedTopic {
    fn new(info: TopicInfo) -> Self {
        Self {
            info,
            promise: Promise::Memory,
            reserved: 0,
            state: TopicState::default(),
            gaps: Vec::new(),
            mentioned_in: 0,
            is_dirty: false,
            places: VecDeque::new(),
            messages: VecDeque::new(),
            is_sorted: true,
            groups: ReplayedGroups::default(),
        }
    }

    fn message(
        &mut self,
        message: &MessageRecord<'_>,
        place: Location,
        keeps: bool,
    ) -> Result<(), DecodeError> {
        let id = message.id;
        let state = &mut self.state;
        // First, so that a record that cannot be read changes nothing.
        let (kept, next_id) = (message.keep()?, id.checked_add(1).ok_or(DecodeError::Malformed)?);
        if id >= state.next_id {
            if id > state.next_id {
                self.gaps.push(Gap { id, appended: state.appended });
            }
            state.next_id = next_id;
            state.appended = state.appended.saturating_add(1);
        }
        if id < state.first_id {
            return Ok(());
        }
        self.is_sorted &= self.places.back().is_none_or(|(last, _)| *last < id);
        self.places.push_back((id, place));
        if keeps {
            self.messages.push_back(kept);
        }
        Ok(())
    }

    /// Forgets the messages below an id.
    fn trim(&mut self, first_id: u64) {
        self.state.first_id = self.state.first_id.max(first_id);
        let first_id = self.state.first_id;
        while self.is_sorted && self.places.front().is_some_and(|(id, _)| *id < first_id) {
            self.places.pop_front();
            self.messages.pop_front();
        }
    }

    fn finish(&mut self, after_power_cut: bool) {
        let first_id = self.state.first_id;
        if !self.is_sorted {
            sort_and_keep_last(&mut self.places, |(id, _)| *id, first_id);
            sort_and_keep_last(&mut self.messages, |message| message.id, first_id);
        }
        let next_id = self.state.next_id;
        self.state.first_id = self.places.front().map_or(next_id, |(id, _)| *id);
        let is_seen_early = self.promise != Promise::Synced;
        if after_power_cut && is_seen_early && self.reserved > next_id {
            let appended = self.state.appended;
            self.gaps.push(Gap { id: self.reserved, appended });
            self.state.next_id = self.reserved;
            self.is_dirty = true;
            if self.places.is_empty() {
                self.state.first_id = self.reserved;
            }
        }
        self.groups.trim(self.state.first_id);
        self.gaps.dedup_by(|later, earlier| {
            // A run without messages only makes the gap longer.
            let same = later.appended == earlier.appended;
            earlier.id = if same { later.id } else { earlier.id };
            same
        });
    }

    /// The topic with this number. What is needed of it is counted in its segments.
    pub(crate) fn into_topic(mut self, number: u32, segments: &Segments) -> FoundTopic {
        let mut index = self.take_index(segments);
        let (groups, kept_groups) = self.groups.into_parts(segments, &mut index.open);
        if let Some(segment) = segments.get(self.mentioned_in) {
            segment.topics.fetch_add(1, Relaxed);
        }
        let written = Written {
            number: Some(number),
            promise: self.promise,
            mentioned_in: Some(self.mentioned_in),
            state: self.state,
            is_dirty: self.is_dirty,
            reservation: Reservation::new(self.reserved),
            gaps: self.gaps.len(),
        };
        let progress = Progress { written, gaps: self.gaps, groups, touched: (0, 0) };
        let topic = Arc::new(Topic::recovered(Arc::new(self.info), progress, index, None));
        let messages = self.messages.into();
        FoundTopic { topic, state: self.state, messages, groups: kept_groups }
    }

    /// The places of the messages, which are counted in their segments.
    fn take_index(&mut self, segments: &Segments) -> Index {
        let mut index = Index::default();
        index.release(self.state.first_id, |_| {});
        for (id, place) in std::mem::take(&mut self.places) {
            if index.push(id, place)
                && let Some(segment) = segments.get(place.segment)
            {
                segment.live.fetch_add(1, Relaxed);
            }
        }
        index
    }

    /// How many messages there are.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }
}

/// Orders by id, keeps the last one of each id, and drops those below `first_id`.
fn sort_and_keep_last<T>(list: &mut VecDeque<T>, id: impl Fn(&T) -> u64, first_id: u64) {
    list.make_contiguous().sort_by_key(&id);
    let mut sorted: Vec<T> = std::mem::take(list).into();
    sorted.reverse();
    sorted.dedup_by_key(|item| id(item));
    sorted.reverse();
    sorted.retain(|item| id(item) >= first_id);
    *list = sorted.into();
}
