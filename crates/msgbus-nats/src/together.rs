//! What is published while others wait for the stream to acknowledge their messages is sent together: to send a message by
//! itself costs the server, the connection and this process several times as much.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    time::Duration,
};

use async_nats::{
    Message, PublishErrorKind, StatusCode, Subject, Subscriber,
    jetstream::{publish::PublishAck, response::Response},
};
use futures_util::{StreamExt as _, future::pending};
use msgbus_core::engine::EngineError;
use parking_lot::Mutex;
use tokio::{
    select,
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    connection::{Connection, Known},
    error::refusal,
    publish::{Encoded, Publish},
};

/// How long messages wait for the acknowledgements of those before them, at most: some may never come.
const PATIENCE: Duration = Duration::from_millis(5);
/// The maximum number of messages whose acknowledgements are awaited.
const MAX_UNACKNOWLEDGED: usize = 4096;
/// How many messages of one publish are sent before their acknowledgements are awaited. If the connection breaks, those that
/// were on their way are lost, and others of the same slice may come after them.
const SLICE: usize = 256;
/// How much is sent between looks at what has been acknowledged: messages, and bytes of payload, unless one slice has more.
const ROUND: (usize, usize) = (1024, 1 << 20);

/// The publishes of a stream.
#[derive(Debug)]
pub(crate) struct Together {
    /// Acknowledgements come to subjects that begin with it and end with the number of the message.
    inbox: String,
    queue: Arc<Queue>,
}

/// The publishes that wait to be sent.
#[derive(Debug)]
struct Queue {
    /// `None` when nobody sends any more.
    waiting: Mutex<Option<VecDeque<Publish>>>,
    news: Notify,
}

impl Together {
    pub(crate) fn new(inbox: String) -> Self {
        let waiting = Mutex::new(Some(VecDeque::new()));
        Self { inbox, queue: Arc::new(Queue { waiting, news: Notify::new() }) }
    }

    /// All subjects to which acknowledgements come.
    pub(crate) fn subject(&self) -> String {
        format!("{}.*", self.inbox)
    }

    /// Publishes messages, in the order of the calls, whether or not somebody waits for the answer.
    pub(crate) fn publish(&self, publish: Publish) {
        if let Some(waiting) = &mut *self.queue.waiting.lock() {
            waiting.push_back(publish);
        }
        self.queue.news.notify_one();
    }

    /// Sends, and hears the acknowledgements, as long as there is the connection.
    pub(crate) async fn run(connection: Weak<Connection>, acknowledgements: Subscriber) {
        const CHUNK: usize = 256;
        let Some(queue) = connection.upgrade().map(|first| Arc::clone(&first.together.queue))
        else {
            return;
        };
        let mut acknowledgements = acknowledgements.ready_chunks(CHUNK);
        let mut sender = Sender::new(Arc::clone(&queue));
        loop {
            let (can_send, patience) = (sender.has_room(), sender.patience());
            let chunk = select! {
                biased;
                chunk = acknowledgements.next() => chunk,
                () = sender.look() => Some(Vec::new()),
                () = queue.news.notified(), if can_send => Some(Vec::new()),
                () = patience => Some(Vec::new()),
            };
            let (Some(chunk), Some(connection)) = (chunk, connection.upgrade()) else { return };
            let has_heard_all = chunk.len() < CHUNK;
            for message in chunk {
                sender.hear(&message, &connection);
            }
            if has_heard_all {
                sender.give_up(&connection);
            }
            if sender.has_room() {
                sender.send(&connection).await;
            }
        }
    }
}

impl Drop for Together {
    fn drop(&mut self) {
        // Who sends may wait for it.
        self.queue.news.notify_one();
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.waiting.lock().as_ref().is_none_or(VecDeque::is_empty)
    }

    /// Takes what is sent next.
    fn next(&self, room: usize) -> Vec<Publish> {
        let (mut taken, mut count, mut bytes) = (Vec::new(), 0, 0);
        let mut waiting = self.waiting.lock();
        let Some(waiting) = &mut *waiting else { return taken };
        while let Some(publish) = waiting.front() {
            let slice = publish.messages.as_slice().iter().take(SLICE);
            count += slice.len();
            bytes += slice.map(|(_, payload)| payload.len()).sum::<usize>();
            if !taken.is_empty() && (count > room.min(ROUND.0) || bytes > ROUND.1) {
                break;
            }
            taken.extend(waiting.pop_front());
        }
        taken
    }

    /// Takes all, or those that have waited for too long, which are at the front.
    fn take_since(&self, limit: Option<Instant>) -> Vec<Publish> {
        let mut waiting = self.waiting.lock();
        let Some(waiting) = &mut *waiting else { return Vec::new() };
        let is_taken = |publish: &Publish| limit.is_none_or(|limit| publish.since <= limit);
        let count = waiting.iter().take_while(|publish| is_taken(publish)).count();
        waiting.drain(..count).collect()
    }
}

/// Sends what is published.
struct Sender {
    queue: Arc<Queue>,
    /// What is not acknowledged, by the numbers of the messages. Those that are done wait for those before them.
    slices: VecDeque<Slice>,
    /// The number of the next message.
    next: u64,
    /// How many messages are not acknowledged.
    open: usize,
    /// When something was sent last.
    last: Instant,
    /// When it was looked last what is not acknowledged any more.
    looked: Instant,
    /// Looks for the stream.
    looking: Option<JoinHandle<Result<Arc<Known>, EngineError>>>,
    /// Why there is no stream.
    missing: Option<EngineError>,
}

/// Messages of one publish that were sent together.
struct Slice {
    /// The number of its first message.
    first: u64,
    /// A bit for each message that is not acknowledged.
    open: [u64; SLICE / 64],
    sent: Instant,
    /// How many connections there had been.
    connects: u64,
    /// `None` when the slice is done.
    publish: Option<Publish>,
}

impl Sender {
    fn new(queue: Arc<Queue>) -> Self {
        let slices = VecDeque::new();
        let (last, looked) = (Instant::now(), Instant::now());
        Self { queue, slices, next: 0, open: 0, last, looked, looking: None, missing: None }
    }

    /// Whether messages are sent at once.
    fn has_room(&self) -> bool {
        self.open == 0 || self.open < MAX_UNACKNOWLEDGED && self.last.elapsed() >= PATIENCE
    }

    /// Ready when it is known where the stream is, if that was asked.
    async fn look(&mut self) {
        let Some(looking) = &mut self.looking else { return pending().await };
        let found = looking.await;
        self.looking = None;
        self.missing = found.unwrap_or(Err(EngineError::Closed)).err();
    }

    /// Ready when it is time to look whether acknowledgements will still come.
    fn patience(&self) -> impl Future<Output = ()> + use<> {
        let is_idle = self.open == 0 && self.queue.is_empty();
        async move {
            if is_idle {
                pending::<()>().await;
            }
            sleep(PATIENCE).await;
        }
    }

    /// Sends some of what waits.
    async fn send(&mut self, connection: &Arc<Connection>) {
        if self.queue.is_empty() {
            // Who comes later may find it.
            self.missing = None;
            return;
        }
        match self.stream(connection) {
            Some(Ok(known)) => {
                let room = MAX_UNACKNOWLEDGED.saturating_sub(self.open);
                for publish in self.queue.next(room) {
                    self.send_slice(publish, &known, connection).await;
                }
                if self.has_room() {
                    // All that was taken is over.
                    self.queue.news.notify_one();
                }
            }
            Some(Err(error)) => refuse(self.queue.take_since(None), error, connection),
            None => {}
        }
    }

    /// Where to send. `None` if it is being looked for.
    fn stream(&mut self, connection: &Arc<Connection>) -> Option<Result<Arc<Known>, EngineError>> {
        if let Some(error) = self.missing.take().or(connection.check().err()) {
            return Some(Err(error));
        }
        if let Some(known) = connection.current() {
            return Some(Ok(known));
        }
        self.looking.get_or_insert_with(|| {
            let connection = Arc::clone(connection);
            tokio::spawn(async move { connection.stream().await })
        });
        None
    }

    async fn send_slice(&mut self, mut publish: Publish, known: &Arc<Known>, on: &Connection) {
        let (subject, limit) = (publish.subject.clone(), on.options.timeout);
        if on.refusals.is_refused(&subject) {
            publish.fail(EngineError::Denied);
            return publish.finish(on);
        }
        publish.send_to(known);
        let first = self.next;
        let mut slice = Slice {
            first,
            open: [0; 4],
            sent: Instant::now(),
            connects: known.connects,
            publish: None,
        };
        while self.next < first + SLICE as u64 && !publish.is_over() {
            let Some(message) = publish.messages.next() else { break };
            // Without a connection, the client has room for some.
            let sending = send(on, subject.clone(), self.next, message);
            match timeout_at(slice.sent + limit, sending).await.unwrap_or(Err(EngineError::Busy)) {
                Ok(()) => {
                    slice.set_open(self.next - first, true);
                    self.open += 1;
                }
                Err(error) => publish.fail(error),
            }
            self.next += 1;
        }
        slice.sent = Instant::now();
        self.last = slice.sent;
        slice.publish = Some(publish);
        self.slices.push_back(slice);
        self.end(self.slices.len() - 1, on);
    }

    fn hear(&mut self, message: &Message, connection: &Connection) {
        let number = message.subject.rsplit('.').next().and_then(|number| number.parse().ok());
        let Some(number): Option<u64> = number else { return };
        let after = self.slices.partition_point(|slice| slice.first <= number);
        let Some(index) = after.checked_sub(1) else { return };
        let slice = &mut self.slices[index];
        // Those that were given up are late.
        if !slice.set_open(number - slice.first, false) {
            return;
        }
        self.open -= 1;
        if let Some(publish) = &mut slice.publish {
            match acknowledgement(message) {
                Ok(ack) => publish.acknowledge(&ack),
                Err(error) => publish.fail(error),
            }
        }
        self.end(index, connection);
        self.forget();
    }

    /// Now and then, ends what is not acknowledged any more.
    fn give_up(&mut self, connection: &Connection) {
        let now = Instant::now();
        if now.duration_since(self.looked) < PATIENCE {
            return;
        }
        self.looked = now;
        let (connects, limit) = (connection.connects(), connection.options.timeout);
        for index in 0..self.slices.len() {
            let slice = &mut self.slices[index];
            let is_over = slice.connects != connects || now.duration_since(slice.sent) >= limit;
            let Some(publish) = &mut slice.publish else { continue };
            if is_over || connection.refusals.is_refused_since(&publish.subject, slice.sent) {
                publish.fail(EngineError::Unknown);
                self.open -= slice.count();
                slice.open = [0; 4];
                self.end(index, connection);
            }
        }
        self.forget();
        if let Some(limit) = now.checked_sub(limit) {
            let error = match self.missing {
                Some(error) => error,
                None if self.looking.is_some() => EngineError::Unavailable,
                None => EngineError::Busy,
            };
            refuse(self.queue.take_since(Some(limit)), error, connection);
        }
    }

    /// Goes on with a publish if one of its slices is acknowledged.
    fn end(&mut self, index: usize, connection: &Connection) {
        let slice = &mut self.slices[index];
        if slice.count() > 0 {
            return;
        }
        let Some(mut publish) = slice.publish.take() else { return };
        if publish.is_over() {
            publish.finish(connection);
        } else {
            publish.since = Instant::now();
            if let Some(waiting) = &mut *self.queue.waiting.lock() {
                waiting.push_front(publish);
            }
            self.queue.news.notify_one();
        }
    }

    fn forget(&mut self) {
        while self.slices.front().is_some_and(|slice| slice.publish.is_none()) {
            self.slices.pop_front();
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // Nobody sends them.
        let waiting = self.queue.waiting.lock().take();
        drop(waiting);
    }
}

impl Slice {
    /// Returns whether that is another value. Numbers of others are of no message here.
    fn set_open(&mut self, number: u64, is_open: bool) -> bool {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        let Some(bits) = self.open.get_mut(number / 64) else { return false };
        let (before, bit) = (*bits, 1 << (number % 64));
        *bits = if is_open { before | bit } else { before & !bit };
        *bits != before
    }

    fn count(&self) -> usize {
        self.open.iter().map(|bits| bits.count_ones() as usize).sum()
    }
}

fn refuse(publishes: Vec<Publish>, error: EngineError, connection: &Connection) {
    for mut publish in publishes {
        publish.fail(error);
        publish.finish(connection);
    }
}

/// Sends a message, so that it is acknowledged by its number.
async fn send(
    connection: &Connection,
    subject: Subject,
    number: u64,
    (headers, payload): Encoded,
) -> Result<(), EngineError> {
    let (client, reply) = (&connection.client, format!("{}.{number}", connection.together.inbox));
    let sent = match headers {
        Some(headers) => {
            client.publish_with_reply_and_headers(subject, reply, headers, payload).await
        }
        None => client.publish_with_reply(subject, reply, payload).await,
    };
    sent.map_err(|error| match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => {
            EngineError::TooLarge { limit: client.max_payload() as u64 }
        }
        _ => EngineError::Unavailable,
    })
}

/// What the stream has said.
fn acknowledgement(message: &Message) -> Result<PublishAck, EngineError> {
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(EngineError::Unavailable);
    }
    // A refusal has 0 instead of a sequence.
    let ack = serde_json::from_slice::<PublishAck>(&message.payload).ok();
    if let Some(ack) = ack.filter(|ack| ack.sequence > 0) {
        return Ok(ack);
    }
    match serde_json::from_slice::<Response<PublishAck>>(&message.payload) {
        Ok(Response::Err { error }) => Err(refusal(&error)),
        _ => Err(EngineError::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_answers_to_one_message_count_once() {
        let (sent, connects, publish) = (Instant::now(), 1, None);
        let mut slice = Slice { first: 0, open: [0; 4], sent, connects, publish };
        assert!(slice.set_open(0, true) && slice.set_open(255, true));
        assert_eq!(slice.count(), 2);
        assert!(slice.set_open(255, false) && !slice.set_open(255, false));
        assert!(!slice.set_open(256, false) && !slice.set_open(7, false));
        assert_eq!(slice.count(), 1);
    }
}
