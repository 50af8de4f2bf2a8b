//! Tokens: how a worker names its lease.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use thiserror::Error;

use super::name::TopicName;

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
    /// Both as text, the second part of each token.
    text: Vec<u8>,
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
    /// The size of the first part, in bytes: version, group, id and nonce. It is a multiple of 3, so that the text of the
    /// second part is the same in all tokens of a topic.
    const HEAD: usize = 2 + 2 * 8;
    const HEAD_TEXT: usize = Self::HEAD / 3 * 4;

    /// The topic of the message.
    pub fn topic(&self) -> &TopicName {
        &self.scope.topic
    }

    /// Appends the token as text: base64 for URLs, without padding.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let mut head = [0; Self::HEAD];
        head[0] = Self::VERSION;
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
        if version != Self::VERSION {
            return Err(TokenError);
        }
        let scope = match similar {
            Some(scope) if scope.text == tail => Arc::clone(scope),
            _ => Arc::new(TokenScope::parse(tail)?),
        };
        let key = LeaseKey { id: first_u64(&fields), nonce: first_u64(&fields[8..]) };
        Ok(Self { scope, group, key })
    }
}

impl TokenScope {
    const MAX_SIZE: usize = 8 + TopicName::MAX_BYTES;

    pub(crate) fn new(topic: TopicName, epoch: u64) -> Self {
        let mut text = Vec::new();
        encode(&mut text, &[&epoch.to_le_bytes(), topic.as_str().as_bytes()].concat());
        Self { topic, epoch, text }
    }

    fn parse(text: &[u8]) -> Result<Self, TokenError> {
        let mut bytes = [0; Self::MAX_SIZE];
        let size = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).map_err(|_| TokenError)?;
        let (epoch, name) = bytes[..size].split_at_checked(8).ok_or(TokenError)?;
        let name = std::str::from_utf8(name).map_err(|_| TokenError)?;
        let topic = TopicName::new(name).map_err(|_| TokenError)?;
        Ok(Self { topic, epoch: first_u64(epoch), text: text.to_vec() })
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
