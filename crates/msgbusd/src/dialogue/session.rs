//! One connection, from the handshake to the close: a websocket, or a stream of bytes.

use std::{
    future::poll_fn,
    ops::ControlFlow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, timeout};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};
use tracing::debug;

use super::{
    Conversation, Dialect, Handled, Output as _,
    shared::{Shared, State},
};
use crate::{
    net::{
        connection::{self, Connection},
        wake_queue::{self, RemoteWaker},
    },
    websocket::{
        end::{End, count},
        intake::Intake,
        link::{Link, close, measure, until_end, write_rest, write_what_fits},
        transport::{Received, Transport},
    },
    worker::Worker,
};

/// The number of turns after which a session lets others go on, and looks for what has arrived. In each it begins some
/// operations, reads once, and writes once.
const TURNS: usize = 4;
/// The number of operations that begin in one turn.
const OPERATIONS_AT_ONCE: usize = 512;

/// How long a client that sends nothing more is sent answers. It may have left altogether.
const HALF_CLOSED: Duration = Duration::from_secs(5);

/// One connection.
pub(crate) struct Session<D: Dialect> {
    link: Link,
    shared: Arc<Shared<D>>,
    worker: Arc<Worker>,
    /// Wakes the task of the session for its activities, which publishers on other threads wake.
    waker: RemoteWaker,
    intake: Intake,
}

impl<D: Dialect> Session<D> {
    pub(crate) fn new(conversation: Conversation<D>, transport: Transport<Connection>) -> Self {
        let client = &conversation.contact.client;
        debug!(peer = %client.peer, protocol = D::NAME, "connection");
        let worker = Arc::clone(&client.worker);
        let stream = connection::direct(transport.connection());
        let shared = Shared::new(conversation, stream);
        Self {
            link: Link::new(transport, worker.config.timeouts.ping),
            waker: shared.waker(),
            shared,
            worker,
            intake: Intake::default(),
        }
    }

    /// Serves the client until the connection ends.
    pub(crate) async fn serve(mut self: Box<Self>) {
        let end = self.run().await;
        // Boxed, so that the memory of a session does not include the close.
        Box::pin(self.end(end)).await;
    }

    async fn run(&mut self) -> End {
        let (worker, first) = (Arc::clone(&self.worker), self.link.heartbeat.next());
        until_end(&worker, first, |cx, alarm| self.poll(cx, alarm)).await
    }

    /// Reads and writes until both have to wait.
    fn poll(&mut self, cx: &mut Context<'_>, mut alarm: Pin<&mut Sleep>) -> ControlFlow<End> {
        let shared = Arc::clone(&self.shared);
        let state = &mut *shared.lock();
        let _ = self.waker.poll(cx, |cx| {
            state.conversation.activities.register(cx.waker());
            Poll::Ready(())
        });
        let flow = self.poll_turns(cx, alarm.as_mut(), state);
        state.conversation.count_held();
        let Self { link, intake, worker, .. } = self;
        if let Some(inbox) = link.transport.inbox() {
            intake.rest(inbox, &worker.inflight)?;
            intake.poll_unfinished(cx, inbox, worker.config.timeouts.body, alarm)?;
        }
        flow
    }

    fn poll_turns(
        &mut self,
        cx: &mut Context<'_>,
        mut alarm: Pin<&mut Sleep>,
        state: &mut State<D>,
    ) -> ControlFlow<End> {
        let State { conversation, .. } = state;
        for _ in 0..TURNS {
            let begun = self.begin_messages(conversation);
            conversation.deliver();
            begun?;
            if self.link.poll_alarm(cx, alarm.as_mut())? {
                conversation.pinged();
            }
            let outgoing = conversation.contact.output.outgoing();
            let is_blocked = self.link.poll_write(cx, outgoing)?.is_pending();
            let has_read = self.poll_fill(cx)?;
            let has_run = if is_blocked {
                conversation.run_blocked();
                false
            } else {
                conversation.run()
            };
            if let Some(end) = conversation.contact.ends.take() {
                return ControlFlow::Break(end);
            }
            let may_begin = self.holds_message() && conversation.may_begin();
            if !(has_read || has_run || may_begin || conversation.may_go_on()) {
                return ControlFlow::Continue(());
            }
        }
        // The next poll checks the drain signal again, too.
        wake_queue::wake_after_io(cx);
        ControlFlow::Continue(())
    }

    /// Reads more, unless operations wait for their turn. Returns whether something has arrived.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> ControlFlow<End, bool> {
        if self.holds_message() {
            // The client is not silent: nothing is read.
            self.link.heartbeat.received(Instant::now());
            return ControlFlow::Continue(false);
        }
        match self.link.transport.poll_fill(cx) {
            Poll::Pending => ControlFlow::Continue(false),
            Poll::Ready(Ok(())) => {
                self.link.heartbeat.received(Instant::now());
                ControlFlow::Continue(true)
            }
            Poll::Ready(Err(error)) => ControlFlow::Break(End::from(error)),
        }
    }

    fn holds_message(&mut self) -> bool {
        self.link.transport.inbox().is_some_and(|inbox| inbox.has_text())
    }

    /// Begins the operations that have arrived, as far as the limits allow.
    fn begin_messages(&mut self, conversation: &mut Conversation<D>) -> ControlFlow<End> {
        let mut allowed = OPERATIONS_AT_ONCE;
        conversation.go_on(&mut allowed);
        while self.begin_message(conversation, &mut allowed)? {
            match self.link.transport.next_received() {
                Ok(None) => break,
                Ok(Some(Received::Binary)) => {
                    return ControlFlow::Break(End::violation(
                        CloseCode::Unsupported,
                        D::TEXT_ONLY,
                    ));
                }
                Ok(Some(Received::Control(Message::Close(_)))) => {
                    return ControlFlow::Break(End::ClosedByClient);
                }
                Ok(Some(Received::Control(Message::Pong(echo)))) => measure(&self.worker, &echo),
                Ok(Some(Received::Text | Received::Control(_))) => {}
                Err(error) => return ControlFlow::Break(End::from(error)),
            }
        }
        ControlFlow::Continue(())
    }

    /// Begins the operations of the message that is being handled. Returns `false` if some have to wait.
    fn begin_message(
        &mut self,
        conversation: &mut Conversation<D>,
        allowed: &mut usize,
    ) -> ControlFlow<End, bool> {
        let Some(inbox) = self.link.transport.inbox() else { return ControlFlow::Continue(true) };
        let Some(message) = inbox.text() else { return ControlFlow::Continue(true) };
        if *allowed == 0 || !conversation.may_begin() {
            return ControlFlow::Continue(false);
        }
        let handled = match D::begin(conversation, message, allowed) {
            Ok(handled) => handled,
            Err(end) => return ControlFlow::Break(end),
        };
        match handled {
            Handled::All => inbox.skip(),
            Handled::UpTo(count) => inbox.advance(count),
            Handled::Partly(count) => inbox.hold(count),
        }
        ControlFlow::Continue(!inbox.has_text())
    }

    /// Ends the session: answers what has begun if appropriate, and closes the connection.
    async fn end(mut self: Box<Self>, end: End) {
        count(&self.worker, &end);
        // A stream may be closed in one direction only.
        let holds_operations;
        let is_half_closed = matches!(end, End::ClosedByClient) && self.link.transport.is_stream();
        {
            let conversation = &mut self.shared.lock().conversation;
            let contact = &mut conversation.contact;
            debug!(peer = %contact.client.peer, protocol = D::NAME, ?end, "connection ends");
            D::ends(contact, &end);
            holds_operations = conversation.holds_operations();
        }
        // What came before is carried out.
        let is_orderly = matches!(
            end,
            End::Violation(..) | End::Malformed(..) | End::Unfinished | End::ClosedByClient
        );
        if is_half_closed || holds_operations && is_orderly || matches!(end, End::Drain) {
            let limit = if matches!(end, End::Drain) { Duration::MAX } else { HALF_CLOSED };
            let _ = timeout(limit, self.finish()).await;
        }
        let Self { link: Link { mut transport, .. }, shared, .. } = *self;
        let (activities, mut outgoing) = {
            let state = &mut *shared.lock();
            (state.conversation.take(), state.end())
        };
        drop((activities, shared));
        match end {
            End::Broken | End::Stuck => return,
            End::Drain => write_rest(&mut transport, &mut outgoing).await,
            // What came before was carried out.
            End::Violation(..)
            | End::Malformed(..)
            | End::NoMemory
            | End::Unfinished
            | End::ClosedByClient => {
                write_what_fits(&mut transport, &mut outgoing).await;
            }
            _ => {}
        }
        outgoing.drop_unstarted();
        close(transport, outgoing, end.close_frame(None)).await;
    }

    /// Ends all subscriptions, and waits for the operations that have begun. Those that had to wait still begin, unless the
    /// server stops.
    async fn finish(&mut self) {
        let Self { shared, link, worker, .. } = self;
        let mut told = None;
        poll_fn(|cx| {
            let conversation = &mut shared.lock().conversation;
            let is_draining = worker.tasks.stop.is_draining();
            if told != Some(is_draining) {
                told = Some(is_draining);
                conversation.drain();
            }
            conversation.activities.register(cx.waker());
            loop {
                conversation.run_blocked();
                if !is_draining && conversation.go_on(&mut { OPERATIONS_AT_ONCE }) {
                    conversation.deliver();
                    continue;
                }
                let outgoing = conversation.contact.output.outgoing();
                let had_output = !outgoing.is_empty();
                let ControlFlow::Continue(written) = link.poll_write(cx, outgoing) else {
                    return Poll::Ready(());
                };
                let activities = &conversation.activities;
                let is_done = activities.outstanding() == 0
                    && activities.opening() == 0
                    && (is_draining || !conversation.holds_operations());
                if is_done && (written.is_ready() || !link.transport.is_stream()) {
                    return Poll::Ready(());
                }
                if written.is_pending() || !had_output {
                    return Poll::Pending;
                }
                // What the output has held back may go on.
            }
        })
        .await;
    }
}
