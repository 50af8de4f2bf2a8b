//! Errors of NATS as errors of an engine. The details go to the log.

use std::{error::Error, iter::successors};

use async_nats::{
    RequestError as ClientError, RequestErrorKind as ClientErrorKind,
    jetstream::{
        self,
        context::{
            ConsumerInfoError, ConsumerInfoErrorKind, CreateStreamError, CreateStreamErrorKind,
            GetStreamError, GetStreamErrorKind, PublishError, PublishErrorKind, RequestError,
            RequestErrorKind,
        },
        stream::{
            ConsumerError, ConsumerErrorKind, LastRawMessageError, LastRawMessageErrorKind,
            PurgeError, PurgeErrorKind,
        },
    },
};
use msgbus_core::engine::EngineError;
use tracing::debug;

type Cause<'a> = &'a (dyn Error + 'static);

/// Why a mark was not made.
pub(crate) fn publish_error(error: &PublishError, max_payload: usize) -> EngineError {
    debug!(%error, source = ?error.source(), "NATS has not accepted a message");
    match error.kind() {
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => EngineError::Unknown,
        PublishErrorKind::MaxAckPending => EngineError::Busy,
        PublishErrorKind::MaxPayloadExceeded => EngineError::TooLarge { limit: max_payload as u64 },
        PublishErrorKind::StreamNotFound => EngineError::Unavailable,
        _ => answered(error).unwrap_or(EngineError::Unknown),
    }
}

/// Why the stream has refused a message.
pub(crate) fn refusal(error: &jetstream::Error) -> EngineError {
    debug!(%error, "NATS has not accepted a message");
    answered(error).unwrap_or(EngineError::Unknown)
}

/// Why a request failed that changes nothing, or may be repeated.
pub(crate) fn request_error(error: Cause<'_>) -> EngineError {
    debug!(%error, source = ?error.source(), "NATS has not answered as expected");
    answered(error).unwrap_or(EngineError::Unavailable)
}

/// Why a request failed that changes something. If there is no answer, it may have been done.
pub(crate) fn change_error(error: Cause<'_>) -> EngineError {
    debug!(%error, source = ?error.source(), "NATS has not answered a change");
    answered(error).unwrap_or(EngineError::Unknown)
}

/// Whether there is no such consumer.
pub(crate) fn is_missing(error: Cause<'_>) -> bool {
    /// The code of `JetStream` for a consumer that does not exist.
    const CONSUMER_NOT_FOUND: u64 = 10_014;
    is_consumer_info(error, &ConsumerInfoErrorKind::NotFound)
        || code(error) == Some(CONSUMER_NOT_FOUND)
}

/// Whether there is no such stream.
pub(crate) fn is_stream_missing(error: &GetStreamError) -> bool {
    /// The code of `JetStream` for a stream that does not exist.
    const STREAM_NOT_FOUND: u64 = 10_059;
    code(error) == Some(STREAM_NOT_FOUND)
}

/// Whether nobody serves what was asked for.
pub(crate) fn has_no_responder(error: Cause<'_>) -> bool {
    is_consumer_info(error, &ConsumerInfoErrorKind::NoResponders)
        || causes(error).any(|cause| {
            let of_client = cause.downcast_ref::<ClientError>();
            let of_jetstream = cause.downcast_ref::<RequestError>();
            let of_stream = cause.downcast_ref::<CreateStreamError>();
            of_client.is_some_and(|error| error.kind() == ClientErrorKind::NoResponders)
                || of_jetstream.is_some_and(|error| error.kind() == RequestErrorKind::NoResponders)
                || of_stream
                    .is_some_and(|e| e.kind() == CreateStreamErrorKind::JetStreamUnavailable)
        })
}

fn is_consumer_info(error: Cause<'_>, kind: &ConsumerInfoErrorKind) -> bool {
    error.downcast_ref::<ConsumerInfoError>().is_some_and(|error| error.kind() == *kind)
}

fn causes<'a>(error: Cause<'a>) -> impl Iterator<Item = Cause<'a>> {
    successors(Some(error), |error: &Cause<'a>| (*error).source())
}

/// The code of an error of `JetStream`.
pub(crate) fn code(error: Cause<'_>) -> Option<u64> {
    causes(error).find_map(|cause| Some(api_error(cause)?.error_code().0))
}

/// What `JetStream` has answered, which most errors have in their kind.
fn api_error(error: Cause<'_>) -> Option<jetstream::Error> {
    if let Some(error) = error.downcast_ref::<jetstream::Error>() {
        return Some(error.clone());
    }
    macro_rules! in_kind {
        ($($error:ty: $kind:ident),*) => {$(
            if let Some(error) = error.downcast_ref::<$error>() {
                return match error.kind() {
                    $kind::JetStream(error) => Some(error),
                    _ => None,
                };
            }
        )*};
    }
    in_kind!(
        ConsumerError: ConsumerErrorKind,
        ConsumerInfoError: ConsumerInfoErrorKind,
        CreateStreamError: CreateStreamErrorKind,
        GetStreamError: GetStreamErrorKind,
        LastRawMessageError: LastRawMessageErrorKind,
        PurgeError: PurgeErrorKind
    );
    None
}

/// What an answer means that refuses a request: it was not done. `None` if there was no answer.
fn answered(error: Cause<'_>) -> Option<EngineError> {
    let Some(code) = code(error) else {
        return has_no_responder(error).then_some(EngineError::Unavailable);
    };
    Some(match code {
        // No resources, no storage, "maximum bytes exceeded", "maximum consumers limit reached" and the like.
        10_023 | 10_026 | 10_028 | 10_047 | 10_077 => EngineError::Full,
        10_054 => EngineError::TooLarge { limit: 0 },
        // No account, not enabled for it.
        10_035 | 10_039 => EngineError::Denied,
        10_074 => {
            let operation = "keep more than one replica: the server is not one of a cluster";
            EngineError::NotSupported { engine: "nats", operation }
        }
        _ => EngineError::Unavailable,
    })
}
