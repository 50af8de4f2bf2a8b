//! The timer of a bus: when leases, delays and requests end, and dead letters.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    MessageBus,
    burials::{Burials, RefusedDeadLetter},
    clock,
    locked_topic::LockedTopic,
    map::{SharedTopic, TopicMap},
    services::SharedService,
};
use crate::{model::MonotonicTime, topic::Registration};

/// What [`MessageBus::run_due`] reports.
#[derive(Debug, Default)]
pub struct Due {
    /// How long until the next lease, delay or request ends. `None` if there is none.
    pub next: Option<Duration>,
    /// Dead letters that could not be published. They are tried again every 5 seconds, those in engines every 30.
    pub refused: Vec<RefusedDeadLetter>,
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
    burials: Burials,
}

/// Something that may be due.
#[derive(Debug)]
enum Timed {
    Topic(Weak<SharedTopic>),
    Service(Weak<SharedService>),
}

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

    fn take_burials(&self) -> Burials {
        std::mem::take(&mut self.0.lock().burials)
    }

    /// Goes on with burials that somebody else has begun.
    pub(super) fn adopt(&self, burials: Burials) {
        let mut state = self.0.lock();
        state.burials.append(burials);
        state.is_earlier = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Reports a dead letter that an engine has refused.
    pub(super) fn report(&self, refused: RefusedDeadLetter) {
        self.adopt(Burials::refused(refused));
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

    /// Puts burials back that have not ended, and notes when the next call is expected.
    fn expect_next(&self, burials: Burials, poll_at: MonotonicTime) -> Option<MonotonicTime> {
        let mut state = self.0.lock();
        // Some may have been added meanwhile.
        state.burials.append(burials);
        let poll_at = (!state.burials.is_empty()).then_some(poll_at);
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

    fn run_due(&self) -> Due {
        let start = clock::monotonic();
        let mut burials = self.timer.take_burials();
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
            burials.add(&topic, in_topic.dead);
        }
        burials.run(&self.own, &mut Context::from_waker(Waker::noop()));
        let refused = burials.take_refused();
        let now = clock::monotonic();
        let next = self.timer.expect_next(burials, now.after(Self::POLL.into()));
        let next = next.map(|at| at.since(now));
        Due { next, refused }
    }
}
