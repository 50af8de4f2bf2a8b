//! The key by which NATS knows this server, as `.creds` files and files of seeds have it.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use msgbus_nats::{Auth, AuthError};
use nkeys::{KeyPair, KeyPairType};
use serde::Deserialize;

/// The key of a user. It proves itself by signing what the server has just made up.
pub(super) struct Identity {
    key: KeyPair,
    /// The JWT of the user, and when it expires, in seconds since 1970; 0 is never.
    jwt: Option<(String, i64)>,
}

/// What matters in the JWT of a user.
#[derive(Deserialize)]
struct Claims {
    /// The public key of the user.
    sub: String,
    #[serde(default)]
    exp: i64,
}

impl Identity {
    /// That of a `.creds` file. The error repeats nothing that is secret.
    pub(super) fn of_creds(text: &str) -> Result<Self, String> {
        let jwt = section(text, "JWT").ok_or(
            "it has no JWT, which comes after the line -----BEGIN NATS USER JWT----- of a .creds file; \
             a seed alone is for nkey-file",
        )?;
        let seed = section(text, "SEED").ok_or(
            "it has no seed, which comes after the line -----BEGIN USER NKEY SEED----- of a .creds file",
        )?;
        let key = user_key(seed)?;
        let claims = claims(jwt).ok_or("its JWT is damaged")?;
        let public = key.public_key();
        if claims.sub != public {
            return Err(format!("its JWT is for {}, and its seed is of {public}", claims.sub));
        }
        Ok(Self { key, jwt: Some((jwt.to_owned(), claims.exp)) })
    }

    /// That of a file with a seed. The error repeats nothing that is secret.
    pub(super) fn of_seed(text: &str) -> Result<Self, String> {
        if section(text, "JWT").is_some() {
            return Err("it is a .creds file, which is for creds-file".to_owned());
        }
        let first = text.lines().map(str::trim).find(|line| !line.is_empty());
        let seed = section(text, "SEED").or(first).ok_or("it is empty")?;
        Ok(Self { key: user_key(seed)?, jwt: None })
    }

    /// Whether its JWT has expired, so that NATS refuses it.
    pub(super) fn has_expired(&self) -> bool {
        let expires = self.jwt.as_ref().map_or(0, |(_, expires)| *expires);
        expires != 0 && expires <= chrono::Utc::now().timestamp()
    }

    /// Proves who this server is.
    pub(super) fn sign(self, nonce: &[u8]) -> Result<Auth, AuthError> {
        let mut auth = Auth::new();
        auth.signature = Some(self.key.sign(nonce).map_err(AuthError::new)?);
        auth.nkey = Some(self.key.public_key());
        auth.jwt = self.jwt.map(|(jwt, _)| jwt);
        Ok(auth)
    }
}

/// The line after a heading such as `-----BEGIN NATS USER JWT-----`.
fn section<'a>(text: &'a str, kind: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| line.starts_with("---") && line.contains("BEGIN") && line.contains(kind))?;
    lines.find(|line| !line.is_empty()).filter(|line| !line.starts_with("---"))
}

fn user_key(seed: &str) -> Result<KeyPair, String> {
    if seed.len() == 56 && seed.starts_with('U') {
        return Err("it has a public key; the seed of a user begins with SU".to_owned());
    }
    let key = KeyPair::from_seed(seed)
        .map_err(|_| "its seed is damaged; a seed has 58 letters and digits".to_owned())?;
    match key.key_pair_type() {
        KeyPairType::User => Ok(key),
        // All seeds of a kind begin with the same two letters.
        _ => Err(format!("its seed begins with {}, and that of a user with SU", &seed[..2])),
    }
}

fn claims(jwt: &str) -> Option<Claims> {
    let claims = URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1)?).ok()?;
    serde_json::from_slice(&claims).ok()
}
