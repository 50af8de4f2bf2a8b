//! Publishing and pulling, over HTTP.

use std::{borrow::Cow, io, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderMap},
    http::request::Builder,
};
use msgbus_core::{HeaderError, Headers, Message, Position, TopicName, format_duration};

use crate::{
    connection::Connector,
    error::ClientError,
    key::Key,
    received::Received,
    start::Start,
    subscription::Subscription,
    tls::Roots,
    transport::{Pool, RESPONSE_TIMEOUT, pool, streamed, whole},
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

/// A message to publish: a payload, and what may be said about it. Anything that converts to
/// [`Bytes`] converts to a draft.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draft {
    payload: Bytes,
    ttl: Option<Duration>,
    content_type: Option<String>,
    content_encoding: Option<String>,
    headers: Headers,
}

impl Draft {
    /// Lets the message expire earlier than its topic says.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Says what the payload is: a media type.
    #[must_use]
    pub fn content_type(mut self, media_type: impl Into<String>) -> Self {
        self.content_type = Some(media_type.into());
        self
    }

    /// Says how the payload is compressed, as in `gzip`. The server keeps it as it is.
    #[must_use]
    pub fn content_encoding(mut self, coding: impl Into<String>) -> Self {
        self.content_encoding = Some(coding.into());
        self
    }
}

impl Draft {
    /// Replaces all other headers. The server keeps them in lower case.
    #[must_use]
    pub fn headers(mut self, headers: Headers) -> Self {
        self.headers = headers;
        self
    }

    /// Adds a header. The server keeps it in lower case.
    ///
    /// # Errors
    /// See [`HeaderError`].
    pub fn header(mut self, name: &str, value: &str) -> Result<Self, HeaderError> {
        self.headers = self.headers.with(name, value)?;
        Ok(self)
    }
}

/// The HTTP header for a header of a message. docs/protocol.md, 4.7.
fn http_name(name: &str) -> Cow<'_, str> {
    let has_own_name = [
        Headers::CONTENT_TYPE,
        Headers::CONTENT_ENCODING,
        Headers::CORRELATION_ID,
        Headers::IDEMPOTENCY_KEY,
    ];
    let prefix = name.get(..Headers::CLOUD_EVENTS_PREFIX.len()).unwrap_or_default();
    if has_own_name.iter().any(|own| name.eq_ignore_ascii_case(own))
        || prefix.eq_ignore_ascii_case(Headers::CLOUD_EVENTS_PREFIX)
    {
        name.into()
    } else {
        format!("Msgbus-Header-{name}").into()
    }
}

impl<T: Into<Bytes>> From<T> for Draft {
    fn from(payload: T) -> Self {
        Self { payload: payload.into(), ..Self::default() }
    }
}

/// Where an accepted message went. A server of another make may not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The number of the message in its topic.
    pub id: Option<u64>,
    /// The life of the topic that the number belongs to.
    pub epoch: Option<u64>,
}

/// How to pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PullOptions {
    /// At most so many messages at once; one if not given.
    pub max: Option<usize>,
    /// Wait for the first one for so long; the server takes a minute at most.
    pub wait: Option<Duration>,
}

/// Messages that the server has taken out and that are on their way: dropping this loses them.
#[derive(Debug)]
pub struct Pulled {
    client: Client,
    response: Response<Incoming>,
}

impl Pulled {
    /// Receives the messages, at least one.
    ///
    /// # Errors
    /// See [`ClientError`]. The messages are lost then.
    pub async fn messages(self) -> Result<Vec<Message>, ClientError> {
        Ok(self.messages_and_gaps().await?.0)
    }

    /// The messages, and the gaps as [`Peeked::gaps`] has them.
    async fn messages_and_gaps(self) -> Result<(Vec<Message>, Vec<(usize, u64)>), ClientError> {
        let body = self.client.body(self.response).await?;
        let (mut messages, mut gaps) = (Vec::new(), Vec::new());
        for line in body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match Received::read(line) {
                Ok(Received::Message(message)) => messages.push(message),
                Ok(Received::Gap(gap)) => gaps.push((messages.len(), gap.missed)),
                Err(error) => {
                    return Err(self.client.not_msgbus(&format!("not a message, {error}")));
                }
            }
        }
        Ok((messages, gaps))
    }
}

/// What a look at a topic has shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peeked {
    /// The messages, in order.
    pub messages: Vec<Message>,
    /// The gaps between the messages: the index of the message after the gap, and how many were missed.
    pub gaps: Vec<(usize, u64)>,
    /// The life of the topic that they belong to; `None` when there is no such topic.
    pub epoch: Option<u64>,
    /// The id of the first message, or of the next one to be published when there is none here.
    pub next_id: Option<u64>,
    /// How many of those asked for were gone before that one.
    pub missed: u64,
    /// Whether the position was from another life of the topic.
    pub restarted: bool,
}

impl Client {
    /// A client of the server at this address. Nothing is connected yet.
    ///
    /// # Errors
    /// When `uri` is no address of a server.
    pub fn new(uri: &str) -> Result<Self, UriError> {
        let server = uri.parse()?;
        let connector = Connector::new(&server);
        Ok(Self { http: pool(&connector), server, key: None, connector })
    }

    /// The same client with other roots, which are trusted instead of the system's. They matter to
    /// `https` only.
    #[must_use]
    pub fn with_roots(self, roots: Roots) -> Self {
        let connector = self.connector.with_roots(roots);
        Self { http: pool(&connector), connector, ..self }
    }

    /// The same client with a key, which goes with every request.
    #[must_use]
    pub fn with_key(self, key: Key) -> Self {
        Self { key: Some(key), ..self }
    }

    /// The key that goes with every request, if there is one.
    pub fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// The server's address.
    pub fn server(&self) -> &ServerUri {
        &self.server
    }

    /// What makes the connections to the server.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.http
    }

    /// Publishes a message. When this returns, the server has accepted it.
    ///
    /// # Errors
    /// See [`ClientError`]. After [`ClientError::Lost`] the server may have accepted the message:
    /// the connection broke before its response arrived.
    pub async fn publish(
        &self,
        topic: &TopicName,
        message: impl Into<Draft>,
    ) -> Result<Published, ClientError> {
        self.put(topic, message.into(), "").await
    }

    /// Publishes a message whose payload is read while it is sent: that of the draft, then
    /// `chunks`. Memory holds a few chunks at a time. The server refuses a payload that is too
    /// large when it has read a little more than it accepts.
    ///
    /// No time limit applies: it takes as long as `chunks` do.
    ///
    /// # Errors
    /// See [`publish`](Self::publish). When a chunk is an error, nothing is published.
    pub async fn publish_stream(
        &self,
        topic: &TopicName,
        message: impl Into<Draft>,
        chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<Published, ClientError> {
        let message = message.into();
        let head = stream::iter([Ok(message.payload.clone())]);
        let request = self.put_request(topic, &message, "");
        let response = self.send_unlimited(request, streamed(head.chain(chunks))).await?;
        self.published(response).await
    }

    async fn put(
        &self,
        topic: &TopicName,
        message: Draft,
        parameter: &str,
    ) -> Result<Published, ClientError> {
        let request = self.put_request(topic, &message, parameter);
        let payload = whole(message.payload);
        let response = self.send_payload(request, payload, RESPONSE_TIMEOUT).await?;
        self.published(response).await
    }

    fn put_request(&self, topic: &TopicName, message: &Draft, parameter: &str) -> Builder {
        let ttl = message.ttl.map(|ttl| format!("ttl={}", format_duration(ttl)));
        let parameter = Some(parameter.to_owned()).filter(|text| !text.is_empty());
        let query: Vec<String> = parameter.into_iter().chain(ttl).collect();
        let uri = self.server.topic("http", topic, &query.join("&"));
        let mut request = Request::builder().method(Method::PUT).uri(uri);
        if let Some(media_type) = &message.content_type {
            request = request.header(header::CONTENT_TYPE, media_type);
        }
        if let Some(encoding) = &message.content_encoding {
            request = request.header(header::CONTENT_ENCODING, encoding);
        }
        for (name, value) in &message.headers {
            request = request.header(&*http_name(name), value.as_bytes());
        }
        request
    }

    async fn published(&self, response: Response<Incoming>) -> Result<Published, ClientError> {
        // Old servers answer 200.
        if !matches!(response.status(), StatusCode::ACCEPTED | StatusCode::OK) {
            return Err(self.refusal(response).await);
        }
        let number = |name| response.headers().get(name)?.to_str().ok()?.parse().ok();
        Ok(Published { id: number("msgbus-id"), epoch: number("msgbus-epoch") })
    }

    /// Pulls the oldest message that nobody has pulled; `None` when there is none.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn pull(&self, topic: &TopicName) -> Result<Option<Message>, ClientError> {
        match self.begin_pull(topic, PullOptions::default()).await? {
            Some(pulled) => Ok(pulled.messages().await?.pop()),
            None => Ok(None),
        }
    }

    /// Pulls in two steps: when this returns, the server has taken messages out for us, which are
    /// still on their way. `None` when there is none, or none came in time.
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

    /// Looks at messages without taking them: from a position on, or those that nobody has pulled.
    /// Also where there is none, it says how many are gone and what comes next.
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
        let Start { epoch, next_id, missed, restarted } = Start::read(&headers);
        Ok(Peeked { messages, gaps, epoch, next_id, missed, restarted })
    }

    /// A GET of a topic that may be answered with messages, and the headers of the answer.
    async fn get(
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
                // Any web server says 404; only this one says so of a topic.
                if text.contains("no messages enqueued") || text == "Not Found" {
                    Ok((headers, None))
                } else {
                    Err(self.not_msgbus(&format!("404 {text}")))
                }
            }
            _ => Err(self.refusal(response).await),
        }
    }

    /// Publishes each line of `lines` as a message, all or none.
    ///
    /// # Errors
    /// See [`ClientError`], and [`publish`](Self::publish).
    pub async fn publish_lines(
        &self,
        topic: &TopicName,
        lines: impl Into<Draft>,
    ) -> Result<(), ClientError> {
        self.put(topic, lines.into(), "split=lines").await.map(|_| ())
    }

    /// Subscribes to a topic from a position on. It connects when it is first asked for an event,
    /// and again whenever the connection breaks, and goes on where it was.
    pub fn subscribe(&self, topic: &TopicName, from: Position) -> Subscription {
        Subscription::new(self.clone(), topic.clone(), from)
    }
}
