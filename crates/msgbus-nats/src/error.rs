//! Errors of NATS as errors of an engine. The details go to the log.

use std::{error::Error, iter::successors};

use async_nats::jetstream::{
    self,
    context::{PublishError, PublishErrorKind},
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

/// What `JetStream` says.
fn api_error(error: &(dyn Error + 'static)) -> Option<EngineError> {
    let mut causes = successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source());
    let code =
        causes.find_map(|error| Some(error.downcast_ref::<jetstream::Error>()?.error_code()));
    Some(match code?.0 {
        // No resources, no storage, "maximum bytes exceeded" and the like.
        10_023 | 10_028 | 10_047 | 10_077 => EngineError::Full,
        10_054 => EngineError::TooLarge { limit: 0 },
        // No account, not enabled for it.
        10_035 | 10_039 => EngineError::Denied,
        _ => return None,
    })
}
