//! Server URIs: a host with an optional path prefix, or a unix socket.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use hyper::Uri;
use msgbus_core::{GroupName, TopicName};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use thiserror::Error;

/// The URI of a server: `https://host:port` or `http://host:port`, optionally with a path prefix
/// for a proxy, or `unix:/path/of/a/socket`. The default scheme is `http`, the default port 443 or
/// 80.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUri {
    endpoint: Endpoint,
    /// The path in front of the topics: empty, or with a leading and without a trailing slash.
    prefix: String,
}

/// What to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Host {
        secure: bool,
        /// In URI form: an IPv6 address is in brackets.
        host: String,
        port: u16,
    },
    Socket(PathBuf),
}

/// Why a text is not a server URI.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UriError {
    /// It cannot be parsed.
    #[error("not a server's URI: {0:?}; use http://host:port, https://host or unix:/path")]
    Syntax(String),
    /// The scheme is not supported.
    #[error("cannot speak {0:?}: use http://host:port, https://host or unix:/path")]
    Scheme(String),
    /// The port is not a number from 1 to 65535.
    #[error("port {0} is out of range: a port is 1 to 65535")]
    Port(String),
    /// It has a user, a query or a fragment.
    #[error("a server's URI has no user, query or fragment: {0:?}")]
    UnsupportedPart(String),
}

/// Everything except the unreserved characters of RFC 3986, section 2.3, and slashes.
const ESCAPED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl ServerUri {
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The value of the `Host` header: with the port unless it is the default one, and `localhost`
    /// for a socket.
    pub fn authority(&self) -> String {
        match &self.endpoint {
            Endpoint::Host { secure: true, host, port: 443 }
            | Endpoint::Host { secure: false, host, port: 80 } => host.clone(),
            Endpoint::Host { host, port, .. } => format!("{host}:{port}"),
            Endpoint::Socket(_) => "localhost".to_owned(),
        }
    }

    /// The path in front of the topics: empty, or with a leading and without a trailing slash.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether connections are encrypted and the server's certificate is verified.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.endpoint, Endpoint::Host { secure: true, .. })
    }

    /// Whether traffic stays on this machine.
    pub fn is_local(&self) -> bool {
        match &self.endpoint {
            Endpoint::Host { host, .. } => match without_brackets(host).parse::<IpAddr>() {
                Ok(address) => address.to_canonical().is_loopback(),
                Err(_) => host.eq_ignore_ascii_case("localhost"),
            },
            Endpoint::Socket(_) => true,
        }
    }

    /// The URI of the list of topics.
    pub(crate) fn root(&self, query: &str) -> String {
        format!("{}/?{query}", self.base("http"))
    }

    /// The URI of the websocket for everything.
    pub(crate) fn websocket_root(&self) -> String {
        format!("{}/", self.base("ws"))
    }

    /// The URI of the health check.
    pub(crate) fn health(&self) -> String {
        format!("{}/healthz", self.base("http"))
    }

    /// The URI of the description of a topic.
    pub(crate) fn inspection(&self, topic: &TopicName) -> String {
        let path = utf8_percent_encode(topic.as_str(), ESCAPED);
        format!("{}/-/topics/{path}", self.base("http"))
    }

    /// The URI of a group of a topic.
    pub(crate) fn group(&self, group: &GroupName, topic: &TopicName, query: &str) -> String {
        let path = utf8_percent_encode(topic.as_str(), ESCAPED);
        format!("{}/-/groups/{group}/{path}{}", self.base("http"), question(query))
    }

    /// The URI at which a service is asked or served.
    pub(crate) fn service(&self, action: &str, service: &TopicName, query: &str) -> String {
        let path = utf8_percent_encode(service.as_str(), ESCAPED);
        format!("{}/-/{action}/{path}{}", self.base("http"), question(query))
    }

    /// The URI of the list of services.
    pub(crate) fn services(&self) -> String {
        format!("{}/-/services", self.base("http"))
    }

    /// The URI to which a lease is settled, or a request answered; without a token, many leases at once.
    pub(crate) fn settlement(&self, action: &str, token: &str, query: &str) -> String {
        let slash = if token.is_empty() { "" } else { "/" };
        format!("{}/-/{action}{slash}{token}{}", self.base("http"), question(query))
    }

    /// The URI of a topic. `scheme` is `http` or `ws`; an `s` is appended if the server uses TLS.
    /// `query` is the part after the question mark; it may be empty.
    pub(crate) fn topic(&self, scheme: &str, topic: &TopicName, query: &str) -> String {
        let path = utf8_percent_encode(topic.as_str(), ESCAPED);
        format!("{}/{path}{}", self.base(scheme), question(query))
    }

    fn base(&self, scheme: &str) -> String {
        let s = if self.is_encrypted() { "s" } else { "" };
        format!("{scheme}{s}://{}{}", self.authority(), self.prefix)
    }
}

/// A query with its question mark, unless it is empty.
fn question(query: &str) -> String {
    if query.is_empty() { String::new() } else { format!("?{query}") }
}

/// Strips the brackets of an IPv6 address in URI form.
pub(crate) fn without_brackets(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

impl FromStr for ServerUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let syntax = || UriError::Syntax(without_user(text));
        // Everything after "unix:" is the path. "unix:8000" is a host called unix, with a port.
        if let Some(path) = text.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
            let path = Path::new("/").join(path.trim_start_matches('/'));
            return Ok(Self { endpoint: Endpoint::Socket(path), prefix: String::new() });
        }
        let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        if full.contains('#') {
            return Err(UriError::UnsupportedPart(without_user(text)));
        }
        let uri: Uri =
            full.parse().map_err(|_| invalid_port(&full).map_or_else(syntax, UriError::Port))?;
        let secure = match uri.scheme_str() {
            // Subscriptions use websockets at the same address, so ws:// and wss:// mean the same.
            Some("https" | "wss") => true,
            Some("http" | "ws") | None => false,
            Some(other) => return Err(UriError::Scheme(other.to_owned())),
        };
        let authority = uri.authority().ok_or_else(syntax)?;
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(UriError::UnsupportedPart(without_user(text)));
        }
        if let Some(port) = invalid_port(&full) {
            return Err(UriError::Port(port));
        }
        let has_bad_port =
            authority.port_u16().is_none() && authority.as_str().len() > authority.host().len();
        let host = authority.host();
        let name = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if name.is_empty() || name.contains(['[', ']']) || has_bad_port {
            return Err(syntax());
        }
        Ok(Self {
            endpoint: Endpoint::Host {
                secure,
                host: host.to_owned(),
                port: authority.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            },
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

/// The port of a URI if it is numeric but out of range.
fn invalid_port(uri: &str) -> Option<String> {
    let authority = uri.split_once("://")?.1.split('/').next()?;
    let (_, port) = authority.rsplit_once(':')?;
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
    (is_number && !is_port && port.len() <= 20).then(|| port.to_owned())
}

/// Hides the part before an `@`, which may contain a password, for error messages.
fn without_user(text: &str) -> String {
    text.rsplit_once('@').map_or(text.to_owned(), |(_, rest)| format!("…@{rest}"))
}

impl fmt::Display for ServerUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Endpoint::Host { secure, host, port } => {
                let s = if *secure { "s" } else { "" };
                write!(f, "http{s}://{host}:{port}{}", self.prefix)
            }
            Endpoint::Socket(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_their_parts() {
        for (text, shown) in [
            ("http://localhost:8000", "http://localhost:8000"),
            ("http://localhost:8000/", "http://localhost:8000"),
            ("localhost:8000", "http://localhost:8000"),
            ("example.com", "http://example.com:80"),
            ("http://[::1]:8000", "http://[::1]:8000"),
            ("http://example.com/bus/", "http://example.com:80/bus"),
            ("https://example.com/bus/", "https://example.com:443/bus"),
            ("HTTPS://example.com:8443", "https://example.com:8443"),
            ("unix:/run/a b.sock", "unix:/run/a b.sock"),
            ("unix:///run/x?y#z", "unix:/run/x?y#z"),
            ("unix:8000", "http://unix:8000"),
            ("ws://a:1", "http://a:1"),
            ("wss://a", "https://a:443"),
        ] {
            assert_eq!(text.parse::<ServerUri>().unwrap().to_string(), shown, "{text}");
        }
        let uri: ServerUri = "http://[::1]:8000/bus".parse().unwrap();
        assert_eq!(uri.authority(), "[::1]:8000");
        let topic = "a b/größe?".parse().unwrap();
        assert_eq!(uri.topic("ws", &topic, ""), "ws://[::1]:8000/bus/a%20b/gr%C3%B6%C3%9Fe%3F");
        assert_eq!(
            uri.topic("http", &topic, "x"),
            "http://[::1]:8000/bus/a%20b/gr%C3%B6%C3%9Fe%3F?x"
        );
    }

    #[test]
    fn requests_go_to_the_scheme_and_the_host_of_the_server() {
        let topic = "t".parse().unwrap();
        for (text, host, http, ws) in [
            ("http://a", "a", "http://a/t", "ws://a/t"),
            ("https://a", "a", "https://a/t", "wss://a/t"),
            ("https://a:80/b", "a:80", "https://a:80/b/t", "wss://a:80/b/t"),
            ("unix:/run/s", "localhost", "http://localhost/t", "ws://localhost/t"),
        ] {
            let uri: ServerUri = text.parse().unwrap();
            assert_eq!(uri.authority(), host);
            assert_eq!(uri.topic("http", &topic, ""), http);
            assert_eq!(uri.topic("ws", &topic, ""), ws);
        }
    }

    #[test]
    fn what_stays_on_this_machine_is_known() {
        for (text, local) in [
            ("localhost:8000", true),
            ("http://127.0.0.2", true),
            ("http://[::1]:1", true),
            ("http://[::ffff:127.0.0.1]:1", true),
            ("unix:/run/s", true),
            ("http://10.0.0.1", false),
            ("http://localhost.example.com", false),
            ("http://[fe80::1]", false),
        ] {
            assert_eq!(text.parse::<ServerUri>().unwrap().is_local(), local, "{text}");
        }
    }

    #[test]
    fn the_rest_is_refused_with_a_hint() {
        for text in [
            "",
            "http://",
            "ftp://a",
            "unix:run/s",
            "unix:",
            "http://u:p@host",
            "http://a?b",
            "http://a#b",
            "http://a:b",
            "http://a:",
            "a b",
            ":8000",
            "[]:8000",
            "a[::1]b:8000",
        ] {
            let error = text.parse::<ServerUri>().expect_err(text).to_string();
            assert!(error.contains("http://host:port") || error.contains("no user"), "{error}");
        }
        for text in ["http://a:99999", "a:0", "[::1]:65536/x", "https://a:99999999999"] {
            let error = text.parse::<ServerUri>().expect_err(text).to_string();
            assert!(error.contains("is out of range"), "{error}");
        }
        for text in ["http://u:secret@host", "u:secret is@host", "http://u:secret@host#a"] {
            let error = text.parse::<ServerUri>().expect_err(text).to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
