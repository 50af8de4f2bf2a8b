//! Checks the host name of a request (docs/protocol.md, section 9.3). A page of another site can make its own name
//! point to this server (DNS rebinding); a browser then treats the page and this server as one site. Requests with
//! such a name are refused unless they carry a key.

use std::cell::RefCell;

use hyper::{Request, header};

use super::{error::ApiError, head::Outline, negotiate::find};
use crate::{
    config::Config,
    net::peer::Peer,
    service::origin::{self, is_local},
};

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
    let name = origin::host_name(authority);
    if is_local(name) {
        // Only for names from `Host`, which `head::check` compares.
        if is_by_host {
            LATEST_LOCAL.with_borrow_mut(|latest| authority.clone_into(latest));
        }
        return Ok(());
    }
    if origin::is_known_host(name, config) {
        return Ok(());
    }
    Err(ApiError::ForeignHost { host: name.chars().take(100).collect() })
}

thread_local! {
    /// The latest `Host` that is local. Most requests have the same one.
    static LATEST_LOCAL: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Whether this is the latest `Host` of this thread that is local.
pub(super) fn is_latest_local(host: &[u8]) -> bool {
    LATEST_LOCAL.with_borrow(|latest| latest.as_bytes() == host)
}
