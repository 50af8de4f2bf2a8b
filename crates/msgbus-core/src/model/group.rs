//! Groups of workers that share the messages of a topic, and the leases of those messages.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use thiserror::Error;

use super::{message::Message, name::TopicName, token::LeaseToken};

/// The name of a group: 1 to 64 of the characters `A-Z a-z 0-9 _ . -`. Cloning costs one atomic increment.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupName(Arc<str>);

/// Why a text is not a valid group name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GroupNameError {
    /// The name is empty.
    #[error("a group name must not be empty")]
    Empty,
    /// The name has more than [`GroupName::MAX_BYTES`] characters. The number is its length in bytes.
    #[error("a group name has at most {max} characters, this one has {0}", max = GroupName::MAX_BYTES)]
    TooLong(usize),
    /// The name has another meaning in paths.
    #[error("a group name must not be \".\" or \"..\"")]
    Dots,
    /// The name contains another character.
    #[error("a group name has only letters and digits of ASCII and \"_\", \".\", \"-\"")]
    Character,
}

impl GroupName {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 64;

    /// Validates `name`.
    ///
    /// # Errors
    /// When `name` breaks a rule of [`GroupNameError`].
    pub fn new(name: &str) -> Result<Self, GroupNameError> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if name.is_empty() {
            Err(GroupNameError::Empty)
        } else if name.len() > Self::MAX_BYTES {
            Err(GroupNameError::TooLong(name.len()))
        } else if matches!(name, "." | "..") {
            Err(GroupNameError::Dots)
        } else if name.bytes().all(is_allowed) {
            Ok(Self(name.into()))
        } else {
            Err(GroupNameError::Character)
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GroupName {
    type Err = GroupNameError;

    fn from_str(name: &str) -> Result<Self, GroupNameError> {
        Self::new(name)
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// The settings of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSettings {
    /// After this many deliveries without an ack, a message becomes a dead letter. 0 is unlimited. Default 10.
    pub max_deliveries: u32,
    /// The maximum number of live leases, 1 to [`MAX_LEASES`](Self::MAX_LEASES). Default 1,024.
    pub max_leases: u32,
    /// The topic for dead letters. By default the topic's name and `/dead-letters`.
    pub dead_letters: Option<TopicName>,
}

impl GroupSettings {
    /// The highest limit on leases.
    pub const MAX_LEASES: u32 = 65_536;
    /// The maximum number of groups of a topic that have a name.
    pub const MAX_GROUPS: usize = 64;

    /// The settings of a new group of a topic. Groups of dead letters deliver without end.
    pub fn of(topic: &TopicName) -> Self {
        let default = Self::default();
        let is_final = topic.is_of_dead_letters();
        Self { max_deliveries: if is_final { 0 } else { default.max_deliveries }, ..default }
    }
}

impl Default for GroupSettings {
    fn default() -> Self {
        Self { max_deliveries: 10, max_leases: 1024, dead_letters: None }
    }
}

/// A message that was leased to one worker of a group.
#[derive(Debug, Clone)]
pub struct Leased {
    /// The message.
    pub message: Message,
    /// Settles the lease.
    pub token: LeaseToken,
    /// How often the group was given the message, this time included.
    pub deliveries: u32,
    /// When the lease ends, if it is not extended. Informative: a monotonic clock decides.
    pub expires: DateTime<Utc>,
}

/// What becomes of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// The message is done. The group does not get it again.
    Ack,
    /// The message failed. The group gets it again, or it becomes a dead letter.
    Nack {
        /// How long the message waits before it is delivered again, at most [`LeaseToken::MAX_TIME`].
        delay: Duration,
        /// Why it failed. More than [`LeaseToken::MAX_REASON`] bytes are cut off.
        reason: Option<Box<str>>,
    },
    /// The lease goes on.
    Extend {
        /// How long it lasts from now, at most [`LeaseToken::MAX_TIME`].
        lease: Duration,
    },
}

/// The outcome of settling many leases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettledBatch {
    /// The indices of the leases that are over.
    pub lost: Vec<usize>,
    /// When the first of the leases ends that were extended.
    pub expires: Option<DateTime<Utc>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_names_are_short_and_plain() {
        for (name, expected) in [
            ("workers", Ok(())),
            ("a_B.9-", Ok(())),
            ("", Err(GroupNameError::Empty)),
            ("..", Err(GroupNameError::Dots)),
            ("a b", Err(GroupNameError::Character)),
            ("a/b", Err(GroupNameError::Character)),
            ("größe", Err(GroupNameError::Character)),
        ] {
            assert_eq!(GroupName::new(name).map(drop), expected, "{name:?}");
        }
        assert!(GroupName::new(&"x".repeat(64)).is_ok());
        assert_eq!(GroupName::new(&"x".repeat(65)), Err(GroupNameError::TooLong(65)));
    }
}
