//! How a request says who asks, and whether that one may. docs/protocol.md, section 13.

use std::sync::Arc;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use hyper::{
    Request,
    header::{self, HeaderMap},
};
use msgbus_core::TopicName;

use super::{App, error::Refusal, items, query, routes::Route};
use crate::keys::{Action, Caller, Keyring, Need, Permit};

const BEARER_SUBPROTOCOL: &str = "bearer.";

/// Refuses what the caller may not do, whether there is such a topic or not. Without keys there is no
/// caller, and everything is allowed.
pub(super) fn check<B>(
    app: &App,
    route: &Route,
    request: &Request<B>,
) -> Result<Option<Arc<Caller>>, Refusal> {
    let Some(keyring) = &app.keyring else { return Ok(None) };
    let Some(need) = route.needs() else { return Ok(None) };
    let caller = caller(keyring, route, request)?;
    allow(&caller, need)?;
    Ok(Some(caller))
}

/// The same of a caller that was let in, with the keys as they are by now.
pub(super) fn check_again(
    app: &App,
    caller: Option<&Caller>,
    need: Need<'_>,
) -> Result<(), Refusal> {
    let (Some(keyring), Some(caller)) = (&app.keyring, caller) else { return Ok(()) };
    allow(&*keyring.by_now(caller).ok_or(Refusal::WrongKey)?, need)
}

fn allow(caller: &Caller, need: Need<'_>) -> Result<(), Refusal> {
    if caller.may(need) {
        return Ok(());
    }
    let need = need.to_string();
    Err(match caller.key_name() {
        Some(key) => Refusal::NotGranted { key: key.to_owned(), need },
        None => Refusal::KeyNeeded { need },
    })
}

/// What lets the caller stay, for as long as the keys say so.
pub(super) fn permit(
    app: &App,
    caller: Option<Arc<Caller>>,
    action: Action,
    topic: &TopicName,
) -> Permit {
    match (&app.keyring, caller) {
        (Some(keyring), Some(caller)) => Permit::new(keyring, caller, action, topic),
        _ => Permit::default(),
    }
}

/// Who asks, by the first way in which the request says so.
fn caller<B>(
    keyring: &Keyring,
    route: &Route,
    request: &Request<B>,
) -> Result<Arc<Caller>, Refusal> {
    let headers = request.headers();
    if headers.contains_key(header::AUTHORIZATION) {
        let holder = authorization(headers).and_then(|secret| keyring.holder(&secret));
        return holder.ok_or(Refusal::WrongKey);
    }
    if matches!(route, Route::Websocket(_))
        && let Some(encoded) = items(headers, &header::SEC_WEBSOCKET_PROTOCOL)
            .find_map(|offer| offer.strip_prefix(BEARER_SUBPROTOCOL))
    {
        let secret = text(URL_SAFE_NO_PAD.decode(encoded));
        return secret.and_then(|secret| keyring.holder(&secret)).ok_or(Refusal::WrongKey);
    }
    if matches!(route, Route::Websocket(_) | Route::Stream(..))
        && let Some(ticket) = query(request).get("ticket")?
    {
        return keyring.redeem(ticket).ok_or(Refusal::WrongTicket);
    }
    Ok(keyring.anybody())
}

/// The secret in `Authorization`: a bearer (RFC 6750), or the password of Basic (RFC 7617).
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
