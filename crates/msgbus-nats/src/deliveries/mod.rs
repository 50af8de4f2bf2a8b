//! What consumers deliver to the windows of this node. One subscription hears all of it, and one timer watches over it, so an
//! idle window has neither.

mod queue;

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

use async_nats::{Message, Subscriber, jetstream};
use chrono::{DateTime, Utc};
use futures_util::{StreamExt as _, future::poll_fn};
use msgbus_core::engine::{Begin, EngineError};
use parking_lot::Mutex;
use tokio::{
    select,
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep},
};

use self::queue::Queue;
pub(crate) use self::queue::Received;
use crate::{
    connection::{Connection, Known},
    error::request_error,
    history::reader,
};

/// How many messages all readers together may have asked for before each gets only few. The subscription has room for twice as
/// many. What has no room the client drops, and its reader begins again.
const MOST: usize = 32_768;
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
        let queue = Queue::new(known.connects, known.max_age);
        let (queue, connection) = (Arc::new(Mutex::new(queue)), Arc::clone(connection));
        let deliveries = &connection.deliveries;
        let consumer: Arc<str> = info.name.as_str().into();
        deliveries.queues.lock().insert(Arc::clone(&consumer), Arc::clone(&queue));
        Ok((Self { connection, consumer, queue }, info.num_pending))
    }

    /// Ready when something has been delivered.
    pub(crate) async fn ready(&mut self) -> Result<(), EngineError> {
        loop {
            self.ask_if_due().await?;
            if poll_fn(|cx| self.poll(cx)).await {
                return Ok(());
            }
        }
    }

    /// Waits for more to be delivered, unless few messages can come.
    pub(crate) async fn gather(&self, time: Duration) -> Result<(), EngineError> {
        /// Fewer are not worth the time.
        const WORTH: usize = 32;
        self.ask_if_due().await?;
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

    async fn ask_if_due(&self) -> Result<(), EngineError> {
        if self.queue.lock().is_due() {
            Box::pin(self.ask()).await?;
        }
        Ok(())
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
