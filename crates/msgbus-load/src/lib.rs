//! The load generator of `msgbus bench` and of the comparisons with other servers.
//!
//! It often shares the machine with the server that it measures, so it is cheap: one thread,
//! prepared requests, one read buffer for all connections, and messages are checked in that buffer
//! without a copy. A [`Protocol`] encodes requests and decodes responses, without sockets; a
//! [`Connect`] opens connections, and may add encryption.
//!
//! Every message carries a [`Trace`]: its publisher, its sequence number and its time. From these,
//! subscribers compute latency, and count lost, repeated and reordered messages.
//!
//! Requires a current-thread tokio runtime, within a [`LocalSet`](tokio::task::LocalSet).

mod batches;
mod client;
mod connection;
mod deliveries;
mod drs;
mod frames;
mod http;
mod idle;
mod leases;
mod load;
mod middleman;
mod plan;
mod process;
mod progress;
mod protocol;
mod report;
mod requests;
mod response;
mod run_state;
mod services;
mod services_v1;
mod streaming;
mod trace;
mod v1;
mod v1_follower;
mod workers;

pub use batches::Batches;
pub use connection::{Connect, ConnectFn, Connecting, Stream};
pub use deliveries::{fan_out, follow, replay};
pub use drs::Drs;
pub use http::{Http, Replaying};
pub use idle::idle;
pub use leases::PlainPulls;
pub use load::{Load, Target};
pub use middleman::Middleman;
pub use process::Server;
pub use progress::Progress;
pub use protocol::{Body, Follower, Outcome, Protocol, Received, Requester, Step, Worker};
pub use report::{Accounts, Cost, Percentiles, Report};
pub use requests::{publish, pull};
pub use response::ResponseHead;
pub use services::{Services, request};
pub use services_v1::ServicesV1;
pub use streaming::{Streaming, Waiting};
pub use trace::Trace;
pub use v1::MsgbusV1;
pub use v1_follower::FollowV1;
pub use workers::work;
