//! The engines that topics live in (docs/engines.md). The scheme of a URL says which kind an engine is: see [`KINDS`].

#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "redis")]
mod redis;
mod runtime;

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::future::join_all;
use msgbus_core::{
    MessageBus, TopicName, TopicPattern,
    engine::{Engine, EngineError, EngineRule, EngineUsage, Health, WindowStats},
};
use thiserror::Error;
use tokio::{runtime::Handle, time::timeout};
use tracing::{info, warn};

use self::runtime::EngineRuntime;
use crate::config::{Config, EngineConfig};

/// All kinds of engines that this program was built with.
const KINDS: &[Kind] = &[
    #[cfg(feature = "nats")]
    nats::KIND,
    #[cfg(feature = "redis")]
    redis::KIND,
];

/// A kind of engine.
#[derive(Debug)]
pub(crate) struct Kind {
    schemes: &'static [&'static str],
    /// Returns what an engine of this kind does not have.
    check: fn(&EngineConfig) -> Result<(), String>,
    connect: fn(EngineConfig, Arc<[Handle]>) -> Connecting,
}

/// Begins to connect. It does not wait for the server.
type Connecting = Pin<Box<dyn Future<Output = Result<Arc<dyn Engine>, String>> + Send>>;

impl Kind {
    /// The kind that a URL asks for. The error does not repeat the URL, which may have a password.
    fn of(url: &str) -> Result<&'static Self, String> {
        if url.is_empty() {
            return Err("url is missing".to_owned());
        }
        let Some((scheme, _)) = url.split_once("://") else {
            return Err(format!("the URL of an engine begins with {}", known_schemes()));
        };
        let scheme = scheme.to_ascii_lowercase();
        let kind = KINDS.iter().find(|kind| kind.schemes.contains(&scheme.as_str()));
        kind.ok_or_else(|| match KINDS {
            [] => "this msgbusd was built without engines".to_owned(),
            _ => format!("no engine for {scheme:?}; use {}", known_schemes()),
        })
    }
}

/// Checks what can be checked without connecting.
pub(crate) fn check(engine: &EngineConfig) -> Result<(), String> {
    (Kind::of(engine.url.expose())?.check)(engine)
}

fn known_schemes() -> String {
    let schemes = KINDS.iter().flat_map(|kind| kind.schemes);
    schemes.map(|scheme| format!("{scheme}://")).collect::<Vec<_>>().join(", ")
}

/// Says which settings have no effect on topics in engines, whose patterns nobody can follow.
pub(crate) fn warn_of_patterns(config: &Config, bus: &MessageBus) {
    let warn_of = |flag: &str, pattern: &TopicPattern| {
        // The name of a topic is no pattern.
        let is_name = pattern.to_string().parse::<TopicName>().is_ok();
        if let (false, Err(error)) = (is_name, bus.may_follow(pattern)) {
            warn!(
                "{flag} has no effect, because topics of {pattern} may live in an engine: {error}"
            );
        }
    };
    for pattern in &config.drs.broadcast {
        warn_of(&format!("--drs-broadcast {pattern}"), pattern);
    }
    if let (Some(key), Ok(everything)) = (config.middleman.super_keys.first(), "**".parse()) {
        warn_of(&format!("--middleman-super {key}"), &everything);
    }
}

/// An engine with the name that the configuration gives it.
#[derive(Debug)]
struct Named {
    name: String,
    engine: Arc<dyn Engine>,
}

/// The engines of a server.
#[derive(Debug)]
pub(crate) struct Engines {
    list: Vec<Named>,
    /// Dropped after the engines that it runs.
    _runtime: EngineRuntime,
}

/// Why an engine cannot be used.
#[derive(Debug, Error)]
#[error("engine {name}: {problem}")]
pub struct EngineStartError {
    name: String,
    problem: String,
}

/// One engine at one moment.
#[derive(Debug)]
pub(crate) struct EngineReport<'a> {
    pub(crate) name: &'a str,
    pub(crate) health: Health,
    pub(crate) usage: EngineUsage,
    /// How many of its topics are followed.
    pub(crate) windows: usize,
}

impl Engines {
    /// Begins to connect to the engines that topics live in. They may publish from the serving threads. `None` if there are
    /// none. It does not wait for them.
    pub(crate) fn open(
        config: &Config,
        serving: &[Handle],
    ) -> Result<Option<Self>, EngineStartError> {
        let is_used = |engine: &&EngineConfig| {
            config.engine_topics.iter().any(|topics| topics.engine.as_ref() == Some(&engine.name))
        };
        let used: Vec<&EngineConfig> = config.engines.iter().filter(is_used).collect();
        if used.is_empty() {
            return Ok(None);
        }
        let failed = |name: &str, problem: String| EngineStartError { name: name.into(), problem };
        let runtime = EngineRuntime::start()
            .map_err(|error| failed(&used[0].name, format!("cannot start a thread: {error}")))?;
        let mut list = Vec::new();
        for engine in used {
            let connecting = Kind::of(engine.url.expose())
                .map(|kind| (kind.connect)(engine.clone(), serving.into()));
            let connected = connecting.and_then(|connecting| runtime.run(connecting));
            let connected = connected.map_err(|problem| failed(&engine.name, problem))?;
            list.push(Named { name: engine.name.clone(), engine: connected });
        }
        Ok(Some(Self { list, _runtime: runtime }))
    }

    /// Which topics live in which engine.
    pub(crate) fn rules(&self, config: &Config) -> Vec<EngineRule> {
        let find = |name: &String| self.list.iter().find(|named| named.name == *name);
        let rules = config.engine_topics.iter().map(|topics| EngineRule {
            pattern: topics.pattern.clone(),
            engine: topics.engine.as_ref().and_then(find).map(|named| Arc::clone(&named.engine)),
        });
        rules.collect()
    }

    /// Waits until the last answers have left, for a short time. The bus is closed.
    pub(crate) async fn finish(&self) {
        const LIMIT: Duration = Duration::from_secs(1);
        // One that is away or slow does not get them.
        join_all(self.list.iter().map(|named| timeout(LIMIT, named.engine.finish()))).await;
    }

    /// The name of an engine.
    pub(crate) fn name(&self, engine: &Arc<dyn Engine>) -> &str {
        let named = self.list.iter().find(|named| Arc::ptr_eq(&named.engine, engine));
        named.map_or("", |named| &named.name)
    }

    /// An engine that cannot be used now, and why.
    pub(crate) fn down(&self) -> Option<(&str, EngineError)> {
        self.list.iter().find_map(|named| Some((&*named.name, named.engine.health().problem?)))
    }

    /// All engines, with what the bus has asked of them, and how many of these windows each has.
    pub(crate) fn reports(
        &self,
        bus: &MessageBus,
        windows: &[WindowStats],
    ) -> Vec<EngineReport<'_>> {
        let usage = bus.engine_usage();
        let of_windows: Vec<_> =
            windows.iter().filter_map(|window| bus.engine_of(&window.topic)).collect();
        let reports = self.list.iter().map(|named| {
            let is_own = |engine: &Arc<dyn Engine>| Arc::ptr_eq(engine, &named.engine);
            let usage = usage.iter().find(|(engine, _)| is_own(engine));
            EngineReport {
                name: &named.name,
                health: named.engine.health(),
                usage: usage.map(|(_, usage)| *usage).unwrap_or_default(),
                windows: of_windows.iter().filter(|engine| is_own(engine)).count(),
            }
        });
        reports.collect()
    }
}

/// Logs when an engine is lost, and when it is back.
#[derive(Debug, Default)]
pub(crate) struct EngineWatch {
    /// By the order of the engines: whether each can be used, if it is known.
    known: Vec<Option<Result<(), EngineError>>>,
    /// Whether the engines have had some time to connect.
    is_late: bool,
}

impl EngineWatch {
    pub(crate) fn check(&mut self, engines: &Engines) {
        self.known.resize(engines.list.len(), None);
        for (named, known) in engines.list.iter().zip(&mut self.known) {
            let state = named.engine.health().problem.map_or(Ok(()), Err);
            if state.is_err() && !self.is_late || *known == Some(state) {
                continue;
            }
            *known = Some(state);
            let (name, kind) = (&named.name, named.engine.kind());
            match state {
                Ok(()) => info!("the engine {name} ({kind}) is available"),
                Err(why) => {
                    warn!(
                        "the engine {name} ({kind}) cannot be used, its topics are refused: {why}"
                    );
                }
            }
        }
        self.is_late = true;
    }
}
