//! What a client shows to a server that wants to know who asks.

use std::{fmt, str::FromStr};

use hyper::header::HeaderValue;
use thiserror::Error;

/// A key of a server. It shows in no output of [`Debug`], and there is no other.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(HeaderValue);

/// A text that no key can be. The text is not repeated: it may be part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a key is letters, digits and signs without a space, as msgbusd key new prints it")]
pub struct KeyError;

impl Key {
    /// The value of the header `Authorization`, marked as sensitive.
    pub fn authorization(&self) -> &HeaderValue {
        &self.0
    }
}

impl FromStr for Key {
    type Err = KeyError;

    /// # Errors
    /// When the text is empty, or has anything in it but visible ASCII characters.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(KeyError);
        }
        let mut value = HeaderValue::try_from(format!("Bearer {text}")).map_err(|_| KeyError)?;
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_visible_to_servers_only() {
        let key: Key = "mbk_abc".parse().unwrap();
        assert_eq!(key.authorization(), "Bearer mbk_abc");
        assert!(!format!("{key:?} {:?}", key.authorization()).contains("abc"));
        for wrong in ["", "a b", "a\n", "ä"] {
            assert_eq!(wrong.parse::<Key>(), Err(KeyError), "{wrong:?}");
        }
    }
}
