//! Sends what waits, in rounds, and hears what becomes of it.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, future::pending, stream::ReadyChunks};
use msgbus_core::engine::EngineError;
use tokio::{
    select,
    task::{JoinHandle, unconstrained},
    time::{Instant, sleep, timeout_at},
};

use super::{
    Pending, SLICE,
    in_flight::InFlight,
    line::{Found, Line},
    queue::Queue,
};
use crate::{connection::Connection, refusals::lately};

/// How long messages wait for the acknowledgements of those before them, at most: some may never come.
const PATIENCE: Duration = Duration::from_millis(5);
/// The maximum number of acknowledgements that are heard at a time.
const CHUNK: usize = 256;
/// The maximum number of messages in flight.
const MAX_IN_FLIGHT: usize = 4096;

/// Sends what waits in a queue, on one connection.
pub(super) struct Sender<'a> {
    queue: &'a Queue,
    line: Line,
    in_flight: InFlight,
    search: Search,
    /// When something was sent last.
    sent: Instant,
    /// When it was checked last what will not be acknowledged any more.
    checked: Instant,
    /// Whether something was acknowledged.
    was_useful: bool,
    /// Whether nothing more is sent, because the connection is of no use.
    is_over: bool,
}

impl<'a> Sender<'a> {
    pub(super) fn new(queue: &'a Queue, line: Line) -> Self {
        let now = Instant::now();
        let (in_flight, search) = (InFlight::default(), Search(None));
        let (was_useful, is_over) = (false, false);
        Self { queue, line, in_flight, search, sent: now, checked: now, was_useful, is_over }
    }

    /// Runs as long as there is the engine and its connection is of use. On a connection of the engine itself, everything is
    /// refused while it is of none. Returns whether something was acknowledged.
    pub(super) async fn run(mut self, connection: &Weak<Connection>) -> bool {
        let Some(acknowledgements) = self.line.acknowledgements().await else { return false };
        let mut acknowledgements = acknowledgements.ready_chunks(CHUNK);
        loop {
            let (can_send, tick) = (self.can_send(), self.tick());
            let (mut heard, mut failure) = (Some(Vec::new()), None);
            select! {
                biased;
                chunk = next_chunk(&mut acknowledgements) => heard = chunk,
                found = self.search.found() => match found {
                    Ok(found) => self.line.set_found(found),
                    Err(error) => failure = Some(error),
                },
                () = self.queue.news(), if can_send => {}
                () = tick => {}
            }
            let (Some(heard), Some(connection)) = (heard, connection.upgrade()) else {
                return self.was_useful;
            };
            self.was_useful |= !heard.is_empty();
            let has_heard_all = heard.len() < CHUNK;
            for message in heard {
                if let Some(publish) = self.in_flight.hear(&message, self.line.connects()) {
                    self.go_on(publish, &connection);
                }
            }
            if let Some(error) = failure {
                // Who comes later may find the stream.
                self.turn_away(error, &connection);
            }
            if has_heard_all {
                self.give_up(&connection);
            }
            if self.can_send() {
                self.send(&connection).await;
            }
            if self.is_over && self.in_flight.count() == 0 {
                return self.was_useful;
            }
        }
    }

    /// Whether what waits is sent at once.
    fn can_send(&self) -> bool {
        let count = self.in_flight.count();
        let is_time = count == 0 || count < MAX_IN_FLIGHT && self.sent.elapsed() >= PATIENCE;
        is_time && !self.is_over
    }

    /// Ready when it is time to look at what waits and what is in flight.
    fn tick(&self) -> impl Future<Output = ()> + use<> {
        let is_idle = self.in_flight.count() == 0 && self.queue.is_empty();
        async move {
            if is_idle {
                pending::<()>().await;
            }
            sleep(PATIENCE).await;
        }
    }

    /// Sends some of what waits.
    async fn send(&mut self, connection: &Arc<Connection>) {
        if let Err(error) = connection.check().and(self.line.check()) {
            return self.turn_away(error, connection);
        }
        if self.queue.is_empty() || self.queue.has_handed_over() {
            return;
        }
        let Some(found) = self.line.stream(connection) else {
            return self.search.begin(|| self.line.find(Arc::clone(connection)));
        };
        let room = MAX_IN_FLIGHT.saturating_sub(self.in_flight.count());
        let limit = Instant::now() + connection.options.timeout;
        for publish in self.queue.next_round(room) {
            self.send_slice(publish, &found, connection, limit).await;
        }
        if self.can_send() {
            // All that was taken is over.
            self.queue.wake();
        }
    }

    /// Sends what is next of a publish. `limit`: the end of the round.
    async fn send_slice(
        &mut self,
        mut publish: Pending,
        found: &Found,
        on: &Connection,
        limit: Instant,
    ) {
        let mut slice = self.in_flight.slice(found.connects);
        if on.refusals.is_refused(&publish.subject, lately(slice.sent)) {
            publish.fail(EngineError::Denied);
            return publish.finish(on);
        }
        publish.begin(&found.known);
        for _ in 0..SLICE {
            let Some(message) = publish.next_message() else { break };
            let number = self.in_flight.number();
            // The client has room for some.
            let sending = self.line.send(publish.subject.clone(), number, message);
            match timeout_at(limit, sending).await.unwrap_or(Err(EngineError::Busy)) {
                Ok(()) => slice.open(number),
                Err(error) => publish.fail(error),
            }
        }
        slice.sent = Instant::now();
        self.sent = slice.sent;
        if let Some(publish) = self.in_flight.add(slice, publish) {
            self.go_on(publish, on);
        }
    }

    /// Answers a publish of which nothing is in flight, or sends what is left of it next.
    fn go_on(&mut self, mut publish: Pending, connection: &Connection) {
        if publish.is_over() {
            match publish.lost_stream() {
                Some(known) if self.line.is_of_engine() => connection.forget(known),
                Some(_) => self.is_over = true,
                None => {}
            }
            publish.finish(connection);
        } else {
            publish.since = Instant::now();
            self.queue.push_front(publish);
        }
    }

    /// Now and then, ends what will not be acknowledged any more, and what has waited for too long.
    fn give_up(&mut self, connection: &Connection) {
        let now = Instant::now();
        if now.duration_since(self.checked) < PATIENCE {
            return;
        }
        self.checked = now;
        let (connects, limit) = (self.line.connects(), connection.options.timeout);
        let mut is_silent = false;
        let given_up = self.in_flight.give_up(|slice, publish| {
            let is_late = now.duration_since(slice.sent) >= limit;
            is_silent |= is_late;
            slice.connects != connects
                || is_late
                || connection.refusals.is_refused(&publish.subject, slice.sent)
        });
        self.is_over |= is_silent && !self.line.is_of_engine();
        refuse(given_up, EngineError::Unknown, connection);
        if let Some(limit) = now.checked_sub(limit) {
            let error =
                if self.search.is_on() { EngineError::Unavailable } else { EngineError::Busy };
            refuse(self.queue.take_older(limit), error, connection);
        }
    }

    /// Nothing that waits can be sent here now.
    fn turn_away(&mut self, error: EngineError, connection: &Connection) {
        if self.line.is_of_engine() {
            refuse(self.queue.take_all(), error, connection);
        } else {
            self.is_over = true;
        }
    }
}

fn refuse(
    publishes: impl IntoIterator<Item = Pending>,
    error: EngineError,
    connection: &Connection,
) {
    for mut publish in publishes {
        publish.fail(error);
        publish.finish(connection);
    }
}

/// Looks for the stream, in a task of its own.
struct Search(Option<JoinHandle<Result<Found, EngineError>>>);

impl Search {
    fn begin<F>(&mut self, find: impl FnOnce() -> F)
    where
        F: Future<Output = Result<Found, EngineError>> + Send + 'static,
    {
        self.0.get_or_insert_with(|| tokio::spawn(find()));
    }

    fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Ready when it is over, if there is one.
    async fn found(&mut self) -> Result<Found, EngineError> {
        let Some(task) = &mut self.0 else { return pending().await };
        let found = task.await;
        self.0 = None;
        found.unwrap_or(Err(EngineError::Closed))
    }
}

/// All that are ready, up to the maximum: the runtime would end a chunk after 128.
async fn next_chunk<S: Stream + Unpin>(chunks: &mut ReadyChunks<S>) -> Option<Vec<S::Item>> {
    unconstrained(chunks.next()).await
}

#[cfg(test)]
mod tests {
    use futures_util::stream::poll_fn;
    use tokio::sync::mpsc;

    use super::*;

    /// Otherwise what is acknowledged is given up when the sender has been held up for too long.
    #[tokio::test]
    async fn a_chunk_has_all_that_are_ready() {
        let (sender, mut receiver) = mpsc::channel(1000);
        for number in 0..CHUNK + 200 {
            sender.try_send(number).unwrap();
        }
        let mut chunks = poll_fn(move |cx| receiver.poll_recv(cx)).ready_chunks(CHUNK);
        for expected in [CHUNK, 200] {
            assert_eq!(next_chunk(&mut chunks).await.unwrap().len(), expected);
        }
    }
}
