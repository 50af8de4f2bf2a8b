//! Topics and groups as operators see them.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::StreamExt as _;
use msgbus_core::{
    GroupName, TopicName,
    engine::{Begin, EngineError, EngineGroup, EngineTopics},
};

use crate::{
    connection::{Connection, Known},
    consumers::{config, consumer_name, find},
    error::{change_error, is_missing, request_error},
    subject,
};

/// The server sends all subjects, in no order. No more than wanted are kept.
pub(crate) async fn topics(
    connection: Arc<Connection>,
    prefix: String,
    after: String,
    max: usize,
) -> Result<EngineTopics, EngineError> {
    let known = connection.stream().await?;
    let own = &connection.options.prefix;
    let subjects = known.stream.info_with_subjects(format!("{own}.>")).await;
    let mut subjects = subjects.map_err(|error| request_error(&error))?;
    let (mut topics, mut has_more) = (BTreeMap::new(), false);
    while let Some(found) = subjects.next().await {
        let (subject, count) = found.map_err(|error| request_error(&error))?;
        let Some(topic) = subject::topic(own, &subject) else { continue };
        if !topic.as_str().starts_with(&prefix) || topic.as_str() <= after.as_str() {
            continue;
        }
        topics.insert(topic, count as u64);
        if topics.len() > max {
            topics.pop_last();
            has_more = true;
        }
    }
    Ok(EngineTopics { topics: topics.into_iter().collect(), has_more })
}

pub(crate) async fn group(
    connection: Arc<Connection>,
    topic: TopicName,
    group: GroupName,
) -> Result<Option<EngineGroup>, EngineError> {
    let known = connection.stream().await?;
    let name = consumer_name(&connection.subject(&topic), Some(&group));
    let found = find(&connection, &known, &name, true).await?;
    Ok(found.map(|found| {
        let info = found.consumer.cached_info();
        EngineGroup { pending: info.num_pending, unacked: info.num_ack_pending as u64 }
    }))
}

pub(crate) async fn set_group(
    connection: Arc<Connection>,
    topic: TopicName,
    group: GroupName,
    from: Option<Begin>,
) -> Result<bool, EngineError> {
    let known = connection.stream().await?;
    let name = consumer_name(&connection.subject(&topic), Some(&group));
    let is_there = match from {
        // Where a consumer begins cannot be changed.
        Some(_) => delete(&connection, &known, &name).await?,
        None => find(&connection, &known, &name, true).await?.is_some(),
    };
    if from.is_some() || !is_there {
        let config = config(&connection, &topic, Some(&group), from.unwrap_or(Begin::First));
        let created = known.stream.create_consumer(config).await;
        created.map_err(|error| match change_error(&error) {
            // The group is gone.
            _ if is_there => EngineError::Unknown,
            error => error,
        })?;
    }
    Ok(!is_there)
}

pub(crate) async fn remove_group(
    connection: Arc<Connection>,
    topic: TopicName,
    group: GroupName,
) -> Result<bool, EngineError> {
    let known = connection.stream().await?;
    let name = consumer_name(&connection.subject(&topic), Some(&group));
    delete(&connection, &known, &name).await
}

/// Returns whether there was such a consumer.
async fn delete(connection: &Connection, known: &Known, name: &str) -> Result<bool, EngineError> {
    connection.consumers.remove(name);
    match known.stream.delete_consumer(name).await {
        Ok(_) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(change_error(&error)),
    }
}
