//! Publishing. What is published while others wait for the stream to acknowledge their messages is sent together: to send a
//! message by itself costs the server, the connection and this process several times as much.

mod in_flight;
mod pending;
mod queue;
mod sender;

use std::sync::{Arc, Weak};

use async_nats::Subscriber;

pub(crate) use self::pending::Pending;
use self::{queue::Queue, sender::Sender};
use crate::connection::Connection;

/// The maximum number of messages of one publish that are sent before their acknowledgements are awaited. If the connection
/// breaks, those that were on their way are lost, and others of the same slice may come after them.
const SLICE: usize = 256;

/// Publishes to a stream.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// Acknowledgements come to subjects that begin with it and end with the number of the message.
    inbox: String,
    queue: Arc<Queue>,
}

impl Publisher {
    pub(crate) fn new(inbox: String) -> Self {
        Self { inbox, queue: Arc::default() }
    }

    /// All subjects to which acknowledgements come.
    pub(crate) fn subject(&self) -> String {
        format!("{}.*", self.inbox)
    }

    /// The subject to which the acknowledgement of a message comes.
    fn reply(&self, number: u64) -> String {
        format!("{}.{number}", self.inbox)
    }

    /// Publishes messages, in the order of the calls, whether or not somebody waits for the answer.
    pub(crate) fn publish(&self, publish: Pending) {
        self.queue.push(publish);
    }

    /// Sends, and hears the acknowledgements, as long as there is the connection.
    pub(crate) async fn run(connection: Weak<Connection>, acknowledgements: Subscriber) {
        let queue = connection.upgrade().map(|first| Arc::clone(&first.publisher.queue));
        if let Some(queue) = queue {
            Sender::new(queue).run(connection, acknowledgements).await;
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        // Who sends may wait for something to send.
        self.queue.wake();
    }
}
