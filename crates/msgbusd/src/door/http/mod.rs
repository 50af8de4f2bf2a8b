//! The HTTP door: [`serve`] takes a connection, [`router`] gives each request to one handler. A file for each handler and
//! for each concern that handlers share.

mod activity;
mod admin;
mod body;
mod credentials;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod groups;
mod handshake;
mod head;
mod host;
mod lease;
mod message_headers;
mod messages;
mod names;
mod negotiate;
mod origin;
mod position;
mod publish;
mod pull;
mod query;
mod requests;
mod response;
mod router;
mod routes;
pub(crate) mod serve;
mod settle;
mod stream;
mod topics;
mod transport;
mod websocket;
