//! The errors of HTTP: the only table from errors to status, text and code word. docs/protocol.md, section 8.

use std::time::Duration;

use http_body_util::{Either, Full};
use hyper::{
    Response, StatusCode,
    header::{self, HeaderMap, HeaderValue},
};
use msgbus_core::{
    GroupNameError, HeaderError, NameError, PatternError, PublishError, ReplyTokenError,
    StartPosition, TokenError, TopicName, engine::EngineError, format_duration, store::StoreError,
};
use thiserror::Error;

use super::{negotiate::accepts, response, response::HttpResponse};
use crate::{
    code::Code,
    service::{error::ServiceError, parameters::BadParameter},
};

/// The challenge of a 401. Basic is accepted but not requested: a browser would ask its user for the key, and then send
/// it with every request that any page makes to this server.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"msgbus\"");

/// Why a request was refused. The text tells users what was wrong, and what is expected.
#[derive(Debug, Error)]
pub(super) enum ApiError {
    #[error("bad percent-encoding in the path: use %XX with two hex digits, and UTF-8")]
    PathEncoding,
    #[error("bad topic name: {0}")]
    Name(#[from] NameError),
    #[error("bad pattern: {0}")]
    Pattern(PatternError),
    #[error(
        "bad topic name: patterns are followed with a websocket or with ?stream=sse, ndjson or raw; \
         publish to, pull from and delete one topic at a time"
    )]
    IsPattern,
    #[error("bad group name: {0}")]
    Group(GroupNameError),
    #[error("{0}")]
    Lease(#[from] TokenError),
    #[error("{0}")]
    Reply(#[from] ReplyTokenError),
    #[error("the body has no lease tokens: send one in each line, or one in the path")]
    NoTokens,
    #[error("too many leases in one request: send at most {limit} tokens, one in each line")]
    TooManyTokens { limit: usize },
    #[error("the path has no topic: use /<topic>")]
    NoTopic,
    #[error("unknown parameter {name:?}; {}", allowed(.known))]
    UnknownParameter { name: String, known: &'static [&'static str] },
    #[error("parameter {0:?} is given more than once")]
    RepeatedParameter(&'static str),
    #[error("{0}")]
    Parameter(#[from] BadParameter),
    #[error("bad value of header {name}: {why}")]
    Header { name: &'static str, why: &'static str },
    #[error("header {0} is given more than once")]
    RepeatedHeader(&'static str),
    #[error("a header that is kept with the message is not UTF-8")]
    NotText,
    #[error("headers of the message: {0}")]
    MessageHeaders(#[from] HeaderError),
    #[error("HTTP/1.1 needs a Host header: add Host: <server>")]
    NoHost,
    #[error("unknown Transfer-Encoding: use chunked, or Content-Length")]
    TransferCoding,
    #[error("{0}")]
    Handshake(&'static str),
    #[error("unsupported websocket version: use 13")]
    WebsocketVersion,
    #[error(
        "a websocket on / must offer the subprotocol msgbus.v1; to follow one topic, open it on \
         /<topic>"
    )]
    WebsocketOnRoot,
    #[error("requests from {origin:?} are not allowed; {}", advice(.origin))]
    ForeignOrigin { origin: String },
    #[error("requests from a page of another site are not allowed")]
    CrossSite,
    #[error("a link on another site takes no message: enter the address yourself, or add ?peek")]
    CrossSitePull,
    #[error(
        "a browser that does not say which page asks takes no message: add ?peek or the header \
         X-Requested-With, or use TLS or curl"
    )]
    UnknownPage,
    #[error("a prefetch takes no message: send the request when the user opens the page")]
    Prefetch,
    #[error("the host {host:?} is not allowed; allow it with --allow-host, or use an IP address")]
    ForeignHost { host: String },
    #[error("the request is for an http URL, but this connection is TLS: use https")]
    WrongScheme,
    #[error("no messages enqueued for topic: {0}")]
    Empty(TopicName),
    #[error("no messages enqueued for topic: {topic}")]
    NothingFrom { topic: TopicName, epoch: u64, start: StartPosition },
    #[error(
        "not found; try /-/stats, /-/topics/<topic>, /-/groups/<group>/<topic>, /-/ack/<token>, \
         /-/nack/<token>, /-/extend/<token>, /-/services, /-/request/<service>, /-/serve/<service>, \
         /-/reply/<token> or, if the server has keys, /-/ticket"
    )]
    NothingHere,
    #[error("method not allowed: use {allow}")]
    Method { allow: &'static str },
    #[error("payload exceeds max-payload-size: at most {limit} bytes are allowed")]
    PayloadTooLarge { limit: usize },
    #[error("error reading payload: it is malformed or incomplete")]
    Body,
    #[error("error reading payload: nothing arrived for {}", format_duration(*.0))]
    BodyTimeout(Duration),
    #[error("lines of an encoded payload cannot be split: leave out ?split or Content-Encoding")]
    EncodedLines,
    #[error("server is busy: in-flight memory limit reached; retry shortly")]
    InflightLimit,
    #[error("{error}{}", credentials_hint(.error))]
    Service {
        #[from]
        error: ServiceError,
    },
}

/// Tells a client without a valid key where to send one.
fn credentials_hint(error: &ServiceError) -> &'static str {
    match error {
        ServiceError::KeyNeeded { .. } => ": send it as Authorization: Bearer KEY",
        ServiceError::WrongKey => "; send a valid one as Authorization: Bearer KEY",
        _ => "",
    }
}

fn advice(origin: &str) -> &'static str {
    if origin == "null" {
        "pages opened as files cannot be allowed; serve them over HTTP"
    } else {
        "--allow-origin allows an origin"
    }
}

/// Whether the client prefers a problem document to text.
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

impl ApiError {
    /// An error for a parameter with an invalid value.
    pub(super) fn parameter(name: &'static str, why: impl Into<String>) -> Self {
        Self::Parameter(BadParameter::new(name, why))
    }

    /// The status and the code word.
    fn kind(&self) -> (StatusCode, Code) {
        match self {
            Self::PathEncoding
            | Self::Name(_)
            | Self::Pattern(_)
            | Self::IsPattern
            | Self::NoTopic => (StatusCode::BAD_REQUEST, Code::BadTopic),
            Self::UnknownParameter { .. }
            | Self::RepeatedParameter(_)
            | Self::Parameter(_)
            | Self::Group(_) => (StatusCode::BAD_REQUEST, Code::BadParameter),
            Self::Lease(_) => (StatusCode::BAD_REQUEST, Code::InvalidLease),
            Self::Reply(_) => (StatusCode::BAD_REQUEST, Code::InvalidReply),
            Self::MessageHeaders(HeaderError::TooMany | HeaderError::TooLarge) => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, Code::MessageHeadersTooLarge)
            }
            Self::Header { .. }
            | Self::RepeatedHeader(_)
            | Self::NoHost
            | Self::NotText
            | Self::MessageHeaders(_) => (StatusCode::BAD_REQUEST, Code::BadHeader),
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
            Self::Empty(_) | Self::NothingFrom { .. } => (StatusCode::NOT_FOUND, Code::Empty),
            Self::NothingHere => (StatusCode::NOT_FOUND, Code::NothingHere),
            Self::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, Code::MethodNotAllowed),
            Self::PayloadTooLarge { .. } | Self::TooManyTokens { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, Code::PayloadTooLarge)
            }
            Self::EncodedLines => (StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::EncodedLines),
            Self::Body | Self::NoTokens => (StatusCode::BAD_REQUEST, Code::BadBody),
            Self::BodyTimeout(_) => (StatusCode::REQUEST_TIMEOUT, Code::BodyTimeout),
            Self::InflightLimit => (StatusCode::SERVICE_UNAVAILABLE, Code::TooMuchInFlight),
            Self::Service { error } => (status(error), error.code()),
        }
    }

    pub(super) fn code(&self) -> Code {
        self.kind().1
    }

    /// The text for the log. It quotes nothing of the query, which may have a key by mistake. The only error that quotes
    /// the query is that for an unknown parameter.
    pub(super) fn log_text(&self) -> String {
        match self {
            Self::UnknownParameter { .. } => "unknown parameter".to_owned(),
            other => other.to_string(),
        }
    }

    /// After how many seconds to try again, if that may help.
    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::Service { error } => error.retry_after(),
            Self::Prefetch | Self::InflightLimit => Some(1),
            _ => None,
        }
    }

    /// Sets the additional headers of this error.
    fn headers(&self, headers: &mut HeaderMap) {
        let value = HeaderValue::from_static;
        match self {
            // They tell the client whether messages were removed or there are no new ones.
            Self::NothingFrom { epoch, start, .. } => {
                response::set_position_headers(headers, *epoch, *start);
            }
            Self::Method { allow } => {
                headers.insert(header::ALLOW, value(allow));
            }
            Self::WebsocketVersion => {
                headers.insert(header::SEC_WEBSOCKET_VERSION, value("13"));
                headers.insert(header::UPGRADE, value("websocket"));
            }
            Self::Service {
                error:
                    ServiceError::KeyNeeded { .. } | ServiceError::WrongKey | ServiceError::WrongTicket,
            } => {
                headers.insert(header::WWW_AUTHENTICATE, CHALLENGE);
            }
            // The rest of the body is not read.
            Self::PayloadTooLarge { .. }
            | Self::TooManyTokens { .. }
            | Self::Body
            | Self::BodyTimeout(_)
            | Self::TransferCoding
            | Self::InflightLimit => {
                headers.insert(header::CONNECTION, value("close"));
            }
            Self::EncodedLines => {
                headers.insert(header::ACCEPT_ENCODING, value("identity"));
            }
            _ => {}
        }
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, response::number(seconds));
        }
    }

    /// The response: one line of text, or a problem document (RFC 9457) for clients that prefer JSON.
    pub(super) fn response(&self, prefers_json: bool) -> HttpResponse {
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

/// The status for an error of the service.
fn status(error: &ServiceError) -> StatusCode {
    match error {
        ServiceError::KeyNeeded { .. } | ServiceError::WrongKey | ServiceError::WrongTicket => {
            StatusCode::UNAUTHORIZED
        }
        ServiceError::NotGranted { .. } => StatusCode::FORBIDDEN,
        ServiceError::NoSuchTopic(_) | ServiceError::NoSuchGroup { .. } => StatusCode::NOT_FOUND,
        ServiceError::LeaseLost | ServiceError::ReplyNotWanted => StatusCode::GONE,
        ServiceError::ResponderFailed { .. } | ServiceError::ResponderGone => {
            StatusCode::BAD_GATEWAY
        }
        ServiceError::RequestTimeout | ServiceError::RequesterLeft => StatusCode::GATEWAY_TIMEOUT,
        ServiceError::TooManyMessages { .. }
        | ServiceError::TooManyLeases { .. }
        | ServiceError::TooManyRequests { .. }
        | ServiceError::TooManyServices { .. }
        | ServiceError::TooManyGroups { .. } => StatusCode::TOO_MANY_REQUESTS,
        ServiceError::BatchOverRate { .. }
        | ServiceError::Publish(PublishError::TooLarge { .. } | PublishError::TooMany { .. }) => {
            StatusCode::PAYLOAD_TOO_LARGE
        }
        ServiceError::Publish(PublishError::TopicFull) => StatusCode::INSUFFICIENT_STORAGE,
        ServiceError::NoResponder { .. }
        | ServiceError::TooManyTickets
        | ServiceError::TooMuchInFlight
        | ServiceError::TooManySubscriptions { .. }
        | ServiceError::Publish(_)
        | ServiceError::Subscribe(_) => StatusCode::SERVICE_UNAVAILABLE,
        ServiceError::Store(error) => match error {
            StoreError::Full => StatusCode::INSUFFICIENT_STORAGE,
            StoreError::Engine(error) => engine_status(*error),
            _ => StatusCode::SERVICE_UNAVAILABLE,
        },
    }
}

fn engine_status(error: EngineError) -> StatusCode {
    match error {
        EngineError::Unknown => StatusCode::GATEWAY_TIMEOUT,
        EngineError::Full => StatusCode::INSUFFICIENT_STORAGE,
        EngineError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        EngineError::Denied => StatusCode::BAD_GATEWAY,
        EngineError::NotSupported { .. } => StatusCode::NOT_IMPLEMENTED,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}
