//! One subscriber on one websocket, from the handshake to the last close frame.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::poll_fn,
    io::{ErrorKind, IoSlice},
    ops::ControlFlow,
    pin::{Pin, pin},
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use chrono::Utc;
use futures_util::{SinkExt as _, StreamExt as _};
use msgbus_core::{BatchLimit, Event, RecvError, Subscription};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    select,
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message, Utf8Bytes,
        error::ProtocolError,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tracing::{Level, debug, enabled};

use crate::{
    bound::Hold,
    connection::Connection,
    frames::{Form, Ring},
    http::{App, room::Patience},
    keys::Permit,
    metrics::Deadline,
    peer::Peer,
    wake::Relay,
};

/// How long a ping has to be answered.
const PONG_TIMEOUT: Duration = Duration::from_secs(10);
/// The most that a latency counts in the metrics, whatever a client echoes.
const MAX_LATENCY: Duration = Duration::from_secs(60);
/// How long the client's answer to a close frame is awaited.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// The largest frame and message from a client, in bytes. What it says is read and ignored.
const LARGEST_FROM_CLIENT: usize = 64 << 10;
/// What is written at once: a client that stops reading pins no more than this.
const BATCH: BatchLimit = BatchLimit { events: 64, bytes: 64 << 10 };
/// For how many events there stays room when all have been written.
const FEW_EVENTS: usize = 4;
/// The library's buffers, in bytes. It writes control frames only.
const READ_BUFFER: usize = 256;
const CONTROL_BUFFER: usize = 1 << 10;

const NOT_ALLOWED: u16 = 4403;
const TOPIC_DELETED: u16 = 4404;
const TOO_FAR_BEHIND: u16 = 4408;

pub(super) struct Session {
    app: Arc<App>,
    peer: Peer,
    subscription: Subscription,
    socket: WebSocketStream<Connection>,
    permit: Permit,
    ring: Arc<Ring>,
    relay: Relay,
    seat: Hold,
    room: Patience,
    /// The id of the last message written.
    last_id: Option<u64>,
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
    pub(super) fn new(
        app: &Arc<App>,
        peer: Peer,
        subscription: Subscription,
        form: Form,
        socket: WebSocketStream<Connection>,
        permit: Permit,
        seat: Hold,
    ) -> Self {
        Self {
            app: Arc::clone(app),
            peer,
            ring: app.frames.ring(subscription.topic().epoch, form),
            subscription,
            socket,
            permit,
            relay: Relay::default(),
            seat,
            room: Patience::default(),
            last_id: None,
        }
    }

    /// Writes what the topic brings and reads what the client sends, until one of them ends it.
    pub(super) async fn follow(&mut self) -> End {
        let ControlFlow::Break(end) = self.try_follow().await;
        end
    }

    /// Parts with the client.
    pub(super) async fn end(self, end: End) {
        self.log_end(&end);
        // Nothing more is received: the place in the topic need not wait for the close.
        let Self { app, subscription, socket, last_id, seat, .. } = self;
        drop((subscription, seat));
        match end {
            End::Stuck => app.metrics.timeout(Deadline::Write),
            End::Silent => app.metrics.timeout(Deadline::Silence),
            End::Violation(CloseCode::Size, _) => app.metrics.refusal("websocket_too_large"),
            End::Violation(CloseCode::Invalid, _) => app.metrics.refusal("websocket_not_utf8"),
            End::Violation(..) => app.metrics.refusal("websocket_violation"),
            _ => {}
        }
        if matches!(end, End::Broken | End::Stuck) {
            app.metrics.client_error();
        } else {
            close(socket, end.close_frame(last_id)).await;
        }
    }

    /// The books take the topic's lock: not for a line that nobody reads.
    fn log_end(&self, end: &End) {
        if !enabled!(Level::DEBUG) {
            return;
        }
        let stats = self.subscription.stats();
        debug!(
            peer = %self.peer,
            topic = %self.subscription.topic().name,
            received = stats.received,
            missed = stats.missed,
            ?end,
            "Unsubscribe"
        );
    }

    async fn try_follow(&mut self) -> ControlFlow<End, Infallible> {
        let app = Arc::clone(&self.app);
        let mut drain = pin!(app.tasks.drain.cancelled());
        let ping_every = app.config.timeouts.ping;
        // The answers to two pings, and time for the second.
        let longest_silence = 2 * ping_every + PONG_TIMEOUT;
        let mut ping_at = Instant::now() + ping_every;
        let mut silent_at = Instant::now() + longest_silence;
        // Set again only when it rings: both deadlines only ever move away from it.
        let mut alarm = pin!(sleep_until(ping_at));
        let mut events = Vec::new();
        loop {
            select! {
                biased;
                () = &mut drain => return ControlFlow::Break(End::Drain),
                () = self.permit.revoked() => return ControlFlow::Break(End::Revoked),
                frame = self.socket.next() => {
                    self.read(frame)?;
                    silent_at = Instant::now() + longest_silence;
                }
                received = poll_fn(|cx| {
                    let Self { app, room, relay, subscription, .. } = self;
                    let batch = ready!(room.poll_receive(cx, app, subscription, BATCH));
                    relay.poll(cx, |cx| subscription.poll_recv_batch(cx, &mut events, batch))
                }) => {
                    // It may have been published since the keys were looked at above.
                    if poll_fn(|cx| Poll::Ready(self.permit.poll_revoked(cx).is_ready())).await {
                        return ControlFlow::Break(End::Revoked);
                    }
                    if let Err(end) = received {
                        return ControlFlow::Break(End::Over(end));
                    }
                    let start = Instant::now();
                    let there_is_more = events.len() == BATCH.events;
                    self.write(&mut events).await?;
                    if !there_is_more {
                        events.shrink_to(FEW_EVENTS);
                    }
                    // While it was slow to take bytes nothing was read from it, nor was it pinged.
                    silent_at += start.elapsed();
                }
                () = &mut alarm => {
                    let now = Instant::now();
                    if ping_at <= now {
                        self.ping().await?;
                        ping_at += ping_every;
                    }
                    if silent_at <= now {
                        return ControlFlow::Break(End::Silent);
                    }
                    alarm.as_mut().reset(ping_at.min(silent_at));
                }
            }
        }
    }

    /// Writes a batch with as few system calls as possible. What was missed shows in the ids: the
    /// frames stay the ancestor's.
    ///
    /// The frames go past the library, which would copy each into a buffer of its own: its buffer is
    /// emptied first, and it is not asked for anything until the last frame is out.
    async fn write(&mut self, events: &mut Vec<Event>) -> ControlFlow<End> {
        broken(self.socket.flush().await)?;
        let mut frames: VecDeque<Bytes> = events
            .drain(..)
            .filter_map(|event| match event {
                Event::Message(message) => {
                    self.last_id = Some(message.id());
                    Some(self.app.inflight.track(self.ring.frame(&message)))
                }
                Event::Missed(_) => None,
            })
            .collect();
        while !frames.is_empty() {
            let written = poll_fn(|cx| {
                let mut slices = [IoSlice::new(&[]); BATCH.events];
                for (slice, frame) in slices.iter_mut().zip(&frames) {
                    *slice = IoSlice::new(frame);
                }
                Pin::new(self.socket.get_mut()).poll_write_vectored(cx, &slices[..frames.len()])
            });
            match written.await {
                Ok(0) => return broken(Err(Error::Io(ErrorKind::WriteZero.into()))),
                Ok(count) => advance(&mut frames, count),
                Err(error) => return broken(Err(Error::Io(error))),
            }
        }
        // TLS may still have some of it.
        let flushed = poll_fn(|cx| Pin::new(self.socket.get_mut()).poll_flush(cx)).await;
        broken(flushed.map_err(Error::Io))
    }

    async fn ping(&mut self) -> ControlFlow<End> {
        let now = Utc::now().timestamp_nanos_opt().unwrap_or_default();
        broken(self.socket.send(Message::Ping(now.to_string().into())).await)
    }

    /// Takes note of a frame. Data is ignored; pings are answered by the library.
    fn read(&mut self, frame: Option<Result<Message, Error>>) -> ControlFlow<End> {
        match frame {
            Some(Ok(Message::Pong(echo))) => {
                self.measure(&echo);
                ControlFlow::Continue(())
            }
            Some(Ok(Message::Close(_))) | None => ControlFlow::Break(End::ClosedByClient),
            Some(Ok(_)) => ControlFlow::Continue(()),
            Some(Err(error)) => ControlFlow::Break(End::from(error)),
        }
    }

    /// A pong echoes the time of its ping. One that does not is nobody's loss.
    fn measure(&self, echo: &[u8]) {
        let sent: Option<i64> = std::str::from_utf8(echo).ok().and_then(|text| text.parse().ok());
        let now = Utc::now().timestamp_nanos_opt();
        if let (Some(sent), Some(now)) = (sent, now)
            && let Ok(nanoseconds) = u64::try_from(now.saturating_sub(sent))
        {
            self.app.metrics.latency(Duration::from_nanos(nanoseconds).min(MAX_LATENCY));
        }
    }
}

/// The server's end of a connection that has become a websocket.
pub(super) fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    connection: S,
    already_read: Vec<u8>,
) -> impl Future<Output = WebSocketStream<S>> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(CONTROL_BUFFER)
        .max_message_size(Some(LARGEST_FROM_CLIENT))
        .max_frame_size(Some(LARGEST_FROM_CLIENT));
    WebSocketStream::from_partially_read(connection, already_read, Role::Server, Some(config))
}

/// Drops the first bytes of the frames.
fn advance(frames: &mut VecDeque<Bytes>, mut count: usize) {
    while let Some(frame) = frames.front_mut() {
        if count < frame.len() {
            return frame.advance(count);
        }
        count -= frame.len();
        frames.pop_front();
    }
}

fn broken(result: Result<(), Error>) -> ControlFlow<End> {
    match result {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => ControlFlow::Break(End::broken(&error)),
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

/// Sends the close frame, or the answer to the client's, and waits a little for the client.
pub(super) async fn close<S: AsyncRead + AsyncWrite + Unpin>(
    mut socket: WebSocketStream<S>,
    frame: Option<CloseFrame>,
) {
    let farewell = async {
        if frame.is_some() && socket.close(frame).await.is_err() {
            return;
        }
        while let Some(Ok(_)) = socket.next().await {}
    };
    // Whether the client answers or not, the connection ends here.
    let _ = timeout(CLOSE_PATIENCE, farewell).await;
    let _ = socket.get_mut().shutdown().await;
}
