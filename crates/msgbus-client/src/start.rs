//! Where a reading of a topic starts, as the server says it.

use hyper::header::HeaderMap;

/// The place at which a subscription, or a look, starts. A server of another make says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Start {
    pub(crate) epoch: Option<u64>,
    pub(crate) next_id: Option<u64>,
    pub(crate) missed: u64,
    pub(crate) restarted: bool,
}

impl Start {
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        let number = |name| headers.get(name)?.to_str().ok()?.parse().ok();
        Self {
            epoch: number("msgbus-epoch"),
            next_id: number("msgbus-next-id"),
            missed: number("msgbus-missed").unwrap_or(0),
            restarted: headers.contains_key("msgbus-restarted"),
        }
    }
}
