//! One connection, from its first byte to its last.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    ops::ControlFlow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncWrite as _, AsyncWriteExt as _},
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};
use tracing::debug;

use super::{
    Client, ENOUGH,
    command::Failure,
    exchange::Exchange,
    output::Output,
    stream::{Commands, Malformed},
};
use crate::{
    limits::{inflight::Inflight, quota::QuotaPermit},
    net::{connection::Connection, wake_queue::RemoteWaker},
    websocket::{
        end::{End, broken, count},
        link::{Link, close, measure, write_what_fits},
        transport::{Outgoing, Received, Transport},
    },
    worker::Worker,
};

/// The space for the other fields of a command with the largest body, in bytes.
const FIELDS: usize = 64 << 10;
/// How often a peer that has as many calls as it may have is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The time for the last bytes to a peer that has sent what cannot be read.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How commands are transported.
pub(super) enum Wire {
    /// With the time of the next ping.
    Websocket(Box<Link>, Pin<Box<Sleep>>),
    /// And whether it has to be flushed.
    Stream(Connection, bool),
}

pub(super) struct Session {
    wire: Wire,
    commands: Commands,
    exchange: Exchange,
    outgoing: Outgoing,
    worker: Arc<Worker>,
    /// Wakes the task for what other threads make ready.
    waker: RemoteWaker,
    /// Counts what has arrived of a command as in flight.
    permit: Option<QuotaPermit>,
    /// The number of bytes that have arrived, if they end in a command that is not whole.
    arrived: Option<usize>,
    alarm: Option<(Pin<Box<Sleep>>, Purpose)>,
}

/// What an alarm is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// The rest of a command must have arrived.
    Rest,
    /// A peer that has as many calls as it may have is looked at: some may be over.
    Look,
}

/// Why a session ends: with the connection, or because its peer sends what cannot be read.
pub(super) enum Ending {
    Wire(End),
    Malformed(Malformed),
}

impl From<End> for Ending {
    fn from(end: End) -> Self {
        Self::Wire(end)
    }
}

impl From<Malformed> for Ending {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

fn max_size(worker: &Worker) -> usize {
    worker.config.max_payload.saturating_add(FIELDS)
}

fn result<T>(flow: ControlFlow<End, T>) -> Result<T, End> {
    match flow {
        ControlFlow::Continue(value) => Ok(value),
        ControlFlow::Break(end) => Err(end),
    }
}

impl Wire {
    pub(super) fn websocket(
        worker: &Worker,
        connection: Connection,
        already_read: Vec<u8>,
    ) -> Self {
        let transport = Transport::with_inbox(connection, already_read, max_size(worker));
        let link = Box::new(Link::new(transport, worker.config.timeouts.ping));
        let alarm = Box::pin(sleep_until(link.heartbeat.next()));
        Self::Websocket(link, alarm)
    }

    /// Reads something. Pings a websocket when that is due.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        commands: &mut Commands,
    ) -> Poll<Result<(), End>> {
        match self {
            Self::Websocket(link, alarm) => poll_link(link, alarm.as_mut(), worker, commands, cx),
            Self::Stream(connection, _) => {
                Poll::Ready(match ready!(commands.poll_fill(connection, cx)) {
                    Ok(0) => Err(End::ClosedByClient),
                    Ok(_) => Ok(()),
                    Err(_) => Err(End::Broken),
                })
            }
        }
    }

    /// A peer that is not read is not silent.
    fn is_not_read(&mut self) {
        if let Self::Websocket(link, _) = self {
            link.heartbeat.received(Instant::now());
        }
    }

    fn has_output(&self, outgoing: &Outgoing) -> bool {
        match self {
            Self::Websocket(link, _) => {
                !outgoing.is_empty() || link.transport.has_control(outgoing)
            }
            Self::Stream(_, needs_flush) => !outgoing.is_empty() || *needs_flush,
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        outgoing: &mut Outgoing,
    ) -> Poll<Result<(), End>> {
        match self {
            Self::Websocket(link, _) => match link.poll_write(cx, outgoing) {
                ControlFlow::Continue(polled) => polled.map(Ok),
                ControlFlow::Break(end) => Poll::Ready(Err(end)),
            },
            Self::Stream(connection, needs_flush) => {
                let written = ready!(poll_write(cx, outgoing, connection, needs_flush));
                Poll::Ready(result(broken(written.map_err(Into::into))))
            }
        }
    }
}

impl Wire {
    /// Writes what waits, and closes the connection.
    async fn close(self, mut outgoing: Outgoing, end: &End) {
        match self {
            _ if matches!(end, End::Broken | End::Stuck) => {}
            Self::Websocket(link, _) => {
                let mut transport = link.transport;
                write_what_fits(&mut transport, &mut outgoing).await;
                outgoing.drop_unstarted();
                close(transport, outgoing, end.close_frame(None)).await;
            }
            Self::Stream(mut connection, mut needs_flush) => {
                let writing =
                    poll_fn(|cx| poll_write(cx, &mut outgoing, &mut connection, &mut needs_flush));
                let _ = timeout(CLOSE_TIMEOUT, writing).await;
                let _ = connection.shutdown().await;
            }
        }
    }
}

/// Writes everything that waits to a stream.
fn poll_write(
    cx: &mut Context<'_>,
    outgoing: &mut Outgoing,
    connection: &mut Connection,
    needs_flush: &mut bool,
) -> Poll<io::Result<()>> {
    while !outgoing.is_empty() {
        ready!(outgoing.poll_write(cx, connection))?;
        *needs_flush = true;
    }
    outgoing.shrink();
    if *needs_flush {
        // TLS may still buffer some bytes.
        ready!(Pin::new(connection).poll_flush(cx))?;
        *needs_flush = false;
    }
    Poll::Ready(Ok(()))
}

/// Reads a message of a websocket.
fn poll_link(
    link: &mut Link,
    alarm: Pin<&mut Sleep>,
    worker: &Worker,
    commands: &mut Commands,
    cx: &mut Context<'_>,
) -> Poll<Result<(), End>> {
    result(link.poll_alarm(cx, alarm))?;
    let mut has_read = false;
    loop {
        match link.transport.next_received()? {
            Some(Received::Text) => {
                let Some(inbox) = link.transport.inbox() else { continue };
                let text = inbox.text()?.unwrap_or_default();
                let length = text.len();
                commands.push(text.as_bytes());
                inbox.advance(length);
                return Poll::Ready(Ok(()));
            }
            Some(Received::Binary) => {
                let why = "commands are text: JSON";
                return Poll::Ready(Err(End::violation(CloseCode::Unsupported, why)));
            }
            Some(Received::Control(Message::Close(_))) => {
                return Poll::Ready(Err(End::ClosedByClient));
            }
            Some(Received::Control(Message::Pong(echo))) => measure(worker, &echo),
            Some(Received::Control(_)) => {}
            // The time for the rest of a frame begins anew.
            None if has_read => return Poll::Ready(Ok(())),
            None => {
                ready!(link.transport.poll_fill(cx))?;
                link.heartbeat.received(Instant::now());
                has_read = true;
            }
        }
    }
}

impl Session {
    pub(super) fn new(client: Client, wire: Wire) -> Box<Self> {
        debug!(peer = %client.peer, "drs");
        let worker = Arc::clone(&client.worker);
        Box::new(Self {
            wire,
            commands: Commands::new(max_size(&worker)),
            exchange: Exchange::new(client),
            outgoing: Outgoing::default(),
            worker,
            waker: RemoteWaker::default(),
            permit: None,
            arrived: None,
            alarm: None,
        })
    }

    /// Handles what the address of the peer names. What is refused is told without a key.
    pub(super) fn handle(&mut self, serve: &[String], subscribe: &[String]) {
        let Self { exchange, outgoing, worker, .. } = self;
        let mut output = Output::new(outgoing, &worker.inflight, exchange.client.is_websocket);
        let served = serve.iter().map(|name| exchange.serve(name)).collect::<Vec<_>>();
        let followed = subscribe.iter().map(|name| exchange.subscribe(name, None).map(drop));
        for failure in served.into_iter().chain(followed).filter_map(Result::err) {
            output.command(None, failure.action, Some(&failure.body()), None);
        }
    }

    /// Serves the peer until the connection ends.
    pub(super) async fn serve(mut self: Box<Self>) {
        let Err(ending) = self.run().await;
        // Boxed, so that the memory of a session does not include the close.
        Box::pin(self.end(ending)).await;
    }

    async fn run(&mut self) -> Result<Infallible, Ending> {
        loop {
            let is_held_up = self.begin_commands()?;
            self.set_alarm(is_held_up)?;
            self.exchange.count();
            poll_fn(|cx| self.poll(cx, is_held_up)).await?;
        }
    }

    /// Writes and reads, until there is something to do.
    fn poll(&mut self, cx: &mut Context<'_>, is_held_up: bool) -> Poll<Result<(), Ending>> {
        let Self { wire, commands, exchange, outgoing, worker, waker, alarm, .. } = self;
        if worker.tasks.stop.is_draining() {
            return Poll::Ready(Err(End::Drain.into()));
        }
        let mut is_ready = false;
        let is_blocked = outgoing.len() >= ENOUGH;
        let mut output = Output::new(outgoing, &worker.inflight, exchange.client.is_websocket);
        is_ready |= waker.poll(cx, |cx| exchange.poll(cx, is_blocked, &mut output)).is_ready();
        drop(output);
        // Reading goes on when nothing can be written: a peer may have to write before it reads.
        if is_held_up {
            wire.is_not_read();
        } else if let Poll::Ready(read) = wire.poll_read(cx, worker, commands) {
            read?;
            is_ready = true;
        }
        if wire.has_output(outgoing) {
            let before = outgoing.len();
            let _ = wire.poll_write(cx, outgoing)?;
            is_ready |= outgoing.len() < before;
        }
        if let Some((time, purpose)) = alarm
            && time.as_mut().poll(cx).is_ready()
        {
            match purpose {
                Purpose::Rest => return Poll::Ready(Err(Malformed::Unfinished.into())),
                Purpose::Look => exchange.forget_over(),
            }
            *alarm = None;
            is_ready = true;
        }
        if is_ready { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Begins the commands that have arrived, as far as the limits allow. Returns whether some have to wait.
    fn begin_commands(&mut self) -> Result<bool, Malformed> {
        let Self { commands, exchange, outgoing, worker, .. } = self;
        let mut output = Output::new(outgoing, &worker.inflight, exchange.client.is_websocket);
        let is_held_up = loop {
            if !exchange.may_begin(output.waiting()) {
                break commands.unfinished() > 0;
            }
            match commands.next()? {
                Some(command) => exchange.begin(commands.get(command), &mut output)?,
                None => break false,
            }
        };
        drop(output);
        exchange.announce();
        Ok(is_held_up)
    }

    /// Frees what is not needed, and decides when to look again: at a command that does not arrive, or at a peer that does
    /// not answer.
    fn set_alarm(&mut self, is_held_up: bool) -> Result<(), Malformed> {
        let mut memory = self.commands.rest();
        let mut in_inbox = 0;
        if let Wire::Websocket(link, _) = &mut self.wire
            && let Some(inbox) = link.transport.inbox()
        {
            inbox.rest();
            memory += inbox.memory();
            in_inbox = inbox.unfinished();
        }
        let unfinished = self.commands.unfinished() + in_inbox;
        if memory <= Inflight::SMALL {
            self.permit = None;
        } else if is_held_up {
            // Some of it has been carried out, so it is not refused.
            self.worker.inflight.overdraw(&mut self.permit, memory);
        } else if !self.worker.inflight.reserve(&mut self.permit, memory, Inflight::SMALL) {
            return Err(Malformed::NoMemory);
        }
        let arrived = (unfinished > 0 && !is_held_up).then_some(self.commands.total() + in_inbox);
        let purpose = match arrived {
            None if !self.exchange.is_full() => None,
            None => Some((LOOK_AGAIN, Purpose::Look)),
            Some(_) => Some((self.worker.config.timeouts.body, Purpose::Rest)),
        };
        let is_same = self.arrived == arrived
            && self.alarm.as_ref().map(|alarm| alarm.1) == purpose.map(|(_, purpose)| purpose);
        if !is_same {
            self.alarm = purpose.map(|(time, purpose)| (Box::pin(sleep(time)), purpose));
        }
        self.arrived = arrived;
        Ok(())
    }

    /// Ends the session: answers what has begun if the server stops, says what was malformed, and closes the connection.
    pub(super) async fn end(mut self: Box<Self>, ending: Ending) {
        let Self { exchange, outgoing, worker, .. } = &mut *self;
        let (end, why) = match ending {
            Ending::Wire(end) => {
                count(worker, &end);
                let why = match &end {
                    End::Violation(_, why) => Some(why.to_string()),
                    _ => None,
                };
                (end, why)
            }
            Ending::Malformed(malformed) => {
                worker.metrics.refusal(malformed.code());
                let end = End::violation(CloseCode::Policy, "malformed command");
                (end, Some(malformed.to_string()))
            }
        };
        if let Some(why) = why {
            let failure = Failure::exception(why);
            let mut output = Output::new(outgoing, &worker.inflight, exchange.client.is_websocket);
            output.command(None, failure.action, Some(&failure.body()), None);
        }
        debug!(peer = %exchange.client.peer, ?end, "drs ends");
        if matches!(end, End::Drain) {
            self.drain().await;
        }
        self.exchange.count();
        let Self { wire, exchange, outgoing, .. } = *self;
        // The calls that it has go to others now.
        drop(exchange);
        wire.close(outgoing, &end).await;
    }

    /// Answers what has begun.
    async fn drain(&mut self) {
        let Self { wire, exchange, outgoing, worker, .. } = self;
        let is_websocket = exchange.client.is_websocket;
        exchange.drain(&mut Output::new(outgoing, &worker.inflight, is_websocket));
        poll_fn(|cx| {
            let mut output = Output::new(outgoing, &worker.inflight, is_websocket);
            let _ = exchange.poll(cx, false, &mut output);
            drop(output);
            match wire.poll_write(cx, outgoing) {
                Poll::Ready(Ok(())) if !exchange.is_drained() => Poll::Pending,
                written => written.map(drop),
            }
        })
        .await;
    }
}
