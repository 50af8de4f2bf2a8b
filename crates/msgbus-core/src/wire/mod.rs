//! What is sent over a wire.

mod base64;
mod headers;
pub mod json;
mod text;
mod time;
