//! Listeners, byte streams with deadlines, TLS, and the serving threads.

pub(crate) mod connection;
pub(crate) mod listener;
pub(crate) mod peer;
pub(crate) mod raw_stream;
pub(crate) mod timeout_stream;
pub(crate) mod tls;
pub(crate) mod wake_queue;
pub(crate) mod workers;
