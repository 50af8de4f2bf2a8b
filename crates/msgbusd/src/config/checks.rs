//! Checks of settings against each other, and of the files that they name.

use super::{
    Config, ConfigError,
    layers::{Layer, origin},
    values,
};
use crate::{Bind, auth::KeyFile};

/// Makes the checks that read no file.
pub(super) fn check(config: &mut Config, layer: &Layer) -> Result<(), ConfigError> {
    check_reach(config, layer)?;
    check_certificate(config, layer)?;
    note_doors(config, layer);
    check_inflight(config, layer)
}

/// Reads the keys and checks the certificate, so that errors in them show before the server runs.
pub(super) fn read_files(config: &mut Config, layer: &Layer) -> Result<(), ConfigError> {
    if let Some(keys) = layer.get("keys").and_then(|values| values.first()) {
        let file = KeyFile::read(&keys.value);
        config.keys =
            Some(file.map_err(|error| ConfigError::new(&keys.origin, error.to_string()))?);
    }
    let Some(files) = &config.certificate else { return Ok(()) };
    files.read().map(drop).map_err(|error| {
        let (name, flag) = if error.is_of(&files.key) {
            ("tls-key", "--tls-key")
        } else {
            ("tls-cert", "--tls-cert")
        };
        ConfigError::new(origin(layer, name, flag), error.to_string())
    })
}

/// Adds notices about settings of doors that there are not.
fn note_doors(config: &mut Config, layer: &Layer) {
    for door in ["middleman", "drs"] {
        let prefix = format!("{door}-");
        let is_of_door = |name: &str| name.starts_with(&prefix);
        if config.doors.iter().any(|open| open.protocol.flag() == format!("--{door}")) {
            continue;
        }
        let mut names: Vec<_> = layer.keys().filter(|name| is_of_door(name)).collect();
        names.sort_unstable();
        for name in names {
            config.notices.push(format!("--{name} has no effect without --{door}"));
        }
    }
}

/// A server that other machines can reach needs keys, or `--open`.
fn check_reach(config: &Config, layer: &Layer) -> Result<(), ConfigError> {
    let doors = config.doors.iter().map(|door| (&door.bind, door.protocol.flag()));
    let mut endpoints = config.bind.iter().map(|bind| (bind, "--bind")).chain(doors);
    match endpoints.find(|(bind, _)| bind.is_reachable()) {
        Some((bind, flag)) if !config.open && !layer.contains_key("keys") => Err(ConfigError::new(
            origin(layer, flag.trim_start_matches('-'), flag),
            format!(
                "other machines can reach {bind}, and any client there could publish and read; \
                 restrict access with --keys, or use --open if that is intended"
            ),
        )),
        _ => Ok(()),
    }
}

/// A payload of the maximum size must fit into the memory in flight.
fn check_inflight(config: &Config, layer: &Layer) -> Result<(), ConfigError> {
    if config.max_inflight_bytes >= config.max_payload {
        return Ok(());
    }
    let given = ["max-inflight-bytes", "max-payload-size"]
        .into_iter()
        .find(|name| layer.contains_key(name));
    Err(ConfigError::new(
        origin(layer, given.unwrap_or_default(), "--max-inflight-bytes"),
        format!(
            "--max-inflight-bytes ({}) must be at least --max-payload-size ({})",
            values::format_size(config.max_inflight_bytes as u64),
            values::format_size(config.max_payload as u64)
        ),
    ))
}

/// A certificate needs both files.
fn check_certificate(config: &mut Config, layer: &Layer) -> Result<(), ConfigError> {
    let Some(files) = &config.certificate else { return Ok(()) };
    if files.key.as_os_str().is_empty() {
        let chain = origin(layer, "tls-cert", "--tls-cert");
        return Err(ConfigError::new(chain, "the private key is missing: set it with --tls-key"));
    }
    if files.chain.as_os_str().is_empty() {
        let key = origin(layer, "tls-key", "--tls-key");
        return Err(ConfigError::new(key, "the certificate is missing: set it with --tls-cert"));
    }
    let mut endpoints = config.bind.iter().chain(config.doors.iter().map(|door| &door.bind));
    if !endpoints.any(|bind| matches!(bind, Bind::Tcp(_))) {
        config.notices.push("--tls-cert has no effect: unix sockets do not use TLS".to_owned());
    }
    Ok(())
}
