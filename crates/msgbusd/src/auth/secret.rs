//! Secrets and their hashes. The server keeps only the hash.
//!
//! A secret has 256 random bits, so it cannot be guessed, and a fast hash is the right choice: a slow hash protects
//! passwords that people choose, and would slow down every request.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::grant::Grant;

/// The prefix of secrets, which makes a leaked one recognizable.
const PREFIX: &str = "mbk_";
/// In bytes.
const SECRET_SIZE: usize = 32;
const HASH_PREFIX: &str = "sha256:";

/// The SHA-256 of a secret. Its text is `sha256:` and 64 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Hash([u8; 32]);

impl Hash {
    pub(super) fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }
}

impl FromStr for Hash {
    /// What is expected. The text is not quoted, because it may be the secret itself.
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "expected sha256: and 64 hex digits, as msgbusd key new prints them";
        let digits = text.strip_prefix(HASH_PREFIX).ok_or(wrong)?;
        let mut hash = [0; 32];
        if digits.len() != 2 * hash.len() || !digits.bytes().all(|d| d.is_ascii_hexdigit()) {
            return Err(wrong);
        }
        for (at, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).map_err(|_| wrong)?;
        }
        Ok(Self(hash))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HASH_PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Whether this may be a misplaced secret, which errors must not quote.
pub(super) fn may_be_secret(text: &str) -> bool {
    const MIN_LENGTH: usize = 32;
    let is_secret_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '+' | '=');
    let mut words = text.split(|c| !is_secret_char(c));
    text.contains(PREFIX) || words.any(|word| word.len() >= MIN_LENGTH)
}

/// Random bytes of the system in base64url, after a prefix.
///
/// # Errors
/// When the system's random number generator fails.
pub(super) fn random<const BYTES: usize>(prefix: &str) -> Result<String, getrandom::Error> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes)))
}

/// Checks the name of a key.
pub(crate) fn check_name(name: &str) -> Result<(), &'static str> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.contains(PREFIX) {
        return Err("a secret cannot be the name of a key");
    }
    if !name.is_empty() && name.len() <= 64 && name.bytes().all(fits) {
        Ok(())
    } else {
        Err("a key name has 1 to 64 letters, digits, - and _")
    }
}

/// A new key.
pub struct NewKey {
    /// The secret. It is not stored anywhere else.
    pub secret: String,
    /// The lines for the key file.
    pub lines: String,
}

/// Why a key cannot be created.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NewKeyError {
    /// The name is not valid.
    #[error("{0}")]
    Name(&'static str),
    /// The system's random number generator failed.
    #[error("cannot create a secret: {0}")]
    Randomness(String),
}

impl NewKey {
    /// Creates a key with this name.
    ///
    /// # Errors
    /// When the name is not valid, or the system's random number generator fails.
    pub fn make(name: &str, grants: &[Grant]) -> Result<Self, NewKeyError> {
        check_name(name).map_err(NewKeyError::Name)?;
        let secret = random::<SECRET_SIZE>(PREFIX)
            .map_err(|error| NewKeyError::Randomness(error.to_string()))?;
        let allow: Vec<String> =
            grants.iter().map(|grant| toml_string(&grant.to_string())).collect();
        let lines = format!(
            "[keys.{name}]\nhash = \"{}\"\nallow = [{}]\n",
            Hash::of(&secret),
            allow.join(", ")
        );
        Ok(Self { secret, lines })
    }
}

/// Omits the secret.
impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey").field("lines", &self.lines).finish_non_exhaustive()
    }
}

/// A grant has no control characters, so only these two characters need an escape in TOML.
fn toml_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_equals_that_of_sha256sum() {
        let text = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Hash::of("abc").to_string(), text);
        assert_eq!(text.parse(), Ok(Hash::of("abc")));
        assert_eq!(text.to_uppercase().replace("SHA256", "sha256").parse(), Ok(Hash::of("abc")));
        for wrong in ["", "abc", "sha256:", &text[1..], &text[..70], &text.replace("ba", "+a")] {
            assert!(wrong.parse::<Hash>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn secrets_are_unique_and_long() {
        let make = || NewKey::make("a", &["pull:a".parse().unwrap()]).unwrap();
        let (one, other) = (make(), make());
        assert_ne!(one.secret, other.secret);
        assert_eq!(one.secret.len(), PREFIX.len() + 43);
        assert!(one.secret.starts_with(PREFIX));
        assert!(!format!("{one:?}").contains(&one.secret));
    }
}
