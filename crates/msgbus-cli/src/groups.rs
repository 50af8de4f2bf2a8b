//! `msgbus group`, and groups in `topics` and `info`.

use std::ops::RangeInclusive;

use msgbus_client::{
    Client, GroupChange, GroupDetails, GroupName, GroupSummary, LeaseDetails, TopicName,
};

use crate::{
    failure::{Exit, Failure},
    output::{print, printable},
    reader::{Options, bounded, position, topic_name},
    topics::{known_line, lines, table},
};

/// The range of --max-deliveries; 0 is without limit.
const DELIVERIES: RangeInclusive<u64> = 0..=u32::MAX as u64;
/// The range of --max-leases.
const LEASES: RangeInclusive<u64> = 1..=65_536;

#[derive(Debug)]
pub(crate) struct GroupArgs {
    client: Client,
    topic: TopicName,
    group: GroupName,
    remove: bool,
    change: GroupChange,
    json: bool,
}

impl GroupArgs {
    pub(crate) fn parse(
        options: &mut Options,
        topic: TopicName,
        group: GroupName,
    ) -> Result<Self, Failure> {
        let small = |number: Option<u64>| number.and_then(|number| u32::try_from(number).ok());
        let change = GroupChange {
            since: options.value("--since", position)?,
            max_deliveries: small(
                options.value("--max-deliveries", |text| bounded(text, DELIVERIES))?,
            ),
            max_leases: small(options.value("--max-leases", |text| bounded(text, LEASES))?),
            dead_letters: options.value("--dead-letters", topic_name)?,
        };
        let (remove, json) = (options.switch("--remove"), options.switch("--json"));
        if remove && change != GroupChange::default() {
            return Err(Failure::usage("--remove does not go with settings"));
        }
        Ok(Self { client: options.client()?.0, topic, group, remove, change, json })
    }
}

pub(crate) async fn run(args: GroupArgs) -> Result<Exit, Failure> {
    let GroupArgs { client, topic, group, .. } = &args;
    let absent = || Failure::Other(format!("no such group: {group} of {topic}"));
    if args.remove {
        let existed = client.remove_group(topic, group).await?;
        return if existed { Ok(Exit::Done) } else { Err(absent()) };
    }
    let details = if args.change == GroupChange::default() {
        client.inspect_group(topic, group).await?.ok_or_else(absent)?
    } else {
        client.set_group(topic, group, &args.change).await?
    };
    let known =
        ["group", "topic", "engine", "pending", "unacked", "max_deliveries", "dead_letters"];
    print(&if args.json {
        known_line(&details, details.group.engine.is_some(), &known)
    } else {
        describe(&details)
    })?;
    Ok(Exit::Done)
}

fn describe(details: &GroupDetails) -> String {
    let group = &details.group;
    let limit = match (group.max_deliveries, &group.dead_letters) {
        (0, _) => "unlimited".to_owned(),
        (max, Some(topic)) => format!("{max}, then to {}", printable(topic)),
        (max, None) => format!("{max}, but the name of the dead-letter topic is too long"),
    };
    if let Some(engine) = &group.engine {
        return lines(&[
            ("group", group.group.clone()),
            ("topic", printable(&group.topic)),
            ("engine", printable(engine)),
            ("max deliveries", limit),
            ("pending", group.pending.to_string()),
            ("unacked", group.unacked.unwrap_or_default().to_string()),
        ]);
    }
    let mut text = lines(&[
        ("group", group.group.clone()),
        ("topic", printable(&group.topic)),
        ("max deliveries", limit),
        ("max leases", group.max_leases.to_string()),
        ("next id", group.next_id.to_string()),
        ("pending", group.pending.to_string()),
        ("leased", group.leased.to_string()),
        ("to redeliver", group.waiting.to_string()),
        ("oldest unacked", group.oldest_unacked.clone().unwrap_or_default()),
        ("delivered", format!("{}, {} again", group.delivered, group.redelivered)),
        ("acked", group.acked.to_string()),
        ("nacked", group.nacked.to_string()),
        ("leases expired", group.lease_expired.to_string()),
        (
            "dead letters",
            format!("{}, {} refused", group.dead_lettered, group.dead_letters_refused),
        ),
        ("expired", format!("{} never acked", group.expired)),
        ("evicted", format!("{} never acked", group.evicted)),
        ("waiting to pull", group.waiters.to_string()),
    ]);
    if !details.leases.is_empty() {
        text.push('\n');
        let row = |lease: &LeaseDetails| lease_row(lease);
        text.push_str(&table(LEASE_HEAD, details.leases.iter().map(row)));
    }
    text
}

const LEASE_HEAD: [&str; 5] = ["ID", "DELIVERIES", "HOLDER", "SINCE", "UNTIL"];

fn lease_row(lease: &LeaseDetails) -> [String; 5] {
    [
        lease.id.to_string(),
        lease.deliveries.to_string(),
        printable(lease.holder.as_deref().unwrap_or_default()),
        lease.since.clone(),
        lease.expires.clone(),
    ]
}

const HEAD: [&str; 7] =
    ["GROUP", "PENDING", "LEASED", "TO REDELIVER", "ACKED", "DEAD LETTERS", "OLDEST UNACKED"];

/// Formats the groups of topics as a table. With `in_topic` the topic is known.
pub(crate) fn summary<'a>(
    groups: impl Iterator<Item = &'a GroupSummary>,
    in_topic: bool,
) -> String {
    let row = |group: &GroupSummary| {
        let of = if in_topic { String::new() } else { format!(" of {}", printable(&group.topic)) };
        [
            format!("{}{of}", group.group),
            group.pending.to_string(),
            group.leased.to_string(),
            group.waiting.to_string(),
            group.acked.to_string(),
            group.dead_lettered.to_string(),
            group.oldest_unacked.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    };
    table(HEAD, groups.map(row))
}

/// Formats who holds leases of a topic, for each of its groups; empty if nobody does.
pub(crate) async fn leases(
    client: &Client,
    topic: &TopicName,
    groups: &[GroupSummary],
) -> Result<String, Failure> {
    let mut rows = Vec::new();
    for group in groups {
        let Ok(name) = group.group.parse() else { continue };
        let Some(details) = client.inspect_group(topic, &name).await? else { continue };
        rows.extend(details.leases.iter().map(|lease| {
            let [id, deliveries, holder, since, until] = lease_row(lease);
            [group.group.clone(), id, deliveries, holder, since, until]
        }));
    }
    if rows.is_empty() {
        return Ok(String::new());
    }
    let [id, deliveries, holder, since, until] = LEASE_HEAD;
    Ok(table(["LEASE OF", id, deliveries, holder, since, until], rows.into_iter()))
}
