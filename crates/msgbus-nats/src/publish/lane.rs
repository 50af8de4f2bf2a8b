//! A runtime that publishes on a connection of its own. While that is of no use, or there is none, its publishes are handed over to
//! the connection of the engine.

use std::{
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use async_nats::ConnectOptions;
use tokio::{select, time::Instant};
use tracing::warn;

use super::{Queue, line::Line, queue::Taker, sender::Sender};
use crate::connection::Connection;

/// After how long another connection is made at the earliest.
const PAUSE: Duration = Duration::from_secs(1);

/// Sends what is published in the current runtime, as long as there is the engine. A connection is made when something is
/// published, and not before the engine has its own. It ends with that one: where there may only be some, others need it.
pub(super) async fn run(engine: Weak<Connection>, queue: Taker, connect: ConnectOptions) {
    let (mut not_before, mut is_told) = (Instant::now(), false);
    while engine.strong_count() > 0 {
        if queue.is_empty() {
            queue.news().await;
        }
        let Some(connection) = engine.upgrade() else { return };
        let (own, servers) =
            (Arc::clone(&connection.publisher.own), connection.options.addresses());
        let is_due = connection.check().is_ok() && Instant::now() >= not_before;
        drop(connection);
        queue.hand_over(&own);
        if !is_due {
            continue;
        }
        let connecting = connect.clone().connect(servers);
        match meanwhile(connecting, &queue, &own).await {
            Ok(client) => {
                is_told = false;
                Sender::new(&queue, Line::new(client)).run(&engine).await;
            }
            Err(error) if !std::mem::replace(&mut is_told, true) => {
                let why = error.kind();
                warn!(
                    "NATS gives a thread no connection of its own, so it publishes on the first one: {why}"
                );
            }
            Err(_) => {}
        }
        not_before = Instant::now() + PAUSE;
    }
}

/// Hands over what is published until there is a connection.
async fn meanwhile<T>(connecting: impl Future<Output = T>, queue: &Queue, own: &Queue) -> T {
    let mut connecting = pin!(connecting);
    loop {
        select! {
            biased;
            connected = &mut connecting => return connected,
            () = queue.news() => queue.hand_over(own),
        }
    }
}
