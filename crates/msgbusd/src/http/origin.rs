//! The Origin rule: a web page of another site must not use the bus through the browser of
//! somebody who can reach it. docs/protocol.md, section 9.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::error::Refusal;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// Where a request comes from, as far as browsers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// No browser, or a page of this very server.
    Own,
    /// A page of an origin that has been allowed.
    Allowed(HeaderValue),
}

/// Refuses what a foreign page has sent.
pub(super) fn check(headers: &HeaderMap, allowed: &[String]) -> Result<Source, Refusal> {
    let Some(origin) = headers.get(header::ORIGIN) else {
        // Images, scripts and frames carry no Origin on GET. Following a link is the user's doing.
        let is = |name, value: &str| headers.get(name).is_some_and(|header| header == value);
        return if is(SEC_FETCH_SITE, "cross-site") && !is(SEC_FETCH_DEST, "document") {
            Err(Refusal::CrossSite)
        } else {
            Ok(Source::Own)
        };
    };
    let text = String::from_utf8_lossy(origin.as_bytes()).to_ascii_lowercase();
    if allowed.contains(&text) {
        return Ok(Source::Allowed(origin.clone()));
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    match text.split_once("://") {
        Some((_, authority)) if !host.is_empty() && authority.eq_ignore_ascii_case(host) => {
            Ok(Source::Own)
        }
        _ => Err(Refusal::ForeignOrigin { origin: text.chars().take(100).collect() }),
    }
}

impl Source {
    /// Lets the browser show an answer to the page it is for (Fetch, section 3.2).
    pub(super) fn share(&self, headers: &mut HeaderMap) {
        if let Self::Allowed(origin) = self {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(
                header::ACCESS_CONTROL_EXPOSE_HEADERS,
                HeaderValue::from_static("msgbus-id, msgbus-epoch, retry-after"),
            );
        }
    }

    /// Answers a browser that asks before it sends.
    pub(super) fn preflight(&self, headers: &mut HeaderMap) {
        self.share(headers);
        for (name, value) in [
            (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, PUT, POST, DELETE"),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, "content-type, ttl, last-event-id"),
            (header::ACCESS_CONTROL_MAX_AGE, "600"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
}
