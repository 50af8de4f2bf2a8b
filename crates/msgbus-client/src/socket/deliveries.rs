//! Messages of a group that the server pushes, as long as there is credit. docs/protocol.md, 16.5.

use std::{
    pin::Pin,
    sync::Weak,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::Stream;
use msgbus_core::{GroupName, Leased, Position};
use tokio::{sync::mpsc, time::Instant};

use super::{Shared, Socket, command::Command};
use crate::{
    delivery::{Delivery, Settler},
    error::ClientError,
    lease::LeaseOptions,
};

/// Options of [`Socket::work`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkOptions {
    /// The length of a lease; 30 s by default. If this process dies, its messages are redelivered after this time. The
    /// server accepts [`MIN_LEASE`](LeaseOptions::MIN_LEASE) to [`MAX_LEASE`](LeaseOptions::MAX_LEASE).
    pub lease: Duration,
    /// How many messages may be leased at the same time, those included that wait in [`Deliveries`]: 1 to 10,000, and 1 by
    /// default. More hide the time that the next message takes from the server.
    pub credit: u32,
    /// Where the group starts if it does not exist; at the oldest message by default.
    pub since: Option<Position>,
}

impl WorkOptions {
    /// The largest credit.
    pub const MAX_CREDIT: u32 = 10_000;
}

impl Default for WorkOptions {
    fn default() -> Self {
        Self { lease: LeaseOptions::DEFAULT_LEASE, credit: 1, since: None }
    }
}

/// Messages of a group, which are pushed as long as fewer than [`WorkOptions::credit`] are leased to it. Each is a
/// [`Delivery`], which extends its lease until it is settled, over the same websocket. Dropping this gives back the messages
/// that were not returned; a [`Delivery`] that was returned stays leased.
///
/// It is a `Stream`, and survives lost connections: leases do not end with the connection.
#[derive(Debug)]
#[must_use = "dropping it ends the subscription"]
pub struct Deliveries {
    socket: Socket,
    number: u64,
    received: mpsc::UnboundedReceiver<Result<Delivery, ClientError>>,
}

impl Deliveries {
    pub(super) fn new(
        socket: Socket,
        number: u64,
        received: mpsc::UnboundedReceiver<Result<Delivery, ClientError>>,
    ) -> Self {
        Self { socket, number, received }
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// The server refuses the subscription, for example because a key was revoked, or the socket was closed.
    ///
    /// # Cancel safety
    /// Dropping the future loses no message.
    pub async fn next(&mut self) -> Result<Delivery, ClientError> {
        self.received.recv().await.unwrap_or_else(|| Err(self.socket.closed()))
    }
}

/// Ends after the first error.
impl Stream for Deliveries {
    type Item = Result<Delivery, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let delivery = ready!(self.received.poll_recv(cx));
        if matches!(delivery, Some(Err(_))) {
            self.received.close();
        }
        Poll::Ready(delivery)
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.socket.command(Command::Unsubscribe(self.number));
    }
}

/// The side of the connection: it makes deliveries, and counts the credit.
#[derive(Debug)]
pub(super) struct LeaseReceiver {
    pub(super) group: GroupName,
    pub(super) lease: Duration,
    /// How many messages may be leased at the same time.
    credit: u32,
    /// How many are leased.
    leased: u32,
    /// Credit that is free again and that the server does not know of.
    returned: u32,
    /// Credit bounds what it holds.
    deliveries: mpsc::UnboundedSender<Result<Delivery, ClientError>>,
    /// Weak, or the connection would live as long as itself.
    socket: Weak<Shared>,
}

impl LeaseReceiver {
    pub(super) fn new(
        (group, options): (GroupName, WorkOptions),
        deliveries: mpsc::UnboundedSender<Result<Delivery, ClientError>>,
        socket: Weak<Shared>,
    ) -> Self {
        let credit = options.credit.clamp(1, WorkOptions::MAX_CREDIT);
        let lease = options.lease;
        Self { group, lease, credit, leased: 0, returned: 0, deliveries, socket }
    }

    /// The credit with which a subscription starts.
    pub(super) fn all_credit(&mut self) -> u32 {
        self.returned = 0;
        self.credit.saturating_sub(self.leased)
    }

    /// The credit to give to a subscription that has started.
    pub(super) fn returned_credit(&mut self) -> Option<u32> {
        Some(std::mem::take(&mut self.returned)).filter(|n| *n > 0)
    }

    /// Notes that a lease has ended.
    pub(super) fn settled(&mut self) {
        self.leased = self.leased.saturating_sub(1);
        self.returned += 1;
    }

    /// Passes a message on. Returns it if nobody is left.
    pub(super) fn receive(&mut self, leased: Leased, number: u64) -> Option<Leased> {
        let Some(shared) = self.socket.upgrade() else { return Some(leased) };
        self.leased += 1;
        let socket = Socket(shared);
        let credit = Credit { socket: socket.clone(), number };
        let lease = self.lease.clamp(LeaseOptions::MIN_LEASE, LeaseOptions::MAX_LEASE);
        let end = Instant::now() + lease;
        let settler = Settler::Socket { socket, _credit: credit };
        // If the caller has gone, it is dropped, and so given back.
        let _ = self.deliveries.send(Ok(Delivery::begin(settler, leased, lease, end)));
        None
    }

    pub(super) fn finish(self, error: ClientError) {
        let _ = self.deliveries.send(Err(error));
    }
}

/// The credit that a lease takes. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Credit {
    socket: Socket,
    number: u64,
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.socket.command(Command::Settled(self.number));
    }
}
