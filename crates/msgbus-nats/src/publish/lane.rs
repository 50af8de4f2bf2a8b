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

/// After how long another connection is made at the earliest, and at the latest if they are of no use.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Sends what is published in the current runtime, as long as there is the engine. A connection is made when something is
/// published, and not before the engine has its own. It ends with that one: where there may only be some, others need it.
pub(super) async fn run(engine: Weak<Connection>, queue: Taker, connect: ConnectOptions) {
    let (mut not_before, mut pause) = (Instant::now(), MIN_PAUSE);
    loop {
        if queue.is_empty() {
            queue.news().await;
        }
        let Some(connection) = engine.upgrade() else { return };
        let own = Arc::clone(&connection.publisher.own);
        queue.hand_over(&own);
        if connection.check().is_err() || Instant::now() < not_before {
            continue;
        }
        let servers = connection.options.addresses();
        drop(connection);
        let connecting = connect.clone().connect(servers);
        let Some(connected) = meanwhile(connecting, &engine, &queue, &own).await else { return };
        let (was_useful, why) = match connected {
            Ok(client) => (Sender::new(&queue, Line::new(client)).run(&engine).await, None),
            Err(error) => (false, Some(error.kind())),
        };
        let is_served = engine.upgrade().is_some_and(|engine| engine.check().is_ok());
        if !was_useful && pause == MIN_PAUSE && is_served {
            let why = why.map_or_else(|| "it leads elsewhere".to_owned(), |kind| kind.to_string());
            warn!(
                "a thread publishes on the first connection to NATS, its own is of no use: {why}"
            );
        }
        not_before = Instant::now() + pause;
        pause = if was_useful { MIN_PAUSE } else { (pause * 2).min(MAX_PAUSE) };
    }
}

/// Hands over what is published until there is a connection. `None` if there is no engine any longer.
async fn meanwhile<T>(
    connecting: impl Future<Output = T>,
    engine: &Weak<Connection>,
    queue: &Queue,
    own: &Queue,
) -> Option<T> {
    let mut connecting = pin!(connecting);
    loop {
        select! {
            biased;
            () = queue.news() => queue.hand_over(own),
            connected = &mut connecting => return Some(connected),
        }
        if engine.strong_count() == 0 {
            return None;
        }
    }
}
