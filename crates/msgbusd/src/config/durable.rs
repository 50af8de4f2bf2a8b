//! Which topics are durable, and what they promise: `--data`, `--sync`, and the rules of topics.

use msgbus_core::store::Promise;

use super::{
    Config, ConfigError,
    file::DurableRule,
    layers::{Layer, origin},
};

/// Sets the promises of all topics.
pub(super) fn apply(
    config: &mut Config,
    layer: &Layer,
    rules: &[DurableRule],
) -> Result<(), ConfigError> {
    if config.data.is_none() {
        return check_without_data(layer, rules);
    }
    config.bus.topic.promise = config.sync;
    for rule in rules {
        let promise = match (rule.durable, rule.sync) {
            (Some(false), Some(_)) => {
                return Err(ConfigError::new(&rule.origin, "sync is for topics that are durable"));
            }
            (Some(false), None) => Promise::Memory,
            (_, sync) => sync.unwrap_or(config.sync),
        };
        if let Some(topic) = config.bus.rules.get_mut(rule.rule) {
            topic.promise = Some(promise);
        }
    }
    Ok(())
}

/// Without a directory, nothing that depends on it has an effect, so it is probably a mistake.
fn check_without_data(layer: &Layer, rules: &[DurableRule]) -> Result<(), ConfigError> {
    let needs = "needs --data DIR, the directory to keep messages in";
    for (name, flag) in [
        ("sync", "--sync"),
        ("max-disk-bytes", "--max-disk-bytes"),
        ("memory-per-topic", "--memory-per-topic"),
        ("repair", "--repair"),
    ] {
        if layer.contains_key(name) {
            return Err(ConfigError::new(origin(layer, name, flag), needs));
        }
    }
    match rules.iter().find(|rule| rule.durable != Some(false) || rule.sync.is_some()) {
        Some(rule) => Err(ConfigError::new(&rule.origin, needs)),
        None => Ok(()),
    }
}
