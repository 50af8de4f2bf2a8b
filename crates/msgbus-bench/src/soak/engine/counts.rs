//! What the engine itself counts.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use super::{
    cluster::Cluster,
    topics::{Queue, Topic},
};
use crate::{compare::peers::ask, engines::EngineKind};

const TIMEOUT: Duration = Duration::from_secs(10);

/// How many messages the engine has of a topic.
pub(super) fn messages(cluster: &Cluster, topic: Topic) -> anyhow::Result<u64> {
    match cluster.kind {
        EngineKind::Nats => {
            let subject = subject(topic);
            let request = format!("{{\"subjects_filter\":\"{subject}\"}}");
            let info = stream_info(cluster, topic.prefix(), &request)?;
            Ok(info["state"]["subjects"][subject].as_u64().unwrap_or(0))
        }
        EngineKind::Redis => {
            let length = redis::cmd("XLEN").arg(key(topic)).query(&mut connection(cluster)?);
            length.context("XLEN")
        }
    }
}

/// How many messages a group has given and not got back.
pub(super) fn unacked(cluster: &Cluster, queue: Queue) -> anyhow::Result<u64> {
    match cluster.kind {
        EngineKind::Nats => {
            let response = ask(
                cluster.engine_address,
                &format!("$JS.API.CONSUMER.LIST.{}", queue.topic.prefix()),
                "{\"offset\":0}",
            )?;
            let list: Value = serde_json::from_slice(&response)?;
            let consumers = list["consumers"].as_array().context("no list of consumers")?;
            let is_of_group = |one: &&Value| {
                let config = &one["config"];
                let description = config["description"].as_str().unwrap_or_default();
                let has_group = queue.group.is_none_or(|group| description.contains(group));
                config["ack_policy"] == "explicit"
                    && config["filter_subject"] == *subject(queue.topic)
                    && has_group
            };
            let groups = consumers.iter().filter(is_of_group);
            Ok(groups.filter_map(|one| one["num_ack_pending"].as_u64()).sum())
        }
        EngineKind::Redis => {
            let group = queue.group.map_or("pull".to_owned(), |group| format!("group:{group}"));
            let pending: (u64, redis::Value, redis::Value, redis::Value) = redis::cmd("XPENDING")
                .arg(key(queue.topic))
                .arg(group)
                .query(&mut connection(cluster)?)
                .context("XPENDING")?;
            Ok(pending.0)
        }
    }
}

fn stream_info(cluster: &Cluster, stream: &str, request: &str) -> anyhow::Result<Value> {
    let response = ask(cluster.engine_address, &format!("$JS.API.STREAM.INFO.{stream}"), request)?;
    Ok(serde_json::from_slice(&response)?)
}

/// The subject of a topic. See docs/engines.md.
fn subject(topic: Topic) -> String {
    let name = topic.name().replace('%', "%25").replace('.', "%2E").replace('/', ".");
    format!("{}.{name}", topic.prefix())
}

/// The key of the messages of a topic. See docs/engines.md.
fn key(topic: Topic) -> String {
    format!("{{{}:{}}}:stream", topic.prefix(), topic.name())
}

fn connection(cluster: &Cluster) -> anyhow::Result<redis::Connection> {
    let client = redis::Client::open(cluster.kind.url(cluster.engine_address))?;
    let connection = client.get_connection_with_timeout(TIMEOUT).context("redis-server")?;
    connection.set_read_timeout(Some(TIMEOUT))?;
    Ok(connection)
}
