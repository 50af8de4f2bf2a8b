//! The state that the whole server shares, independent of its doors.

use std::sync::Arc;

use msgbus_core::{MessageBus, engine::Engine};
use msgbus_store::LogStore;

use crate::{
    auth::Keyring,
    background::Background,
    config::Config,
    encode::frame_cache::FrameCaches,
    engines::Engines,
    limits::{
        connection_limit::{ConnectionLimiter, PerAddress},
        inflight::Inflight,
        quota::Quota,
        rate_limit::RateLimiter,
    },
    metrics::Metrics,
    storage::Opened,
};

/// The shared state of the server.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) bus: MessageBus,
    /// `None` if all topics are only in memory.
    pub(crate) store: Option<Arc<LogStore>>,
    /// `None` if no topic lives in an engine.
    pub(crate) engines: Option<Engines>,
    pub(crate) config: Config,
    /// `None` if the server has no keys and every client may do everything.
    pub(crate) keyring: Option<Arc<Keyring>>,
    pub(crate) metrics: Metrics,
    pub(crate) frames: FrameCaches,
    pub(crate) inflight: Inflight,
    /// Counts websockets and streams.
    pub(crate) subscriptions: Arc<Quota>,
    pub(crate) connections: Arc<ConnectionLimiter>,
    pub(crate) rates: RateLimiter,
    pub(crate) background: Background,
}

impl App {
    /// The state of a server whose topics are all in memory.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn in_memory(config: Config, keyring: Option<Arc<Keyring>>) -> Self {
        let bus = MessageBus::new(config.bus.clone());
        Self::new(config, keyring, Opened { bus, store: None, engines: None })
    }

    pub(crate) fn new(config: Config, keyring: Option<Arc<Keyring>>, opened: Opened) -> Self {
        const DEFAULT_PER_ADDRESS: usize = 1000;
        let per_address = match config.max_connections_per_address {
            Some(max) => PerAddress::Max(max),
            None => PerAddress::MaxExceptLoopback(DEFAULT_PER_ADDRESS),
        };
        let Opened { bus, store, engines } = opened;
        Self {
            bus,
            store,
            engines,
            keyring,
            metrics: Metrics::new(&config.doors),
            frames: FrameCaches::default(),
            inflight: Inflight::new(config.max_inflight_bytes),
            subscriptions: Quota::new(config.max_subscriptions),
            connections: ConnectionLimiter::new(config.max_connections, per_address),
            rates: RateLimiter::new(config.publish_rate),
            background: Background::default(),
            config,
        }
    }

    /// The name of an engine in the configuration.
    pub(crate) fn engine_name(&self, engine: &Arc<dyn Engine>) -> &str {
        self.engines.as_ref().map_or("", |engines| engines.name(engine))
    }
}
