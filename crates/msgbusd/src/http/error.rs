//! What a client is told when it gets nothing: the only table from errors to status, text and code
//! word. docs/protocol.md, section 8.

use std::time::Duration;

use http_body_util::{Either, Full};
use hyper::{
    Response, StatusCode,
    header::{self, HeaderMap, HeaderValue},
};
use msgbus_core::{
    LimitReached, NameError, PublishError, StartPosition, SubscribeError, TopicName,
    format_duration,
};
use thiserror::Error;

use super::{Answer, accepts, answers};
use crate::{code::Code, rate::Rate, rates::OverRate};

/// What a 401 asks for. Basic is taken but not asked for: a browser would ask its user for the key, and
/// from then on send it with whatever any page makes it request here.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"msgbus\"");

/// Why a request was refused. The text is for people: what was wrong, and what would be right.
#[derive(Debug, Error)]
pub(super) enum Refusal {
    #[error("bad percent-encoding in the path: use %XX with two hex digits, and UTF-8")]
    PathEncoding,
    #[error("bad topic name: {0}")]
    Name(#[from] NameError),
    #[error("there is no topic in the path: use /<topic>")]
    NoTopic,
    #[error("unknown parameter {name:?}; {}", allowed(.known))]
    UnknownParameter { name: String, known: &'static [&'static str] },
    #[error("parameter {0:?} is given more than once")]
    RepeatedParameter(&'static str),
    #[error("bad value of parameter {name:?}: {why}")]
    Parameter { name: &'static str, why: String },
    #[error("bad value of header {name}: {why}")]
    Header { name: &'static str, why: &'static str },
    #[error("header {0} is given more than once")]
    RepeatedHeader(&'static str),
    #[error("HTTP/1.1 needs a Host header: add Host: <server>")]
    NoHost,
    #[error("unknown Transfer-Encoding: use chunked, or Content-Length")]
    TransferCoding,
    #[error("{0}")]
    Handshake(&'static str),
    #[error("unsupported websocket version: use 13")]
    WebsocketVersion,
    #[error("there is nothing to subscribe to on /: open the websocket on /<topic>")]
    WebsocketOnRoot,
    #[error("requests from {origin:?} are not allowed; {}", advice(.origin))]
    ForeignOrigin { origin: String },
    #[error("requests that another site makes a browser send are not allowed")]
    CrossSite,
    #[error("a link on another site takes no message: enter the address yourself, or add ?peek")]
    CrossSitePull,
    #[error(
        "a browser that does not say which page asks takes no message: add ?peek or the header \
         X-Requested-With, or use TLS or curl"
    )]
    UnknownPage,
    #[error("a prefetch takes no message: request it when somebody looks")]
    Prefetch,
    #[error("the host {host:?} is not allowed; --allow-host lets a name in, an address needs none")]
    ForeignHost { host: String },
    #[error("the request is for http, and this connection is TLS: use https")]
    WrongScheme,
    #[error("{need} needs a key: send it as Authorization: Bearer KEY")]
    KeyNeeded { need: String },
    #[error("invalid key; send a valid one as Authorization: Bearer KEY")]
    WrongKey,
    #[error("invalid or expired ticket; tickets are single-use and last 30 seconds")]
    WrongTicket,
    #[error("the key {key:?} does not allow {need}")]
    NotGranted { key: String, need: String },
    #[error("too many tickets are open: each is gone after 30 seconds")]
    TooManyTickets,
    #[error("no messages enqueued for topic: {0}")]
    Empty(TopicName),
    #[error("no messages enqueued for topic: {topic}")]
    NothingFrom { topic: TopicName, epoch: u64, start: StartPosition },
    #[error("no such topic: {0}")]
    NoSuchTopic(TopicName),
    #[error("not found; try /-/stats, /-/topics/<topic> or /-/ticket")]
    NothingHere,
    #[error("method not allowed: use {allow}")]
    Method { allow: &'static str },
    #[error("payload exceeds max-payload-size: at most {limit} bytes are allowed")]
    PayloadTooLarge { limit: usize },
    #[error("error reading payload: it is broken, or ends too early")]
    Body,
    #[error("error reading payload: nothing came for {}", format_duration(*.0))]
    BodyTimeout(Duration),
    #[error("lines of an encoded payload cannot be split: leave out ?split or Content-Encoding")]
    EncodedLines,
    #[error("server is busy: in-flight memory limit reached; retry shortly")]
    NoRoomForPayload,
    #[error("server is busy: in-flight memory limit reached; retry shortly")]
    TooMuchInFlight,
    #[error("too many subscriptions: at most {limit} are open at a time")]
    TooManySubscriptions { limit: usize },
    #[error("too many messages: the next one may come in {retry_after} s")]
    TooManyMessages { retry_after: u64 },
    #[error(
        "the batch has {count} messages, and at most {rate} a second may be published: \
         send at most {rate} in one request"
    )]
    BatchOverRate { count: usize, rate: Rate },
    #[error("{0}")]
    Publish(#[from] PublishError),
    #[error("{0}")]
    Subscribe(#[from] SubscribeError),
}

fn advice(origin: &str) -> &'static str {
    if origin == "null" {
        "pages opened as files cannot be allowed; serve them over HTTP"
    } else {
        "--allow-origin lets an origin in"
    }
}

/// Whether a client would rather have a problem document than text.
pub(super) fn prefers_json(headers: &HeaderMap) -> bool {
    accepts(headers, "application/json") || accepts(headers, "application/problem+json")
}

fn allowed(known: &[&str]) -> String {
    if known.is_empty() {
        "this request takes no parameters".to_owned()
    } else {
        format!("expected one of: {}", known.join(", "))
    }
}

impl Refusal {
    /// A parameter whose value is wrong.
    pub(super) fn parameter(name: &'static str, why: impl Into<String>) -> Self {
        Self::Parameter { name, why: why.into() }
    }

    /// For this many messages.
    pub(super) fn over_rate(over: OverRate, count: usize) -> Self {
        match over {
            // In whole seconds, so that it is never too early.
            OverRate::Wait(wait) => Self::TooManyMessages {
                retry_after: wait.as_secs() + u64::from(wait.subsec_nanos() > 0),
            },
            OverRate::Never(rate) => Self::BatchOverRate { count, rate },
        }
    }

    /// Status and code word.
    fn kind(&self) -> (StatusCode, Code) {
        match self {
            Self::PathEncoding | Self::Name(_) | Self::NoTopic => {
                (StatusCode::BAD_REQUEST, Code::BadTopic)
            }
            Self::UnknownParameter { .. } | Self::RepeatedParameter(_) | Self::Parameter { .. } => {
                (StatusCode::BAD_REQUEST, Code::BadParameter)
            }
            Self::Header { .. } | Self::RepeatedHeader(_) | Self::NoHost => {
                (StatusCode::BAD_REQUEST, Code::BadHeader)
            }
            Self::TransferCoding => (StatusCode::NOT_IMPLEMENTED, Code::UnknownTransferCoding),
            Self::ForeignHost { .. } => (StatusCode::MISDIRECTED_REQUEST, Code::ForeignHost),
            Self::WrongScheme => (StatusCode::MISDIRECTED_REQUEST, Code::WrongScheme),
            Self::Prefetch => (StatusCode::SERVICE_UNAVAILABLE, Code::Prefetch),
            Self::Handshake(_) | Self::WebsocketOnRoot => {
                (StatusCode::BAD_REQUEST, Code::BadHandshake)
            }
            Self::WebsocketVersion => (StatusCode::UPGRADE_REQUIRED, Code::BadWebsocketVersion),
            Self::ForeignOrigin { .. }
            | Self::CrossSite
            | Self::CrossSitePull
            | Self::UnknownPage => (StatusCode::FORBIDDEN, Code::ForeignOrigin),
            Self::KeyNeeded { .. } => (StatusCode::UNAUTHORIZED, Code::KeyNeeded),
            Self::WrongKey => (StatusCode::UNAUTHORIZED, Code::WrongKey),
            Self::WrongTicket => (StatusCode::UNAUTHORIZED, Code::WrongTicket),
            Self::NotGranted { .. } => (StatusCode::FORBIDDEN, Code::NotGranted),
            Self::TooManyTickets => (StatusCode::SERVICE_UNAVAILABLE, Code::TooManyTickets),
            Self::Empty(_) | Self::NothingFrom { .. } => (StatusCode::NOT_FOUND, Code::Empty),
            Self::NothingHere => (StatusCode::NOT_FOUND, Code::NothingHere),
            Self::NoSuchTopic(_) => (StatusCode::NOT_FOUND, Code::NoSuchTopic),
            Self::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, Code::MethodNotAllowed),
            Self::PayloadTooLarge { .. } | Self::BatchOverRate { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, Code::PayloadTooLarge)
            }
            Self::EncodedLines => (StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::EncodedLines),
            Self::Body => (StatusCode::BAD_REQUEST, Code::BadBody),
            Self::BodyTimeout(_) => (StatusCode::REQUEST_TIMEOUT, Code::BodyTimeout),
            Self::NoRoomForPayload | Self::TooMuchInFlight => {
                (StatusCode::SERVICE_UNAVAILABLE, Code::TooMuchInFlight)
            }
            Self::TooManySubscriptions { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, Code::TooManySubscriptions)
            }
            Self::TooManyMessages { .. } => (StatusCode::TOO_MANY_REQUESTS, Code::TooManyMessages),
            Self::Publish(error) => match error {
                PublishError::TooLarge { .. } | PublishError::TooMany { .. } => {
                    (StatusCode::PAYLOAD_TOO_LARGE, Code::PayloadTooLarge)
                }
                PublishError::TopicFull => (StatusCode::INSUFFICIENT_STORAGE, Code::TopicFull),
                PublishError::LimitReached(error) => limit_reached(error),
                _ => (StatusCode::SERVICE_UNAVAILABLE, Code::Closed),
            },
            Self::Subscribe(_) => (StatusCode::SERVICE_UNAVAILABLE, Code::Closed),
        }
    }

    pub(super) fn code(&self) -> Code {
        self.kind().1
    }

    /// What a log may have of it: nothing of the query, where a key may be by mistake. Only the name of an
    /// unknown parameter is repeated at all.
    pub(super) fn for_the_log(&self) -> String {
        match self {
            Self::UnknownParameter { .. } => "unknown parameter".to_owned(),
            other => other.to_string(),
        }
    }

    /// The headers that this refusal needs besides.
    fn headers(&self, headers: &mut HeaderMap) {
        let value = HeaderValue::from_static;
        match self {
            // All gone, or nothing new: the client can tell.
            Self::NothingFrom { epoch, start, .. } => answers::tell_start(headers, *epoch, *start),
            Self::Method { allow } => {
                headers.insert(header::ALLOW, value(allow));
            }
            Self::WebsocketVersion => {
                headers.insert(header::SEC_WEBSOCKET_VERSION, value("13"));
                headers.insert(header::UPGRADE, value("websocket"));
            }
            Self::KeyNeeded { .. } | Self::WrongKey | Self::WrongTicket => {
                headers.insert(header::WWW_AUTHENTICATE, CHALLENGE);
            }
            // What is left of the body is not worth reading.
            Self::PayloadTooLarge { .. }
            | Self::Body
            | Self::BodyTimeout(_)
            | Self::TransferCoding
            | Self::NoRoomForPayload => {
                headers.insert(header::CONNECTION, value("close"));
            }
            Self::EncodedLines => {
                headers.insert(header::ACCEPT_ENCODING, value("identity"));
            }
            Self::TooManyMessages { retry_after } => {
                headers.insert(header::RETRY_AFTER, answers::number(*retry_after));
            }
            _ => {}
        }
        if self.kind().0 == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, value("1"));
        }
    }

    /// One line of text, or a problem document (RFC 9457) for those who prefer JSON.
    pub(super) fn answer(&self, prefers_json: bool) -> Answer {
        let (status, code) = self.kind();
        let (content_type, body) = if prefers_json {
            let problem = serde_json::json!({
                "status": status.as_u16(),
                "title": status.canonical_reason(),
                "code": code.word(),
                "detail": self.to_string(),
            });
            ("application/problem+json", problem.to_string())
        } else {
            ("text/plain; charset=utf-8", format!("{self}\n"))
        };
        let mut response = Response::new(Either::Left(Full::from(body)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        self.headers(headers);
        response
    }
}

fn limit_reached(error: &LimitReached) -> (StatusCode, Code) {
    let code = match error {
        LimitReached::Topics { .. } => Code::TooManyTopics,
        _ => Code::BusFull,
    };
    (StatusCode::SERVICE_UNAVAILABLE, code)
}
