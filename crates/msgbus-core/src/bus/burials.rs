//! Dead letters on their way: messages that a group was given too often are published to their topic, and end in their own.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker, ready},
};

use super::{
    clock,
    map::{SharedTopic, TopicMap},
    topic_ref::{TopicRef, read_and_take},
};
use crate::{
    error::PublishError,
    model::{GroupName, Headers, Message, NameError, NewMessage, SettledBatch, TopicName},
    store::StoreError,
    topic::{Burial, DeadLetter, Page, TakeError, Topic},
};

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

/// Messages that become dead letters. Some are published at a time, the others wait.
#[derive(Default)]
pub(super) struct Burials {
    waiting: VecDeque<(Arc<SharedTopic>, DeadLetter)>,
    running: Vec<Running>,
    refused: Vec<RefusedDeadLetter>,
}

type Running = Pin<Box<dyn Future<Output = Option<RefusedDeadLetter>> + Send>>;

impl Burials {
    /// The maximum number that wait for a store at a time.
    const TOGETHER: usize = 32;
    /// The maximum number of refusals that are reported at a time.
    const MAX_REFUSED: usize = 1000;

    pub(super) fn add(&mut self, topic: &Arc<SharedTopic>, dead: Vec<DeadLetter>) {
        self.waiting.extend(dead.into_iter().map(|dead| (Arc::clone(topic), dead)));
    }

    /// One that could not be published.
    pub(super) fn refused(refused: RefusedDeadLetter) -> Self {
        Self { refused: vec![refused], ..Self::default() }
    }

    pub(super) fn append(&mut self, others: Self) {
        self.waiting.extend(others.waiting);
        self.running.extend(others.running);
        let room = Self::MAX_REFUSED.saturating_sub(self.refused.len());
        self.refused.extend(others.refused.into_iter().take(room));
    }

    /// Whether there is nothing to do, and nothing to report.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.refused.is_empty()
    }

    /// Those that could not be published.
    pub(super) fn take_refused(&mut self) -> Vec<RefusedDeadLetter> {
        std::mem::take(&mut self.refused)
    }

    /// Publishes them. Returns whether all have ended.
    pub(super) fn run(&mut self, map: &Weak<TopicMap>, cx: &mut Context<'_>) -> bool {
        let Self { waiting, running, refused } = self;
        let mut is_over = |burial: &mut Running| match burial.as_mut().poll(cx) {
            Poll::Ready(outcome) => {
                refused.extend(outcome);
                true
            }
            Poll::Pending => false,
        };
        running.retain_mut(|burial| !is_over(burial));
        while running.len() < Self::TOGETHER
            && let Some((topic, dead)) = waiting.pop_front()
        {
            let mut burial: Running = Box::pin(bury(Weak::clone(map), topic, dead));
            if !is_over(&mut burial) {
                running.push(burial);
            }
        }
        running.is_empty()
    }
}

type Outcome = Result<SettledBatch, StoreError>;

/// Settles leases of an engine. When it is dropped, the timer goes on with it: a message may be half a dead letter.
pub(super) struct Settling {
    map: Weak<TopicMap>,
    future: Option<Pin<Box<dyn Future<Output = Outcome> + Send>>>,
}

impl Settling {
    pub(super) fn new(
        map: Weak<TopicMap>,
        future: impl Future<Output = Outcome> + Send + 'static,
    ) -> Self {
        Self { map, future: Some(Box::pin(future)) }
    }
}

impl Future for Settling {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let Some(future) = &mut self.future else { return Poll::Pending };
        let settled = ready!(future.as_mut().poll(cx));
        self.future = None;
        Poll::Ready(settled)
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        if let (Some(map), Some(future)) = (self.map.upgrade(), self.future.take()) {
            let rest: Running = Box::pin(async {
                drop(future.await);
                None
            });
            map.timer.adopt(Burials { running: vec![rest], ..Burials::default() });
        }
    }
}

/// Burials that a settlement has begun. When it is dropped, the timer goes on with them, and it tells which were refused.
pub(super) struct OwnBurials {
    map: Weak<TopicMap>,
    burials: Burials,
}

impl OwnBurials {
    pub(super) fn of(map: &TopicMap, topic: &Arc<SharedTopic>, dead: Vec<DeadLetter>) -> Self {
        let mut own = Self { map: Weak::clone(&map.own), burials: Burials::default() };
        own.burials.add(topic, dead);
        own
    }

    /// Publishes what need not wait. `None` if that is all.
    pub(super) fn begin(mut self) -> Option<Self> {
        let is_over = Pin::new(&mut self).poll(&mut Context::from_waker(Waker::noop())).is_ready();
        (!is_over).then_some(self)
    }
}

impl Future for OwnBurials {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { map, burials } = &mut *self;
        if burials.run(map, cx) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for OwnBurials {
    fn drop(&mut self) {
        let burials = std::mem::take(&mut self.burials);
        if let Some(map) = self.map.upgrade().filter(|_| !burials.is_empty()) {
            map.timer.adopt(burials);
        }
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
        Some(map) => TopicRef::new(&map, &target, &mut None).publish(letter),
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
