//! The msgbus client library: publish, pull, subscribe with reconnecting, work through a queue, and ask and serve
//! services.
//!
//! A [`Client`] sends HTTP requests, and has a websocket for each [`Subscription`]. A [`Socket`] does all of it over one
//! websocket, also for patterns of topics, and is faster for many small messages.
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
//! A worker of a group acknowledges each message when it is done. Until then, the message is leased to it:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! use msgbus_client::Client;
//!
//! let client = Client::new("http://localhost:8000")?;
//! let workers = client.group(&"jobs".parse()?, &"workers".parse()?);
//! while let Some(delivery) = workers.take(Duration::from_secs(60)).await? {
//!     match work(delivery.message().payload()).await {
//!         Ok(()) => delivery.ack().await?,
//!         Err(error) => delivery.nack(Duration::from_secs(5), Some(error.to_string())).await?,
//!     }
//! }
//! # Ok(())
//! # }
//! # async fn work(_: &[u8]) -> std::io::Result<()> { Ok(()) }
//! ```
//!
//! A request to a service, and its responder:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use msgbus_client::Client;
//!
//! let client = Client::new("http://localhost:8000")?;
//! let upper = "upper".parse()?;
//! let reply = client.request(&upper, "hello").await?;
//! println!("{:?}", reply.payload);
//!
//! let mut responder = client.serve(&upper);
//! loop {
//!     let request = responder.next().await?;
//!     let reply = request.payload().to_ascii_uppercase();
//!     request.reply(reply).await?;
//! }
//! # }
//! ```
//!
//! Following many topics, and publishing, over one websocket:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use futures_util::{StreamExt, stream::select};
//! use msgbus_client::{Client, Event, Position, TopicPattern};
//!
//! let socket = Client::new("http://localhost:8000")?.connect().await?;
//! let orders = socket.subscribe("orders/**".parse::<TopicPattern>()?, Position::New).await?;
//! let invoices = socket.subscribe("invoices".parse::<TopicPattern>()?, Position::New).await?;
//! socket.publish(&"orders/eu".parse()?, "one of each").await?;
//!
//! let mut events = select(orders, invoices);
//! while let Some(event) = events.next().await {
//!     match event? {
//!         Event::Message(message) => println!("{}: {:?}", message.topic().name, message.payload()),
//!         Event::Missed(count) => eprintln!("missed {count} messages"),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Requires a tokio runtime with its time and I/O drivers enabled.

mod backoff;
mod client;
mod connection;
mod delivery;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod groups;
mod key;
mod lease;
mod message_headers;
mod reachability;
mod received;
mod service;
mod settle;
mod socket;
mod start_position;
mod subscription;
mod tls;
mod topics;
mod transport;
mod uri;
mod websocket;

pub use backoff::Backoff;
pub use client::{Client, Peeked, Published, PullOptions, Pulled};
pub use connection::{Connection, Connector};
pub use delivery::{Delivery, Group};
pub use error::ClientError;
pub use groups::{GroupChange, GroupDetails, GroupSummary, LeaseDetails};
pub use key::{Key, KeyError};
pub use lease::LeaseOptions;
pub use message_headers::write as write_http_headers;
pub use msgbus_core::{
    GroupName, GroupNameError, HeaderError, Headers, LeaseToken, Leased, Message, NewMessage,
    NewRequest, PatternError, Position, Reply, Settlement, TokenError, TopicName, TopicPattern,
};
pub use reachability::{Outage, Reachability};
pub use service::{Failure, Request, RequestError, Responder, ServiceSummary};
pub use settle::Unsettled;
pub use socket::{
    Deliveries, Publishing, Socket, SocketResponder, SocketStatus, SocketSubscription,
    TopicPositions, WorkOptions,
};
pub use subscription::{Event, Subscription};
pub use tls::{Roots, RootsError};
pub use topics::{SubscriberDetails, TopicDetails, TopicSummary};
pub use uri::{ServerUri, UriError};
