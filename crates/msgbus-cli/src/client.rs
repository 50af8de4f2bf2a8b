//! Publishing and pulling, over HTTP.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use msgbus_core::{Message, Position, TopicName, format_duration, json};
use tokio::time::timeout;

use crate::{
    error::{ClientError, retry_after},
    subscription::Subscription,
    uri::{ServerUri, UriError},
};

/// A client of one server. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    server: ServerUri,
    http: HttpClient<HttpConnector, Full<Bytes>>,
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

/// A message that the server has taken out and that is on its way: dropping this loses it.
#[derive(Debug)]
pub struct Pulled {
    client: Client,
    response: Response<Incoming>,
}

impl Pulled {
    /// Receives the message.
    ///
    /// # Errors
    /// See [`ClientError`]. The message is lost then.
    pub async fn message(self) -> Result<Message, ClientError> {
        let body = self.client.body(self.response).await?;
        json::read_message(&body).map_err(|_| self.client.not_msgbus("what came is no message"))
    }
}

impl Client {
    /// How long a connection may take to be made.
    const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
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
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Self::CONNECT_TIMEOUT));
        let http = HttpClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self { server, http })
    }

    /// The server's address.
    pub fn server(&self) -> &ServerUri {
        &self.server
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
        let Draft { payload, ttl, content_type } = message.into();
        let query = ttl.map_or(String::new(), |ttl| format!("ttl={}", format_duration(ttl)));
        let mut request =
            Request::builder().method(Method::PUT).uri(self.server.topic("http", topic, &query));
        if let Some(media_type) = content_type {
            request = request.header(header::CONTENT_TYPE, media_type);
        }
        let response = self.send(request, payload).await?;
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
        match self.begin_pull(topic).await? {
            Some(pulled) => pulled.message().await.map(Some),
            None => Ok(None),
        }
    }

    /// Pulls in two steps: when this returns, the server has taken a message out for us, which is
    /// still on its way.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn begin_pull(&self, topic: &TopicName) -> Result<Option<Pulled>, ClientError> {
        let request =
            Request::builder().method(Method::GET).uri(self.server.topic("http", topic, ""));
        let response = self.send(request, Bytes::new()).await?;
        match response.status() {
            StatusCode::OK => Ok(Some(Pulled { client: self.clone(), response })),
            StatusCode::NOT_FOUND => {
                let text = self.text(response).await?;
                // Any web server says 404; only this one says so of a topic.
                if text.contains("no messages enqueued") || text == "Not Found" {
                    Ok(None)
                } else {
                    Err(self.not_msgbus(&format!("404 {text}")))
                }
            }
            _ => Err(self.refusal(response).await),
        }
    }

    /// Subscribes to a topic from a position on. It connects when it is first asked for an event,
    /// and again whenever the connection breaks, and goes on where it was.
    pub fn subscribe(&self, topic: &TopicName, from: Position) -> Subscription {
        Subscription::new(self.server.clone(), topic.clone(), from)
    }

    async fn send(
        &self,
        request: hyper::http::request::Builder,
        payload: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        // A valid address and an escaped topic make a valid URI; a media type may be anything.
        let request = request.body(Full::new(payload)).map_err(|error| self.broken(&error))?;
        match timeout(Self::PATIENCE, self.http.request(request)).await {
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

    /// An answer for people, in one line.
    async fn text(&self, response: Response<Incoming>) -> Result<String, ClientError> {
        let body = self.body(response).await?;
        let text = String::from_utf8_lossy(&body[..body.len().min(Self::LONGEST_TEXT)]);
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    async fn refusal(&self, response: Response<Incoming>) -> ClientError {
        let status = response.status();
        let retry_after = retry_after(response.headers());
        let text = match self.text(response).await {
            Ok(text) => text,
            Err(error) => return error,
        };
        match (status, retry_after) {
            (StatusCode::SERVICE_UNAVAILABLE, Some(retry_after)) => {
                ClientError::Busy { text, retry_after }
            }
            _ if status.is_client_error() || status.is_server_error() => {
                ClientError::Refused { status: status.as_u16(), text }
            }
            _ => self.not_msgbus(&status.to_string()),
        }
    }
}
