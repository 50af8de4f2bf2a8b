//! Publishing message after message to the same topics, for doors whose connections carry many operations.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use msgbus_core::{NewMessage, PublishError, Published, TopicHandle, TopicName};
use tracing::debug;

use super::{
    Call,
    error::ServiceError,
    publish::{deliver, is_delivered_here},
};
use crate::{auth::Action, net::peer::Peer};

/// A topic that one client publishes to: where it is, and that the client may do so.
#[derive(Debug)]
pub(crate) struct Publisher {
    handle: TopicHandle,
    /// The generation of the keys that allow it.
    allowed_by: Option<u64>,
}

/// A publish that has begun: the message has its id, and its place among those of its topic.
pub(crate) enum Publishing {
    Done(Published),
    /// The store has to keep it first.
    Committing(Commit),
}

/// Waits until the store has kept a message.
pub(crate) type Commit = Pin<Box<dyn Future<Output = Result<Published, ServiceError>> + Send>>;

impl Call<'_> {
    /// A topic that the client is about to publish to.
    pub(crate) fn publisher(&self, topic: &TopicName) -> Publisher {
        Publisher { handle: self.worker.bus.handle(topic), allowed_by: None }
    }

    /// Publishes one message, as [`publish`](Self::publish) does and in the same order of checks. If that is done at once, the
    /// caller makes the first deliveries, together with those of what it publishes next: see
    /// [`is_delivered_here`](Publishing::is_delivered_here).
    pub(crate) fn publish_to(
        &self,
        publisher: &mut Publisher,
        message: NewMessage,
    ) -> Result<Publishing, ServiceError> {
        self.authorize_publisher(publisher)?;
        self.charge()?;
        let (peer, bytes) = (self.peer, message.payload_len());
        let mut publishing = publisher.handle.publish(message);
        let topic = publisher.topic();
        match Pin::new(&mut publishing).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(published) => finish(peer, topic, bytes, published).map(Publishing::Done),
            Poll::Pending => {
                let topic = topic.clone();
                Ok(Publishing::Committing(Box::pin(async move {
                    let published = finish(peer, &topic, bytes, publishing.await)?;
                    deliver(published.durability);
                    Ok(published)
                })))
            }
        }
    }

    /// Between two reloads of the keys, this is one atomic load.
    fn authorize_publisher(&self, publisher: &mut Publisher) -> Result<(), ServiceError> {
        let Some(keyring) = &self.worker.keyring else { return Ok(()) };
        let generation = Some(keyring.generation());
        if publisher.allowed_by != generation {
            self.authorize(Action::Publish, publisher.topic())?;
            publisher.allowed_by = generation;
        }
        Ok(())
    }
}

impl Publisher {
    pub(crate) fn topic(&self) -> &TopicName {
        self.handle.name()
    }
}

/// The topics that a client has published to, the latest first.
#[derive(Debug, Default)]
pub(crate) struct Publishers(Vec<Publisher>);

impl Publishers {
    /// How many are remembered. Each keeps its topic in memory, even if it was deleted.
    const MAX: usize = 8;

    /// The one for a topic, which `make` makes if it is not remembered.
    pub(crate) fn find<E>(
        &mut self,
        topic: &str,
        make: impl FnOnce() -> Result<Publisher, E>,
    ) -> Result<&mut Publisher, E> {
        let known = self.0.iter().position(|known| known.topic().as_str() == topic);
        match known {
            Some(0) => {}
            Some(index) => self.0.swap(0, index),
            None => {
                let publisher = make()?;
                self.0.truncate(Self::MAX - 1);
                self.0.push(publisher);
                let last = self.0.len() - 1;
                self.0.swap(0, last);
            }
        }
        Ok(&mut self.0[0])
    }
}

fn finish(
    peer: Peer,
    topic: &TopicName,
    bytes: usize,
    published: Result<Published, PublishError>,
) -> Result<Published, ServiceError> {
    let published = published?;
    debug!(%peer, %topic, id = published.id, bytes, "publish");
    Ok(published)
}

impl Publishing {
    /// Whether the message is there now, and this bus delivers it.
    pub(crate) fn is_delivered_here(&self) -> bool {
        matches!(self, Self::Done(published) if is_delivered_here(published.durability))
    }
}

impl fmt::Debug for Publishing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(published) => f.debug_tuple("Done").field(published).finish(),
            Self::Committing(_) => f.write_str("Committing"),
        }
    }
}
