//! The engine of msgbus, for use inside a program. A topic is a bounded log of numbered messages that expire.
//! A pull takes each message once; a subscription receives all of them.
//!
//! The engine uses no sockets, needs no async runtime and starts no threads.
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
//! let message = bus.get(&hello)?.expect("just published");
//! assert_eq!(message.payload(), "hi there");
//! assert!(bus.get(&hello)?.is_none(), "a message is pulled once");
//!
//! match subscription.recv_blocking()? {
//!     Event::Message { message, .. } => assert_eq!(message.id(), 0),
//!     Event::Missed { count, .. } => println!("missed {count} messages"),
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Everything has a limit, see [`Options`]. Every message that leaves a topic is counted, see [`Counters`].

mod bus;
mod derived;
pub mod engine;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod model;
mod options;
mod receive;
mod requests;
mod stats;
pub mod store;
mod topic;
mod wire;

pub use self::{
    bus::{
        DeadLetterError, Due, MessageBus, Op, RefusedDeadLetter, StatsWalk, TopicHandle, TopicPage,
    },
    error::{
        DeleteError, GroupError, LeaseError, LimitReached, PublishError, RecvError, SettleError,
        SubscribeError,
    },
    model::{
        DurationError, Event, GroupName, GroupNameError, GroupSettings, HeaderError, Headers,
        LeaseToken, Leased, Message, NameError, NewMessage, NewRequest, PatternError, Peek,
        Position, PositionError, Published, PublishedBatch, Reply, ReplyNotWanted, ReplyToken,
        ReplyTokenError, RequestError, SettledBatch, Settlement, StartPosition, TokenError,
        TopicInfo, TopicName, TopicPattern, format_duration, parse_duration,
    },
    options::{
        BatchLimit, GroupConfig, LagPolicy, LeaseOptions, Options, Overflow, SubscribeOptions,
        TopicRule, TopicSettings,
    },
    receive::{
        Delivery, Group, LeasePull, PendingRequest, Pull, Request, ServePull, Subscription,
        TopicFilter, TopicWatch,
    },
    stats::{
        BusStats, Counters, GroupCounters, GroupStats, LeaseStats, PatternStats, Purged,
        RemovalCount, ReplyTimes, ServiceCounters, ServiceStats, SubscriberStats,
        SubscriptionStats, TopicStats, TopicSums,
    },
    wire::json,
};

/// Tests the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
