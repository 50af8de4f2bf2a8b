use std::net::IpAddr;

use hyper::{
    header::{self, HeaderMap},
    http::uri::Authority,
};

use super::{
    super::origin::{Source, check},
    LONGEST_REFUSAL, PEER, head,
};
use crate::{fuzzing::common::is_a_line, peer::Peer};

/// Where a request comes from: a page that is let in is of an origin that was allowed, or of a host that
/// can be nobody else's.
///
/// # Panics
/// When one of that is not so.
pub fn origin(data: &[u8]) {
    let Some(request) = head(data) else { return };
    let headers = request.headers();
    let allowed = ["https://good.example".to_owned(), "http://bus.example:8000".to_owned()];
    let lower = |name| {
        let text = |value: &hyper::header::HeaderValue| {
            String::from_utf8_lossy(value.as_bytes()).to_lowercase()
        };
        headers.get(name).map(text)
    };
    let origin = lower(header::ORIGIN);
    let host = match request.uri().authority() {
        Some(authority) => authority.as_str().to_lowercase(),
        None => lower(header::HOST).unwrap_or_default(),
    };
    if let (Ok(Source::Own), Some(origin)) =
        (check(&request, Peer { has_tls: true, ..PEER }, &allowed), &origin)
    {
        assert_eq!(*origin, format!("https://{host}"));
    }
    match check(&request, PEER, &allowed) {
        Ok(Source::Allowed(value)) => {
            assert!(origin.is_some_and(|origin| allowed.contains(&origin)));
            let mut answer = HeaderMap::new();
            Source::Allowed(value).preflight(&mut answer);
            assert_eq!(
                answer.get(header::ACCESS_CONTROL_ALLOW_ORIGIN),
                headers.get(header::ORIGIN)
            );
        }
        Ok(Source::Own) => {
            if let Some(origin) = &origin {
                assert!(origin.ends_with(&format!("://{host}")), "{origin} at {host}");
                assert!(is_nobody_elses(&host, &allowed), "{host}");
            }
            let mut answer = HeaderMap::new();
            Source::Own.share(&mut answer);
            assert!(answer.is_empty());
        }
        Err(refusal) => {
            assert!(origin.is_some() || headers.contains_key("sec-fetch-site"));
            is_a_line(&refusal, LONGEST_REFUSAL);
        }
    }
    // Without a word from a browser everything is let in.
    let mut request = request;
    request.headers_mut().remove(header::ORIGIN);
    request.headers_mut().remove("sec-fetch-site");
    assert_eq!(check(&request, PEER, &allowed).ok(), Some(Source::Own));
}

/// The same, by the library's own reader of hosts and ports. What it does not read no browser sends.
fn is_nobody_elses(host: &str, allowed: &[String]) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return true };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok()
        || allowed.iter().any(|origin| origin.ends_with(&format!("://{host}")))
}
