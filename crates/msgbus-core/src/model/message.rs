//! A [`Message`], and the [`TopicInfo`] that all messages of a topic share.

use std::{
    ops::Range,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{
    headers::{HeaderError, Headers},
    name::TopicName,
    time::WallTime,
};
use crate::store::{Durability, RecoveredMessage};

/// The properties of a topic that never change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    /// The topic's name.
    pub name: TopicName,
    /// The incarnation of the topic. After a restart, or a delete and a new publish, the same name has a
    /// higher epoch and its ids start at 0 again. 0 on topics decoded from JSON, which does not carry it.
    pub epoch: u64,
    /// When the topic was created.
    pub created: DateTime<Utc>,
    /// How long a message is kept at most; `None` is without limit.
    pub ttl: Option<Duration>,
}

/// One message of one topic. A clone refers to the same message and costs one atomic increment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message(Arc<Inner>);

/// A message that is there as long as somebody keeps it: its topic, or whoever receives it.
#[derive(Debug, Default)]
pub(crate) struct WeakMessage(Weak<Inner>);

impl WeakMessage {
    /// What it adds to the memory of the bus in bytes, once the message is gone: its place without its payload.
    pub(crate) const SIZE: u64 = 96;

    pub(crate) fn upgrade(&self) -> Option<Message> {
        self.0.upgrade().map(Message)
    }

    /// Whether the message is there.
    pub(crate) fn is_kept(&self) -> bool {
        self.0.strong_count() > 0
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Inner {
    topic: Arc<TopicInfo>,
    id: u64,
    created: WallTime,
    expires: WallTime,
    payload: Bytes,
    headers: Headers,
}

impl Message {
    /// What a message adds to the size of its topic besides its payload and headers, in bytes.
    pub const OVERHEAD: u64 = 128;

    pub(crate) fn new(
        topic: Arc<TopicInfo>,
        id: u64,
        created: WallTime,
        expires: WallTime,
        payload: Bytes,
        headers: Headers,
    ) -> Self {
        Self(Arc::new(Inner { topic, id, created, expires, payload, headers }))
    }

    /// The message that a store has read.
    pub fn recovered(topic: &Arc<TopicInfo>, kept: RecoveredMessage) -> Self {
        let expires = kept.expires.map_or(WallTime::NEVER, WallTime::from);
        let created = kept.created.into();
        Self::new(Arc::clone(topic), kept.id, created, expires, kept.payload, kept.headers)
    }

    pub(crate) fn downgrade(&self) -> WeakMessage {
        WeakMessage(Arc::downgrade(&self.0))
    }

    /// The topic that the message was published to.
    pub fn topic(&self) -> &Arc<TopicInfo> {
        &self.0.topic
    }

    /// The id of the message in its topic. Ids rise and may have gaps.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// The payload.
    pub fn payload(&self) -> &Bytes {
        &self.0.payload
    }

    /// The headers.
    pub fn headers(&self) -> &Headers {
        &self.0.headers
    }

    /// The media type of the payload, if the publisher gave one.
    pub fn content_type(&self) -> Option<&str> {
        self.headers().content_type()
    }

    /// The codings that the publisher applied to the payload, such as `gzip`, if it named any.
    pub fn content_encoding(&self) -> Option<&str> {
        self.headers().content_encoding()
    }

    /// When the message was accepted. Within a topic this never decreases, so it stands still after the system
    /// clock was set back.
    pub fn created(&self) -> DateTime<Utc> {
        self.0.created.into()
    }

    /// When the message expires; `None` is never. This is informative: a monotonic clock decides. It may be
    /// before [`created`](Self::created), which stands still after the system clock was set back.
    pub fn expires(&self) -> Option<DateTime<Utc>> {
        (self.0.expires != WallTime::NEVER).then(|| self.0.expires.into())
    }

    /// [`created`](Self::created) in nanoseconds since 1970, for a store.
    pub fn created_nanoseconds(&self) -> i64 {
        self.0.created.nanoseconds()
    }

    /// [`expires`](Self::expires) in nanoseconds since 1970, for a store.
    pub fn expires_nanoseconds(&self) -> Option<i64> {
        (self.0.expires != WallTime::NEVER).then(|| self.0.expires.nanoseconds())
    }

    pub(crate) fn expires_at(&self) -> WallTime {
        self.0.expires
    }

    pub(crate) fn created_at(&self) -> WallTime {
        self.0.created
    }

    /// The size of the message as the limits count it, in bytes: its payload, its headers, and
    /// [`OVERHEAD`](Self::OVERHEAD).
    pub fn accounted_size(&self) -> u64 {
        accounted_size(self.payload(), self.headers())
    }
}

/// A message to publish: a payload with an optional TTL and headers. Anything that converts to [`Bytes`]
/// converts to it.
///
/// The payload is kept as it is. Pass a `Bytes` of its own rather than a slice of a large buffer, which would
/// be kept alive as a whole. The payload may be dropped under a lock of the bus, so the drop of an owner given
/// to [`Bytes::from_owner`] must not use the bus.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewMessage {
    pub(crate) payload: Bytes,
    pub(crate) ttl: Option<Duration>,
    pub(crate) headers: Headers,
    pub(crate) own_key: Option<Box<str>>,
}

impl NewMessage {
    /// A message with this payload and without headers.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self { payload: payload.into(), ..Self::default() }
    }

    /// The length of the payload in bytes.
    pub fn payload_len(&self) -> usize {
        self.payload.len()
    }

    /// Sets a TTL shorter than that of the topic. A longer one is cut to that of the topic.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Replaces the payload. Clones with different payloads share their headers.
    #[must_use]
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.payload = payload.into();
        self
    }

    /// Replaces all headers.
    #[must_use]
    pub fn headers(mut self, headers: Headers) -> Self {
        self.headers = headers;
        self
    }

    /// Adds a header. To set several at once, see [`headers`](Self::headers).
    ///
    /// # Errors
    /// See [`HeaderError`].
    pub fn header(mut self, name: &str, value: &str) -> Result<Self, HeaderError> {
        self.headers = self.headers.with(name, value)?;
        Ok(self)
    }

    /// By what an engine knows a message that is published again: its
    /// [`idempotency-key`](crate::Headers::IDEMPOTENCY_KEY). A dead letter has a key of its own: its header is that of the
    /// message that it was, which others may have, too.
    pub fn repeat_key(&self) -> Option<&str> {
        self.own_key.as_deref().or_else(|| self.headers.get(Headers::IDEMPOTENCY_KEY))
    }

    /// The payload, the TTL and the headers.
    pub fn into_parts(self) -> (Bytes, Option<Duration>, Headers) {
        (self.payload, self.ttl, self.headers)
    }

    /// The size of the message as the limits count it, in bytes: its payload, its headers, and
    /// [`Message::OVERHEAD`].
    pub fn accounted_size(&self) -> u64 {
        accounted_size(&self.payload, &self.headers)
    }
}

impl<T: Into<Bytes>> From<T> for NewMessage {
    fn from(payload: T) -> Self {
        Self::new(payload)
    }
}

fn accounted_size(payload: &Bytes, headers: &Headers) -> u64 {
    payload.len() as u64 + headers.accounted_size() + Message::OVERHEAD
}

/// The id of an accepted message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The epoch of the topic, see [`TopicInfo::epoch`].
    pub epoch: u64,
    /// The id of the message in that epoch.
    pub id: u64,
    /// What the message survives.
    pub durability: Durability,
}

/// The ids of an accepted batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedBatch {
    /// The epoch of the topic, see [`TopicInfo::epoch`].
    pub epoch: u64,
    /// The ids of the messages in that epoch. In an engine, messages of others may have ids in between.
    pub ids: Range<u64>,
    /// What the messages survive.
    pub durability: Durability,
}
