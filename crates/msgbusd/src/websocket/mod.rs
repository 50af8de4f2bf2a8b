//! Connections that are websockets (RFC 6455), for all doors: the opening handshake, frames, heartbeat and close.
//!
//! [`opening`] accepts a handshake on a listener that speaks nothing else; `door/http` has its own. [`transport`] reads and
//! writes frames, [`link`] adds pings and the close, [`end`] says why a websocket ends, and [`intake`] bounds what a client
//! sends. [`session`] is for doors with many activities on one connection: each has a waker of its own ([`ready`]), and
//! publishing threads write the messages of subscriptions themselves ([`shared`]).

pub(crate) mod end;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod heartbeat;
mod inbox;
pub(crate) mod intake;
pub(crate) mod link;
pub(crate) mod opening;
pub(crate) mod ready;
pub(crate) mod session;
pub(crate) mod shared;
pub(crate) mod transport;
