//! Checks of a request head that the HTTP library does not make. docs/protocol.md, section 1.

use hyper::{
    Request, Uri, Version,
    body::Body,
    header::{self, HeaderMap, HeaderName, HeaderValue},
    http::uri::Scheme,
};

use super::{
    error::ApiError,
    host, message_headers,
    names::{LAST_EVENT_ID, SEC_FETCH_DEST, SEC_FETCH_SITE, TTL},
    negotiate::find,
    negotiate::items,
};
use crate::net::peer::Peer;

/// Headers that must not be repeated: different readers could use different ones.
const SINGLE: [(HeaderName, &str); 11] = [
    (header::HOST, "Host"),
    (header::CONTENT_TYPE, "Content-Type"),
    (header::AUTHORIZATION, "Authorization"),
    (header::ORIGIN, "Origin"),
    (header::USER_AGENT, "User-Agent"),
    (header::SEC_WEBSOCKET_KEY, "Sec-WebSocket-Key"),
    (header::SEC_WEBSOCKET_VERSION, "Sec-WebSocket-Version"),
    (SEC_FETCH_SITE, "Sec-Fetch-Site"),
    (SEC_FETCH_DEST, "Sec-Fetch-Dest"),
    (TTL, "TTL"),
    (LAST_EVENT_ID, "Last-Event-ID"),
];

/// The result of one pass over the headers. Most requests have none of the rare headers, and this saves a search for
/// each.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Outline {
    /// Whether `Host` is the latest one of this thread that is local.
    pub(super) has_known_host: bool,
    /// Whether a header is present that only browsers send: `Origin` or `Sec-Fetch-Site`.
    pub(super) is_from_browser: bool,
    /// Whether a header may be kept with the message.
    pub(super) header_scope: HeaderScope,
}

/// The topics in which a header of the request is kept with its message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum HeaderScope {
    #[default]
    None,
    /// Topics for which the setting `keep-headers` names it.
    SomeTopics,
    AllTopics,
}

impl Outline {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut outline = Self::default();
        for (name, value) in headers {
            match *name {
                header::HOST => outline.has_known_host = host::is_latest_local(value.as_bytes()),
                header::CONTENT_LENGTH | header::USER_AGENT | header::ACCEPT => {}
                header::ORIGIN => outline.is_from_browser = true,
                header::CONTENT_TYPE | header::CONTENT_ENCODING => {
                    outline.header_scope = HeaderScope::AllTopics;
                }
                _ if *name == SEC_FETCH_SITE => outline.is_from_browser = true,
                _ if *name == TTL || message_headers::is_kept(name.as_str()) => {
                    outline.header_scope = HeaderScope::AllTopics;
                }
                _ => outline.header_scope = outline.header_scope.max(HeaderScope::SomeTopics),
            }
        }
        outline
    }
}

/// Refuses an ambiguous head, which a proxy could read differently.
pub(super) fn check<B: Body>(
    request: &Request<B>,
    outline: Outline,
    peer: Peer,
) -> Result<(), ApiError> {
    let headers = request.headers();
    // Most requests repeat no header.
    if headers.len() > headers.keys_len() {
        repeats_no_single(headers)?;
    }
    // A known host has been checked before.
    if !outline.has_known_host || request.version() == Version::HTTP_2 {
        check_host(request)?;
    }
    if peer.has_tls && request.uri().scheme().is_some_and(|scheme| *scheme != Scheme::HTTPS) {
        return Err(ApiError::WrongScheme);
    }
    // Without a length, the body may have a transfer coding.
    if request.body().size_hint().exact().is_none() {
        check_coding(headers)?;
    }
    Ok(())
}

fn repeats_no_single(headers: &HeaderMap) -> Result<(), ApiError> {
    let is_repeated = |name: &HeaderName| headers.get_all(name).iter().nth(1).is_some();
    match SINGLE.iter().find(|(name, _)| is_repeated(name)) {
        Some((_, name)) => Err(ApiError::RepeatedHeader(name)),
        None => Ok(()),
    }
}

/// Checks `Host` (RFC 9112, section 3.2, and RFC 9113, section 8.3.1).
fn check_host<B>(request: &Request<B>) -> Result<(), ApiError> {
    let Some(host) = find(request.headers(), &header::HOST) else {
        let is_needed = request.version() == Version::HTTP_11;
        return if is_needed { Err(ApiError::NoHost) } else { Ok(()) };
    };
    let bad = |why| Err(ApiError::Header { name: "Host", why });
    if !host.as_bytes().iter().all(|byte| is_of_host(*byte)) {
        return bad("use the server's name or address, and its port");
    }
    match request.uri().authority() {
        Some(authority)
            if request.version() == Version::HTTP_2
                && !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) =>
        {
            bad("it differs from :authority")
        }
        _ => Ok(()),
    }
}

/// Whether a host and port may have this character (RFC 3986, section 3.2.2).
const fn is_of_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.' | b'_' | b'~' | b'%' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')'
        )
        || matches!(byte, b'*' | b'+' | b',' | b';' | b'=' | b':' | b'[' | b']')
}

/// Checks `Transfer-Encoding` (RFC 9112, section 6.1). The HTTP library decodes only `chunked`.
fn check_coding(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut codings = items(headers, &header::TRANSFER_ENCODING).filter(|item| !item.is_empty());
    let is_chunked = |coding: &str| coding.eq_ignore_ascii_case("chunked");
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(only), None) if is_chunked(only) => Ok(()),
        (Some(first), Some(second)) if is_chunked(first) && is_chunked(second) => {
            Err(ApiError::Header { name: "Transfer-Encoding", why: "use chunked only once" })
        }
        _ => Err(ApiError::TransferCoding),
    }
}

/// Frees the memory of a head before its request waits. It can be three times `--max-header-size`. The path and the
/// headers that an error response needs are kept.
pub(super) fn shed_head<B>(request: &mut Request<B>) {
    const MAX_PATH: usize = 1 << 10;
    if request.headers().is_empty() {
        return;
    }
    let prefers_json = super::error::prefers_json(request.headers());
    // Values that were moved instead of copied would keep the buffer of the whole head alive.
    *request.headers_mut() = HeaderMap::new();
    if prefers_json {
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    }
    let path = Some(request.uri().path()).filter(|path| path.len() <= MAX_PATH);
    let path = path.and_then(|path| Uri::try_from(path.as_bytes()).ok());
    *request.uri_mut() = path.unwrap_or_default();
}
