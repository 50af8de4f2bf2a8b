//! The websocket protocol of middleman: docs/compatibility.md.
//!
//! [`frame`] reads messages, [`output`] writes them. [`session`] serves one connection, [`commands`] begins what a message
//! asks for. [`hub`] is what connections share.

mod commands;
mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod hub;
mod output;
mod session;

use std::{future::poll_fn, sync::Arc};

use tokio::io::AsyncWriteExt as _;

pub(crate) use self::hub::Hub;
use self::hub::Identity;
use crate::{
    code::Code,
    dialogue::{self, Client, session::Session},
    net::connection::Connection,
    websocket::{
        end::End,
        link::refuse,
        opening::{Guest, in_time},
        transport::{Received, Transport},
    },
    worker::Counter,
};

/// The maximum size of a key, in bytes.
const MAX_KEY: usize = 1 << 10;
/// What a message may have besides its body, in bytes.
const HEAD: usize = 64 << 10;

/// What the door knows of a connection.
#[derive(Debug)]
pub(crate) struct Middleman {
    identity: Arc<Identity>,
    /// Counts the messages of all clients.
    messages: Arc<Counter>,
}

/// One client, and what it has begun.
type Conversation = dialogue::Conversation<Middleman>;

/// Waits for the handshake and the key. `None` if the client may not connect: what it had to be told was told.
pub(crate) async fn open(hub: &Arc<Hub>, guest: Guest) -> Option<Box<Session<Middleman>>> {
    let (worker, client) =
        (Arc::clone(&guest.worker), Client::anonymous(&guest.worker, guest.peer));
    let mut transport = guest.accept(MAX_KEY).await?;
    let Some(client) = in_time(&worker, log_in(client, &mut transport)).await.flatten() else {
        // Clients expect no close frame here.
        let _ = transport.into_connection().shutdown().await;
        return None;
    };
    match session::begin(hub, client).await {
        Ok(conversation) => {
            transport.inbox()?.set_max(worker.config.max_payload.saturating_add(HEAD));
            Some(Box::new(Session::new(conversation, transport)))
        }
        Err(error) => {
            let end = End::Refused(error.code(), error.to_string().into());
            refuse(&worker, transport, &end).await;
            None
        }
    }
}

/// The client with the key that it sends, which is the first message. Without keys every text will do.
async fn log_in(client: Client, transport: &mut Transport<Connection>) -> Option<Client> {
    loop {
        match poll_fn(|cx| transport.poll_receive(cx)).await.ok()? {
            Received::Text => break,
            Received::Binary => {
                client.refused(None, Code::WebsocketViolation);
                return None;
            }
            Received::Control(message) if message.is_close() => return None,
            Received::Control(_) => {}
        }
    }
    let inbox = transport.inbox()?;
    let holder = client.log_in(str::from_utf8(inbox.text()?).unwrap_or_default());
    if holder.is_none() {
        client.refused(None, Code::WrongKey);
    }
    inbox.skip();
    holder
}
