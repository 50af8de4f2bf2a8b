//! Redis and Valkey.

use std::{fs, path::Path, sync::Arc};

use msgbus_redis::{Acknowledge, ClientTlsConfig, RedisEngine, RedisOptions, TlsCertificates};
use tokio::runtime::Handle;

use super::Kind;
use crate::config::EngineConfig;

pub(super) const KIND: Kind = Kind {
    schemes: &["redis", "rediss", "valkey", "valkeys"],
    check,
    connect: |engine, serving| Box::pin(async move { connect(&engine, &serving) }),
};

fn check(engine: &EngineConfig) -> Result<(), String> {
    let options = options(engine)?;
    if engine.max_bytes.is_some() {
        return Err("max-total-bytes: Redis has a limit of its own, maxmemory".to_owned());
    }
    let foreign = [&engine.token, &engine.creds, &engine.nkey];
    if let Some(foreign) = foreign.into_iter().find(|credential| credential.is_given()) {
        return Err(format!("{}: Redis has users and passwords", engine.origin_of(foreign)));
    }
    let has_tls = ["rediss://", "valkeys://"].iter().any(|scheme| {
        engine.url.expose().get(..scheme.len()).is_some_and(|url| url.eq_ignore_ascii_case(scheme))
    });
    if (engine.tls_ca.is_some() || engine.tls_cert.is_some()) && !has_tls {
        return Err("tls-ca and tls-cert need a URL that begins with rediss://".to_owned());
    }
    if engine.url.expose().contains(',') {
        return Err("url: Redis has one address: write redis://HOST:PORT".to_owned());
    }
    // The text of the error does not have the URL.
    let wanted = "write redis://HOST:PORT";
    options.check().map_err(|error| format!("url: {}; {wanted}", error.category()))
}

fn options(engine: &EngineConfig) -> Result<RedisOptions, String> {
    let max_messages = u32::try_from(engine.max_messages)
        .map_err(|_| format!("max-queue-size: Redis counts to {}", u32::MAX))?;
    let defaults = RedisOptions::new(engine.url.expose());
    // One of them is the server itself.
    let replicas = u32::try_from(engine.replicas.saturating_sub(1)).unwrap_or(u32::MAX);
    let with_password = engine.clone();
    let find_password = move || with_password.current_text(&with_password.password);
    Ok(RedisOptions {
        user: engine.user.clone(),
        password: engine.password.text(),
        find_password: Some(Arc::new(find_password)),
        prefix: engine.prefix.clone().unwrap_or_else(|| defaults.prefix.clone()),
        acknowledge: match replicas {
            replicas if engine.sync => Acknowledge::Synced { replicas },
            0 => Acknowledge::Server,
            replicas => Acknowledge::Replicas(replicas),
        },
        max_age: engine.ttl,
        max_messages_per_topic: Some(max_messages),
        duplicate_window: engine.duplicate_window,
        timeout: engine.timeout,
        ..defaults
    })
}

fn connect(
    engine: &EngineConfig,
    serving: &[Handle],
) -> Result<Arc<dyn msgbus_core::engine::Engine>, String> {
    let mut options = options(engine)?;
    options.publish_from = serving.to_vec();
    let client_tls = match (&engine.tls_cert, &engine.tls_key) {
        (Some(certificate), Some(key)) => {
            Some(ClientTlsConfig { client_cert: read(certificate)?, client_key: read(key)? })
        }
        _ => None,
    };
    let root_cert = engine.tls_ca.as_deref().map(read).transpose()?;
    if client_tls.is_some() || root_cert.is_some() {
        options.tls = Some(TlsCertificates { client_tls, root_cert });
    }
    match RedisEngine::connect(options) {
        Ok(connected) => Ok(Arc::new(connected)),
        Err(error) => Err(format!("cannot connect: {}", error.category())),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}
