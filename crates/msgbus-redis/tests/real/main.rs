//! The engine on real servers of Redis and Valkey.

#![expect(clippy::unwrap_used, reason = "a test may")]
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

mod contract;
mod disturbed;
mod foreign;
mod lanes;
mod limits;
mod scripts;
mod server;
mod silent;
mod unanswered;
mod windows;
