//! What consumers deliver to the windows of this node. One subscription hears all of it, and one timer watches over it, so an
//! idle window has neither.

use std::{
    collections::HashMap,
    mem::take,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_nats::{
    Message, StatusCode, Subscriber,
    jetstream::{self, message::Info},
};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::{StreamExt as _, future::poll_fn};
use msgbus_core::{
    engine::{Begin, EngineError},
    store::RecoveredMessage,
};
use parking_lot::Mutex;
use tokio::{
    select,
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    connection::{Connection, Known},
    error::request_error,
    history::reader,
    message::decode,
};

/// How many messages a reader asks for at first, and at most at a time. It asks for twice as many each time, unless they are
/// large, and for fewer when they have not come.
const FEW: usize = 4;
const MANY: usize = 500;
/// How many messages all readers together may have asked for before each gets only few. The subscription has room for twice as
/// many. What has no room the client drops, and its reader begins again.
const MOST: usize = 32_768;
/// How many bytes a request brings if messages are as large as those before.
const USUAL_BYTES: usize = 1 << 20;
/// How many bytes a request may bring, for each message, and at most.
const BYTES: usize = 64 << 10;
const MAX_BYTES: usize = 8 << 20;
/// How long the server remembers that it was asked. It removes a consumer that nobody has asked for longer, see [`reader`].
const EXPIRES: Duration = Duration::from_secs(20);
/// After how much silence the server says that it is still there.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// A consumer that was silent for so long is gone.
const SILENCE: Duration = Duration::from_secs(5);

/// Those who read, by the names of their consumers.
#[derive(Debug)]
pub(crate) struct Deliveries {
    /// The server delivers to subjects that begin with it and end with the name of the consumer.
    inbox: String,
    queues: Mutex<HashMap<Arc<str>, Arc<Mutex<Queue>>>>,
    /// How many messages all of them have asked for that have not come.
    asked: AtomicUsize,
    /// There is another connection.
    pub(crate) connected: Arc<Notify>,
}

/// What was delivered to one reader, and what is to come.
#[derive(Debug)]
struct Queue {
    received: Received,
    /// How many messages were asked for, and have not come.
    asked: usize,
    /// How many are asked for next.
    batch: usize,
    /// How many have come.
    count: u64,
    /// Their mean size of late.
    size: usize,
    /// When the consumer was heard last.
    heard: DateTime<Utc>,
    /// How many connections there had been.
    connects: u64,
    max_age: Option<Duration>,
    waker: Option<Waker>,
}

/// What was delivered since it was looked at last.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) messages: Vec<RecoveredMessage>,
    /// The highest number of messages that were still to be delivered, and that after the last message.
    pub(crate) most: u64,
    pub(crate) left: u64,
    /// For how long this process has stood still, at least once.
    pub(crate) stood_still: Duration,
    /// Why nothing comes after the messages.
    pub(crate) failure: Option<EngineError>,
}

impl Deliveries {
    pub(crate) fn new(inbox: String, connected: Arc<Notify>) -> Self {
        Self { inbox, queues: Mutex::default(), asked: AtomicUsize::new(0), connected }
    }

    /// All subjects to which is delivered.
    pub(crate) fn subject(&self) -> String {
        format!("{}.*", self.inbox)
    }

    /// Hears what is delivered, as long as there is the connection.
    pub(crate) async fn run(connection: Weak<Connection>, subscriber: Subscriber) {
        const TICK: Duration = Duration::from_secs(1);
        let Some(first) = connection.upgrade() else { return };
        let connected = Arc::clone(&first.deliveries.connected);
        let mut context = first.context.clone();
        drop(first);
        let mut chunks = subscriber.ready_chunks(256);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut before, mut checked) = (Utc::now(), Utc::now());
        loop {
            let chunk = select! {
                biased;
                chunk = chunks.next() => chunk,
                () = connected.notified() => Some(Vec::new()),
                _ = tick.tick() => Some(Vec::new()),
            };
            let (Some(chunk), Some(connection)) = (chunk, connection.upgrade()) else { return };
            let now = Utc::now();
            let stood_still = since(before, now).saturating_sub(TICK);
            before = now;
            let deliveries = &connection.deliveries;
            // Also if there is no end of messages.
            if chunk.is_empty() || since(checked, now) >= TICK {
                deliveries.check(connection.connects(), now, stood_still);
                checked = now;
            }
            context = deliveries.hear(chunk, now, context);
        }
    }

    /// Takes the context, and gives it back: to clone it for each message costs more than all else here.
    fn hear(
        &self,
        chunk: Vec<Message>,
        now: DateTime<Utc>,
        mut context: jetstream::Context,
    ) -> jetstream::Context {
        let mut wakers = Vec::new();
        let queues = self.queues.lock();
        for message in chunk {
            let message = jetstream::Message { message, context };
            // A message has the subject to which it was published.
            let info = message.info().ok();
            let consumer = info.as_ref().map(|info| info.consumer);
            let consumer = consumer.or_else(|| message.subject.rsplit('.').next());
            // Those of a reader that is gone are late.
            if let Some(queue) = consumer.and_then(|consumer| queues.get(consumer)) {
                let mut queue = queue.lock();
                let asked = queue.asked;
                queue.hear(&message, info.as_ref(), now);
                self.asked.fetch_sub(asked - queue.asked, Relaxed);
                wakers.extend(queue.take_waker());
            }
            context = message.context;
        }
        drop(queues);
        wakers.into_iter().for_each(Waker::wake);
        context
    }

    /// Ends the readers whose consumer is silent, or that have asked through another connection.
    fn check(&self, connects: u64, now: DateTime<Utc>, stood_still: Duration) {
        let mut wakers = Vec::new();
        for queue in self.queues.lock().values() {
            let mut queue = queue.lock();
            queue.received.stood_still = queue.received.stood_still.max(stood_still);
            let is_silent = queue.asked > 0 && since(queue.heard, now) > SILENCE;
            if is_silent || queue.connects != connects {
                queue.received.failure = Some(EngineError::Unavailable);
                wakers.extend(queue.take_waker());
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Also if the clock was set back.
fn since(before: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    (now - before).abs().to_std().unwrap_or_default()
}

impl Queue {
    fn hear(&mut self, message: &Message, info: Option<&Info<'_>>, now: DateTime<Utc>) {
        self.heard = now;
        if self.received.failure.is_some() {
            return;
        }
        let heard = match (message.status, info) {
            // Also if its publisher has given it a status.
            (_, Some(info)) => self.add(message, info),
            // Without this, the loss of a last message would not be noticed before another one comes.
            (Some(StatusCode::IDLE_HEARTBEAT), _)
                if number(message, "Nats-Last-Consumer").is_none_or(|sent| sent <= self.count) =>
            {
                Ok(())
            }
            // A request is over. Since 2.10, the server says so also of one that was given all.
            (Some(StatusCode::TIMEOUT | StatusCode::REQUEST_TERMINATED), _) => {
                unused(message).map(|unused| self.end_request(unused))
            }
            _ => Err(EngineError::Unavailable),
        };
        self.received.failure = heard.err();
    }

    fn add(&mut self, message: &Message, info: &Info<'_>) -> Result<(), EngineError> {
        if info.consumer_sequence != self.count + 1 {
            // What was sent when the connection broke is lost.
            return Err(EngineError::Unavailable);
        }
        // The window does not keep what else was read from the connection.
        let payload = Bytes::copy_from_slice(&message.payload);
        let (id, published, headers) =
            (info.stream_sequence, info.published, message.headers.as_ref());
        self.received.messages.push(decode(id, published, headers, payload, self.max_age));
        (self.received.most, self.received.left) =
            (self.received.most.max(info.pending), info.pending);
        self.count += 1;
        self.size = (15 * self.size + message.length) / 16;
        self.asked = self.asked.saturating_sub(1);
        Ok(())
    }

    /// Asks for more, if there is room for so many. Returns for how many.
    fn ask(&mut self, room: usize) -> usize {
        if self.asked == 0 {
            self.heard = Utc::now();
        }
        let usual = USUAL_BYTES / self.size.max(1);
        let wanted = self.batch.min(usual).max(FEW);
        let count = if wanted <= room { wanted } else { FEW };
        self.asked += count;
        self.batch = (2 * count).min(MANY);
        count
    }

    fn end_request(&mut self, unused: usize) {
        if unused > 0 {
            // At most half of what was asked for last.
            self.batch = (self.batch / 4).max(FEW);
            self.asked = self.asked.saturating_sub(unused);
        }
    }

    fn is_due(&self) -> bool {
        self.asked <= self.batch / 4
    }

    fn has_news(&self) -> bool {
        !self.received.messages.is_empty() || self.received.failure.is_some()
    }

    fn take_waker(&mut self) -> Option<Waker> {
        if self.has_news() || self.is_due() { self.waker.take() } else { None }
    }
}

/// How many messages a request has not been given that is over. An older server may not say that.
fn unused(message: &Message) -> Result<usize, EngineError> {
    let unused = number(message, "Nats-Pending-Messages").map(usize::try_from);
    match unused.transpose() {
        Ok(Some(unused)) => Ok(unused),
        Ok(None) if message.status == Some(StatusCode::TIMEOUT) => Ok(MANY),
        // The consumer is gone.
        _ => Err(EngineError::Unavailable),
    }
}

fn number(message: &Message, header: &str) -> Option<u64> {
    message.headers.as_ref()?.get(header)?.as_str().parse().ok()
}

/// Reads what a consumer of its own delivers.
pub(crate) struct Reader {
    connection: Arc<Connection>,
    consumer: Arc<str>,
    queue: Arc<Mutex<Queue>>,
}

impl Reader {
    /// Makes a consumer that begins at a sequence. Also returns how many messages there are for it.
    pub(crate) async fn open(
        connection: &Arc<Connection>,
        known: &Known,
        subject: String,
        from: u64,
    ) -> Result<(Self, u64), EngineError> {
        let made = known.stream.create_consumer(reader(subject, Begin::Sequence(from))).await;
        let made = made.map_err(|error| request_error(&error))?;
        let info = made.cached_info();
        let queue = Queue {
            received: Received::default(),
            asked: 0,
            batch: FEW,
            count: 0,
            size: 0,
            heard: Utc::now(),
            connects: known.connects,
            max_age: known.max_age,
            waker: None,
        };
        let (queue, connection) = (Arc::new(Mutex::new(queue)), Arc::clone(connection));
        let deliveries = &connection.deliveries;
        let consumer: Arc<str> = info.name.as_str().into();
        deliveries.queues.lock().insert(Arc::clone(&consumer), Arc::clone(&queue));
        Ok((Self { connection, consumer, queue }, info.num_pending))
    }

    /// Ready when something has been delivered.
    pub(crate) async fn ready(&mut self) -> Result<(), EngineError> {
        loop {
            if self.queue.lock().is_due() {
                Box::pin(self.ask()).await?;
            }
            if poll_fn(|cx| self.poll(cx)).await {
                return Ok(());
            }
        }
    }

    /// Waits for more to be delivered, unless few messages can come.
    pub(crate) async fn gather(&self, time: Duration) -> Result<(), EngineError> {
        /// Fewer are not worth the time.
        const WORTH: usize = 32;
        if self.queue.lock().is_due() {
            self.ask().await?;
        }
        if self.queue.lock().asked >= WORTH {
            sleep(time).await;
        }
        Ok(())
    }

    /// What has been delivered.
    pub(crate) fn take(&self) -> Received {
        take(&mut self.queue.lock().received)
    }

    /// Ready also when it is time to ask for more: `false` if nothing has been delivered.
    fn poll(&self, cx: &Context<'_>) -> Poll<bool> {
        let mut queue = self.queue.lock();
        if queue.has_news() {
            return Poll::Ready(true);
        }
        if queue.is_due() {
            return Poll::Ready(false);
        }
        queue.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    async fn ask(&self) -> Result<(), EngineError> {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let Connection { client, deliveries, options, .. } = &*self.connection;
        let room = MOST.saturating_sub(deliveries.asked.load(Relaxed));
        let count = self.queue.lock().ask(room);
        deliveries.asked.fetch_add(count, Relaxed);
        // What a request brings is bounded, whatever the size of messages.
        let request = serde_json::json!({
            "batch": count,
            "max_bytes": (count * BYTES).min(MAX_BYTES).max(self.connection.max_message()),
            "expires": nanos(EXPIRES),
            "idle_heartbeat": nanos(HEARTBEAT),
        });
        let Self { consumer, .. } = self;
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{consumer}", options.stream);
        let inbox = format!("{}.{consumer}", deliveries.inbox);
        let request = request.to_string().into();
        let asked = client.publish_with_reply(subject, inbox, request).await;
        asked.map_err(|error| request_error(&error))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let deliveries = &self.connection.deliveries;
        let queue = deliveries.queues.lock().remove(&*self.consumer);
        // Nobody hears for it from here on.
        deliveries.asked.fetch_sub(self.queue.lock().asked, Relaxed);
        drop(queue);
    }
}

#[cfg(test)]
mod tests {
    use async_nats::{HeaderMap, Subject};

    use super::*;

    fn queue() -> Queue {
        let (received, heard) = (Received::default(), Utc::now());
        let (asked, batch, waker) = (FEW, 2 * FEW, None);
        Queue {
            received,
            asked,
            batch,
            count: 0,
            size: 0,
            heard,
            connects: 1,
            max_age: None,
            waker,
        }
    }

    fn message(status: Option<StatusCode>, header: &str, value: u64) -> Message {
        let mut headers = HeaderMap::new();
        headers.insert(header, value.to_string().as_str());
        let (subject, payload) = (Subject::from("topic"), Bytes::from_static(b"x"));
        let (reply, description) = (None, None);
        Message { subject, reply, payload, headers: Some(headers), status, description, length: 1 }
    }

    fn hear_message(queue: &mut Queue, consumer_sequence: u64) {
        let info = Info {
            domain: None,
            acc_hash: None,
            stream: "msgbus",
            consumer: "reader",
            stream_sequence: 10 * consumer_sequence,
            consumer_sequence,
            delivered: 1,
            pending: 0,
            published: DateTime::UNIX_EPOCH,
            token: None,
        };
        queue.hear(&message(None, "X", 0), Some(&info), Utc::now());
    }

    #[test]
    fn a_message_that_was_lost_is_noticed_at_the_next_one() {
        let mut queue = queue();
        hear_message(&mut queue, 1);
        assert_eq!((queue.received.failure, queue.asked), (None, FEW - 1));
        hear_message(&mut queue, 3);
        assert_eq!(queue.received.failure, Some(EngineError::Unavailable));
        hear_message(&mut queue, 2);
        let ids: Vec<u64> = queue.received.messages.iter().map(|message| message.id).collect();
        assert_eq!(ids, [10], "nothing is delivered after it");
    }

    #[test]
    fn a_last_message_that_was_lost_is_noticed_at_a_heartbeat() {
        let mut queue = queue();
        hear_message(&mut queue, 1);
        let beat = |sent| message(Some(StatusCode::IDLE_HEARTBEAT), "Nats-Last-Consumer", sent);
        queue.hear(&beat(1), None, Utc::now());
        assert_eq!(queue.received.failure, None);
        queue.hear(&beat(2), None, Utc::now());
        assert_eq!(queue.received.failure, Some(EngineError::Unavailable));
    }

    #[test]
    fn what_a_request_was_not_given_is_asked_for_again() {
        let mut queue = queue();
        let over = |status, unused| message(Some(status), "Nats-Pending-Messages", unused);
        queue.hear(&over(StatusCode::REQUEST_TERMINATED, 3), None, Utc::now());
        assert!(queue.is_due() && queue.asked == 1, "{queue:?}");
        assert_eq!(queue.ask(MOST), FEW);
        queue.hear(&message(Some(StatusCode::TIMEOUT), "X", 0), None, Utc::now());
        assert_eq!((queue.asked, queue.received.failure), (0, None), "an older server");
        queue.hear(&message(Some(StatusCode::REQUEST_TERMINATED), "X", 0), None, Utc::now());
        assert_eq!(queue.received.failure, Some(EngineError::Unavailable));
    }

    #[test]
    fn who_gets_much_asks_for_more_if_there_is_room() {
        let (mut queue, mut next) = (queue(), 1);
        for asked in [8, 16, 32, 64, 128, 256, MANY, MANY] {
            while !queue.is_due() {
                hear_message(&mut queue, next);
                next += 1;
            }
            assert_eq!(queue.ask(MOST), asked);
        }
        assert_eq!(queue.ask(MANY - 1), FEW);
    }

    #[test]
    fn a_request_that_was_given_all_does_not_make_the_next_one_smaller() {
        let (mut queue, mut next) = (queue(), 1);
        for asked in [8, 16, 32] {
            while queue.asked > 0 {
                hear_message(&mut queue, next);
                next += 1;
            }
            let over = message(Some(StatusCode::REQUEST_TERMINATED), "Nats-Pending-Messages", 0);
            queue.hear(&over, None, Utc::now());
            assert_eq!(queue.ask(MOST), asked);
        }
        let over = message(Some(StatusCode::REQUEST_TERMINATED), "Nats-Pending-Messages", 1);
        queue.hear(&over, None, Utc::now());
        assert_eq!(queue.ask(MOST), 16, "{queue:?}");
    }

    #[test]
    fn who_gets_large_messages_asks_for_fewer() {
        let mut queue = queue();
        (queue.batch, queue.size) = (MANY, 8 << 10);
        assert_eq!(queue.ask(MOST), 128);
        // In the end only small ones come.
        for number in 1..1000 {
            hear_message(&mut queue, number);
        }
        queue.batch = MANY;
        assert_eq!(queue.ask(MOST), MANY);
        queue.size = MAX_BYTES;
        assert_eq!(queue.ask(MOST), FEW);
        // There is room for as many as it asks for.
        (queue.batch, queue.size) = (MANY, 8 << 10);
        assert_eq!((queue.ask(128), queue.ask(127)), (128, FEW));
    }

    #[test]
    fn who_gets_nothing_asks_for_less() {
        let mut queue = queue();
        queue.batch = MANY;
        for asked in [MANY, 125, 62, 31, 15, 7, FEW, FEW] {
            queue.asked = 0;
            assert_eq!(queue.ask(MOST), asked);
            let asked = u64::try_from(asked).unwrap();
            let over = message(Some(StatusCode::TIMEOUT), "Nats-Pending-Messages", asked);
            queue.hear(&over, None, Utc::now());
        }
    }
}
