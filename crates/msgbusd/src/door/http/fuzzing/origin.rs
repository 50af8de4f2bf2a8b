use std::net::IpAddr;

use hyper::{
    Request,
    header::{self, HeaderMap, HeaderName},
    http::uri::Authority,
};

use super::{
    super::{
        head::Outline,
        host,
        origin::{Source, check, may_take},
    },
    MAX_ERROR_TEXT, PEER, head,
};
use crate::{
    config::Config, fuzzing::common::is_a_line, net::peer::Peer, service::origin::host_name,
};

/// Checks the origin of a request. A page that is accepted is of an allowed origin, or of a host that cannot belong to
/// another site.
///
/// # Panics
/// When a property does not hold.
pub fn origin(data: &[u8]) {
    let Some(mut request) = head(data) else { return };
    let config = config();
    check_source(&request, &config);
    if let Err(refusal) = may_take(&request) {
        is_a_line(&refusal, MAX_ERROR_TEXT);
    }
    // Without the headers of a browser, every request is accepted.
    request.headers_mut().remove(header::ORIGIN);
    request.headers_mut().remove("sec-fetch-site");
    let outline = Outline::of(request.headers());
    assert_eq!(check(&request, outline, PEER, &config).ok(), Some(Source::Own));
    check_host(&request, outline, &config);
}

fn config() -> Config {
    Config {
        allowed_origins: vec![
            "https://good.example".to_owned(),
            "http://bus.example:8000".to_owned(),
        ],
        allowed_hosts: vec!["bus.lan".to_owned()],
        ..Config::default()
    }
}

fn lower(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).to_lowercase())
}

/// The host and port that the request names.
fn host_of(request: &Request<()>) -> String {
    match request.uri().authority() {
        Some(authority) => authority.as_str().to_lowercase(),
        None => lower(request.headers(), header::HOST).unwrap_or_default(),
    }
}

/// The page is the server's own, or of an allowed origin, or is refused.
fn check_source(request: &Request<()>, config: &Config) {
    let headers = request.headers();
    let outline = Outline::of(headers);
    let (origin, host) = (lower(headers, header::ORIGIN), host_of(request));
    let tls_peer = Peer { has_tls: true, ..PEER };
    if let (Ok(Source::Own), Some(origin)) = (check(request, outline, tls_peer, config), &origin) {
        assert_eq!(*origin, format!("https://{host}"));
    }
    match check(request, outline, PEER, config) {
        Ok(Source::Allowed(value)) => {
            assert!(origin.is_some_and(|origin| config.allowed_origins.contains(&origin)));
            let mut response = HeaderMap::new();
            Source::Allowed(value).preflight(&mut response);
            assert_eq!(
                response.get(header::ACCESS_CONTROL_ALLOW_ORIGIN),
                headers.get(header::ORIGIN)
            );
        }
        Ok(Source::Own) => {
            if let Some(origin) = &origin {
                assert!(origin.ends_with(&format!("://{host}")), "{origin} at {host}");
                assert!(is_own_name(&host), "{host}");
            }
            let mut response = HeaderMap::new();
            Source::Own.share(&mut response);
            assert!(response.is_empty());
        }
        Err(refusal) => {
            assert!(origin.is_some() || headers.contains_key("sec-fetch-site"));
            is_a_line(&refusal, MAX_ERROR_TEXT);
        }
    }
}

/// A host that is accepted is the server's own name, or that of an allowed origin.
fn check_host(request: &Request<()>, outline: Outline, config: &Config) {
    let host = host_of(request);
    let is_of_allowed = |name: &str| matches!(name, "good.example" | "bus.example");
    match host::check(request, outline, PEER, config) {
        Ok(()) => assert!(
            host.is_empty() || is_own_name(&host) || is_of_allowed(host_name(&host)),
            "{host}"
        ),
        Err(refusal) => is_a_line(&refusal, MAX_ERROR_TEXT),
    }
}

/// The same check as in `host`, with the HTTP library's parser. A browser sends nothing that it cannot parse.
fn is_own_name(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return true };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let name = name.strip_suffix('.').unwrap_or(name);
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok()
        || name == "bus.lan"
}
