//! Websockets after the handshake (RFC 6455): [`session`] serves one subscription, [`transport`] reads and writes
//! frames.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod heartbeat;
mod push;
mod session;
mod transport;

pub(crate) use self::{push::Push, session::Session};
