//! The websocket of a subscription: connecting and the handshake.

use std::{io, time::Duration};

use hyper::{StatusCode, header};
use msgbus_core::TopicName;
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        Error, client::IntoClientRequest as _, error::ProtocolError::HandshakeIncomplete,
        protocol::WebSocketConfig,
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

pub(crate) async fn connect(
    client: &Client,
    topic: &TopicName,
    query: &str,
) -> Result<(Websocket, StartPosition), ClientError> {
    let server = client.server();
    let connecting = async {
        let connected = client.connector().connect().await;
        let stream = connected.map_err(|error| ClientError::connect(server, &error))?;
        let mut request = server
            .topic("ws", topic, query)
            .into_client_request()
            .map_err(|error| ClientError::Request { reason: error.to_string() })?;
        if let Some(key) = client.key() {
            request.headers_mut().insert(header::AUTHORIZATION, key.authorization().clone());
        }
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .max_message_size(Some(MAX_MESSAGE_SIZE))
            .max_frame_size(Some(MAX_MESSAGE_SIZE));
        match client_async_with_config(request, stream, Some(config)).await {
            Ok((socket, response)) => Ok((socket, StartPosition::read(response.headers()))),
            Err(Error::Http(response)) => Err(refusal(server, &response)),
            // The server, or a proxy in front of it, closed the connection during the handshake.
            Err(
                error @ (Error::Io(_)
                | Error::ConnectionClosed
                | Error::Protocol(HandshakeIncomplete)),
            ) => Err(ClientError::Lost {
                server: server.to_string(),
                reason: root_cause(&error).to_string(),
            }),
            Err(error) => Err(ClientError::NotMsgbus {
                server: server.to_string(),
                reason: error.to_string(),
            }),
        }
    };
    timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| {
        Err(ClientError::Connect {
            server: server.to_string(),
            reason: "no response within 10 s".to_owned(),
            kind: io::ErrorKind::TimedOut,
        })
    })
}

fn refusal(server: &ServerUri, response: &hyper::Response<Option<Vec<u8>>>) -> ClientError {
    let status = response.status();
    let body = response.body().as_deref().unwrap_or_default();
    let text = String::from_utf8_lossy(body).trim().to_owned();
    match retry_after(status, response.headers()) {
        Some(retry_after) => ClientError::Busy { text, retry_after },
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
