//! The timer of a bus: when leases, delays and requests end, and dead letters.

use std::{
    collections::{BTreeMap, VecDeque},
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
    services::SharedService,
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
    /// How long until the next lease, delay or request ends. `None` if there is none.
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
    /// Ends leases, delays and requests whose time has come, wakes the pulls that get their messages, and publishes dead
    /// letters. Pulls see the end of a lease without it; waiting pulls, dead letters and the futures of requests need it.
    /// A long-lived program with groups or services calls it when [`Due::next`] has passed and when [`due_earlier`](Self::due_earlier) is ready.
    pub fn run_due(&self) -> Due {
        self.0.run_due()
    }

    /// Waits until something is due earlier than the last [`run_due`](Self::run_due) has said.
    pub async fn due_earlier(&self) {
        poll_fn(|cx| self.0.timer.poll_earlier(cx)).await;
    }
}

/// The topics and services with something that is due later.
#[derive(Default)]
pub(super) struct Timer(Mutex<State>);

#[derive(Default)]
struct State {
    /// By time, and by the address of the topic or service.
    due: BTreeMap<(MonotonicTime, usize), Timed>,
    /// When the next call of `run_due` is expected.
    expected: Option<MonotonicTime>,
    is_earlier: bool,
    waker: Option<Waker>,
    /// Dead letters to publish.
    dead: VecDeque<(Arc<SharedTopic>, DeadLetter)>,
    /// Those that are being published.
    burials: Vec<RunningBurial>,
}

/// Something that may be due.
#[derive(Debug)]
enum Timed {
    Topic(Weak<SharedTopic>),
    Service(Weak<SharedService>),
}

type RunningBurial = Pin<Box<dyn Future<Output = Option<RefusedDeadLetter>> + Send>>;

impl std::fmt::Debug for Timer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Timer({} due)", self.0.lock().due.len())
    }
}

impl Timer {
    fn register_topic(&self, registration: Registration, topic: &Arc<SharedTopic>) {
        let timed = Timed::Topic(Arc::downgrade(topic));
        self.register(registration, Arc::as_ptr(topic).addr(), timed);
    }

    pub(super) fn register_service(
        &self,
        registration: Registration,
        service: &Arc<SharedService>,
    ) {
        let timed = Timed::Service(Arc::downgrade(service));
        self.register(registration, Arc::as_ptr(service).addr(), timed);
    }

    fn register(&self, registration: Registration, address: usize, timed: Timed) {
        let Registration { at, previous } = registration;
        let mut state = self.0.lock();
        if let Some(previous) = previous {
            state.due.remove(&(previous, address));
        }
        state.due.insert((at, address), timed);
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

    pub(super) fn unregister(&self, at: MonotonicTime, address: usize) {
        self.0.lock().due.remove(&(at, address));
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

    /// Takes the first for which something is due.
    fn pop(&self, now: MonotonicTime) -> Option<Timed> {
        let mut state = self.0.lock();
        let first = state.due.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(first.remove())
    }

    /// Notes when the next call is expected.
    fn expect_next(&self, poll_at: Option<MonotonicTime>) -> Option<MonotonicTime> {
        let mut state = self.0.lock();
        let next = state.due.keys().next().map(|(at, _)| *at);
        state.expected = next.into_iter().chain(poll_at).min();
        state.is_earlier = false;
        state.expected
    }
}

impl SharedTopic {
    /// Tells the timer when something is due.
    pub(crate) fn register(self: &Arc<Self>, registration: Option<Registration>) {
        if let (Some(registration), Some(map)) = (registration, self.map.upgrade()) {
            map.timer.register_topic(registration, self);
        }
    }

    /// Releases the lock, and tells the timer if something is due earlier than it knows.
    pub(crate) fn unlock_and_register(self: &Arc<Self>, mut topic: LockedTopic<'_>) {
        let registration = topic.next_registration(clock::monotonic());
        drop(topic);
        self.register(registration);
    }
}

impl TopicMap {
    /// How often burials that wait for a store are looked at.
    const POLL: Duration = Duration::from_millis(20);

    /// The maximum number of burials that wait for a store.
    const MAX_BURIALS: usize = 32;

    fn run_due(&self) -> Due {
        let start = clock::monotonic();
        let mut due = Due::default();
        while let Some(timed) = self.timer.pop(start) {
            let topic = match timed {
                Timed::Topic(topic) => topic.upgrade(),
                Timed::Service(service) => {
                    if let Some(service) = service.upgrade() {
                        service.run_due();
                    }
                    None
                }
            };
            let Some(topic) = topic else { continue };
            let mut locked = topic.lock_and_expire();
            let in_topic = locked.run_due(clock::monotonic());
            topic.unlock_and_register(locked);
            in_topic.wakers.into_iter().for_each(Waker::wake);
            let dead = in_topic.dead.into_iter().map(|dead| (Arc::clone(&topic), dead));
            self.timer.0.lock().dead.extend(dead);
        }
        let is_waiting = self.run_burials(&mut due.refused);
        let now = clock::monotonic();
        let poll_at = is_waiting.then(|| now.after(Self::POLL.into()));
        due.next = self.timer.expect_next(poll_at).map(|at| at.since(now));
        due
    }

    /// Publishes dead letters. Returns whether some wait for a store.
    fn run_burials(&self, refused: &mut Vec<RefusedDeadLetter>) -> bool {
        let mut burials = std::mem::take(&mut self.timer.0.lock().burials);
        let mut cx = Context::from_waker(Waker::noop());
        let mut is_over = |burial: &mut RunningBurial| match burial.as_mut().poll(&mut cx) {
            Poll::Ready(outcome) => {
                refused.extend(outcome);
                true
            }
            Poll::Pending => false,
        };
        burials.retain_mut(|burial| !is_over(burial));
        while burials.len() < Self::MAX_BURIALS {
            let next = self.timer.0.lock().dead.pop_front();
            let Some((topic, dead)) = next else { break };
            let mut burial: RunningBurial = Box::pin(bury(Weak::clone(&self.own), topic, dead));
            if !is_over(&mut burial) {
                burials.push(burial);
            }
        }
        let is_waiting = !burials.is_empty();
        self.timer.0.lock().burials.append(&mut burials);
        is_waiting
    }
}

/// Publishes a message as a dead letter, and ends its life in its topic.
async fn bury(
    map: Weak<TopicMap>,
    topic: Arc<SharedTopic>,
    dead: DeadLetter,
) -> Option<RefusedDeadLetter> {
    let outcome = publish(&map, &topic, &dead).await;
    let mut locked = topic.lock();
    let burial = *outcome.as_ref().unwrap_or(&Burial::Refused);
    let waker = locked.end_burial(&dead, burial, clock::now());
    topic.unlock_and_register(locked);
    if let Some(waker) = waker {
        waker.wake();
    }
    let (topic, group, id) = (topic.name().clone(), dead.name, dead.key.id);
    Some(RefusedDeadLetter { topic, group, id, error: outcome.err()? })
}

async fn publish(
    map: &Weak<TopicMap>,
    topic: &Arc<SharedTopic>,
    dead: &DeadLetter,
) -> Result<Burial, DeadLetterError> {
    let find = |topic: &mut Topic, page: &mut Page| {
        Ok::<_, TakeError<StoreError>>(topic.message_with(dead.key.id, clock::monotonic(), page)?)
    };
    // If it has left meanwhile, the group knows.
    let Some(message) = read_and_take(topic, find).await? else { return Ok(Burial::Exempt) };
    if message.headers().get(DeadLetter::TOPIC).is_some() {
        return Ok(Burial::Exempt);
    }
    let (target, letter) = letter(&message, dead)?;
    let published = match map.upgrade() {
        Some(map) => super::TopicRef::new(&map, &target, &mut None).publish(letter),
        None => return Err(PublishError::Closed.into()),
    };
    published.await?;
    Ok(Burial::Done)
}

/// The topic for a dead letter, and the letter.
pub(super) fn letter(
    message: &Message,
    dead: &DeadLetter,
) -> Result<(TopicName, NewMessage), NameError> {
    let target = match &dead.topic {
        Some(target) => target.clone(),
        None => message.topic().name.dead_letters()?,
    };
    Ok((target, NewMessage::new(message.payload().clone()).headers(headers(message, dead))))
}

/// The headers of the message, and those of a dead letter. If there is not enough room for all of them, headers of the
/// message are left out.
fn headers(message: &Message, dead: &DeadLetter) -> Headers {
    // A header value has no spaces at its ends.
    let topic = message.topic().name.as_str().replace('%', "%25").replace(' ', "%20");
    // A reason is any text; a header value has no control characters.
    let reason = dead.reason.as_deref().map(|reason| reason.replace(char::is_control, " "));
    let marks = [
        (DeadLetter::TOPIC, Some(topic)),
        ("dead-letter-id", Some(dead.key.id.to_string())),
        ("dead-letter-group", Some(dead.name.to_string())),
        ("dead-letter-deliveries", Some(dead.deliveries.to_string())),
        ("dead-letter-reason", reason.map(|reason| reason.trim().to_owned())),
    ];
    let marks =
        || marks.iter().filter_map(|(name, value)| value.as_deref().map(|value| (*name, value)));
    Headers::new(message.headers().iter().chain(marks())).unwrap_or_else(|_| {
        let marks = Headers::new(marks()).unwrap_or_default();
        message
            .headers()
            .iter()
            .fold(marks, |headers, (name, value)| headers.with(name, value).unwrap_or(headers))
    })
}
