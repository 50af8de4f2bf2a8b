//! Publishing. What is published while others wait for the stream to acknowledge their messages is sent together: to send a
//! message by itself costs the server, the connection and this process several times as much.
//!
//! What is published in a runtime of [`publish_from`](crate::NatsOptions::publish_from) is sent from there, on a connection of
//! its own: the way to another thread and back takes longer than the publish itself. While that connection is of no use, the
//! one of the engine is used.

mod detour;
mod in_flight;
mod line;
mod pending;
mod queue;
mod sender;

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use async_nats::ConnectOptions;
use tokio::runtime::{Handle, Id};

pub(crate) use self::pending::Pending;
use self::{
    detour::Detour,
    line::Line,
    queue::{Queue, Receiver},
    sender::Sender,
};
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
    others: HashMap<Id, Arc<Queue>>,
}

impl Publisher {
    pub(crate) fn new(others: &[Handle]) -> Self {
        let others = others.iter().map(|runtime| (runtime.id(), Arc::default())).collect();
        Self { own: Arc::default(), others }
    }

    /// Begins to send, as long as there is the connection. `connect` makes those of other runtimes.
    pub(crate) fn start(connection: &Arc<Connection>, connect: &ConnectOptions) {
        let (publisher, weak) = (&connection.publisher, || Arc::downgrade(connection));
        let own = Sender::new(publisher.own.receive(), Line::of(connection), None);
        tokio::spawn(own.run(weak()));
        for runtime in &connection.options.publish_from {
            if let Some(queue) = publisher.others.get(&runtime.id()) {
                let servers = connection.options.addresses();
                let waiting = queue.receive();
                runtime.spawn(Self::send_here(weak(), waiting, connect.clone(), servers));
            }
        }
    }

    async fn send_here(
        connection: Weak<Connection>,
        waiting: Receiver,
        connect: ConnectOptions,
        servers: Vec<String>,
    ) {
        let Some(engine) = connection.upgrade() else { return };
        let detour = Detour::new(Arc::clone(&engine.publisher.own));
        drop(engine);
        // Not before somebody publishes here, and the engine has its own connection.
        loop {
            waiting.news().await;
            detour.take(waiting.take_all());
            let Some(engine) = connection.upgrade() else { return };
            if engine.check().is_ok() {
                break;
            }
        }
        // The addresses are valid: the engine is connected to one.
        let Ok(client) = connect.connect(servers).await else { return };
        Sender::new(waiting, Line::new(client), Some(detour)).run(connection).await;
    }

    /// Publishes messages, in the order of the calls in a runtime, whether or not somebody waits for the answer.
    pub(crate) fn publish(&self, publish: Pending) {
        self.here().push(publish);
    }

    /// That of the current runtime, or of the engine if there is none.
    fn here(&self) -> &Queue {
        if self.others.is_empty() {
            return &self.own;
        }
        let here = Handle::try_current().ok().and_then(|here| self.others.get(&here.id()));
        here.unwrap_or(&self.own)
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        // Who sends may wait for something to send.
        for queue in self.others.values().chain([&self.own]) {
            queue.wake();
        }
    }
}
