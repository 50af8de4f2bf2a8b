//! What is sent over a wire.

pub mod json;
