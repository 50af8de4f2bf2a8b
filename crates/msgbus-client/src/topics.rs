//! The topics of a server: listing, describing and deleting them.

use std::{collections::BTreeMap, time::Duration};

use hyper::{Method, Request, StatusCode, header};
use msgbus_core::{TopicName, TopicPattern};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::Instant;

use crate::{
    client::Client, error::ClientError, groups::GroupSummary, transport::RESPONSE_TIMEOUT,
};

/// A topic in a list, as the server describes it.
///
/// Of a topic that lives in an engine, the server knows only some of the fields. The others are 0 or empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
#[expect(missing_docs, reason = "docs/protocol.md, sections 7.1 and 18.6, describe the fields")]
pub struct TopicSummary {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// In nanoseconds; 0 if messages do not expire.
    pub ttl: u64,
    pub created: String,
    pub epoch: String,
    pub first_id: u64,
    pub next_id: u64,
    pub retained: u64,
    pub unpulled: u64,
    pub bytes: u64,
    pub subscribers: u64,
    pub waiters: u64,
    pub published: u64,
    pub pulled: u64,
    pub delivered: u64,
    pub missed: u64,
    pub expired: u64,
    pub expired_unpulled: u64,
    pub evicted: u64,
    pub evicted_unpulled: u64,
}

/// A topic with its limits and subscriptions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[expect(missing_docs, reason = "docs/protocol.md, section 10.3, describes the fields")]
pub struct TopicDetails {
    #[serde(flatten)]
    pub topic: TopicSummary,
    #[serde(default)]
    pub max_messages: u64,
    #[serde(default)]
    pub max_bytes: u64,
    #[serde(default)]
    pub overflow: String,
    #[serde(default)]
    pub subscriptions: Vec<SubscriberDetails>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupSummary>,
}

/// One subscription of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[expect(missing_docs, reason = "docs/protocol.md, section 10.3, describes the fields")]
pub struct SubscriberDetails {
    pub peer: Option<String>,
    pub next_id: u64,
    pub received: u64,
    pub missed: u64,
    pub lag: u64,
}

impl Client {
    /// The topics of the server whose names begin with `prefix`, sorted by name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn topics(&self, prefix: &str) -> Result<Vec<TopicSummary>, ClientError> {
        let mut topics: Vec<TopicSummary> = Vec::new();
        loop {
            let after = topics.last().map_or(String::new(), |last| last.name.clone());
            let (page, is_last) = self.page(prefix, &after, None).await?;
            topics.extend(page);
            if is_last {
                return Ok(topics);
            }
        }
    }

    /// The topics of the server that match a pattern, sorted by name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn topics_matching(
        &self,
        pattern: &TopicPattern,
    ) -> Result<Vec<TopicSummary>, ClientError> {
        let text = pattern.to_string();
        let prefix = text.split('*').next().unwrap_or_default();
        let mut topics = self.topics(prefix).await?;
        topics.retain(|topic| topic.name.parse().is_ok_and(|name| pattern.matches(&name)));
        Ok(topics)
    }

    /// The first `max` topics whose names begin with `prefix`, in one request. The server returns
    /// 10,000 at most.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn first_topics(
        &self,
        prefix: &str,
        max: usize,
    ) -> Result<Vec<TopicSummary>, ClientError> {
        Ok(self.page(prefix, "", Some(max)).await?.0.collect())
    }

    /// A page of the list, and whether it is the last one.
    async fn page(
        &self,
        prefix: &str,
        after: &str,
        max: Option<usize>,
    ) -> Result<(impl Iterator<Item = TopicSummary>, bool), ClientError> {
        let escape = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let max = max.map_or(String::new(), |max| format!("&max={max}"));
        let query = format!("prefix={}&after={}{max}", escape(prefix), escape(after));
        let request = Request::builder()
            .method(Method::GET)
            .uri(self.server().root(&query))
            .header(header::ACCEPT, "application/json");
        let response = self.send(request, RESPONSE_TIMEOUT).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response).await);
        }
        let is_last = !response.headers().contains_key(header::LINK);
        let page: BTreeMap<String, TopicSummary> = self.json(response).await?;
        Ok((page.into_values(), is_last))
    }

    /// Describes a topic; `None` if it does not exist.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn inspect(&self, topic: &TopicName) -> Result<Option<TopicDetails>, ClientError> {
        self.describe(self.server().inspection(topic)).await
    }

    /// The JSON object at this URI; `None` if there is none.
    pub(crate) async fn describe<T: DeserializeOwned>(
        &self,
        uri: String,
    ) -> Result<Option<T>, ClientError> {
        let request = Request::builder().method(Method::GET).uri(uri);
        let response = self.send(request, RESPONSE_TIMEOUT).await?;
        match response.status() {
            StatusCode::OK => self.json(response).await.map(Some),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.refusal(response).await),
        }
    }

    /// Deletes a topic and its messages. Returns whether it existed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete(&self, topic: &TopicName) -> Result<bool, ClientError> {
        let uri = self.server().topic("http", topic, "");
        let request = Request::builder().method(Method::DELETE).uri(uri);
        let response = self.send(request, RESPONSE_TIMEOUT).await?;
        match response.status() {
            // Accepted: the disk of the server has not kept it yet.
            StatusCode::NO_CONTENT | StatusCode::ACCEPTED => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refusal(response).await),
        }
    }
    /// Checks that the server answers, and returns how long it took. No key is required.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn ping(&self) -> Result<Duration, ClientError> {
        let start = Instant::now();
        let request = Request::builder().method(Method::GET).uri(self.server().health());
        let response = self.send(request, RESPONSE_TIMEOUT).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response).await);
        }
        match self.text(response).await?.as_str() {
            "ok" => Ok(start.elapsed()),
            _ => Err(self.not_msgbus("/healthz does not say ok")),
        }
    }
}
