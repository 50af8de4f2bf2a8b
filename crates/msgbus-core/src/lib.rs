//! The engine of msgbus, for use inside a program: topics are bounded logs of numbered, expiring
//! messages; pulling takes each message once, a subscription follows them all.
//!
//! It knows no socket and no async runtime, and starts no thread.
//!
//! ```
//! use msgbus_core::{Event, MessageBus, Options, Position, TopicName};
//!
//! let bus = MessageBus::new(Options::default());
//! let hello: TopicName = "hello".parse()?;
//!
//! let mut subscription = bus.subscribe(&hello, Position::New)?;
//! bus.put(&hello, "hi there")?;
//!
//! let message = bus.get(&hello).expect("just published");
//! assert_eq!(message.payload(), "hi there");
//! assert!(bus.get(&hello).is_none(), "a message is pulled once");
//!
//! match subscription.recv_blocking()? {
//!     Event::Message(message) => assert_eq!(message.id(), 0),
//!     Event::Missed(count) => println!("{count} messages were gone before I got to them"),
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Everything is bounded, see [`Options`]; everything that leaves a bound is counted, see
//! [`Counters`].

mod access;
mod audience;
mod block;
mod budget;
mod bus;
mod cell;
mod clock;
mod cursors;
mod duration;
mod error;
mod event;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod handle;
pub mod json;
mod log;
mod map;
mod message;
mod name;
mod options;
mod pattern;
mod position;
mod pull;
mod removed;
mod stats;
mod subscription;
mod topic;
mod waiters;
mod wakes;
mod walk;

pub use bus::MessageBus;
pub use cursors::LagPolicy;
pub use duration::{DurationError, format_duration, parse_duration};
pub use error::{NoRoom, PublishError, RecvError, SubscribeError};
pub use event::{Event, Peek, Start};
pub use handle::TopicHandle;
pub use message::{Draft, Message, Published, PublishedBatch, TopicInfo};
pub use name::{NameError, TopicName};
pub use options::{BatchLimit, Options, Overflow, SubscribeOptions, TopicRule, TopicSettings};
pub use pattern::{PatternError, TopicPattern};
pub use position::{Position, PositionError};
pub use pull::Pull;
pub use stats::{
    BusStats, Counters, Departed, Purged, SubscriberStats, SubscriptionStats, TopicStats,
};
pub use subscription::Subscription;
pub use walk::{StatsWalk, TopicPage};

/// The examples of the README are tested too.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
