//! drs: commands that both sides of a connection send and answer, as JSON on websockets and on byte streams.
//! docs/compatibility.md says what is kept of it.
//!
//! A call is a request to the service with the name of its action; a fire is a message of the topic with that name.
//! [`split`] finds commands in what arrives, [`command`] reads and writes one, [`commands`] carries it out, and [`session`]
//! writes what the peer handles and what it is answered.

mod command;
mod commands;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod session;
mod split;
mod stats;

use std::sync::{Arc, atomic::Ordering::Relaxed};

use serde_json::json;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

pub(crate) use self::stats::Stats;
use self::{commands::Subscribing, split::Split};
use crate::{
    code::Code,
    config::Protocol,
    dialogue::{self, Client, session::Session},
    net::connection::Connection,
    websocket::{
        end::{End, NOT_ALLOWED},
        link::refuse,
        opening::Guest,
        outgoing::Outgoing,
        transport::Transport,
    },
    worker::{Counter, Worker},
};

/// The space for the other fields of a command with the largest body, in bytes.
const FIELDS: usize = 64 << 10;
const TEXT: &str = "text/plain; charset=utf-8";

/// What the door knows of a peer.
#[derive(Debug)]
pub(crate) struct Drs {
    stats: Arc<Stats>,
    /// Counts the commands of all peers.
    commands: Arc<Counter>,
    split: Split,
    /// The `drs.subscribe` that waits for the topics that it names. The next command waits for it.
    subscribing: Option<Subscribing>,
    /// The commands that the address of the peer stands for. They are carried out again after each login.
    address: Vec<String>,
    /// The beginning of the keys of this connection, which is random: no peer uses it by chance.
    prefix: String,
}

/// One peer, and what it has begun.
type Conversation = dialogue::Conversation<Drs>;

impl Drs {
    fn new(stats: &Arc<Stats>, worker: &Worker, protocol: Protocol, address: Vec<String>) -> Self {
        let mut random = [0; 8];
        // Without it, keys are still unique on this connection.
        let _ = getrandom::fill(&mut random);
        stats.connections.fetch_add(1, Relaxed);
        Self {
            stats: Arc::clone(stats),
            commands: worker.messages_of(protocol),
            split: Split::default(),
            subscribing: None,
            address,
            prefix: format!("{:012x}", u64::from_ne_bytes(random) >> 16),
        }
    }

    fn session(
        self,
        client: Client,
        outgoing: Outgoing,
        transport: Transport<Connection>,
    ) -> Box<Session<Self>> {
        let mut conversation = Conversation::new(self, client, outgoing);
        conversation.handle_from_start();
        Box::new(Session::new(conversation, transport))
    }
}

impl Drop for Drs {
    fn drop(&mut self) {
        self.stats.connections.fetch_sub(1, Relaxed);
    }
}

/// The command that a name in an address stands for.
fn command_for(of: &str, name: &str) -> String {
    json!({"action": format!("drs.{of}"), "body": name}).to_string()
}

/// Opens a connection that is a stream of commands.
pub(crate) fn open_stream(stats: &Arc<Stats>, guest: Guest) -> Box<Session<Drs>> {
    let client = Client::anonymous(&guest.worker, guest.peer);
    let door = Drs::new(stats, &client.worker, Protocol::DrsStream, Vec::new());
    door.session(client, Outgoing::of_stream(), Transport::stream(guest.connection))
}

/// Opens a connection that begins with a request of HTTP: for a websocket, or for the counters, which are answered.
pub(crate) async fn open(stats: &Arc<Stats>, mut guest: Guest) -> Option<Box<Session<Drs>>> {
    let head = guest.read().await?;
    let query = head.request.uri().query().unwrap_or_default().as_bytes();
    let query: Vec<_> = form_urlencoded::parse(query).into_owned().collect();
    let (worker, client) =
        (Arc::clone(&guest.worker), Client::anonymous(&guest.worker, guest.peer));
    let client = match query.iter().rfind(|(name, value)| name == "token" && !value.is_empty()) {
        Some((_, token)) => client.log_in(token),
        None => Some(client),
    };
    if head.request.uri().path() != "/socket" {
        let answer = match (head.request.uri().path(), client) {
            ("/stats", Some(client)) => ("200 OK", "application/json", &*stats.to_json(&client)),
            ("/stats", None) => ("401 Unauthorized", TEXT, "invalid key\n"),
            _ => ("404 Not Found", TEXT, "this port has /socket, a websocket, and /stats\n"),
        };
        guest.answer(&head, answer).await;
        return None;
    }
    let max = worker.config.max_payload.saturating_add(FIELDS);
    let transport = guest.upgrade(head, max).await?;
    let Some(client) = client else {
        let why = "the token is no valid key or ticket".to_owned();
        let end = End::malformed(CloseCode::from(NOT_ALLOWED), Code::WrongKey, why);
        refuse(&worker, transport, &end).await;
        return None;
    };
    let names = query.iter().flat_map(|(of, names)| names.split(',').map(move |name| (of, name)));
    let named =
        names.filter(|(of, name)| matches!(&***of, "serve" | "subscribe") && !name.is_empty());
    let address = named.map(|(of, name)| command_for(of, name)).collect();
    let door = Drs::new(stats, &worker, Protocol::DrsWebsocket, address);
    Some(door.session(client, Outgoing::default(), transport))
}
