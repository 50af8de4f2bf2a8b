//! Receiving: subscriptions, and pulls that wait. Async, as a stream, or blocking.

mod blocking;
mod delivery;
mod engine_cursor;
mod lease;
mod pattern_cursor;
mod pull;
mod request;
mod subscription;
mod topic_cursor;
mod waiting;
mod watch;

pub(crate) use self::blocking::block_on_until;
pub use self::{
    delivery::{Delivery, Group},
    lease::LeasePull,
    pattern_cursor::TopicFilter,
    pull::Pull,
    request::{PendingRequest, Request, ServePull},
    subscription::Subscription,
    watch::TopicWatch,
};
