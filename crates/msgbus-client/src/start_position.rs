//! The start position that the server reports in response headers.

use hyper::header::HeaderMap;

/// The position at which a subscription or a peek starts. Fields are empty if the server does not
/// report them, as prologic/msgbus does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct StartPosition {
    pub(crate) epoch: Option<u64>,
    pub(crate) next_id: Option<u64>,
    /// `Some(0)` if nobody knows how many. `None` if nothing is missed.
    pub(crate) missed: Option<u64>,
    pub(crate) restarted: bool,
}

impl StartPosition {
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        let number = |name| headers.get(name)?.to_str().ok()?.parse().ok();
        Self {
            epoch: number("msgbus-epoch"),
            next_id: number("msgbus-next-id"),
            missed: number("msgbus-missed"),
            restarted: headers.contains_key("msgbus-restarted"),
        }
    }
}
