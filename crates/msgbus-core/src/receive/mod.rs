//! Receiving: subscriptions, and pulls that wait. Async, as a stream, or blocking.

mod blocking;
mod pull;
mod subscription;

pub use self::{pull::Pull, subscription::Subscription};
