//! The JSON objects in responses and frames: messages, gaps and other events.

use msgbus_core::{
    Message,
    json::{self, JsonError},
};
use serde::Deserialize;

/// A message, or a gap before the next one.
#[derive(Debug)]
pub(crate) enum Received {
    Message(Message),
    Gap(Gap),
    Other(Other),
}

/// Missed messages: they had left the topic. docs/protocol.md, 6.6.
#[derive(Debug, Deserialize)]
pub(crate) struct Gap {
    /// The number of messages. It is not a difference of ids, which may have gaps of their own.
    pub(crate) missed: u64,
    /// The id of the first message after the gap.
    pub(crate) next_id: u64,
}

/// Another event, which may be one that this version does not know.
#[derive(Debug, Deserialize)]
pub(crate) struct Other {
    pub(crate) event: String,
}

impl Received {
    /// # Errors
    /// `json` is neither a message nor an event.
    pub(crate) fn read(json: &[u8]) -> Result<Self, JsonError> {
        json::read_message(json).map(Self::Message).or_else(|error| {
            // No message has both fields of a gap, so the order of the attempts does not matter.
            let gap = serde_json::from_slice(json).map(Self::Gap);
            gap.or_else(|_| serde_json::from_slice(json).map(Self::Other)).map_err(|_| error)
        })
    }
}
