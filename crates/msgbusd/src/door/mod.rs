//! The protocols that clients speak. A door calls the service; doors do not import each other's code.
//!
//! HTTP has the endpoints of `--bind`. Each other [`Door`] has endpoints of its own, and gets connections that are
//! admitted, counted and encrypted as configured.

pub(crate) mod drs;
pub(crate) mod http;
#[cfg(test)]
mod line;
pub(crate) mod middleman;
pub(crate) mod websocket;

use std::{pin::Pin, sync::Arc};

use tokio_rustls::rustls::ServerConfig;
use tracing::{debug, warn};

use crate::{
    config::{Config, Protocol},
    dialogue::{Dialect, session::Session},
    limits::connection_limit::ConnectionPermit,
    net::{
        connection::{self, Connection},
        peer::Peer,
        raw_stream::Accepted,
        timeout_stream::TimeoutStream,
    },
    websocket::opening::{Guest, in_time},
    worker::Worker,
};

/// A door with endpoints of its own, and the state that its connections share.
#[derive(Debug, Clone)]
pub(crate) enum Door {
    Middleman(Arc<middleman::Hub>),
    DrsWebsocket(Arc<drs::Stats>),
    DrsStream(Arc<drs::Stats>),
}

/// The doors of a server. All endpoints of a protocol are of one door.
#[derive(Debug)]
pub(crate) struct Doors {
    middleman: Arc<middleman::Hub>,
    drs: Arc<drs::Stats>,
}

impl Doors {
    pub(crate) fn new(config: &Config) -> Self {
        Self { middleman: middleman::Hub::new(config), drs: Arc::default() }
    }

    pub(crate) fn of(&self, protocol: Protocol) -> Door {
        match protocol {
            Protocol::Middleman => Door::Middleman(Arc::clone(&self.middleman)),
            Protocol::DrsWebsocket => Door::DrsWebsocket(Arc::clone(&self.drs)),
            Protocol::DrsStream => Door::DrsStream(Arc::clone(&self.drs)),
        }
    }
}

impl Door {
    /// Serves one connection until it ends.
    pub(crate) async fn serve(
        self,
        worker: Arc<Worker>,
        accepted: Accepted,
        permit: ConnectionPermit,
        tls: Option<Arc<ServerConfig>>,
        peer: Peer,
    ) {
        let Some(connection) = connect(&worker, accepted, permit, tls, peer).await else { return };
        let guest = Guest { worker, connection, peer };
        match self {
            Self::Middleman(hub) => serve(Box::pin(middleman::open(&hub, guest))).await,
            Self::DrsWebsocket(stats) => serve(Box::pin(drs::open(&stats, guest))).await,
            Self::DrsStream(stats) => drs::open_stream(&stats, guest).serve().await,
        }
    }
}

/// Serves a session, if one is opened. That is boxed, so that the memory of a session does not include the handshake.
async fn serve<D: Dialect>(opening: Pin<Box<impl Future<Output = Option<Box<Session<D>>>>>>) {
    if let Some(session) = opening.await {
        session.serve().await;
    }
}

/// A connection, encrypted if the server has a certificate.
async fn connect(
    worker: &Worker,
    accepted: Accepted,
    permit: ConnectionPermit,
    tls: Option<Arc<ServerConfig>>,
    peer: Peer,
) -> Option<Connection> {
    let stream = match TimeoutStream::new(accepted, worker.config.timeouts.write, permit) {
        Ok(stream) => stream,
        Err(error) => {
            warn!(%peer, %error, "cannot serve a connection");
            return None;
        }
    };
    let connection = in_time(worker, Box::pin(connection::encrypt(tls, stream))).await?;
    connection.inspect_err(|error| debug!(%peer, %error, "no TLS")).ok()
}
