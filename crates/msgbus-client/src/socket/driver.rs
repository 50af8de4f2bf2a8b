//! The task that owns the connection: sends what is due, distributes what arrives, and reconnects.

use std::{future::pending, pin::pin, sync::Arc};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    select,
    sync::{mpsc::UnboundedReceiver, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_tungstenite::tungstenite::{Error, Message, protocol::frame::coding::CloseCode};

use super::{
    SocketStatus,
    answer::Incoming,
    command::Command,
    outgoing::{MAX_FRAME, Outgoing},
    subscriptions::Subscriptions,
};
use crate::{
    backoff::Backoff,
    client::Client,
    error::ClientError,
    websocket::{self, Heartbeat, Websocket},
};

pub(super) struct Driver {
    client: Client,
    commands: UnboundedReceiver<Command>,
    outgoing: Outgoing,
    subscriptions: Subscriptions,
    status: watch::Sender<SocketStatus>,
    /// Whether the connection ends once everything is answered.
    is_closing: bool,
    /// Whether anything but pings has been received on this connection.
    has_received: bool,
}

/// Why a connection ended.
enum Ended {
    /// Nobody needs it any more.
    Closed(Box<Websocket>),
    Lost(Loss),
}

struct Loss {
    error: ClientError,
    /// Whether the server closed it because of a frame that is too large.
    is_too_large: bool,
}

impl From<ClientError> for Loss {
    fn from(error: ClientError) -> Self {
        Self { error, is_too_large: false }
    }
}

impl Driver {
    pub(super) fn new(
        client: Client,
        commands: UnboundedReceiver<Command>,
        subscriptions: Subscriptions,
        status: watch::Sender<SocketStatus>,
    ) -> Self {
        Self {
            client,
            commands,
            outgoing: Outgoing::default(),
            subscriptions,
            status,
            is_closing: false,
            has_received: false,
        }
    }

    /// Runs until nobody needs the connection any more, or the server refuses it.
    pub(super) async fn run(mut self, websocket: Websocket) {
        let mut backoff = Backoff::default();
        let mut websocket = Some(websocket);
        while let Some(connected) = websocket {
            let opened = Instant::now();
            self.has_received = false;
            websocket = match self.serve(connected).await {
                Ended::Closed(socket) => {
                    websocket::close(*socket).await;
                    None
                }
                Ended::Lost(Loss { error, is_too_large }) => {
                    // Connections that break at once do not reset the backoff.
                    if self.has_received || opened.elapsed() > websocket::STABLE_AFTER {
                        backoff.reset();
                    }
                    let (server, reason) = (self.client.server(), error.to_string());
                    self.outgoing.connection_lost(server, &reason, is_too_large);
                    self.subscriptions.connection_lost();
                    self.reconnect(error, &mut backoff).await
                }
            };
        }
        self.fail(&websocket::lost(self.client.server(), "the socket is closed"));
    }

    async fn serve(&mut self, websocket: Websocket) -> Ended {
        let (mut sink, mut stream) = websocket.split();
        let mut heartbeat = Heartbeat::start();
        let mut is_flushing = false;
        loop {
            if !is_flushing && let Some(frame) = self.next_frame() {
                // Does not wait: everything before it was flushed.
                if let Err(error) = sink.feed(frame).await {
                    return Ended::Lost(self.lost(&error));
                }
                is_flushing = true;
            }
            if self.is_closing && !is_flushing && self.outgoing.is_idle() {
                // They are the halves of one socket.
                match sink.reunite(stream) {
                    Ok(socket) => return Ended::Closed(Box::new(socket)),
                    Err(_) => return Ended::Lost(self.lost(&Error::ConnectionClosed)),
                }
            }
            select! {
                frame = stream.next() => {
                    heartbeat.received();
                    if let Err(lost) = self.receive(frame) {
                        return Ended::Lost(lost);
                    }
                }
                flushed = sink.flush(), if is_flushing => match flushed {
                    Ok(()) => is_flushing = false,
                    Err(error) => return Ended::Lost(self.lost(&error)),
                },
                command = self.commands.recv(), if !self.is_closing => self.accept_all(command),
                () = sleep_until(heartbeat.ping_at()), if !heartbeat.is_pinged && !is_flushing => {
                    heartbeat.is_pinged = true;
                    // If it fails, the next read finds the connection broken.
                    is_flushing = sink.feed(Message::Ping("0".into())).await.is_ok();
                }
                () = sleep_until(heartbeat.dead_at) => {
                    return Ended::Lost(Heartbeat::silence(self.client.server()).into());
                }
                () = sleep_until_some(self.subscriptions.next_retry()) => {}
            }
        }
    }

    /// What is due, in one frame.
    fn next_frame(&mut self) -> Option<Message> {
        let mut frame = String::new();
        self.subscriptions.write(&mut frame);
        if frame.len() < MAX_FRAME {
            self.outgoing.write(&mut frame);
        }
        (!frame.is_empty()).then(|| Message::text(frame))
    }

    fn lost(&self, error: &Error) -> Loss {
        websocket::lost(self.client.server(), &error.to_string()).into()
    }

    fn receive(&mut self, frame: Option<Result<Message, Error>>) -> Result<(), Loss> {
        let server = self.client.server();
        match frame {
            Some(Ok(Message::Text(text))) => {
                self.has_received = true;
                for line in text.lines().filter(|line| !line.is_empty()) {
                    self.receive_line(line)?;
                }
                Ok(())
            }
            Some(Ok(Message::Close(frame))) => {
                let code = frame.as_ref().map(|frame| frame.code);
                let error = websocket::closed(server, frame.as_ref());
                Err(Loss { error, is_too_large: code == Some(CloseCode::Size) })
            }
            None => Err(websocket::closed(server, None).into()),
            // tungstenite answers pings.
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(self.lost(&error)),
        }
    }

    fn receive_line(&mut self, line: &str) -> Result<(), ClientError> {
        let incoming = Incoming::read(line).map_err(|problem| self.client.not_msgbus(&problem))?;
        match incoming {
            Incoming::Message { sid, id, message, lease } => {
                self.subscriptions.message((sid, id), message, lease)?;
            }
            Incoming::Answer { rid: Some(rid), answer } => {
                if let Some(answer) = self.subscriptions.answered(rid, answer) {
                    self.outgoing.answered(rid, answer);
                }
            }
            Incoming::Gap { sid, missed, next_id } => self.subscriptions.gap(sid, missed, next_id),
            Incoming::Delivery { sid, is_stalled } => {
                self.subscriptions.delivery(sid, is_stalled);
            }
            Incoming::Request { sid, request } => self.subscriptions.request(sid, request),
            Incoming::End { sid, reason } => self.subscriptions.ended(sid, &reason),
            // The refusal of an operation that nobody waits for: credit or the end of a subscription that has just ended
            // by itself, or a lease that is over.
            Incoming::Answer { rid: None, .. } | Incoming::Unknown => {}
        }
        Ok(())
    }

    /// Accepts a command and those that wait behind it. `None` if there is no handle left.
    fn accept_all(&mut self, command: Option<Command>) {
        /// So that reading and writing go on, however fast commands come.
        const MAX: usize = 1024;
        self.accept(command);
        for _ in 0..MAX {
            match self.commands.try_recv() {
                Ok(command) => self.accept(Some(command)),
                Err(_) => return,
            }
        }
    }

    fn accept(&mut self, command: Option<Command>) {
        match command {
            Some(Command::Operate(operation)) => self.outgoing.push(operation),
            Some(Command::Subscribe(number, subscribed)) => {
                self.subscriptions.add(number, *subscribed);
            }
            Some(Command::Resume(number)) => self.subscriptions.resume(number),
            Some(Command::Unsubscribe(number)) => self.subscriptions.remove(number),
            Some(Command::Settled(number)) => self.subscriptions.settled(number),
            Some(Command::Close) | None => self.is_closing = true,
        }
    }

    /// Connects again. `None` if the server refuses it, or nobody needs it any more.
    async fn reconnect(
        &mut self,
        mut error: ClientError,
        backoff: &mut Backoff,
    ) -> Option<Websocket> {
        loop {
            let mut retry_in = backoff.next();
            if let ClientError::Busy { retry_after, .. } = &error {
                retry_in = retry_in.max(*retry_after);
            }
            let error_shown = Arc::new(error);
            self.status.send_replace(SocketStatus::Disconnected { error: error_shown, retry_in });
            self.meanwhile(sleep(retry_in)).await?;
            let client = self.client.clone();
            match self.meanwhile(websocket::connect_v1(&client)).await? {
                Ok((websocket, _)) => {
                    self.status.send_replace(SocketStatus::Connected);
                    return Some(websocket);
                }
                // A proxy may answer while the server is down.
                Err(next)
                    if next.is_temporary() || matches!(next, ClientError::NotMsgbus { .. }) =>
                {
                    error = next;
                }
                Err(refusal) => {
                    self.fail(&refusal);
                    return None;
                }
            }
        }
    }

    /// Accepts commands until a future completes. `None` if nobody needs the connection any more.
    async fn meanwhile<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        loop {
            if self.is_closing {
                return None;
            }
            select! {
                output = &mut future => return Some(output),
                command = self.commands.recv() => self.accept_all(command),
            }
        }
    }

    /// Ends everything with an error.
    fn fail(&mut self, error: &ClientError) {
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            self.accept(Some(command));
        }
        let copy = || match error {
            ClientError::Refused { status, text } => {
                ClientError::Refused { status: *status, text: text.clone() }
            }
            ClientError::Lost { server, reason } => {
                ClientError::Lost { server: server.clone(), reason: reason.clone() }
            }
            other => websocket::lost(self.client.server(), &other.to_string()),
        };
        self.outgoing.fail(copy);
        self.subscriptions.fail(copy);
    }
}

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
