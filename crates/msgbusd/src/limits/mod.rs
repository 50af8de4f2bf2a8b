//! Limits: connections, memory in flight, subscriptions, and messages per second.

mod client_prefix;
pub(crate) mod connection_limit;
pub(crate) mod inflight;
pub(crate) mod quota;
pub(crate) mod rate;
pub(crate) mod rate_limit;
