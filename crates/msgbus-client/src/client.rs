//! Publishing and pulling, over HTTP.

use std::{io, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header::HeaderMap,
    http::request::Builder,
};
use msgbus_core::{Message, NewMessage, Position, TopicName, format_duration};

use crate::{
    connection::Connector,
    error::ClientError,
    key::Key,
    message_headers,
    received::Received,
    start_position::StartPosition,
    subscription::Subscription,
    tls::Roots,
    transport::{Pool, RESPONSE_TIMEOUT, buffered_body, pool, streamed_body},
    uri::{ServerUri, UriError},
};

/// A client of one server. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    server: ServerUri,
    key: Option<Key>,
    connector: Connector,
    http: Pool,
}

/// The id of an accepted message. prologic/msgbus does not report it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The id of the message in its topic.
    pub id: Option<u64>,
    /// The epoch of the topic that the id belongs to.
    pub epoch: Option<u64>,
}

/// Options of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PullOptions {
    /// The maximum number of messages; 1 by default.
    pub max: Option<usize>,
    /// How long to wait for the first message. The server waits one minute at most.
    pub wait: Option<Duration>,
}

/// Messages that the server has taken out of the topic and is sending. Dropping this loses them.
#[derive(Debug)]
pub struct Pulled {
    client: Client,
    response: Response<Incoming>,
}

impl Pulled {
    /// Receives the messages, at least one.
    ///
    /// # Errors
    /// See [`ClientError`]. If it fails, the messages are lost.
    pub async fn messages(self) -> Result<Vec<Message>, ClientError> {
        Ok(self.messages_and_gaps().await?.0)
    }

    pub(crate) async fn body(self) -> Result<Bytes, ClientError> {
        self.client.body(self.response).await
    }

    /// Receives the messages, and the gaps in the form of [`Peeked::gaps`].
    async fn messages_and_gaps(self) -> Result<(Vec<Message>, Vec<(usize, u64)>), ClientError> {
        let client = self.client.clone();
        let body = self.body().await?;
        let (mut messages, mut gaps) = (Vec::new(), Vec::new());
        for line in body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match Received::read(line) {
                Ok(Received::Message(message)) => messages.push(message),
                Ok(Received::Gap(gap)) => gaps.push((messages.len(), gap.missed)),
                Ok(Received::Other(_)) => {}
                Err(error) => {
                    return Err(client.not_msgbus(&format!("not a message, {error}")));
                }
            }
        }
        Ok((messages, gaps))
    }
}

/// The result of [`Client::peek`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peeked {
    /// The messages, in order.
    pub messages: Vec<Message>,
    /// The gaps between the messages: the index of the message after the gap, and the number of
    /// missed messages.
    pub gaps: Vec<(usize, u64)>,
    /// The epoch of the topic; `None` if the topic does not exist.
    pub epoch: Option<u64>,
    /// The id of the first returned message; if there is none, the id of the next message to be
    /// published.
    pub next_id: Option<u64>,
    /// The number of requested messages before `next_id` that had already left the topic.
    pub missed: u64,
    /// Whether the requested position belongs to an earlier epoch of the topic.
    pub restarted: bool,
}

impl Client {
    /// Creates a client of the server at this address. It does not connect yet.
    ///
    /// # Errors
    /// `uri` is not a valid server address.
    pub fn new(uri: &str) -> Result<Self, UriError> {
        let server = uri.parse()?;
        let connector = Connector::new(&server);
        Ok(Self { http: pool(&connector), server, key: None, connector })
    }

    /// Returns the client with these root certificates, which replace the system's. They apply to
    /// `https` only.
    #[must_use]
    pub fn with_roots(self, roots: Roots) -> Self {
        let connector = self.connector.with_roots(roots);
        Self { http: pool(&connector), connector, ..self }
    }

    /// Returns the client with a key, which it sends with every request.
    #[must_use]
    pub fn with_key(self, key: Key) -> Self {
        Self { key: Some(key), ..self }
    }

    /// The key that is sent with every request.
    pub fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// The server's address.
    pub fn server(&self) -> &ServerUri {
        &self.server
    }

    /// The connector that opens connections to the server.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.http
    }

    /// Publishes a message. On success the server has accepted it.
    ///
    /// # Errors
    /// See [`ClientError`]. After [`ClientError::Lost`] the server may have accepted the message:
    /// the connection broke before its response arrived.
    pub async fn publish(
        &self,
        topic: &TopicName,
        message: impl Into<NewMessage>,
    ) -> Result<Published, ClientError> {
        self.put(topic, message.into(), "").await
    }

    /// Publishes a message whose payload is streamed: the payload of `message`, then `chunks`.
    /// Memory holds a few chunks at a time. The server rejects an oversized payload once it has
    /// read slightly more than its limit.
    ///
    /// There is no time limit: the call takes as long as `chunks` does.
    ///
    /// # Errors
    /// See [`publish`](Self::publish). If a chunk is an error, nothing is published.
    pub async fn publish_stream(
        &self,
        topic: &TopicName,
        message: impl Into<NewMessage>,
        chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<Published, ClientError> {
        let (request, head) = self.put_request(topic, message.into(), "");
        let body = streamed_body(stream::iter([Ok(head)]).chain(chunks));
        let response = self.send_unlimited(request, body).await?;
        self.published(response).await
    }

    async fn put(
        &self,
        topic: &TopicName,
        message: NewMessage,
        parameter: &str,
    ) -> Result<Published, ClientError> {
        let (request, payload) = self.put_request(topic, message, parameter);
        let payload = buffered_body(payload);
        let response = self.send_payload(request, payload, RESPONSE_TIMEOUT).await?;
        self.published(response).await
    }

    /// The head of a request that publishes a message, and its payload.
    fn put_request(
        &self,
        topic: &TopicName,
        message: NewMessage,
        parameter: &str,
    ) -> (Builder, Bytes) {
        let (payload, ttl, headers) = message.into_parts();
        let ttl = ttl.map(|ttl| format!("ttl={}", format_duration(ttl)));
        let parameter = Some(parameter.to_owned()).filter(|text| !text.is_empty());
        let query: Vec<String> = parameter.into_iter().chain(ttl).collect();
        let uri = self.server.topic("http", topic, &query.join("&"));
        let request = Request::builder().method(Method::PUT).uri(uri);
        (message_headers::write(&headers, request), payload)
    }

    async fn published(&self, response: Response<Incoming>) -> Result<Published, ClientError> {
        // prologic/msgbus answers 200.
        if !matches!(response.status(), StatusCode::ACCEPTED | StatusCode::OK) {
            return Err(self.refusal(response).await);
        }
        let number = |name| response.headers().get(name)?.to_str().ok()?.parse().ok();
        Ok(Published { id: number("msgbus-id"), epoch: number("msgbus-epoch") })
    }

    /// Pulls the oldest message that has not been pulled yet; `None` if there is none.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn pull(&self, topic: &TopicName) -> Result<Option<Message>, ClientError> {
        match self.begin_pull(topic, PullOptions::default()).await? {
            Some(pulled) => Ok(pulled.messages().await?.pop()),
            None => Ok(None),
        }
    }

    /// Pulls in two steps: when this returns, the server has taken messages out of the topic, but
    /// they have not arrived yet. `None` if there was no message, or none within `options.wait`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn begin_pull(
        &self,
        topic: &TopicName,
        options: PullOptions,
    ) -> Result<Option<Pulled>, ClientError> {
        let max = options.max.map(|max| format!("max={max}"));
        let wait = options.wait.map(|wait| format!("wait={}", format_duration(wait)));
        let query: Vec<String> = max.into_iter().chain(wait).collect();
        let limit = RESPONSE_TIMEOUT + options.wait.unwrap_or_default();
        Ok(self.get(topic, &query.join("&"), limit).await?.1)
    }

    /// Reads messages without taking them: from a position on, or those that have not been pulled
    /// yet. Reports the next id and the number of missed messages even if no message is returned.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn peek(
        &self,
        topic: &TopicName,
        from: Option<Position>,
        max: usize,
    ) -> Result<Peeked, ClientError> {
        let since = from.map_or(String::new(), |from| format!("&since={from}"));
        let query = format!("peek&gaps&max={max}{since}");
        let (headers, seen) = self.get(topic, &query, RESPONSE_TIMEOUT).await?;
        let (messages, gaps) = match seen {
            Some(seen) => seen.messages_and_gaps().await?,
            None => Default::default(),
        };
        let StartPosition { epoch, next_id, missed, restarted } = StartPosition::read(&headers);
        let missed = missed.unwrap_or(0);
        Ok(Peeked { messages, gaps, epoch, next_id, missed, restarted })
    }

    /// Sends a GET for a topic. Returns the response headers, and the messages if there are any.
    pub(crate) async fn get(
        &self,
        topic: &TopicName,
        query: &str,
        limit: Duration,
    ) -> Result<(HeaderMap, Option<Pulled>), ClientError> {
        let uri = self.server.topic("http", topic, query);
        let request = Request::builder().method(Method::GET).uri(uri);
        let response = self.send(request, limit).await?;
        let headers = response.headers().clone();
        match response.status() {
            StatusCode::OK => Ok((headers, Some(Pulled { client: self.clone(), response }))),
            StatusCode::NO_CONTENT => Ok((headers, None)),
            StatusCode::NOT_FOUND => {
                let text = self.text(response).await?;
                // Any web server may answer 404. These bodies are those of a msgbus server.
                if text.contains("no messages enqueued") || text == "Not Found" {
                    Ok((headers, None))
                } else {
                    Err(self.not_msgbus(&format!("404 {text}")))
                }
            }
            _ => Err(self.refusal(response).await),
        }
    }

    /// Publishes each line of `lines` as a message: either all of them or none.
    ///
    /// # Errors
    /// See [`ClientError`], and [`publish`](Self::publish).
    pub async fn publish_lines(
        &self,
        topic: &TopicName,
        lines: impl Into<NewMessage>,
    ) -> Result<(), ClientError> {
        self.put(topic, lines.into(), "split=lines").await.map(|_| ())
    }

    /// Subscribes to a topic from a position on. The subscription connects at the first call of
    /// [`Subscription::next`]. When the connection breaks, it reconnects and resumes.
    pub fn subscribe(&self, topic: &TopicName, from: Position) -> Subscription {
        Subscription::new(self.clone(), topic.clone(), from)
    }
}
