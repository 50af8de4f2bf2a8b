//! The groups of a topic: describing, creating, moving and removing them. docs/protocol.md, section 14.

use hyper::{Method, Request, StatusCode};
use msgbus_core::{GroupName, Position, TopicName};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use crate::{client::Client, error::ClientError, transport::RESPONSE_TIMEOUT};

/// A group in the description of its topic.
///
/// Of a group in an engine, the server knows only some of the fields. The others are 0 or empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
#[expect(missing_docs, reason = "docs/protocol.md, section 14, describes the fields")]
pub struct GroupSummary {
    pub group: String,
    pub topic: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// Only in an engine: messages that the group was given and has not acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unacked: Option<u64>,
    pub next_id: u64,
    /// Messages that the group was not given yet.
    pub pending: u64,
    pub leased: u64,
    /// Messages that the group was given before and will be given again.
    pub waiting: u64,
    pub delivered: u64,
    pub acked: u64,
    pub nacked: u64,
    pub lease_expired: u64,
    pub redelivered: u64,
    pub dead_lettered: u64,
    pub dead_letters_refused: u64,
    pub expired: u64,
    pub evicted: u64,
    pub oldest_unacked: Option<String>,
    /// 0 if deliveries are not limited.
    pub max_deliveries: u64,
    pub max_leases: u64,
    /// The dead-letter topic; `None` if its name would be too long.
    pub dead_letters: Option<String>,
    /// Waiting pulls.
    pub waiters: u64,
}

/// A group with its leases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GroupDetails {
    /// Settings and counters.
    #[serde(flatten)]
    pub group: GroupSummary,
    /// The oldest leases, at most 100.
    #[serde(default)]
    pub leases: Vec<LeaseDetails>,
}

/// A lease of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LeaseDetails {
    /// The id of the message.
    pub id: u64,
    /// How many times the group was given the message.
    pub deliveries: u64,
    /// The name of the key, or else the address of the client.
    pub holder: Option<String>,
    /// When the lease began.
    pub since: String,
    /// When it is over.
    pub expires: String,
}

/// What to change about a group, which is created if it does not exist. Fields that are `None` keep
/// their value, or get the default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupChange {
    /// Where the group starts. An existing group starts anew there: its leases are lost and its
    /// counters begin at 0.
    pub since: Option<Position>,
    /// After this number of deliveries a message becomes a dead letter; 0 is without limit.
    pub max_deliveries: Option<u32>,
    /// The maximum number of leases at a time.
    pub max_leases: Option<u32>,
    /// The dead-letter topic.
    pub dead_letters: Option<TopicName>,
}

impl GroupChange {
    fn query(&self) -> String {
        let topic =
            |topic: &TopicName| utf8_percent_encode(topic.as_str(), NON_ALPHANUMERIC).to_string();
        let parameters = [
            ("since", self.since.map(|since| since.to_string())),
            ("max_deliveries", self.max_deliveries.map(|max| max.to_string())),
            ("max_leases", self.max_leases.map(|max| max.to_string())),
            ("dead_letters", self.dead_letters.as_ref().map(topic)),
        ];
        let given = parameters.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        given.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
    }
}

impl Client {
    /// Describes a group; `None` if it does not exist.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn inspect_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
    ) -> Result<Option<GroupDetails>, ClientError> {
        self.describe(self.server().group(group, topic, "")).await
    }

    /// Creates, changes or moves a group, and describes it then. Creates the topic too.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn set_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
        change: &GroupChange,
    ) -> Result<GroupDetails, ClientError> {
        let uri = self.server().group(group, topic, &change.query());
        let request = Request::builder().method(Method::PUT).uri(uri);
        let response = self.send(request, RESPONSE_TIMEOUT).await?;
        match response.status() {
            StatusCode::OK | StatusCode::CREATED => self.json(response).await,
            _ => Err(self.refusal(response).await),
        }
    }

    /// Removes a group with its leases. The messages stay in the topic. Returns whether it existed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn remove_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
    ) -> Result<bool, ClientError> {
        let uri = self.server().group(group, topic, "");
        let request = Request::builder().method(Method::DELETE).uri(uri);
        let response = self.send(request, RESPONSE_TIMEOUT).await?;
        match response.status() {
            StatusCode::NO_CONTENT => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refusal(response).await),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_to_be_changed_is_sent() {
        assert_eq!(GroupChange::default().query(), "");
        let change = GroupChange {
            since: Some(Position::All),
            max_deliveries: Some(0),
            max_leases: None,
            dead_letters: Some("a b/c&d".parse().unwrap()),
        };
        assert_eq!(change.query(), "since=all&max_deliveries=0&dead_letters=a%20b%2Fc%26d");
    }
}
