//! What travels: a [`Message`], and the [`TopicInfo`] that all messages of a topic share.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{name::TopicName, time::WallTime};

/// What never changes about a topic from its creation to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    /// The topic's name.
    pub name: TopicName,
    /// Tells one life of a topic from the next: after a restart, or a delete and a new publish, the
    /// same name has a higher epoch and its ids start at 0 again. 0 on topics that were decoded
    /// from JSON, which does not carry it.
    pub epoch: u64,
    /// When the topic was created.
    pub created: DateTime<Utc>,
    /// How long a message lives at most; `None` for ever.
    pub ttl: Option<Duration>,
}

/// One message of one topic. A clone is a handle on the same message and costs one atomic
/// increment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message(Arc<Inner>);

#[derive(Debug, PartialEq, Eq)]
struct Inner {
    topic: Arc<TopicInfo>,
    id: u64,
    created: WallTime,
    expires: WallTime,
    payload: Bytes,
    headers: Option<Arc<Headers>>,
}

/// The headers of a message. Most messages have none. Equal headers of successive messages are shared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers {
    pub(crate) content_type: Option<Box<str>>,
    pub(crate) content_encoding: Option<Box<str>>,
}

impl Headers {
    /// What headers add to the size of a message besides their names and values, in bytes.
    const OVERHEAD: u64 = 96;

    /// Names and values, in the order of the JSON.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [("content-type", &self.content_type), ("content-encoding", &self.content_encoding)]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }

    /// Shared headers count in full: the messages that share them may leave first.
    fn accounted_size(&self) -> u64 {
        let length: usize = self.iter().map(|(name, value)| name.len() + value.len()).sum();
        Self::OVERHEAD + length as u64
    }
}

impl Message {
    /// What a message counts for in the bounds by bytes beyond its payload and headers, in bytes.
    pub const OVERHEAD: u64 = 128;

    pub(crate) fn new(
        topic: Arc<TopicInfo>,
        id: u64,
        created: WallTime,
        expires: WallTime,
        payload: Bytes,
        headers: Option<Arc<Headers>>,
    ) -> Self {
        Self(Arc::new(Inner { topic, id, created, expires, payload, headers }))
    }

    /// The topic that the message was published to.
    pub fn topic(&self) -> &Arc<TopicInfo> {
        &self.0.topic
    }

    /// The number of the message in its topic: the first one is 0.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// The bytes that were published.
    pub fn payload(&self) -> &Bytes {
        &self.0.payload
    }

    /// The media type that the publisher gave, if any.
    pub fn content_type(&self) -> Option<&str> {
        self.headers()?.content_type.as_deref()
    }

    /// The codings that the publisher applied to the payload, such as `gzip`, if any.
    pub fn content_encoding(&self) -> Option<&str> {
        self.headers()?.content_encoding.as_deref()
    }

    /// When the message was accepted. Within a topic it never decreases, so it stands still after the
    /// system's clock was set back.
    pub fn created(&self) -> DateTime<Utc> {
        self.0.created.into()
    }

    /// When the message expires; `None` never. For showing: what decides is a clock that nobody sets. It
    /// may be before [`created`](Self::created), which stands still after the system's clock was set back.
    pub fn expires(&self) -> Option<DateTime<Utc>> {
        (self.0.expires != WallTime::NEVER).then(|| self.0.expires.into())
    }

    pub(crate) fn created_at(&self) -> WallTime {
        self.0.created
    }

    pub(crate) fn headers(&self) -> Option<&Headers> {
        self.0.headers.as_deref()
    }

    pub(crate) fn accounted_size(&self) -> u64 {
        accounted_size(self.payload(), self.headers())
    }
}

/// A message on its way into a topic: a payload, and what may be said about it.
///
/// Anything that converts to [`Bytes`] converts to a message, so a plain payload needs no ceremony.
/// The payload is kept as it is: pass a `Bytes` of its own rather than a slice of a large buffer,
/// which would be kept alive whole. A payload that is refused, expires or is evicted may be dropped under
/// a lock of the bus: the drop of an owner given to [`Bytes::from_owner`] must not use the bus.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewMessage {
    pub(crate) payload: Bytes,
    pub(crate) ttl: Option<Duration>,
    pub(crate) headers: Option<Arc<Headers>>,
}

impl NewMessage {
    /// A message with this payload and nothing else.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self { payload: payload.into(), ..Self::default() }
    }

    /// The length of its payload in bytes.
    pub fn payload_len(&self) -> usize {
        self.payload.len()
    }

    /// Lets the message expire earlier than its topic says; a longer time is cut to the topic's.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Replaces the payload. Clones of one message with payloads of their own share its headers.
    #[must_use]
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.payload = payload.into();
        self
    }

    /// Gives the payload's media type.
    #[must_use]
    pub fn content_type(mut self, media_type: impl Into<Box<str>>) -> Self {
        self.headers_mut().content_type = Some(media_type.into());
        self
    }

    /// Names the codings that were applied to the payload, such as `gzip`: the payload is kept as it is.
    #[must_use]
    pub fn content_encoding(mut self, codings: impl Into<Box<str>>) -> Self {
        self.headers_mut().content_encoding = Some(codings.into());
        self
    }

    fn headers_mut(&mut self) -> &mut Headers {
        Arc::make_mut(self.headers.get_or_insert_default())
    }

    /// The size of the message as the limits count it, in bytes: its payload, its headers, and
    /// [`Message::OVERHEAD`].
    pub(crate) fn accounted_size(&self) -> u64 {
        accounted_size(&self.payload, self.headers.as_deref())
    }
}

impl<T: Into<Bytes>> From<T> for NewMessage {
    fn from(payload: T) -> Self {
        Self::new(payload)
    }
}

fn accounted_size(payload: &Bytes, headers: Option<&Headers>) -> u64 {
    payload.len() as u64 + headers.map_or(0, Headers::accounted_size) + Message::OVERHEAD
}

/// The id of an accepted message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The epoch of the topic, see [`TopicInfo::epoch`].
    pub epoch: u64,
    /// The id of the message in that epoch.
    pub id: u64,
}

/// The ids of an accepted batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedBatch {
    /// The epoch of the topic, see [`TopicInfo::epoch`].
    pub epoch: u64,
    /// The ids of the messages in that epoch.
    pub ids: Range<u64>,
}
