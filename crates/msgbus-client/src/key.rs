//! The key with which a client authenticates.

use std::{fmt, str::FromStr};

use hyper::header::HeaderValue;
use thiserror::Error;

/// A key for a server. [`Debug`] does not print it, and [`Display`](fmt::Display) is not implemented.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(HeaderValue);

/// The text is not a valid key. The error does not repeat the text, which may be part of a real key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a key; a key has no spaces or control characters, as printed by msgbusd key new")]
pub struct KeyError;

impl Key {
    /// The value of the `Authorization` header, marked as sensitive.
    pub fn authorization(&self) -> &HeaderValue {
        &self.0
    }
}

impl FromStr for Key {
    type Err = KeyError;

    /// # Errors
    /// The text is empty or contains anything but visible ASCII characters.
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
