//! A load generator: what `msgbus bench` runs, and what msgbus is compared with others by.
//!
//! It shares the machine with the server it measures, so it is made cheap: one thread, requests
//! written ready-made, one buffer to read into, and every message checked where it lies in that
//! buffer. What a server speaks is a [`Protocol`], which knows bytes and no sockets; how it is reached,
//! a [`Dial`], which may add encryption.
//!
//! Every message carries a [`Stamp`]: who published it, its number there, and when. So each
//! subscriber can tell what was lost, repeated or reordered, and how long it took.
//!
//! All of it needs a tokio runtime of the current thread, within a
//! [`LocalSet`](tokio::task::LocalSet).

mod client;
mod connection;
mod deliveries;
mod http;
mod idle;
mod load;
mod plan;
mod process;
mod progress;
mod protocol;
mod report;
mod requests;
mod response;
mod sent;
mod stamp;
mod streaming;

pub use connection::{Dial, DialFn, Dialing, Stream};
pub use deliveries::{fan_out, follow};
pub use http::Http;
pub use idle::idle;
pub use load::{Load, Target};
pub use process::Server;
pub use progress::Progress;
pub use protocol::{Body, Follower, Heard, Outcome, Protocol, Requester};
pub use report::{Accounts, Cost, Percentiles, Report};
pub use requests::{publish, pull};
pub use response::ResponseHead;
pub use stamp::Stamp;
pub use streaming::{Streaming, Waiting};
