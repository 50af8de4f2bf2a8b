//! Groups of workers that share the messages of a topic, and the leases of those messages.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use thiserror::Error;

use super::{message::Message, name::TopicName};

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

/// Identifies one lease. Nobody can guess it. It is of use until the lease ends.
#[derive(Clone, PartialEq, Eq)]
pub struct LeaseToken {
    pub(crate) topic: TopicName,
    pub(crate) epoch: u64,
    pub(crate) group: u8,
    pub(crate) key: LeaseKey,
}

/// Identifies a lease within its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LeaseKey {
    pub(crate) id: u64,
    /// Random, so that nobody can guess it, and no two leases of a message have the same.
    pub(crate) nonce: u64,
}

/// The text is not a lease token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a lease token: use the value of Msgbus-Lease as it is")]
pub struct TokenError;

impl LeaseToken {
    /// The longest lease, and the longest delay after a nack.
    pub const MAX_TIME: Duration = Duration::from_secs(12 * 3600);
    /// The longest reason for a nack that is kept, in bytes.
    pub const MAX_REASON: usize = 256;

    const VERSION: u8 = 1;
    /// The size of everything before the topic's name, in bytes.
    const FIXED: usize = 2 + 3 * 8;
    const MAX_SIZE: usize = Self::FIXED + TopicName::MAX_BYTES;
    const MAX_TEXT: usize = Self::MAX_SIZE.div_ceil(3) * 4;

    /// The topic of the message.
    pub fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// Appends the token as text: base64 for URLs, without padding.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        self.with_text(|text| out.extend_from_slice(text));
    }

    fn with_text<T>(&self, act: impl FnOnce(&[u8]) -> T) -> T {
        let mut bytes = [0; Self::MAX_SIZE];
        let name = self.topic.as_str().as_bytes();
        bytes[0] = Self::VERSION;
        bytes[1] = self.group;
        for (field, at) in [(self.key.id, 2), (self.epoch, 10), (self.key.nonce, 18)] {
            bytes[at..at + 8].copy_from_slice(&field.to_le_bytes());
        }
        let size = Self::FIXED + name.len();
        bytes[Self::FIXED..size].copy_from_slice(name);
        let mut text = [0; Self::MAX_TEXT];
        // It cannot fail: the buffer has the size of the longest token.
        let length = URL_SAFE_NO_PAD.encode_slice(&bytes[..size], &mut text).unwrap_or(0);
        act(&text[..length])
    }

    /// The token of a text, which is often of the same topic as `previous`.
    fn parse(text: &str, previous: Option<&Self>) -> Result<Self, TokenError> {
        let mut bytes = [0; Self::MAX_SIZE];
        let size = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).map_err(|_| TokenError)?;
        let (fixed, name) =
            bytes[..size].split_first_chunk::<{ Self::FIXED }>().ok_or(TokenError)?;
        let field = |at: usize| {
            fixed[at..].first_chunk().map_or(0, |bytes: &[u8; 8]| u64::from_le_bytes(*bytes))
        };
        if fixed[0] != Self::VERSION {
            return Err(TokenError);
        }
        let topic = match previous.filter(|token| token.topic.as_str().as_bytes() == name) {
            Some(token) => token.topic.clone(),
            None => {
                let name = std::str::from_utf8(name).map_err(|_| TokenError)?;
                TopicName::new(name).map_err(|_| TokenError)?
            }
        };
        let key = LeaseKey { id: field(2), nonce: field(18) };
        Ok(Self { topic, epoch: field(10), group: fixed[1], key })
    }

    /// The tokens in a text, one a line. Empty lines are left out.
    pub fn parse_lines(text: &str) -> impl Iterator<Item = (&str, Result<Self, TokenError>)> {
        let mut previous = None;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.map(move |line| {
            let token = Self::parse(line, previous.as_ref());
            if let Ok(token) = &token {
                previous = Some(token.clone());
            }
            (line, token)
        })
    }
}

impl FromStr for LeaseToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        Self::parse(text, None)
    }
}

impl fmt::Display for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| f.write_str(std::str::from_utf8(text).unwrap_or_default()))
    }
}

/// Omits the token itself: it is a secret.
impl fmt::Debug for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseToken({}, message {})", self.topic, self.key.id)
    }
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

    fn token(topic: &str) -> LeaseToken {
        let key = LeaseKey { id: u64::MAX - 7, nonce: 3 };
        LeaseToken { topic: topic.parse().unwrap(), epoch: 1 << 60, group: 63, key }
    }

    #[test]
    fn tokens_are_text_that_fits_a_url() {
        for topic in ["a", "jobs/größe", &"x".repeat(255)] {
            let token = token(topic);
            let text = token.to_string();
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
            assert_eq!(text.parse(), Ok(token.clone()));
            let mut bytes = Vec::new();
            token.write_to(&mut bytes);
            assert_eq!(bytes, text.as_bytes());
        }
    }

    #[test]
    fn no_cut_or_changed_text_is_another_token() {
        let text = token("jobs").to_string();
        for length in 0..text.len() {
            if let Ok(cut) = text[..length].parse::<LeaseToken>() {
                assert_ne!(cut, token("jobs"), "{length}");
            }
        }
        for rubbish in ["", "x", "AAAA", "é", "a b", &"A".repeat(10_000), &format!("{text}=")] {
            assert_eq!(rubbish.parse::<LeaseToken>(), Err(TokenError), "{rubbish:?}");
        }
    }

    #[test]
    fn a_list_has_a_token_a_line() {
        let (one, two) = (token("jobs"), token("others"));
        let text = format!("{one}\r\n\n  {one}\nrubbish\n{two}");
        let parsed: Vec<_> = LeaseToken::parse_lines(&text).map(|(_, token)| token).collect();
        assert_eq!(parsed, [Ok(one.clone()), Ok(one), Err(TokenError), Ok(two)]);
    }
}
