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

use std::{collections::VecDeque, sync::Arc, sync::atomic::Ordering::Relaxed};

pub(crate) use self::stats::Stats;
use self::{split::Split, stats::Counts};
use crate::{
    config::Protocol,
    dialogue::{self, Client, Output as _, output::Messages, session::Session},
    net::{connection::Connection, peer::Peer},
    service::code::Code,
    websocket::{
        end::End,
        link,
        opening::{self, Head},
        transport::{Outgoing, Transport},
    },
    worker::{Counter, Worker},
};

/// The maximum number of calls of one peer that wait for their replies.
const MAX_CALLS: usize = 1024;
/// The number of calls that a peer has at a time, after which it gets no more. A batch may exceed it.
const MAX_IN_HAND: usize = 256;
/// The maximum size of a key, in bytes.
const MAX_KEY: usize = 1 << 10;
/// The space for the other fields of a command with the largest body, in bytes.
const FIELDS: usize = 64 << 10;
/// The maximum number of names that a peer handles.
const MAX_HANDLERS: usize = 1024;
/// What the server itself answers.
const FUNCTIONS: [&str; 6] =
    ["auth.upgrade", "drs.kaboom", "drs.off", "drs.ping", "drs.serve", "drs.subscribe"];

const TEXT: &str = "text/plain; charset=utf-8";

/// What the door knows of a peer.
#[derive(Debug)]
struct Drs {
    stats: Arc<Stats>,
    /// How its commands have ended since they were last added to the counters of the door.
    counts: Counts,
    /// Counts the commands of all peers.
    commands: Arc<Counter>,
    is_stream: bool,
    split: Split,
    /// Why its bytes cannot be read any further.
    malformed: Option<String>,
    /// Commands that wait because they are carried out one after the other, and their size in bytes.
    queue: VecDeque<Vec<u8>>,
    queued: usize,
    /// The beginning of the keys of this connection, which is random: no peer uses it by chance.
    prefix: u64,
}

/// One peer, and what it has begun.
type Conversation = dialogue::Conversation<Drs>;

impl Drs {
    fn new(stats: &Arc<Stats>, worker: &Worker, is_stream: bool) -> Self {
        let mut random = [0; 8];
        // Without it, keys are still unique on this connection.
        let _ = getrandom::fill(&mut random);
        let protocol = if is_stream { Protocol::DrsStream } else { Protocol::DrsWebsocket };
        stats.connections.fetch_add(1, Relaxed);
        Self {
            stats: Arc::clone(stats),
            counts: Counts::default(),
            commands: worker.messages_of(protocol),
            is_stream,
            split: Split::default(),
            malformed: None,
            queue: VecDeque::new(),
            queued: 0,
            prefix: u64::from_ne_bytes(random) >> 16,
        }
    }
}

impl Drop for Drs {
    fn drop(&mut self) {
        self.stats.connections.fetch_sub(1, Relaxed);
    }
}

/// A peer without a key.
fn anonymous(worker: &Arc<Worker>, peer: Peer) -> Client {
    Client::new(worker, peer, worker.keyring.as_ref().map(|keyring| keyring.anonymous()))
}

/// The client that becomes the holder of a key, or of a ticket. A server without keys accepts any.
fn log_in(client: &Client, token: &str) -> Option<Client> {
    let Some(keyring) = &client.worker.keyring else { return Some(client.clone()) };
    let known = keyring.authenticate(token).or_else(|| keyring.redeem(token))?;
    Some(Client::new(&client.worker, client.peer, Some(known)))
}

/// Serves a connection that is a stream of commands.
pub(crate) async fn serve(
    stats: Arc<Stats>,
    worker: Arc<Worker>,
    connection: Connection,
    peer: Peer,
) {
    let mut conversation =
        Conversation::new(Drs::new(&stats, &worker, true), anonymous(&worker, peer));
    let mut outgoing = Outgoing::of_stream();
    conversation.open_broadcasts(&mut Messages::new(&mut outgoing));
    let transport = Transport::stream(connection);
    Box::new(Session::new(conversation, outgoing, transport)).serve().await;
}

/// Serves a connection that begins with a request of HTTP: for a websocket, or for the counters.
pub(crate) async fn accept(
    stats: Arc<Stats>,
    worker: Arc<Worker>,
    connection: Connection,
    peer: Peer,
) {
    // Boxed, so that the memory of a session does not include the handshake.
    if let Some(session) = Box::pin(open(&stats, anonymous(&worker, peer), connection)).await {
        session.serve().await;
    }
}

/// Answers the request of a client. `None` if there is no websocket.
async fn open(
    stats: &Arc<Stats>,
    client: Client,
    mut connection: Connection,
) -> Option<Box<Session<Drs>>> {
    let (worker, peer) = (Arc::clone(&client.worker), client.peer);
    let head = opening::read(&worker, &mut connection, peer).await?;
    let Parameters { token, serve, subscribe } = Parameters::of(&head);
    let client = token.map_or_else(|| Some(client.clone()), |token| log_in(&client, &token));
    match (head.request.uri().path(), client) {
        ("/socket", client) => {
            let (connection, read) = opening::upgrade(&worker, connection, peer, head).await?;
            let max = worker.config.max_payload.saturating_add(FIELDS);
            let transport = Transport::with_inbox(connection, read, max);
            let mut outgoing = Outgoing::default();
            let Some(client) = client else {
                worker.metrics.refusal(Code::WrongKey);
                let frame = End::Revoked.close_frame(None).map(|mut frame| {
                    frame.reason = "the token is no valid key or ticket".into();
                    frame
                });
                link::close(transport, outgoing, frame).await;
                return None;
            };
            let mut conversation = Conversation::new(Drs::new(stats, &worker, false), client);
            conversation.handle_from_start(&serve, &subscribe, &mut Messages::new(&mut outgoing));
            return Some(Box::new(Session::new(conversation, outgoing, transport)));
        }
        ("/stats", client) => match (opening::check(&head.request, peer, &worker), client) {
            (Ok(()), Some(client)) => {
                let body = stats.to_json(&client);
                opening::answer(&mut connection, "200 OK", "application/json", &body).await;
            }
            (Ok(()), None) => {
                opening::answer(&mut connection, "401 Unauthorized", TEXT, "invalid key\n").await;
            }
            (Err(refusal), _) => opening::refuse(&worker, &mut connection, peer, &refusal).await,
        },
        _ => {
            let text = "this port has /socket, a websocket, and /stats\n";
            opening::answer(&mut connection, "404 Not Found", TEXT, text).await;
        }
    }
    None
}

/// The query of `/socket`.
#[derive(Debug, Default)]
struct Parameters {
    token: Option<String>,
    serve: Vec<String>,
    subscribe: Vec<String>,
}

impl Parameters {
    fn of(head: &Head) -> Self {
        let mut parameters = Self::default();
        let query = head.request.uri().query().unwrap_or_default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let names = || value.split(',').filter(|name| !name.is_empty()).map(str::to_owned);
            match &*name {
                "token" if !value.is_empty() => parameters.token = Some(value.into_owned()),
                "serve" => parameters.serve.extend(names()),
                "subscribe" => parameters.subscribe.extend(names()),
                _ => {}
            }
        }
        parameters
    }
}
