//! Endpoints of protocols other than HTTP.

use std::{fmt, ops::RangeInclusive, time::Duration};

use msgbus_core::{NewRequest, TopicPattern};

use super::values;
use crate::Bind;

/// A protocol with endpoints of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The websocket protocol of middleman.
    Middleman,
    /// The commands of drs, on websockets.
    DrsWebsocket,
    /// The commands of drs, on byte streams.
    DrsStream,
}

impl Protocol {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Middleman, Self::DrsWebsocket, Self::DrsStream];

    /// The word in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Middleman => "middleman",
            Self::DrsWebsocket => "drs-ws",
            Self::DrsStream => "drs-tcp",
        }
    }

    /// The flag that gives its endpoints.
    pub(crate) const fn flag(self) -> &'static str {
        match self {
            Self::Middleman => "--middleman",
            Self::DrsWebsocket | Self::DrsStream => "--drs",
        }
    }

    /// Whether its connections begin with HTTP.
    pub(crate) const fn begins_with_http(self) -> bool {
        match self {
            Self::Middleman | Self::DrsWebsocket => true,
            Self::DrsStream => false,
        }
    }
}

/// How clients of middleman are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MiddlemanOptions {
    /// The names of the keys whose clients are not sent the id of their connection; `*` is all.
    pub without_id: Vec<String>,
    /// The names of the keys whose clients get a copy of every message.
    pub super_keys: Vec<String>,
    /// How long a request waits for its reply.
    pub timeout: Duration,
    /// Whether what a service has enabled ends with its connection.
    pub ends_with_service: bool,
}

impl MiddlemanOptions {
    pub(super) const TIMEOUTS: RangeInclusive<Duration> = NewRequest::TIMEOUTS;
}

impl Default for MiddlemanOptions {
    fn default() -> Self {
        Self {
            without_id: Vec::new(),
            super_keys: Vec::new(),
            timeout: NewRequest::DEFAULT_TIMEOUT,
            ends_with_service: false,
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

/// How commands of drs are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrsOptions {
    /// The topics whose messages are fired at every peer.
    pub broadcast: Vec<TopicPattern>,
    /// Whether commands without a key are answered.
    pub answers_fires: bool,
    /// Whether a command of a peer begins only after its last call was answered.
    pub is_serial: bool,
    /// How long a call waits for its reply.
    pub timeout: Duration,
}

impl Default for DrsOptions {
    fn default() -> Self {
        let timeout = NewRequest::MAX_TIMEOUT;
        Self { broadcast: Vec::new(), answers_fires: false, is_serial: false, timeout }
    }
}

/// `ws://ADDRESS` or `tcp://ADDRESS`.
pub(super) fn drs(text: &str) -> Result<DoorBind, String> {
    let (protocol, address) = match text.split_once("://") {
        Some(("ws", address)) => (Protocol::DrsWebsocket, address),
        Some(("tcp", address)) => (Protocol::DrsStream, address),
        _ => {
            return Err(format!("not an address: {text:?}; use ws://HOST:PORT or tcp://HOST:PORT"));
        }
    };
    Ok(DoorBind { protocol, bind: values::bind(address.strip_suffix('/').unwrap_or(address))? })
}

/// How long a call waits.
pub(super) fn drs_timeout(text: &str) -> Result<Duration, String> {
    let timeout = values::duration(text)?;
    if NewRequest::TIMEOUTS.contains(&timeout) {
        Ok(timeout)
    } else {
        Err("must be between 1ms and 1m".to_owned())
    }
}
