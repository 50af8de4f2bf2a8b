//! drs: commands that both sides of a connection send and answer, as JSON on websockets and on byte streams.
//! docs/compatibility.md says what is kept of it.
//!
//! A call is a request to the service with the name of its action; a fire is a message of the topic with that name.
//! [`session`] moves bytes, [`stream`] finds the commands in them, and [`exchange`] carries them out and answers.

mod command;
mod exchange;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod handlers;
mod output;
mod session;
mod stats;
mod stream;
mod waiting;

use std::{sync::Arc, sync::atomic::Ordering::Relaxed};

use msgbus_core::{LagPolicy, Position};

use self::session::{Session, Wire};
pub(crate) use self::stats::Stats;
use crate::{
    auth::Principal,
    config::Protocol,
    encode::frame_cache::{Encoder, Frame, FrameFormat, TextHeader},
    net::{connection::Connection, peer::Peer},
    service::{Authority, Call, code::Code, error::ServiceError, follower::FollowOptions},
    websocket::{
        end::End,
        opening::{self, Head},
    },
    worker::{Counter, Worker},
};

/// The maximum number of calls of one peer that wait for their replies.
const MAX_CALLS: usize = 1024;
/// The number of calls that a peer has at a time, after which it gets no more. A batch may exceed it.
const MAX_IN_HAND: usize = 256;
/// The maximum number of names that a peer handles.
const MAX_HANDLERS: usize = 1024;
/// Beyond this many bytes that wait to be written, no command begins.
const MAX_UNREAD: usize = 256 << 10;
/// Beyond this many, nothing is written that is not an answer to a command that begins.
const ENOUGH: usize = 64 << 10;
/// What the server itself answers.
const FUNCTIONS: [&str; 6] =
    ["auth.upgrade", "drs.kaboom", "drs.off", "drs.ping", "drs.serve", "drs.subscribe"];

/// A message as a command in a text frame.
const FRAME: Encoder = Encoder {
    name: "drs-ws",
    encode: |message| {
        let mut command = Vec::new();
        command::write_fire(&mut command, message);
        let header = TextHeader::new(command.len());
        Frame::new([header.as_ref(), &command].concat(), "")
    },
};
/// A message as a command in a line.
const LINE: Encoder = Encoder {
    name: "drs-tcp",
    encode: |message| {
        let mut command = Vec::new();
        command::write_fire(&mut command, message);
        Frame::new(command, "")
    },
};
const TEXT: &str = "text/plain; charset=utf-8";

/// The peer of one connection.
#[derive(Debug, Clone)]
struct Client {
    stats: Arc<Stats>,
    worker: Arc<Worker>,
    /// Counts the commands of all peers.
    commands: Arc<Counter>,
    peer: Peer,
    /// `None` if the server has no keys and every client may do everything.
    principal: Option<Arc<Principal>>,
    is_websocket: bool,
}

impl Client {
    fn new(stats: &Arc<Stats>, worker: &Arc<Worker>, peer: Peer, is_websocket: bool) -> Self {
        let principal = worker.keyring.as_ref().map(|keyring| keyring.anonymous());
        let protocol = if is_websocket { Protocol::DrsWebsocket } else { Protocol::DrsStream };
        let (stats, commands) = (Arc::clone(stats), worker.messages_of(protocol));
        Self { stats, worker: Arc::clone(worker), commands, peer, principal, is_websocket }
    }

    fn call(&self) -> Call<'_> {
        let (principal, authority) = (self.principal.clone(), Authority::Own);
        Call { worker: &self.worker, peer: self.peer, principal, authority }
    }

    /// Makes the peer the holder of a key, or of a ticket. A server without keys accepts any.
    fn log_in(&mut self, token: &str) -> Result<(), ServiceError> {
        let Some(keyring) = &self.worker.keyring else { return Ok(()) };
        let known = keyring.authenticate(token).or_else(|| keyring.redeem(token));
        self.principal = Some(known.ok_or(ServiceError::WrongKey)?);
        Ok(())
    }

    /// The name of the peer's key.
    fn user(&self) -> &str {
        self.principal.as_ref().and_then(|principal| principal.key_name()).unwrap_or("anonymous")
    }

    fn follow_options(&self, from: Position) -> FollowOptions {
        let format = FrameFormat::Of(if self.is_websocket { FRAME } else { LINE });
        FollowOptions { from, lag: LagPolicy::Skip, format }
    }
}

/// Counts a connection while it is open.
struct Open(Arc<Stats>);

impl Open {
    fn count(stats: &Arc<Stats>) -> Self {
        stats.connections.fetch_add(1, Relaxed);
        Self(Arc::clone(stats))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

/// Serves a connection that is a stream of commands.
pub(crate) async fn serve(
    stats: Arc<Stats>,
    worker: Arc<Worker>,
    connection: Connection,
    peer: Peer,
) {
    let client = Client::new(&stats, &worker, peer, false);
    let _open = Open::count(&stats);
    Session::new(client, Wire::Stream(connection, false)).serve().await;
}

/// Serves a connection that begins with a request of HTTP: for a websocket, or for the counters.
pub(crate) async fn accept(
    stats: Arc<Stats>,
    worker: Arc<Worker>,
    connection: Connection,
    peer: Peer,
) {
    let client = Client::new(&stats, &worker, peer, true);
    // Boxed, so that the memory of a session does not include the handshake.
    if let Some(session) = Box::pin(open(client, connection)).await {
        let _open = Open::count(&stats);
        session.serve().await;
    }
}

/// Answers the request of a client. `None` if there is no websocket.
async fn open(mut client: Client, mut connection: Connection) -> Option<Box<Session>> {
    let (worker, peer) = (Arc::clone(&client.worker), client.peer);
    let head = opening::read(&worker, &mut connection, peer).await?;
    let parameters = Parameters::of(&head);
    let is_known = parameters.token.as_ref().is_none_or(|token| client.log_in(token).is_ok());
    match head.request.uri().path() {
        "/socket" => {
            let (connection, read) = opening::upgrade(&worker, connection, peer, head).await?;
            let mut session = Session::new(client, Wire::websocket(&worker, connection, read));
            if !is_known {
                worker.metrics.refusal(Code::WrongKey);
                Box::pin(session.end(End::Revoked.into())).await;
                return None;
            }
            session.handle(&parameters.serve, &parameters.subscribe);
            return Some(session);
        }
        "/stats" => match opening::check(&head.request, peer, &worker) {
            Ok(()) if is_known => {
                let body = client.stats.to_json(&client);
                opening::answer(&mut connection, "200 OK", "application/json", &body).await;
            }
            Ok(()) => {
                opening::answer(&mut connection, "401 Unauthorized", TEXT, "invalid key\n").await;
            }
            Err(refusal) => opening::refuse(&worker, &mut connection, peer, &refusal).await,
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
