//! The msgbus daemon as a library: [`Server`] serves a bus over HTTP and websockets with a
//! [`config::Config`]. The binary only wires the two, and tests start the real thing on port 0.

mod background;
mod bound;
mod code;
pub mod config;
mod connection;
mod frames;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod inflight;
pub mod keys;
mod listener;
pub mod logging;
mod metrics;
mod network;
mod peer;
mod places;
mod rate;
mod rates;
mod read_file;
mod rewound;
mod serve;
mod server;
mod signal;
mod socket;
mod stream;
mod tls;
mod wake;
mod worker;
mod workers;

pub use listener::Bind;
pub use server::{Drained, Server, StartError};
pub use tls::{Certificate, CertificateError, CertificateFiles};
pub use workers::Workers;
