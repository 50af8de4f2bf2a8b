//! The websocket protocol of middleman: docs/compatibility.md.
//!
//! [`frame`] reads messages, [`output`] writes them. [`session`] serves one connection, [`commands`] begins what a message
//! asks for. [`hub`] is what connections share, [`client`] decides what a client may do.

mod client;
mod commands;
mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod hub;
mod output;
mod refused;
mod session;

use std::sync::Arc;

use tokio::{io::AsyncWriteExt as _, select, time::sleep};
use tokio_tungstenite::tungstenite::Error;
use tracing::debug;

pub(crate) use self::hub::Hub;
use self::hub::Identity;
use crate::{
    auth::Principal,
    dialogue::{self, Client},
    metrics::Deadline,
    net::{connection::Connection, peer::Peer},
    service::code::Code,
    websocket::{
        opening,
        transport::{Received, Transport},
    },
    worker::{Counter, Worker},
};

/// The maximum size of a key, in bytes.
const MAX_KEY: usize = 1 << 10;
/// The maximum number of subscriptions and services of one connection.
const MAX_SUBSCRIPTIONS: usize = 1024;
/// The maximum number of requests of one connection that wait for their replies.
const MAX_ASKED: usize = 1024;
/// The maximum number of requests that one connection has and has not answered.
const MAX_IN_HAND: usize = 1024;
/// The maximum number of publishes of one connection that the store has not kept yet.
const MAX_COMMITS: usize = 1024;
/// The maximum length of a user id, in bytes.
const MAX_USER: usize = 255;
/// What the door knows of a connection.
#[derive(Debug)]
struct Middleman {
    identity: Arc<Identity>,
    /// Counts the messages of all clients.
    messages: Arc<Counter>,
}

/// One client, and what it has begun.
type Conversation = dialogue::Conversation<Middleman>;

/// Serves one connection until it ends.
pub(crate) async fn serve(hub: Arc<Hub>, worker: Arc<Worker>, connection: Connection, peer: Peer) {
    let accepting = Box::pin(opening::accept(&worker, connection, peer));
    let Some((connection, already_read)) = accepting.await else { return };
    let mut transport = Transport::with_inbox(connection, already_read, MAX_KEY);
    let login = select! {
        login = login(&worker, &mut transport, peer) => login,
        () = sleep(worker.config.timeouts.header) => {
            worker.metrics.timeout(Deadline::Header);
            Err(None)
        }
        () = worker.tasks.stop.draining() => Err(None),
    };
    match login {
        Ok(principal) => {
            let client = Client::new(&worker, peer, principal);
            Box::pin(session::serve(hub, client, transport)).await;
        }
        Err(refusal) => {
            if let Some(code) = refusal {
                worker.metrics.refusal(code);
                debug!(%peer, code = code.word(), "no login");
            }
            // Clients expect no close frame here.
            let _ = transport.into_connection().shutdown().await;
        }
    }
}

/// Reads the key, which is the first message. Without keys every text will do.
async fn login(
    worker: &Worker,
    transport: &mut Transport<Connection>,
    peer: Peer,
) -> Result<Option<Arc<Principal>>, Option<Code>> {
    let broken = |error: Error| {
        debug!(%peer, %error, "no login");
        None
    };
    loop {
        match transport.next_received().map_err(broken)? {
            None => transport.fill().await.map_err(broken)?,
            Some(Received::Control(message)) if message.is_close() => return Err(None),
            Some(Received::Control(_)) => {}
            Some(Received::Binary) => return Err(Some(Code::WebsocketViolation)),
            Some(Received::Text) => break,
        }
    }
    let Some(inbox) = transport.inbox() else { return Err(None) };
    let key = str::from_utf8(inbox.text().unwrap_or_default()).unwrap_or_default();
    let principal = match &worker.keyring {
        None => None,
        Some(keyring) => Some(keyring.authenticate(key).ok_or(Some(Code::WrongKey))?),
    };
    inbox.skip();
    Ok(principal)
}
