//! Finds subscriptions and services by their names; and the names of topics in other systems.

use std::{
    borrow::Cow,
    fmt,
    hash::{BuildHasher as _, Hash, RandomState},
};

use hashbrown::HashTable;
use msgbus_core::{NameError, TopicName};
use percent_encoding::{
    AsciiSet, CONTROLS, percent_decode_str, percent_encode_byte, utf8_percent_encode,
};

use super::Refusal;
use crate::auth::Target;

/// A subscription or a service, as it is called for a client that gives it no name of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Name {
    /// A subscription.
    Topic(Target),
    Service(TopicName),
}

impl Name {
    /// The subscription to a topic or, with wildcards, to a pattern of a system that knows patterns.
    pub(crate) fn of_target(name: &str) -> Result<Self, Refusal> {
        let pattern = name.parse().ok().filter(|target| matches!(target, Target::Pattern(_)));
        Ok(Self::Topic(match pattern {
            Some(pattern) => pattern,
            None => Target::Topic(topic(name)?),
        }))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(Target::Topic(name)) | Self::Service(name) => {
                f.write_str(&foreign(name.as_str()))
            }
            Self::Topic(Target::Pattern(pattern)) => pattern.fmt(f),
        }
    }
}

/// What is escaped in a name of another system that is no topic name as it is.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%').add(b'*').add(b'-').add(b'.').add(b'/');

/// The topic or service with a name of another system. It has that name, if it can; else what topic names must not have is
/// written as `%` and two hex digits. So different names are different topics.
///
/// # Errors
/// When the name is empty, or too long with its escapes.
pub(crate) fn topic(name: &str) -> Result<TopicName, NameError> {
    match TopicName::new(name) {
        Ok(topic) if !has_escape(name) => return Ok(topic),
        Err(error @ (NameError::Empty | NameError::TooLong(_))) => return Err(error),
        _ => {}
    }
    let mut escaped = utf8_percent_encode(name, ESCAPED).to_string();
    if escaped == name {
        // The server has it for itself.
        escaped.replace_range(..1, percent_encode_byte(name.as_bytes()[0]));
    }
    TopicName::new(&escaped)
}

/// The name that a topic or service has in another system.
pub(crate) fn foreign(topic: &str) -> Cow<'_, str> {
    match percent_decode_str(topic).decode_utf8() {
        // A line has no end within.
        Ok(name) if !name.contains(['\r', '\n']) => name,
        _ => topic.into(),
    }
}

fn has_escape(text: &str) -> bool {
    matches!(percent_decode_str(text).into(), Cow::<[u8]>::Owned(_))
}

/// The keys of subscriptions, by a name that only the subscription itself has in memory.
#[derive(Debug, Default)]
pub(super) struct Names {
    keys: HashTable<u32>,
    /// Clients choose the names, and must not be able to choose their hashes.
    hasher: RandomState,
}

impl Names {
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key of a subscription. `name_of` returns the name of each.
    pub(super) fn find<'a, N: Hash + Eq + 'a>(
        &self,
        name: &N,
        name_of: impl Fn(usize) -> Option<&'a N>,
    ) -> Option<usize> {
        let hash = self.hasher.hash_one(name);
        self.keys.find(hash, |key| name_of(*key as usize) == Some(name)).map(|key| *key as usize)
    }

    /// Adds a subscription with a name that is not in use.
    pub(super) fn insert<'a, N: Hash + 'a>(
        &mut self,
        key: usize,
        name_of: impl Fn(usize) -> Option<&'a N>,
    ) {
        let Self { keys, hasher } = self;
        let hash = |key: &u32| name_of(*key as usize).map_or(0, |name| hasher.hash_one(name));
        // There are far fewer.
        let key = u32::try_from(key).unwrap_or(u32::MAX);
        keys.insert_unique(hash(&key), key, hash);
    }

    /// Removes a subscription.
    pub(super) fn remove<N: Hash>(&mut self, name: &N, key: usize) {
        let hash = self.hasher.hash_one(name);
        if let Ok(entry) = self.keys.find_entry(hash, |other| *other as usize == key) {
            entry.remove();
        }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = usize> {
        self.keys.iter().map(|key| *key as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_systems_are_topics_and_back() {
        for (text, name) in [
            ("Chat", "Chat"),
            ("MSG:0123456789abcdefghij", "MSG:0123456789abcdefghij"),
            ("a b/c", "a b/c"),
            ("50%", "50%"),
            ("a%2Fb", "a%252Fb"),
            ("/a", "%2Fa"),
            ("a/", "a%2F"),
            ("a//b", "a%2F%2Fb"),
            ("/", "%2F"),
            ("//", "%2F%2F"),
            ("*", "%2A"),
            ("a/**/b", "a%2F%2A%2A%2Fb"),
            ("..", "%2E%2E"),
            ("metrics", "%6Detrics"),
            ("metrics/x", "metrics/x"),
            ("-/x", "%2D%2Fx"),
            ("-", "%2D"),
            ("tab\there", "tab%09here"),
            ("bell\u{85}", "bell%C2%85"),
            ("größe", "größe"),
        ] {
            let made = topic(text).unwrap();
            assert_eq!((made.as_str(), &*foreign(name)), (name, text));
        }
        assert_eq!(topic(""), Err(NameError::Empty));
        assert_eq!(topic(&"x".repeat(256)), Err(NameError::TooLong(256)));
        assert!(topic(&"/".repeat(100)).is_err(), "three bytes each");
        assert_eq!(foreign("a%0Ab"), "a%0Ab", "a line has no end within");
        assert_eq!(foreign("%FF"), "%FF", "not UTF-8");
    }
}
