//! A websocket with its heartbeat, and its close: what all sessions have.

use std::{
    future::poll_fn,
    io::IoSlice,
    ops::ControlFlow,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use chrono::Utc;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, Sleep, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite::{Error, protocol::CloseFrame};

use super::{
    end::{End, broken, count},
    heartbeat::Heartbeat,
    outgoing::{MAX_SLICES, Outgoing},
    transport::Transport,
};
use crate::{
    net::{connection::Connection, raw_stream::RawStream},
    worker::Worker,
};

/// How long the server waits for the client's close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// An interval that never ends.
const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
/// The highest latency that the metrics record: a client can echo any time.
const MAX_LATENCY: Duration = Duration::from_secs(60);

/// The server's end of a websocket, with its heartbeat.
pub(crate) struct Link {
    pub(crate) transport: Transport<Connection>,
    pub(crate) heartbeat: Heartbeat,
}

impl Link {
    pub(crate) fn new(transport: Transport<Connection>, ping_interval: Duration) -> Self {
        // A stream has no pings.
        let interval = if transport.is_stream() { NEVER } else { ping_interval };
        Self { transport, heartbeat: Heartbeat::new(interval, Instant::now()) }
    }

    /// Pings the client when that is due. Returns whether it was.
    pub(crate) fn poll_alarm(
        &mut self,
        cx: &mut Context<'_>,
        mut alarm: Pin<&mut Sleep>,
    ) -> ControlFlow<End, bool> {
        let mut is_pinged = false;
        while alarm.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if self.heartbeat.is_silent(now) {
                return ControlFlow::Break(End::Silent);
            }
            if self.heartbeat.ping_is_due(now) {
                let time = Utc::now().timestamp_nanos_opt().unwrap_or_default();
                broken(self.transport.ping(cx, time.to_string()))?;
                is_pinged = true;
            }
            alarm.as_mut().reset(self.heartbeat.next());
        }
        ControlFlow::Continue(is_pinged)
    }

    /// Writes everything that waits.
    pub(crate) fn poll_write(
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
}

/// Polls a session, with an alarm that is first due at `first`, until it ends or the server stops.
pub(crate) async fn until_end(
    worker: &Worker,
    first: Instant,
    mut poll: impl FnMut(&mut Context<'_>, Pin<&mut Sleep>) -> ControlFlow<End>,
) -> End {
    let mut alarm = pin!(sleep_until(first));
    poll_fn(|cx| {
        if worker.tasks.stop.is_draining() {
            return Poll::Ready(End::Drain);
        }
        match poll(cx, alarm.as_mut()) {
            ControlFlow::Break(end) => Poll::Ready(end),
            ControlFlow::Continue(()) => Poll::Pending,
        }
    })
    .await
}

/// Records the latency from a pong, which echoes the time of its ping. Other pongs are ignored.
pub(crate) fn measure(worker: &Worker, echo: &[u8]) {
    let sent: Option<i64> = std::str::from_utf8(echo).ok().and_then(|text| text.parse().ok());
    let now = Utc::now().timestamp_nanos_opt();
    if let (Some(sent), Some(now)) = (sent, now)
        && let Ok(nanoseconds) = u64::try_from(now.saturating_sub(sent))
    {
        worker.metrics.latency(Duration::from_nanos(nanoseconds).min(MAX_LATENCY));
    }
}

/// Writes as much as the socket accepts now. The session handles the rest, and errors.
pub(crate) fn write_now(stream: &RawStream, outgoing: &mut Outgoing) {
    while !outgoing.is_empty() {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let count = outgoing.slices(&mut slices);
        match stream.try_write_vectored(&slices[..count]) {
            Ok(0) | Err(_) => return,
            Ok(written) => outgoing.advance(written),
        }
    }
    outgoing.shrink();
}

/// Writes the remaining frames, and reads and ignores what the client sends, until writing is done or reading fails.
pub(crate) async fn write_rest<S: AsyncRead + AsyncWrite + Unpin>(
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

/// Writes the remaining frames, for up to [`CLOSE_TIMEOUT`], without reading.
pub(crate) async fn write_what_fits<S: AsyncRead + AsyncWrite + Unpin>(
    transport: &mut Transport<S>,
    outgoing: &mut Outgoing,
) {
    // A write error shows up again when the close frame is written.
    let _ = timeout(CLOSE_TIMEOUT, poll_fn(|cx| transport.poll_write(cx, outgoing))).await;
}

/// Closes a websocket whose client may not use it, and says why.
pub(crate) async fn refuse(worker: &Worker, transport: Transport<Connection>, end: &End) {
    count(worker, end);
    close(transport, Outgoing::default(), end.close_frame(None)).await;
}

/// Sends the close frame, or the reply to the client's, and waits for the client up to [`CLOSE_TIMEOUT`]. A frame that
/// is partly written has to be completed within the same time.
pub(crate) async fn close<S: AsyncRead + AsyncWrite + Unpin>(
    mut transport: Transport<S>,
    mut outgoing: Outgoing,
    mut frame: Option<CloseFrame>,
) {
    let mut is_over = false;
    let closing = poll_fn(|cx| {
        if let Some(frame) = frame.take() {
            // A stream has no close frames.
            is_over = transport.is_stream() || transport.close(cx, frame).is_err();
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
