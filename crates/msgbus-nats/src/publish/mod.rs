//! Publishing. What is published while others wait for the stream to acknowledge their messages is sent together: to send a
//! message by itself costs the server, the connection and this process several times as much.
//!
//! What is published in a runtime of [`publish_from`](crate::NatsOptions::publish_from) is sent from there, on a connection of
//! its own: the way to another thread and back takes longer than the publish itself. While that connection is of no use, the
//! one of the engine is used.

mod in_flight;
mod lane;
mod line;
mod pending;
mod queue;
mod sender;

use std::{collections::HashMap, sync::Arc};

use async_nats::ConnectOptions;
use tokio::runtime::{Handle, Id};

pub(crate) use self::pending::Pending;
use self::{line::Line, queue::Queue, sender::Sender};
use crate::connection::Connection;

/// The maximum number of messages of one publish that are sent before their acknowledgements are awaited. If the connection
/// breaks, those that were on their way are lost, and others of the same slice may come after them.
const SLICE: usize = 256;

/// Publishes to a stream.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// What is sent on the connection of the engine.
    own: Arc<Queue>,
    /// What is sent from other runtimes.
    others: HashMap<Id, (Handle, Arc<Queue>)>,
}

impl Publisher {
    pub(crate) fn new(others: &[Handle]) -> Self {
        let queue = |runtime: &Handle| (runtime.id(), (runtime.clone(), Arc::default()));
        Self { own: Arc::default(), others: others.iter().map(queue).collect() }
    }

    /// Begins to send, as long as there is the engine. `connect` makes the connections of other runtimes.
    pub(crate) fn start(engine: &Arc<Connection>, connect: &ConnectOptions) {
        let (publisher, weak) = (&engine.publisher, Arc::downgrade(engine));
        for (runtime, queue) in publisher.others.values() {
            runtime.spawn(lane::run(weak.clone(), queue.taker(), connect.clone()));
        }
        let (queue, line) = (publisher.own.taker(), Line::of(engine));
        tokio::spawn(async move { Sender::new(&queue, line).run(&weak).await });
    }

    /// Publishes messages, in the order of the calls in a runtime, whether or not somebody waits for the answer.
    pub(crate) fn publish(&self, publish: Pending) {
        self.here().push(publish);
    }

    /// The queue of the current runtime, or of the engine if there is none.
    fn here(&self) -> &Queue {
        if self.others.is_empty() {
            return &self.own;
        }
        let here = Handle::try_current().ok().and_then(|here| self.others.get(&here.id()));
        here.map_or(&self.own, |(_, queue)| queue)
    }

    /// Wakes all who send: something has happened.
    pub(crate) fn wake(&self) {
        let others = self.others.values().map(|(_, queue)| queue);
        for queue in others.chain([&self.own]) {
            queue.wake();
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.wake();
    }
}
