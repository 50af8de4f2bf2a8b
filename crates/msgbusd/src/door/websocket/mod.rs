//! Websockets after the handshake (RFC 6455): [`session`] serves one subscription, [`transport`] reads and writes
//! frames.

mod end;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod heartbeat;
mod inbox;
mod link;
mod push;
mod session;
mod transport;
pub(crate) mod v1;

pub(crate) use self::{
    push::Push,
    session::Session,
    v1::{Client as ClientV1, Session as SessionV1},
};
