//! Which headers of a publish are kept with its message, besides those that always are.

use std::{fmt, str::FromStr};

use msgbus_core::{TopicName, TopicPattern};

/// The setting `keep-headers`, for all topics and for some.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeepHeaders {
    /// For topics that no rule matches.
    pub all: Vec<HeaderPattern>,
    /// For topics by pattern. The most specific one that matches counts.
    pub rules: Vec<(TopicPattern, Vec<HeaderPattern>)>,
}

impl KeepHeaders {
    /// Whether nothing is set.
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty() && self.rules.is_empty()
    }

    /// The headers to keep in this topic.
    pub(crate) fn of(&self, topic: &TopicName) -> &[HeaderPattern] {
        let matching = self.rules.iter().filter(|(pattern, _)| pattern.matches(topic));
        matching.min_by_key(|(pattern, _)| pattern).map_or(&self.all, |(_, headers)| headers)
    }
}

/// The name of a header, or the beginning of one and `*`. Without regard to case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderPattern {
    /// In lower case, without the `*`.
    name: Box<str>,
    is_prefix: bool,
}

/// Headers that are never kept: credentials, and headers that describe one request or connection.
const NEVER_KEPT: [&str; 18] = [
    "authorization",
    "connection",
    "content-length",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "msgbus-key",
    "proxy-authorization",
    "proxy-connection",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "ttl",
    "upgrade",
    "content-type",
    "content-encoding",
];

impl HeaderPattern {
    /// Whether the pattern matches the header `name`, in lower case.
    pub(crate) fn matches(&self, name: &str) -> bool {
        if self.is_prefix { name.starts_with(&*self.name) } else { *name == *self.name }
    }
}

impl FromStr for HeaderPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, is_prefix) =
            text.strip_suffix('*').map_or((text, false), |prefix| (prefix, true));
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(format!("not a header name, or the beginning of one and *: {text:?}"));
        }
        let pattern = Self { name: name.to_ascii_lowercase().into(), is_prefix };
        match NEVER_KEPT.into_iter().find(|name| pattern.matches(name)) {
            Some(name) => Err(format!("{text:?} matches {name}, which is never kept this way")),
            None => Ok(pattern),
        }
    }
}

impl fmt::Display for HeaderPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name, if self.is_prefix { "*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_rule_says_which_headers_are_kept() {
        let list = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        let keep = KeepHeaders {
            all: list(&["traceparent"]),
            rules: vec![
                ("hooks/**".parse().unwrap(), list(&["X-GitHub-*"])),
                ("hooks/none".parse().unwrap(), Vec::new()),
            ],
        };
        let kept = |topic: &str, header: &str| {
            keep.of(&topic.parse().unwrap()).iter().any(|pattern| pattern.matches(header))
        };
        assert!(kept("other", "traceparent") && !kept("other", "x-github-event"));
        assert!(kept("hooks/a", "x-github-event") && !kept("hooks/a", "traceparent"));
        assert!(!kept("hooks/none", "x-github-event"));
    }

    #[test]
    fn credentials_are_never_kept() {
        for text in ["Authorization", "a*", "Cook*", "TE", "*", "", "a b", "x**", "Set-Cookie"] {
            assert!(text.parse::<HeaderPattern>().is_err(), "{text:?}");
        }
        for text in ["X-GitHub-*", "X-Hub-Signature-256", "traceparent", "Stripe-Signature"] {
            let pattern: HeaderPattern = text.parse().unwrap();
            assert_eq!(pattern.to_string(), text.to_ascii_lowercase());
        }
    }
}
