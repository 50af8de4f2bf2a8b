//! NATS `JetStream`.

mod identity;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use msgbus_nats::{Auth, AuthError, ConnectOptions, NatsEngine, NatsOptions, ServerAddr};
use percent_encoding::percent_decode_str;
use tokio::{runtime::Handle, task::spawn_blocking};
use tracing::warn;

use self::identity::Identity;
use super::Kind;
use crate::config::EngineConfig;

pub(super) const KIND: Kind = Kind {
    schemes: &["nats", "tls"],
    check,
    connect: |engine, serving| Box::pin(connect(engine, serving)),
};

fn check(engine: &EngineConfig) -> Result<(), String> {
    if i64::try_from(engine.max_bytes.unwrap_or(0)).is_err() {
        return Err("max-total-bytes: NATS counts to 8 EiB".to_owned());
    }
    if engine.sync {
        return Err("sync: NATS syncs as its own sync_interval says".to_owned());
    }
    if engine.password.is_given() && engine.user.is_none() {
        return Err("a password needs a user".to_owned());
    }
    engine.at_start(&engine.creds, Identity::of_creds)?;
    engine.at_start(&engine.nkey, Identity::of_seed)?;
    options(engine)?.check().map_err(|problem| format!("url: {problem}"))
}

fn options(engine: &EngineConfig) -> Result<NatsOptions, String> {
    let max_messages = u32::try_from(engine.max_messages)
        .map_err(|_| format!("max-queue-size: NATS counts to {}", u32::MAX))?;
    let defaults = NatsOptions::new(engine.url.expose());
    Ok(NatsOptions {
        stream: engine.prefix.clone().unwrap_or(defaults.stream),
        prefix: engine.prefix.clone().unwrap_or(defaults.prefix),
        replicas: engine.replicas,
        max_age: engine.ttl,
        max_messages_per_topic: Some(max_messages),
        max_bytes: engine.max_bytes,
        lease: engine.lease,
        duplicate_window: engine.duplicate_window,
        timeout: engine.timeout,
        ..NatsOptions::new(engine.url.expose())
    })
}

/// Who this server is. Files of secrets are read again for each connection.
fn credentials(engine: &EngineConfig) -> ConnectOptions {
    if !engine.has_credentials() {
        return credentials_of_url(engine.url.expose());
    }
    let (engine, has_expired) = (engine.clone(), Arc::new(AtomicBool::new(false)));
    ConnectOptions::with_auth_callback(move |nonce| {
        let (engine, has_expired) = (engine.clone(), Arc::clone(&has_expired));
        async move {
            let found = spawn_blocking(move || auth(&engine, &nonce, &has_expired));
            found.await.map_err(AuthError::new)?
        }
    })
}

/// `has_expired` is whether the last JWT had, so that each is told of once.
fn auth(engine: &EngineConfig, nonce: &[u8], has_expired: &AtomicBool) -> Result<Auth, AuthError> {
    for (credential, parse) in [
        (&engine.creds, Identity::of_creds as fn(&str) -> Result<Identity, String>),
        (&engine.nkey, Identity::of_seed),
    ] {
        let Some(identity) = engine.current(credential, parse) else { continue };
        let expired = identity.has_expired();
        if !has_expired.swap(expired, Relaxed) && expired {
            let origin = engine.origin_of(credential);
            warn!("engines.{}: {origin}: its JWT has expired", engine.name);
        }
        return identity.sign(nonce);
    }
    let mut auth = Auth::new();
    auth.username.clone_from(&engine.user);
    auth.password = engine.current_text(&engine.password);
    auth.token = engine.current_text(&engine.token);
    Ok(auth)
}

/// Those in the first address that has any, as clients of NATS understand them. The library ignores them.
fn credentials_of_url(url: &str) -> ConnectOptions {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let mut addresses =
        url.split(',').filter_map(|address| address.trim().parse::<ServerAddr>().ok());
    let found = addresses
        .find_map(|address| Some((decode(address.username()?), address.password().map(decode))));
    match found {
        Some((user, Some(password))) => ConnectOptions::with_user_and_password(user, password),
        Some((token, None)) => ConnectOptions::with_token(token),
        None => ConnectOptions::new(),
    }
}

async fn connect(
    engine: EngineConfig,
    serving: Arc<[Handle]>,
) -> Result<Arc<dyn msgbus_core::engine::Engine>, String> {
    let options = NatsOptions { publish_from: serving.to_vec(), ..options(&engine)? };
    let mut connect = credentials(&engine);
    if let Some(authorities) = &engine.tls_ca {
        connect = connect.add_root_certificates(authorities.clone()).require_tls(true);
    }
    if let (Some(certificate), Some(key)) = (&engine.tls_cert, &engine.tls_key) {
        connect = connect.add_client_certificate(certificate.clone(), key.clone());
        connect = connect.require_tls(true);
    }
    // The text of the error may have the address, which may have a password.
    match NatsEngine::connect(options, connect).await {
        Ok(connected) => Ok(Arc::new(connected)),
        Err(error) => Err(format!("cannot connect: {}", error.kind())),
    }
}
