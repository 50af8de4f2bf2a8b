//! Messages and events encoded for the wire.

pub(crate) mod events;
pub(crate) mod format;
pub(crate) mod frame;
pub(crate) mod frame_cache;
