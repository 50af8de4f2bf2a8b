//! `--engine` and `[engines.NAME]`: engines, and which topics live in them. docs/engines.md.

use std::{path::PathBuf, time::Duration};

use msgbus_core::{TopicPattern, TopicSettings};

use super::{
    Config, ConfigError,
    credentials::{Credential, Secret},
    file::Rules,
    layers::{Layer, Raw},
    settings, values,
};
use crate::engines;

/// The engine of `--engine URL`.
pub(super) const DEFAULT: &str = "default";
/// The pattern of all topics.
const EVERY_TOPIC: &str = "**";
/// Instead of the name of an engine: the topics live in this server.
const NONE: &str = "none";

/// An engine that topics live in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// Its name, for the log and the metrics.
    pub name: String,
    /// The addresses of its servers, separated by commas. They may have credentials.
    pub url: Secret,
    /// The name of the user.
    pub user: Option<String>,
    /// The password of the user.
    pub password: Credential,
    /// A token, instead of a user and a password.
    pub token: Credential,
    /// What a `.creds` file of NATS has, instead.
    pub creds: Credential,
    /// The seed of an nkey of NATS, instead.
    pub nkey: Credential,
    /// The certificates of authorities that vouch for the servers. With it, connections use TLS.
    pub tls_ca: Option<PathBuf>,
    /// The certificate by which the engine knows this server.
    pub tls_cert: Option<PathBuf>,
    /// The private key of `tls_cert`.
    pub tls_key: Option<PathBuf>,
    /// Comes before all names in the engine.
    pub prefix: Option<String>,
    /// How many servers of the engine keep each message.
    pub replicas: usize,
    /// Whether a publish is acknowledged only when the disks have it.
    pub sync: bool,
    /// How long messages live; `None` keeps them for ever.
    pub ttl: Option<Duration>,
    /// The maximum number of messages in a topic.
    pub max_messages: usize,
    /// The maximum size of all topics together, in bytes.
    pub max_bytes: Option<u64>,
    /// How long idempotency keys are remembered.
    pub duplicate_window: Duration,
    /// How long leases last.
    pub lease: Duration,
    /// How long to wait for an answer.
    pub timeout: Duration,
}

/// Topics that live in an engine, or in none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineTopics {
    /// The topics. The most specific pattern that matches counts.
    pub pattern: TopicPattern,
    /// The name of the engine. `None` if the topics live in this server.
    pub engine: Option<String>,
}

/// A table `[engines.NAME]` of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EngineTable {
    pub(super) name: String,
    pub(super) values: Vec<(String, Raw)>,
    /// The line of its name, for errors.
    pub(super) origin: String,
}

/// A rule for topics that names an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EngineRule {
    pub(super) pattern: TopicPattern,
    pub(super) engine: String,
    /// The line, for errors.
    pub(super) origin: String,
}

/// A setting of a rule that topics in an engine do not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NotInEngines {
    pub(super) pattern: TopicPattern,
    /// Whether engines have a setting for all of their topics.
    pub(super) is_of_engines: bool,
    /// The line and the name of the setting, for errors.
    pub(super) origin: String,
}

/// How a key of `[engines.NAME]` is applied.
type Apply = fn(&mut EngineConfig, &str) -> Result<(), String>;

const KEYS: [(&str, Apply); 19] = [
    ("url", |e, v| {
        e.url = v.to_owned().into();
        Ok(())
    }),
    ("user", |e, v| {
        e.user = Some(v.to_owned());
        Ok(())
    }),
    ("password-file", |e, v| values::file(v).map(|path| e.password.file = Some(path))),
    ("token-file", |e, v| values::file(v).map(|path| e.token.file = Some(path))),
    ("creds-file", |e, v| values::file(v).map(|path| e.creds.file = Some(path))),
    ("nkey-file", |e, v| values::file(v).map(|path| e.nkey.file = Some(path))),
    ("tls-ca", |e, v| values::file(v).map(|path| e.tls_ca = Some(path))),
    ("tls-cert", |e, v| values::file(v).map(|path| e.tls_cert = Some(path))),
    ("tls-key", |e, v| values::file(v).map(|path| e.tls_key = Some(path))),
    ("prefix", |e, v| prefix(v).map(|prefix| e.prefix = Some(prefix))),
    ("replicas", |e, v| match v.parse() {
        Ok(replicas @ 1..=5) => {
            e.replicas = replicas;
            Ok(())
        }
        _ => Err(format!("must be between 1 and 5, not {v:?}")),
    }),
    ("sync", |e, v| values::switch(v).map(|sync| e.sync = sync)),
    ("ttl", |e, v| values::ttl(v).map(|ttl| e.ttl = ttl)),
    ("max-queue-size", |e, v| values::count(v).map(|count| e.max_messages = count)),
    ("max-total-bytes", |e, v| values::size(v).map(|size| e.max_bytes = Some(size))),
    ("duplicate-window", |e, v| {
        values::duplicate_window(v).map(|window| e.duplicate_window = window)
    }),
    ("lease", |e, v| values::engine_lease(v).map(|lease| e.lease = lease)),
    ("timeout", |e, v| values::engine_timeout(v).map(|timeout| e.timeout = timeout)),
    ("password", |_, _| Err(NO_SECRETS.to_owned())),
];

const NO_SECRETS: &str = "use password-file, or a variable of the environment";

/// A name that every engine allows.
fn prefix(text: &str) -> Result<String, String> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if (1..=64).contains(&text.len()) && text.bytes().all(is_allowed) {
        return Ok(text.to_owned());
    }
    Err("must be 1 to 64 of A-Z a-z 0-9 - _".to_owned())
}

impl EngineConfig {
    /// The defaults, with the servers at this URL.
    pub fn new(name: &str, url: &str) -> Self {
        let topic = TopicSettings::default();
        Self {
            name: name.to_owned(),
            url: url.to_owned().into(),
            user: None,
            password: Credential::new("password"),
            token: Credential::new("token"),
            creds: Credential::new("creds"),
            nkey: Credential::new("nkey"),
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            prefix: None,
            replicas: 1,
            sync: false,
            ttl: topic.ttl,
            max_messages: topic.max_messages,
            max_bytes: None,
            duplicate_window: Duration::from_secs(120),
            lease: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
        }
    }

    /// With the settings of topics as defaults.
    fn with_defaults(name: &str, url: &str, config: &Config) -> Self {
        let TopicSettings { ttl, max_messages, .. } = config.bus.topic;
        Self { ttl, max_messages, ..Self::new(name, url) }
    }

    fn of_table(table: &EngineTable, config: &Config) -> Result<Self, ConfigError> {
        let mut engine = Self::with_defaults(&table.name, "", config);
        for (key, Raw { value, origin }) in &table.values {
            let Some((_, apply)) = KEYS.iter().find(|(name, _)| name == key) else {
                let near = settings::closest(key, KEYS.iter().map(|(name, _)| *name));
                let hint = near.map_or(String::new(), |near| format!("; did you mean {near:?}?"));
                let problem = format!("no such setting of an engine: {key:?}{hint}");
                return Err(ConfigError::new(origin, problem));
            };
            apply(&mut engine, value)
                .map_err(|problem| ConfigError::new(origin, format!("{key}: {problem}")))?;
        }
        engine.check().map_err(|problem| ConfigError::new(&table.origin, problem))?;
        Ok(engine)
    }

    /// What is the same for all kinds of engines.
    fn check(&self) -> Result<(), String> {
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err("tls-cert and tls-key need each other".to_owned());
        }
        engines::check(self)
    }
}

/// Sets the engines, and which topics live in them.
pub(super) fn apply(config: &mut Config, layer: &Layer, rules: &Rules) -> Result<(), ConfigError> {
    for table in &rules.engines {
        let engine = EngineConfig::of_table(table, config)?;
        config.engines.push(engine);
    }
    if let Some(Raw { value, origin }) = layer.get("engine").and_then(|values| values.first()) {
        let engine =
            default_engine(config, value).map_err(|problem| ConfigError::new(origin, problem))?;
        // A pattern of all names.
        let pattern = EVERY_TOPIC.parse().map_err(|_| ConfigError::new(origin, EVERY_TOPIC))?;
        config.engine_topics.push(EngineTopics { pattern, engine });
    }
    for rule in &rules.engine_topics {
        let engine = known(config, &rule.engine)
            .map_err(|problem| ConfigError::new(&rule.origin, problem))?;
        // It overrides --engine for the same pattern.
        config.engine_topics.retain(|topics| topics.pattern != rule.pattern);
        config.engine_topics.push(EngineTopics { pattern: rule.pattern.clone(), engine });
    }
    if config.engine_topics.iter().all(|topics| topics.engine.is_none()) {
        config.engine_topics.clear();
    }
    check_rules(config, rules)?;
    check_all_topics(config, layer)?;
    let is_used = |name: &String| {
        config.engine_topics.iter().any(|topics| topics.engine.as_ref() == Some(name))
    };
    let unused = config.engines.iter().map(|engine| &engine.name).filter(|name| !is_used(name));
    let note = |name: &String| format!("[engines.{name}] is not used: no topics live in it");
    let notices: Vec<_> = unused.map(note).collect();
    config.notices.extend(notices);
    Ok(())
}

/// Refuses settings of rules whose topics live in an engine.
fn check_rules(config: &Config, rules: &Rules) -> Result<(), ConfigError> {
    for setting in &rules.not_in_engines {
        let covers = |topics: &&EngineTopics| topics.pattern.covers(&setting.pattern);
        // The most specific pattern counts.
        let home = config.engine_topics.iter().filter(covers).min_by_key(|topics| &topics.pattern);
        if let Some(engine) = home.and_then(|topics| topics.engine.as_ref()) {
            let problem = if setting.is_of_engines {
                format!("topics in an engine have one for all of them: see [engines.{engine}]")
            } else {
                "it has no effect on topics in an engine".to_owned()
            };
            return Err(ConfigError::new(&setting.origin, problem));
        }
    }
    Ok(())
}

/// Refuses settings of all topics that have no effect, because all of them live in an engine.
fn check_all_topics(config: &mut Config, layer: &Layer) -> Result<(), ConfigError> {
    let topics = &config.engine_topics;
    let lives_in_engine = |topics: &EngineTopics| topics.engine.is_some();
    let has_all = |topics: &EngineTopics| topics.pattern.to_string() == EVERY_TOPIC;
    if !(topics.iter().any(has_all) && topics.iter().all(lives_in_engine)) {
        return Ok(());
    }
    for (name, problem) in [
        ("overflow", "an engine always drops the oldest messages"),
        ("max-queue-bytes", "an engine does not limit the bytes of a topic"),
    ] {
        let given = layer.get(name).and_then(|values| values.first());
        let is_default = |raw: &&Raw| name == "overflow" && raw.value == "drop-oldest";
        if let Some(Raw { origin, .. }) = given.filter(|raw| !is_default(raw)) {
            return Err(ConfigError::new(
                origin,
                format!("all topics live in an engine: {problem}"),
            ));
        }
    }
    if config.data.is_some() {
        config.notices.push("--data keeps nothing: all topics live in an engine".to_owned());
    }
    Ok(())
}

/// The engine of `--engine`: a URL, or the name of one in the file.
fn default_engine(config: &mut Config, value: &str) -> Result<Option<String>, String> {
    if !value.contains("://") {
        let hint = "; or a URL, such as nats://HOST:PORT";
        return known(config, value).map_err(|problem| problem + hint);
    }
    let engine = EngineConfig::with_defaults(DEFAULT, value, config);
    engine.check()?;
    config.engines.push(engine);
    Ok(Some(DEFAULT.to_owned()))
}

fn known(config: &Config, name: &str) -> Result<Option<String>, String> {
    match config.engines.iter().find(|engine| engine.name == name) {
        _ if name == NONE => Ok(None),
        Some(engine) => Ok(Some(engine.name.clone())),
        None if prefix(name).is_ok() => Err(format!("there is no [engines.{name}]")),
        // It may be a URL with a password.
        None => Err("write the name of an engine, as in [engines.NAME]".to_owned()),
    }
}

/// The name of an engine.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    if [DEFAULT, NONE].contains(&name) {
        return Err(format!("{name:?} is not a name for an engine: choose another one"));
    }
    prefix(name).map(drop)
}
