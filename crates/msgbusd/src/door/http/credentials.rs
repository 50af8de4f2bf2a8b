//! Authenticates and authorizes requests. docs/protocol.md, section 13.

use std::sync::Arc;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use hyper::{
    Request,
    header::{self, HeaderMap},
};

use super::{
    error::ApiError,
    head::Outline,
    host,
    negotiate::items,
    query::Query,
    routes::{AdminRoute, Route},
};
use crate::{
    auth::{Keyring, Principal},
    net::peer::Peer,
    service::{self, error::ServiceError},
    state::App,
};

const BEARER_SUBPROTOCOL: &str = "bearer.";

/// Refuses a request that its principal may not make, and one without a key that may come from a page of another site.
pub(super) fn admit<B>(
    app: &App,
    peer: Peer,
    route: &Route,
    request: &Request<B>,
    query: &Query,
    outline: Outline,
) -> Result<Option<Arc<Principal>>, ApiError> {
    let principal = check(app, route, request, query)?;
    if needs_own_name(route, principal.as_deref()) {
        host::check(request, outline, peer, &app.config)?;
    }
    Ok(principal)
}

/// Whether the request must name this server, because a page of another site could have sent it after DNS rebinding.
/// Such a page has no key. Monitoring may request `/healthz` and `/readyz` by any name.
fn needs_own_name(route: &Route, principal: Option<&Principal>) -> bool {
    let has_key = principal.is_some_and(|principal| principal.key_name().is_some());
    !has_key && !matches!(route, Route::Admin(AdminRoute::Health | AdminRoute::Ready))
}

/// Refuses a request that its principal may not make, whether or not the topic exists. If the server has no keys, there
/// is no principal, and everything is allowed.
pub(super) fn check<B>(
    app: &App,
    route: &Route,
    request: &Request<B>,
    query: &Query,
) -> Result<Option<Arc<Principal>>, ApiError> {
    let Some(keyring) = &app.keyring else { return Ok(None) };
    let Some(permission) = route.needs() else { return Ok(None) };
    let principal = principal(keyring, route, request, query)?;
    service::require(&principal, permission)?;
    Ok(Some(principal))
}

/// Whether who asks may see what `/metrics` shows.
pub(super) fn is_operator<B>(
    app: &App,
    peer: Peer,
    request: &Request<B>,
    outline: Outline,
) -> bool {
    let route = Route::Admin(AdminRoute::Metrics);
    admit(app, peer, &route, request, &Query::of(request), outline).is_ok()
}

/// The principal of a request, from the first of the possible credentials that is present.
fn principal<B>(
    keyring: &Keyring,
    route: &Route,
    request: &Request<B>,
    query: &Query,
) -> Result<Arc<Principal>, ApiError> {
    let headers = request.headers();
    if headers.contains_key(header::AUTHORIZATION) {
        let holder = authorization(headers).and_then(|secret| keyring.authenticate(&secret));
        return Ok(holder.ok_or(ServiceError::WrongKey)?);
    }
    if matches!(route, Route::Websocket(_) | Route::Connect)
        && let Some(encoded) = items(headers, &header::SEC_WEBSOCKET_PROTOCOL)
            .find_map(|offer| offer.strip_prefix(BEARER_SUBPROTOCOL))
    {
        let secret = text(URL_SAFE_NO_PAD.decode(encoded));
        return Ok(secret
            .and_then(|secret| keyring.authenticate(&secret))
            .ok_or(ServiceError::WrongKey)?);
    }
    if matches!(route, Route::Websocket(_) | Route::Connect | Route::Stream(..))
        && let Some(ticket) = query.get("ticket")?
    {
        return Ok(keyring.redeem(ticket).ok_or(ServiceError::WrongTicket)?);
    }
    Ok(keyring.anonymous())
}

/// The secret in `Authorization`: a bearer token (RFC 6750), or the password of Basic (RFC 7617).
fn authorization(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    let (scheme, credentials) = value.to_str().ok()?.split_once(' ')?;
    let credentials = credentials.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(credentials.to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = text(STANDARD.decode(credentials))?;
    pair.split_once(':').map(|(_, password)| password.to_owned())
}

fn text(decoded: Result<Vec<u8>, base64::DecodeError>) -> Option<String> {
    String::from_utf8(decoded.ok()?).ok()
}
