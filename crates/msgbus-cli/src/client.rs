//! Publishing and pulling, over HTTP.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderMap},
};
use hyper_util::{
    client::legacy::Client as HttpClient,
    rt::{TokioExecutor, TokioTimer},
};
use msgbus_core::{Message, Position, TopicName, format_duration, json};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::timeout;

use crate::{
    connection::Connector,
    error::{ClientError, retry_after},
    key::Key,
    start::Start,
    subscription::Subscription,
    tls::Roots,
    uri::{ServerUri, UriError},
};

/// A client of one server. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    server: ServerUri,
    key: Option<Key>,
    connector: Connector,
    http: HttpClient<Connector, Full<Bytes>>,
}

/// A message to publish: a payload, and what may be said about it. Anything that converts to
/// [`Bytes`] converts to a draft.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draft {
    payload: Bytes,
    ttl: Option<Duration>,
    content_type: Option<String>,
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
        let body = self.client.body(self.response).await?;
        let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let messages: Result<Vec<_>, _> = lines.map(json::read_message).collect();
        messages.map_err(|_| self.client.not_msgbus("what came is no message"))
    }
}

/// What a look at a topic has shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peeked {
    /// The messages, in order.
    pub messages: Vec<Message>,
    /// The life of the topic that they belong to; `None` when there is no such topic.
    pub epoch: Option<u64>,
    /// The id of the first message, or of the next one to be published when there is none here.
    pub next_id: Option<u64>,
    /// How many of those asked for were gone before that one.
    pub missed: u64,
    /// Whether the position was from another life of the topic.
    pub restarted: bool,
}

/// A topic in a list, as the server describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[expect(missing_docs, reason = "docs/protocol.md, section 7.1, describes the fields")]
pub struct TopicSummary {
    pub name: String,
    /// Nanoseconds; 0 for ever.
    pub ttl: u64,
    pub created: String,
    pub epoch: String,
    pub first_id: u64,
    pub next_id: u64,
    pub retained: u64,
    pub unpulled: u64,
    pub bytes: u64,
    pub subscribers: u64,
    pub waiters: u64,
    pub published: u64,
    pub pulled: u64,
    pub delivered: u64,
    pub missed: u64,
    pub expired: u64,
    pub expired_unpulled: u64,
    pub evicted: u64,
    pub evicted_unpulled: u64,
}

/// A topic with its bounds and subscriptions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[expect(missing_docs, reason = "docs/protocol.md, section 10.3, describes the fields")]
pub struct TopicDetails {
    #[serde(flatten)]
    pub topic: TopicSummary,
    pub max_messages: u64,
    pub max_bytes: u64,
    pub overflow: String,
    pub subscriptions: Vec<SubscriberDetails>,
}

/// One subscription of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[expect(missing_docs, reason = "docs/protocol.md, section 10.3, describes the fields")]
pub struct SubscriberDetails {
    pub peer: Option<String>,
    pub next_id: u64,
    pub received: u64,
    pub missed: u64,
    pub lag: u64,
}

impl Client {
    /// How long the server may say nothing while an answer is awaited.
    const PATIENCE: Duration = Duration::from_secs(30);
    /// The largest answer that is read, in bytes: a message of 1 GiB in base64, and its frame.
    const LARGEST_ANSWER: usize = 3 << 29;
    /// What is shown of an answer that is no message, in bytes.
    const LONGEST_TEXT: usize = 300;

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

    /// Publishes a message. When this returns, the server has accepted it.
    ///
    /// # Errors
    /// See [`ClientError`]. After [`ClientError::Connect`] the message may have been accepted all
    /// the same, when the connection broke before the answer came.
    pub async fn publish(
        &self,
        topic: &TopicName,
        message: impl Into<Draft>,
    ) -> Result<Published, ClientError> {
        self.put(topic, message.into(), "").await
    }

    async fn put(
        &self,
        topic: &TopicName,
        message: Draft,
        parameter: &str,
    ) -> Result<Published, ClientError> {
        let Draft { payload, ttl, content_type } = message;
        let mut query = parameter.to_owned();
        if let Some(ttl) = ttl {
            query.push_str(&format!("&ttl={}", format_duration(ttl)));
        }
        let mut request = Request::builder().method(Method::PUT).uri(self.server.topic(
            "http",
            topic,
            query.trim_start_matches('&'),
        ));
        if let Some(media_type) = content_type {
            request = request.header(header::CONTENT_TYPE, media_type);
        }
        let response = self.send(request, payload, Self::PATIENCE).await?;
        // The ancestor's first generations answered 200.
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
        let patience = Self::PATIENCE + options.wait.unwrap_or_default();
        Ok(self.get(topic, &query.join("&"), patience).await?.1)
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
        let query = format!("peek&max={max}{since}");
        let (headers, seen) = self.get(topic, &query, Self::PATIENCE).await?;
        let messages = match seen {
            Some(seen) => seen.messages().await?,
            None => Vec::new(),
        };
        let Start { epoch, next_id, missed, restarted } = Start::read(&headers);
        Ok(Peeked { messages, epoch, next_id, missed, restarted })
    }

    /// A GET of a topic that may be answered with messages, and the headers of the answer.
    async fn get(
        &self,
        topic: &TopicName,
        query: &str,
        patience: Duration,
    ) -> Result<(HeaderMap, Option<Pulled>), ClientError> {
        let uri = self.server.topic("http", topic, query);
        let request = Request::builder().method(Method::GET).uri(uri);
        let response = self.send(request, Bytes::new(), patience).await?;
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

    /// The topics of the server whose names begin with `prefix`, sorted by name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn topics(&self, prefix: &str) -> Result<Vec<TopicSummary>, ClientError> {
        let escape = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let mut topics: Vec<TopicSummary> = Vec::new();
        loop {
            let after = topics.last().map_or("", |last| last.name.as_str());
            let query = format!("prefix={}&after={}", escape(prefix), escape(after));
            let request = Request::builder()
                .method(Method::GET)
                .uri(self.server.root(&query))
                .header(header::ACCEPT, "application/json");
            let response = self.send(request, Bytes::new(), Self::PATIENCE).await?;
            if response.status() != StatusCode::OK {
                return Err(self.refusal(response).await);
            }
            let is_last = !response.headers().contains_key(header::LINK);
            let page: BTreeMap<String, TopicSummary> = self.json(response).await?;
            topics.extend(page.into_values());
            if is_last {
                return Ok(topics);
            }
        }
    }

    /// Everything that the server says of one topic; `None` when there is no such topic.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn inspect(&self, topic: &TopicName) -> Result<Option<TopicDetails>, ClientError> {
        let uri = self.server.inspection(topic);
        let request = Request::builder().method(Method::GET).uri(uri);
        let response = self.send(request, Bytes::new(), Self::PATIENCE).await?;
        match response.status() {
            StatusCode::OK => self.json(response).await.map(Some),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.refusal(response).await),
        }
    }

    /// Deletes a topic with its messages. Says whether there was one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete(&self, topic: &TopicName) -> Result<bool, ClientError> {
        let uri = self.server.topic("http", topic, "");
        let request = Request::builder().method(Method::DELETE).uri(uri);
        let response = self.send(request, Bytes::new(), Self::PATIENCE).await?;
        match response.status() {
            StatusCode::NO_CONTENT => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
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

    async fn send(
        &self,
        mut request: hyper::http::request::Builder,
        payload: Bytes,
        patience: Duration,
    ) -> Result<Response<Incoming>, ClientError> {
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, key.authorization());
        }
        // A valid address and an escaped topic make a valid URI; a media type may be anything.
        let request = request.body(Full::new(payload)).map_err(|error| self.broken(&error))?;
        match timeout(patience, self.http.request(request)).await {
            Ok(response) => response.map_err(|error| self.broken(&error)),
            Err(_) => Err(self.silent()),
        }
    }

    fn silent(&self) -> ClientError {
        ClientError::Lost {
            server: self.server.to_string(),
            reason: format!("nothing came for {}", format_duration(Self::PATIENCE)),
        }
    }

    fn broken(&self, error: &(dyn std::error::Error + 'static)) -> ClientError {
        ClientError::connect(&self.server, error)
    }

    fn not_msgbus(&self, reason: &str) -> ClientError {
        ClientError::NotMsgbus { server: self.server.to_string(), reason: reason.to_owned() }
    }

    /// A whole body, however long it takes, as long as something comes.
    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        loop {
            let frame = match timeout(Self::PATIENCE, body.frame()).await {
                Ok(Some(frame)) => frame.map_err(|error| self.broken(&error))?,
                Ok(None) => return Ok(bytes.into()),
                Err(_) => return Err(self.silent()),
            };
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > Self::LARGEST_ANSWER {
                return Err(self.not_msgbus("it says too much"));
            }
            bytes.extend_from_slice(&data);
        }
    }

    async fn json<T: DeserializeOwned>(
        &self,
        response: Response<Incoming>,
    ) -> Result<T, ClientError> {
        let body = self.body(response).await?;
        serde_json::from_slice(&body)
            .map_err(|error| self.not_msgbus(&format!("odd JSON: {}", json::brief(&error))))
    }

    /// An answer for people, in one line.
    async fn text(&self, response: Response<Incoming>) -> Result<String, ClientError> {
        let body = self.body(response).await?;
        let text = String::from_utf8_lossy(&body[..body.len().min(Self::LONGEST_TEXT)]);
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    async fn refusal(&self, response: Response<Incoming>) -> ClientError {
        let status = response.status();
        let retry_after = retry_after(status, response.headers());
        let text = match self.text(response).await {
            Ok(text) => text,
            Err(error) => return error,
        };
        match retry_after {
            Some(retry_after) => ClientError::Busy { text, retry_after },
            None if status.is_client_error() || status.is_server_error() => {
                ClientError::Refused { status: status.as_u16(), text }
            }
            None => self.not_msgbus(&status.to_string()),
        }
    }
}

fn pool(connector: &Connector) -> HttpClient<Connector, Full<Bytes>> {
    HttpClient::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector.clone())
}
