//! Topics and groups as operators see them.

use std::{collections::BTreeMap, sync::Arc};

use async_nats::jetstream::consumer::pull;
use futures_util::StreamExt as _;
use msgbus_core::{
    GroupName, TopicName,
    engine::{Begin, EngineError, EngineGroup, EngineGroupSettings, EngineTopics, Unsettled},
};

use crate::{
    connection::{Connection, Known},
    consumers::{
        CREATE, Found, change, claim, config, consumer_name, description, end_claim, find,
        find_or_create, keep,
    },
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

async fn find_group(
    connection: &Connection,
    topic: &TopicName,
    group: &GroupName,
) -> Result<Option<Arc<Found>>, EngineError> {
    let known = connection.stream().await?;
    find(connection, &known, &consumer_name(&connection.subject(topic), Some(group)), true).await
}

pub(crate) async fn group(
    connection: Arc<Connection>,
    topic: TopicName,
    group: GroupName,
) -> Result<Option<EngineGroup>, EngineError> {
    let found = find_group(&connection, &topic, &group).await?;
    Ok(found.map(|found| {
        let info = found.consumer.cached_info();
        let unacked = info.num_ack_pending as u64;
        EngineGroup { pending: info.num_pending, unacked, settings: found.settings() }
    }))
}

/// The server only knows up to which message all are acknowledged, and up to which they were given.
pub(crate) async fn unsettled(
    connection: Arc<Connection>,
    topic: TopicName,
    group: GroupName,
) -> Result<Option<Unsettled>, EngineError> {
    let found = find_group(&connection, &topic, &group).await?;
    Ok(found.map(|found| {
        let info = found.consumer.cached_info();
        let is_settled = info.num_ack_pending == 0;
        let last = if is_settled { &info.delivered } else { &info.ack_floor };
        Unsettled { given: Vec::new(), next: last.stream_sequence + 1 }
    }))
}

/// How often a group is made that others make at the same time.
const MAX_TRIES: usize = 3;

pub(crate) async fn set_group(
    connection: Arc<Connection>,
    topic: TopicName,
    group: GroupName,
    from: Option<Begin>,
) -> Result<bool, EngineError> {
    let known = connection.stream().await?;
    let name = consumer_name(&connection.subject(&topic), Some(&group));
    if from.is_none() {
        let fetch = (Begin::First, CREATE);
        let found = find(&connection, &known, &name, true).await?;
        match &found {
            Some(found) => keep(&connection, &known, found).await?,
            None => {
                find_or_create(&connection, &known, &topic, Some(&group), fetch).await?;
            }
        }
        return Ok(found.is_none());
    }
    // Workers that wait must not make the group again where they say.
    let claim = claim(&connection, &known, &name).await?;
    let before = find(&connection, &known, &name, true).await?;
    let settings = before.map(|found| found.settings()).unwrap_or_default();
    let config = config(&connection, &known, &topic, Some(&group), from.unwrap_or(Begin::First));
    let description = Some(description(&topic, Some(&group), &settings));
    let moved =
        make_again(&connection, &known, &name, pull::Config { description, ..config }).await;
    end_claim(&connection, &known, &name, Some(&claim)).await;
    moved
}

/// Makes a consumer in place of the one that there is: where one begins cannot be changed. Returns whether it is new.
async fn make_again(
    connection: &Connection,
    known: &Known,
    name: &str,
    config: pull::Config,
) -> Result<bool, EngineError> {
    let (mut is_there, mut left) = (false, MAX_TRIES);
    loop {
        let deleted = delete(connection, known, name).await;
        is_there |= deleted.map_err(|error| if is_there { EngineError::Unknown } else { error })?;
        left -= 1;
        match known.stream.create_consumer(config.clone()).await {
            Ok(_) => return Ok(!is_there),
            Err(error) => match change_error(&error) {
                // Another node may have made it meanwhile.
                EngineError::Unavailable if left > 0 => {}
                // The group is gone.
                _ if is_there => return Err(EngineError::Unknown),
                error => return Err(error),
            },
        }
    }
}

pub(crate) async fn change_group(
    connection: Arc<Connection>,
    topic: TopicName,
    group: GroupName,
    changed: EngineGroupSettings,
) -> Result<(), EngineError> {
    let known = connection.stream().await?;
    let name = consumer_name(&connection.subject(&topic), Some(&group));
    let found = find(&connection, &known, &name, true).await?.ok_or(EngineError::Unavailable)?;
    let mut settings = found.settings();
    settings.change(changed);
    let text = description(&topic, Some(&group), &settings);
    let changing = change(&connection, &known, &found, |config| config.description = Some(text));
    changing.await.map_err(|error| change_error(&error))
}

pub(crate) async fn remove_group(
    connection: Arc<Connection>,
    topic: TopicName,
    group: GroupName,
) -> Result<bool, EngineError> {
    let known = connection.stream().await?;
    let name = consumer_name(&connection.subject(&topic), Some(&group));
    let deleted = delete(&connection, &known, &name).await?;
    end_claim(&connection, &known, &name, None).await;
    Ok(deleted)
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
