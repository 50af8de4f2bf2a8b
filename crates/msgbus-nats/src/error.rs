//! Errors of NATS as errors of an engine. The details go to the log.

use std::{error::Error, iter::successors};

use async_nats::jetstream::{
    self,
    context::{ConsumerInfoError, ConsumerInfoErrorKind, PublishError, PublishErrorKind},
    stream::{ConsumerError, ConsumerErrorKind},
};
use msgbus_core::engine::EngineError;
use tracing::debug;

/// Why a publish failed whose acknowledgement was awaited.
pub(crate) fn publish_error(error: &PublishError, max_payload: usize) -> EngineError {
    debug!(%error, source = ?error.source(), "NATS has not accepted a message");
    match error.kind() {
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => EngineError::Unknown,
        PublishErrorKind::MaxAckPending => EngineError::Busy,
        PublishErrorKind::MaxPayloadExceeded => EngineError::TooLarge { limit: max_payload as u64 },
        PublishErrorKind::StreamNotFound => EngineError::Unavailable,
        _ => api_error(error).unwrap_or(EngineError::Unknown),
    }
}

/// Why a request failed that changes nothing, or may be repeated.
pub(crate) fn request_error(error: &(dyn Error + 'static)) -> EngineError {
    debug!(%error, source = ?error.source(), "NATS has not answered as expected");
    api_error(error).unwrap_or(EngineError::Unavailable)
}

/// Whether there is no such consumer.
pub(crate) fn is_missing(error: &(dyn Error + 'static)) -> bool {
    /// The code of `JetStream` for a consumer that does not exist.
    const CONSUMER_NOT_FOUND: u64 = 10_014;
    if let Some(error) = error.downcast_ref::<ConsumerInfoError>() {
        return error.kind() == ConsumerInfoErrorKind::NotFound;
    }
    if let Some(error) = error.downcast_ref::<ConsumerError>()
        && let ConsumerErrorKind::JetStream(error) = error.kind()
    {
        return error.error_code().0 == CONSUMER_NOT_FOUND;
    }
    code(error) == Some(CONSUMER_NOT_FOUND)
}

/// The code of an error of `JetStream`.
fn code(error: &(dyn Error + 'static)) -> Option<u64> {
    let mut causes = successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source());
    causes.find_map(|error| Some(error.downcast_ref::<jetstream::Error>()?.error_code().0))
}

/// What `JetStream` says.
fn api_error(error: &(dyn Error + 'static)) -> Option<EngineError> {
    Some(match code(error)? {
        // No resources, no storage, "maximum bytes exceeded", "maximum consumers limit reached" and the like.
        10_023 | 10_026 | 10_028 | 10_047 | 10_077 => EngineError::Full,
        10_054 => EngineError::TooLarge { limit: 0 },
        // No account, not enabled for it.
        10_035 | 10_039 => EngineError::Denied,
        _ => return None,
    })
}
