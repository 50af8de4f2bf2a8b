//! Topics of msgbus on NATS `JetStream`, shared by any number of nodes.
//!
//! All topics of an engine are in one stream, each with a subject of its own. The ids of messages are the sequences of the
//! stream, so they have gaps. The epoch is the time at which the stream was created.
//!
//! It works with nats-server 2.9 and later. Messages with a TTL of their own need nats-server 2.11.
//!
//! Requests to services go to nodes that serve them, over subjects that begin with the prefix and `-services`. No stream
//! keeps them.
//!
//! # What is promised
//! A publish is acknowledged when `JetStream` has acknowledged it: with [`NatsOptions::replicas`] of 3, when a majority has
//! it. A server writes to its disk at once but syncs every two minutes by default (`sync_interval`).
//!
//! # What is different from other topics
//! - How many messages a follower has missed is not known. A gap is announced without a count when messages may be gone.
//! - All leases of a group last equally long: as [`NatsOptions::lease`] was when its consumer was created.
//! - An ack is accepted also after the end of the lease: the message is done.

mod admin;
mod connection;
mod consumers;
mod deliveries;
mod engine;
mod error;
mod groups;
mod history;
mod key;
mod leases;
mod marks;
mod message;
mod options;
mod publish;
mod refusals;
mod services;
mod subject;
mod tail;
mod turns;

pub use self::{engine::NatsEngine, options::NatsOptions};
pub use async_nats::{Auth, AuthError, ConnectOptions, ServerAddr};
