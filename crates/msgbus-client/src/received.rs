//! What a server sends as JSON when it is asked for messages.

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
}

/// Messages that had left the topic. docs/protocol.md, 6.6.
#[derive(Debug, Deserialize)]
pub(crate) struct Gap {
    /// How many. Ids may have gaps of their own, so their difference is not this number.
    pub(crate) missed: u64,
    /// The id of the first message after the gap.
    pub(crate) next_id: u64,
}

impl Received {
    /// # Errors
    /// When `json` is neither a message nor a gap.
    pub(crate) fn read(json: &[u8]) -> Result<Self, JsonError> {
        json::read_message(json).map(Self::Message).or_else(|error| {
            // A message has no such fields together.
            serde_json::from_slice(json).map(Self::Gap).map_err(|_| error)
        })
    }
}
