//! Which web pages may use the server, and by which host names (docs/protocol.md, sections 9.1 and 9.3): the rule for all
//! doors that browsers can reach. It knows texts only; a door takes them from its protocol.

use std::net::IpAddr;

use crate::{config::Config, net::peer::Peer};

/// The page that a browser sends a request for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Page {
    /// A page of this server.
    Own,
    /// A page of an allowed origin.
    Allowed,
    Foreign,
}

/// Judges a page by its origin, in lower case. `authority` is the host and port by which the request names the server, in
/// lower case.
pub(crate) fn judge(origin: &str, authority: &str, peer: Peer, config: &Config) -> Page {
    if config.allowed_origins.iter().any(|allowed| allowed == origin) {
        return Page::Allowed;
    }
    match origin.split_once("://") {
        // An unencrypted page can be forged on its way, so it is not a page of a server that uses TLS.
        Some((scheme, _)) if peer.has_tls && scheme != "https" => Page::Foreign,
        Some((_, page)) if page == authority && names_this_server(authority, peer, config) => {
            Page::Own
        }
        _ => Page::Foreign,
    }
}

/// Whether an authority certainly names this server. Without one, a request names no server, even with TLS.
pub(crate) fn names_this_server(authority: &str, peer: Peer, config: &Config) -> bool {
    !authority.is_empty() && (peer.has_tls || is_own(host_name(authority), config))
}

/// Whether a host name is one of this server, or of an allowed origin. Another one may belong to another site, which makes
/// it point to this server (DNS rebinding).
pub(crate) fn is_known_host(name: &str, config: &Config) -> bool {
    is_own(name, config) || is_of_allowed_origin(name, config)
}

/// Whether this is certainly a name of this server.
pub(crate) fn is_own(name: &str, config: &Config) -> bool {
    is_local(name) || config.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
}

/// Whether this name cannot be used for DNS rebinding, independent of the configuration.
pub(crate) fn is_local(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok()
        || has_suffix(name, ".localhost")
}

/// Whether this is the host of an allowed origin, such as the name of a proxy that browsers use.
pub(crate) fn is_of_allowed_origin(host: &str, config: &Config) -> bool {
    config
        .allowed_origins
        .iter()
        .filter_map(|origin| origin.split_once("://"))
        .any(|(_, authority)| host_name(authority).eq_ignore_ascii_case(host))
}

/// The host of an authority, without its port, brackets and final dot.
pub(crate) fn host_name(authority: &str) -> &str {
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
