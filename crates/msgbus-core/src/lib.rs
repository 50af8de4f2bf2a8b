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

mod bus;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod model;
mod options;
mod receive;
mod stats;
mod topic;
mod wire;

pub use self::{
    bus::{MessageBus, StatsWalk, TopicHandle, TopicPage},
    error::{NoRoom, PublishError, RecvError, SubscribeError},
    model::{
        Draft, DurationError, Event, Message, NameError, PatternError, Peek, Position,
        PositionError, Published, PublishedBatch, Start, TopicInfo, TopicName, TopicPattern,
        format_duration, parse_duration,
    },
    options::{
        BatchLimit, LagPolicy, Options, Overflow, SubscribeOptions, TopicRule, TopicSettings,
    },
    receive::{Pull, Subscription},
    stats::{BusStats, Counters, Departed, Purged, SubscriberStats, SubscriptionStats, TopicStats},
    wire::json,
};

/// The examples of the README are tested too.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
