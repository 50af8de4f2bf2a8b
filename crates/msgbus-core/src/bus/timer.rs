//! The timer of a bus: when leases and delays end, and dead letters.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    MessageBus, clock,
    locked_topic::LockedTopic,
    map::{SharedTopic, TopicMap},
    topic_ref::read_and_take,
};
use crate::{
    error::PublishError,
    model::{GroupName, Headers, Message, MonotonicTime, NameError, NewMessage, TopicName},
    store::StoreError,
    topic::{Burial, DeadLetter, Page, Registration, TakeError, Topic},
};

/// What [`MessageBus::run_due`] reports.
#[derive(Debug, Default)]
pub struct Due {
    /// How long until the next lease or delay ends. `None` if there is none.
    pub next: Option<Duration>,
    /// Dead letters that could not be published. They are tried again every 5 seconds.
    pub refused: Vec<RefusedDeadLetter>,
}

/// A dead letter that could not be published.
#[derive(Debug)]
pub struct RefusedDeadLetter {
    /// The topic of the message.
    pub topic: TopicName,
    /// The group that was given the message too often.
    pub group: GroupName,
    /// The id of the message.
    pub id: u64,
    /// Why it could not be published.
    pub error: DeadLetterError,
}

/// Why a dead letter could not be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeadLetterError {
    /// The name of the topic for dead letters would be too long.
    #[error("no topic for dead letters: {0}")]
    Name(#[from] NameError),
    /// That topic has not accepted the message.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The message could not be read from the store.
    #[error(transparent)]
    Read(#[from] StoreError),
}

impl MessageBus {
    /// Ends leases and delays whose time has come, wakes the pulls that get their messages, and publishes dead letters.
    /// Pulls see the end of a lease without it; waiting pulls and dead letters need it. A long-lived program with groups
    /// calls it when [`Due::next`] has passed and when [`due_earlier`](Self::due_earlier) is ready.
    pub fn run_due(&self) -> Due {
        self.0.run_due()
    }

    /// Waits until something is due earlier than the last [`run_due`](Self::run_due) has said.
    pub async fn due_earlier(&self) {
        poll_fn(|cx| self.0.timer.poll_earlier(cx)).await;
    }
}

/// The topics with something that is due later.
#[derive(Default)]
pub(super) struct Timer(Mutex<State>);

#[derive(Default)]
struct State {
    /// By time, and by the address of the topic.
    topics: BTreeMap<(MonotonicTime, usize), Weak<SharedTopic>>,
    /// When the next call of `run_due` is expected.
    expected: Option<MonotonicTime>,
    is_earlier: bool,
    waker: Option<Waker>,
    burials: Vec<RunningBurial>,
}

type RunningBurial = Pin<Box<dyn Future<Output = Option<RefusedDeadLetter>> + Send>>;

impl std::fmt::Debug for Timer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Timer({} topics)", self.0.lock().topics.len())
    }
}

impl Timer {
    fn register(&self, registration: Registration, topic: &Arc<SharedTopic>) {
        let Registration { at, previous } = registration;
        let address = Arc::as_ptr(topic).addr();
        let mut state = self.0.lock();
        if let Some(previous) = previous {
            state.topics.remove(&(previous, address));
        }
        state.topics.insert((at, address), Arc::downgrade(topic));
        if state.expected.is_none_or(|expected| at < expected) {
            state.expected = Some(at);
            state.is_earlier = true;
            let waker = state.waker.take();
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn poll_earlier(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if std::mem::take(&mut state.is_earlier) {
            return Poll::Ready(());
        }
        let previous = state.waker.replace(cx.waker().clone());
        drop(state);
        drop(previous);
        Poll::Pending
    }

    /// Takes a topic for which something is due.
    fn pop(&self, now: MonotonicTime) -> Option<Weak<SharedTopic>> {
        let mut state = self.0.lock();
        let first = state.topics.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(first.remove())
    }

    /// Notes when the next call is expected.
    fn expect_next(&self, poll_at: Option<MonotonicTime>) -> Option<MonotonicTime> {
        let mut state = self.0.lock();
        let next = state.topics.keys().next().map(|(at, _)| *at);
        state.expected = next.into_iter().chain(poll_at).min();
        state.is_earlier = false;
        state.expected
    }
}

impl SharedTopic {
    /// Tells the timer when something is due.
    pub(crate) fn register(self: &Arc<Self>, registration: Option<Registration>) {
        if let (Some(registration), Some(map)) = (registration, self.map.upgrade()) {
            map.timer.register(registration, self);
        }
    }

    /// Releases the lock, and tells the timer if something is due earlier than it knows.
    pub(crate) fn unlock_and_register(self: &Arc<Self>, mut topic: LockedTopic<'_>) {
        let registration = topic.register(clock::monotonic());
        drop(topic);
        self.register(registration);
    }
}

impl TopicMap {
    /// How often burials that wait for a store are looked at.
    const POLL: Duration = Duration::from_millis(20);

    fn run_due(&self) -> Due {
        let start = clock::monotonic();
        let mut burials = std::mem::take(&mut self.timer.0.lock().burials);
        while let Some(topic) = self.timer.pop(start) {
            let Some(topic) = topic.upgrade() else { continue };
            let mut locked = topic.lock_and_expire();
            let due = locked.run_due(clock::monotonic());
            topic.unlock_and_register(locked);
            due.wakers.into_iter().for_each(Waker::wake);
            let Some(map) = self.own.upgrade() else { continue };
            for dead in due.dead {
                burials.push(Box::pin(bury(Arc::clone(&map), Arc::clone(&topic), dead)));
            }
        }
        let mut due = Due::default();
        let mut cx = Context::from_waker(Waker::noop());
        burials.retain_mut(|burial| match burial.as_mut().poll(&mut cx) {
            Poll::Ready(refused) => {
                due.refused.extend(refused);
                false
            }
            Poll::Pending => true,
        });
        let now = clock::monotonic();
        let poll_at = (!burials.is_empty()).then(|| now.after(Self::POLL.into()));
        self.timer.0.lock().burials.append(&mut burials);
        due.next = self.timer.expect_next(poll_at).map(|at| at.since(now));
        due
    }
}

/// Publishes a message as a dead letter, and ends its life in its topic.
async fn bury(
    map: Arc<TopicMap>,
    topic: Arc<SharedTopic>,
    dead: DeadLetter,
) -> Option<RefusedDeadLetter> {
    let outcome = publish(&map, &topic, &dead).await;
    let mut locked = topic.lock();
    let burial = *outcome.as_ref().unwrap_or(&Burial::Refused);
    locked.buried(dead.group, dead.id, burial, clock::now());
    topic.unlock_and_register(locked);
    let error = outcome.err()?;
    Some(RefusedDeadLetter { topic: topic.name().clone(), group: dead.name, id: dead.id, error })
}

async fn publish(
    map: &TopicMap,
    topic: &Arc<SharedTopic>,
    dead: &DeadLetter,
) -> Result<Burial, DeadLetterError> {
    let find = |topic: &mut Topic, page: &mut Page| {
        Ok::<_, TakeError<StoreError>>(topic.message_with(dead.id, clock::monotonic(), page)?)
    };
    // If it has left meanwhile, the group knows.
    let Some(message) = read_and_take(topic, find).await? else { return Ok(Burial::Exempt) };
    if message.headers().get(DeadLetter::TOPIC).is_some() {
        return Ok(Burial::Exempt);
    }
    let target = match &dead.topic {
        Some(target) => target.clone(),
        None => topic.name().dead_letters()?,
    };
    let letter = NewMessage::new(message.payload().clone()).headers(headers(&message, dead));
    super::TopicRef::new(map, &target, &mut None).publish(letter).await?;
    Ok(Burial::Done)
}

/// The headers of the message, and as many of those of a dead letter as there is room for.
fn headers(message: &Message, dead: &DeadLetter) -> Headers {
    let reason = dead.reason.as_deref().unwrap_or("the lease expired");
    // A reason is any text; a header value has no control characters.
    let reason = reason.replace(|c: char| c.is_control(), " ");
    let additions = [
        (DeadLetter::TOPIC, message.topic().name.to_string()),
        ("dead-letter-id", dead.id.to_string()),
        ("dead-letter-group", dead.name.to_string()),
        ("dead-letter-deliveries", dead.deliveries.to_string()),
        ("dead-letter-reason", reason.trim().to_owned()),
    ];
    additions.iter().fold(message.headers().clone(), |headers, (name, value)| {
        headers.with(name, value).unwrap_or(headers)
    })
}
