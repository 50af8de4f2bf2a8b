//! The opening handshake of a websocket (RFC 6455, section 4.2). A request that is meant as a handshake but is
//! malformed never falls through to a pull, which would take a message that no client sees.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::{
    Request, Version,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{error::ApiError, negotiate::items};

/// Whether the client wants a websocket, even if its handshake is malformed.
pub(super) fn is_wanted<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    has_token(headers, &header::UPGRADE, "websocket")
        || headers.keys().any(|name| name.as_str().starts_with("sec-websocket-"))
}

/// Validates the handshake, and returns the value of `Sec-WebSocket-Accept`.
pub(super) fn check<B>(request: &Request<B>) -> Result<HeaderValue, ApiError> {
    let headers = request.headers();
    if request.version() != Version::HTTP_11 {
        return Err(ApiError::Handshake("bad websocket handshake: HTTP/1.1 is required"));
    }
    if !has_token(headers, &header::UPGRADE, "websocket") {
        return Err(ApiError::Handshake(
            "bad websocket handshake: Sec-WebSocket headers without Upgrade: websocket",
        ));
    }
    if !has_token(headers, &header::CONNECTION, "upgrade") {
        return Err(ApiError::Handshake("bad websocket handshake: Connection: Upgrade is missing"));
    }
    let one = |name: HeaderName| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    };
    match one(header::SEC_WEBSOCKET_VERSION) {
        Some(version) if version == "13" => {}
        _ => return Err(ApiError::WebsocketVersion),
    }
    let key = one(header::SEC_WEBSOCKET_KEY)
        .map(HeaderValue::as_bytes)
        .filter(|key| STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16));
    let accept = key.and_then(|key| HeaderValue::try_from(derive_accept_key(key)).ok());
    accept.ok_or(ApiError::Handshake(
        "bad websocket handshake: Sec-WebSocket-Key must be 16 bytes in base64, once",
    ))
}

/// Whether a list header has this item, ignoring case.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    items(headers, name).any(|item| item.eq_ignore_ascii_case(token))
}
