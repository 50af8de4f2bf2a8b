//! Where a server is: an address, and maybe a path in front of its topics.

use std::{fmt, str::FromStr};

use hyper::Uri;
use msgbus_core::TopicName;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use thiserror::Error;

/// The address of a server: `http://host:port`, with a path in front of the topics where a proxy
/// wants one. Without a scheme, `http` is meant; without a port, 80.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUri {
    host: String,
    port: u16,
    /// Begins with a slash, or is empty; does not end with one.
    prefix: String,
}

/// Why a text is no address of a server.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UriError {
    /// It cannot be parsed.
    #[error("not a server's URI: {0:?}; use http://host:port")]
    Syntax(String),
    /// Another scheme than http.
    #[error("cannot speak {0:?}: use http://host:port")]
    Scheme(String),
    /// There is a query, or a user.
    #[error("a server's URI has no user, query or fragment: {0:?}")]
    TooMuch(String),
}

/// What stays as it is in a path: RFC 3986, section 2.3, and the slashes between segments.
const ESCAPED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl ServerUri {
    /// Host and port, as connections need them.
    pub fn address(&self) -> (&str, u16) {
        (self.host.trim_start_matches('[').trim_end_matches(']'), self.port)
    }

    /// What stands before the topics in a path: empty, or with a slash before and none behind it.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The URI of the list of topics.
    pub(crate) fn root(&self, query: &str) -> String {
        let Self { host, port, prefix } = self;
        format!("http://{host}:{port}{prefix}/?{query}")
    }

    /// The URI at which the server tells about a topic.
    pub(crate) fn inspection(&self, topic: &TopicName) -> String {
        let Self { host, port, prefix } = self;
        let path = utf8_percent_encode(topic.as_str(), ESCAPED);
        format!("http://{host}:{port}{prefix}/-/topics/{path}")
    }

    /// The full URI of a topic. `query` is empty or what follows the question mark.
    pub(crate) fn topic(&self, scheme: &str, topic: &TopicName, query: &str) -> String {
        let Self { host, port, prefix } = self;
        let path = utf8_percent_encode(topic.as_str(), ESCAPED);
        let mark = if query.is_empty() { "" } else { "?" };
        format!("{scheme}://{host}:{port}{prefix}/{path}{mark}{query}")
    }
}

impl FromStr for ServerUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let syntax = || UriError::Syntax(text.to_owned());
        let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        if full.contains('#') {
            return Err(UriError::TooMuch(text.to_owned()));
        }
        let uri: Uri = full.parse().map_err(|_| syntax())?;
        if let Some(scheme) = uri.scheme_str().filter(|scheme| *scheme != "http") {
            return Err(UriError::Scheme(scheme.to_owned()));
        }
        let authority = uri.authority().ok_or_else(syntax)?;
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(UriError::TooMuch(text.to_owned()));
        }
        let has_bad_port =
            authority.port_u16().is_none() && authority.as_str().len() > authority.host().len();
        if authority.host().is_empty() || has_bad_port {
            return Err(syntax());
        }
        Ok(Self {
            host: authority.host().to_owned(),
            port: authority.port_u16().unwrap_or(80),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for ServerUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, prefix } = self;
        write!(f, "http://{host}:{port}{prefix}")
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
        ] {
            assert_eq!(text.parse::<ServerUri>().unwrap().to_string(), shown, "{text}");
        }
        let uri: ServerUri = "http://[::1]:8000/bus".parse().unwrap();
        assert_eq!(uri.address(), ("::1", 8000));
        let topic = "a b/größe?".parse().unwrap();
        assert_eq!(uri.topic("ws", &topic, ""), "ws://[::1]:8000/bus/a%20b/gr%C3%B6%C3%9Fe%3F");
        assert_eq!(
            uri.topic("http", &topic, "x"),
            "http://[::1]:8000/bus/a%20b/gr%C3%B6%C3%9Fe%3F?x"
        );
    }

    #[test]
    fn the_rest_is_refused_with_a_hint() {
        for text in [
            "",
            "http://",
            "https://localhost",
            "ftp://a",
            "http://u:p@host",
            "http://a?b",
            "http://a#b",
            "http://a:b",
            "http://a:99999",
            "http://a:",
            "a b",
            ":8000",
        ] {
            let error = text.parse::<ServerUri>().expect_err(text).to_string();
            assert!(error.contains("http://host:port") || error.contains("no user"), "{error}");
        }
    }
}
