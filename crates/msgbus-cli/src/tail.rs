//! Finds the start of the last messages of a topic, for `msgbus tail`.

use std::{collections::BTreeSet, ops::Range};

use futures_util::{StreamExt as _, stream};
use msgbus_client::{Client, Message, Position, TopicName, TopicPattern};

use crate::{failure::Failure, topics::CONCURRENCY};

/// The position of the last `count` retained messages. It cannot be computed from ids: a message that
/// expired before older ones leaves a gap.
pub(crate) async fn last(
    client: &Client,
    topic: &TopicName,
    count: u64,
) -> Result<Position, Failure> {
    let Some(details) = client.inspect(topic).await? else { return Ok(Position::All) };
    let details = details.topic;
    let (Range { start, end }, retained) = (details.first_id..details.next_id, details.retained);
    let Ok(epoch) = details.epoch.parse() else { return Ok(Position::All) };
    if retained <= count {
        return Ok(Position::before(epoch, start));
    }
    if retained == end - start {
        return Ok(Position::before(epoch, end - count));
    }
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let mut ids = Vec::new();
    let (mut begin, mut span) = (end, count as u64);
    while ids.len() < count && begin > start {
        let later = begin;
        begin = begin.saturating_sub(span).max(start);
        // Doubling the range keeps the number of requests low, even with many gaps.
        span = span.saturating_mul(2);
        let mut earlier = ids_in(client, topic, epoch, begin..later).await?;
        earlier.append(&mut ids);
        ids = earlier;
    }
    let first = ids.get(ids.len().saturating_sub(count)).copied().unwrap_or(end);
    Ok(Position::before(epoch, first))
}

/// The last `count` retained messages of all topics that match one of the patterns, the oldest first.
pub(crate) async fn last_of_many(
    client: &Client,
    patterns: &[&TopicPattern],
    count: u64,
) -> Result<Vec<Message>, Failure> {
    let limit = usize::try_from(count).unwrap_or(usize::MAX);
    let mut names = BTreeSet::new();
    for pattern in patterns {
        names.extend(client.topics_matching(pattern).await?.into_iter().map(|topic| topic.name));
    }
    let names = names.iter().filter_map(|name| name.parse::<TopicName>().ok());
    let mut lists = stream::iter(names)
        .map(async |topic| last_messages(client, &topic, count).await)
        .buffered(CONCURRENCY);
    let mut last: Vec<Message> = Vec::new();
    while let Some(messages) = lists.next().await {
        last.extend(messages?);
        // Stable, so the messages of a topic stay in order.
        last.sort_by_key(Message::created);
        last.drain(..last.len().saturating_sub(limit));
    }
    Ok(last)
}

/// The last `count` retained messages of a topic.
async fn last_messages(
    client: &Client,
    topic: &TopicName,
    count: u64,
) -> Result<Vec<Message>, Failure> {
    const PAGE: usize = 1_000;
    let mut from = last(client, topic, count).await?;
    let mut messages: Vec<Message> = Vec::new();
    while (messages.len() as u64) < count {
        let mut seen = client.peek(topic, Some(from), PAGE).await?;
        let (Some(epoch), Some(last)) = (seen.epoch, seen.messages.last()) else { break };
        from = Position::After { epoch, id: last.id() };
        messages.append(&mut seen.messages);
    }
    Ok(messages)
}

/// The ids of the retained messages in a range.
async fn ids_in(
    client: &Client,
    topic: &TopicName,
    epoch: u64,
    mut range: Range<u64>,
) -> Result<Vec<u64>, Failure> {
    const PAGE: u64 = 1_000;
    let mut ids = Vec::new();
    while !range.is_empty() {
        let page = usize::try_from((range.end - range.start).min(PAGE)).unwrap_or(usize::MAX);
        let seen = client.peek(topic, Some(Position::before(epoch, range.start)), page).await?;
        // In another epoch of the topic these ids belong to other messages.
        let Some(last) = seen.messages.last().filter(|_| seen.epoch == Some(epoch)) else { break };
        let shown = seen.messages.iter().map(Message::id);
        ids.extend(shown.filter(|id| range.contains(id)));
        range.start = last.id().saturating_add(1);
    }
    Ok(ids)
}
