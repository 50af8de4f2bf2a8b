//! The Origin rule: a web page of another site must not use the bus through the browser of
//! somebody who can reach it. docs/protocol.md, section 9.

use std::net::IpAddr;

use hyper::{
    Method, Request,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};

use super::error::Refusal;
use crate::peer::Peer;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
/// What a page of an allowed origin may see of an answer.
const EXPOSED: &str = "msgbus-id, msgbus-first-id, msgbus-last-id, msgbus-epoch, msgbus-next-id, \
    msgbus-missed, msgbus-restarted, msgbus-topic, msgbus-created, msgbus-expires, retry-after";

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
    peer: Peer,
    allowed: &[String],
) -> Result<Source, Refusal> {
    let headers = request.headers();
    let origin = headers.get(header::ORIGIN);
    let site = text(headers, &SEC_FETCH_SITE);
    if origin.is_none() && site.is_none() {
        // No browser.
        return Ok(Source::Own);
    }
    let host = host(request);
    // A name that cannot be read is nobody's, even with TLS.
    let is_ours = !host.is_empty() && (peer.has_tls || is_ours(&host, allowed));
    let Some(value) = origin else {
        return match site.as_deref() {
            // The user's own doing: an address typed, a link followed.
            None | Some("none") => Ok(Source::Own),
            _ if is_link(request) => Ok(Source::Own),
            Some("same-origin") if is_ours => Ok(Source::Own),
            // Images, scripts and frames carry no Origin on GET.
            Some(_) => Err(Refusal::CrossSite),
        };
    };
    let origin = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
    if allowed.contains(&origin) {
        return Ok(Source::Allowed(value.clone()));
    }
    match origin.split_once("://") {
        // A page in the clear is whoever's is on the way to it, and no page of a server that speaks TLS.
        Some((scheme, _)) if peer.has_tls && scheme != "https" => Err(foreign(&origin)),
        Some((_, authority)) if authority == host && is_ours => Ok(Source::Own),
        _ => Err(foreign(&origin)),
    }
}

fn foreign(origin: &str) -> Refusal {
    Refusal::ForeignOrigin { origin: origin.chars().take(100).collect() }
}

/// Whether a page is to be shown, which takes nothing but a GET.
fn is_link<B>(request: &Request<B>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
        && text(request.headers(), &SEC_FETCH_DEST).as_deref() == Some("document")
}

/// The server's name as the browser knows it. HTTP/2 has it in the URI (RFC 9113, section 8.3.1).
fn host<B>(request: &Request<B>) -> String {
    match request.uri().authority() {
        Some(authority) => authority.as_str().to_ascii_lowercase(),
        None => text(request.headers(), &header::HOST).unwrap_or_default(),
    }
}

/// Whether this can be nobody else's name: somebody else's may have been made to point here, and
/// then a browser takes his pages and this server for one site. Not so with TLS: for his name there is no
/// certificate here.
fn is_ours(host: &str, allowed: &[String]) -> bool {
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = without_port.trim_start_matches('[').trim_end_matches(']');
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok()
        || allowed.iter().any(|origin| origin.split_once("://").is_some_and(|(_, own)| own == host))
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_ascii_lowercase())
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
            (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, PUT, POST, DELETE"),
            (
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                "authorization, content-type, ttl, last-event-id",
            ),
            (header::ACCESS_CONTROL_MAX_AGE, "600"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
}
