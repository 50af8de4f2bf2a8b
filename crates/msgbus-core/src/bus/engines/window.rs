//! The window of one topic, and the sink through which its engine feeds it.

use std::{
    collections::{BTreeMap, HashMap},
    future::poll_fn,
    mem::take,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    Engines, SharedEngine, detached,
    reads::{Read, Reads},
};
use crate::{
    bus::{
        clock,
        map::{SharedTopic, TopicMap},
        wake_queue,
    },
    engine::{EngineError, WindowStats},
    error::{LimitReached, SubscribeError},
    model::{MonotonicTime, TopicName},
    options::TopicSettings,
    store::RecoveredMessage,
    topic::{Reservation, Topic},
};

/// Identifies the latest window of this process.
static LAST_WINDOW: AtomicU64 = AtomicU64::new(0);

/// See [`WindowSink::time_to_gather`].
const GATHERING: Duration = Duration::from_millis(2);

/// The window of a topic that lives in an engine.
#[derive(Debug)]
pub(crate) struct Window {
    /// Unique in this process, and not 0.
    id: u64,
    name: TopicName,
    map: std::sync::Weak<TopicMap>,
    engine: SharedEngine,
    state: Mutex<State>,
    reads: Reads,
    /// How much more often than not, lately, followers were busy when the engine had something for them.
    busy: AtomicU32,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    followers: usize,
    next_follower: u64,
    /// When the last follower has left.
    unused_since: MonotonicTime,
    stalled: Option<EngineError>,
    /// What the engine had not delivered yet when it delivered last.
    pending: u64,
    /// The followers that wait for the window to open, or to ask the engine again. While there are none, a tree is half as large
    /// as a hash map.
    waiting: BTreeMap<u64, Waker>,
    /// The engine, which waits for the end of the window.
    engine: Option<Waker>,
}

#[derive(Debug)]
enum Phase {
    Opening,
    Open(Arc<SharedTopic>),
    /// The window could not be opened, or has ended.
    Over(EngineError),
}

impl State {
    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }

    /// Those that wait, to be woken after the lock is released.
    fn take_waiting(&mut self) -> Vec<Waker> {
        take(&mut self.waiting).into_values().collect()
    }

    fn add_follower(&mut self) -> u64 {
        self.followers += 1;
        self.next_follower += 1;
        self.next_follower
    }
}

impl Window {
    /// How long a window stays that nobody follows.
    const IDLE: Duration = Duration::from_secs(60);

    fn new(name: &TopicName, map: &TopicMap, engine: SharedEngine) -> Arc<Self> {
        let state = State {
            phase: Phase::Opening,
            followers: 0,
            next_follower: 0,
            unused_since: clock::monotonic(),
            stalled: None,
            pending: 0,
            waiting: BTreeMap::new(),
            engine: None,
        };
        let id = 1 + LAST_WINDOW.fetch_add(1, Relaxed);
        let map = std::sync::Weak::clone(&map.own);
        let (name, state, reads) = (name.clone(), Mutex::new(state), Reads::default());
        Arc::new(Self { id, name, map, engine, state, reads, busy: AtomicU32::new(0) })
    }

    pub(super) fn name(&self) -> &TopicName {
        &self.name
    }

    /// Why the engine does not deliver. Its feed may not have noticed yet that the server is gone.
    pub(super) fn stalled(&self) -> Option<EngineError> {
        let stalled = self.state.lock().stalled;
        stalled.or_else(|| self.engine.engine.health().problem)
    }

    pub(super) fn stats(&self) -> WindowStats {
        let stalled = self.stalled();
        let state = self.state.lock();
        let mut stats = WindowStats {
            topic: self.name.clone(),
            followers: state.followers,
            retained: 0,
            bytes: 0,
            next: 0,
            pending: state.pending,
            stalled,
        };
        if let Phase::Open(topic) = &state.phase {
            let log = topic.lock().stats(clock::monotonic());
            (stats.retained, stats.bytes, stats.next) = (log.retained, log.bytes, log.next_id);
        }
        stats
    }

    /// Returns whether the window has ended.
    pub(super) fn sweep(&self) -> bool {
        let state = self.state.lock();
        if let Phase::Open(topic) = &state.phase {
            topic.lock().sweep(clock::monotonic());
        }
        drop(state);
        self.wake_waiting();
        let now = clock::monotonic();
        let is_unused =
            |state: &State| state.followers == 0 && now.since(state.unused_since) >= Self::IDLE;
        self.end_if(is_unused, EngineError::Closed, Topic::close);
        self.state.lock().is_over()
    }

    /// Ends the window because the bus is closed.
    pub(super) fn close(&self) {
        self.end_if(|_| true, EngineError::Closed, Topic::close);
    }

    /// Ends the window for its followers, who have to begin anew.
    fn end(&self, why: EngineError) {
        self.end_if(|_| true, why, |topic| drop(topic.delete(clock::monotonic())));
    }

    /// Ends the window and its topic, and wakes everybody.
    fn end_if(
        &self,
        should_end: impl FnOnce(&State) -> bool,
        why: EngineError,
        end_topic: impl FnOnce(&mut Topic),
    ) {
        let mut state = self.state.lock();
        if state.is_over() || !should_end(&state) {
            return;
        }
        let phase = std::mem::replace(&mut state.phase, Phase::Over(why));
        let mut wakers = state.take_waiting();
        wakers.extend(state.engine.take());
        drop(state);
        if let Phase::Open(topic) = phase {
            let mut locked = topic.lock();
            end_topic(&mut locked);
            let followers = locked.take_wakers(wake_queue::spare);
            drop(locked);
            topic.wake(followers);
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    fn wake_waiting(&self) {
        let wakers = self.state.lock().take_waiting();
        wakers.into_iter().for_each(Waker::wake);
    }

    fn poll_open(
        &self,
        follower: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Arc<SharedTopic>, EngineError>> {
        let mut state = self.state.lock();
        match &state.phase {
            Phase::Open(topic) => Poll::Ready(Ok(Arc::clone(topic))),
            Phase::Over(why) => Poll::Ready(Err(*why)),
            Phase::Opening => {
                state.waiting.insert(follower, cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn poll_over(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.is_over() {
            return Poll::Ready(());
        }
        state.engine = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Takes the window out of the list that nobody has followed for the longest time. `None` if all are followed.
fn take_unused(windows: &mut HashMap<TopicName, Arc<Window>>) -> Option<Arc<Window>> {
    let unused = windows.values().filter_map(|window| {
        let state = window.state.lock();
        (state.followers == 0 || state.is_over()).then_some((state.unused_since, &window.name))
    });
    let (_, name) = unused.min()?;
    let name = name.clone();
    windows.remove(&name)
}

/// A follower of a window, which keeps the window open.
#[derive(Debug)]
pub(crate) struct Follow {
    window: Arc<Window>,
    /// Identifies it among the followers of the window.
    follower: u64,
}

impl Follow {
    /// Follows a topic. The first follower makes the window. At the limit, it takes the place of one that nobody follows.
    fn new(
        map: &TopicMap,
        engines: &Engines,
        engine: SharedEngine,
        name: &TopicName,
    ) -> Result<Self, LimitReached> {
        let mut windows = engines.windows.lock();
        if let Some(window) = windows.get(name) {
            let mut state = window.state.lock();
            if !state.is_over() {
                let follower = state.add_follower();
                drop(state);
                return Ok(Self { window: Arc::clone(window), follower });
            }
        }
        let limit = map.options().max_topics;
        let is_full = windows.len() >= limit && !windows.contains_key(name);
        let unused = if is_full { take_unused(&mut windows) } else { None };
        if is_full && unused.is_none() {
            return Err(LimitReached::Topics { limit });
        }
        let window = Window::new(name, map, engine);
        let follower = window.state.lock().add_follower();
        windows.insert(name.clone(), Arc::clone(&window));
        drop(windows);
        if let Some(unused) = unused {
            unused.close();
        }
        window.engine.engine.tail(name, WindowSink(Arc::clone(&window)));
        Ok(Self { window, follower })
    }

    /// Follows a topic, and waits until the window is open.
    pub(crate) async fn open(
        map: &TopicMap,
        engine: SharedEngine,
        name: &TopicName,
    ) -> Result<(Self, Arc<SharedTopic>), SubscribeError> {
        let Some(engines) = map.engines() else { return Err(SubscribeError::Closed) };
        if map.is_closed() {
            return Err(SubscribeError::Closed);
        }
        let follow = Self::new(map, engines, engine, name)?;
        if map.is_closed() {
            // Closing the bus may have overlooked the window.
            follow.window.close();
        }
        let opened = poll_fn(|cx| follow.window.poll_open(follow.follower, cx)).await;
        Ok((follow, opened.map_err(SubscribeError::of_engine)?))
    }

    /// The engine that feeds the window.
    pub(crate) fn engine(&self) -> &SharedEngine {
        &self.window.engine
    }

    /// Reads a page of the history, together with others that want the same.
    pub(crate) fn read(&self, from: u64) -> Arc<Read> {
        self.window.reads.join(&self.window.engine, &self.window.name, from)
    }

    /// Why the engine does not deliver.
    pub(crate) fn stalled(&self) -> Option<EngineError> {
        self.window.stalled()
    }

    /// Identifies the window among all of this process.
    pub(crate) fn window_id(&self) -> u64 {
        self.window.id
    }

    /// Lets the task of `cx` be woken when it is time to ask the engine again: when it delivers, and in any case at the
    /// next [`purge_expired`](crate::MessageBus::purge_expired).
    ///
    /// # Errors
    /// When the window has ended.
    pub(crate) fn wait_to_retry(&self, cx: &mut Context<'_>) -> Result<(), EngineError> {
        let mut state = self.window.state.lock();
        if let Phase::Over(why) = state.phase {
            return Err(why);
        }
        let replaced = state.waiting.insert(self.follower, cx.waker().clone());
        drop(state);
        drop(replaced);
        Ok(())
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let mut state = self.window.state.lock();
        state.followers -= 1;
        state.unused_since = clock::monotonic();
        let waker = state.waiting.remove(&self.follower);
        drop(state);
        drop(waker);
    }
}

/// Through this, an engine feeds the window of a topic, see [`Engine::tail`](crate::engine::Engine::tail).
#[derive(Debug)]
pub struct WindowSink(Arc<Window>);

impl WindowSink {
    /// The topic.
    pub fn topic(&self) -> &TopicName {
        &self.0.name
    }

    /// The feed begins at a sequence, for the first time or again: [`append`](Self::append) will take everything from there
    /// on. What may lie between the messages before and this sequence, followers read from the history. With another epoch
    /// than before, the window ends. Returns `false` if it has ended: the engine must stop.
    pub fn open(&self, epoch: u64, next: u64) -> bool {
        let mut state = self.0.state.lock();
        state.stalled = None;
        let topic = match &state.phase {
            Phase::Over(_) => return false,
            Phase::Open(topic) => Arc::clone(topic),
            Phase::Opening => {
                let Some(map) = self.0.map.upgrade() else { return false };
                let settings = map.options().settings_for(&self.0.name);
                let settings =
                    TopicSettings { ttl: self.0.engine.engine.max_age(self.0.name()), ..settings };
                let reservation = Reservation::new(Arc::clone(&map.budget));
                let info = self.0.engine.info(&self.0.name, epoch);
                let topic = Topic::window(info, settings, reservation, next, clock::now());
                state.phase = Phase::Open(detached(&map, topic));
                let wakers = state.take_waiting();
                drop(state);
                wakers.into_iter().for_each(Waker::wake);
                return true;
            }
        };
        drop(state);
        let mut locked = topic.lock();
        if locked.info().epoch != epoch {
            drop(locked);
            self.0.end(EngineError::Unavailable);
            return false;
        }
        locked.begin_at(next);
        let followers = locked.take_wakers(wake_queue::spare);
        drop(locked);
        topic.wake(followers);
        self.resume();
        true
    }

    /// The next messages of the topic, whose ids are their sequences. Returns `false` if the window has ended: the engine
    /// must stop. Before [`open`](Self::open) they are ignored.
    pub fn append(&self, messages: impl IntoIterator<Item = RecoveredMessage>) -> bool {
        let state = self.0.state.lock();
        let topic = match &state.phase {
            Phase::Open(topic) => Arc::clone(topic),
            Phase::Opening => return true,
            Phase::Over(_) => return false,
        };
        drop(state);
        let mut locked = topic.lock();
        for message in messages {
            locked.feed(message, clock::now());
        }
        let followers = locked.take_wakers(wake_queue::spare);
        drop(locked);
        topic.wake(followers);
        self.0.wake_waiting();
        true
    }

    /// For how long the engine should let messages gather before it appends them. Call it once before each
    /// [`append`](Self::append): it counts how often followers are busy. `None` unless there are many, and most of them are not
    /// yet waiting for more, as they mostly were not of late. Messages that gather are written together, and a write costs more
    /// than many messages in it; so this leaves more time to publish, where time is scarce. `None` also if the window has room
    /// for few messages: none is lost for this.
    pub fn time_to_gather(&self) -> Option<Duration> {
        /// Busy once may be by chance.
        const OFTEN: u32 = 3;
        const MOST: u32 = 8;
        let state = self.0.state.lock();
        let Phase::Open(topic) = &state.phase else { return None };
        let topic = Arc::clone(topic);
        drop(state);
        let is_busy = topic.lock().is_busy();
        let before = self.0.busy.load(Relaxed);
        let busy = if is_busy { MOST.min(before + 1) } else { before.saturating_sub(1) };
        self.0.busy.store(busy, Relaxed);
        (is_busy && busy >= OFTEN).then_some(GATHERING)
    }

    /// How many messages the engine has not delivered yet, for the metrics.
    pub fn pending(&self, count: u64) {
        self.0.state.lock().pending = count;
    }

    /// The engine does not deliver for now. Followers keep what they have, and wait.
    pub fn stall(&self, why: EngineError) {
        self.0.state.lock().stalled = Some(why);
    }

    /// The engine delivers again, and has left nothing out.
    pub fn resume(&self) {
        self.0.state.lock().stalled = None;
        self.0.wake_waiting();
    }

    /// The window cannot be opened. Who has asked to follow the topic gets the error. A window that is open ends.
    pub fn fail(self, why: EngineError) {
        self.0.end(why);
    }

    /// Whether the window has ended: the engine must stop.
    pub fn is_closed(&self) -> bool {
        self.0.state.lock().is_over()
    }

    /// Ready when the window has ended: the engine must stop.
    pub async fn closed(&self) {
        poll_fn(|cx| self.0.poll_over(cx)).await;
    }
}

/// Ends the subscriptions: nobody feeds the window any longer.
impl Drop for WindowSink {
    fn drop(&mut self) {
        self.0.end(EngineError::Unavailable);
    }
}
