//! What travels: a [`Message`], and the [`TopicInfo`] that all messages of a topic share.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::{
    clock::{Span, Wall},
    name::TopicName,
};

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
    created: Wall,
    ttl: Span,
    payload: Bytes,
    attributes: Option<Arc<Attributes>>,
}

/// What few messages have. Those that say the same share it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) content_type: Arc<str>,
}

impl Message {
    /// What a message counts for in the bounds by bytes beyond its payload and attributes, in
    /// bytes.
    pub const OVERHEAD: u64 = 128;

    pub(crate) fn new(
        topic: Arc<TopicInfo>,
        id: u64,
        created: Wall,
        ttl: Span,
        payload: Bytes,
        attributes: Option<Arc<Attributes>>,
    ) -> Self {
        Self(Arc::new(Inner { topic, id, created, ttl, payload, attributes }))
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
        self.0.attributes.as_ref().map(|attributes| &*attributes.content_type)
    }

    /// When the message was accepted. Within a topic it never decreases.
    pub fn created(&self) -> DateTime<Utc> {
        self.0.created.into()
    }

    /// When the message expires; `None` never. For showing: what decides is the monotonic clock.
    pub fn expires(&self) -> Option<DateTime<Utc>> {
        self.0.created.after(self.0.ttl)
    }

    pub(crate) fn created_at(&self) -> Wall {
        self.0.created
    }

    pub(crate) fn charge(&self) -> u64 {
        charge(self.payload(), self.content_type())
    }
}

/// A message on its way into a topic: a payload, and what may be said about it.
///
/// Anything that converts to [`Bytes`] converts to a draft, so a plain payload needs no ceremony.
/// The payload is kept as it is: pass a `Bytes` of its own rather than a slice of a large buffer,
/// which would be kept alive whole. A payload that is refused, expires or is evicted may be dropped under
/// a lock of the bus: the drop of an owner given to [`Bytes::from_owner`] must not use the bus.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draft {
    pub(crate) payload: Bytes,
    pub(crate) ttl: Option<Duration>,
    pub(crate) content_type: Option<Arc<str>>,
}

impl Draft {
    /// A message with this payload and nothing else.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self { payload: payload.into(), ..Self::default() }
    }

    /// Lets the message expire earlier than its topic says; a longer time is cut to the topic's.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Says what the payload is. An `Arc<str>` is shared by the messages that get a clone of it.
    #[must_use]
    pub fn content_type(mut self, media_type: impl Into<Arc<str>>) -> Self {
        self.content_type = Some(media_type.into());
        self
    }

    /// What the message counts for in the bounds by bytes: its payload and attributes, and
    /// [`Message::OVERHEAD`] for what keeping it costs besides.
    pub(crate) fn charge(&self) -> u64 {
        charge(&self.payload, self.content_type.as_deref())
    }
}

impl<T: Into<Bytes>> From<T> for Draft {
    fn from(payload: T) -> Self {
        Self::new(payload)
    }
}

fn charge(payload: &Bytes, content_type: Option<&str>) -> u64 {
    payload.len() as u64 + content_type.map_or(0, |text| text.len() as u64) + Message::OVERHEAD
}

/// Where an accepted message went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The life of the topic, see [`TopicInfo::epoch`].
    pub epoch: u64,
    /// The number of the message in it.
    pub id: u64,
}

/// Where the messages of an accepted batch went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedBatch {
    /// The life of the topic, see [`TopicInfo::epoch`].
    pub epoch: u64,
    /// The numbers of the messages in it.
    pub ids: Range<u64>,
}
