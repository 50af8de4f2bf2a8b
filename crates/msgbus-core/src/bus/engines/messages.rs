//! Publishing to topics in engines, and reading their messages.

use super::SharedEngine;
use crate::{
    bus::{clock, op::Op},
    engine::{Begin, EngineError, EngineMessage, Page, Receipt, Unsettled},
    error::{DeleteError, PublishError},
    model::{
        Event, GroupName, Message, NewMessage, Peek, Position, PublishedBatch, StartPosition,
        TopicName,
    },
    options::BatchLimit,
    store::{Durability, StoreError},
};

impl SharedEngine {
    pub(in crate::bus) fn publish(
        &self,
        topic: &TopicName,
        messages: Vec<NewMessage>,
    ) -> Op<Result<PublishedBatch, PublishError>> {
        let (engine, topic) = (self.clone(), topic.clone());
        Op::running(async move {
            let published = engine.call(|engine| engine.publish(&topic, messages)).await;
            let Receipt { epoch, first, last } = published.map_err(StoreError::from)?;
            Ok(PublishedBatch { epoch, ids: first..last + 1, durability: Durability::Engine })
        })
    }

    pub(in crate::bus) fn delete(&self, topic: &TopicName) -> Op<Result<bool, DeleteError>> {
        let (engine, topic) = (self.clone(), topic.clone());
        Op::running(async move {
            let deleted = engine.call(|engine| engine.delete(&topic)).await;
            deleted.map_err(|error| DeleteError::Refused(error.into()))
        })
    }

    pub(in crate::bus) fn peek(
        &self,
        topic: &TopicName,
        from: Option<Position>,
        limit: BatchLimit,
    ) -> Op<Result<Option<Peek>, StoreError>> {
        let Some(from) = from else {
            // Nothing shows what a consumer of an engine gets next without taking it.
            return Op::ready(Err(self.unsupported("show what was not pulled").into()));
        };
        let (engine, topic) = (self.clone(), topic.clone());
        Op::running(async move {
            if engine.call(|engine| engine.stats(&topic)).await?.is_none() {
                return Ok(None);
            }
            let (page, start) = history(&engine, &topic, from, limit).await?;
            let info = engine.info(&topic, page.epoch);
            let mut events = Vec::new();
            for read in page.messages {
                if read.skipped != Some(0) && !events.is_empty() {
                    let count = read.skipped.unwrap_or(0);
                    events.push(Event::Missed { count, next_id: read.message.id });
                }
                events.push(Message::recovered(&info, read.message).into());
            }
            Ok(Some(Peek { events, epoch: page.epoch, start }))
        })
    }
}

impl SharedEngine {
    /// What a group has not acknowledged.
    pub(in crate::bus) fn peek_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
        limit: BatchLimit,
    ) -> Op<Result<Option<Peek>, StoreError>> {
        let (engine, topic, group) = (self.clone(), topic.clone(), group.clone());
        Op::running(async move {
            let known =
                engine.call(|engine| engine.unsettled(&topic, &group, limit.events)).await?;
            if known.is_none() && engine.call(|engine| engine.stats(&topic)).await?.is_none() {
                return Ok(None);
            }
            let Unsettled { given, next } = known.unwrap_or_default();
            let mut given = given.into_iter().filter(|id| *id < next).peekable();
            let (mut events, mut bytes, mut at) = (Vec::new(), 0, 0);
            let floor = given.peek().copied().unwrap_or(next);
            loop {
                let from = Begin::Sequence(given.peek().copied().unwrap_or(next).max(at));
                let page = engine.call(|engine| engine.history(&topic, from, limit)).await?;
                let (epoch, info) = (page.epoch, engine.info(&topic, page.epoch));
                let is_end = page.messages.is_empty();
                for EngineMessage { message, .. } in page.messages {
                    while given.next_if(|id| *id < message.id).is_some() {}
                    let is_open = message.id >= next || given.next_if_eq(&message.id).is_some();
                    if is_open && events.len() < limit.events && bytes < limit.bytes.max(1) {
                        bytes += message.payload.len();
                        events.push(Event::from(Message::recovered(&info, message)));
                    }
                }
                at = page.next;
                if is_end || events.len() >= limit.events || bytes >= limit.bytes.max(1) {
                    let start = StartPosition {
                        requested_id: floor,
                        next_id: floor,
                        missed: 0,
                        is_uncounted: false,
                        restarted: false,
                    };
                    return Ok(Some(Peek { events, epoch, start }));
                }
            }
        })
    }
}

/// Where an engine begins. What depends on the time is decided now.
impl From<Position> for Begin {
    fn from(position: Position) -> Self {
        match position {
            Position::New => Self::Next,
            Position::Id(id) => Self::Sequence(id),
            Position::After { id, .. } => Self::Sequence(id.saturating_add(1)),
            Position::At(time) => Self::Time(time),
            Position::Ago(ago) => Self::Time(clock::now().wall.before(ago.into()).into()),
            Position::All | Position::Start { .. } => Self::First,
        }
    }
}

/// Reads the first page from a position on, and finds out where that is.
pub(crate) async fn history(
    engine: &SharedEngine,
    topic: &TopicName,
    from: Position,
    limit: BatchLimit,
) -> Result<(Page, StartPosition), EngineError> {
    let read = |from: Begin| engine.call(move |engine| engine.history(topic, from, limit));
    let epoch = match from {
        Position::After { epoch, .. } | Position::Start { epoch } => Some(epoch),
        _ => None,
    };
    let start = match from {
        // What is gone before the first message counts.
        Position::Start { .. } => Begin::Sequence(0),
        from => from.into(),
    };
    let mut page = read(start).await?;
    let wanted = match start {
        Begin::Sequence(wanted) => Some(wanted),
        _ => None,
    };
    let is_other_epoch = epoch.is_some_and(|epoch| epoch != page.epoch);
    let restarted = is_other_epoch || wanted.is_some_and(|wanted| wanted > page.next);
    if restarted {
        page = read(Begin::First).await?;
    }
    let next_id = page.messages.first().map_or(page.next, |read| read.message.id);
    let skipped = page.messages.first().map_or(page.skipped, |read| read.skipped);
    let requested_id = wanted.filter(|_| !restarted).unwrap_or(next_id);
    let (missed, is_uncounted) = (skipped.unwrap_or(0), skipped.is_none());
    let start = StartPosition { requested_id, next_id, missed, is_uncounted, restarted };
    Ok((page, start))
}
