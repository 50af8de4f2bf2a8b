//! A subscription on a websocket that it shares with others.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::Stream;
use msgbus_core::{Position, TopicPattern};

use super::{Socket, command::Command, queue::Queue, topic_positions::TopicPositions};
use crate::{error::ClientError, subscription::Event};

/// A subscription to a topic, or to all topics that match a pattern, on a [`Socket`]. Dropping it ends the subscription.
///
/// It is a `Stream` of events. [`Event::Message`], [`Event::Missed`], [`Event::Restarted`], [`Event::Stalled`] and
/// [`Event::Resumed`] occur; a lost connection is no event, because the subscription resumes from its own position ([`Socket::statuses`] tells).
///
/// - Messages of a topic arrive in order and once. A pattern has one order for all its subscribers, in which the messages of
///   each topic are in order.
/// - [`Event::Missed`] has the exact number of messages that the server dropped before they were received, or 0 if the engine
///   of the topic does not count them.
/// - [`Event::Restarted`] of a topic: it was deleted, or the server, which kept it in memory, was restarted. Everything that
///   it contains now follows. Of a pattern: its order began anew, because the server was restarted or the connection was
///   lost for some minutes. Everything that its topics retain follows, without what was received before. Messages that the
///   server dropped in the meantime are not counted then.
///
/// Up to [`MAX_QUEUED`](Self::MAX_QUEUED) messages and 8 MiB are received in advance. If the caller is slower, only this
/// subscription is paused: it is ended on the server and resumed from its position when half of the queue is free. What the
/// server drops meanwhile counts as missed.
#[derive(Debug)]
#[must_use = "dropping it ends the subscription"]
pub struct SocketSubscription {
    socket: Socket,
    number: u64,
    queue: Arc<Queue>,
    topics: TopicPattern,
    position: Position,
    /// `None` for a single topic, whose own position is enough.
    topic_positions: Option<TopicPositions>,
    has_ended: bool,
}

impl SocketSubscription {
    /// The number of messages that are received in advance.
    pub const MAX_QUEUED: usize = 1024;

    pub(super) fn new(
        socket: Socket,
        number: u64,
        queue: Arc<Queue>,
        (topics, position): (TopicPattern, Position),
        topic_positions: Option<TopicPositions>,
    ) -> Self {
        Self { socket, number, queue, topics, position, topic_positions, has_ended: false }
    }

    pub(super) fn set_position(&mut self, position: Position) {
        self.position = position;
    }

    /// The topic or the pattern.
    pub fn topics(&self) -> &TopicPattern {
        &self.topics
    }

    /// The position after the last returned event, from which another subscription can resume. For a pattern, see also
    /// [`topic_positions`](Self::topic_positions).
    pub fn position(&self) -> Position {
        self.position
    }

    /// What was received of each topic of a pattern; `None` for a single topic. Give it to [`Socket::resume`] with the
    /// position, so that nothing is received twice if the order of the pattern begins anew.
    pub fn topic_positions(&self) -> Option<&TopicPositions> {
        self.topic_positions.as_ref()
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// The server refuses the subscription, for example because a key was revoked, or the socket was closed. The
    /// subscription has ended then.
    ///
    /// # Cancel safety
    /// Dropping the future loses no event.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        match poll_fn(|cx| self.poll_event(cx)).await {
            Some(event) => event,
            None => Err(self.socket.closed()),
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Event, ClientError>>> {
        loop {
            if self.has_ended {
                return Poll::Ready(None);
            }
            let next = std::task::ready!(self.queue.poll_next(cx));
            if next.resume {
                self.socket.command(Command::Resume(self.number));
            }
            match next.entry {
                Ok(entry) => {
                    self.position = entry.position;
                    if self.is_new(&entry.event) {
                        return Poll::Ready(Some(Ok(entry.event)));
                    }
                }
                Err(error) => {
                    self.has_ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    /// Notes an event. Returns false for a message that was received before.
    fn is_new(&mut self, event: &Event) -> bool {
        match (event, &mut self.topic_positions) {
            (Event::Message(message), Some(positions)) => positions.note(message),
            (Event::Restarted, Some(positions)) => {
                positions.restarted();
                true
            }
            _ => true,
        }
    }
}

/// Ends after the first error.
impl Stream for SocketSubscription {
    type Item = Result<Event, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_event(cx)
    }
}

impl Drop for SocketSubscription {
    fn drop(&mut self) {
        self.socket.command(Command::Unsubscribe(self.number));
    }
}
