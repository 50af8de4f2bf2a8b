//! One subscription on one websocket, from the handshake to the close frame.

use std::{
    ops::ControlFlow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    task::coop,
    time::{Instant, Sleep},
};
use tokio_tungstenite::tungstenite::Message;

use super::push::{Push, State};
use crate::{
    net::connection::{self, Connection},
    websocket::{
        end::{End, count},
        link::{Link, close, measure, until_end, write_rest},
        transport::Transport,
    },
};

/// One subscription on one websocket.
pub(crate) struct Session {
    push: Arc<Push>,
    link: Link,
}

impl Session {
    /// Takes over a connection after the handshake. `already_read` has the bytes that were read since then.
    pub(crate) fn new(push: Arc<Push>, connection: Connection, already_read: Vec<u8>) -> Self {
        let ping = push.lock().follower.worker().config.timeouts.ping;
        if let Some(stream) = connection::direct(&connection) {
            push.share(stream);
        }
        Self { push, link: Link::new(Transport::new(connection, already_read), ping) }
    }

    /// Serves the subscription until it or the websocket ends.
    pub(crate) async fn serve(mut self: Box<Self>) {
        let end = self.follow().await;
        // Boxed, so that the memory of a session does not include the close.
        Box::pin(self.end(end)).await;
    }

    /// Writes the messages of the topic and reads what the client sends, until the session ends.
    async fn follow(&mut self) -> End {
        let worker = Arc::clone(self.push.lock().follower.worker());
        let first = self.link.heartbeat.next();
        until_end(&worker, first, |cx, alarm| self.poll(cx, alarm)).await
    }

    /// Reads and writes until both have to wait.
    fn poll(&mut self, cx: &mut Context<'_>, mut alarm: Pin<&mut Sleep>) -> ControlFlow<End> {
        let push = Arc::clone(&self.push);
        let state = &mut *push.lock();
        loop {
            self.poll_read(cx, state)?;
            if self.link.poll_alarm(cx, alarm.as_mut())? {
                state.pinged();
            }
            if !coop::has_budget_remaining() {
                // Yields to other tasks. The next poll checks the drain signal again, too.
                cx.waker().wake_by_ref();
                return ControlFlow::Continue(());
            }
            if self.link.poll_write(cx, &mut state.outgoing)?.is_pending() {
                // A slow client must not keep the subscription after its key is revoked.
                return match state.follower.poll_revoked(cx) {
                    Poll::Ready(()) => ControlFlow::Break(End::Revoked),
                    Poll::Pending => ControlFlow::Continue(()),
                };
            }
            match state.poll_batch(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(end)) => return ControlFlow::Break(end.into()),
                Poll::Pending => return ControlFlow::Continue(()),
            }
        }
    }

    /// Reads everything that has arrived. It ignores data; the library answers pings.
    fn poll_read(&mut self, cx: &mut Context<'_>, state: &mut State) -> ControlFlow<End> {
        while let Poll::Ready(message) = self.link.transport.poll_read(cx) {
            match message {
                Ok(Message::Close(_)) => return ControlFlow::Break(End::ClosedByClient),
                Ok(Message::Pong(echo)) => measure(state.follower.worker(), &echo),
                Ok(_) => {}
                Err(error) => return ControlFlow::Break(End::from(error)),
            }
            self.link.heartbeat.received(Instant::now());
            if self.link.transport.has_control(&state.outgoing) {
                // Reading continues even if the control frame cannot be written now: a client may have to write before
                // it reads.
                let _ = self.link.poll_write(cx, &mut state.outgoing)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Ends the session: writes the remaining frames if appropriate, and closes the websocket.
    async fn end(self: Box<Self>, end: End) {
        let Self { push, link: Link { mut transport, .. } } = *self;
        let (worker, last_id, mut outgoing) = {
            let mut state = push.lock();
            let follower = &state.follower;
            follower.log_end(&end);
            (Arc::clone(follower.worker()), follower.last_id(), state.end())
        };
        // No more messages are received, so the subscription is dropped before the close.
        drop(push);
        count(&worker, &end);
        match end {
            End::Broken | End::Stuck => return,
            // Messages that were taken out of the topic are still written, within the write timeout and the drain timeout.
            End::Drain | End::Over(_) => write_rest(&mut transport, &mut outgoing).await,
            _ => {}
        }
        outgoing.drop_unstarted();
        close(transport, outgoing, end.close_frame(last_id)).await;
    }
}
