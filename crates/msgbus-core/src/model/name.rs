//! Topic names. They are validated once, when created, and cheap to clone.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use thiserror::Error;

/// The name of a topic: 1 to 255 bytes of UTF-8 in segments separated by `/`.
///
/// A value of this type is always valid; see [`NameError`] for what is refused. Cloning costs one
/// atomic increment.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(Arc<str>);

/// Why a text is not a valid topic name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name is empty.
    #[error("a topic name must not be empty")]
    Empty,
    /// The name has more than [`TopicName::MAX_BYTES`] bytes. The number is its length in bytes.
    #[error("a topic name has at most {max} bytes, this one has {0}", max = TopicName::MAX_BYTES)]
    TooLong(usize),
    /// The name contains a character of Unicode's class Cc, such as line feed or NUL.
    #[error("a topic name must not contain control characters")]
    ControlCharacter,
    /// A segment is empty, or has another meaning in paths.
    #[error("a topic name must not contain an empty, \".\" or \"..\" segment")]
    Segment,
    /// A segment is `*` or `**`, which are reserved for patterns.
    #[error("\"*\" and \"**\" are patterns, not parts of a topic name")]
    Wildcard,
    /// The server reserves the name.
    #[error(
        "\"metrics\", \"healthz\", \"readyz\" and everything under \"-/\" are reserved, never topics"
    )]
    Reserved,
}

impl TopicName {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// Validates `name`. Slashes at its ends are an error; a protocol that allows them trims them first.
    ///
    /// # Errors
    /// When `name` breaks a rule of [`NameError`]. Returns the first one.
    pub fn new(name: &str) -> Result<Self, NameError> {
        check(name)?;
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment of the names of topics for dead letters.
    const DEAD_LETTERS: &str = "/dead-letters";

    /// Whether the topic is for dead letters by its name, which ends with `/dead-letters`. Unless its settings say
    /// otherwise, such a topic has no TTL, and it refuses a message rather than evict one.
    pub fn is_of_dead_letters(&self) -> bool {
        self.as_str().ends_with(Self::DEAD_LETTERS)
    }

    /// The topic that has this one as its default topic for dead letters.
    pub(crate) fn origin_of_dead_letters(&self) -> Option<Self> {
        Self::new(self.as_str().strip_suffix(Self::DEAD_LETTERS)?).ok()
    }

    /// The default topic for the dead letters of this one.
    ///
    /// # Errors
    /// When that name is too long.
    pub fn dead_letters(&self) -> Result<Self, NameError> {
        Self::new(&format!("{self}{}", Self::DEAD_LETTERS))
    }
}

fn check(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > TopicName::MAX_BYTES {
        return Err(NameError::TooLong(name.len()));
    }
    if name.chars().any(char::is_control) {
        return Err(NameError::ControlCharacter);
    }
    if matches!(name, "metrics" | "healthz" | "readyz" | "-") || name.starts_with("-/") {
        return Err(NameError::Reserved);
    }
    name.split('/').try_for_each(|segment| match segment {
        "" | "." | ".." => Err(NameError::Segment),
        "*" | "**" => Err(NameError::Wildcard),
        _ => Ok(()),
    })
}

impl FromStr for TopicName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

impl TryFrom<&str> for TopicName {
    type Error = NameError;

    fn try_from(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

impl AsRef<str> for TopicName {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

/// Lets a map keyed by topic names be searched with a plain `&str`.
impl Borrow<str> for TopicName {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_inner_slashes_and_any_script() {
        for name in ["a", "a/b/c", "größe", "日本/東京", "a b", "-", "…", "metrics/x", "-x", "a*b"]
        {
            let made = TopicName::new(name);
            assert_eq!(made.is_ok(), name != "-", "{name}: {made:?}");
        }
        assert!(TopicName::new(&"x".repeat(255)).is_ok());
    }

    #[test]
    fn names_the_broken_rule() {
        for (name, why) in [
            ("", NameError::Empty),
            ("a\nb", NameError::ControlCharacter),
            ("a\u{85}", NameError::ControlCharacter),
            ("a//b", NameError::Segment),
            ("/a", NameError::Segment),
            ("a/", NameError::Segment),
            ("a/./b", NameError::Segment),
            ("..", NameError::Segment),
            ("a/*", NameError::Wildcard),
            ("**", NameError::Wildcard),
            ("metrics", NameError::Reserved),
            ("healthz", NameError::Reserved),
            ("readyz", NameError::Reserved),
            ("-/topics", NameError::Reserved),
        ] {
            assert_eq!(TopicName::new(name), Err(why), "{name:?}");
        }
        assert_eq!(TopicName::new(&"é".repeat(128)), Err(NameError::TooLong(256)));
    }
}
