//! The websocket protocol of middleman: docs/compatibility.md.

use std::sync::Arc;

use crate::{
    config::{Config, Protocol},
    net::{connection::Connection, peer::Peer},
    websocket::opening,
    worker::Worker,
};

/// What all connections of this door share.
#[derive(Debug, Default)]
pub(crate) struct Hub {}

impl Hub {
    pub(crate) fn new(_: &Config) -> Arc<Self> {
        Arc::default()
    }
}

/// Serves one connection until it ends.
pub(crate) async fn serve(_: Arc<Hub>, worker: Arc<Worker>, connection: Connection, peer: Peer) {
    if opening::accept(&worker, connection, peer).await.is_some() {
        worker.messages_of(Protocol::Middleman).increment();
    }
}
