//! What became of a request, as it is sent.

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use msgbus_core::{LimitReached, Reply, RequestError, engine::Asked};

use super::OUTCOME;
use crate::message::{decode_headers, encode_headers};

/// What a node has answered.
pub(super) fn asked(answer: Message) -> Asked {
    let outcome = answer.headers.as_ref().and_then(|headers| headers.get(OUTCOME));
    let outcome = outcome.map_or("replied", |outcome| outcome.as_str());
    let (word, number) = outcome.split_once(' ').unwrap_or((outcome, "0"));
    let error = match word {
        "replied" => {
            let headers = answer.headers.as_ref().map(decode_headers).unwrap_or_default();
            return Asked::Over(Ok(Reply { payload: answer.payload, headers }));
        }
        "gone" => RequestError::ResponderGone,
        "timed-out" => RequestError::TimedOut,
        "closed" => RequestError::Closed,
        "no-responder" => RequestError::NoResponder,
        "full" => RequestError::TooManyRequests { limit: number.parse().unwrap_or_default() },
        "no-memory" => LimitReached::Bytes { limit: number.parse().unwrap_or_default() }.into(),
        // "failed", or what a later version says.
        _ => RequestError::Failed { reason: String::from_utf8_lossy(&answer.payload).into() },
    };
    Err(error).into()
}

/// An outcome as it is sent.
pub(super) fn answer(outcome: Result<Reply, RequestError>) -> (HeaderMap, Bytes) {
    let mut headers = HeaderMap::new();
    let (word, payload) = match outcome {
        Ok(reply) => {
            encode_headers(&reply.headers, &mut headers);
            ("replied".to_owned(), reply.payload)
        }
        Err(error) => match error {
            RequestError::ResponderGone => ("gone".to_owned(), Bytes::new()),
            RequestError::TimedOut => ("timed-out".to_owned(), Bytes::new()),
            RequestError::Closed => ("closed".to_owned(), Bytes::new()),
            RequestError::NoResponder => ("no-responder".to_owned(), Bytes::new()),
            RequestError::TooManyRequests { limit } => (format!("full {limit}"), Bytes::new()),
            RequestError::LimitReached(LimitReached::Bytes { limit }) => {
                (format!("no-memory {limit}"), Bytes::new())
            }
            RequestError::Failed { reason } => {
                ("failed".to_owned(), Bytes::from(String::from(reason)))
            }
            other => ("failed".to_owned(), Bytes::from(other.to_string())),
        },
    };
    headers.insert(OUTCOME, word.as_str());
    (headers, payload)
}
