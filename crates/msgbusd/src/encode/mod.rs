//! Messages in the form in which they go out.

pub(crate) mod events;
pub(crate) mod frame_cache;
