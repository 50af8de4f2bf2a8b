//! What operators see of an engine.

use std::time::Duration;

use super::EngineError;
use crate::model::TopicName;

/// Whether an engine can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    /// Why it cannot be used now: its server cannot be reached, or does not serve topics.
    pub problem: Option<EngineError>,
    /// How often the connection to it was made again after it had broken.
    pub reconnects: u64,
    /// A setting of the server with which topics may lose messages. The log has it, too.
    pub warning: Option<&'static str>,
}

impl Health {
    /// Whether it can be used now.
    pub fn is_up(&self) -> bool {
        self.problem.is_none()
    }
}

/// What a bus has asked of an engine, see [`MessageBus::engine_usage`](crate::MessageBus::engine_usage).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineUsage {
    /// Operations that were answered, whatever the answer. Those that wait for messages are not counted.
    pub answered: u64,
    /// Those of them that failed because the engine was away, busy or silent.
    pub failed: u64,
    /// How long those that were answered have taken together.
    pub time: Duration,
    /// Operations that were not answered yet.
    pub in_flight: usize,
}

/// The window of a topic at one moment, see [`MessageBus::engine_windows`](crate::MessageBus::engine_windows).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowStats {
    /// The topic.
    pub topic: TopicName,
    /// Subscriptions.
    pub followers: usize,
    /// Messages in the window.
    pub retained: u64,
    /// Their size as the limits count it, in bytes.
    pub bytes: u64,
    /// The lowest sequence that the next message may get.
    pub next: u64,
    /// How many messages the engine had not delivered yet when it delivered the last one. 0 if it does not say.
    pub pending: u64,
    /// Why the engine does not deliver.
    pub stalled: Option<EngineError>,
}
