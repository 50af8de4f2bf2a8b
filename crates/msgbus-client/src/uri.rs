//! Where a server is: an address, and maybe a path in front of its topics; or a unix socket.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use hyper::Uri;
use msgbus_core::TopicName;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use thiserror::Error;

/// The address of a server: `https://host:port` or `http://host:port`, with a path in front of the
/// topics where a proxy wants one, or `unix:/path/of/a/socket`. Without a scheme, `http` is meant;
/// without a port, 443 and 80.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUri {
    place: Place,
    /// Begins with a slash, or is empty; does not end with one.
    prefix: String,
}

/// Where connections go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Host {
        secure: bool,
        /// As in a URI: an IPv6 address is in brackets.
        host: String,
        port: u16,
    },
    Socket(PathBuf),
}

/// Why a text is no address of a server.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UriError {
    /// It cannot be parsed.
    #[error("not a server's URI: {0:?}; use http://host:port, https://host or unix:/path")]
    Syntax(String),
    /// A scheme that is not spoken here.
    #[error("cannot speak {0:?}: use http://host:port, https://host or unix:/path")]
    Scheme(String),
    /// The port is no number from 1 to 65535.
    #[error("port {0} is out of range: a port is 1 to 65535")]
    Port(String),
    /// There is a query, or a user.
    #[error("a server's URI has no user, query or fragment: {0:?}")]
    TooMuch(String),
}

/// What stays as it is in a path: RFC 3986, section 2.3, and the slashes between segments.
const ESCAPED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl ServerUri {
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// What requests name as their host: with the port where it is not the usual one, and
    /// `localhost` for a socket.
    pub fn authority(&self) -> String {
        match &self.place {
            Place::Host { secure: true, host, port: 443 }
            | Place::Host { secure: false, host, port: 80 } => host.clone(),
            Place::Host { host, port, .. } => format!("{host}:{port}"),
            Place::Socket(_) => "localhost".to_owned(),
        }
    }

    /// What stands before the topics in a path: empty, or with a slash before and none behind it.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether what is said is encrypted, to a server that has proved its name.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.place, Place::Host { secure: true, .. })
    }

    /// Whether what is said stays on this machine.
    pub fn is_local(&self) -> bool {
        match &self.place {
            Place::Host { host, .. } => match bare(host).parse::<IpAddr>() {
                Ok(address) => address.to_canonical().is_loopback(),
                Err(_) => host.eq_ignore_ascii_case("localhost"),
            },
            Place::Socket(_) => true,
        }
    }

    /// The URI of the list of topics.
    pub(crate) fn root(&self, query: &str) -> String {
        format!("{}/?{query}", self.base("http"))
    }

    /// The URI that says whether the server is healthy.
    pub(crate) fn health(&self) -> String {
        format!("{}/healthz", self.base("http"))
    }

    /// The URI at which the server tells about a topic.
    pub(crate) fn inspection(&self, topic: &TopicName) -> String {
        let path = utf8_percent_encode(topic.as_str(), ESCAPED);
        format!("{}/-/topics/{path}", self.base("http"))
    }

    /// The full URI of a topic. `scheme` is `http` or `ws`, which get an `s` where it belongs.
    /// `query` is empty or what follows the question mark.
    pub(crate) fn topic(&self, scheme: &str, topic: &TopicName, query: &str) -> String {
        let path = utf8_percent_encode(topic.as_str(), ESCAPED);
        let mark = if query.is_empty() { "" } else { "?" };
        format!("{}/{path}{mark}{query}", self.base(scheme))
    }

    fn base(&self, scheme: &str) -> String {
        let s = if self.is_encrypted() { "s" } else { "" };
        format!("{scheme}{s}://{}{}", self.authority(), self.prefix)
    }
}

/// A host as connections need it.
pub(crate) fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

impl FromStr for ServerUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let syntax = || UriError::Syntax(without_user(text));
        // Nothing in a path has a meaning of its own. A host called unix has a port behind it.
        if let Some(path) = text.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
            let path = Path::new("/").join(path.trim_start_matches('/'));
            return Ok(Self { place: Place::Socket(path), prefix: String::new() });
        }
        let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        if full.contains('#') {
            return Err(UriError::TooMuch(without_user(text)));
        }
        let uri: Uri =
            full.parse().map_err(|_| bad_port(&full).map_or_else(syntax, UriError::Port))?;
        let secure = match uri.scheme_str() {
            // What follows topics speaks websocket to the same address.
            Some("https" | "wss") => true,
            Some("http" | "ws") | None => false,
            Some(other) => return Err(UriError::Scheme(other.to_owned())),
        };
        let authority = uri.authority().ok_or_else(syntax)?;
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(UriError::TooMuch(without_user(text)));
        }
        if let Some(port) = bad_port(&full) {
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
            place: Place::Host {
                secure,
                host: host.to_owned(),
                port: authority.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            },
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

/// A port that is a number, and no port.
fn bad_port(uri: &str) -> Option<String> {
    let authority = uri.split_once("://")?.1.split('/').next()?;
    let (_, port) = authority.rsplit_once(':')?;
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
    (is_number && !is_port && port.len() <= 20).then(|| port.to_owned())
}

/// What an error may show: before an @ there may be a password.
fn without_user(text: &str) -> String {
    text.rsplit_once('@').map_or(text.to_owned(), |(_, rest)| format!("…@{rest}"))
}

impl fmt::Display for ServerUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Host { secure, host, port } => {
                let s = if *secure { "s" } else { "" };
                write!(f, "http{s}://{host}:{port}{}", self.prefix)
            }
            Place::Socket(path) => write!(f, "unix:{}", path.display()),
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
