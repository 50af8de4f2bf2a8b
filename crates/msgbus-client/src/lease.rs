//! Pulls of a group: the server leases a message until it is settled. docs/protocol.md, section 14.

use std::time::Duration;

use msgbus_core::{
    GroupName, LeaseToken, Leased, Message, Position, TopicName, format_duration, json,
};

use tokio::time::Instant;

use crate::{client::Client, error::ClientError, transport::RESPONSE_TIMEOUT};

/// Options of a pull of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseOptions {
    /// The length of the lease; 30 s by default. The server accepts
    /// [`MIN_LEASE`](Self::MIN_LEASE) to [`MAX_LEASE`](Self::MAX_LEASE).
    pub lease: Duration,
    /// The maximum number of messages; 1 by default.
    pub max: usize,
    /// How long to wait for the first message. The server waits one minute at most.
    pub wait: Option<Duration>,
    /// Where the group starts if this pull creates it; at the oldest message by default.
    pub since: Option<Position>,
}

impl LeaseOptions {
    /// The shortest lease.
    pub const MIN_LEASE: Duration = Duration::from_secs(1);
    /// The longest lease.
    pub const MAX_LEASE: Duration = LeaseToken::MAX_TIME;
    /// The default length of a lease.
    pub const DEFAULT_LEASE: Duration = Duration::from_secs(30);

    fn query(&self, group: &GroupName) -> String {
        let Self { lease, max, wait, since } = self;
        let mut query = format!("group={group}&lease={}&max={max}", format_duration(*lease));
        if let Some(wait) = wait {
            query.push_str(&format!("&wait={}", format_duration(*wait)));
        }
        if let Some(since) = since {
            query.push_str(&format!("&since={since}"));
        }
        query
    }
}

impl Default for LeaseOptions {
    fn default() -> Self {
        Self { lease: Self::DEFAULT_LEASE, max: 1, wait: None, since: None }
    }
}

impl Client {
    /// Pulls messages of a group: those to be redelivered first, then new ones. Each has a lease and
    /// stays in the topic until it is acknowledged with [`settle`](Self::settle). Empty if there is
    /// no message, or none within `options.wait`.
    ///
    /// # Errors
    /// See [`ClientError`]. Messages whose response was lost are redelivered when their leases are
    /// over.
    pub async fn lease(
        &self,
        topic: &TopicName,
        group: &GroupName,
        options: LeaseOptions,
    ) -> Result<Vec<Leased>, ClientError> {
        Ok(self.lease_since(topic, group, options).await?.1)
    }

    /// Like [`lease`](Self::lease). Also returns when the head of the response arrived: by then the leases had begun,
    /// while a large body may take long.
    pub(crate) async fn lease_since(
        &self,
        topic: &TopicName,
        group: &GroupName,
        options: LeaseOptions,
    ) -> Result<(Instant, Vec<Leased>), ClientError> {
        let limit = RESPONSE_TIMEOUT.saturating_add(options.wait.unwrap_or_default());
        let (_, pulled) = self.get(topic, &options.query(group), limit).await?;
        let begun = Instant::now();
        let Some(pulled) = pulled else { return Ok((begun, Vec::new())) };
        let body = pulled.body().await?;
        let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let read = |line| json::read_leased(line).map_err(ClientError::from);
        // A server that does not know groups ignores the parameters, and its message has no lease.
        Ok((begun, lines.map(read).collect::<Result<_, _>>()?))
    }

    /// Reads the messages that a group has not acknowledged, leased ones too, without taking them.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn peek_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
        max: usize,
    ) -> Result<Vec<Message>, ClientError> {
        let query = format!("peek&group={group}&max={max}");
        match self.get(topic, &query, RESPONSE_TIMEOUT).await?.1 {
            Some(seen) => seen.messages().await,
            None => Ok(Vec::new()),
        }
    }
}
