//! What the handles of a socket ask of its driver.

use super::{outgoing::Operation, subscriptions::Subscribed};

#[derive(Debug)]
pub(super) enum Command {
    Operate(Operation),
    /// Adds a subscription with its number.
    Subscribe(u64, Box<Subscribed>),
    /// The queue of a subscription has room again.
    Resume(u64),
    /// The caller has dropped a subscription.
    Unsubscribe(u64),
    /// A lease of a subscription has ended, or is kept no longer.
    Settled(u64),
    /// Ends the connection once everything is answered.
    Close,
}
