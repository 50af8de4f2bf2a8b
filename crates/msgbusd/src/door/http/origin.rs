//! The Origin rule: a page of another site must not use the bus through the browser of a user who can reach it.
//! docs/protocol.md, sections 9.1 and 9.4.

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
use crate::{
    config::Config,
    net::peer::Peer,
    service::origin::{self as rule, Page},
};

/// The source of a request, according to the browser's headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// Not a browser, or a page of this server.
    Own,
    /// A page of an allowed origin.
    Allowed(HeaderValue),
}

/// Refuses requests of foreign pages.
pub(super) fn check<B>(
    request: &Request<B>,
    outline: Outline,
    peer: Peer,
    config: &Config,
) -> Result<Source, ApiError> {
    let headers = request.headers();
    let (origin, site) = if outline.is_from_browser {
        (find(headers, &header::ORIGIN), text(headers, &SEC_FETCH_SITE))
    } else {
        (None, None)
    };
    if origin.is_none() && site.is_none() {
        // Not a browser, or one that does not send these headers.
        return Ok(Source::Own);
    }
    let authority = host::authority(request).to_ascii_lowercase();
    let Some(value) = origin else {
        return match site.as_deref() {
            // The user typed the address or followed a link.
            None | Some("none") => Ok(Source::Own),
            _ if is_link(request) => Ok(Source::Own),
            Some("same-origin")
                if rule::names_this_server(&authority, peer, config)
                    || rule::is_of_allowed_origin(rule::host_name(&authority), config) =>
            {
                Ok(Source::Own)
            }
            // Images, scripts and frames carry no Origin on GET.
            Some(_) => Err(ApiError::CrossSite),
        };
    };
    let origin = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
    match rule::judge(&origin, &authority, peer, config) {
        Page::Own => Ok(Source::Own),
        Page::Allowed => Ok(Source::Allowed(value.clone())),
        Page::Foreign => Err(foreign(&origin)),
    }
}

fn foreign(origin: &str) -> ApiError {
    ApiError::ForeignOrigin { origin: origin.chars().take(100).collect() }
}

/// Whether the browser navigates to the page. Only a GET takes something then.
fn is_link<B>(request: &Request<B>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
        && text(request.headers(), &SEC_FETCH_DEST).as_deref() == Some("document")
}

/// Refuses to take a message for a browser unless its user or a page of this server requested it: not for a link on
/// another site, not for a prefetch, and not for a browser that does not say which page sends the request.
///
/// Call it after [`check`], which has decided about `Origin`.
pub(super) fn may_take<B>(request: &Request<B>) -> Result<(), ApiError> {
    let headers = request.headers();
    if PURPOSES.iter().any(|name| is_prefetch(headers, name)) {
        return Err(ApiError::Prefetch);
    }
    if headers.contains_key(header::ORIGIN) {
        return Ok(());
    }
    match text(headers, &SEC_FETCH_SITE).as_deref() {
        Some("none" | "same-origin") => Ok(()),
        Some(_) => Err(ApiError::CrossSitePull),
        // Without TLS, browsers send this header only to localhost.
        None if is_browser(headers) && !is_own_script(headers) => Err(ApiError::UnknownPage),
        None => Ok(()),
    }
}

/// Whether a header marks a prefetch: `prefetch`, `prefetch;prerender`, `preview`.
fn is_prefetch(headers: &HeaderMap, name: &HeaderName) -> bool {
    text(headers, name).is_some_and(|value| {
        let mut words = value.split([';', ',']).map(str::trim);
        words.any(|word| matches!(word, "prefetch" | "prerender" | "preview"))
    })
}

/// Whether `User-Agent` is that of a browser. A page cannot change it for an image, a frame or a link.
fn is_browser(headers: &HeaderMap) -> bool {
    let agent = headers.get(header::USER_AGENT).map(HeaderValue::as_bytes).unwrap_or_default();
    agent.starts_with(b"Mozilla/") && !agent.windows(11).any(|word| word == b"PowerShell/")
}

/// Whether a header is present that a browser sends for a page of another site only after a preflight (Fetch, section
/// 2.2.2), which would be refused. Basic does not count, because browsers send it automatically.
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
    /// Lets the browser pass the response to the page (Fetch, section 3.2).
    pub(super) fn share(&self, headers: &mut HeaderMap) {
        if let Self::Allowed(origin) = self {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers
                .insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        }
    }

    /// Sets the headers of the response to a preflight.
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
