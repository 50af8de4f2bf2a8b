//! One subscriber on one websocket, from the handshake to the last close frame.

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

/// How long the client's answer to a close frame is awaited.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The most that a latency counts in the metrics, whatever a client echoes.
const MAX_LATENCY: Duration = Duration::from_secs(60);

const NOT_ALLOWED: u16 = 4403;
const TOPIC_DELETED: u16 = 4404;
const TOO_FAR_BEHIND: u16 = 4408;

pub(super) struct Session {
    push: Arc<Push>,
    transport: Transport<Connection>,
    heartbeat: Heartbeat,
}

/// Why a session ends.
#[derive(Debug)]
pub(super) enum End {
    /// The client has sent a close frame.
    ClosedByClient,
    /// The connection is broken.
    Broken,
    /// The client takes no bytes.
    Stuck,
    /// The client has broken the protocol.
    Violation(CloseCode, &'static str),
    /// Nothing has come from the client for too long.
    Silent,
    /// The server stops.
    Drain,
    /// The keys no longer allow it.
    Revoked,
    /// The subscription is over.
    Over(RecvError),
}

impl Session {
    pub(super) fn new(push: Arc<Push>, connection: Connection, already_read: Vec<u8>) -> Self {
        let ping = push.lock().follower.app().config.timeouts.ping;
        if let Some(stream) = connection::direct(&connection) {
            push.share(stream);
        }
        Self {
            push,
            transport: Transport::new(connection, already_read),
            heartbeat: Heartbeat::new(ping, Instant::now()),
        }
    }

    /// Writes what the topic brings and reads what the client sends, until one of them ends it.
    pub(super) async fn follow(&mut self) -> End {
        let app = Arc::clone(self.push.lock().follower.app());
        let mut drain = pin!(app.tasks.drain.cancelled());
        let mut alarm = pin!(sleep_until(self.heartbeat.next()));
        poll_fn(|cx| {
            if drain.as_mut().poll(cx).is_ready() {
                return Poll::Ready(End::Drain);
            }
            match self.poll(cx, alarm.as_mut()) {
                ControlFlow::Break(end) => Poll::Ready(end),
                ControlFlow::Continue(()) => Poll::Pending,
            }
        })
        .await
    }

    /// Does what can be done until all has to wait.
    fn poll(&mut self, cx: &mut Context<'_>, mut alarm: Pin<&mut Sleep>) -> ControlFlow<End> {
        let push = Arc::clone(&self.push);
        let state = &mut *push.lock();
        loop {
            self.poll_read(cx, state)?;
            self.poll_alarm(cx, alarm.as_mut())?;
            if !coop::has_budget_remaining() {
                // Other tasks come first; the drain is looked at again, too.
                cx.waker().wake_by_ref();
                return ControlFlow::Continue(());
            }
            if self.poll_write(cx, &mut state.outgoing)?.is_pending() {
                // A client that takes its time does not outlive its right.
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

    /// Reads all that has come. Data is ignored; pings are answered by the library.
    fn poll_read(&mut self, cx: &mut Context<'_>, state: &mut State) -> ControlFlow<End> {
        while let Poll::Ready(message) = self.transport.poll_read(cx) {
            match message {
                Ok(Message::Close(_)) => return ControlFlow::Break(End::ClosedByClient),
                Ok(Message::Pong(echo)) => measure(state.follower.app(), &echo),
                Ok(_) => {}
                Err(error) => return ControlFlow::Break(End::from(error)),
            }
            self.heartbeat.heard(Instant::now());
            if self.transport.has_control(&state.outgoing) {
                // If it cannot go out now, what comes is read all the same: a client may not read before it
                // has written.
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
            self.heartbeat.ping_is_out();
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

    /// Parts with the client.
    pub(super) async fn end(self, end: End) {
        let Self { push, mut transport, .. } = self;
        let (app, last_id, mut outgoing) = {
            let mut state = push.lock();
            let follower = &state.follower;
            follower.log_end(&end);
            (Arc::clone(follower.app()), follower.last_id(), state.end())
        };
        // Nothing more is received: the cursor in the topic need not wait for the close.
        drop(push);
        count(&app, &end);
        match end {
            End::Broken | End::Stuck => return,
            // What was taken out of the topic is written. The write deadline and the end of the drain bound it.
            End::Drain | End::Over(_) => write_rest(&mut transport, &mut outgoing).await,
            _ => {}
        }
        outgoing.drop_unstarted();
        close(transport, outgoing, end.close_frame(last_id)).await;
    }
}

/// A pong echoes the time of its ping. One that does not is nobody's loss.
fn measure(app: &Worker, echo: &[u8]) {
    let sent: Option<i64> = std::str::from_utf8(echo).ok().and_then(|text| text.parse().ok());
    let now = Utc::now().timestamp_nanos_opt();
    if let (Some(sent), Some(now)) = (sent, now)
        && let Ok(nanoseconds) = u64::try_from(now.saturating_sub(sent))
    {
        app.metrics.latency(Duration::from_nanos(nanoseconds).min(MAX_LATENCY));
    }
}

/// Counts an end in the metrics.
fn count(app: &Worker, end: &End) {
    match end {
        End::Stuck => app.metrics.timeout(Deadline::Write),
        End::Silent => app.metrics.timeout(Deadline::Silence),
        End::Violation(CloseCode::Size, _) => app.metrics.refusal(Code::WebsocketTooLarge),
        End::Violation(CloseCode::Invalid, _) => app.metrics.refusal(Code::WebsocketNotUtf8),
        End::Violation(..) => app.metrics.refusal(Code::WebsocketViolation),
        _ => {}
    }
    if matches!(end, End::Broken | End::Stuck) {
        app.metrics.client_error();
    }
}

/// Writes what is left, and reads and ignores what comes, until one of both ends.
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
        // What goes wrong shows again when the close frame is written.
        transport.poll_write(cx, outgoing).map(|_| ())
    })
    .await;
}

/// Sends the close frame, or the answer to the client's, and waits a little for the client. A frame that is
/// written in part has the same time to be written whole.
pub(super) async fn close<S: AsyncRead + AsyncWrite + Unpin>(
    mut transport: Transport<S>,
    mut outgoing: Outgoing,
    mut frame: Option<CloseFrame>,
) {
    let mut is_over = false;
    let farewell = poll_fn(|cx| {
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
    let is_written = timeout(CLOSE_TIMEOUT, farewell).await.is_ok_and(|written| written.is_ok());
    // The client is not told of the end in the middle of a frame.
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

    /// What the client is told; `None` where it has closed first and is only answered.
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
