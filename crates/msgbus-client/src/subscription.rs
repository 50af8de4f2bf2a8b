//! Following a topic across broken connections and restarts of the server.

use std::{convert::Infallible, pin::Pin, time::Duration};

use futures_util::{SinkExt as _, Stream, StreamExt as _, stream};
use msgbus_core::{Message, Position, TopicName};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::{
    self,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use crate::{
    backoff::Backoff,
    client::Client,
    error::ClientError,
    received::{Gap, Received},
    start::Start,
    uri::ServerUri,
    websocket::{self, Websocket},
};

/// What a subscription receives.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The next message. None is ever repeated, and none comes out of order.
    Message(Message),
    /// The server dropped this many messages before they were delivered (topic limit or TTL).
    Missed(u64),
    /// The topic was reset, by a restart of the server or a delete: ids restart at 0, and everything
    /// that it holds by now follows.
    Restarted,
    /// The connection stands.
    Connected,
    /// The connection is broken. It is tried again after this time, for ever.
    Disconnected {
        /// What went wrong.
        error: ClientError,
        /// How long until the next try.
        retry_in: Duration,
    },
}

/// A subscription to one topic that reconnects and resumes by itself.
///
/// The server keeps nothing for it: the position is here. What the server still has when the
/// connection is back is received, exactly once and in order; what it no longer has is counted.
#[derive(Debug)]
pub struct Subscription {
    client: Client,
    topic: TopicName,
    /// Where the next connection starts.
    position: Position,
    link: Link,
    backoff: Backoff,
    /// Whether there has ever been a connection. Until then, failures are errors.
    established: bool,
    told: Told,
}

#[derive(Debug)]
enum Link {
    Down,
    /// Until the next try.
    Waiting(Pin<Box<Sleep>>),
    Up(Box<Connection>),
}

#[derive(Debug)]
struct Connection {
    socket: Websocket,
    epoch: Option<u64>,
    opened: Instant,
    /// Whether a message has come.
    was_useful: bool,
    /// When the connection is given up for dead: the server pings or answers more often than that.
    silent_at: Instant,
    /// Whether it has been pinged since something came.
    is_pinged: bool,
}

/// What has come and has not been handed out yet.
#[derive(Debug, Default)]
struct Told {
    restarted: bool,
    received: Option<Received>,
}

impl Subscription {
    /// The server answers pings, and sends some of its own.
    const LONGEST_SILENCE: Duration = Duration::from_secs(80);
    /// How long the connection may be quiet before it is pinged from here.
    const PING_AFTER: Duration = Duration::from_secs(30);
    /// While nothing is read, and no ping of the server's is answered. The server closes after two of its
    /// intervals and 10 s in which nothing came from here.
    const PING_EVERY: Duration = Duration::from_secs(8);
    /// A connection that has lasted so long was a good one, even if nothing came.
    const LONG_ENOUGH: Duration = Duration::from_secs(10);
    /// How long the server's answer to our close frame is awaited.
    const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

    pub(crate) fn new(client: Client, topic: TopicName, from: Position) -> Self {
        Self {
            client,
            topic,
            position: from,
            link: Link::Down,
            backoff: Backoff::default(),
            established: false,
            told: Told::default(),
        }
    }

    /// The position from which another subscription would go on after what this one has handed
    /// out. As text it is a value of `since`.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Waits for the next event, connecting if need be.
    ///
    /// # Errors
    /// When the first connection cannot be made, or when trying again would not help: the server
    /// refuses, or is no msgbus. After an error the next call tries again.
    ///
    /// # Cancel safety
    /// No event is lost when the future is dropped early; a connection that was being made is.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            if let Some(event) = self.take_told() {
                return Ok(event);
            }
            match &mut self.link {
                Link::Down => {
                    if let Some(event) = self.connect().await? {
                        return Ok(event);
                    }
                }
                Link::Waiting(pause) => {
                    pause.await;
                    self.link = Link::Down;
                }
                Link::Up(connection) => match connection.receive(self.client.server()).await {
                    Ok(received) => self.accept(received),
                    Err(error @ ClientError::Message(_)) => return Err(error),
                    Err(error) => return Ok(self.disconnect(error)),
                },
            }
        }
    }

    /// The events as a stream. It ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Event, ClientError>> {
        stream::unfold(Some(self), |subscription| async {
            let mut subscription = subscription?;
            let event = subscription.next().await;
            let next = event.is_ok().then_some(subscription);
            Some((event, next))
        })
    }

    /// Keeps the connection alive for somebody who is busy with the last event. Never ends; to be
    /// dropped when the work is done.
    pub async fn keep_alive(&mut self) -> Infallible {
        loop {
            sleep(Self::PING_EVERY).await;
            if let Link::Up(connection) = &mut self.link {
                // If it fails, the next receive finds the connection broken.
                let _ = connection.socket.send(tungstenite::Message::Ping("0".into())).await;
                connection.silent_at = Instant::now() + Self::LONGEST_SILENCE;
            }
        }
    }

    /// Ends the subscription with a close frame that the server sees.
    pub async fn close(self) {
        let Link::Up(connection) = self.link else { return };
        let mut socket = connection.socket;
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let farewell = async {
            if socket.close(Some(frame)).await.is_ok() {
                while let Some(Ok(_)) = socket.next().await {}
            }
        };
        // Whether the server answers or not, this is the end.
        let _ = timeout(Self::CLOSE_PATIENCE, farewell).await;
    }

    async fn connect(&mut self) -> Result<Option<Event>, ClientError> {
        let query = query(self.position);
        match websocket::connect(&self.client, &self.topic, &query).await {
            Ok((socket, start)) => {
                self.established = true;
                self.begin(socket, start);
                Ok(Some(Event::Connected))
            }
            Err(error) if self.is_worth_another_try(&error) => Ok(Some(self.disconnect(error))),
            Err(error) => Err(error),
        }
    }

    /// Before there has been a connection, only a server that asks to come back later is tried
    /// again. After it, everything that may pass by itself is, as a proxy that answers for a server
    /// which is away.
    fn is_worth_another_try(&self, error: &ClientError) -> bool {
        match error {
            ClientError::Busy { .. } => true,
            ClientError::NotMsgbus { .. } => self.established,
            error => self.established && error.is_temporary(),
        }
    }

    /// Takes over what the handshake said.
    fn begin(&mut self, socket: Websocket, start: Start) {
        self.position = match (start.epoch, start.next_id) {
            // From now on the position is a certain one, even if no message ever comes.
            (Some(epoch), Some(next_id)) if start.missed == 0 => Position::before(epoch, next_id),
            // Until the gap has been handed out, another connection has to be told of it too.
            (Some(epoch), _) if start.restarted => Position::Start { epoch },
            _ => self.position,
        };
        self.told.restarted = start.restarted;
        self.link = Link::Up(Box::new(Connection {
            socket,
            epoch: start.epoch,
            opened: Instant::now(),
            was_useful: false,
            silent_at: Instant::now() + Self::LONGEST_SILENCE,
            is_pinged: false,
        }));
    }

    fn disconnect(&mut self, error: ClientError) -> Event {
        // A server that takes connections only to drop them is not asked more and more often.
        if let Link::Up(connection) = &self.link
            && (connection.was_useful || connection.opened.elapsed() > Self::LONG_ENOUGH)
        {
            self.backoff.reset();
        }
        let mut retry_in = self.backoff.next();
        if let ClientError::Busy { retry_after, .. } = &error {
            retry_in = retry_in.max(*retry_after);
        }
        self.link = Link::Waiting(Box::pin(sleep(retry_in)));
        Event::Disconnected { error, retry_in }
    }

    fn accept(&mut self, received: Received) {
        if let Link::Up(connection) = &mut self.link {
            connection.was_useful = true;
        }
        self.told.received = Some(received);
    }

    fn take_told(&mut self) -> Option<Event> {
        if std::mem::take(&mut self.told.restarted) {
            return Some(Event::Restarted);
        }
        let received = self.told.received.take()?;
        // What has been handed out is not asked for again.
        if let Link::Up(connection) = &self.link
            && let Some(epoch) = connection.epoch
        {
            self.position = match &received {
                Received::Message(message) => Position::After { epoch, id: message.id() },
                Received::Gap(gap) => Position::before(epoch, gap.next_id),
            };
        }
        Some(match received {
            Received::Message(message) => Event::Message(message),
            Received::Gap(Gap { missed, .. }) => Event::Missed(missed),
        })
    }
}

impl Connection {
    /// The next message or gap.
    ///
    /// # Errors
    /// [`ClientError::Message`] when what came is neither; else the connection is over.
    async fn receive(&mut self, server: &ServerUri) -> Result<Received, ClientError> {
        let over = |reason: &str| ClientError::Lost {
            server: server.to_string(),
            reason: reason.to_owned(),
        };
        loop {
            let ping_at = self.silent_at - Subscription::LONGEST_SILENCE + Subscription::PING_AFTER;
            let frame = tokio::select! {
                frame = self.socket.next() => frame,
                () = sleep_until(ping_at), if !self.is_pinged => {
                    self.is_pinged = true;
                    // If it fails, the next read finds the connection broken.
                    let _ = self.socket.send(tungstenite::Message::Ping("0".into())).await;
                    continue;
                }
                () = sleep_until(self.silent_at) => return Err(over("nothing comes any more")),
            };
            self.is_pinged = false;
            self.silent_at = Instant::now() + Subscription::LONGEST_SILENCE;
            match frame {
                Some(Ok(tungstenite::Message::Text(text))) => {
                    return Ok(Received::read(text.as_bytes())?);
                }
                Some(Ok(tungstenite::Message::Close(Some(close)))) if !close.reason.is_empty() => {
                    return Err(over(&format!("closed, {}", close.reason)));
                }
                Some(Ok(tungstenite::Message::Close(_))) | None => return Err(over("closed")),
                // Pings have been answered by the library.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(over(&error.to_string())),
            }
        }
    }
}

/// The parameters: counted gaps, and where to start.
fn query(position: Position) -> String {
    match position {
        Position::New => "gaps".to_owned(),
        position => format!("gaps&since={position}"),
    }
}
