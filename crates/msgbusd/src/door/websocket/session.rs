//! One subscription on one websocket, from the handshake to the close frame.

use std::{
    future::poll_fn,
    io::ErrorKind,
    ops::ControlFlow,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use chrono::Utc;
use msgbus_core::RecvError;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    task::coop,
    time::{Instant, Sleep, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite::{
    Error, Message, Utf8Bytes,
    error::ProtocolError,
    protocol::{CloseFrame, frame::coding::CloseCode},
};
use tracing::debug;

use super::{
    heartbeat::Heartbeat,
    push::{Push, State},
    transport::{Outgoing, Transport},
};
use crate::{
    metrics::Deadline,
    net::connection::{self, Connection},
    service::code::Code,
    service::follower,
    worker::Worker,
};

/// How long the server waits for the client's close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The highest latency that the metrics record: a client can echo any time.
const MAX_LATENCY: Duration = Duration::from_secs(60);

const NOT_ALLOWED: u16 = 4403;
const TOPIC_DELETED: u16 = 4404;
const TOO_FAR_BEHIND: u16 = 4408;

/// One subscription on one websocket.
pub(crate) struct Session {
    push: Arc<Push>,
    transport: Transport<Connection>,
    heartbeat: Heartbeat,
}

/// Why a session ends.
#[derive(Debug)]
pub(super) enum End {
    /// The client sent a close frame.
    ClosedByClient,
    /// The connection is broken.
    Broken,
    /// The client accepted no bytes within the write timeout.
    Stuck,
    /// The client violated the protocol.
    Violation(CloseCode, &'static str),
    /// The client sent nothing for too long.
    Silent,
    /// The server is shutting down.
    Drain,
    /// The keys no longer allow it.
    Revoked,
    /// The bus ended the subscription.
    Over(RecvError),
}

impl Session {
    /// Takes over a connection after the handshake. `already_read` has the bytes that were read since then.
    pub(crate) fn new(push: Arc<Push>, connection: Connection, already_read: Vec<u8>) -> Self {
        let ping = push.lock().follower.worker().config.timeouts.ping;
        if let Some(stream) = connection::direct(&connection) {
            push.share(stream);
        }
        Self {
            push,
            transport: Transport::new(connection, already_read),
            heartbeat: Heartbeat::new(ping, Instant::now()),
        }
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
        let mut alarm = pin!(sleep_until(self.heartbeat.next()));
        poll_fn(|cx| {
            if worker.tasks.stop.is_draining() {
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
        let push = Arc::clone(&self.push);
        let state = &mut *push.lock();
        loop {
            self.poll_read(cx, state)?;
            self.poll_alarm(cx, alarm.as_mut())?;
            if !coop::has_budget_remaining() {
                // Yields to other tasks. The next poll checks the drain signal again, too.
                cx.waker().wake_by_ref();
                return ControlFlow::Continue(());
            }
            if self.poll_write(cx, &mut state.outgoing)?.is_pending() {
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
        while let Poll::Ready(message) = self.transport.poll_read(cx) {
            match message {
                Ok(Message::Close(_)) => return ControlFlow::Break(End::ClosedByClient),
                Ok(Message::Pong(echo)) => measure(state.follower.worker(), &echo),
                Ok(_) => {}
                Err(error) => return ControlFlow::Break(End::from(error)),
            }
            self.heartbeat.received(Instant::now());
            if self.transport.has_control(&state.outgoing) {
                // Reading continues even if the control frame cannot be written now: a client may have to write before
                // it reads.
                let _ = self.poll_write(cx, &mut state.outgoing)?;
            }
        }
        ControlFlow::Continue(())
    }

    fn poll_alarm(&mut self, cx: &mut Context<'_>, mut alarm: Pin<&mut Sleep>) -> ControlFlow<End> {
        while alarm.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if self.heartbeat.is_silent(now) {
                return ControlFlow::Break(End::Silent);
            }
            if self.heartbeat.ping_is_due(now) {
                let time = Utc::now().timestamp_nanos_opt().unwrap_or_default();
                broken(self.transport.ping(cx, time.to_string()))?;
            }
            alarm.as_mut().reset(self.heartbeat.next());
        }
        ControlFlow::Continue(())
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        outgoing: &mut Outgoing,
    ) -> ControlFlow<End, Poll<()>> {
        let written = self.transport.poll_write(cx, outgoing);
        if !self.transport.has_control(outgoing) {
            self.heartbeat.pings_written();
        }
        match written {
            Poll::Ready(result) => {
                outgoing.shrink();
                broken(result.map_err(Error::Io))?;
                ControlFlow::Continue(Poll::Ready(()))
            }
            Poll::Pending => ControlFlow::Continue(Poll::Pending),
        }
    }

    /// Ends the session: writes the remaining frames if appropriate, and closes the websocket.
    async fn end(self: Box<Self>, end: End) {
        let Self { push, mut transport, .. } = *self;
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

/// Records the latency from a pong, which echoes the time of its ping. Other pongs are ignored.
fn measure(worker: &Worker, echo: &[u8]) {
    let sent: Option<i64> = std::str::from_utf8(echo).ok().and_then(|text| text.parse().ok());
    let now = Utc::now().timestamp_nanos_opt();
    if let (Some(sent), Some(now)) = (sent, now)
        && let Ok(nanoseconds) = u64::try_from(now.saturating_sub(sent))
    {
        worker.metrics.latency(Duration::from_nanos(nanoseconds).min(MAX_LATENCY));
    }
}

/// Counts the end of a session in the metrics.
fn count(worker: &Worker, end: &End) {
    match end {
        End::Stuck => worker.metrics.timeout(Deadline::Write),
        End::Silent => worker.metrics.timeout(Deadline::Silence),
        End::Violation(CloseCode::Size, _) => worker.metrics.refusal(Code::WebsocketTooLarge),
        End::Violation(CloseCode::Invalid, _) => worker.metrics.refusal(Code::WebsocketNotUtf8),
        End::Violation(..) => worker.metrics.refusal(Code::WebsocketViolation),
        _ => {}
    }
    if matches!(end, End::Broken | End::Stuck) {
        worker.metrics.client_error();
    }
}

/// Writes the remaining frames, and reads and ignores what the client sends, until writing is done or reading fails.
async fn write_rest<S: AsyncRead + AsyncWrite + Unpin>(
    transport: &mut Transport<S>,
    outgoing: &mut Outgoing,
) {
    poll_fn(|cx| {
        while let Poll::Ready(message) = transport.poll_read(cx) {
            if message.is_err() {
                return Poll::Ready(());
            }
        }
        // A write error shows up again when the close frame is written.
        transport.poll_write(cx, outgoing).map(|_| ())
    })
    .await;
}

/// Sends the close frame, or the reply to the client's, and waits for the client up to [`CLOSE_TIMEOUT`]. A frame that
/// is partly written has to be completed within the same time.
pub(super) async fn close<S: AsyncRead + AsyncWrite + Unpin>(
    mut transport: Transport<S>,
    mut outgoing: Outgoing,
    mut frame: Option<CloseFrame>,
) {
    let mut is_over = false;
    let closing = poll_fn(|cx| {
        if let Some(frame) = frame.take() {
            is_over = transport.close(cx, frame).is_err();
        }
        loop {
            let written = transport.poll_write(cx, &mut outgoing);
            if is_over || matches!(written, Poll::Ready(Err(_))) {
                return written;
            }
            match ready!(transport.poll_read(cx)) {
                Ok(_) => {}
                Err(_) => is_over = true,
            }
        }
    });
    let is_written = timeout(CLOSE_TIMEOUT, closing).await.is_ok_and(|written| written.is_ok());
    // In the middle of a frame there is no orderly shutdown.
    if is_written || outgoing.is_empty() {
        let _ = transport.into_connection().shutdown().await;
    }
}

fn broken(result: Result<(), Error>) -> ControlFlow<End> {
    match result {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => ControlFlow::Break(End::broken(&error)),
    }
}

impl From<follower::End> for End {
    fn from(end: follower::End) -> Self {
        match end {
            follower::End::Revoked => Self::Revoked,
            follower::End::Over(end) => Self::Over(end),
        }
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        match error {
            Error::Capacity(_) => {
                Self::Violation(CloseCode::Size, "frames of at most 65536 bytes are read")
            }
            Error::Utf8(_) => Self::Violation(CloseCode::Invalid, "text must be UTF-8"),
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Self::broken(&error),
            Error::Protocol(_) => Self::Violation(CloseCode::Protocol, "websocket protocol error"),
            other => Self::broken(&other),
        }
    }
}

impl End {
    fn broken(error: &Error) -> Self {
        debug!(%error, "websocket broken");
        match error {
            Error::Io(error) if error.kind() == ErrorKind::TimedOut => Self::Stuck,
            _ => Self::Broken,
        }
    }

    /// The close frame for the client; `None` if the client closed first, or the connection cannot be used any more.
    pub(super) fn close_frame(&self, last_id: Option<u64>) -> Option<CloseFrame> {
        let (code, reason) = match self {
            Self::ClosedByClient | Self::Broken | Self::Stuck => return None,
            Self::Violation(code, why) => (*code, Utf8Bytes::from_static(why)),
            Self::Silent => {
                (CloseCode::Away, "the client was silent for too long and answered no ping".into())
            }
            Self::Drain | Self::Over(RecvError::Closed) => {
                (CloseCode::Away, "the server is shutting down".into())
            }
            Self::Revoked => {
                (CloseCode::from(NOT_ALLOWED), "the keys no longer allow this subscription".into())
            }
            Self::Over(RecvError::Store(error)) => {
                (CloseCode::Error, format!("cannot read older messages: {error}").into())
            }
            Self::Over(RecvError::Lagged { .. }) => {
                let reason = match last_id {
                    Some(id) => format!("too far behind; the last id was {id}"),
                    None => "too far behind; there was no message yet".to_owned(),
                };
                (CloseCode::from(TOO_FAR_BEHIND), reason.into())
            }
            Self::Over(_) => (CloseCode::from(TOPIC_DELETED), "the topic has been deleted".into()),
        };
        Some(CloseFrame { code, reason })
    }
}
