//! Encodings of events that are not messages.

/// Whether the engine of a topic delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feed {
    Stalled,
    /// It does again.
    Resumed,
}

impl Feed {
    /// As clients are told.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Stalled => "stalled",
            Self::Resumed => "resumed",
        }
    }
}

/// A gap in the messages, as a line of JSON.
pub(crate) fn gap(missed: u64, next_id: u64) -> String {
    format!("{{\"event\":\"gap\",\"missed\":{missed},\"next_id\":{next_id}}}\n")
}

/// Whether the engine of a topic delivers, as a line of JSON.
pub(crate) fn feed(feed: Feed) -> String {
    format!("{{\"event\":\"{}\"}}\n", feed.word())
}
