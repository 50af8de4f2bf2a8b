//! The commands `topics`, `info`, `purge`, `rm` and `ping`.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use msgbus_client::{
    Client, ClientError, Message, Position, PullOptions, SubscriberDetails, TopicDetails,
    TopicName, TopicSummary,
};
use msgbus_core::format_duration;
use serde::Serialize;
use tokio::{
    select,
    time::{Instant, sleep, timeout},
};

use crate::{
    args::{Info, Ping, Purge, Rm, Topics},
    failure::{Exit, Failure},
    groups,
    output::{note, print, printable},
    pull::RETRY_AFTER,
    signals::Stop,
};

/// How many topics are inspected at the same time.
pub(crate) const CONCURRENCY: usize = 16;

pub(crate) async fn list(args: Topics) -> Result<Exit, Failure> {
    let topics = match &args.pattern {
        Some(pattern) => args.client.topics_matching(pattern).await?,
        None => args.client.topics(&args.prefix).await?,
    };
    let details = if args.groups { inspect(&args.client, &topics).await? } else { Vec::new() };
    if args.json && args.groups {
        print(&details.iter().map(details_line).collect::<String>())?;
    } else if args.json {
        let known = ["name", "engine", "retained"];
        let line = |topic: &TopicSummary| known_line(topic, topic.engine.is_some(), &known);
        print(&topics.iter().map(line).collect::<String>())?;
    } else {
        let head = ["TOPIC", "MESSAGES", "TO PULL", "BYTES", "SUBSCRIBERS", "PUBLISHED", "MISSED"];
        let mut text = table(head, topics.iter().map(row));
        if args.groups {
            let groups = details.iter().flat_map(|details| &details.groups);
            text.push_str(&format!("\n{}", groups::summary(groups, false)));
        }
        print(&text)?;
    }
    if args.groups && !args.quiet && topics.iter().any(|topic| topic.engine.is_some()) {
        note("groups of topics in an engine are not listed; see msgbus group TOPIC GROUP");
    }
    Ok(Exit::Done)
}

/// Describes topics, without those that were deleted meanwhile.
async fn inspect(client: &Client, topics: &[TopicSummary]) -> Result<Vec<TopicDetails>, Failure> {
    let names = topics.iter().filter_map(|topic| topic.name.parse::<TopicName>().ok());
    let details = stream::iter(names)
        .map(async |name| client.inspect(&name).await)
        .buffered(CONCURRENCY)
        .try_collect::<Vec<_>>();
    Ok(details.await?.into_iter().flatten().collect())
}

fn row(topic: &TopicSummary) -> [String; 7] {
    // Nobody counts them in an engine.
    let count = |count: u64| topic.engine.as_ref().map_or(count.to_string(), |_| "-".to_owned());
    [
        printable(&topic.name),
        topic.retained.to_string(),
        count(topic.unpulled),
        count(topic.bytes),
        count(topic.subscribers),
        count(topic.published),
        count(topic.missed),
    ]
}

/// Topic details as a line of JSON.
fn details_line(details: &TopicDetails) -> String {
    let known = ["name", "engine", "epoch", "first_id", "next_id", "retained", "subscribers"];
    known_line(details, details.topic.engine.is_some(), &known)
}

/// A line of JSON. Of a topic or group in an engine it has only what is known.
pub(crate) fn known_line(value: &impl Serialize, is_in_engine: bool, known: &[&str]) -> String {
    if !is_in_engine {
        return json_line(value);
    }
    let mut value = serde_json::to_value(value).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|name, _| known.contains(&name.as_str()));
    }
    json_line(&value)
}

pub(crate) async fn info(args: Info) -> Result<Exit, Failure> {
    let Some(details) = args.client.inspect(&args.topic).await? else {
        return Err(Failure::Other(format!("no such topic: {}", args.topic)));
    };
    if args.json {
        print(&details_line(&details))?;
        return Ok(Exit::Done);
    }
    let mut text = describe(&details);
    let groups = &details.groups;
    if !groups.is_empty() {
        text.push_str(&format!("\n{}", groups::summary(groups.iter(), true)));
        let leases = groups::leases(&args.client, &args.topic, groups).await?;
        if !leases.is_empty() {
            text.push_str(&format!("\n{leases}"));
        }
    }
    print(&text)?;
    Ok(Exit::Done)
}

fn describe(details: &TopicDetails) -> String {
    let topic = &details.topic;
    if let Some(engine) = &topic.engine {
        return lines(&[
            ("topic", printable(&topic.name)),
            ("engine", printable(engine)),
            ("epoch", topic.epoch.clone()),
            ("ids", format!("{} up to, not including, {}", topic.first_id, topic.next_id)),
            ("messages", topic.retained.to_string()),
            ("subscribers", format!("{} at this server", topic.subscribers)),
        ]);
    }
    let ttl = match topic.ttl {
        0 => "unlimited".to_owned(),
        nanoseconds => format_duration(Duration::from_nanos(nanoseconds)),
    };
    let mut text = lines(&[
        ("topic", printable(&topic.name)),
        ("created", topic.created.clone()),
        ("epoch", topic.epoch.clone()),
        ("ttl", ttl),
        ("bounds", bounds(details)),
        ("ids", format!("{} up to, not including, {}", topic.first_id, topic.next_id)),
        ("messages", format!("{}, {} of them to pull", topic.retained, topic.unpulled)),
        ("bytes", topic.bytes.to_string()),
        ("published", topic.published.to_string()),
        ("pulled", topic.pulled.to_string()),
        ("delivered", format!("{}, {} missed", topic.delivered, topic.missed)),
        ("expired", format!("{}, {} never pulled", topic.expired, topic.expired_unpulled)),
        ("evicted", format!("{}, {} never pulled", topic.evicted, topic.evicted_unpulled)),
        ("waiting to pull", topic.waiters.to_string()),
        ("subscribers", topic.subscribers.to_string()),
    ]);
    if !details.subscriptions.is_empty() {
        let head = ["PEER", "NEXT ID", "RECEIVED", "MISSED", "LAG"];
        text.push('\n');
        text.push_str(&table(head, details.subscriptions.iter().map(subscriber)));
    }
    text
}

fn bounds(details: &TopicDetails) -> String {
    let TopicDetails { max_messages, max_bytes, overflow, .. } = details;
    format!("{max_messages} messages, {max_bytes} bytes, then {overflow}")
}

fn subscriber(subscription: &SubscriberDetails) -> [String; 5] {
    [
        subscription.peer.clone().unwrap_or_default(),
        subscription.next_id.to_string(),
        subscription.received.to_string(),
        subscription.missed.to_string(),
        subscription.lag.to_string(),
    ]
}

/// Prints topic names for completions. Ignores errors, which would disturb the command line.
pub(crate) async fn names(args: Topics) -> Result<Exit, Failure> {
    const MAX: usize = 200;
    const TIME: Duration = Duration::from_secs(1);
    if let Ok(Ok(topics)) = timeout(TIME, args.client.first_topics(&args.prefix, MAX)).await {
        let names = topics.iter().flat_map(|topic| [topic.name.as_str(), "\n"]);
        print(&names.collect::<String>())?;
    }
    Ok(Exit::Done)
}

/// Pulls and discards messages up to the id that was next at the start.
pub(crate) async fn purge(args: Purge, mut stop: Stop) -> Result<Exit, Failure> {
    const BATCH: usize = 10_000;
    let (client, topic) = (&args.client, &args.topic);
    // Without the permission to peek, the end is unknown: pull until the topic is empty.
    let seen = client.peek(topic, Some(Position::New), 1).await;
    let end = seen.ok().and_then(|seen| seen.next_id).unwrap_or(u64::MAX);
    let options = PullOptions { max: Some(BATCH), wait: None };
    let mut purged = 0;
    loop {
        let messages = select! {
            biased;
            messages = pull(client, topic, options) => messages?,
            () = stop.requested() => break,
        };
        purged += messages.len();
        if messages.last().is_none_or(|last| last.id().saturating_add(1) >= end) {
            break;
        }
    }
    if !args.quiet {
        print(&format!("{purged} messages discarded\n"))?;
    }
    Ok(Exit::Done)
}

async fn pull(
    client: &Client,
    topic: &TopicName,
    options: PullOptions,
) -> Result<Vec<Message>, Failure> {
    Ok(match client.begin_pull(topic, options).await? {
        Some(pulled) => pulled.messages().await?,
        None => Vec::new(),
    })
}

pub(crate) async fn ping(args: Ping) -> Result<Exit, Failure> {
    let time = loop {
        match args.client.ping().await {
            Ok(time) => break time,
            Err(error)
                if (error.is_unreachable() || matches!(error, ClientError::Busy { .. }))
                    && args.deadline > Some(Instant::now() + RETRY_AFTER) =>
            {
                sleep(RETRY_AFTER).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    if !args.quiet {
        let millis = time.as_secs_f64() * 1e3;
        print(&format!("{} answered in {millis:.1} ms\n", args.client.server()))?;
    }
    Ok(Exit::Done)
}

pub(crate) async fn remove(args: Rm) -> Result<Exit, Failure> {
    if args.client.delete(&args.topic).await? {
        Ok(Exit::Done)
    } else {
        Err(Failure::Other(format!("no such topic: {}", args.topic)))
    }
}

/// Formats names and values, a line each.
pub(crate) fn lines(values: &[(&str, String)]) -> String {
    let line =
        |(name, value): &(&str, String)| format!("{name:<16} {value}").trim_end().to_owned() + "\n";
    values.iter().map(line).collect()
}

pub(crate) fn json_line(value: &impl Serialize) -> String {
    // These types have string keys and nothing that can fail.
    let mut line = serde_json::to_string(value).unwrap_or_default();
    line.push('\n');
    line
}

/// Formats a table: the first column is left-aligned, numbers are right-aligned.
pub(crate) fn table<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(rows);
    let width = |column: usize| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default()
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for line in &lines {
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            match column {
                0 => text.push_str(&format!("{cell:<width$}")),
                _ => text.push_str(&format!("  {cell:>width$}")),
            }
        }
        text.push('\n');
    }
    text
}
