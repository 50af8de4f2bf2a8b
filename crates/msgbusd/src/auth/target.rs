//! What a client names: a topic, or a pattern over topics.

use std::{fmt, str::FromStr};

use msgbus_core::{PatternError, TopicName, TopicPattern};

use super::grant::{Action, Permission};

/// A topic, or all topics that match a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Topic(TopicName),
    Pattern(TopicPattern),
}

impl Target {
    /// The permission for an action on the topic, or on any topic that may match the pattern.
    pub(crate) fn permission(&self, action: Action) -> Permission<'_> {
        match self {
            Self::Topic(topic) => Permission::Topic(action, topic),
            Self::Pattern(pattern) => Permission::Pattern(action, pattern),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(topic) => topic.fmt(f),
            Self::Pattern(pattern) => pattern.fmt(f),
        }
    }
}

/// Whether a name has a segment that only patterns have.
fn has_wildcard(name: &str) -> bool {
    name.split('/').any(|segment| matches!(segment, "*" | "**"))
}

impl FromStr for Target {
    type Err = PatternError;

    fn from_str(name: &str) -> Result<Self, PatternError> {
        if has_wildcard(name) {
            return Ok(Self::Pattern(name.parse()?));
        }
        Ok(Self::Topic(name.parse()?))
    }
}
