//! Tokens: how a worker names its lease.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use thiserror::Error;

use super::{group::GroupName, message::TopicInfo, name::TopicName};
use crate::engine;

/// Identifies one lease. Nobody can guess it. It is of use until the lease ends. Cloning costs one atomic increment.
#[derive(Clone, PartialEq, Eq)]
pub struct LeaseToken {
    pub(crate) scope: Arc<TokenScope>,
    pub(crate) group: u8,
    pub(crate) key: LeaseKey,
}

/// What all tokens of a topic have in common.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TokenScope {
    pub(crate) topic: TopicName,
    pub(crate) epoch: u64,
    /// A lease of an engine. Then the scope is only for this token.
    pub(crate) engine: Option<EngineLease>,
    /// All of it as text, the second part of each token.
    text: Vec<u8>,
}

/// A lease of an engine, which any bus can settle that has the engine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EngineLease {
    pub(crate) group: GroupName,
    pub(crate) key: engine::LeaseKey,
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

    const VERSION: u8 = 2;
    const ENGINE_VERSION: u8 = 3;
    /// The size of the first part, in bytes: version, group, id and nonce. It is a multiple of 3, so that the text of the
    /// second part is the same in all tokens of a topic.
    const HEAD: usize = 2 + 2 * 8;
    const HEAD_TEXT: usize = Self::HEAD / 3 * 4;

    /// The token of a lease that an engine has given. `last`: how often the message was delivered, if it is not to be
    /// delivered again.
    pub(crate) fn of_engine(
        topic: &TopicInfo,
        group: &GroupName,
        (id, last): (u64, Option<u32>),
        key: engine::LeaseKey,
    ) -> Self {
        let lease = EngineLease { group: group.clone(), key };
        let scope = TokenScope::of_engine(topic.name.clone(), topic.epoch, lease);
        let nonce = last.unwrap_or(0).into();
        Self { scope: Arc::new(scope), group: 0, key: LeaseKey { id, nonce } }
    }

    /// Of a lease that an engine has given: how often the message was delivered, if it was not to be delivered again.
    pub(crate) fn last_delivery(&self) -> Option<u32> {
        self.scope.engine.as_ref()?;
        u32::try_from(self.key.nonce).ok().filter(|deliveries| *deliveries > 0)
    }

    /// Whether an engine has given both leases, to the same group.
    pub(crate) fn has_engine_group_of(&self, other: &Self) -> bool {
        let group = |token: &Self| token.scope.engine.as_ref().map(|lease| lease.group.clone());
        self.scope.engine.is_some()
            && group(self) == group(other)
            && self.scope.topic == other.scope.topic
    }

    /// The topic of the message.
    pub fn topic(&self) -> &TopicName {
        &self.scope.topic
    }

    /// Appends the token as text: base64 for URLs, without padding.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let mut head = [0; Self::HEAD];
        let is_of_engine = self.scope.engine.is_some();
        head[0] = if is_of_engine { Self::ENGINE_VERSION } else { Self::VERSION };
        head[1] = self.group;
        head[2..10].copy_from_slice(&self.key.id.to_le_bytes());
        head[10..].copy_from_slice(&self.key.nonce.to_le_bytes());
        out.reserve(Self::HEAD_TEXT + self.scope.text.len());
        encode(out, &head);
        out.extend_from_slice(&self.scope.text);
    }

    /// The token of a text. It takes less time if it is of the same topic as `similar`.
    ///
    /// # Errors
    /// When the text is not a token.
    pub fn parse_like(text: &str, similar: Option<&Self>) -> Result<Self, TokenError> {
        Self::parse(text, similar.map(|token| &token.scope))
    }

    /// The tokens in a text, one a line. Empty lines are left out.
    pub fn parse_lines(text: &str) -> impl Iterator<Item = (&str, Result<Self, TokenError>)> {
        let mut latest: Option<Arc<TokenScope>> = None;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.map(move |line| {
            let token = Self::parse(line, latest.as_ref());
            if let Ok(Self { scope, .. }) = &token
                && latest.as_ref().is_none_or(|latest| !Arc::ptr_eq(latest, scope))
            {
                latest = Some(Arc::clone(scope));
            }
            (line, token)
        })
    }

    fn parse(text: &str, similar: Option<&Arc<TokenScope>>) -> Result<Self, TokenError> {
        let (head, tail) =
            text.as_bytes().split_first_chunk::<{ Self::HEAD_TEXT }>().ok_or(TokenError)?;
        let mut bytes = [0; Self::HEAD];
        URL_SAFE_NO_PAD.decode_slice(head, &mut bytes).map_err(|_| TokenError)?;
        let [version, group, fields @ ..] = bytes;
        let is_of_engine = match version {
            Self::VERSION => false,
            Self::ENGINE_VERSION => true,
            _ => return Err(TokenError),
        };
        let scope = match similar {
            Some(scope) if scope.text == tail && scope.engine.is_some() == is_of_engine => {
                Arc::clone(scope)
            }
            _ if is_of_engine => Arc::new(TokenScope::parse_of_engine(tail)?),
            _ => Arc::new(TokenScope::parse(tail)?),
        };
        let key = LeaseKey { id: first_u64(&fields), nonce: first_u64(&fields[8..]) };
        Ok(Self { scope, group, key })
    }
}

impl TokenScope {
    const MAX_SIZE: usize = 8 + TopicName::MAX_BYTES;
    const MAX_ENGINE_SIZE: usize =
        Self::MAX_SIZE + 1 + GroupName::MAX_BYTES + 1 + engine::MAX_LEASE_KEY;

    pub(crate) fn new(topic: TopicName, epoch: u64) -> Self {
        let mut text = Vec::new();
        encode(&mut text, &[&epoch.to_le_bytes(), topic.as_str().as_bytes()].concat());
        Self { topic, epoch, engine: None, text }
    }

    fn of_engine(topic: TopicName, epoch: u64, lease: EngineLease) -> Self {
        // Both names have less than 256 bytes.
        let length = |text: &str| [u8::try_from(text.len()).unwrap_or(u8::MAX)];
        let (name, group) = (topic.as_str(), lease.group.as_str());
        let mut bytes = epoch.to_le_bytes().to_vec();
        for part in [name, group] {
            bytes.extend_from_slice(&length(part));
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes.extend_from_slice(&lease.key);
        let mut text = Vec::new();
        encode(&mut text, &bytes);
        Self { topic, epoch, engine: Some(lease), text }
    }

    fn parse_of_engine(text: &[u8]) -> Result<Self, TokenError> {
        let part = |bytes: &[u8]| -> Option<(String, usize)> {
            let (length, rest) = bytes.split_first()?;
            let text = std::str::from_utf8(rest.get(..usize::from(*length))?).ok()?;
            Some((text.to_owned(), 1 + usize::from(*length)))
        };
        let mut bytes = [0; Self::MAX_ENGINE_SIZE];
        let size = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).map_err(|_| TokenError)?;
        let (epoch, rest) = bytes[..size].split_at_checked(8).ok_or(TokenError)?;
        let (topic, length) = part(rest).ok_or(TokenError)?;
        let rest = &rest[length..];
        let (group, length) = part(rest).ok_or(TokenError)?;
        let lease = EngineLease {
            group: GroupName::new(&group).map_err(|_| TokenError)?,
            key: rest[length..].into(),
        };
        let topic = TopicName::new(&topic).map_err(|_| TokenError)?;
        Ok(Self { topic, epoch: first_u64(epoch), engine: Some(lease), text: text.to_vec() })
    }

    fn parse(text: &[u8]) -> Result<Self, TokenError> {
        let mut bytes = [0; Self::MAX_SIZE];
        let size = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).map_err(|_| TokenError)?;
        let (epoch, name) = bytes[..size].split_at_checked(8).ok_or(TokenError)?;
        let name = std::str::from_utf8(name).map_err(|_| TokenError)?;
        let topic = TopicName::new(name).map_err(|_| TokenError)?;
        Ok(Self { topic, epoch: first_u64(epoch), engine: None, text: text.to_vec() })
    }
}

fn encode(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    out.resize(start + (bytes.len() * 4).div_ceil(3), 0);
    // It cannot fail: the slice has the exact size.
    let _ = URL_SAFE_NO_PAD.encode_slice(bytes, &mut out[start..]);
}

/// The number in the first 8 bytes.
fn first_u64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl FromStr for LeaseToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        Self::parse(text, None)
    }
}

impl fmt::Display for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::new();
        self.write_to(&mut text);
        f.write_str(&String::from_utf8_lossy(&text))
    }
}

/// Omits the token itself: it is a secret.
impl fmt::Debug for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseToken({}, message {})", self.topic(), self.key.id)
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn token(topic: &str) -> LeaseToken {
        let key = LeaseKey { id: u64::MAX - 7, nonce: 3 };
        let scope = Arc::new(TokenScope::new(topic.parse().unwrap(), 1 << 60));
        LeaseToken { scope, group: 63, key }
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
    fn tokens_of_engines_name_group_and_lease() {
        let group = "workers".parse().unwrap();
        let topic = TopicInfo {
            name: "jobs/größe".parse().unwrap(),
            epoch: 1 << 60,
            created: DateTime::default(),
            ttl: None,
        };
        for key in [&[][..], &[0, 255], &[7; engine::MAX_LEASE_KEY]] {
            let token = LeaseToken::of_engine(&topic, &group, (5, Some(10)), key.into());
            let text = token.to_string();
            assert_eq!(text.parse(), Ok(token.clone()));
            assert_eq!(token.last_delivery(), Some(10));
            assert!(token.has_engine_group_of(&token.clone()));
            for length in 0..text.len() {
                assert_ne!(text[..length].parse(), Ok(token.clone()), "{length}");
            }
            // The rest of one is not the rest of the other kind.
            let other = LeaseToken::parse_like(&text.replacen("Aw", "Ag", 1), Some(&token));
            assert!(other.is_err() || other.is_ok_and(|other| other.scope.engine.is_none()));
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
