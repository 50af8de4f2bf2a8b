//! The msgbus client library: publish, pull, and subscribe with reconnecting.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use msgbus_client::{Client, Event, Position};
//!
//! let client = Client::new("http://localhost:8000")?;
//! let hello = "hello".parse()?;
//! client.publish(&hello, "hi there").await?;
//!
//! if let Some(message) = client.pull(&hello).await? {
//!     println!("pulled {:?}", message.payload());
//! }
//!
//! let mut subscription = client.subscribe(&hello, Position::New);
//! loop {
//!     match subscription.next().await? {
//!         Event::Message(message) => println!("{:?}", message.payload()),
//!         Event::Missed(count) => eprintln!("missed {count} messages"),
//!         _ => {} // Reconnecting loses no messages.
//!     }
//! }
//! # }
//! ```
//!
//! Requires a tokio runtime with its time and I/O drivers enabled.

mod backoff;
mod client;
mod connection;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod key;
mod received;
mod start_position;
mod subscription;
mod tls;
mod topics;
mod transport;
mod uri;
mod websocket;

pub use client::{Client, Peeked, Published, PullOptions, Pulled};
pub use connection::{Connection, Connector};
pub use error::ClientError;
pub use key::{Key, KeyError};
pub use msgbus_core::{HeaderError, Headers, Message, NewMessage, Position, TopicName};
pub use subscription::{Event, Subscription};
pub use tls::{Roots, RootsError};
pub use topics::{SubscriberDetails, TopicDetails, TopicSummary};
pub use uri::{ServerUri, UriError};
