//! One `msgbus.v1` websocket, from the handshake to the close frame.

use std::{
    future::poll_fn,
    iter,
    ops::ControlFlow,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use memchr::memchr;
use tokio::{
    task::yield_now,
    time::{Instant, Sleep, sleep_until},
};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};
use tracing::debug;

use super::{Client, FRAME_SIZE, operations::Operations, output::Output};
use crate::{
    net::{
        connection::{self, Connection},
        peer::Peer,
        wake_queue::{self, RemoteWaker},
    },
    websocket::{
        end::{End, count},
        intake::Intake,
        link::{Link, close, measure, write_rest, write_what_fits},
        shared::{Shared, State},
        transport::{Received, Transport},
    },
    worker::Worker,
};

/// One websocket.
pub(crate) struct Session {
    link: Link,
    shared: Arc<Shared<Operations>>,
    worker: Arc<Worker>,
    /// Wakes the task of the session for its activities, which publishers on other threads wake.
    waker: RemoteWaker,
    intake: Intake,
}

/// The number of turns after which a session lets others go on, and looks for what has arrived. In each it begins some
/// operations, reads once, and writes once.
const TURNS: usize = 4;
/// The number of operations that begin in one turn.
const OPERATIONS_AT_ONCE: usize = 512;

/// The maximum size of a frame from a client, in bytes: an operation with the largest payload in base64.
fn max_frame(worker: &Worker) -> usize {
    const FIELDS: usize = 64 << 10;
    worker.config.max_payload.div_ceil(3).saturating_mul(4).saturating_add(FIELDS)
}

impl Session {
    /// Takes over a connection after the handshake. `already_read` has the bytes that were read since then.
    pub(crate) fn new(client: Client, connection: Connection, already_read: Vec<u8>) -> Self {
        let worker = Arc::clone(&client.worker);
        let ping = worker.config.timeouts.ping;
        let max = max_frame(&worker);
        debug!(peer = %client.peer, "msgbus.v1");
        let shared = Shared::new(Operations::new(client), connection::direct(&connection));
        Self {
            link: Link::new(Transport::with_inbox(connection, already_read, max), ping),
            waker: shared.waker(),
            shared,
            worker,
            intake: Intake::default(),
        }
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
            state.operations.activities.register(cx.waker());
            Poll::Ready(())
        });
        let flow = self.poll_turns(cx, alarm.as_mut(), state);
        self.rest(cx, alarm)?;
        flow
    }

    fn poll_turns(
        &mut self,
        cx: &mut Context<'_>,
        mut alarm: Pin<&mut Sleep>,
        state: &mut State<Operations>,
    ) -> ControlFlow<End> {
        for _ in 0..TURNS {
            self.begin_operations(state)?;
            self.link.poll_alarm(cx, alarm.as_mut())?;
            let is_blocked = self.link.poll_write(cx, &mut state.outgoing)?.is_pending();
            let has_read = self.poll_fill(cx)?;
            let has_run = if is_blocked {
                state.operations.activities.run_blocked(&mut Output::new(&mut state.outgoing));
                false
            } else {
                run_activities(state)
            };
            if !(has_read || has_run || self.may_begin_held(state)) {
                return ControlFlow::Continue(());
            }
        }
        // The next poll checks the drain signal again, too.
        wake_after_io(cx);
        ControlFlow::Continue(())
    }

    /// Reads more, unless operations wait for their turn. Returns whether something has arrived.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> ControlFlow<End, bool> {
        if self.holds_operations() {
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

    fn holds_operations(&mut self) -> bool {
        self.link.transport.inbox().is_some_and(|inbox| inbox.has_text())
    }

    /// Whether operations wait that may begin now.
    fn may_begin_held(&mut self, state: &State<Operations>) -> bool {
        self.holds_operations() && state.operations.may_begin(state.outgoing.len())
    }

    /// Begins the operations that have arrived, as far as the limits allow.
    fn begin_operations(&mut self, state: &mut State<Operations>) -> ControlFlow<End> {
        let mut allowed = OPERATIONS_AT_ONCE;
        loop {
            if !self.begin_lines(state, &mut allowed)? {
                break;
            }
            match self.link.transport.next_received() {
                Ok(None) => break,
                Ok(Some(Received::Binary)) => {
                    let why = "msgbus.v1 is text: a JSON object in each line";
                    return ControlFlow::Break(End::violation(CloseCode::Unsupported, why));
                }
                Ok(Some(Received::Control(Message::Close(_)))) => {
                    return ControlFlow::Break(End::ClosedByClient);
                }
                Ok(Some(Received::Control(Message::Pong(echo)))) => {
                    measure(&self.worker, &echo);
                }
                Ok(Some(Received::Text | Received::Control(_))) => {}
                Err(error) => return ControlFlow::Break(End::from(error)),
            }
        }
        if std::mem::take(&mut state.operations.has_published) {
            wake_queue::published();
        }
        ControlFlow::Continue(())
    }

    /// Begins the operations of the message that is being handled. Returns `false` if some have to wait.
    fn begin_lines(
        &mut self,
        state: &mut State<Operations>,
        allowed: &mut usize,
    ) -> ControlFlow<End, bool> {
        let State { outgoing, operations, .. } = state;
        let Some(inbox) = self.link.transport.inbox() else { return ControlFlow::Continue(true) };
        if inbox.has_text() && !(*allowed > 0 && operations.may_begin(outgoing.len())) {
            return ControlFlow::Continue(false);
        }
        let text = match inbox.text() {
            Ok(Some(text)) => text,
            Ok(None) => return ControlFlow::Continue(true),
            Err(error) => return ControlFlow::Break(End::from(error)),
        };
        // The answers to one frame are in one frame.
        let mut output = Output::new(outgoing);
        let mut handled = 0;
        for line in lines(text) {
            if *allowed == 0 || !operations.may_begin(output.waiting()) {
                break;
            }
            handled += line.len();
            *allowed -= 1;
            let line = line.trim_ascii();
            if !line.is_empty() {
                operations.begin(line, &mut output);
            }
        }
        let is_whole = handled == text.len();
        inbox.advance(handled);
        ControlFlow::Continue(is_whole)
    }

    /// Bounds what has arrived.
    fn rest(&mut self, cx: &mut Context<'_>, alarm: Pin<&mut Sleep>) -> ControlFlow<End> {
        let Self { link, intake, worker, .. } = self;
        let Some(inbox) = link.transport.inbox() else { return ControlFlow::Continue(()) };
        intake.rest(inbox, &worker.inflight)?;
        intake.poll_unfinished(cx, inbox, worker.config.timeouts.body, alarm)
    }

    /// Ends the session: answers what has begun if appropriate, and closes the websocket.
    async fn end(mut self: Box<Self>, end: End) {
        debug!(peer = %self.peer(), ?end, "msgbus.v1 ends");
        count(&self.worker, &end);
        if matches!(end, End::Drain) {
            self.finish().await;
        }
        let Self { link: Link { mut transport, .. }, shared, .. } = *self;
        let (activities, mut outgoing) = {
            let state = &mut *shared.lock();
            (state.operations.end(), state.end())
        };
        activities.log_end("websocket");
        drop((activities, shared));
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

    fn peer(&self) -> Peer {
        self.shared.lock().operations.client.peer
    }

    /// Ends all subscriptions, and waits for the operations that have begun.
    async fn finish(&mut self) {
        let Self { shared, link, .. } = self;
        {
            let State { operations, outgoing, .. } = &mut *shared.lock();
            operations.activities.drain(&mut Output::new(outgoing));
        }
        poll_fn(|cx| {
            let State { operations: Operations { activities, .. }, outgoing, .. } =
                &mut *shared.lock();
            activities.register(cx.waker());
            activities.run_blocked(&mut Output::new(outgoing));
            let written = link.poll_write(cx, outgoing);
            if written.is_break() || activities.outstanding() == 0 {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }
}

/// Gives the activities that are ready their turns, until there is enough to write. Returns whether there was one.
fn run_activities(state: &mut State<Operations>) -> bool {
    let mut output = Output::new(&mut state.outgoing);
    let mut has_run = false;
    while output.waiting() < FRAME_SIZE && state.operations.activities.run_next(&mut output) {
        has_run = true;
    }
    has_run
}

/// The lines of a text, each with its line feed, found with vector instructions.
fn lines(mut text: &str) -> impl Iterator<Item = &str> {
    iter::from_fn(move || {
        let end = memchr(b'\n', text.as_bytes()).map_or(text.len(), |feed| feed + 1);
        let (line, rest) = text.split_at(end);
        text = rest;
        (!line.is_empty()).then_some(line)
    })
}

/// Wakes the task after the runtime has looked for what has arrived on its sockets. A task that wakes itself runs again
/// before that, many times.
fn wake_after_io(cx: &mut Context<'_>) {
    let _ = pin!(yield_now()).as_mut().poll(cx);
}
