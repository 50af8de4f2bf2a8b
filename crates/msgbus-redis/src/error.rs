//! Errors of Redis as errors of an engine. The details go to the log.

use msgbus_core::{GroupSettings, engine::EngineError};
use redis::{ErrorKind, RedisError};
use tracing::{debug, warn};

/// What has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// What changes nothing, or may be repeated.
    Harmless,
    /// What may have been done although there is no answer.
    Final,
}

impl Request {
    /// Why it failed if it was sent, and nobody knows what became of it.
    pub(crate) fn unanswered(self) -> EngineError {
        match self {
            Self::Harmless => EngineError::Unavailable,
            Self::Final => EngineError::Unknown,
        }
    }
}

/// Why a request failed.
pub(crate) fn request_error(error: &RedisError, request: Request) -> EngineError {
    debug!(%error, "Redis has not answered as expected");
    match error.code() {
        // A script is not taken back when it fails.
        Some(code) if request == Request::Final && is_of_running_script(error) => {
            warn!(code, %error, "a script has failed: it may have been done in part");
            EngineError::Unknown
        }
        Some(code) => code_error(code, error),
        None if error.kind() == ErrorKind::AuthenticationFailed => EngineError::Denied,
        None => request.unanswered(),
    }
}

/// The server has answered: it has not done it.
fn code_error(code: &str, error: &RedisError) -> EngineError {
    match code {
        "OOM" => EngineError::Full,
        "TOOMANYGROUPS" => EngineError::TooManyGroups { limit: GroupSettings::MAX_GROUPS },
        "NOAUTH" | "WRONGPASS" | "NOPERM" => EngineError::Denied,
        // It passes, or another server has to be asked.
        "LOADING" | "MASTERDOWN" | "READONLY" | "BUSY" | "MISCONF" | "NOREPLICAS" | "TRYAGAIN"
        | "CLUSTERDOWN" | "MOVED" | "ASK" | "CROSSSLOT" | "NOSCRIPT" => EngineError::Unavailable,
        // Within a script, a permission that is missing has no code of its own.
        _ if error.detail().is_some_and(is_about_permissions) => EngineError::Denied,
        _ => {
            warn!(%error, "Redis refuses a request");
            EngineError::Unavailable
        }
    }
}

/// Whether a script had begun when it failed.
fn is_of_running_script(error: &RedisError) -> bool {
    error.detail().is_some_and(|why| why.contains("script: ") || why.contains("@user_script"))
}

/// What Redis and Valkey say.
fn is_about_permissions(details: &str) -> bool {
    details.starts_with("The user executing the script can't")
        || details.starts_with("ACL failure in script")
}

/// Whether another server may be behind the address by now, or none.
pub(crate) fn should_reconnect(error: &RedisError) -> bool {
    matches!(error.code(), Some("READONLY" | "MASTERDOWN" | "NOAUTH"))
        || error.is_unrecoverable_error()
        || error.is_timeout()
}
