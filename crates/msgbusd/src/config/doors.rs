//! Endpoints of protocols other than HTTP.

use std::fmt;

use crate::Bind;

/// A protocol with endpoints of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The websocket protocol of middleman.
    Middleman,
}

impl Protocol {
    /// All of them.
    pub(crate) const ALL: [Self; 1] = [Self::Middleman];

    /// The word in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Middleman => "middleman",
        }
    }

    /// The flag that gives its endpoints.
    pub(crate) const fn flag(self) -> &'static str {
        match self {
            Self::Middleman => "--middleman",
        }
    }

    /// Whether its connections begin with HTTP.
    pub(crate) const fn begins_with_http(self) -> bool {
        match self {
            Self::Middleman => true,
        }
    }
}

/// An endpoint of a protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoorBind {
    /// What is spoken there.
    pub protocol: Protocol,
    /// Where to listen.
    pub bind: Bind,
}

impl fmt::Display for DoorBind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.bind, self.protocol.name())
    }
}
