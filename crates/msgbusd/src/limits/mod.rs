//! What may be used at most: connections, memory in flight, subscriptions, messages a second.

pub(crate) mod connection_limit;
pub(crate) mod inflight;
pub(crate) mod quota;
pub(crate) mod rate;
pub(crate) mod rate_limit;
