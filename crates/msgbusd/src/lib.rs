//! The msgbus daemon as a library: [`Server`] serves a bus over HTTP and websockets as a [`config::Config`] says.
//! The binary only connects the two. Tests start the same server on port 0.

pub mod auth;
mod background;
mod code;
pub mod config;
mod deadlines;
mod dialogue;
mod door;
mod encode;
mod engines;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod limits;
pub mod logging;
mod metrics;
mod net;
mod read_file;
mod server;
mod service;
mod signal;
mod state;
mod storage;
mod websocket;
mod worker;

pub use engines::EngineStartError;
pub use net::listener::Bind;
pub use net::tls::{Certificate, CertificateError, CertificateFiles};
pub use net::workers::Workers;
pub use server::{Drained, Server, StartError};
