//! Websockets after the handshake: [`session`] serves one subscription, [`v1`] everything.

mod push;
mod session;
pub(crate) mod v1;

pub(crate) use self::{push::Push, session::Session, v1::session as session_v1};
