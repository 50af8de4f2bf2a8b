//! Requests of a service that the server pushes. docs/protocol.md, 16.9.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use futures_util::Stream;
use msgbus_core::TopicName;
use tokio::sync::mpsc::{Receiver, Sender, error::TrySendError};

use super::{Shared, Socket, answer::Pushed, command::Command};
use crate::{
    error::ClientError,
    service::{Replier, Request},
};

/// The requests of a service, which the server pushes as long as fewer than a number of them are neither answered nor over.
/// Dropping this ends the responder, and declines the requests that were not returned; a [`Request`] that was returned can
/// still be answered.
///
/// It is a `Stream`, and survives lost connections. The requests of a lost connection have ended with it: an answer to one
/// is [`ClientError::ReplyNotWanted`].
#[derive(Debug)]
#[must_use = "dropping it ends the responder"]
pub struct SocketResponder {
    socket: Socket,
    number: u64,
    received: Receiver<Received>,
    connection: Arc<AtomicU64>,
    has_ended: bool,
}

#[derive(Debug)]
pub(super) enum Received {
    /// With the number of its connection.
    Request(u64, Request),
    End(ClientError),
}

impl SocketResponder {
    /// The largest number of requests at a time.
    pub const MAX_AT_A_TIME: usize = 10_000;

    pub(super) fn new(
        socket: Socket,
        number: u64,
        received: Receiver<Received>,
        connection: Arc<AtomicU64>,
    ) -> Self {
        Self { socket, number, received, connection, has_ended: false }
    }

    /// Waits for the next request.
    ///
    /// # Errors
    /// The server refuses the responder, for example because a key was revoked, or the socket was closed.
    ///
    /// # Cancel safety
    /// Dropping the future loses no request.
    pub async fn next(&mut self) -> Result<Request, ClientError> {
        match poll_fn(|cx| self.poll_request(cx)).await {
            Some(request) => request,
            None => Err(self.socket.closed()),
        }
    }

    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Request, ClientError>>> {
        while !self.has_ended {
            match ready!(self.received.poll_recv(cx)) {
                Some(Received::Request(connection, request)) => {
                    let is_over = connection != self.connection.load(Relaxed);
                    if !is_over && !request.time_left().is_zero() {
                        return Poll::Ready(Some(Ok(request)));
                    }
                    request.forget();
                }
                Some(Received::End(error)) => {
                    self.has_ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => self.has_ended = true,
            }
        }
        Poll::Ready(None)
    }
}

/// Ends after the first error.
impl Stream for SocketResponder {
    type Item = Result<Request, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_request(cx)
    }
}

impl Drop for SocketResponder {
    fn drop(&mut self) {
        self.socket.command(Command::Unsubscribe(self.number));
    }
}

/// The side of the connection.
#[derive(Debug)]
pub(super) struct RequestReceiver {
    service: TopicName,
    pub(super) at_a_time: usize,
    requests: Sender<Received>,
    /// Counts connections.
    connection: Arc<AtomicU64>,
    /// Weak, or the connection would live as long as itself.
    socket: Weak<Shared>,
}

impl RequestReceiver {
    /// How much is kept for the caller: the server sends others in the place of requests whose time is over, which the
    /// caller may not have taken. One more is for the end.
    pub(super) fn capacity(at_a_time: usize) -> usize {
        2 * at_a_time + 1
    }

    /// Also returns the counter of connections.
    pub(super) fn new(
        service: TopicName,
        at_a_time: usize,
        requests: Sender<Received>,
        socket: Weak<Shared>,
    ) -> (Self, Arc<AtomicU64>) {
        let connection = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&connection);
        (Self { service, at_a_time, requests, connection, socket }, counter)
    }

    /// Passes a request on. Returns `false` if the caller has gone. If it is stuck, the request ends by time, so that the
    /// server sends no others in its place meanwhile.
    pub(super) fn receive(&self, request: Pushed) -> bool {
        let Some(shared) = self.socket.upgrade() else { return false };
        // One place is kept for the end.
        if self.requests.capacity() <= 1 {
            return !self.requests.is_closed();
        }
        let Pushed { token, time_left, content } = request;
        let replier = Replier::Socket(Socket(shared));
        let content = (content.payload, content.headers);
        let request = Request::new(replier, self.service.clone(), token, content, time_left);
        let received = Received::Request(self.connection.load(Relaxed), request);
        match self.requests.try_send(received) {
            Err(TrySendError::Closed(Received::Request(_, request))) => {
                request.forget();
                false
            }
            _ => true,
        }
    }

    /// What was received on the connection is over.
    pub(super) fn connection_lost(&self) {
        self.connection.fetch_add(1, Relaxed);
    }

    pub(super) fn finish(self, error: ClientError) {
        // If the caller has gone, nobody needs it.
        let _ = self.requests.try_send(Received::End(error));
    }
}
