//! Receiving: subscriptions, and pulls that wait. Async, as a stream, or blocking.

mod blocking;
mod pull;
mod subscription;

pub(crate) use self::blocking::block_on_until;
pub use self::{pull::Pull, subscription::Subscription};
