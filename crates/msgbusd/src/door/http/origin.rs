//! The Origin rule: a web page of another site must not use the bus through the browser of somebody who can
//! reach it. docs/protocol.md, sections 9.1 and 9.4.

use hyper::{
    Method, Request,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};

use super::{
    error::ApiError,
    head::Outline,
    host,
    names::{EXPOSED, PURPOSES, SEC_FETCH_DEST, SEC_FETCH_SITE, X_REQUESTED_WITH},
    negotiate::find,
    routes::TOPIC_METHODS,
};
use crate::{config::Config, net::peer::Peer};

/// Where a request comes from, as far as browsers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// No browser, or a page of this very server.
    Own,
    /// A page of an origin that has been allowed.
    Allowed(HeaderValue),
}

/// Refuses what a foreign page has sent.
pub(super) fn check<B>(
    request: &Request<B>,
    outline: Outline,
    peer: Peer,
    config: &Config,
) -> Result<Source, ApiError> {
    let headers = request.headers();
    let (origin, site) = if outline.is_of_browser {
        (find(headers, &header::ORIGIN), text(headers, &SEC_FETCH_SITE))
    } else {
        (None, None)
    };
    if origin.is_none() && site.is_none() {
        // No browser, or one that does not say.
        return Ok(Source::Own);
    }
    let authority = host::authority(request).to_ascii_lowercase();
    let name = host::name(&authority);
    // A name that cannot be read is nobody's, even with TLS.
    let is_own = !authority.is_empty() && (peer.has_tls || host::is_own(name, config));
    let Some(value) = origin else {
        return match site.as_deref() {
            // The user's own doing: an address typed, a link followed.
            None | Some("none") => Ok(Source::Own),
            _ if is_link(request) => Ok(Source::Own),
            Some("same-origin") if is_own || host::is_of_allowed_origin(name, config) => {
                Ok(Source::Own)
            }
            // Images, scripts and frames carry no Origin on GET.
            Some(_) => Err(ApiError::CrossSite),
        };
    };
    let origin = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
    if config.allowed_origins.contains(&origin) {
        return Ok(Source::Allowed(value.clone()));
    }
    match origin.split_once("://") {
        // A page in the clear is whoever's is on the way to it, and no page of a server that speaks TLS.
        Some((scheme, _)) if peer.has_tls && scheme != "https" => Err(foreign(&origin)),
        Some((_, page)) if page == authority && is_own => Ok(Source::Own),
        _ => Err(foreign(&origin)),
    }
}

fn foreign(origin: &str) -> ApiError {
    ApiError::ForeignOrigin { origin: origin.chars().take(100).collect() }
}

/// Whether a page is to be shown, which takes nothing but a GET.
fn is_link<B>(request: &Request<B>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
        && text(request.headers(), &SEC_FETCH_DEST).as_deref() == Some("document")
}

/// Refuses to take a message out for a browser unless its user or a page of this server asked for it:
/// neither for a link of another site, nor ahead of a click, nor for who does not say which page asks.
///
/// To be asked after [`check`], which has decided about an `Origin`.
pub(super) fn may_take<B>(request: &Request<B>) -> Result<(), ApiError> {
    let headers = request.headers();
    if PURPOSES.iter().any(|name| is_ahead(headers, name)) {
        return Err(ApiError::Prefetch);
    }
    if headers.contains_key(header::ORIGIN) {
        return Ok(());
    }
    match text(headers, &SEC_FETCH_SITE).as_deref() {
        Some("none" | "same-origin") => Ok(()),
        Some(_) => Err(ApiError::CrossSitePull),
        // In the clear, other than to localhost, browsers say nothing of the page.
        None if is_browser(headers) && !is_own_script(headers) => Err(ApiError::UnknownPage),
        None => Ok(()),
    }
}

/// Whether a browser says that nobody looks yet: `prefetch`, `prefetch;prerender`, `preview`.
fn is_ahead(headers: &HeaderMap, name: &HeaderName) -> bool {
    text(headers, name).is_some_and(|value| {
        let mut words = value.split([';', ',']).map(str::trim);
        words.any(|word| matches!(word, "prefetch" | "prerender" | "preview"))
    })
}

/// All browsers say so, and a page cannot change it for an image, a frame or a link.
fn is_browser(headers: &HeaderMap) -> bool {
    let agent = headers.get(header::USER_AGENT).map(HeaderValue::as_bytes).unwrap_or_default();
    agent.starts_with(b"Mozilla/") && !agent.windows(11).any(|word| word == b"PowerShell/")
}

/// Whether there is a header that the browser lets a page of another site send only after it has asked here
/// (Fetch, section 2.2.2), and was refused. Basic it sends by itself.
fn is_own_script(headers: &HeaderMap) -> bool {
    let is_bearer = |value: &HeaderValue| {
        value.as_bytes().get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "))
    };
    headers.contains_key(X_REQUESTED_WITH)
        || headers.get(header::AUTHORIZATION).is_some_and(is_bearer)
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    Some(find(headers, name)?.to_str().ok()?.to_ascii_lowercase())
}

impl Source {
    /// Lets the browser show an answer to the page it is for (Fetch, section 3.2).
    pub(super) fn share(&self, headers: &mut HeaderMap) {
        if let Self::Allowed(origin) = self {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers
                .insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        }
    }

    /// Answers a browser that asks before it sends.
    pub(super) fn preflight(&self, headers: &mut HeaderMap) {
        self.share(headers);
        for (name, value) in [
            (header::ACCESS_CONTROL_ALLOW_METHODS, TOPIC_METHODS),
            (
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                "authorization, content-type, content-encoding, correlation-id, idempotency-key, ttl, \
                 last-event-id, *",
            ),
            (header::ACCESS_CONTROL_MAX_AGE, "600"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
}
