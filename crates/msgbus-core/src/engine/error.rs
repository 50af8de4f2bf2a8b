//! Why an engine did not do something.

use thiserror::Error;

/// Why an engine did not do something. Details are for the log of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The engine cannot be reached, or cannot serve now. Nothing was done. It passes.
    #[error("the engine cannot be reached, or cannot serve now")]
    Unavailable,
    /// Too much is waiting for the engine. Nothing was done. It passes.
    #[error("too much is waiting for the engine")]
    Busy,
    /// The engine has not answered. It may have done what it was asked for, or still do it.
    #[error("the engine has not answered: it may have accepted what it was sent")]
    Unknown,
    /// The engine has no room.
    #[error("the engine is full")]
    Full,
    /// The engine does not accept a message or a request of this size.
    #[error("this is too large for the engine, which accepts {limit} bytes")]
    TooLarge {
        /// What it accepts, in bytes.
        limit: u64,
    },
    /// The topic has as many groups as it may have.
    #[error("the topic has {limit} groups, which is the limit")]
    TooManyGroups {
        /// The limit, in groups.
        limit: usize,
    },
    /// The engine refuses the credentials, or what was asked for with them.
    #[error("the engine refuses the credentials of this server, or they do not permit this")]
    Denied,
    /// The engine cannot do this.
    #[error("{engine} cannot {operation}")]
    NotSupported {
        /// See [`Engine::kind`](super::Engine::kind).
        engine: &'static str,
        /// What it cannot do.
        operation: &'static str,
    },
    /// A topic that the store has kept would live in an engine.
    #[error(
        "the store has a topic that is to live in an engine: delete it first, or change the rule"
    )]
    Conflict,
    /// The engine was closed.
    #[error("the engine is closed")]
    Closed,
}

impl EngineError {
    /// Whether the same may succeed later.
    pub fn is_temporary(self) -> bool {
        matches!(self, Self::Unavailable | Self::Busy | Self::Unknown)
    }
}
