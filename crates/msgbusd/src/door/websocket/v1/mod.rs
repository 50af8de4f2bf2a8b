//! `msgbus.v1`: one websocket for all operations on all topics. docs/protocol.md, section 16.
//!
//! [`session`] reads and writes frames. [`operation`] parses a line ([`plain`] the most frequent ones), [`operations`]
//! begins what it asks for, and [`activities`] are what takes time: subscriptions, and operations that wait. Each of them
//! has a waker of its own, so the work after a wake does not depend on how many others there are. Publishing threads write
//! the messages of subscriptions themselves, if they can ([`shared`](crate::websocket::shared)).

mod activities;
mod answer;
mod ask;
mod content;
mod follow;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod identifier;
mod in_hand;
mod names;
mod opening;
mod operation;
mod operations;
mod output;
mod plain;
mod publish;
mod pull;
mod refusal;
mod serve;
mod session;
mod settle;
mod subscribe;
mod work;

use std::sync::Arc;

pub(crate) use self::session::session;
use crate::{
    auth::Principal,
    net::peer::Peer,
    service::{Authority, Call},
    worker::Worker,
};

/// The maximum number of subscriptions of one websocket.
const MAX_SUBSCRIPTIONS: usize = 1024;
/// The maximum number of operations that have begun and are not answered, without requests to services.
const MAX_OUTSTANDING: usize = 1024;
/// The maximum number of requests that wait for their replies. They hold up nothing: the replies that they wait for may
/// have to come from the same client.
const MAX_ASKED: usize = 1024;
/// Beyond this many bytes that wait to be written, no operation begins.
const MAX_UNREAD: usize = 256 << 10;
/// The size of a frame after which another one begins, in bytes. A frame may exceed it by one line.
const FRAME_SIZE: usize = 64 << 10;

/// The client of one websocket.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    worker: Arc<Worker>,
    peer: Peer,
    /// `None` if the server has no keys and every client may do everything.
    principal: Option<Arc<Principal>>,
}

impl Client {
    fn call(&self) -> Call<'_> {
        let principal = self.principal.clone();
        Call { worker: &self.worker, peer: self.peer, principal, authority: Authority::Own }
    }
}

impl From<&Call<'_>> for Client {
    fn from(call: &Call<'_>) -> Self {
        Self { worker: Arc::clone(call.worker), peer: call.peer, principal: call.principal.clone() }
    }
}
