//! What is published while others wait for the stream to acknowledge their messages is sent together: to send a message by
//! itself costs the server, the connection and this process several times as much.

use std::{
    collections::VecDeque,
    mem::take,
    sync::{Arc, Weak},
    time::Duration,
};

use async_nats::{
    HeaderMap, Message, PublishErrorKind, StatusCode, Subject, Subscriber,
    jetstream::{publish::PublishAck, response::Response},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, future::pending};
use msgbus_core::engine::EngineError;
use parking_lot::Mutex;
use tokio::{
    select,
    sync::{Notify, oneshot},
    time::{Instant, sleep, timeout_at},
};

use crate::{connection::Connection, error::refusal};

/// How long messages wait for the acknowledgements of those before them, at most: some may never come.
const PATIENCE: Duration = Duration::from_millis(5);
/// The maximum number of messages whose acknowledgements are awaited, unless one publish alone has more.
const MAX_UNACKNOWLEDGED: usize = 4096;

/// A message as it is sent.
pub(crate) type Encoded = (Option<HeaderMap>, Bytes);

/// The publishes that wait to be sent.
#[derive(Debug)]
pub(crate) struct Together {
    /// Acknowledgements come to subjects that begin with it and end with the number of the message.
    inbox: String,
    waiting: Mutex<VecDeque<Waiting>>,
    news: Arc<Notify>,
}

#[derive(Debug)]
struct Waiting {
    subject: Subject,
    messages: Vec<Encoded>,
    since: Instant,
    answer: oneshot::Sender<Outcome>,
}

/// What has become of messages.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Outcome {
    pub(crate) acknowledged: Option<Acknowledged>,
    /// Why others are not acknowledged. What nobody knows of one of them, nobody knows of all.
    pub(crate) failure: Option<EngineError>,
}

/// The sequences of messages that the stream has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Acknowledged {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// The first of those that were not there before.
    pub(crate) first_new: Option<u64>,
}

impl Outcome {
    fn of(error: EngineError) -> Self {
        Self { acknowledged: None, failure: Some(error) }
    }

    fn fail(&mut self, error: EngineError) {
        if error == EngineError::Unknown || self.failure.is_none() {
            self.failure = Some(error);
        }
    }

    fn acknowledge(&mut self, ack: &PublishAck) {
        let (first, last) = (ack.sequence, ack.sequence);
        let first_new = (!ack.duplicate).then_some(first);
        let acknowledged = Some(Acknowledged { first, last, first_new });
        self.add(Self { acknowledged, failure: None });
    }

    /// Adds what has become of others.
    pub(crate) fn add(&mut self, others: Self) {
        if let Some(error) = others.failure {
            self.fail(error);
        }
        self.acknowledged = match (self.acknowledged, others.acknowledged) {
            (Some(own), Some(others)) => Some(Acknowledged {
                first: own.first.min(others.first),
                last: own.last.max(others.last),
                first_new: own.first_new.into_iter().chain(others.first_new).min(),
            }),
            (own, others) => own.or(others),
        };
    }
}

impl Together {
    pub(crate) fn new(inbox: String) -> Self {
        Self { inbox, waiting: Mutex::default(), news: Arc::default() }
    }

    /// All subjects to which acknowledgements come.
    pub(crate) fn subject(&self) -> String {
        format!("{}.*", self.inbox)
    }

    /// Publishes messages. They are sent in the order of the calls, whether or not the outcome is waited for.
    pub(crate) async fn publish(&self, subject: Subject, messages: Vec<Encoded>) -> Outcome {
        let (answer, outcome) = oneshot::channel();
        let since = Instant::now();
        self.waiting.lock().push_back(Waiting { subject, messages, since, answer });
        self.news.notify_one();
        outcome.await.unwrap_or_else(|_| Outcome::of(EngineError::Closed))
    }

    /// Sends, and hears the acknowledgements, as long as there is the connection.
    pub(crate) async fn run(connection: Weak<Connection>, acknowledgements: Subscriber) {
        let Some(news) = connection.upgrade().map(|first| Arc::clone(&first.together.news)) else {
            return;
        };
        let mut acknowledgements = acknowledgements.ready_chunks(256);
        let mut sent = Sent::default();
        loop {
            let chunk = select! {
                biased;
                chunk = acknowledgements.next() => chunk,
                () = news.notified(), if sent.has_room() => Some(Vec::new()),
                () = sent.patience() => Some(Vec::new()),
            };
            let (Some(chunk), Some(connection)) = (chunk, connection.upgrade()) else { return };
            for message in chunk {
                sent.hear(&message);
            }
            sent.give_up(&connection);
            if sent.has_room() {
                sent.send(&connection).await;
            }
        }
    }

    /// Takes what is sent next.
    fn next(&self, room: usize, limit: Duration) -> Vec<Waiting> {
        let now = Instant::now();
        let (mut waiting, mut count, mut taken) = (self.waiting.lock(), 0, Vec::new());
        while let Some(publish) = waiting.pop_front() {
            // Who waits no longer was told that nobody knows.
            if publish.answer.is_closed() {
                continue;
            }
            if now.duration_since(publish.since) >= limit {
                let _ = publish.answer.send(Outcome::of(EngineError::Busy));
                continue;
            }
            count += publish.messages.len();
            if count > room && !taken.is_empty() {
                waiting.push_front(publish);
                break;
            }
            taken.push(publish);
        }
        taken
    }
}

/// What was sent and is not acknowledged.
#[derive(Debug)]
struct Sent {
    /// By the numbers of their messages. Those that are done wait for those before them.
    publishes: VecDeque<Publish>,
    /// The number of the next message.
    next: u64,
    /// How many messages are not acknowledged.
    open: usize,
    /// When something was sent last.
    last: Instant,
}

#[derive(Debug)]
struct Publish {
    /// The number of its first message.
    first: u64,
    /// How many of its messages are not acknowledged.
    open: usize,
    since: Instant,
    /// How many connections there had been.
    connects: u64,
    outcome: Outcome,
    /// `None` when it is done.
    answer: Option<oneshot::Sender<Outcome>>,
}

impl Default for Sent {
    fn default() -> Self {
        Self { publishes: VecDeque::new(), next: 0, open: 0, last: Instant::now() }
    }
}

impl Sent {
    /// Whether messages are sent at once.
    fn has_room(&self) -> bool {
        self.open == 0 || self.open < MAX_UNACKNOWLEDGED && self.last.elapsed() >= PATIENCE
    }

    /// Ready when it is time to look whether acknowledgements will still come.
    async fn patience(&self) {
        if self.open == 0 {
            pending::<()>().await;
        }
        sleep(PATIENCE).await;
    }

    async fn send(&mut self, connection: &Connection) {
        let room = MAX_UNACKNOWLEDGED - self.open;
        let (connects, limit) = (connection.connects(), connection.options.timeout);
        let since = Instant::now();
        for waiting in connection.together.next(room, limit) {
            let Waiting { subject, messages, answer, .. } = waiting;
            let mut publish = Publish {
                first: self.next,
                open: 0,
                since,
                connects,
                outcome: Outcome::default(),
                answer: Some(answer),
            };
            for message in messages {
                let sending = send(connection, subject.clone(), self.next, message);
                self.next += 1;
                // Without a connection, the client has room for some.
                let sent = timeout_at(since + limit, sending).await;
                if let Err(error) = sent.unwrap_or(Err(EngineError::Busy)) {
                    publish.outcome.fail(error);
                    break;
                }
                publish.open += 1;
            }
            self.open += publish.open;
            publish.finish();
            self.publishes.push_back(publish);
            self.last = since;
        }
        self.forget();
    }

    fn hear(&mut self, message: &Message) {
        let number = message.subject.rsplit('.').next().and_then(|number| number.parse().ok());
        let Some(number): Option<u64> = number else { return };
        let after = self.publishes.partition_point(|publish| publish.first <= number);
        let publish = after.checked_sub(1).and_then(|index| self.publishes.get_mut(index));
        // Those that were given up are late.
        let Some(publish) = publish.filter(|publish| publish.open > 0) else { return };
        match acknowledgement(message) {
            Ok(ack) => publish.outcome.acknowledge(&ack),
            Err(error) => publish.outcome.fail(error),
        }
        publish.open -= 1;
        self.open -= 1;
        publish.finish();
        self.forget();
    }

    /// Ends the publishes whose acknowledgements do not come any more.
    fn give_up(&mut self, connection: &Connection) {
        let (connects, limit) = (connection.connects(), connection.options.timeout);
        let now = Instant::now();
        let is_over = |publish: &&mut Publish| {
            publish.connects != connects || now.duration_since(publish.since) >= limit
        };
        for publish in self.publishes.iter_mut().take_while(is_over) {
            if publish.open > 0 {
                self.open -= take(&mut publish.open);
                publish.outcome.fail(EngineError::Unknown);
                publish.finish();
            }
        }
        self.forget();
    }

    fn forget(&mut self) {
        while self.publishes.front().is_some_and(|publish| publish.answer.is_none()) {
            self.publishes.pop_front();
        }
    }
}

impl Publish {
    /// Answers if all is known.
    fn finish(&mut self) {
        if self.open == 0
            && let Some(answer) = self.answer.take()
        {
            let _ = answer.send(take(&mut self.outcome));
        }
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
