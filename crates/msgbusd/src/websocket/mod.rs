//! Connections that are websockets (RFC 6455), for all doors: the opening handshake, frames, heartbeat and close.
//!
//! [`opening`] accepts a handshake on a listener that speaks nothing else; `door/http` has its own. [`transport`] reads and
//! writes frames, [`outgoing`] is what waits to be written, [`link`] adds pings and the close, [`end`] says why a websocket
//! ends, and [`intake`] bounds what a client sends. A connection that is a stream of bytes has a transport without frames.

pub(crate) mod end;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod heartbeat;
mod inbox;
pub(crate) mod intake;
pub(crate) mod link;
pub(crate) mod opening;
pub(crate) mod outgoing;
pub(crate) mod transport;
