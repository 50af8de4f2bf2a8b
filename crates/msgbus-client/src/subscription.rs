//! A subscription that survives broken connections and restarts of the server.

use std::{convert::Infallible, mem, pin::Pin, time::Duration};

use futures_util::{SinkExt as _, Stream, StreamExt as _, stream};
use msgbus_core::{Message, Position, TopicName};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_tungstenite::tungstenite;

use crate::{
    backoff::Backoff,
    client::Client,
    error::ClientError,
    received::{Gap, Other, Received},
    start_position::StartPosition,
    uri::ServerUri,
    websocket::{self, Heartbeat, Websocket},
};

/// An event of a subscription.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The next message. Messages arrive in order and are never repeated.
    Message(Message),
    /// The server dropped this many messages before they were delivered (topic limit or TTL). 0: nobody knows how many,
    /// perhaps none; the engine of the topic does not count them.
    Missed(u64),
    /// The engine in which the topic lives does not deliver. Until it does, nothing follows.
    Stalled,
    /// The engine delivers again.
    Resumed,
    /// The topic was reset, by a restart of the server or a delete. Ids restart at 0, and all
    /// messages that the topic holds now follow.
    Restarted,
    /// The connection is established.
    Connected,
    /// The connection is broken. The subscription retries after this time, without a limit.
    Disconnected {
        /// The cause.
        error: ClientError,
        /// The time until the next attempt.
        retry_in: Duration,
    },
}

/// A subscription to one topic that reconnects and resumes automatically.
///
/// The position is kept in the client; the server keeps no state for it. After a reconnect, messages
/// that the server still has are received exactly once and in order; the others are counted as
/// missed.
#[derive(Debug)]
pub struct Subscription {
    client: Client,
    topic: TopicName,
    /// Where the next connection starts.
    position: Position,
    link: LinkState,
    backoff: Backoff,
    /// Whether a connection has ever been established. Before that, failures are errors.
    established: bool,
    pending: PendingEvents,
}

#[derive(Debug)]
enum LinkState {
    Down,
    /// The delay before the next attempt.
    Waiting(Pin<Box<Sleep>>),
    Up(Box<Connection>),
}

#[derive(Debug)]
struct Connection {
    socket: Websocket,
    epoch: Option<u64>,
    opened: Instant,
    /// Whether a message or a gap has been received.
    has_received: bool,
    /// Whether the engine of the topic does not deliver, as far as the server has said.
    is_stalled: bool,
    heartbeat: Heartbeat,
}

/// Events that have not been returned yet.
#[derive(Debug, Default)]
struct PendingEvents {
    restarted: bool,
    received: Option<Received>,
}

impl Subscription {
    /// The ping interval while nothing is read, so that the server's pings are not answered. The server
    /// closes a connection from which it has received nothing for two ping intervals and 10 s.
    const PING_EVERY: Duration = Duration::from_secs(8);

    pub(crate) fn new(client: Client, topic: TopicName, from: Position) -> Self {
        Self {
            client,
            topic,
            position: from,
            link: LinkState::Down,
            backoff: Backoff::default(),
            established: false,
            pending: PendingEvents::default(),
        }
    }

    /// The position after the last returned event, from which another subscription can resume. Its
    /// text form is a value of `since`.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Waits for the next event, and connects if necessary.
    ///
    /// # Errors
    /// The first connection fails, or a retry would not help because the server refuses the
    /// subscription or is not a msgbus server. The next call tries again.
    ///
    /// # Cancel safety
    /// Dropping the future loses no event. A connection attempt in progress is abandoned.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            if let Some(event) = self.take_pending() {
                return Ok(event);
            }
            match &mut self.link {
                LinkState::Down => {
                    if let Some(event) = self.connect().await? {
                        return Ok(event);
                    }
                }
                LinkState::Waiting(pause) => {
                    pause.await;
                    self.link = LinkState::Down;
                }
                LinkState::Up(connection) => match connection.receive(self.client.server()).await {
                    Ok(received) => self.accept(received),
                    Err(error @ ClientError::Message(_)) => return Err(error),
                    Err(error) => return Ok(self.disconnect(error)),
                },
            }
        }
    }

    /// Turns the subscription into a stream of events, which ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Event, ClientError>> {
        stream::unfold(Some(self), |subscription| async {
            let mut subscription = subscription?;
            let event = subscription.next().await;
            let next = event.is_ok().then_some(subscription);
            Some((event, next))
        })
    }

    /// Keeps the connection alive while the caller processes an event. Never completes; drop the
    /// future when the work is done.
    pub async fn keep_alive(&mut self) -> Infallible {
        loop {
            sleep(Self::PING_EVERY).await;
            if let LinkState::Up(connection) = &mut self.link {
                // If it fails, the next receive finds the connection broken.
                let _ = connection.socket.send(tungstenite::Message::Ping("0".into())).await;
                connection.heartbeat.put_off();
            }
        }
    }

    /// Ends the subscription with a close frame.
    pub async fn close(self) {
        if let LinkState::Up(connection) = self.link {
            websocket::close(connection.socket).await;
        }
    }

    async fn connect(&mut self) -> Result<Option<Event>, ClientError> {
        let query = query(self.position);
        match websocket::connect(&self.client, &self.topic, &query).await {
            Ok((socket, start)) => {
                self.established = true;
                self.begin(socket, start);
                Ok(Some(Event::Connected))
            }
            Err(error) if self.is_retryable(&error) => Ok(Some(self.disconnect(error))),
            Err(error) => Err(error),
        }
    }

    /// The first connection is retried only if the server sends `Retry-After`. Later ones are
    /// retried after any temporary error, and after unexpected responses: a proxy may answer while
    /// the server is down.
    fn is_retryable(&self, error: &ClientError) -> bool {
        match error {
            ClientError::Busy { .. } => true,
            ClientError::NotMsgbus { .. } => self.established,
            error => self.established && error.is_temporary(),
        }
    }

    /// Takes over the start position from the handshake.
    fn begin(&mut self, socket: Websocket, start: StartPosition) {
        self.position = match (start.epoch, start.next_id) {
            // The position is now exact, even if no message is ever received.
            (Some(epoch), Some(next_id)) if start.missed.is_none() => {
                Position::before(epoch, next_id)
            }
            // Until the gap has been handed out, another connection has to be pending of it too.
            (Some(epoch), _) if start.restarted => Position::Start { epoch },
            _ => self.position,
        };
        self.pending.restarted = start.restarted;
        self.link = LinkState::Up(Box::new(Connection {
            socket,
            epoch: start.epoch,
            opened: Instant::now(),
            has_received: false,
            is_stalled: false,
            heartbeat: Heartbeat::start(),
        }));
    }

    fn disconnect(&mut self, error: ClientError) -> Event {
        // Connections that break at once do not reset the backoff.
        if let LinkState::Up(connection) = &self.link
            && (connection.has_received || connection.opened.elapsed() > websocket::STABLE_AFTER)
        {
            self.backoff.reset();
        }
        let mut retry_in = self.backoff.next();
        if let ClientError::Busy { retry_after, .. } = &error {
            retry_in = retry_in.max(*retry_after);
        }
        self.link = LinkState::Waiting(Box::pin(sleep(retry_in)));
        Event::Disconnected { error, retry_in }
    }

    fn accept(&mut self, received: Received) {
        if let LinkState::Up(connection) = &mut self.link {
            connection.has_received = true;
        }
        self.pending.received = Some(received);
    }

    fn take_pending(&mut self) -> Option<Event> {
        if mem::take(&mut self.pending.restarted) {
            return Some(Event::Restarted);
        }
        let received = self.pending.received.take()?;
        if let Received::Other(Other { event }) = received {
            return self.note_delivery(&event);
        }
        // The next connection starts after what is returned here.
        if let LinkState::Up(connection) = &self.link
            && let Some(epoch) = connection.epoch
        {
            self.position = match &received {
                Received::Message(message) => Position::After { epoch, id: message.id() },
                Received::Gap(gap) => Position::before(epoch, gap.next_id),
                Received::Other(_) => self.position,
            };
        }
        match received {
            Received::Message(message) => Some(Event::Message(message)),
            Received::Gap(Gap { missed, .. }) => Some(Event::Missed(missed)),
            Received::Other(_) => None,
        }
    }

    /// The server says again and again that an engine does not deliver. Only the first time is an event.
    fn note_delivery(&mut self, event: &str) -> Option<Event> {
        let LinkState::Up(connection) = &mut self.link else { return None };
        let (is_stalled, event) = match event {
            "stalled" => (true, Event::Stalled),
            "resumed" => (false, Event::Resumed),
            _ => return None,
        };
        let was_stalled = mem::replace(&mut connection.is_stalled, is_stalled);
        (was_stalled != is_stalled).then_some(event)
    }
}

impl Connection {
    /// Receives the next message or event.
    ///
    /// # Errors
    /// [`ClientError::Message`] if the frame is neither; otherwise the connection is lost.
    async fn receive(&mut self, server: &ServerUri) -> Result<Received, ClientError> {
        loop {
            let heartbeat = &mut self.heartbeat;
            let frame = tokio::select! {
                frame = self.socket.next() => frame,
                () = sleep_until(heartbeat.ping_at()), if !heartbeat.is_pinged => {
                    heartbeat.is_pinged = true;
                    // If it fails, the next read finds the connection broken.
                    let _ = self.socket.send(tungstenite::Message::Ping("0".into())).await;
                    continue;
                }
                () = sleep_until(heartbeat.dead_at) => return Err(Heartbeat::silence(server)),
            };
            heartbeat.received();
            match frame {
                Some(Ok(tungstenite::Message::Text(text))) => {
                    return Ok(Received::read(text.as_bytes())?);
                }
                Some(Ok(tungstenite::Message::Close(frame))) => {
                    return Err(websocket::closed(server, frame.as_ref()));
                }
                None => return Err(websocket::closed(server, None)),
                // tungstenite answers pings.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(websocket::lost(server, &error.to_string())),
            }
        }
    }
}

/// The query of the handshake: report gaps, and where to start.
fn query(position: Position) -> String {
    match position {
        Position::New => "gaps".to_owned(),
        position => format!("gaps&since={position}"),
    }
}
