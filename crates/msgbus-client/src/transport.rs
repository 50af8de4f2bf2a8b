//! HTTP requests and responses. Every wait and every response size has a limit.

use std::{error::Error, io, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Response, StatusCode,
    body::{Frame, Incoming},
    header::{self, HeaderMap},
    http::request::Builder,
};
use hyper_util::{
    client::legacy::{Client as HttpClient, Error as HttpError},
    rt::{TokioExecutor, TokioTimer},
};
use msgbus_core::{format_duration, json};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::timeout;

use crate::{
    client::Client,
    connection::Connector,
    error::{ClientError, retry_after, root_cause},
};

/// How long the server may send nothing while the client waits for a response.
pub(crate) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest response that is accepted, in bytes: a message of 1 GiB in base64, and the JSON around it.
const MAX_RESPONSE: usize = 3 << 29;
/// How much of an error response is shown, in bytes.
const MAX_TEXT: usize = 300;

pub(crate) const PROBLEM: &str = "application/problem+json";

/// An error response (RFC 9457).
#[derive(Deserialize)]
pub(crate) struct Problem {
    pub(crate) code: String,
    pub(crate) detail: String,
}

pub(crate) type RequestBody = UnsyncBoxBody<Bytes, io::Error>;
pub(crate) type Pool = HttpClient<Connector, RequestBody>;

pub(crate) fn pool(connector: &Connector) -> Pool {
    HttpClient::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector.clone())
}

pub(crate) fn is_problem(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|it| it == PROBLEM)
}

fn one_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_TEXT)]);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A body that is in memory, sent with `Content-Length`.
pub(crate) fn buffered_body(payload: Bytes) -> RequestBody {
    Full::new(payload).map_err(|never| match never {}).boxed_unsync()
}

/// A body that is streamed in chunks. An error aborts the request before the last chunk, so the
/// server cannot take the body for a complete one.
pub(crate) fn streamed_body(
    chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> RequestBody {
    UnsyncBoxBody::new(StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))))
}

impl Client {
    pub(crate) async fn send(
        &self,
        request: Builder,
        limit: Duration,
    ) -> Result<Response<Incoming>, ClientError> {
        self.send_payload(request, buffered_body(Bytes::new()), limit).await
    }

    pub(crate) async fn send_payload(
        &self,
        request: Builder,
        payload: RequestBody,
        limit: Duration,
    ) -> Result<Response<Incoming>, ClientError> {
        timeout(limit, self.send_unlimited(request, payload))
            .await
            .unwrap_or_else(|_| Err(self.timed_out(limit)))
    }

    /// Sends without a time limit.
    pub(crate) async fn send_unlimited(
        &self,
        mut request: Builder,
        payload: RequestBody,
    ) -> Result<Response<Incoming>, ClientError> {
        if let Some(key) = self.key() {
            request = request.header(header::AUTHORIZATION, key.authorization());
        }
        // The URI is valid; a media type may contain anything.
        let request = request
            .body(payload)
            .map_err(|error| ClientError::Request { reason: error.to_string() })?;
        self.pool().request(request).await.map_err(|error| self.request_error(&error))
    }

    /// If there was a connection, the server may have processed the request.
    fn request_error(&self, error: &HttpError) -> ClientError {
        if error.is_connect() {
            return ClientError::connect(self.server(), error);
        }
        match error.source().and_then(|source| source.downcast_ref::<hyper::Error>()) {
            Some(error) if error.is_parse() => self.not_msgbus(&error.to_string()),
            _ => self.lost(&root_cause(error).to_string()),
        }
    }

    fn timed_out(&self, limit: Duration) -> ClientError {
        self.lost(&format!("no response within {}", format_duration(limit)))
    }

    pub(crate) fn lost(&self, reason: &str) -> ClientError {
        ClientError::Lost { server: self.server().to_string(), reason: reason.to_owned() }
    }

    pub(crate) fn not_msgbus(&self, reason: &str) -> ClientError {
        ClientError::NotMsgbus { server: self.server().to_string(), reason: reason.to_owned() }
    }

    /// Reads the whole body. There is no total time limit, only one for silence.
    pub(crate) async fn body(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        loop {
            let frame = match timeout(RESPONSE_TIMEOUT, body.frame()).await {
                Ok(Some(frame)) => {
                    frame.map_err(|error| self.lost(&root_cause(&error).to_string()))?
                }
                Ok(None) => return Ok(bytes.into()),
                Err(_) => return Err(self.timed_out(RESPONSE_TIMEOUT)),
            };
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > MAX_RESPONSE {
                return Err(self.not_msgbus("body too large"));
            }
            bytes.extend_from_slice(&data);
        }
    }

    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        response: Response<Incoming>,
    ) -> Result<T, ClientError> {
        let body = self.body(response).await?;
        serde_json::from_slice(&body)
            .map_err(|error| self.not_msgbus(&format!("invalid JSON: {}", json::brief(&error))))
    }

    /// The beginning of a text response, or of what a problem says, as one line.
    pub(crate) async fn text(&self, response: Response<Incoming>) -> Result<String, ClientError> {
        let is_problem = is_problem(response.headers());
        let body = self.body(response).await?;
        Ok(match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) if is_problem => one_line(problem.detail.as_bytes()),
            _ => one_line(&body),
        })
    }

    pub(crate) async fn refusal(&self, response: Response<Incoming>) -> ClientError {
        let (head, body) = response.into_parts();
        let mut response = Response::new(body);
        *response.headers_mut() = head.headers.clone();
        let text = match self.text(response).await {
            Ok(text) => text,
            // The server may close the connection after the head, which says enough.
            Err(_) if head.status == StatusCode::PAYLOAD_TOO_LARGE => {
                "payload too large".to_owned()
            }
            Err(error) => return error,
        };
        self.refused(head.status, &head.headers, text)
    }

    /// The error for a response with this head and text.
    pub(crate) fn refused(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        text: String,
    ) -> ClientError {
        match retry_after(status, headers) {
            Some(retry_after) => ClientError::Busy { status: status.as_u16(), text, retry_after },
            None if status.is_client_error() || status.is_server_error() => {
                ClientError::Refused { status: status.as_u16(), text }
            }
            None => self.not_msgbus(&status.to_string()),
        }
    }
}
