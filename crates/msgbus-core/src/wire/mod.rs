//! What is sent over a wire.

mod headers;
pub mod json;
