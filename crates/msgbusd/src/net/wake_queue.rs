//! Wakes tasks across threads, and delivers messages on behalf of tasks without waking them.
//!
//! Each serving thread has its own runtime and its own [`WakeQueue`]. A publish wakes all subscribers that wait for
//! it. Waking a task of another thread takes a system call, and then that thread has to be scheduled. Therefore such
//! wakes are queued for the thread, and only the first one makes the call; it covers all wakes that are queued until
//! the thread takes them.
//!
//! A task may have a [`Delivery`]: the work that it would do when woken, which any thread can do for it. The thread
//! that publishes delivers for its own tasks and for those of sleeping threads. Threads that are awake deliver for
//! their own tasks. When the publishing thread falls behind, it wakes sleeping threads so that they deliver for
//! themselves.

use std::{
    cell::{Cell, OnceCell},
    collections::VecDeque,
    fmt::Debug,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
};

use msgbus_core::Op;
use parking_lot::Mutex;
use tokio::task::yield_now;

/// The number of deliveries that are made before the thread yields to other tasks. One takes a few microseconds.
const SLICE: usize = 32;
/// The same while tasks wait for a store or an engine: the sooner they have their answers, the more is delivered together.
const SHORT_SLICE: usize = 8;
/// The number of deliveries that are made before the publisher gets its response.
const SLICE_BEFORE_RESPONSE: usize = 16;

thread_local! {
    /// The state of this thread; empty if it has no queue.
    static HERE: OnceCell<Here> = const { OnceCell::new() };
}

/// The state of a thread with a queue.
#[derive(Debug)]
struct Here {
    queue: Arc<WakeQueue>,
    /// The number of publishes since the thread last slept.
    publishes: Cell<usize>,
    /// Whether there was at most one publish between the last two sleeps that had any.
    publishes_seldom: Cell<bool>,
}

/// Work that any thread can do for a task instead of waking it.
pub(crate) trait Delivery: Debug + Send + Sync {
    /// Delivers without blocking. Returns `false` if the task has to be woken nevertheless.
    fn deliver(&self) -> bool;
}

/// The wakes queued for one thread.
#[derive(Debug, Default)]
pub(crate) struct WakeQueue {
    pending: Mutex<Pending>,
    /// Whether the thread waits for events. It may be out of date.
    is_asleep: AtomicBool,
    /// Whether the last slice left deliveries to be made.
    is_behind: AtomicBool,
    /// The number of tasks that wait for a store or an engine.
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct Pending {
    /// Tasks to be woken. They come before the deliveries: a publisher that has its response may publish what is delivered
    /// together with what waits.
    wakes: Vec<Arc<RemoteTask>>,
    deliveries: VecDeque<Arc<RemoteTask>>,
    /// The waker of the task that drives the queue; taken when it is used.
    driver: Option<Waker>,
}

impl WakeQueue {
    /// Drives the queue of this thread. It never returns. Run it on the runtime of the thread.
    pub(crate) async fn drive() {
        let queue = HERE.with(|here| Arc::clone(&here.get_or_init(Here::new).queue));
        let (mut wakes, mut deliveries) = (Vec::new(), VecDeque::new());
        loop {
            poll_fn(|cx| queue.poll_pending(cx, &mut wakes, &mut deliveries)).await;
            for task in wakes.drain(..) {
                task.run();
            }
            let slice = if queue.waiting.load(Relaxed) > 0 { SHORT_SLICE } else { SLICE };
            for task in deliveries.drain(..slice.min(deliveries.len())) {
                task.run();
            }
            queue.is_behind.store(!deliveries.is_empty(), Relaxed);
            yield_now().await;
        }
    }

    /// Call this when the thread is about to wait for events.
    pub(crate) fn thread_sleeps() {
        HERE.with(|here| {
            let Some(Here { queue, publishes, publishes_seldom }) = here.get() else { return };
            queue.is_asleep.store(true, Relaxed);
            match publishes.take() {
                0 => {}
                count => publishes_seldom.set(count == 1),
            }
        });
    }

    /// Call this when the thread has stopped waiting.
    pub(crate) fn thread_is_awake() {
        HERE.with(|here| {
            if let Some(here) = here.get() {
                here.queue.is_asleep.store(false, Relaxed);
            }
        });
    }

    /// Takes all pending wakes, and all deliveries if none of those that were taken is left. It swaps them with an empty list,
    /// so that wakes need no allocation.
    fn poll_pending(
        &self,
        cx: &mut Context<'_>,
        wakes: &mut Vec<Arc<RemoteTask>>,
        deliveries: &mut VecDeque<Arc<RemoteTask>>,
    ) -> Poll<()> {
        let mut pending = self.pending.lock();
        std::mem::swap(&mut pending.wakes, wakes);
        if deliveries.is_empty() {
            std::mem::swap(&mut pending.deliveries, deliveries);
        }
        if wakes.is_empty() && deliveries.is_empty() {
            pending.driver = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    fn enqueue(&self, task: Arc<RemoteTask>) {
        let mut pending = self.pending.lock();
        match task.delivery {
            Some(_) => pending.deliveries.push_back(task),
            None => pending.wakes.push(task),
        }
        let driver = pending.driver.take();
        drop(pending);
        if let Some(driver) = driver {
            self.is_asleep.store(false, Relaxed);
            driver.wake();
        }
    }
}

impl Here {
    fn new() -> Self {
        Self { queue: Arc::default(), publishes: Cell::new(0), publishes_seldom: Cell::new(true) }
    }
}

/// Waits for an operation on the bus. A store ends many at once, and this wakes each thread once for all of its tasks.
pub(crate) async fn wait<T: Unpin>(op: Op<T>) -> T {
    match op.try_ready() {
        Ok(result) => result,
        // Boxed, so that requests for topics in memory need less memory.
        Err(op) => Box::pin(wait_for_store(op)).await,
    }
}

async fn wait_for_store<T: Unpin>(mut op: Op<T>) -> T {
    let _waiting = Waits::here();
    let mut waker = RemoteWaker::default();
    poll_fn(|cx| waker.poll(cx, |cx| Pin::new(&mut op).poll(cx))).await
}

/// Counts a task that waits, until it is dropped.
struct Waits(Option<Arc<WakeQueue>>);

impl Waits {
    fn here() -> Self {
        let queue = HERE.with(|here| Some(Arc::clone(&here.get()?.queue)));
        if let Some(queue) = &queue {
            queue.waiting.fetch_add(1, Relaxed);
        }
        Self(queue)
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        if let Some(queue) = &self.0 {
            queue.waiting.fetch_sub(1, Relaxed);
        }
    }
}

/// Call this after a publish, before its response is written. If publishes are rare, it makes the first deliveries
/// now, so that they do not wait for the response. If they are frequent, all deliveries follow the publishes that have
/// arrived already, so that messages are written together.
pub(crate) fn published() {
    HERE.with(|here| {
        let Some(Here { queue, publishes, publishes_seldom }) = here.get() else { return };
        let is_first = publishes.replace(publishes.get().saturating_add(1)) == 0;
        if !is_first || !publishes_seldom.get() || queue.is_behind.load(Relaxed) {
            return;
        }
        for _ in 0..SLICE_BEFORE_RESPONSE {
            let task = queue.pending.lock().deliveries.pop_front();
            let Some(task) = task else { return };
            task.run();
        }
    });
}

/// A task that can be woken from other threads.
#[derive(Debug)]
struct RemoteTask {
    /// The queue of the task's thread.
    home: Arc<WakeQueue>,
    waker: Waker,
    delivery: Option<Weak<dyn Delivery>>,
}

impl RemoteTask {
    /// Delivers for the task, or wakes it.
    fn run(&self) {
        let delivery = self.delivery.as_ref().and_then(Weak::upgrade);
        if !delivery.is_some_and(|delivery| delivery.deliver()) {
            self.waker.wake_by_ref();
        }
    }
}

impl Wake for RemoteTask {
    fn wake(self: Arc<Self>) {
        let home = Arc::clone(&self.home);
        // A thread that is ending has no queue any more.
        let here = HERE.try_with(|here| Some(Arc::clone(&here.get()?.queue))).ok().flatten();
        let Some(here) = here else { return home.enqueue(self) };
        let is_local = Arc::ptr_eq(&here, &home);
        if self.delivery.is_none() {
            if is_local { self.waker.wake_by_ref() } else { home.enqueue(self) }
        } else if is_local || (home.is_asleep.load(Relaxed) && !here.is_behind.load(Relaxed)) {
            here.enqueue(self);
        } else {
            home.enqueue(self);
        }
    }
}

/// Polls a future of one task with a waker that works efficiently from other threads.
#[derive(Debug, Default)]
pub(crate) struct RemoteWaker {
    delivery: Option<Weak<dyn Delivery>>,
    task: Option<(Arc<RemoteTask>, Waker)>,
}

impl RemoteWaker {
    /// For a task with a [`Delivery`].
    pub(crate) fn with_delivery(delivery: Weak<dyn Delivery>) -> Self {
        Self { delivery: Some(delivery), task: None }
    }

    /// The waker of the task that polled last, if its thread has a queue.
    pub(crate) fn task(&self) -> Option<Waker> {
        self.task.as_ref().map(|(task, _)| task.waker.clone())
    }

    /// Polls with a waker that uses the queue of this thread, if it has one.
    pub(crate) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        if !self.task.as_ref().is_some_and(|(task, _)| task.waker.will_wake(cx.waker())) {
            self.task = HERE.with(|here| {
                let (home, waker) = (Arc::clone(&here.get()?.queue), cx.waker().clone());
                let delivery = self.delivery.clone();
                let task = Arc::new(RemoteTask { home, waker, delivery });
                Some((Arc::clone(&task), Waker::from(task)))
            });
        }
        match &self.task {
            Some((_, waker)) => poll(&mut Context::from_waker(waker)),
            None => poll(cx),
        }
    }
}

/// Wakes the task after the runtime has looked for what has arrived on its sockets. A task that wakes itself runs again
/// before that, many times.
pub(crate) fn wake_after_io(cx: &mut Context<'_>) {
    let _ = pin!(yield_now()).as_mut().poll(cx);
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use tokio::runtime::Handle;

    use super::*;
    use crate::net::workers::Workers;

    const TEST_TIMEOUT: Duration = Duration::from_secs(60);

    /// A topic with one subscriber task.
    #[derive(Debug, Default)]
    struct Topic {
        waker: Mutex<Option<Waker>>,
        is_refused: AtomicBool,
        delivered: Mutex<Vec<Option<String>>>,
        polls: AtomicUsize,
    }

    impl Topic {
        fn wake(&self) {
            self.waker.lock().take().unwrap().wake();
        }
    }

    impl Delivery for Topic {
        fn deliver(&self) -> bool {
            self.delivered.lock().push(thread::current().name().map(str::to_owned));
            !self.is_refused.load(Relaxed)
        }
    }

    async fn follow(topic: Arc<Topic>) {
        let delivery: Weak<dyn Delivery> = Arc::downgrade(&topic) as _;
        let mut remote = RemoteWaker::with_delivery(delivery);
        poll_fn(|cx| {
            topic.polls.fetch_add(1, Relaxed);
            remote.poll(cx, |cx| {
                *topic.waker.lock() = Some(cx.waker().clone());
                Poll::<()>::Pending
            })
        })
        .await;
    }

    /// Runs a function on a thread and returns its result.
    fn on<T: Send + 'static>(thread: &Handle, act: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, receiver) = mpsc::channel();
        thread.spawn(async move { sender.send(act()) });
        receiver.recv_timeout(TEST_TIMEOUT).unwrap()
    }

    fn until(mut is_so: impl FnMut() -> bool) {
        while !is_so() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Two threads, with a waiting task on the first; and the queue of the first.
    fn start() -> (Workers, Arc<Topic>, Arc<WakeQueue>) {
        let workers = Workers::pinned(2).unwrap();
        let topic = Arc::new(Topic::default());
        let home = &workers.runtimes()[0];
        let queue = on(home, || HERE.with(|here| Arc::clone(&here.get_or_init(Here::new).queue)));
        home.spawn(follow(Arc::clone(&topic)));
        until(|| topic.waker.lock().is_some() && queue.is_asleep.load(Relaxed));
        (workers, topic, queue)
    }

    fn wake_from(workers: &Workers, thread: usize, topic: &Arc<Topic>) {
        let topic = Arc::clone(topic);
        on(&workers.runtimes()[thread], move || topic.wake());
    }

    /// Wakes the task of a sleeping thread from the other one, until that one delivers: a thread may also wake up for
    /// other reasons, at any time.
    fn delivered_by_the_other(is_refused: bool) -> (Workers, Arc<Topic>) {
        for _ in 0..100 {
            let (workers, topic, _) = start();
            topic.is_refused.store(is_refused, Relaxed);
            wake_from(&workers, 1, &topic);
            until(|| !topic.delivered.lock().is_empty());
            if topic.delivered.lock()[0].as_deref() == Some("worker-1") {
                return (workers, topic);
            }
        }
        panic!("the sleeping thread was woken each time");
    }

    #[test]
    fn a_sleeping_thread_is_not_woken_for_a_delivery() {
        let (_workers, topic) = delivered_by_the_other(false);
        assert_eq!((topic.delivered.lock().len(), topic.polls.load(Relaxed)), (1, 1));
    }

    #[test]
    fn a_refused_delivery_wakes_the_task() {
        let (_workers, topic) = delivered_by_the_other(true);
        until(|| topic.polls.load(Relaxed) == 2);
        assert_eq!(topic.delivered.lock().len(), 1);
    }

    #[test]
    fn a_thread_that_is_awake_delivers_for_its_own_tasks() {
        let (workers, topic, queue) = start();
        let (release, released) = mpsc::channel();
        workers.runtimes()[0].spawn(async move {
            let _ = released.recv_timeout(TEST_TIMEOUT);
        });
        until(|| !queue.is_asleep.load(Relaxed));
        wake_from(&workers, 1, &topic);
        assert_eq!(queue.pending.lock().deliveries.len(), 1);
        release.send(()).unwrap();
        until(|| !topic.delivered.lock().is_empty());
        assert_eq!(*topic.delivered.lock(), [Some("worker-0".to_owned())]);
    }

    #[test]
    fn a_thread_without_a_queue_uses_that_of_the_task() {
        let (_workers, topic, _) = start();
        topic.wake();
        until(|| !topic.delivered.lock().is_empty());
        assert_eq!(*topic.delivered.lock(), [Some("worker-0".to_owned())]);
    }
}
