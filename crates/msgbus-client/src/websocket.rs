//! Websockets: connecting, the handshake, and noticing that a connection is dead.

use std::{io, time::Duration};

use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use hyper::{
    StatusCode,
    header::{self, HeaderValue},
};
use msgbus_core::TopicName;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        Error,
        client::IntoClientRequest as _,
        error::ProtocolError::HandshakeIncomplete,
        handshake::client::Response,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::{
    client::Client,
    connection::Connection,
    error::{ClientError, retry_after, root_cause},
    start_position::StartPosition,
    uri::ServerUri,
};

pub(crate) type Websocket = WebSocketStream<Connection>;

/// The time limit for connecting and the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest message that is accepted, in bytes: 1 GiB of payload in base64, and the JSON around it.
const MAX_MESSAGE_SIZE: usize = 3 << 29;
const READ_BUFFER: usize = 64 << 10;
/// A connection that has lasted this long resets the backoff, even if nothing was received.
pub(crate) const STABLE_AFTER: Duration = Duration::from_secs(10);
/// How long to wait for the server's close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The subprotocol of a websocket for everything. docs/protocol.md, 16.1.
const V1: HeaderValue = HeaderValue::from_static("msgbus.v1");

/// Connects a websocket that follows one topic.
pub(crate) async fn connect(
    client: &Client,
    topic: &TopicName,
    query: &str,
) -> Result<(Websocket, StartPosition), ClientError> {
    let uri = client.server().topic("ws", topic, query);
    let (socket, response) = handshake(client, uri, None).await?;
    Ok((socket, StartPosition::read(response.headers())))
}

/// Connects a websocket for everything. Also returns the time that the server tells.
pub(crate) async fn connect_v1(
    client: &Client,
) -> Result<(Websocket, Option<DateTime<Utc>>), ClientError> {
    let uri = client.server().websocket_root();
    let (socket, response) = handshake(client, uri, Some(V1)).await?;
    let date = response.headers().get(header::DATE).and_then(|date| date.to_str().ok());
    let time = date.and_then(|date| DateTime::parse_from_rfc2822(date).ok());
    Ok((socket, time.map(|time| time.to_utc())))
}

async fn handshake(
    client: &Client,
    uri: String,
    protocol: Option<HeaderValue>,
) -> Result<(Websocket, Response), ClientError> {
    let server = client.server();
    let connecting = async {
        let connected = client.connector().connect().await;
        let stream = connected.map_err(|error| ClientError::connect(server, &error))?;
        let mut request = uri
            .into_client_request()
            .map_err(|error| ClientError::Request { reason: error.to_string() })?;
        let headers = request.headers_mut();
        if let Some(key) = client.key() {
            headers.insert(header::AUTHORIZATION, key.authorization().clone());
        }
        if let Some(protocol) = protocol {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .max_message_size(Some(MAX_MESSAGE_SIZE))
            .max_frame_size(Some(MAX_MESSAGE_SIZE));
        let connected = client_async_with_config(request, stream, Some(config)).await;
        connected.map_err(|error| handshake_error(server, &error))
    };
    timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| {
        Err(ClientError::Connect {
            server: server.to_string(),
            reason: "no response within 10 s".to_owned(),
            kind: io::ErrorKind::TimedOut,
        })
    })
}

fn handshake_error(server: &ServerUri, error: &Error) -> ClientError {
    match error {
        Error::Http(response) => refusal(server, response),
        // The server, or a proxy in front of it, closed the connection during the handshake.
        Error::Io(_) | Error::ConnectionClosed | Error::Protocol(HandshakeIncomplete) => {
            lost(server, &root_cause(error).to_string())
        }
        error => ClientError::NotMsgbus { server: server.to_string(), reason: error.to_string() },
    }
}

fn refusal(server: &ServerUri, response: &hyper::Response<Option<Vec<u8>>>) -> ClientError {
    let status = response.status();
    let body = response.body().as_deref().unwrap_or_default();
    let text = String::from_utf8_lossy(body).trim().to_owned();
    match retry_after(status, response.headers()) {
        Some(retry_after) => ClientError::Busy { status: status.as_u16(), text, retry_after },
        // A web server without websockets answers the GET like any other.
        _ if status.is_success() || status.is_redirection() || status == StatusCode::NOT_FOUND => {
            ClientError::NotMsgbus {
                server: server.to_string(),
                reason: format!("{status} instead of a websocket"),
            }
        }
        _ => ClientError::Refused { status: status.as_u16(), text },
    }
}

/// Ends a connection with a close frame.
pub(crate) async fn close(mut socket: Websocket) {
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let closing = async {
        if socket.close(Some(frame)).await.is_ok() {
            while let Some(Ok(_)) = socket.next().await {}
        }
    };
    // The connection is dropped next, whether or not the server has answered.
    let _ = timeout(CLOSE_TIMEOUT, closing).await;
}

pub(crate) fn lost(server: &ServerUri, reason: &str) -> ClientError {
    ClientError::Lost { server: server.to_string(), reason: reason.to_owned() }
}

/// The error for a websocket that the server has closed.
pub(crate) fn closed(server: &ServerUri, frame: Option<&CloseFrame>) -> ClientError {
    match frame {
        Some(close) if !close.reason.is_empty() => {
            lost(server, &format!("closed, {}", close.reason))
        }
        _ => lost(server, "closed"),
    }
}

/// When to send a ping, and when to consider a connection dead: the server answers pings and sends its own.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    /// When the connection is considered dead unless something is received before.
    pub(crate) dead_at: Instant,
    /// Whether a ping has been sent since the last frame.
    pub(crate) is_pinged: bool,
}

impl Heartbeat {
    /// A connection that receives nothing for this long is dead.
    const SILENCE_TIMEOUT: Duration = Duration::from_secs(80);
    /// The client sends a ping if it has received nothing for this long.
    const PING_AFTER: Duration = Duration::from_secs(30);

    pub(crate) fn start() -> Self {
        Self { dead_at: Instant::now() + Self::SILENCE_TIMEOUT, is_pinged: false }
    }

    /// Notes that something was received.
    pub(crate) fn received(&mut self) {
        *self = Self::start();
    }

    /// Puts the end off, while nothing is read.
    pub(crate) fn put_off(&mut self) {
        self.dead_at = Instant::now() + Self::SILENCE_TIMEOUT;
    }

    /// When to send a ping, unless that was done.
    pub(crate) fn ping_at(&self) -> Instant {
        self.dead_at - Self::SILENCE_TIMEOUT + Self::PING_AFTER
    }

    /// The error for a dead connection.
    pub(crate) fn silence(server: &ServerUri) -> ClientError {
        lost(server, "nothing received for 80 s")
    }
}
