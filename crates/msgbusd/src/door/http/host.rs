//! Checks the host name of a request (docs/protocol.md, section 9.3). A page of another site can make its own name
//! point to this server (DNS rebinding); a browser then treats the page and this server as one site. Requests with
//! such a name are refused unless they carry a key.

use std::{cell::RefCell, net::IpAddr};

use hyper::{Request, header};

use super::{error::ApiError, head::Outline, negotiate::find};
use crate::{config::Config, net::peer::Peer};

/// The host and port that a request names: those of its target (RFC 9112, section 3.2.2; in HTTP/2 `:authority`), or
/// else those of `Host`. Empty if there are none; browsers always send one.
pub(super) fn authority<B>(request: &Request<B>) -> &str {
    let host = || find(request.headers(), &header::HOST)?.to_str().ok();
    request.uri().authority().map_or_else(|| host().unwrap_or_default(), |named| named.as_str())
}

/// Refuses a name that may belong to another site. TLS connections are exempt: this server has no certificate for such
/// a name.
pub(super) fn check<B>(
    request: &Request<B>,
    outline: Outline,
    peer: Peer,
    config: &Config,
) -> Result<(), ApiError> {
    let is_by_host = request.uri().authority().is_none();
    if peer.has_tls || is_by_host && outline.has_known_host {
        return Ok(());
    }
    let authority = authority(request);
    if authority.is_empty() {
        return Ok(());
    }
    let name = name(authority);
    if is_local(name) {
        // Only for names from `Host`, which `head::check` compares.
        if is_by_host {
            LATEST_LOCAL.with_borrow_mut(|latest| authority.clone_into(latest));
        }
        return Ok(());
    }
    if is_own(name, config) || is_of_allowed_origin(name, config) {
        return Ok(());
    }
    Err(ApiError::ForeignHost { host: name.chars().take(100).collect() })
}

/// Whether this is certainly a name of this server.
pub(super) fn is_own(name: &str, config: &Config) -> bool {
    is_local(name) || config.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
}

/// Whether this name cannot be used for DNS rebinding, independent of the configuration.
fn is_local(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok()
        || has_suffix(name, ".localhost")
}

thread_local! {
    /// The latest `Host` that is local. Most requests have the same one.
    static LATEST_LOCAL: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Whether this is the latest `Host` of this thread that is local.
pub(super) fn is_latest_local(host: &[u8]) -> bool {
    LATEST_LOCAL.with_borrow(|latest| latest.as_bytes() == host)
}

/// Whether this is the host of an allowed origin, such as the name of a proxy that browsers use.
pub(super) fn is_of_allowed_origin(host: &str, config: &Config) -> bool {
    config
        .allowed_origins
        .iter()
        .filter_map(|origin| origin.split_once("://"))
        .any(|(_, authority)| name(authority).eq_ignore_ascii_case(host))
}

/// The host of an authority, without its port, brackets and final dot.
pub(super) fn name(authority: &str) -> &str {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address,
        None => host.strip_suffix('.').unwrap_or(host),
    }
}

fn has_suffix(name: &str, suffix: &str) -> bool {
    let start = name.len().checked_sub(suffix.len());
    start.and_then(|start| name.get(start..)).is_some_and(|end| end.eq_ignore_ascii_case(suffix))
}
