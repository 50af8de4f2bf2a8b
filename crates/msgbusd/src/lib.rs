//! The msgbus daemon as a library: [`Server`] serves a bus over HTTP and websockets with a
//! [`config::Config`]. The binary only wires the two, and tests start the real thing on port 0.

pub mod config;
mod frames;
mod http;
pub mod keys;
mod metrics;
mod server;
mod socket;
mod wake;
mod workers;

pub use server::{Drained, Server};
pub use workers::Workers;
