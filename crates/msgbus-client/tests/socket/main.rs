//! One websocket for everything: the client library against a real server.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod cuts;
mod operations;
mod patterns;
mod services;
