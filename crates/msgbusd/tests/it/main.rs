//! The contract of docs/protocol.md and docs/operations.md, tested on the real server over real
//! sockets. Each test names the sections that it holds the server to.

#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod binary;
mod bounds;
mod browsers;
#[cfg(target_os = "linux")]
mod clock;
mod connections;
#[cfg(target_os = "linux")]
mod data;
mod drs;
#[cfg(target_os = "linux")]
mod durable;
#[cfg(feature = "nats")]
mod engines;
#[cfg(target_os = "linux")]
mod faults;
mod groups;
mod groups_admin;
mod groups_dead_letters;
mod groups_settle;
mod half_close;
mod headers;
mod hosts;
mod http2;
mod http2_bounds;
mod keys;
#[cfg(target_os = "linux")]
mod log;
mod middleman;
mod patterns;
mod process;
mod publish;
mod pull;
mod rates;
mod reload;
mod requests;
mod resume;
mod revocation;
mod rfc6455;
mod services;
mod services_vanish;
mod stream;
mod support;
mod threads;
mod tls;
mod topics;
mod transcript;
mod unix;
mod v1;
mod websocket;
