//! Topics and groups as operators see them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use msgbus_core::{
    GroupName, TopicName,
    engine::{Begin, EngineError, EngineGroup, EngineGroupSettings, EngineTopics, Unsettled},
};
use redis::{Cmd, RedisError, Value};

use crate::{
    connection::{Connection, Shared},
    error::Request,
    groups::{random, settings},
    history::begin,
    keys::{Keys, group_name},
    link::Link,
    message::{Answer, next},
    script::Script,
};

/// The server goes through all of its keys, in no order. No more than wanted are kept.
pub(crate) async fn topics(
    connection: Arc<Connection>,
    prefix: String,
    after: String,
    max: usize,
) -> Result<EngineTopics, EngineError> {
    /// How many more are looked at, because some may have no messages.
    const MORE: usize = 64;
    let shared = &connection.shared;
    let link = shared.link()?;
    let (mut topics, mut after) = (BTreeMap::new(), after);
    loop {
        let most = max.saturating_add(MORE);
        let (names, is_all) = names(shared, &link, &prefix, &after, most).await?;
        let counts = counts(shared, &link, &names).await?;
        after = names.last().map(ToString::to_string).unwrap_or_default();
        topics.extend(names.into_iter().zip(counts).filter(|(_, count)| *count > 0));
        if is_all || topics.len() > max {
            let has_more = topics.len() > max;
            return Ok(EngineTopics { topics: topics.into_iter().take(max).collect(), has_more });
        }
    }
}

/// The first names that begin with `prefix` and come after `after`, and whether there are no more.
async fn names(
    shared: &Shared,
    link: &Link,
    prefix: &str,
    after: &str,
    most: usize,
) -> Result<(BTreeSet<TopicName>, bool), EngineError> {
    let pattern = Keys::pattern_of_streams(&shared.options.prefix, prefix);
    let (mut names, mut is_all, mut cursor) = (BTreeSet::new(), true, 0);
    loop {
        let mut command = redis::cmd("SCAN");
        command.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(1000);
        let mut connection = link.connection.clone();
        let found: Result<(u64, Vec<String>), RedisError> =
            command.query_async(&mut connection).await;
        let found = found.map_err(|error| shared.failed(link, &error, Request::Harmless))?;
        let topics = found.1.iter().filter_map(|key| Keys::topic_of(&shared.options.prefix, key));
        for name in topics.filter(|name| name.as_str() > after) {
            names.insert(name);
            if names.len() > most {
                names.pop_last();
                is_all = false;
            }
        }
        cursor = found.0;
        if cursor == 0 {
            return Ok((names, is_all));
        }
    }
}

/// How many messages each topic has.
async fn counts(
    shared: &Shared,
    link: &Link,
    names: &BTreeSet<TopicName>,
) -> Result<Vec<u64>, EngineError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut commands = redis::pipe();
    for name in names {
        commands.cmd("XLEN").arg(shared.keys(name).stream());
    }
    let counts = commands.query_async(&mut link.connection.clone()).await;
    counts.map_err(|error| shared.failed(link, &error, Request::Harmless))
}

pub(crate) async fn group(
    connection: Arc<Connection>,
    topic: TopicName,
    group: GroupName,
) -> Result<Option<EngineGroup>, EngineError> {
    let shown = act(&connection.shared, SHOW, &topic, &group, None, NOTHING).await?;
    let mut parts = shown.list()?.into_iter();
    if next(&mut parts)?.number()? == 0 {
        return Ok(None);
    }
    let (pending, unacked) = (next(&mut parts)?.number()?, next(&mut parts)?.number()?);
    let settings = settings(next(&mut parts)?)?;
    Ok(Some(EngineGroup { pending, unacked, settings }))
}

pub(crate) async fn unsettled(
    connection: Arc<Connection>,
    topic: TopicName,
    group: GroupName,
    max: usize,
) -> Result<Option<Unsettled>, EngineError> {
    // Where a group begins is a number, too.
    let most = Some(Begin::Sequence(max as u64));
    let answer = act(&connection.shared, UNSETTLED, &topic, &group, most, NOTHING).await?;
    let mut parts = answer.list()?.into_iter();
    if next(&mut parts)?.number()? == 0 {
        return Ok(None);
    }
    let (start, given) = (next(&mut parts)?.number()?, next(&mut parts)?.list()?);
    let given = given.into_iter().map(Answer::number).collect::<Result<_, _>>()?;
    Ok(Some(Unsettled { given, next: start }))
}

pub(crate) async fn set_group(
    connection: Arc<Connection>,
    topic: TopicName,
    group: GroupName,
    from: Option<Begin>,
) -> Result<bool, EngineError> {
    Ok(!existed(act(&connection.shared, "set", &topic, &group, from, NOTHING).await?)?)
}

pub(crate) async fn change_group(
    connection: Arc<Connection>,
    topic: TopicName,
    group: GroupName,
    change: EngineGroupSettings,
) -> Result<(), EngineError> {
    let answer = act(&connection.shared, "change", &topic, &group, None, change).await?;
    // Somebody has removed it meanwhile.
    if existed(answer)? { Ok(()) } else { Err(EngineError::Unavailable) }
}

pub(crate) async fn remove_group(
    connection: Arc<Connection>,
    topic: TopicName,
    group: GroupName,
) -> Result<bool, EngineError> {
    existed(act(&connection.shared, "remove", &topic, &group, None, NOTHING).await?)
}

fn existed(answer: Value) -> Result<bool, EngineError> {
    Ok(next(&mut answer.list()?.into_iter())?.number()? == 1)
}

/// The actions that change nothing.
const SHOW: &str = "show";
const UNSETTLED: &str = "unsettled";
/// What is not changed.
const NOTHING: EngineGroupSettings =
    EngineGroupSettings { max_deliveries: None, dead_letters: None };

async fn act(
    shared: &Shared,
    action: &str,
    topic: &TopicName,
    group: &GroupName,
    from: Option<Begin>,
    change: EngineGroupSettings,
) -> Result<Value, EngineError> {
    let (link, keys) = (shared.link()?, shared.keys(topic));
    let group = group_name(Some(group));
    let group_secret = random();
    let arguments = |command: &mut Cmd| {
        command.arg(action).arg(&*link.run).arg(&shared.secret).arg(&group).arg(&group_secret);
        match from {
            Some(from) => begin(from, command),
            None => drop(command.arg("").arg("")),
        }
        command
            .arg(shared.options.keep_ms())
            .arg(keys.max_age_ms(&shared.options))
            .arg(keys.channel());
        let EngineGroupSettings { max_deliveries, dead_letters } = &change;
        command.arg(max_deliveries.map_or_else(String::new, |most| most.to_string()));
        command.arg(dead_letters.as_ref().map_or("", TopicName::as_str));
    };
    let names = [keys.topic(), keys.stream(), keys.due(&group)];
    let is_harmless = [SHOW, UNSETTLED].contains(&action);
    let request = if is_harmless { Request::Harmless } else { Request::Final };
    shared.run(&link, Script::Group, &names, request, arguments).await
}
