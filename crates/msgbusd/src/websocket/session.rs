//! One websocket whose client sends messages, from the handshake to the close frame: for doors with many activities on
//! one connection.

use std::{
    future::poll_fn,
    ops::ControlFlow,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tokio::time::{Instant, Sleep, sleep_until};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};
use tracing::debug;

use super::{
    end::{End, count},
    intake::Intake,
    link::{Link, close, measure, write_rest, write_what_fits},
    shared::{Activities, Shared, State},
    transport::{Outgoing, Received, Transport},
};
use crate::{
    net::{
        connection::{self, Connection},
        peer::Peer,
        wake_queue::{self, RemoteWaker},
    },
    worker::Worker,
};

/// The number of turns after which a session lets others go on, and looks for what has arrived. In each it begins some
/// operations, reads once, and writes once.
const TURNS: usize = 4;
/// The number of operations that begin in one turn.
const OPERATIONS_AT_ONCE: usize = 512;

/// What the door does with the messages of a client.
pub(crate) trait Dialogue: Activities {
    /// The protocol, for the log.
    const NAME: &'static str;
    /// Why a binary message is refused.
    const TEXT_ONLY: &'static str;
    /// What is dropped at the end, without a lock.
    type Rest: Send;

    /// Begins what a message asks for, as far as the limits allow, and takes that off the number of operations that may
    /// begin. Returns how many of its bytes are handled.
    ///
    /// # Errors
    /// When the connection is to end.
    fn begin(
        &mut self,
        text: &str,
        outgoing: &mut Outgoing,
        allowed: &mut usize,
    ) -> Result<usize, End>;

    /// Whether more may begin while this many bytes wait to be written.
    fn may_begin(&self, unwritten: usize) -> bool;

    /// Whether something was published since the last call.
    fn has_published(&mut self) -> bool;

    /// Sets the task that is woken when activities are ready.
    fn register(&self, task: &Waker);

    /// Gives the activities that are ready their turns, until there is enough to write. Returns whether there was one.
    fn run(&mut self, outgoing: &mut Outgoing) -> bool;

    /// Does what goes on while the client accepts nothing.
    fn run_blocked(&mut self, outgoing: &mut Outgoing);

    /// The client is pinged: the time to say what else it should know while nothing happens.
    fn pinged(&mut self, outgoing: &mut Outgoing) {
        let _ = outgoing;
    }

    /// Why the connection is to end, if it is.
    fn ends(&self) -> Option<End> {
        None
    }

    /// Ends all subscriptions, because the server stops.
    fn drain(&mut self, outgoing: &mut Outgoing);

    /// The number of operations that are not done.
    fn outstanding(&self) -> usize;

    /// Ends everything.
    fn end(&mut self) -> Self::Rest;
}

/// One websocket.
pub(crate) struct Session<D> {
    link: Link,
    shared: Arc<Shared<D>>,
    worker: Arc<Worker>,
    peer: Peer,
    /// Wakes the task of the session for its activities, which publishers on other threads wake.
    waker: RemoteWaker,
    intake: Intake,
}

impl<D: Dialogue> Session<D> {
    pub(crate) fn new(
        dialogue: D,
        transport: Transport<Connection>,
        worker: &Arc<Worker>,
        peer: Peer,
    ) -> Self {
        debug!(%peer, protocol = D::NAME, "websocket");
        let shared = Shared::new(dialogue, connection::direct(transport.connection()));
        Self {
            link: Link::new(transport, worker.config.timeouts.ping),
            waker: shared.waker(),
            shared,
            worker: Arc::clone(worker),
            peer,
            intake: Intake::default(),
        }
    }

    /// Sends what comes before everything else.
    pub(crate) fn say(&self, greeting: Outgoing) {
        self.shared.lock().outgoing = greeting;
    }

    /// Serves the client until the websocket ends.
    pub(crate) async fn serve(mut self: Box<Self>) {
        let end = self.run().await;
        // Boxed, so that the memory of a session does not include the close.
        Box::pin(self.end(end)).await;
    }

    async fn run(&mut self) -> End {
        let mut alarm = pin!(sleep_until(self.link.heartbeat.next()));
        poll_fn(|cx| {
            if self.worker.tasks.stop.is_draining() {
                return Poll::Ready(End::Drain);
            }
            match self.poll(cx, alarm.as_mut()) {
                ControlFlow::Break(end) => Poll::Ready(end),
                ControlFlow::Continue(()) => Poll::Pending,
            }
        })
        .await
    }

    /// Reads and writes until both have to wait.
    fn poll(&mut self, cx: &mut Context<'_>, mut alarm: Pin<&mut Sleep>) -> ControlFlow<End> {
        let shared = Arc::clone(&self.shared);
        let state = &mut *shared.lock();
        let _ = self.waker.poll(cx, |cx| {
            state.dialogue.register(cx.waker());
            Poll::Ready(())
        });
        let flow = self.poll_turns(cx, alarm.as_mut(), state);
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
        let State { dialogue, outgoing, .. } = state;
        for _ in 0..TURNS {
            self.begin_messages(dialogue, outgoing)?;
            if self.link.poll_alarm(cx, alarm.as_mut())? {
                dialogue.pinged(outgoing);
            }
            let is_blocked = self.link.poll_write(cx, outgoing)?.is_pending();
            let has_read = self.poll_fill(cx)?;
            let has_run = if is_blocked {
                dialogue.run_blocked(outgoing);
                false
            } else {
                dialogue.run(outgoing)
            };
            if let Some(end) = dialogue.ends() {
                return ControlFlow::Break(end);
            }
            let may_begin_held = self.holds_message() && dialogue.may_begin(outgoing.len());
            if !(has_read || has_run || may_begin_held) {
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
    fn begin_messages(&mut self, dialogue: &mut D, outgoing: &mut Outgoing) -> ControlFlow<End> {
        let mut allowed = OPERATIONS_AT_ONCE;
        loop {
            if !self.begin_message(dialogue, outgoing, &mut allowed)? {
                break;
            }
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
        if dialogue.has_published() {
            wake_queue::published();
        }
        ControlFlow::Continue(())
    }

    /// Begins the operations of the message that is being handled. Returns `false` if some have to wait.
    fn begin_message(
        &mut self,
        dialogue: &mut D,
        outgoing: &mut Outgoing,
        allowed: &mut usize,
    ) -> ControlFlow<End, bool> {
        let Some(inbox) = self.link.transport.inbox() else { return ControlFlow::Continue(true) };
        if inbox.has_text() && !(*allowed > 0 && dialogue.may_begin(outgoing.len())) {
            return ControlFlow::Continue(false);
        }
        let text = match inbox.text() {
            Ok(Some(text)) => text,
            Ok(None) => return ControlFlow::Continue(true),
            Err(error) => return ControlFlow::Break(End::from(error)),
        };
        let length = text.len();
        match dialogue.begin(text, outgoing, allowed) {
            Ok(handled) => {
                inbox.advance(handled);
                ControlFlow::Continue(handled == length)
            }
            Err(end) => ControlFlow::Break(end),
        }
    }

    /// Ends the session: answers what has begun if appropriate, and closes the websocket.
    async fn end(mut self: Box<Self>, end: End) {
        debug!(peer = %self.peer, protocol = D::NAME, ?end, "websocket ends");
        count(&self.worker, &end);
        if matches!(end, End::Drain) {
            self.finish().await;
        }
        let Self { link: Link { mut transport, .. }, shared, .. } = *self;
        let (rest, mut outgoing) = {
            let state = &mut *shared.lock();
            (state.dialogue.end(), state.end())
        };
        drop((rest, shared));
        match end {
            End::Broken | End::Stuck => return,
            End::Drain => write_rest(&mut transport, &mut outgoing).await,
            // What came before was carried out.
            End::Violation(..) | End::NoMemory | End::Unfinished | End::ClosedByClient => {
                write_what_fits(&mut transport, &mut outgoing).await;
            }
            _ => {}
        }
        outgoing.drop_unstarted();
        close(transport, outgoing, end.close_frame(None)).await;
    }

    /// Ends all subscriptions, and waits for the operations that have begun.
    async fn finish(&mut self) {
        let Self { shared, link, .. } = self;
        {
            let State { dialogue, outgoing, .. } = &mut *shared.lock();
            dialogue.drain(outgoing);
        }
        poll_fn(|cx| {
            let State { dialogue, outgoing, .. } = &mut *shared.lock();
            dialogue.register(cx.waker());
            dialogue.run_blocked(outgoing);
            let written = link.poll_write(cx, outgoing);
            if written.is_break() || dialogue.outstanding() == 0 {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }
}
