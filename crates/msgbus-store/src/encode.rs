//! Encodes what was appended to topics.

use std::{collections::HashMap, io, sync::Arc, time::Instant};

use msgbus_core::{
    Message,
    store::{Gap, GroupChange, Promise, Record},
};

use crate::{
    batch::GroupPlace,
    buffer::Queued,
    format::{GroupRecord, TopicRecord, group, record},
    groups::WrittenGroup,
    index::Location,
    tail::Tail,
    topic::{Progress, Topic, Written},
    writer::Writer,
};

/// Encodes one record. Fails when there is no room, or the disk fails. The caller takes everything back then.
pub(crate) fn encode(writer: &mut Writer, queued: &Queued, now: Instant) -> io::Result<()> {
    let topic = &queued.topic;
    let progress = &mut *topic.progress.lock();
    let touched = writer.batch.touch(topic, progress);
    touched.ticket = Some(queued.ticket);
    if matches!(queued.record, Record::Deleted) {
        touched.is_deleted = true;
        if progress.written.number.is_none() {
            return Ok(());
        }
    }
    let is_new = progress.written.number.is_none();
    let number = *progress.written.number.get_or_insert_with(|| {
        writer.last_number = free_number(writer.last_number, &writer.topics);
        writer.last_number
    });
    let mut log = TopicLog { tail: &mut writer.tail, topic, progress, number };
    match &queued.record {
        Record::Messages(messages) => {
            if log.reserve(queued.state.next_id, now) && !is_new {
                // Before anybody sees the ids, it must be certain that they are never given again. Those of a new topic
                // are lost with the topic.
                touched.waits_for_sync = true;
                log.mention(false)?;
            }
            log.add_messages(messages, &mut writer.batch.locations)?;
        }
        Record::Pulled => {
            log.put(true, |out, seed| {
                record::encode_pulled(out, seed, number, &queued.state);
            })?;
        }
        Record::Group { number: group, change } => {
            let place = log.change_group(*group, change)?;
            writer.batch.groups.push(place);
        }
        Record::Deleted => {
            log.put(true, |out, seed| record::encode_deleted(out, seed, number))?;
            log.progress.groups.clear();
        }
    }
    log.progress.written.state = queued.state;
    log.progress.written.is_dirty = true;
    Ok(())
}

/// The number of the next topic. Numbers begin again at 1 after the last one.
fn free_number(last: u32, topics: &HashMap<u32, Arc<Topic>>) -> u32 {
    let mut number = last;
    loop {
        number = number.checked_add(1).unwrap_or(1);
        if !topics.contains_key(&number) {
            return number;
        }
    }
}

/// Adds records of one topic to the log.
#[derive(Debug)]
pub(crate) struct TopicLog<'a> {
    pub(crate) tail: &'a mut Tail,
    pub(crate) topic: &'a Topic,
    pub(crate) progress: &'a mut Progress,
    pub(crate) number: u32,
}

impl TopicLog<'_> {
    /// Adds a record. If it is the topic's first one in its segment, a topic record comes before it.
    pub(crate) fn put(
        &mut self,
        is_small: bool,
        encode: impl Fn(&mut Vec<u8>, u32),
    ) -> io::Result<Location> {
        loop {
            if self.progress.written.mentioned_in != Some(self.tail.number()) {
                self.mention(is_small)?;
            }
            match self.tail.push(&encode) {
                Ok(place) => return Ok(place),
                Err(size) => {
                    let record = record_of(self.topic, self.progress);
                    self.tail.switch(size + record.size(), is_small)?;
                }
            }
        }
    }

    /// Adds messages, and notes where they are.
    fn add_messages(&mut self, messages: &[Message], places: &mut Vec<Location>) -> io::Result<()> {
        let number = self.number;
        for message in messages {
            self.note_id(message.id());
            places.push(self.put(false, |out, seed| {
                record::encode_message(out, seed, number, message);
            })?);
            let state = &mut self.progress.written.state;
            state.next_id = message.id() + 1;
            state.appended += 1;
        }
        Ok(())
    }

    /// Adds a change to a group.
    fn change_group(&mut self, group: u8, change: &GroupChange) -> io::Result<GroupPlace> {
        let number = self.number;
        let encode = |out: &mut Vec<u8>, seed| {
            record::encode_group_change(out, seed, number, group, change);
        };
        if !group::is_within_limits(group, change) {
            return Err(io::Error::other("a change to a group is beyond the limits"));
        }
        let place = match change {
            GroupChange::Update(_) => self.put_of_group(group, encode)?,
            GroupChange::Set(_) | GroupChange::Removed => {
                let place = self.put(true, encode)?;
                GroupPlace { place, size: self.tail.offset() - place.offset() }
            }
        };
        let groups = &mut self.progress.groups;
        let written = match change {
            GroupChange::Set(kept) => Some(WrittenGroup::new(kept, place.place.segment)),
            GroupChange::Update(update) => groups.get(group).cloned().map(|mut written| {
                written.group.next_id = update.next_id;
                written.group.counters = update.counters;
                written
            }),
            GroupChange::Removed => None,
        };
        groups.set(group, written);
        Ok(place)
    }

    /// Adds a record of a group that the log has. If it is the group's first one in its segment, the group's name and
    /// settings come before it.
    pub(crate) fn put_of_group(
        &mut self,
        group: u8,
        encode: impl Fn(&mut Vec<u8>, u32),
    ) -> io::Result<GroupPlace> {
        loop {
            let mentioned_in = self.progress.groups.get(group).map(|written| written.mentioned_in);
            if mentioned_in != Some(self.tail.number()) {
                self.mention_group(group)?;
            }
            match self.tail.push(&encode) {
                Ok(place) => {
                    return Ok(GroupPlace { place, size: self.tail.offset() - place.offset() });
                }
                Err(size) => {
                    let record = record_of(self.topic, self.progress);
                    self.tail.switch(size + record.size() + GroupRecord::MAX_SIZE, true)?;
                }
            }
        }
    }

    /// Adds the name and settings of a group that the log has.
    pub(crate) fn mention_group(&mut self, group: u8) -> io::Result<()> {
        let number = self.number;
        let Some(mut written) = self.progress.groups.get(group).cloned() else {
            // The log must not have an update of a group that it does not know.
            return Err(io::Error::other("a group is updated before it is set"));
        };
        let place = self.put(true, |out, seed| {
            record::encode_group_continued(out, seed, number, group, &written.group);
        })?;
        written.mentioned_in = place.segment;
        self.progress.groups.set(group, Some(written));
        Ok(())
    }

    /// Adds a topic record.
    pub(crate) fn mention(&mut self, is_small: bool) -> io::Result<()> {
        let released = self.topic.index.lock().released();
        let state = &mut self.progress.written.state;
        state.first_id = state.first_id.max(released.min(state.next_id));
        loop {
            let (topic, number) = (record_of(self.topic, self.progress), self.number);
            match self.tail.push(|out, seed| record::encode_topic(out, seed, number, &topic)) {
                Ok(_) => break,
                Err(size) => self.tail.switch(size, is_small)?,
            }
        }
        let written = &mut self.progress.written;
        written.mentioned_in = Some(self.tail.number());
        written.is_dirty = false;
        Ok(())
    }

    /// Reserves ids if those up to `next_id` are not. Returns whether they were not.
    fn reserve(&mut self, next_id: u64, now: Instant) -> bool {
        let written = &mut self.progress.written;
        let is_seen_early = matches!(written.promise, Promise::Written { .. } | Promise::Memory);
        let extends = is_seen_early && next_id > written.reservation.up_to;
        if extends {
            written.reservation.extend(next_id, now);
        }
        extends
    }

    /// Notes a gap before this id, if there is one.
    fn note_id(&mut self, id: u64) {
        let state = self.progress.written.state;
        if id > state.next_id {
            self.progress.gaps.push(Gap { id, appended: state.appended });
        }
    }
}

fn record_of<'a>(topic: &'a Topic, progress: &'a Progress) -> TopicRecord<'a> {
    let Written { promise, state, reservation, .. } = progress.written;
    TopicRecord::new(&topic.info, promise, state, reservation.up_to, &progress.gaps)
}
