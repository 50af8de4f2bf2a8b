//! The fuzz target of this crate: properties that hold for any bytes from outside. `fuzz/` runs it with
//! generated inputs, the test in this file with the stored corpus.

#[path = "../../../fuzz/common.rs"]
mod common;

use std::{collections::BTreeMap, fmt::Debug, str};

use hyper::Uri;
use msgbus_core::{TopicName, json};
use percent_encoding::percent_decode_str;
use serde::{Serialize, de::DeserializeOwned};

use self::common::is_a_line;
use crate::{GroupDetails, Key, ServerUri, TopicDetails, TopicSummary, socket, uri::Endpoint};

/// Parses the bytes as a server's JSON of topics and groups, as its lines on `msgbus.v1`, as a server URI and as a key. Printed values parse to
/// the same value, an error is one line, and no error contains a key.
///
/// # Panics
/// One of these properties does not hold.
pub fn client(data: &[u8]) {
    answer::<BTreeMap<String, TopicSummary>>(data);
    answer::<TopicDetails>(data);
    answer::<GroupDetails>(data);
    let Ok(text) = str::from_utf8(data) else { return };
    for line in text.lines() {
        if let Err(error) = socket::check_line(line) {
            is_a_line(&error, 1000);
        }
    }
    address(text);
    key(text);
}

fn answer<T: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8]) {
    match serde_json::from_slice::<T>(data) {
        Ok(answer) => {
            let json = serde_json::to_vec(&answer).expect("it has names for keys");
            let back: T = serde_json::from_slice(&json).expect("it was just written");
            assert_eq!(back, answer);
        }
        Err(error) => is_a_line(&json::brief(&error), 1000),
    }
}

fn address(text: &str) {
    let server: ServerUri = match text.parse() {
        Ok(server) => server,
        Err(error) => {
            let shown = text.rsplit_once('@').map_or(text, |(_, host)| host);
            assert!(shown.contains("mbk_") || !error.to_string().contains("mbk_"), "{error}");
            return is_a_line(&error, 300 + 10 * text.len());
        }
    };
    let shown = server.to_string();
    assert_eq!(shown.parse().as_ref(), Ok(&server), "{shown}");
    if let Endpoint::Host { host, .. } = server.endpoint() {
        assert!(!host.is_empty() && !host.contains(['@', '/']), "{host}");
    }
    let (line, _) = text.split_once('\n').unwrap_or((text, ""));
    for name in ["a b/größe?", "a%2Fb#c", line] {
        let Ok(topic) = TopicName::new(name) else { continue };
        let uri: Uri = server.topic("http", &topic, "max=1").parse().expect("a URI");
        if let Endpoint::Host { secure, port, .. } = server.endpoint() {
            let usual = if *secure { 443 } else { 80 };
            assert_eq!(uri.port_u16().unwrap_or(usual), *port);
        }
        assert_eq!(uri.query(), Some("max=1"));
        let path = uri.path().strip_prefix(server.prefix()).expect("the prefix is first");
        let decoded = percent_decode_str(path).decode_utf8().expect("UTF-8");
        assert_eq!(decoded.strip_prefix('/'), Some(name));
    }
}

fn key(text: &str) {
    match text.parse::<Key>() {
        Ok(key) => {
            assert_eq!(key.authorization(), &*format!("Bearer {text}"));
            assert_eq!(format!("{key:?}"), "Key(..)");
            assert!(key.authorization().is_sensitive());
        }
        Err(error) => is_a_line(&error, 100),
    }
}

#[cfg(test)]
mod tests {
    use super::common::replay;

    #[test]
    fn client() {
        replay("client", super::client);
    }
}
