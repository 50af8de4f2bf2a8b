//! Websockets after the handshake (RFC 6455): [`session`] serves one subscription, [`transport`] reads and writes
//! frames.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod heartbeat;
mod push;
mod session;
mod transport;

use std::sync::Arc;

pub(crate) use self::push::Push;
use self::session::Session;
use crate::net::connection::Connection;

/// Serves one subscription on one websocket until either ends. `already_read` has the bytes that were read after the
/// handshake.
pub(crate) async fn serve(push: Arc<Push>, connection: Connection, already_read: Vec<u8>) {
    let mut session = Session::new(push, connection, already_read);
    let end = session.follow().await;
    // Boxed, so that the memory of a session does not include the close.
    Box::pin(session.end(end)).await;
}
