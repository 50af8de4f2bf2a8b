//! Messages and events encoded for the wire.

pub(crate) mod events;
pub(crate) mod frame_cache;
