//! Receiving: subscriptions, and pulls that wait. Async, as a stream, or blocking.

mod blocking;
mod delivery;
mod lease;
mod pull;
mod subscription;
mod waiting;

pub(crate) use self::blocking::block_on_until;
pub use self::{
    delivery::{Delivery, Group},
    lease::LeasePull,
    pull::Pull,
    subscription::Subscription,
};
