//! Topics of msgbus on Redis Streams, shared by any number of nodes.
//!
//! Each topic is a stream of its own. Its messages are numbered without gaps, so what a follower has missed is counted. The
//! epoch is the time at which the topic was made. All that belongs together is done in scripts, which Redis runs in one
//! step.
//!
//! It works with Redis 7 and Valkey. Of a server and its replicas, only that which leads is used. The keys of a topic have a
//! hash tag of their own.
//!
//! # What is promised
//! A publish is acknowledged when the server has acknowledged it. Whether it survives a power cut depends on the server's
//! `appendfsync`, and whether it survives a failover on its replication, which is asynchronous. [`Acknowledge`] asks for more.
//!
//! # What is different from other topics
//! - A topic to which nobody has published for [`RedisOptions::forget_after`] is forgotten. Then its numbers begin again in
//!   another epoch.
//! - After a restart of the server, or when another one leads, numbers go on at a higher one, which comes from the time: those
//!   of messages that the server may have lost are not given again. If it may have lost some, followers are told so without a
//!   count.

mod admin;
mod asker;
mod channels;
mod connection;
mod engine;
mod error;
mod groups;
mod history;
mod keys;
mod lanes;
mod link;
mod message;
mod news;
mod options;
mod parts;
mod publish;
mod script;
mod server;
mod tail;
mod together;

pub use self::{
    engine::{ConnectError, RedisEngine},
    options::{Acknowledge, FindPassword, RedisOptions},
};
pub use redis::{ClientTlsConfig, TlsCertificates};
